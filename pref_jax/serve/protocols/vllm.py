"""vLLM's /classify, /pooling, /score, /rerank and /v1/models.

Rewards are given as they are unless `use_activation` is true: by vLLM's own default a model of one label is always
certain. A string of `input` is a rendered dialogue, see `pref_jax.serve.rendered`; a query is a prompt and a document a
response.
"""

import time
import uuid
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field
from scipy.special import expit

from pref_jax.data.messages import joined
from pref_jax.json_fields import decimals
from pref_jax.serve.api import score as score_own
from pref_jax.serve.faults import RefusedError
from pref_jax.serve.http import Call, Reply, Route, validated
from pref_jax.serve.protocols.common import Named, answers, need_few, need_model, score
from pref_jax.serve.schemas import ScoreAnswer, ScoreRequest
from pref_jax.serve.service import Scored
from pref_jax.serve.texts import Text

Texts = str | list[str] | list[int] | list[list[int]]
# A text, or an object that holds one.
Said = str | dict[str, Any]


class ReadBody(Named):
    """A request of /classify or /pooling: `input`, or `messages` that end with the assistant's."""

    input: Texts | None = None
    messages: Annotated[list[dict[str, Any]] | None, Field(min_length=1)] = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    task: str | None = None
    encoding_format: str | None = None


class PairsBody(Named):
    """A request of /score, by any of the names that it has had there."""

    queries: Said | list[Said] | None = None
    documents: Said | list[Said] | None = None
    items: Said | list[Said] | None = None
    text_1: Said | list[Said] | None = None
    text_2: Said | list[Said] | None = None
    data_1: Said | list[Said] | None = None
    data_2: Said | list[Said] | None = None
    use_activation: bool | None = None


class RerankBody(Named):
    """A request of /rerank, as Jina and Cohere have it."""

    query: Said
    documents: Said | list[Said]
    top_n: Annotated[int | None, Field(ge=0)] = None
    use_activation: bool | None = None


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Data(BaseModel):
    """One result; which fields there are depends on the route."""

    index: int
    object: str | None = None
    label: str | None = None
    probs: list[float] | None = None
    num_classes: int | None = None
    data: list[float] | None = None
    score: float | None = None


class ListAnswer(BaseModel):
    """Results in order."""

    id: str
    object: str
    created: int
    model: str
    data: list[Data]
    usage: Usage


class Ranked(BaseModel):
    """One document."""

    index: int
    document: dict[str, str]
    relevance_score: float


class RerankAnswer(BaseModel):
    """Documents, best first."""

    id: str
    model: str
    usage: Usage
    results: list[Ranked]


class Models(BaseModel):
    """What is served."""

    object: str
    data: list[dict[str, Any]]


def _activated(rewards: np.ndarray, wanted: bool | None) -> list[float]:
    """Rewards, or what the logistic function makes of them."""
    plain = decimals(rewards)
    return expit(np.array(plain)).tolist() if wanted else plain


def _usage(found: Scored) -> dict[str, int]:
    tokens = sum(read.tokens for read in found.read)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def _list(call: Call, prefix: str, data: list[dict[str, Any]], found: Scored) -> dict[str, Any]:
    about = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    return {**about, "model": call.front.name, "data": data, "usage": _usage(found)}


async def _texts(call: Call, body: ReadBody) -> list[Text]:
    reader, most = call.front.service.reader, call.front.service.text.max_length
    cut = body.truncate_prompt_tokens
    if cut not in (None, -1, 0, most) or body.truncation_side == "right":
        fix = f"long texts lose their beginning, and keep {most} tokens"
        raise RefusedError(400, f"truncation is the model's own here: {fix}", where="truncate_prompt_tokens")
    if (body.input is None) == (body.messages is None):
        raise RefusedError(400, "send either input or messages", where="input")
    if body.messages is not None:
        *prompt, last = body.messages
        content = last.get("content")
        said = joined(content) if isinstance(content, list) else content
        if not prompt or last.get("role") != "assistant" or not isinstance(said, str):
            raise RefusedError(400, "end with the assistant's message, which is scored", where="messages")
        return answers(call, prompt, [said])
    given: Any = [body.input] if isinstance(body.input, str) else body.input
    if given and isinstance(given[0], int):
        given = [given]
    if given and isinstance(given[0], list):
        need_few(call, ["." * len(tokens) for tokens in given])
        return [reader.decode(tokens) for tokens in given]
    need_few(call, given)
    return await reader.rendered(given, special=body.add_special_tokens is not False)


async def classify(call: Call) -> Reply:
    """The reward of each text as the one class's number."""
    body: ReadBody = call.body
    need_model(call, body.model)
    texts = await _texts(call, body)
    found, headers = await score(call, [body.user] * len(texts), texts)
    rows = [
        {"index": place, "label": "LABEL_0", "probs": [value], "num_classes": 1}
        for place, value in enumerate(_activated(found.rewards, body.use_activation))
    ]
    return Reply(_list(call, "classify", rows, found), headers)


