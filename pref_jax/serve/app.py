"""The service as an ASGI application."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from pref_jax import saved
from pref_jax.personal import PersonalReward
from pref_jax.serve import api, insight, pages, schemas
from pref_jax.serve.access import Pace
from pref_jax.serve.faults import RefusedError
from pref_jax.serve.http import Call, Front, Outer, Reply, Route, endpoint, loopback_hosts, refuse
from pref_jax.serve.openapi import document
from pref_jax.serve.protocols import openrlhf, vllm
from pref_jax.serve.service import Service
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.errors import StoreUnavailableError
from pref_jax.serve.store.store import Store
from pref_jax.serve.warm_up import warm_all


async def health(call: Call) -> Reply:
    """Whether the process answers."""
    del call
    return Reply({"status": "alive"})


async def readiness(call: Call) -> Reply:
    """Whether the model is warm and the store answers."""
    service = call.front.service
    if not service.ready:
        raise RefusedError(503, "the model is being made ready", retry=1.0)
    try:
        await service.ask_store(service.store.ready)
    except StoreUnavailableError as error:
        raise RefusedError(503, f"the store cannot answer ({error.reason})", retry=1.0) from None
    return Reply({"status": "ready"})


async def figures(call: Call) -> Reply:
    """Figures for Prometheus."""
    return Reply(call.front.service.metrics.text(), media="text/plain; version=0.0.4; charset=utf-8")


async def openapi(call: Call) -> Reply:
    """What this service takes and gives."""
    del call
    return Reply(document(ROUTES, {"/v1/score": vllm.SCORE_BODIES}))


ROUTES: Sequence[Route] = (
    *vllm.ROUTES,
    *api.ROUTES,
    *insight.ROUTES,
    *openrlhf.ROUTES,
    Route("GET", "/healthz", health, "Whether the process answers", schemas.StateAnswer, None),
    Route("GET", "/readyz", readiness, "Whether it can score and store", schemas.StateAnswer, None),
    Route("GET", "/metrics", figures, "Figures for Prometheus"),
    Route("GET", "/openapi.json", openapi, "This document", None, None),
)


def model_version(model: PersonalReward, folder: Path | None) -> str:
    """A name of exactly this model."""
    if folder is not None:
        about = saved.about(folder)
        said = json.dumps([about["kind"], about["base"], about["model"], about["sha256"]], sort_keys=True)
    else:
        said = repr(model)
    return f"{model.kind}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def make_app(
    model: PersonalReward,
    store: Store,
    *,
    folder: Path | None = None,
    name: str = "",
    limits: Limits | None = None,
    keys: bool = False,
    host: str = "127.0.0.1",
    log_ids: bool = False,
    warm: bool = True,
) -> Starlette:
    """The application; its lifespan starts and stops all threads, and closes the store.

    Args:
      model: as loaded from `folder`; it belongs to the application from now on.
      store: votes, users and keys.
      folder: where the model lies; removed users are removed there too.
      name: under which other protocols know the model; by default the folder's.
      limits: what clients may ask for.
      keys: a key of the store is needed. Without it only this machine's own names are answered to.
      host: where it listens.
      log_ids: users stand in log lines.
      warm: compile before `/readyz` says ready.

    Raises:
      UserError: for a model of features.

    Example:
      app = make_app(pref_jax.load("mine"), Store.open("sqlite:///votes.db"))
    """
    service = Service(model, store, limits or Limits(), folder)
    version, text = model_version(model, folder), service.text
    facts = {
        "kind": model.kind,
        "users": len(model.users),
        "base": Path(text.name).name if Path(text.name).is_absolute() else text.name,
        "max_tokens": text.max_length,
        "reads_with_user": model.reads_with_user,
        "facts": {name: one for name, one in model.state()[0].items() if isinstance(one, str | int | float | bool)},
    }
    front = Front(
        service=service,
        version=version,
        name=name or (folder.resolve().name if folder is not None else model.kind),
        facts=facts,
        keys=keys,
        hosts=None if keys else loopback_hosts(host),
        pace=Pace(service.limits.votes_a_minute),
        log_ids=log_ids,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        await service.start()
        await service.ask_store(store.use_model, version, {"kind": model.kind, "base": facts["base"]})
        task = asyncio.create_task(warm_all(service)) if warm else None
        service.ready = not warm
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await service.stop()

    return _application(front, lifespan)


def _application(front: Front, lifespan: Any) -> Starlette:
    methods: dict[str, list[str]] = {}
    routes = (*ROUTES, *pages.ROUTES)
    for route in routes:
        methods.setdefault(route.path, []).append(route.method)

    async def fault(request: Request, error: Exception) -> Response:
        """What the router itself refuses."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        allow = ", ".join(sorted(_allowed(request)))
        words = {404: "there is nothing at this path; see /openapi.json", 405: f"this path takes {allow}"}
        return refuse(RefusedError(status, words.get(status, "refused"), allow=allow if status == 405 else ""))

    def _allowed(request: Request) -> list[str]:
        matching = (path for path in methods if _matches(path, request.scope["path"]))
        return [method for path in matching for method in methods[path]]

    # One endpoint for each path and method, since a path that matches decides.
    paths = [
        StarletteRoute(route.path, endpoint(front, route), methods=[route.method], name=f"{route.method} {route.path}")
        for route in routes
    ]
    app = Starlette(routes=paths, lifespan=lifespan, exception_handlers={HTTPException: fault, Exception: fault})
    app.state.front = front
    app.add_middleware(_Outermost, front=front)
    return app


class _Outermost(Outer):
    """`Outer` as Starlette builds it."""

    def __init__(self, app: Any, *, front: Front):
        super().__init__(app, front)


def _matches(path: str, given: str) -> bool:
    mine, theirs = path.split("/"), given.split("/")
    return len(mine) == len(theirs) and all(a == b or a.startswith("{") for a, b in zip(mine, theirs, strict=True))
