"""/v1 by an application in this process: scores, votes, undo, questions, pools, removal, two replicas of one store."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
import tiny
from serving import PROMPT, TEXTS, client_of, lore, row, scores, vote

import pref_jax
from pref_jax.serve.store.store import Store

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How long?"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    base = tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")
    return lore(base).save(tmp_path_factory.mktemp("saved") / "mine")


@pytest.fixture(scope="module")
def reference(saved) -> Any:
    """The model as loaded, which no test changes."""
    return pref_jax.load(saved, batch_size=8)


@pytest.fixture(scope="module")
def shared_client(saved, tmp_path_factory):
    """One service for all tests that use users of their own."""
    store = Store.open(f"{tmp_path_factory.mktemp('store')}/votes.db")
    with client_of(pref_jax.load(saved, batch_size=8), store, folder=saved) as client:
        yield client


@pytest.fixture
def client(shared_client):
    return shared_client


def post(client: Any, path: str, body: Any, status: int = 200) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def scored(model: Any, user: str | None, votes: Sequence[dict[str, Any]] = ()) -> bytes:
    """By the loaded model and these votes, for a user of the name given."""
    if user is None or not votes:
        return model.score(user, PROMPT, TEXTS).tobytes()
    origin = model.snapshot_user(user)
    model.add_votes(user, [row(one) for one in votes])
    found = model.score(user, PROMPT, TEXTS).tobytes()
    model.restore_user(user, origin)
    return found


def test_scores_are_those_of_the_model_to_the_bit(client, reference):
    for user in (None, "ada", "bo/ba"):
        assert scores(client, user) == scored(reference, user)
    assert scores(client, "ada", CHAT) == reference.score("ada", CHAT, TEXTS).tobytes()
    long = "rain " * 80
    found = post(
        client, "/v1/score", {"user": "ada", "prompt": PROMPT, "responses": ["Rain", long], "uncertainty": True}
    )
    want = reference.score("ada", PROMPT, ["Rain", long], uncertainty=True)
    assert np.array(found["rewards"], np.float32).tobytes() == want.mean.tobytes()
    assert np.array(found["deviations"], np.float32).tobytes() == want.deviation.tobytes()
    assert found["truncated"] == [False, True]
    assert found["tokens"][1] == reference.text.max_length
    assert found["shared"] is False
    ranked = post(client, "/v1/rank", {"user": "ada", "prompt": PROMPT, "responses": TEXTS})
    assert ranked["ranking"] == reference.rank("ada", PROMPT, TEXTS)
    assert ranked["model"] == found["model"] == client.get("/v1/model").json()["version"]


def test_votes_are_in_the_next_score_once_each_and_can_be_taken_back(client, reference):
    votes = [vote(n, ("first", "second", "both_bad", "tie", "skip")[n % 5], id=f"v{n}") for n in range(8)]
    teaching = [one for one in votes if one["choice"] in ("first", "second", "tie")]
    assert post(client, "/v1/users/di/votes", votes[0]) == {"stored": ["v0"], "repeated": []}
    assert scores(client, "di") == scored(reference, "di", votes[:1])
    added = post(client, "/v1/users/di/votes", {"votes": votes})
    assert (added["repeated"], len(added["stored"])) == (["v0"], 7)
    assert scores(client, "di") == scored(reference, "di", teaching)
    assert post(client, "/v1/users/di/votes", votes[3])["repeated"] == ["v3"]
    assert post(client, "/v1/users/di/votes", {**votes[3], "choice": "first"}, 409)["error"]["param"] == "id"
    # Undo, and once more.
    assert client.delete("/v1/users/di/votes/v1").json() == {"removed": "v1"}
    assert client.delete("/v1/users/di/votes/v1").status_code == 404
    assert scores(client, "di") == scored(reference, "di", [one for one in teaching if one["id"] != "v1"])
    post(client, "/v1/users/di/votes", votes[1])
    assert scores(client, "di") != scored(reference, "ada")
    # Pages.
    found, after = [], 0
    while after is not None:
        page = client.get(f"/v1/users/di/votes?after={after}&limit=3").json()
        found, after = found + page["votes"], page["next"]
    assert [one["id"] for one in found] == ["v0", *(f"v{n}" for n in range(2, 8)), "v1"]
    assert {name: found[-1][name] for name in votes[1]} == votes[1]
    told = client.get("/v1/users/di").json()
    assert told["votes"] == 8
    assert len(told["belief"]["weights"]) == len(told["belief"]["deviations"]) == 3


def test_votes_of_users_the_model_knew_are_on_top_of_what_it_knew(client, reference):
    votes = [vote(n) for n in range(3)]
    post(client, "/v1/users/bo%2Fba/votes", {"votes": votes})
    assert scores(client, "bo/ba") == scored(reference, "bo/ba", votes) != scored(reference, "bo/ba")
    assert scores(client, "cy") == scored(reference, "cy")
    for one in client.get("/v1/users/bo%2Fba/votes").json()["votes"]:
        assert client.delete(f"/v1/users/bo%2Fba/votes/{one['id']}").status_code == 200
    assert scores(client, "bo/ba") == scored(reference, "bo/ba")


def test_unknown_users_are_told_or_get_the_reward_of_nobody(client, reference):
    body = {"user": "eve", "prompt": PROMPT, "responses": TEXTS}
    for path in ("/v1/score", "/v1/rank"):
        assert post(client, path, body, 404)["error"]["param"] == "user"
    found = post(client, "/v1/score", {**body, "unknown": "shared"})
    assert found["shared"] is True
    assert np.array(found["rewards"], np.float32).tobytes() == scored(reference, None)
    for path in ("/v1/users/eve", "/v1/users/eve/votes"):
        assert client.get(path).status_code == 404
        assert client.delete(path).status_code in (404, 405)
    # Votes that teach nothing make a user known, whose reward is that of nobody.
    post(client, "/v1/users/flo/votes", vote(1, "both_bad"))
    assert scores(client, "flo") == scored(reference, None)
    assert client.get("/v1/users/flo").json()["belief"] == {}
    post(client, "/v1/users/flo/votes", vote(1, "tie"))
    assert scores(client, "flo") == scored(reference, None)


def test_questions_are_the_most_telling_pairs_that_are_left(client, reference):
    words = serving.WORDS
    pairs = [{"prompt": PROMPT, "first": words[n], "second": words[n + 1], "id": f"p{n}"} for n in range(7)]
    assert post(client, "/v1/pools/talk", {"pairs": pairs}) == {"added": 7, "pairs": 7}
    assert post(client, "/v1/pools/talk", {"pairs": pairs[:2]}) == {"added": 0, "pairs": 7}
    assert client.get("/v1/pools").json()["pools"]["talk"] == 7
    page = client.get("/v1/pools/talk?limit=5").json()
    assert page["pairs"] == pairs[:5]
    assert client.get(f"/v1/pools/talk?after={page['next']}").json() == {"pairs": pairs[5:], "next": None}
    found = post(client, "/v1/users/gil/ask", {"pool": "talk", "count": 7})
    read = reference.read(pref_jax.lm.text_model.as_responses([PROMPT] * 8, words))
    want = reference.select_pairs(None, read[:7], read[1:], 7)
    assert [one["id"] for one in found["pairs"]] == [f"p{one.pair}" for one in want]
    assert found["pairs"][0]["information"] == pytest.approx(want[0].information, rel=1e-4)
    assert (found["left"], found["considered"], found["pairs"][0]["asked"]) == (7, 7, "expected_information")
    for one in found["pairs"][:6]:
        texts = {name: one[name] for name in ("prompt", "first", "second")}
        post(client, "/v1/users/gil/votes", {**texts, "choice": "first", "pair": one["id"], "asked": one["asked"]})
    last = post(client, "/v1/users/gil/ask", {"pool": "talk", "count": 3})
    assert [one["id"] for one in last["pairs"]] == [found["pairs"][6]["id"]]
    bare = [{name: pair[name] for name in ("prompt", "first", "second")} for pair in pairs]
    some = post(client, "/v1/users/gil/ask", {"candidates": bare})["pairs"]
    assert len(some) == 1
    assert len(some[0]["id"]) == 32
    assert client.delete("/v1/pools/talk").json() == {"removed": 7}
    for answer in (client.get("/v1/pools/talk"), client.delete("/v1/pools/talk")):
        assert answer.status_code == 404
    assert post(client, "/v1/users/gil/ask", {"pool": "talk"}, 404)
    assert post(client, "/v1/users/gil/ask", {}, 422)
    study = client.get("/v1/study").json()
    assert study["votes"] >= 6
    assert sum(study["days"][-1]["choices"].values()) >= 6


def test_nothing_of_a_removed_user_is_left(saved, reference, tmp_path):
    folder = pref_jax.load(saved).save(tmp_path / "mine")
    model, store = pref_jax.load(folder, batch_size=8), Store.open(f"{tmp_path}/votes.db")
    with client_of(model, store, folder=folder) as client:
        app: Any = client.app
        reader = app.state.front.service.reader
        for user in ("ada", "zed"):
            votes = [vote(n, id=f"{user} {n}") for n in range(4)]
            post(client, f"/v1/users/{user}/votes", {"votes": [{**one, "prompt": f"{user}?"} for one in votes]})
            scores(client, user)
        kept = len(reader.cache)
        gone = client.delete("/v1/users/zed").json()
        assert (gone["votes"], gone["model"]) == (4, {"known": False, "saved": True, "why": ""})
        assert len(reader.cache) < kept
        gone = client.delete("/v1/users/ada").json()
        assert (gone["votes"], gone["model"]) == (4, {"known": True, "saved": True, "why": ""})
        # All that is left was read for the scores.
        assert len(reader.cache) == len(TEXTS)
        for user in ("ada", "zed"):
            post(client, "/v1/score", {"user": user, "prompt": PROMPT, "responses": TEXTS}, 404)
            assert client.delete(f"/v1/users/{user}").status_code == 404
        assert model.users == ["bo/ba", "cy"]
        assert scores(client, "cy") == scored(reference, "cy")
        assert [one["id"] for one in client.get("/v1/users").json()["users"]] == []
        # Who comes back is a stranger.
        post(client, "/v1/users/ada/votes", vote(1))
        assert scores(client, "ada") == scored(reference, "new", [vote(1)])
    assert pref_jax.load(folder).users == ["bo/ba", "cy"]
    left = b"".join(file.read_bytes() for file in folder.iterdir()) + Path(f"{tmp_path}/votes.db").read_bytes()
    assert b"zed" not in left


def test_two_services_on_one_store_agree(saved, reference, url, tmp_path):
    folder = pref_jax.load(saved).save(tmp_path / "mine")
    models = [pref_jax.load(folder, batch_size=8) for _ in range(2)]
    with (
        client_of(models[0], Store.open(url), folder=folder) as one,
        client_of(models[1], Store.open(url), folder=folder) as two,
    ):
        votes = [vote(n, id=f"v{n}") for n in range(6)]
        for place, given in enumerate(votes):
            post((one, two)[place % 2], "/v1/users/ada/votes", given)
            want = scored(reference, "ada", votes[: place + 1])
            assert scores((one, two)[1 - place % 2], "ada") == scores((one, two)[place % 2], "ada") == want
        two.delete("/v1/users/ada/votes/v2")
        assert scores(one, "ada") == scored(reference, "ada", votes[:2] + votes[3:])
        assert two.delete("/v1/users/ada").json()["model"]["saved"]
        for client in (one, two):
            assert client.get("/v1/users/ada").status_code == 404
        post(one, "/v1/users/ada/votes", votes[0])
        assert scores(one, "ada") == scores(two, "ada") == scored(reference, "new", votes[:1])


def test_what_it_says_of_itself(client):
    told = client.get("/v1/model").json()
    assert (told["kind"], told["name"], told["users"], told["reads_with_user"]) == ("lore", "mine", 3, False)
    assert told["facts"]["rank"] == 3
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    figures = client.get("/metrics").text
    assert 'pref_requests_total{method="GET",route="/v1/model",status="200"}' in figures
    assert "pref_texts_kept_bytes" in figures
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/score", "/v1/users/{user}/votes/{vote}", "/classify", "/get_reward"} <= set(document["paths"])
    answer = client.put("/v1/rank")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert client.get("/nothing").status_code == 404
    assert math.isfinite(told["max_tokens"])


def test_a_method_that_reads_texts_with_their_users_is_served_too(saved, tmp_path):
    from test_user_states import copl

    text = pref_jax.lm.text_model.open_text(str(saved and lore_base(saved)), max_length=48, batch_size=8)
    model, own = copl(text, texts=True), copl(text, texts=True)
    with client_of(model, Store.open(f"{tmp_path}/votes.db")) as client:
        for user in (None, "ada"):
            assert scores(client, user) == scored(own, user)
        votes = [vote(n) for n in range(4)]
        post(client, "/v1/users/di/votes", {"votes": votes})
        assert scores(client, "di") == scored(own, "di", votes)
        found = post(client, "/v1/users/di/ask", {"candidates": [{"prompt": "?", "first": "a", "second": "b"}]})
        assert found["pairs"][0]["asked"] == "random"
        assert "at random" in found["why"]
        error = post(client, "/v1/score", {"user": "ada", "prompt": "?", "responses": ["a"], "uncertainty": True}, 422)
        assert "no posterior" in error["error"]["message"]
        assert client.get("/v1/users/di").json()["belief"]["in_graph"] is False


def lore_base(folder: Path) -> str:
    return pref_jax.saved.about(folder)["base"]["name"]
