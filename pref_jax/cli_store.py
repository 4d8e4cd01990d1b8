"""`pref store`: look at the database of a service, its keys and its users; take votes out for training."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pref_jax.cli_lines import STDIN, print_data, write_lines
from pref_jax.cli_options import Json, Output, example, option
from pref_jax.errors import UserError
from pref_jax.progress import log

if TYPE_CHECKING:
    from pref_jax.serve.store.store import Store

store_app = typer.Typer(help="Look after the database of a service.", no_args_is_help=True, rich_markup_mode=None)
keys_app = typer.Typer(help="Keys of a service's clients.", no_args_is_help=True, rich_markup_mode=None)
store_app.add_typer(keys_app, name="keys")
Url = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="A file, or postgresql://user@host/database.", envvar="PREF_STORE", show_default=False
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the key.", show_default=False)]


def open_store(url: str, *, make: bool = False) -> "Store":
    """The store.

    Raises:
      UserError: if what it needs is not installed, or as `Store.open` does.
    """
    try:
        from pref_jax.serve.store.store import Store
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'pref-jax[serve]'") from None
    return Store.open(url, make=make)


@store_app.command(epilog=example("pref store info votes.db", "pref store info votes.db --json | jq .votes"))
def info(store: Url, as_json: Json = False) -> None:
    """Say what is in it: users, votes, keys, pools of pairs, model versions that served."""
    with open_store(store) as opened:
        found = opened.statistics(days=1)
        models, pools, keys = opened.models(), opened.pools(), opened.keys()
    facts: dict[str, Any] = {"users": found.users, "votes": found.votes, "keys": len(keys), "pools": pools}
    facts["models"] = [model.version for model in models]
    if as_json:
        return print_data(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    facts["pools"] = ", ".join(f"{name} ({count} pairs)" for name, count in pools.items()) or "none"
    facts["models"] = ", ".join(facts["models"]) or "none"
    return _print_table([[name, str(value)] for name, value in facts.items()])


@store_app.command(epilog=example("pref store users votes.db"))
def users(store: Url, as_json: Json = False) -> None:
    """List users with their numbers of votes."""
    with open_store(store) as opened:
        found, after = [], ""
        while some := opened.users(after):
            found += some
            after = some[-1].id
    if as_json:
        return write_lines(STDIN, [{"user": user.id, "votes": user.votes} for user in found])
    return _print_table([[user.id, str(user.votes)] for user in found])


@store_app.command(epilog=example("pref store export votes.db --output votes.jsonl", "pref train votes.jsonl"))
def export(
    store: Url,
    output: Output = STDIN,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Also id, side shown, latency, versions, ...")
    ] = False,
) -> None:
    """Write all votes as JSON lines that pref train reads, in the order in which they were given."""
    with open_store(store) as opened:
        write_lines(output, list(_lines(opened, provenance)))


def _lines(store: "Store", provenance: bool) -> Iterator[dict[str, Any]]:
    from pref_jax.serve.store.lines import as_line

    return (as_line(user, vote, provenance=provenance) for user, vote in store.export())


@store_app.command(epilog=example("pref store remove-user votes.db bo"))
def remove_user(
    store: Url,
    users: Annotated[list[str], typer.Argument(metavar="USER...", help="Ids.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Remove users, their votes, the texts that nobody else's votes name, and their keys.

    Models that were trained on their votes are not changed: pref remove-user does that.
    """
    with open_store(store) as opened:
        gone = {user: opened.remove_user(user) for user in dict.fromkeys(users)}
    if as_json:
        write_lines(STDIN, [{"user": user, **removed._asdict()} for user, removed in gone.items()])
    for user, removed in gone.items():
        what = f"{removed.votes} votes, {removed.texts} texts and {removed.keys} keys"
        log(f"{user}: removed {what}" if any(removed[:3]) else f"{user}: there was nothing to remove")
    if any(removed.wiped is False for removed in gone.values()):
        log("traces remain in the file, which somebody was using; they go when the store is opened next")


@keys_app.command(epilog=example("pref store keys add votes.db page --right vote --right score --user ada"))
def add(
    store: Url,
    name: Name,
    rights: Annotated[list[str], typer.Option("--right", help="What it allows; may be repeated.", show_default=False)],
    user: Annotated[str | None, option(help="For this user alone.")] = None,
) -> None:
    """Make a key and print it, this once: only its hash is stored."""
    with open_store(store, make=True) as opened:
        print_data(opened.add_key(name, rights, user) + "\n")


@keys_app.command(name="list", epilog=example("pref store keys list votes.db"))
def list_keys(store: Url, as_json: Json = False) -> None:
    """List keys with their rights, and the user for whom alone they are good."""
    with open_store(store) as opened:
        found = opened.keys()
    if as_json:
        lines = [{"name": key.name, "rights": sorted(key.rights), "user": key.user} for key in found]
        return write_lines(STDIN, lines)
    return _print_table([[key.name, ", ".join(sorted(key.rights)), key.user or "anyone"] for key in found])


@keys_app.command(epilog=example("pref store keys remove votes.db page"))
def remove(store: Url, name: Name) -> None:
    """Remove a key; nobody gets in with it any more."""
    with open_store(store) as opened:
        if not opened.remove_key(name):
            raise UserError(f"no key has the name {name!r}; pref store keys list shows all")
    log(f"removed {name}")


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    print_data("".join(f"{line.rstrip()}\n" for line in lines))
