"""Bodies as clients of vLLM, Jina, OpenRLHF and verl write them, answered in their shapes by the model's scores."""

import math
from typing import Any

import numpy as np
import pytest
from serving import PROMPT, TEXTS, client_of, lore, vote

from pref_jax.data.text.tokenization import rendered
from pref_jax.lm.text_model import as_responses
from pref_jax.serve.rendered import tokens_of
from pref_jax.serve.store.store import Store


@pytest.fixture(scope="module")
def client(base, tmp_path_factory):
    with client_of(lore(base), Store.open(f"{tmp_path_factory.mktemp('store')}/v.db"), name="mine") as client:
        yield client


def post(client: Any, path: str, body: Any, status: int = 200) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def written(reference: Any, prompt: str, text: str) -> str:
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
    return rendered(reference.text.tokenizer, [chat])[0]


def test_verl_reads_one_reward_of_a_rendered_text(client, reference):
    string = written(reference, PROMPT, TEXTS[0])
    # As verl's reward loop sends it and reads the answer.
    body = {"model": "mine", "input": string, "use_activation": False, "user": "ada"}
    for path in ("/classify", "/v1/classify"):
        found = post(client, path, body)
        assert np.float32(found["data"][-1]["probs"][-1]) == reference.score("ada", PROMPT, TEXTS[:1])[0]
    assert (found["object"], found["model"], found["data"][0]["num_classes"]) == ("list", "mine", 1)
    assert found["usage"]["prompt_tokens"] == len(reference.text.tokenize(as_responses([PROMPT], TEXTS[:1])).flat)
    assert found["id"].startswith("classify-")


def test_classes_of_many_forms_of_input(client, reference):
    want = reference.score("bo/ba", PROMPT, TEXTS)
    strings = [written(reference, PROMPT, text) for text in TEXTS]
    tokens = [reference.text.tokenizer(one, add_special_tokens=False)["input_ids"] for one in strings]
    for given in (strings, tokens):
        found = post(client, "/classify", {"input": given, "user": "bo/ba"})
        assert [np.float32(row["probs"][0]) for row in found["data"]] == want.tolist()
        assert [row["index"] for row in found["data"]] == [0, 1, 2]
    one = post(client, "/classify", {"input": tokens[1], "user": "bo/ba"})
    assert np.float32(one["data"][0]["probs"][0]) == want[1]
    chat = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}, {"role": "assistant", "content": TEXTS[2]}]
    found = post(client, "/classify", {"messages": chat, "user": "bo/ba", "add_generation_prompt": False})
    assert np.float32(found["data"][0]["probs"][0]) == want[2]
    found = post(client, "/classify", {"input": strings, "user": "bo/ba", "use_activation": True})
    np.testing.assert_allclose([row["probs"][0] for row in found["data"]], 1 / (1 + np.exp(-want)), rtol=1e-5)
    # What the template does not write is read as it is.
    for string in ("Seven minutes.", "a<|end_of_user|>b<|end_of_user|>c"):
        ids, _ = tokens_of(reference.text, string, special=True)
        found = post(client, "/classify", {"input": string})
        want_raw = reference.rewards([None], _table(ids), uncertainty=False).mean[0]
        assert np.float32(found["data"][0]["probs"][0]) == want_raw


def _table(ids: Any) -> Any:
    from pref_jax.data.text.token_table import TokenTable

    return TokenTable(np.asarray(ids, np.int32), np.array([0, len(ids)]), 0)


def test_scores_of_queries_and_documents(client, reference):
    want = reference.score("ada", PROMPT, TEXTS)
    bodies = (
        {"queries": PROMPT, "documents": TEXTS},
        {"text_1": PROMPT, "text_2": TEXTS},
        {"data_1": [PROMPT] * 3, "data_2": TEXTS},
        {"queries": [PROMPT], "items": [{"content": [{"type": "text", "text": text}]} for text in TEXTS]},
    )
    for body in bodies:
        for path in ("/score", "/v1/score"):
            found = post(client, path, {"model": "mine", "user": "ada", "truncate_prompt_tokens": -1, **body})
            assert [np.float32(row["score"]) for row in found["data"]] == want.tolist()
            assert {row["object"] for row in found["data"]} == {"score"}
    for body in ({"queries": "a"}, {"queries": ["a", "b"], "documents": ["c"]}, {"queries": "a", "documents": []}):
        for path in ("/score", "/v1/score"):
            assert post(client, path, body, 400)["error"]["code"] == 400


