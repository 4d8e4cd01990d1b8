"""Requests in, answers out: bounded bodies, strict JSON, keys, disconnected clients, log lines, figures."""

import asyncio
import functools
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import pydantic
import pydantic_core
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pref_jax.serve.access import ANYONE, Client, Pace, bearer, client_of
from pref_jax.serve.faults import RefusedError, refusal
from pref_jax.serve.service import Service

LOG = logging.getLogger("pref_jax.serve")
# Of an error's field, as clients wrote it.
SHOWN = 80
# Status of requests whose client has gone, in logs and figures alone.
GONE = 499
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Reply(NamedTuple):
    """What a handler answers: JSON, or something else with its media type; further headers; the status."""

    body: Any
    headers: Mapping[str, str] = {}
    status: int = 200
    media: str = "application/json"


class Route(NamedTuple):
    """One method of one path.

    Attributes:
      method, path: names in braces are parts of the path, which may hold anything but an unescaped slash.
      handler: answers a call.
      summary: one line for the OpenAPI document.
      answer: of status 200.
      right: that a client needs; None: anybody may ask, without a key.
      body: of the request.
      query: of the address.
      invalid: the status for requests of another shape.
    """

    method: str
    path: str
    handler: Callable[["Call"], Awaitable[Reply]]
    summary: str
    answer: type[pydantic.BaseModel] | None = None
    right: str | None = "score"
    body: Any = None
    query: type[pydantic.BaseModel] | None = None
    invalid: int = 422


class Front(NamedTuple):
    """What handlers share.

    Attributes:
      service: the model and the store.
      version, name: of the model.
      facts: of the model, as JSON values.
      keys: a key is needed.
      hosts: what the Host header may say; None: anything.
      pace: of votes.
      log_ids: users stand in log lines.
    """

    service: Service
    version: str
    name: str
    facts: Mapping[str, Any]
    keys: bool
    hosts: frozenset[str] | None
    pace: Pace
    log_ids: bool


class Call(NamedTuple):
    """A request that was let in.

    Attributes:
      front: what handlers share.
      client: who asks.
      params: of the path.
      query: an object of the route's query.
      body: an object of the route's body.
    """

    front: Front
    client: Client
    params: Mapping[str, str]
    query: Any
    body: Any


def loopback_hosts(host: str) -> frozenset[str]:
    """What a browser on this machine calls it; other names are pages that have rebound theirs."""
    return frozenset({*_LOOPBACK, host.lower()})


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body, as long as it is not too large or too slow."""
    declared = request.headers.get("content-length", "0")
    too_large = RefusedError(413, f"the body is larger than {most} bytes; send less at a time")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                found += part
                if len(found) > most:
                    raise too_large
    except TimeoutError:
        raise RefusedError(408, f"the body took longer than {seconds:g} s; send it faster") from None
    return bytes(found)


def parse_json(body: bytes) -> Any:
    """JSON without NaN and infinities, not nested deeper than 200."""
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"the body is no JSON ({str(error)[:SHOWN]})") from None


def validated(model: Any, value: Any, status: int) -> Any:
    """The value as an object of the model; errors name fields and tell no values."""
    try:
        return _adapter(model).validate_python(value)
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        told = [f"{_place(fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}" for fault in faults[:5]]
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise RefusedError(status, "; ".join(told) + more, where=_place(faults[0]["loc"])) from None


@functools.lru_cache(None)
def _adapter(model: Any) -> Any:
    return pydantic.TypeAdapter(model)


def _place(parts: tuple[Any, ...]) -> str:
    """A field by names and numbers; what pydantic calls the sides of a union is left out."""
    named = [str(part) for part in parts if str(part).isidentifier() or isinstance(part, int)]
    return ".".join(named)[:SHOWN] or "body"


async def client_for(front: Front, request: Request, route: Route) -> Client:
    """Who asks, with the right that the route needs."""
    if front.hosts is not None:
        host = request.headers.get("host", "").lower()
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name not in front.hosts:
            raise RefusedError(421, "this service answers to this machine's own names alone; use http://127.0.0.1")
    if not front.keys or route.right is None:
        return ANYONE
    found = await front.service.ask_store(front.service.store.key, bearer(request.headers.get("authorization")))
    if found is None:
        raise RefusedError(401, "no such key; ask whoever runs this service for one")
    client = client_of(found)
    client.need(route.right)
    return client


def path_params(request: Request) -> dict[str, str]:
    """Parts of the path, decoded."""
    try:
        return {name: unquote(value, errors="strict") for name, value in request.path_params.items()}
    except UnicodeDecodeError:
        raise RefusedError(422, "the path is not UTF-8; percent-encode it as UTF-8", where="path") from None


async def answer(front: Front, route: Route, request: Request) -> Response:
    """The answer of a route to a request."""
    client = await client_for(front, request, route)
    request.scope["pref.client"] = client.name
    params, value, query = path_params(request), None, None
    request.scope["pref.user"] = params.get("user")
    if route.query is not None:
        query = validated(route.query, dict(request.query_params), 422)
    if route.body is not None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(415, "send the header Content-Type: application/json")
        limits = front.service.limits
        read = parse_json(await read_body(request, limits.body, limits.body_seconds))
        value = validated(route.body, read, route.invalid)
    reply = await while_there(request, route.handler(Call(front, client, params, query, value)))
    body = reply.body if isinstance(reply.body, bytes) else as_json(reply.body)
    return Response(body, reply.status, dict(reply.headers), reply.media)


def as_json(value: Any) -> bytes:
    """JSON of an answer."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class _GoneError(Exception):
    """The client has gone."""


async def while_there(request: Request, work: Any) -> Any:
    """What the work comes to, given up if the client goes."""

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _GoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def endpoint(front: Front, route: Route) -> Callable[[Request], Awaitable[Response]]:
    """What Starlette calls for a route."""

    async def run(request: Request) -> Response:
        request.scope["pref.route"] = route.path
        try:
            return await answer(front, route, request)
        except (_GoneError, ClientDisconnect):
            return Response(status_code=GONE)
        except Exception as error:
            refused = refusal(error)
            if refused is None:
                # Where it happened, but no message: that may hold a text.
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{last.filename}:{last.lineno}"
                LOG.error(as_json({"error": type(error).__name__, "at": where, "route": route.path}).decode())
                refused = RefusedError(500, "something went wrong here; it has been logged")
            return refuse(refused)

    return run


def refuse(refused: RefusedError) -> Response:
    """A refusal as an answer."""
    return Response(as_json(refused.body()), refused.status, refused.headers(), "application/json")


class Outer:
    """The outermost layer: paths as they were sent, log lines, figures."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], front: Front):
        self._app, self._front = app, front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        # An escaped slash is part of a name.
        scope["path"] = scope.get("raw_path", scope["path"].encode()).partition(b"?")[0].decode("latin-1")
        start, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route, metrics = scope.get("pref.route", "other"), self._front.service.metrics
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD") else "other"
        metrics.requests.labels(method, route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        line: dict[str, Any] = {"time": round(time.time(), 3), "method": method, "route": route, "status": status}
        line |= {"ms": round(1000 * seconds, 2), "key": scope.get("pref.client", "")}
        if self._front.log_ids:
            line["user"] = scope.get("pref.user")
        LOG.info(as_json(line).decode())
