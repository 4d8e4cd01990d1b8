"""The clients that vLLM's documentation uses, as it uses them, against a service over HTTP: `requests` with the bodies
of its examples, `openai` for the list of models and by `client.post`, and both of Cohere's for /rerank."""

from typing import Any

import cohere
import httpx
import numpy as np
import openai
import pytest
import requests
from serving import PROMPT, TEXTS, listening, lore

from pref_jax.data.text.tokenization import rendered
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.store import Store


@pytest.fixture(scope="module")
def served(base, tmp_path_factory):
    """The address of a service that asks for keys, and a key."""
    store = Store.open(f"{tmp_path_factory.mktemp('store')}/v.db")
    key = store.add_key("trainer", ["score"])
    with listening(lore(base), store, limits=Limits(), name="mine", keys=True) as (address, _):
        yield f"http://127.0.0.1:{address[1]}", key


def chat(text: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]


def strings(reference: Any) -> list[str]:
    plain = [[{"role": "user", "content": PROMPT}, {"role": "assistant", "content": text}] for text in TEXTS]
    return rendered(reference.text.tokenizer, plain)


def floats(values: Any) -> list[np.float32]:
    return [np.float32(value) for value in values]


def test_requests_as_the_examples_of_pooling_and_classify_send_them(served, reference):
    url, key = served
    headers = {"User-Agent": "Test Client", "Authorization": f"Bearer {key}"}
    model = requests.get(f"{url}/v1/models", headers=headers).json()["data"][0]["id"]
    want = reference.score("ada", PROMPT, TEXTS)

    def post(path: str, **body: Any) -> Any:
        answer = requests.post(url + path, headers=headers, json={"model": model, "user": "ada", **body})
        answer.raise_for_status()
        return answer.json()["data"]

    assert floats(one["probs"][0] for one in post("/classify", input=strings(reference))) == want.tolist()
    assert floats(one["data"][0] for one in post("/pooling", input=strings(reference))) == want.tolist()
    for text, reward in zip(TEXTS, want, strict=True):
        assert floats(post("/pooling", messages=chat(text))[0]["data"]) == [reward]
        assert floats(post("/classify", messages=chat(text))[0]["probs"]) == [reward]
    assert floats(one["score"] for one in post("/score", queries=PROMPT, documents=TEXTS)) == want.tolist()
    assert floats([post("/score", queries=PROMPT, documents=TEXTS[0])[0]["score"]]) == want[:1].tolist()
    both = post("/score", queries=[PROMPT] * 3, documents=TEXTS)
    assert floats(one["score"] for one in both) == want.tolist()


def test_openai_lists_models_and_posts(served, reference):
    url, key = served
    want = reference.score("ada", PROMPT, TEXTS)
    with openai.OpenAI(api_key=key, base_url=f"{url}/v1") as client:
        model = client.models.list().data[0].id
        assert model == "mine"
        body = {"model": model, "input": strings(reference), "user": "ada"}
        found = client.post("/classify", cast_to=dict[str, Any], body=body)
        assert floats(one["probs"][0] for one in found["data"]) == want.tolist()
        found = client.post(
            "/rerank", cast_to=dict[str, Any], body={"query": PROMPT, "documents": TEXTS, "user": "ada"}
        )
        assert [one["index"] for one in found["results"]] == reference.rank("ada", PROMPT, TEXTS)
        with pytest.raises(openai.NotFoundError, match="'mine' alone"):
            client.post("/classify", cast_to=dict[str, Any], body={**body, "model": "gpt-7"})
        with pytest.raises(openai.BadRequestError, match="input"):
            client.post("/classify", cast_to=dict[str, Any], body={"model": model, "input": 7})
    with openai.OpenAI(api_key="EMPTY", base_url=url) as client, pytest.raises(openai.AuthenticationError, match="key"):
        client.post("/pooling", cast_to=dict[str, Any], body=body)
    with openai.OpenAI(api_key=key, base_url=url) as client:
        found = client.post("/pooling", cast_to=dict[str, Any], body=body)
        assert floats(one["data"][0] for one in found["data"]) == want.tolist()


@pytest.mark.parametrize("kind", ["Client", "ClientV2"])
def test_cohere_reranks(served, reference, kind):
    url, key = served
    # Cohere's have no field for a user of their own; more of the body goes as everywhere in these clients.
    options = {"additional_body_parameters": {"user": "ada"}}
    asked: Any = {"model": "mine", "query": PROMPT, "documents": TEXTS}
    # Only what is given can be closed.
    with httpx.Client() as transport:
        client = getattr(cohere, kind)(api_key=key, base_url=url, httpx_client=transport)
        found = client.rerank(**asked, request_options=options).results
        of_nobody = client.rerank(**asked).results
    want = reference.score("ada", PROMPT, TEXTS)
    assert [one.index for one in found] == reference.rank("ada", PROMPT, TEXTS)
    assert floats(one.relevance_score for one in found) == want[[one.index for one in found]].tolist()
    shared = reference.score(None, PROMPT, TEXTS)
    assert sorted(floats(one.relevance_score for one in of_nobody)) == sorted(shared.tolist())