async def pooling(call: Call) -> Reply:
    """The reward of each text as a vector of one number; with task "embed" what it is made of, whoever the user is."""
    body: ReadBody = call.body
    need_model(call, body.model)
    if body.encoding_format not in (None, "float"):
        raise RefusedError(400, "numbers are sent as JSON alone; leave encoding_format out", where="encoding_format")
    if body.task not in (None, "classify", "embed"):
        raise RefusedError(400, "this service has the tasks classify and embed", where="task")
    texts = await _texts(call, body)
    found, headers = await score(call, [body.user] * len(texts), texts)
    vectors = [[value] for value in _activated(found.rewards, body.use_activation)]
    if body.task == "embed":
        if not call.front.service.reader.apart:
            raise RefusedError(400, "this method reads each text with its user; there is no embedding", where="task")
        vectors = [read.row.tolist() for read in found.read if read.row is not None]
    rows = [{"index": place, "object": "pooling", "data": vector} for place, vector in enumerate(vectors)]
    return Reply(_list(call, "pool", rows, found), headers)


def _said(given: Any, where: str) -> list[str]:
    """Strings of texts, or of objects that hold one."""
    found = []
    for one in given if isinstance(given, list) else [given]:
        text = one
        if isinstance(one, dict):
            content = one.get("content", one.get("text"))
            text = joined(content) if isinstance(content, list) else content
        if not isinstance(text, str):
            raise RefusedError(400, "send strings, or objects with a text", where=where)
        found.append(text)
    return found


async def score_pairs(call: Call) -> Reply:
    """The reward of each document for its query."""
    body: PairsBody = call.body
    need_model(call, body.model)
    first = next((one for one in (body.queries, body.text_1, body.data_1) if one is not None), None)
    second = next((one for one in (body.documents, body.items, body.text_2, body.data_2) if one is not None), None)
    if first is None or second is None:
        raise RefusedError(400, "send queries and documents", where="queries")
    queries, documents = _said(first, "queries"), _said(second, "documents")
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents) or not documents:
        raise RefusedError(400, "send one query, or as many as documents, and at least one document", where="queries")
    need_few(call, queries)
    need_few(call, documents)
    texts = [answers(call, query, [text])[0] for query, text in zip(queries, documents, strict=True)]
    found, headers = await score(call, [body.user] * len(texts), texts)
    values = _activated(found.rewards, body.use_activation)
    rows = [{"index": place, "object": "score", "score": value} for place, value in enumerate(values)]
    return Reply(_list(call, "score", rows, found), headers)


async def rerank(call: Call) -> Reply:
    """Documents by their reward, best first."""
    body: RerankBody = call.body
    need_model(call, body.model)
    documents = _said(body.documents, "documents")
    need_few(call, documents)
    texts = answers(call, _said(body.query, "query")[0], documents)
    found, headers = await score(call, [body.user] * len(texts), texts)
    values = _activated(found.rewards, body.use_activation)
    order = (-found.rewards).argsort(kind="stable").tolist()[: body.top_n or None]
    rows = [{"index": n, "document": {"text": documents[n]}, "relevance_score": values[n]} for n in order]
    about = {"id": f"rerank-{uuid.uuid4().hex}", "model": call.front.name, "usage": _usage(found)}
    return Reply({**about, "results": rows}, headers)


async def score_either(call: Call) -> Reply:
    """/v1/score, which is ours where the body has responses, and vLLM's else."""
    if "responses" in call.body or "prompt" in call.body:
        return await score_own(call._replace(body=validated(ScoreRequest, call.body, 422)))
    return await score_pairs(call._replace(body=validated(PairsBody, call.body, 400)))


async def models(call: Call) -> Reply:
    """The one model."""
    text = call.front.service.text
    about = {"id": call.front.name, "object": "model", "created": 0, "owned_by": "pref_jax", "root": call.front.version}
    return Reply({"object": "list", "data": [{**about, "parent": None, "max_model_len": text.max_length}]})


def _post(path: str, handler: Any, summary: str, answer: Any, body: Any) -> Route:
    return Route("POST", path, handler, summary, answer, "score", body, None, 400)


_EITHER = "Score responses for a user; or vLLM's pairs of query and document, by the body's shape"
ROUTES = (
    _post("/v1/score", score_either, _EITHER, ScoreAnswer | ListAnswer, dict[str, Any])._replace(invalid=422),
    _post("/score", score_pairs, "vLLM's scores of pairs", ListAnswer, PairsBody),
    *(_post(path, classify, "vLLM's classes", ListAnswer, ReadBody) for path in ("/classify", "/v1/classify")),
    *(_post(path, pooling, "vLLM's vectors", ListAnswer, ReadBody) for path in ("/pooling", "/v1/pooling")),
    *(
        _post(path, rerank, "Jina's and Cohere's ranking", RerankAnswer, RerankBody)
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
    Route("GET", "/v1/models", models, "What is served, as OpenAI's clients ask", Models),
)
# What /v1/score takes, for the OpenAPI document.
SCORE_BODIES = (ScoreRequest, PairsBody)
