"""Requests that nobody sends in good faith, by kind. Needs the extra `test`.

Kinds: made from the service's own OpenAPI document, as it says and against it; any JSON; any bytes; JSON that parsers
trip over; names that want to be paths, SQL or markup; other users' ids and bad keys; HTTP that is broken or slow.
"""

import asyncio
import functools
import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hypothesis
import jsonschema
import schemathesis
import schemathesis.core
from hypothesis import strategies as st
from schemathesis import GenerationMode

from experiments.benchmarks.hostile_target import AS_JSON, SECRET, VICTIM, Target
from experiments.benchmarks.hostile_texts import BROKEN, CLAIMS, FIELDS, NAMES, ODD, SLOW, VOTE, bad_keys

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def paths_of(document: Mapping[str, Any], user: str) -> list[str]:
    """Paths that take a body, for a user."""
    posts = [path for path, methods in document["paths"].items() if "post" in methods]
    return [path.replace("{user}", user).replace("{pool}", "p") for path in posts]


def _examples(count: int, seed: int, strategy: st.SearchStrategy[Any], use: Callable[[Any], None]) -> None:
    """Uses so many values of a strategy."""
    quiet: Any = {"deadline": None, "database": None, "suppress_health_check": tuple(hypothesis.HealthCheck)}
    if count <= 0:
        return

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink), **quiet)
    @hypothesis.given(strategy)
    def run(value: Any) -> None:
        use(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


def any_json(target: Target, paths: Sequence[str], count: int, seed: int = 0) -> None:
    """Sends JSON of any kind, much of it with fields that the service knows."""
    bodies = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON
    both = st.tuples(st.sampled_from(paths), bodies)
    _examples(
        count, seed, both, lambda one: _drop(target.send("any JSON", "POST", one[0], json.dumps(one[1]).encode()))
    )


def any_bytes(target: Target, paths: Sequence[str], count: int, seed: int = 0) -> None:
    """Sends bytes that are said to be JSON."""
    both = st.tuples(st.sampled_from(paths), st.binary(max_size=200))
    _examples(count, seed, both, lambda one: _drop(target.send("any bytes", "POST", *one)))


def _drop(_: object) -> None:
    return None


def from_document(target: Target, document: dict[str, Any], each: int, *, against: bool = False, seed: int = 0) -> int:
    """Sends requests of every operation, made as the document says or against it; returns how many operations it has.

    Answers have to be as the document says.

    Args:
      target: of the requests.
      document: OpenAPI's.
      each: requests of an operation.
      against: whether they break what it says.
      seed: of their choice.
    """
    found: Any = schemathesis.openapi.from_dict(document)
    operations: list[Any] = [operation.ok() for operation in found.get_all_operations()]
    mode = GenerationMode.NEGATIVE if against else GenerationMode.POSITIVE
    for operation in operations:
        if against and not (operation.body or operation.path_parameters or operation.query):
            continue
        strategy = operation.as_strategy(generation_mode=mode)
        _examples(each, seed, strategy, functools.partial(_ask, target, document, operation, against))
    return len(operations)


def _ask(target: Target, document: dict[str, Any], operation: Any, against: bool, case: Any) -> None:
    body = None if isinstance(case.body, schemathesis.core.NotSet) else case.body
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    kind = "against the document" if against else "by the document"
    answer = target.send(kind, case.method, case.formatted_path, sent, params=case.query or None)
    if answer is None:
        return
    said = document["paths"][operation.path][operation.method.lower()]["responses"]
    told = f"{case.method} {operation.path}: {answer.status_code} {answer.text[:300]}"
    if str(answer.status_code) not in {*said, "405"}:
        return target.fault("undocumented", told)
    content = said.get(str(answer.status_code), {}).get("content", {}).get("application/json")
    if content is not None:
        whole = {**content["schema"], "components": document["components"]}
        if not _validator(json.dumps(whole)).is_valid(answer.json()):
            target.fault("undocumented", told)


@functools.lru_cache(None)
def _validator(schema: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads(schema))


def odd_json(target: Target, paths: Sequence[str], count: int, seed: int = 0) -> None:
    """Sends JSON that parsers trip over, alone and as the value of fields, under right and wrong types."""
    rng = random.Random(seed)
    types = ("application/json", "application/json; charset=utf-7", "text/plain", "multipart/form-data; boundary=x", "")
    for _ in range(count):
        odd, field = rng.choice(ODD), rng.choice(FIELDS)
        body = rng.choice((odd, f'{{"{field}": {odd or 0}}}', f'{{"prompt": "?", "responses": [{odd or 0}]}}'))
        # Mostly the right type, so that bodies are read.
        kind = types[0] if rng.random() < 0.8 else rng.choice(types)
        encoding = {"content-encoding": "gzip"} if rng.random() < 0.05 else {}
        headers = target.headers | {"content-type": kind} | encoding
        target.send("odd JSON", "POST", rng.choice(paths), body.encode("utf-8", "surrogatepass"), headers=headers)


def names(target: Target, count: int, seed: int = 0) -> None:
    """Sends names that want to be something else, in every place of a path."""
    rng = random.Random(seed)
    for place in range(count):
        # Each alone first, then joined.
        name = NAMES[place // 8 % len(NAMES)] if place < 8 * len(NAMES) else "".join(rng.choices(NAMES, k=2))
        for_pool = json.dumps({"pool": name}).encode()
        method, path, body = (
            ("GET", f"/v1/users/{name}", None),
            ("GET", f"/v1/users/{name}/votes", None),
            ("POST", f"/v1/users/{name}/votes", json.dumps(VOTE).encode()),
            ("DELETE", f"/v1/users/{name}/votes/x", None),
            ("POST", f"/v1/users/{name}/ask", for_pool),
            ("GET", f"/v1/pools/{name}", None),
            ("DELETE", f"/v1/users/{name}", None),
            ("GET", f"/{name}", None),
        )[place % 8]
        target.send("names", method, path, body)


def others(target: Target, key: str, count: int, seed: int = 0) -> None:
    """Asks for the victim with a key that is another user's, with none, and with what is no key."""
    rng = random.Random(seed)
    votes = json.dumps({**VOTE, "id": "victims"}).encode()
    asked = [
        ("GET", f"/v1/users/{VICTIM}", None),
        ("GET", f"/v1/users/{VICTIM}/votes", None),
        ("GET", f"/v1/users/{VICTIM}/agreement", None),
        ("POST", f"/v1/users/{VICTIM}/votes", votes),
        ("POST", f"/v1/users/{VICTIM}/ask", b'{"candidates": [{"prompt": "?", "first": "a", "second": "b"}]}'),
        ("DELETE", f"/v1/users/{VICTIM}", None),
        ("DELETE", f"/v1/users/{VICTIM}/votes/victims", None),
        ("GET", "/v1/users", None),
        ("GET", "/v1/study", None),
        ("POST", "/v1/score", f'{{"user": "{VICTIM}", "prompt": "?", "responses": ["a"]}}'.encode()),
    ]
    keys = bad_keys(key)
    for _ in range(count):
        method, path, body = rng.choice(asked)
        for plain, tricky in rng.sample((("victim", "%76ictim"), ("/v1/users", "/v1/./users"), ("s/", "s//")), 1):
            path = path.replace(plain, tricky) if rng.random() < 0.2 else path
        headers = {"authorization": rng.choice(keys)} | rng.choice(CLAIMS) | (AS_JSON if body else {})
        answer = target.send("others' ids and keys", method, path, body, headers=headers, params=rng.choice((None, {"user": VICTIM})))  # fmt: skip # noqa: E501
        if answer is not None and (answer.status_code < 400 or SECRET in answer.text):
            target.fault("reached", f"{method} {path} {headers}: {answer.status_code}")


async def _broken(target: Target, where: tuple[str, int], pieces: Sequence[bytes], kind: str, seconds: float) -> None:
    """Sends pieces, the last one again and again, until there is an answer or the end."""
    reader, writer = await asyncio.open_connection(*where)
    first = asyncio.ensure_future(reader.readline())
    try:
        async with asyncio.timeout(seconds):
            for place in range(1_000_000):
                if place < len(pieces) or kind == "slow":
                    writer.write(pieces[min(place, len(pieces) - 1)])
                done, _ = await asyncio.wait({first}, timeout=0.25)
                if done:
                    break
        words = first.result().split()
        target.count(kind, int(words[1]) if len(words) > 1 else 0)
        if len(words) > 1 and int(words[1]) >= 500:
            target.fault("server_fault", words)
    except ConnectionError:
        target.count(kind, 0)
    except TimeoutError:
        target.fault("hung", pieces)
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        writer.close()


async def broken_http(target: Target, where: tuple[str, int], count: int, seconds: float = 40.0) -> None:
    """Sends what is hardly HTTP; each has to be answered, or cut off, within so many seconds."""
    for start in range(0, count, 64):
        some = (BROKEN[place % len(BROKEN)] for place in range(start, min(start + 64, count)))
        await asyncio.gather(*(_broken(target, where, [one], "broken HTTP", seconds) for one in some))


async def slow(target: Target, where: tuple[str, int], count: int, seconds: float = 40.0) -> None:
    """So many clients at once who never come to an end; each has to be answered, or cut off, within so many seconds."""
    some = (SLOW[place % len(SLOW)] for place in range(count))
    await asyncio.gather(*(_broken(target, where, one, "slow", seconds) for one in some))