def test_documents_are_ranked_as_jina_and_cohere_have_it(client, reference):
    want = reference.score("ada", PROMPT, TEXTS)
    order = reference.rank("ada", PROMPT, TEXTS)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        body = {"model": "mine", "query": PROMPT, "documents": TEXTS, "user": "ada", "return_documents": True}
        found = post(client, path, body)
        assert [row["index"] for row in found["results"]] == order
        assert [np.float32(row["relevance_score"]) for row in found["results"]] == want[order].tolist()
        assert [row["document"]["text"] for row in found["results"]] == [TEXTS[n] for n in order]
        assert found["usage"]["total_tokens"] > 0
    documents = [{"text": text} for text in TEXTS]
    found = post(client, "/rerank", {"query": PROMPT, "documents": documents, "top_n": 1, "user": "ada"})
    assert [row["index"] for row in found["results"]] == order[:1]


def test_vectors_are_the_reward_or_what_it_is_made_of(client, reference):
    string = written(reference, PROMPT, TEXTS[0])
    found = post(client, "/pooling", {"model": "mine", "input": string, "user": "ada", "encoding_format": "float"})
    assert [np.float32(value) for value in found["data"][0]["data"]] == reference.score("ada", PROMPT, TEXTS[:1])
    found = post(client, "/pooling", {"input": [string], "task": "embed"})
    assert found["data"][0]["data"] == reference.read(as_responses([PROMPT], TEXTS[:1]))[0].tolist()
    assert post(client, "/pooling", {"input": string, "task": "plugin"}, 400)
    assert post(client, "/pooling", {"input": string, "encoding_format": "base64"}, 400)


def test_openrlhf_gets_rewards_with_its_users_in_labels(client, reference):
    prompts = [written(reference, PROMPT, "x").partition("x")[0]] * 4
    query = [prompts[0] + text + end for text, end in zip([*TEXTS, TEXTS[0]], ("<|end_of_assistant|>", "", "", ""), strict=True)]  # fmt: skip # noqa: E501
    labels = ["ada", {"user": "bo/ba", "answer": 3}, None, "a stranger"]
    answer = client.post("/get_reward", json={"query": query, "prompts": prompts, "labels": labels})
    found = answer.json()
    want = [reference.score(user, PROMPT, [text])[0] for user, text in zip(("ada", "bo/ba", None, None), [*TEXTS, TEXTS[0]], strict=True)]  # fmt: skip # noqa: E501
    assert [np.float32(reward) for reward in found["rewards"]] == want
    assert found["scores"] == pytest.approx([1 / (1 + math.exp(-reward)) for reward in want], rel=1e-5)
    assert found["extra_logs"]["unknown_user"] == [0, 0, 0, 1]
    assert answer.headers["x-pref-unknown-users"] == "1"
    # The older server's body.
    assert len(post(client, "/get_reward", {"query": query})["rewards"]) == 4
    assert post(client, "/get_reward", {"query": query, "labels": ["ada"]}, 400)
    assert post(client, "/get_reward", {"query": []}, 400)


def test_votes_are_in_every_protocols_next_score(client, reference):
    body = {"query": PROMPT, "documents": TEXTS[:1], "user": "di"}
    before = client.post("/rerank", json=body)
    assert before.headers["x-pref-unknown-users"] == "1"
    post(client, "/v1/users/di/votes", vote(1))
    after = client.post("/rerank", json=body)
    assert after.headers["x-pref-unknown-users"] == "0"
    assert after.json()["results"][0]["relevance_score"] != before.json()["results"][0]["relevance_score"]
    assert "pref_unknown_users_total" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"input": "a", "model": "gpt-7"}, 404, "'mine' alone"),
        ({}, 400, "either input or messages"),
        ({"input": "a", "messages": [{"role": "user", "content": "b"}]}, 400, "either input or messages"),
        ({"messages": [{"role": "user", "content": "b"}]}, 400, "end with the assistant's"),
        ({"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": {}}]}, 400, "end with"),
        ({"input": []}, 400, "no text"),
        ({"input": [-1]}, 422, "token numbers"),
        ({"input": [[1 << 40]]}, 422, "token numbers"),
        ({"input": [[]]}, 422, "token numbers"),
        ({"input": ""}, 422, "empty"),
        ({"input": 7}, 400, "input"),
        ({"input": "a", "truncate_prompt_tokens": 7}, 400, "the model's own"),
        ({"input": "a", "truncation_side": "right"}, 400, "the model's own"),
        ({"input": "a", "user": "x" * 300}, 400, "user"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_their_shape(client, body, status, said):
    error = post(client, "/classify", body, status)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]


def test_models_are_listed_as_openai_does(client):
    found = client.get("/v1/models").json()
    assert found["object"] == "list"
    assert found["data"][0]["id"] == "mine"
    assert found["data"][0]["max_model_len"] == 48
