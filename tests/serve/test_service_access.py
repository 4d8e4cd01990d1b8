"""Who may do what, how much of it, and what is refused how; log lines."""

import json
import logging
from typing import Any

import numpy as np
import pytest
import tiny
from serving import PROMPT, TEXTS, client_of, lore, vote

from lore_jax.fitted import LoRe
from pref_jax.errors import UserError
from pref_jax.serve.access import Pace
from pref_jax.serve.service import Service
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.store import Store

SCORE = {"prompt": PROMPT, "responses": TEXTS}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture(scope="module")
def client(base, tmp_path_factory):
    limits = Limits(body=20_000, characters=500, texts=4, votes=3, votes_a_minute=6, pairs=3)
    with client_of(lore(base), Store.open(f"{tmp_path_factory.mktemp('store')}/v.db"), limits=limits) as client:
        yield client


@pytest.fixture
def guarded(base, tmp_path):
    """A service that asks for keys, and its keys by name."""
    store = Store.open(f"{tmp_path}/votes.db")
    keys = {
        "scorer": store.add_key("scorer", ["score"]),
        "voter": store.add_key("voter", ["score", "vote"]),
        "admin": store.add_key("admin", ["admin"]),
        "ada": store.add_key("ada's", ["score", "vote"], "ada"),
    }
    with client_of(lore(base), store, keys=True) as client:
        yield client, {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}


def test_keys_open_what_their_rights_say(guarded):
    client, keys = guarded
    for headers in ({}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic x"}, {"authorization": ""}):
        answer = client.post("/v1/score", json=SCORE, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/metrics", headers=headers).status_code == 401
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert client.get(path).status_code == 200
    asked = {
        "score": ("POST", "/v1/score", SCORE),
        "vote": ("POST", "/v1/users/bo%2Fba/votes", vote(1)),
        "read": ("GET", "/v1/users/bo%2Fba/votes", None),
        "pool": ("POST", "/v1/pools/p", {"pairs": [{"prompt": "?", "first": "a", "second": "b"}]}),
        "users": ("GET", "/v1/users", None),
        "remove": ("DELETE", "/v1/users/bo%2Fba", None),
    }
    want = {
        "scorer": {"score"},
        "voter": {"score", "vote", "read"},
        "admin": set(asked),
    }
    for name, allowed in want.items():
        for what, (method, path, body) in asked.items():
            answer = client.request(method, path, json=body, headers=keys[name])
            assert answer.status_code == (200 if what in allowed else 403), (name, what, answer.text)


def test_a_users_own_key_sees_nobody_else(guarded):
    client, keys = guarded
    mine, admin = keys["ada"], keys["admin"]
    client.post("/v1/users/zed/votes", json=vote(1, id="secret"), headers=admin)
    assert client.post("/v1/users/ada/votes", json=vote(2), headers=mine).status_code == 200
    assert client.post("/v1/score", json={"user": "ada", **SCORE}, headers=mine).status_code == 200
    for user in ("zed", "cy", "nobody at all"):
        answers = [
            client.post("/v1/score", json={"user": user, **SCORE}, headers=mine),
            client.get(f"/v1/users/{user}", headers=mine),
            client.get(f"/v1/users/{user}/votes", headers=mine),
            client.post(f"/v1/users/{user}/votes", json=vote(3), headers=mine),
            client.delete(f"/v1/users/{user}/votes/secret", headers=mine),
            client.post(f"/v1/users/{user}/ask", json={"pool": "p"}, headers=mine),
            client.delete(f"/v1/users/{user}", headers=mine),
        ]
        # To the letter what is said of a user who is not there.
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.text for answer in answers}) == 1
    shared = client.post("/v1/score", json={**SCORE, "unknown": "shared"}, headers=mine).json()["rewards"]
    for user in ("zed", "cy"):
        hidden = client.post("/v1/score", json={"user": user, "unknown": "shared", **SCORE}, headers=mine).json()
        assert (hidden["rewards"], hidden["shared"]) == (shared, True)
        body = {"query": PROMPT, "documents": TEXTS[:1], "user": user}
        answer = client.post("/rerank", json=body, headers=mine)
        assert answer.headers["x-pref-unknown-users"] == "1"
        assert answer.json()["results"][0]["relevance_score"] == shared[0]
    # An id that another user's vote has is refused, and says no more than that.
    taken = client.post("/v1/users/ada/votes", json=vote(1, id="secret"), headers=mine)
    assert taken.status_code == 409
    assert "zed" not in taken.text
    assert vote(1)["first"] not in taken.text
    assert client.get("/v1/users", headers=mine).status_code == 403
    assert client.delete("/v1/users/ada", headers=mine).status_code == 200


