"""`pref serve`, and the keys of its clients."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pref_jax import saved
from pref_jax.cli_options import Base, Folder, Json, example, option
from pref_jax.errors import UserError
from pref_jax.progress import log

if TYPE_CHECKING:
    from pref_jax.serve.store.records import Key

NEEDED = ("starlette", "uvicorn", "pydantic", "prometheus_client", "sqlalchemy", "alembic")
FIX = "install it with: pip install 'pref-jax[serve]'"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
StoreUrl = Annotated[
    str, option(metavar="URL", help="sqlite:///FILE (by default DIR.db), or postgresql://USER@HOST/DATABASE.")
]
keys_app = typer.Typer(help="Keys of the service's clients.", no_args_is_help=True, rich_markup_mode=None)


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
    max_batch: Annotated[int, option(min=1, help="Texts read at a time; by default 8 on CPUs, else 32.")] = 0,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request.")] = 4 << 20,
    max_characters: Annotated[int, typer.Option(min=1, help="Of a text.")] = 100_000,
    max_texts: Annotated[int, typer.Option(min=1, help="Of a request.")] = 256,
    max_queue: Annotated[int, typer.Option(min=1, help="Texts that may wait to be read.")] = 4096,
    votes_per_minute: Annotated[int, typer.Option(min=1, help="Of a user.")] = 120,
    cache_mb: Annotated[int, typer.Option(min=1, help="Megabytes of read texts that are kept.")] = 256,
    log_ids: Annotated[bool, typer.Option("--log-ids", help="Write users into log lines.")] = False,
) -> None:
    """Serve a model over HTTP: scores, votes, questions; and the protocols of vLLM and OpenRLHF.

    /openapi.json says what it takes. Without keys it listens on this machine alone. Stop it with Ctrl-C or SIGTERM: it
    answers what it has accepted, and ends.
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
    opened = _open(folder, store)
    keys = key_required or host not in LOOPBACK or bool(opened.keys())
    if keys and not opened.keys():
        fix = f"make one with: pref keys add NAME --store {store or _default(folder)}"
        raise UserError(f"clients of {host} need a key, and there is none; {fix}")
    from pref_jax.personal import load
    from pref_jax.serve.app import make_app
    from pref_jax.serve.server import log_to_stderr, make_server

    model = load(folder, base=base or None, batch_size=max_batch or _batch())
    limits = dataclasses.replace(limits, batch=max_batch or _batch())
    log(str(model))
    app = make_app(model, opened, folder=folder, name=model_name, limits=limits, keys=keys, host=host, log_ids=log_ids)
    log_to_stderr()
    server = make_server(app, host=host, port=port, limits=limits)
    server.run()
    if not server.started:
        raise UserError(f"cannot listen on {host}:{port}; name another --port, or stop what listens there")


def _batch() -> int:
    """Rows of a program: CPUs gain nothing by more, and scores then depend on no batch."""
    import jax

    from pref_jax.lm.text_model import FEW

    return FEW if jax.default_backend() == "cpu" else 32


def _default(folder: Path) -> str:
    whole = folder.resolve()
    return f"sqlite:///{whole.with_name(whole.name + '.db')}"


def _open(folder: Path | None, store: str) -> Any:
    need_extra()
    from pref_jax.serve.store.store import Store

    if not store and folder is None:
        raise UserError("--store: name the database, as pref serve has it")
    return Store.open(store or _default(folder or Path()))


@keys_app.command(epilog=example("pref keys add trainer --store sqlite:///mine.db", "pref keys add ada --user ada"))
def add(
    name: Annotated[str, typer.Argument(help="By which it is listed and removed.")],
    store: StoreUrl = "",
    rights: Annotated[str, typer.Option(help="Of score, vote, admin.")] = "score,vote",
    user: Annotated[str | None, option(help="Good for this user alone.")] = None,
) -> None:
    """Make a key, and print it, this once."""
    from pref_jax.serve.access import RIGHTS

    given = [right.strip() for right in rights.split(",") if right.strip()]
    if not given or (unknown := set(given) - set(RIGHTS)):
        raise UserError(f"--rights: {rights!r} names {sorted(unknown) if given else 'none'}; of {', '.join(RIGHTS)}")
    with _open(None, store) as opened:
        typer.echo(opened.add_key(name, given, user))


@keys_app.command("list", epilog=example("pref keys list --store sqlite:///mine.db"))
def list_keys(store: StoreUrl = "", as_json: Json = False) -> None:
    """List keys: name, rights, user."""
    with _open(None, store) as opened:
        every: list[Key] = opened.keys()
    rows = [{"name": key.name, "rights": sorted(key.rights), "user": key.user} for key in every]
    for row in rows:
        typer.echo(json.dumps(row) if as_json else f"{row['name']}\t{','.join(row['rights'])}\t{row['user'] or 'all'}")


@keys_app.command(epilog=example("pref keys remove trainer --store sqlite:///mine.db"))
def remove(name: Annotated[str, typer.Argument(help="Of the key.")], store: StoreUrl = "") -> None:
    """Remove a key; it is good for nothing from then on."""
    with _open(None, store) as opened:
        if not opened.remove_key(name):
            raise UserError(f"there is no key {name!r}; see pref keys list")
    log(f"removed the key {name}")
