"""Requests that nobody sends in good faith: made from the service's own OpenAPI document, and by hand. Never a fault of
ours, never another's text."""

from typing import Any

import httpx
import pytest
import tiny
from serving import client_of, lore, vote

from experiments.benchmarks import hostile
from experiments.benchmarks.hostile_target import SECRET, VICTIM, Target
from experiments.benchmarks.hostile_texts import NAMES, ODD
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.store import Store

LIMITS = Limits(votes_a_minute=10**6, texts=8, characters=300)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture(scope="module")
def client(base, tmp_path_factory):
    with client_of(lore(base), Store.open(f"{tmp_path_factory.mktemp('store')}/v.db"), limits=LIMITS) as client:
        told = client.post(f"/v1/users/{VICTIM}/votes", json={**vote(1), "first": SECRET, "id": "victims"})
        assert told.status_code == 200
        yield client


@pytest.fixture
def target(client):
    return Target(client, stop=True)


@pytest.fixture(scope="module")
def document(client) -> Any:
    return client.get("/openapi.json").json()


def test_any_json_is_answered_or_refused(target, document):
    hostile.any_json(target, hostile.paths_of(document, "ada"), 150)


def test_any_bytes_are_refused(target, document):
    hostile.any_bytes(target, hostile.paths_of(document, "ada"), 100)
    assert {status for _, status in target.statuses} <= {400, 404, 422}


def test_json_that_parsers_trip_over_is_refused(target, document):
    hostile.odd_json(target, hostile.paths_of(document, "ada"), 3 * len(ODD))


@pytest.mark.parametrize("against", [False, True])
def test_requests_made_from_the_document_are_answered_as_it_says(target, document, against):
    operations = hostile.from_document(target, document, 5 if against else 10, against=against)
    assert operations == sum(map(len, document["paths"].values()))
    assert target.statuses.total() > operations


def test_names_in_paths_are_names(target, client):
    hostile.names(target, 8 * len(NAMES))
    assert client.get(f"/v1/users/{VICTIM}/votes").json()["votes"][0]["first"] == SECRET


def test_other_users_are_out_of_reach(base, tmp_path):
    store = Store.open(f"{tmp_path}/votes.db")
    key = store.add_key("other", ["score", "vote"], "other")
    store.add_key("victims", ["vote"], VICTIM)
    admin = {"authorization": f"Bearer {store.add_key('admin', ['admin'])}"}
    with client_of(lore(base), store, keys=True, limits=LIMITS) as client:
        told = client.post(f"/v1/users/{VICTIM}/votes", json={**vote(1), "first": SECRET}, headers=admin)
        assert told.status_code == 200
        target = Target(client, stop=True)
        hostile.others(target, key, 150)
        assert {status for _, status in target.statuses} >= {401, 403, 404}
        assert client.get(f"/v1/users/{VICTIM}/votes", headers=admin).json()["votes"][0]["first"] == SECRET


def test_a_cats_votes_are_a_cats(client):
    assert client.post("/v1/users/%F0%9F%90%88/votes", json=vote(3)).status_code == 200
    assert client.get("/v1/users/%F0%9F%90%88").json()["user"] == "🐈"
    assert client.get("/v1/users?after=w").json()["users"][-1]["id"] == "🐈"


ERROR = {"message": "no", "type": "no", "param": None, "code": 404}


@pytest.mark.parametrize(
    ("path", "status", "body", "fault"),
    [
        ("/x", 500, {"error": ERROR}, "server_fault"),
        ("/x", 404, {"error": {**ERROR, "message": f"not {SECRET}"}}, "stranger"),
        ("/x", 200, {"text": SECRET}, "stranger"),
        ("/x", 422, {"detail": []}, "shape"),
        ("/x", 200, "Traceback (most recent call last)", "traceback"),
        ("/x", 404, {"error": ERROR}, None),
        (f"/v1/users/{VICTIM}/votes", 200, {"text": SECRET}, None),
    ],
)
def test_the_judge_of_answers_finds_what_is_wrong(path, status, body, fault):
    answers = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    target = Target(httpx.Client(transport=answers, base_url="http://127.0.0.1"))
    target.send("some", "GET", path)
    assert [*target.faults] == ([] if fault is None else [fault])
    assert target.statuses["some", status] == 1