def test_a_removed_key_opens_nothing(guarded):
    client, keys = guarded
    store = client.app.state.front.service.store
    assert client.post("/v1/score", json=SCORE, headers=keys["scorer"]).status_code == 200
    store.remove_key("scorer")
    assert client.post("/v1/score", json=SCORE, headers=keys["scorer"]).status_code == 401


def test_without_keys_only_this_machines_names_are_answered_to(client):
    for host in ("evil.example", "evil.example:8000", ""):
        answer = client.post("/v1/score", json=SCORE, headers={"host": host})
        assert answer.status_code == 421, host
    for host in ("localhost:9", "127.0.0.1:8000", "[::1]:80", "[::1]", "LOCALHOST"):
        assert client.post("/v1/score", json=SCORE, headers={"host": host}).status_code == 200
    # What a page of another site can send without asking first.
    text = client.post("/v1/users/ada/votes", content=json.dumps(vote(1)), headers={"content-type": "text/plain"})
    assert text.status_code == 415


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"prompt": "?" * 501, "responses": ["a"]}, 422, "501 characters; send at most 500"),
        ({"prompt": [{"role": "user", "content": "?" * 500}], "responses": ["a"]}, 422, "send at most 500"),
        ({"prompt": "?", "responses": ["a" * 501]}, 422, "501 characters"),
        ({"prompt": "?", "responses": ["a"] * 5}, 422, "5 texts; send at most 4"),
        ({"prompt": "?", "responses": []}, 422, "responses"),
        ({"prompt": "?", "responses": ["a" * 21_000]}, 413, "larger than 20000 bytes"),
        ({"prompt": "?", "responses": "a"}, 422, "responses: Input should be a valid list"),
        ({"prompt": "?", "responses": [1]}, 422, "responses.0: Input should be a valid string"),
        ({"prompt": "?", "responses": ["a"], "uncertainty": "yes"}, 422, "uncertainty"),
        ({"prompt": "?", "responses": ["a"], "uncertainty": 1}, 422, "uncertainty"),
        ({"prompt": "?", "responses": ["a"], "more": 1}, 422, "more: Extra inputs"),
        ({"prompt": "?", "responses": ["a\0b"]}, 422, "NUL"),
        ({"prompt": " ", "responses": ["a"]}, 422, "blank"),
        ({"prompt": [{"role": "wizard", "content": "?"}], "responses": ["a"]}, 422, "role"),
        ({"prompt": [], "responses": ["a"]}, 422, "prompt"),
        ({"user": "", "prompt": "?", "responses": ["a"]}, 422, "user"),
        ({"user": "a\nb", "prompt": "?", "responses": ["a"]}, 422, "user"),
        ({"user": 7, "prompt": "?", "responses": ["a"]}, 422, "user"),
        ([], 422, "body"),
        ("text", 422, "body"),
    ],
)
def test_bodies_of_another_shape_are_refused_with_the_field(client, body, status, said):
    answer = client.post("/v1/score", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == status
    assert said in error["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"prompt": "?", "responses": ["a"], "x": NaN}',
        b'{"prompt": "?", "responses": ["a"], "x": -Infinity}',
        b'{"prompt": "\\ud800", "responses": ["a"]}',
        b"[" * 15_000,
        b'{"a":' * 3000,
        b"1" * 15_000,
        b'{"prompt": "?", "responses": ["a"]} more',
    ],
)
def test_what_is_no_json_is_refused(client, raw):
    for path in ("/v1/score", "/v1/users/ada/votes", "/classify", "/get_reward"):
        answer = client.post(path, content=raw, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
        assert "Traceback" not in answer.text


def test_a_body_without_a_length_is_cut_off_too(client):
    def parts():
        for _ in range(100):
            yield b" " * 1000

    answer = client.post("/v1/score", content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choice": "left"}, "choice"),
        ({"second": vote(1)["first"]}, "first and second are the same"),
        ({"strength": -1.0}, "strength"),
        ({"strength": 1e300}, "strength"),
        ({"choice": "tie", "strength": 1.0}, "strength is given with choice tie"),
        ({"shown": "up"}, "shown"),
        ({"time": 1e12}, "time"),
        ({"latency": -0.1}, "latency"),
        ({"id": "x" * 257}, "id"),
        ({"user": "ada"}, "user"),
    ],
)
def test_votes_that_mean_nothing_are_refused(client, change, said):
    answer = client.post("/v1/users/ada/votes", json={**vote(1), **change})
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]
    assert client.get("/v1/users/ada/votes").json()["votes"] == []


