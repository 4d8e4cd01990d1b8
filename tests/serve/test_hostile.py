"""Requests that nobody sends in good faith: made from the service's own OpenAPI document, and by hand. Never a fault of
ours, never another's text."""

import json
from typing import Any

import jsonschema
import pytest
import schemathesis
import schemathesis.core
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import client_of, lore, vote

from pref_jax.serve.settings import Limits
from pref_jax.serve.store.store import Store

SECRET = "a text that somebody else voted on"
EVERY: Any = tuple(HealthCheck)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
PATHS = (
    "/v1/score", "/v1/rank", "/v1/users/ada/votes", "/v1/users/ada/ask", "/v1/pools/p", "/score", "/classify",
    "/pooling", "/rerank", "/get_reward",
)  # fmt: skip
FIELDS = ("user", "prompt", "responses", "votes", "id", "first", "second", "choice", "strength", "input", "messages", "query", "documents", "queries", "labels", "pairs", "candidates", "pool", "count", "time")  # fmt: skip # noqa: E501


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    base = tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")
    store = Store.open(f"{tmp_path_factory.mktemp('store')}/v.db")
    with client_of(lore(base), store, limits=Limits(votes_a_minute=10**6, texts=8, characters=300)) as client:
        told = client.post("/v1/users/victim/votes", json={**vote(1), "first": SECRET, "id": "victims"})
        assert told.status_code == 200
        yield client


def check(answer: Any) -> None:
    assert answer.status_code < 500, (answer.request.url, answer.text)
    assert "Traceback" not in answer.text
    if "victim" not in str(answer.request.url):
        assert SECRET not in answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(path=st.sampled_from(PATHS), body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON)
def test_any_json_is_answered_or_refused(client, path, body):
    check(client.post(path, content=json.dumps(body), headers={"content-type": "application/json"}))


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(raw=st.binary(max_size=200), path=st.sampled_from(PATHS))
def test_any_bytes_are_refused(client, raw, path):
    check(client.post(path, content=raw, headers={"content-type": "application/json"}))


def test_requests_made_from_the_document_are_answered_as_it_says(client):
    document = client.get("/openapi.json").json()
    found: Any = schemathesis.openapi.from_dict(document)
    operations = [operation.ok() for operation in found.get_all_operations()]
    assert len(operations) == sum(map(len, document["paths"].values()))
    for operation in operations:
        ask(client, document, operation)


def ask(client: Any, document: dict[str, Any], operation: Any) -> None:
    """Sends some requests of one operation, and compares the answers with what the document says of them."""
    said = document["paths"][operation.path][operation.method.lower()]["responses"]

    @settings(max_examples=10, deadline=None, suppress_health_check=EVERY, database=None)
    @given(case=operation.as_strategy())
    def some(case: Any) -> None:
        sent = {} if isinstance(case.body, schemathesis.core.NotSet) else {"json": case.body}
        answer = client.request(case.method, case.formatted_path, params=case.query or None, **sent)
        check(answer)
        assert str(answer.status_code) in {*said, "405"}
        content = said.get(str(answer.status_code), {}).get("content", {}).get("application/json")
        if content is not None:
            jsonschema.validate(answer.json(), {**content["schema"], "components": document["components"]})

    some()


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fetc%2fpasswd", "%2e%2e", "'%3B DROP TABLE votes;--", "%00", "%ff", "%F0%9F%90%88", "a%2Fvotes",
        "%20", "*", "x" * 300, "%25", "ada%3Fx=1", "{user}", "%c0%ae",
    ],
)  # fmt: skip
def test_names_in_paths_are_names(client, name):
    for method, path, body in (
        ("GET", f"/v1/users/{name}", None),
        ("GET", f"/v1/users/{name}/votes", None),
        ("POST", f"/v1/users/{name}/votes", vote(2)),
        ("DELETE", f"/v1/users/{name}/votes/x", None),
        ("POST", f"/v1/users/{name}/ask", {"pool": name}),
        ("GET", f"/v1/pools/{name}", None),
        ("DELETE", f"/v1/users/{name}", None),
    ):
        check(client.request(method, path, json=body))
    assert client.get("/v1/users/victim/votes").json()["votes"][0]["first"] == SECRET


def test_a_cats_votes_are_a_cats(client):
    assert client.post("/v1/users/%F0%9F%90%88/votes", json=vote(3)).status_code == 200
    assert client.get("/v1/users/%F0%9F%90%88").json()["user"] == "🐈"
    assert client.get("/v1/users?after=w").json()["users"][-1]["id"] == "🐈"
