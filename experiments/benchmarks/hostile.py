"""Requests that nobody sends in good faith, by kind, and a target that counts what comes back. Needs the extra `test`.

Kinds: made from the service's own OpenAPI document, as it says and against it; any JSON; any bytes; JSON that parsers
trip over; names that want to be paths, SQL or markup; other users' ids and bad keys; HTTP that is broken or slow.
"""

import asyncio
import functools
import json
import random
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import hypothesis
import jsonschema
import schemathesis
import schemathesis.core
from hypothesis import strategies as st
from schemathesis import GenerationMode

SECRET = "a text that somebody else voted on"
VICTIM = "victim"
VOTE = {"prompt": "?", "first": "a", "second": "b", "choice": "first"}
HEAD = "POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
FIELDS = (
    "user", "prompt", "responses", "votes", "id", "first", "second", "choice", "strength", "input", "messages", "query",
    "documents", "queries", "labels", "pairs", "candidates", "pool", "count", "time", "unknown", "uncertainty", "model",
)  # fmt: skip
NAMES = (
    "..%2f..%2fetc%2fpasswd", "%2e%2e", "'%3B DROP TABLE votes;--", "%00", "%ff", "%F0%9F%90%88", "a%2Fvotes", "%20",
    "*", "x" * 300, "%25", "ada%3Fx=1", "{user}", "%c0%ae", "%u0041", "1%20OR%201=1", "%27%20UNION%20SELECT%20*--", "~",
    "%0d%0aSet-Cookie:%20a=b", "%EF%BB%BF", "%E2%80%AE", "$%7Bjndi:ldap:%2F%2Fx%7D", "{{7*7}}", "%3Cscript%3E", "con", ";",
)  # fmt: skip
ODD = (
    "", "null", "NaN", "[NaN]", "Infinity", "-Infinity", "1e400", "-0", "1" * 5000, "[" * 100_000, '{"a":' * 50_000,
    "[" * 150 + "]" * 150, '"\\ud800"', '"\\u0000"', '{"a":1,"a":2}', "{'a': 1}", "{}x", "[1,]", "\ufeff{}", "tru", '"',
    "0x10", "1_000", "//", "{\"__proto__\": {}}", "true", '[[[[[[]]]]]]', "1.7976931348623157e308", "9" * 400 + ".5",
)  # fmt: skip
BROKEN = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 50 + b"X\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n", b"G" * 70_000,
    HEAD.encode() + b"Content-Length: -1\r\n\r\n", HEAD.encode() + b"Content-Length: 1e3\r\n\r\n",
    HEAD.encode() + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    HEAD.encode() + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    HEAD.encode() + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nzz\r\n",
    HEAD.encode() + b"Transfer-Encoding: gzip\r\n\r\n{}", HEAD.encode() + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
)  # fmt: skip
# What a slow client sends, piece by piece; the last piece again and again.
SLOW = (
    (b"",), (HEAD.encode(), b"X: a\r\n"), (HEAD.encode() + b"Content-Length: 9999\r\n\r\n", b"{"),
    (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"), (b"G",), (HEAD.encode(), b""),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_AS_JSON = {"content-type": "application/json"}


class Target:
    """A service; sends requests to it and judges what comes back.

    Attributes:
      statuses: of answers, by kind and status; status 0 is a connection that the service closed without an answer.
      faults: what must not happen, by what it is: "server_fault" (5xx), "stranger" (a text of somebody else),
        "traceback", "shape" (no error as the service writes them), "undocumented" (not as the OpenAPI document says),
        "reached" (what a key has no right to), "hung".
      slowest: seconds of the answer that took longest.
    """

    def __init__(self, client: httpx.Client, *, key: str | None = None, stop: bool = False):
        """A target.

        Args:
          client: of the service.
          key: that is sent where a request names none; it may see the victim's votes under the victim's own paths.
          stop: raise at the first fault.
        """
        self.client, self.stop = client, stop
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.faults: Counter[str] = Counter()
        self.slowest = 0.0

    def send(
        self, kind: str, method: str, path: str, body: bytes | None = None, **options: Any
    ) -> httpx.Response | None:
        """Sends a request and judges the answer; None if it could not be sent, or was not answered.

        Args:
          kind: of request.
          method, path: of the request; the path as it goes over the wire.
          body: of the request, of the type JSON.
          **options: `headers` in place of the key and the type; `params` of the address.
        """
        headers = options.pop("headers", self.headers | (_AS_JSON if body is not None else {}))
        try:
            answer = self.client.request(method, path, content=body, headers=headers, **options)
        except httpx.TransportError:
            self.count(kind, 0)
            return None
        except (httpx.InvalidURL, UnicodeEncodeError, ValueError):
            return None
        self.count(kind, answer.status_code)
        self.slowest = max(self.slowest, answer.elapsed.total_seconds())
        self._judge(path, answer)
        return answer

    def count(self, kind: str, status: int) -> None:
        """Counts an answer."""
        self.statuses[kind, status] += 1

    def fault(self, what: str, told: object) -> None:
        """Counts what must not happen."""
        self.faults[what] += 1
        if self.stop:
            raise AssertionError(f"{what}: {told}")

    def _judge(self, path: str, answer: httpx.Response) -> None:
        said = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:500]}"
        if answer.status_code >= 500:
            self.fault("server_fault", said)
        if "Traceback" in answer.text:
            self.fault("traceback", said)
        if SECRET in answer.text and VICTIM not in path:
            self.fault("stranger", said)
        if answer.status_code >= 400 and answer.request.method != "HEAD" and not _is_error(answer):
            self.fault("shape", said)


def _is_error(answer: httpx.Response) -> bool:
    try:
        return set(answer.json()["error"]) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return False


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
    found = schemathesis.openapi.from_dict(document)
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
    # A part of the path that is empty, or has a slash, leads elsewhere.
    if answer is None or "pref.route" in answer.headers:
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
    keys = (f"Bearer {key}",) * 4 + ("", "Bearer", "Bearer ", f"Basic {key}", "Bearer " + "x" * 20_000, f"Bearer {key}x",
            f"Bearer {key[:-1]}", "Bearer ' OR '1'='1", "Bearer \x01", f"Bearer {key.swapcase()}", f"bearer  {key} x")  # fmt: skip
    more = (
        {},
        {"x-forwarded-user": VICTIM},
        {"x-original-url": f"/v1/users/{VICTIM}/votes"},
        {"cookie": f"user={VICTIM}"},
    )
    for _ in range(count):
        method, path, body = rng.choice(asked)
        for plain, tricky in rng.sample((("victim", "%76ictim"), ("/v1/users", "/v1/./users"), ("s/", "s//")), 1):
            path = path.replace(plain, tricky) if rng.random() < 0.2 else path
        headers = {"authorization": rng.choice(keys)} | rng.choice(more) | (_AS_JSON if body else {})
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