def test_votes_are_paced_and_counted_by_user(client):
    some = {"votes": [vote(n) for n in range(3)]}
    assert client.post("/v1/users/di/votes", json={"votes": [vote(n) for n in range(4)]}).status_code == 422
    assert [client.post("/v1/users/di/votes", json=some).status_code for _ in range(3)] == [200, 200, 429]
    answer = client.post("/v1/users/di/votes", json=vote(9))
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert client.post("/v1/users/eve/votes", json=vote(9)).status_code == 200
    assert len(client.get("/v1/users/di/votes").json()["votes"]) == 6
    pairs = [{"prompt": "?", "first": "a", "second": f"b{n}"} for n in range(4)]
    assert client.post("/v1/pools/p", json={"pairs": pairs}).status_code == 422
    assert client.post("/v1/pools/p", json={"pairs": pairs[:2]}).status_code == 200
    assert client.post("/v1/pools/p", json={"pairs": pairs[2:]}).status_code == 422


def test_the_bucket_of_votes_fills_with_time():
    now = [0.0]
    pace = Pace(6, clock=lambda: now[0])
    assert pace.wait("ada", 6) == 0
    assert pace.wait("ada", 2) == pytest.approx(20)
    now[0] = 20.0
    assert pace.wait("ada", 2) == 0
    assert pace.wait("ada", 1) == pytest.approx(10)
    assert pace.wait("bo", 6) == 0


def test_log_lines_tell_neither_texts_nor_users_unless_asked(base, tmp_path):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("pref_jax.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for asked in (False, True):
            store = Store.open(f"{tmp_path}/{asked}.db")
            with client_of(lore(base), store, log_ids=asked) as client:
                client.post("/v1/users/somebody/votes", json=vote(1))
                client.post("/v1/users/somebody/votes", content=b'{"prompt": "a secret',
                            headers={"content-type": "application/json"})  # fmt: skip
                client.get("/v1/users/somebody?x=secret")
                client.get("/secret")
            whole = "\n".join(lines)
            assert ("somebody" in whole) == asked
            for text in (vote(1)["first"], "secret"):
                assert text not in whole
            parsed = [json.loads(line) for line in lines]
            assert [line["status"] for line in parsed] == [200, 400, 200, 404]
            assert parsed[0]["route"] == "/v1/users/{user}/votes"
            assert parsed[-1]["route"] == "other"
            lines.clear()
    finally:
        logger.removeHandler(handler)


def test_faults_of_our_own_tell_nothing(base, tmp_path, caplog):
    with client_of(lore(base), Store.open(f"{tmp_path}/v.db")) as client:
        app: Any = client.app
        service = app.state.front.service

        def breaks(*_: Any, **__: Any) -> None:
            raise RuntimeError("a text of somebody")

        service.states.rewards = breaks
        with caplog.at_level(logging.INFO, "pref_jax.serve"):
            answer = client.post("/v1/score", json=SCORE)
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "something went wrong here; it has been logged"
        assert "a text of somebody" not in caplog.text
        assert "RuntimeError" in caplog.text
        # The next one is answered.
        assert client.get("/v1/users/ada").status_code == 200


def test_models_of_features_are_not_served(base, tmp_path):
    own = lore(base)
    on_features = LoRe(fit=own._fit, users=[], z=np.zeros((0, 3), np.float32), counts=np.zeros(0, int), facts=own.facts)
    with Store.open(f"{tmp_path}/v.db") as store, pytest.raises(UserError, match="scores features, not texts"):
        Service(on_features, store, Limits())
