"""`pref serve`."""

import dataclasses
import importlib.util
from typing import Annotated

import typer

from pref_jax import saved
from pref_jax.cli_options import Base, Folder, option
from pref_jax.cli_store import open_store
from pref_jax.errors import UserError
from pref_jax.progress import log

NEEDED = ("starlette", "uvicorn", "pydantic", "prometheus_client", "sqlalchemy", "alembic")
FIX = "install it with: pip install 'pref-jax[serve]'"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
StoreUrl = Annotated[str, option(metavar="URL", help="A file (by default DIR.db), or postgresql://user@host/database.")]


def need_extra() -> None:
    """Raises `UserError` if what the service needs is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the service needs {', '.join(missing)}, not installed here; {FIX}")


def serve(
    folder: Folder,
    store: StoreUrl = "",
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    base: Base = "",
    model_name: Annotated[str, option(help="For other protocols; by default the folder's.")] = "",
    key_required: Annotated[bool, typer.Option("--key-required", help="Also on this machine.")] = False,
    max_batch: Annotated[int | None, option(min=1, help="Texts read at a time; 8 on CPUs, else 32.")] = None,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request.")] = 4 << 20,
    max_characters: Annotated[int, typer.Option(min=1, help="Of a text.")] = 100_000,
    max_texts: Annotated[int, typer.Option(min=1, help="Of a request.")] = 256,
    max_queue: Annotated[int, typer.Option(min=1, help="Texts that may wait to be read.")] = 4096,
    votes_per_minute: Annotated[int, typer.Option(min=1, help="Of a user.")] = 120,
    cache_mb: Annotated[int, typer.Option(min=1, help="Megabytes of read texts that are kept.")] = 256,
    log_ids: Annotated[bool, typer.Option("--log-ids", help="Write users into log lines.")] = False,
) -> None:
    """Serve a model over HTTP: scores, votes, questions; and the protocols of vLLM and OpenRLHF.

    People vote on the page at /, and /study shows how a study goes. /openapi.json says what it takes. Without keys it
    listens on this machine alone. Stop it with Ctrl-C or SIGTERM: it answers what it has accepted, and ends.
    """
    need_extra()
    if saved.about(folder)["base"] is None:
        raise UserError(f"{folder}: scores features, not texts; use pref_jax.load({str(folder)!r}).score in Python")
    from pref_jax.serve.settings import Limits

    limits = Limits(
        body=max_body,
        characters=max_characters,
        texts=max_texts,
        queue=max_queue,
        votes_a_minute=votes_per_minute,
        cache=cache_mb << 20,
    )
    whole = folder.resolve()
    store = store or str(whole.with_name(f"{whole.name}.db"))
    opened = open_store(store, make=True)
    keys = key_required or host not in LOOPBACK or bool(opened.keys())
    if keys and not opened.keys():
        fix = f"make one: pref store keys add {store} NAME --right score --right vote"
        raise UserError(f"clients of {host} need a key, and there is none; {fix}")
    from pref_jax.serve.server import bind, log_to_stderr, make_server

    # Before the model is opened, which takes longer.
    listener = bind(host, port)
    from pref_jax.personal import load
    from pref_jax.serve.app import make_app

    model = load(folder, base=base or None, batch_size=max_batch or _batch())
    limits = dataclasses.replace(limits, batch=max_batch or _batch())
    log(str(model))
    app = make_app(model, opened, folder=folder, name=model_name, limits=limits, keys=keys, host=host, log_ids=log_ids)
    log_to_stderr()
    make_server(app, limits=limits).run(sockets=[listener])


def _batch() -> int:
    """Rows of a program: CPUs gain nothing by more, and scores then depend on no batch."""
    import jax

    from pref_jax.lm.text_model import FEW

    return FEW if jax.default_backend() == "cpu" else 32
