"""The command `pref`: look at votes, train, score, rank, add votes, remove users, look, export.

Data goes to standard output or to a file; everything else is told on standard error. A mistake of the user is one
message and exit code 2. JAX, transformers and the methods are imported by the commands that need them, after their
input has been checked.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pref_jax import methods, saved
from pref_jax.cli_data import data_app
from pref_jax.cli_lines import STDIN, load_model, print_data, read_texts, rewards, write_lines
from pref_jax.cli_options import (
    ENCODER,
    Base,
    BatchSize,
    Columns,
    Folder,
    Json,
    OnBadRow,
    Out,
    Output,
    Requests,
    VotesFile,
    VotesName,
    example,
    find_base,
    option,
)
from pref_jax.cli_sample import add_commands
from pref_jax.cli_serve import serve
from pref_jax.cli_store import store_app
from pref_jax.errors import UserError
from pref_jax.json_fields import decimals
from pref_jax.locks import hold
from pref_jax.progress import log
from pref_jax.version import __version__

if TYPE_CHECKING:
    from pref_jax.data.preferences import Preferences
    from pref_jax.personal import PersonalReward

# Seconds to wait for another process that changes the same model.
SAVING = 30.0
ASK = """echo '{"user": "ada", "prompt": "How long?", "responses": ["Seven minutes.", "It depends."]}' | pref """
TRAIN = "pref train votes.jsonl --method lore --base Qwen/Qwen3-0.6B --out mine"
app = typer.Typer(
    help="Personalised reward models: from votes to a reward for every user.",
    epilog=example(TRAIN, f"{ASK}rank mine"),
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")
app.command(epilog=example("pref serve mine", "pref serve mine --store postgresql://me@db/votes --port 80"))(serve)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for a mistake of the user, 130 if interrupted."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app(args=None if argv is None else list(argv), prog_name="pref")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (UserError, OSError) as error:
        log(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"pref {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of the command itself."""


@app.command(epilog=example(TRAIN, "pref train ukp_convarg:UKPConvArg1-full-XML --method auto"))
def train(
    votes: VotesName,
    method: Annotated[str, typer.Option(help="lore, copl, shared, or auto: what held-out votes favour.")] = "lore",
    base: Annotated[
        str, typer.Option(help="The transformer: hub id, folder, GGUF file, package:NAME/folder.")
    ] = ENCODER,
    out: Annotated[Path | None, option(metavar="DIR", help="Where to save the model; by default VOTES-METHOD.")] = None,
    test_fraction: Annotated[float | None, option(help="Held out for the report; 0.2 if not given.")] = None,
    most_test_votes: Annotated[int, typer.Option(min=1, help="Scored at most, drawn at random.")] = 10_000,
    workdir: Annotated[Path | None, option(help="Keeps the work; a killed run resumes.")] = None,
    seed: Annotated[int | None, option(help="Of all draws.")] = None,
    max_length: Annotated[int | None, option(min=1, help="Tokens of a text; by default what the base reads.")] = None,
    pooling: Annotated[str | None, option(help="last or mean; by default the base's own.")] = None,
    chat_template: Annotated[Path | None, option(help="A Jinja file.")] = None,
    features: Annotated[
        str | None, option(help="lore: what rewards are made of: text (by default), response, both or auto.")
    ] = None,
    columns: Columns = "",
    on_bad_row: OnBadRow = "error",
) -> None:
    """Train a reward for every user who voted, save it, and report how it does on votes held out.

    VOTES is a file of votes in any common form, a hub id, a folder of saved preferences, NAME:PATH of a public data
    set, or its folder.
    """
    point = None if method == methods.AUTO else _method(method)
    from pref_jax.data.sources.named import open_votes, short_name

    name = short_name(votes)
    out = out or Path(f"{name}-{method}")
    saved.check_target(out)
    bad_rows = out.with_name(f"{out.name}.bad_rows.jsonl") if workdir is None else workdir / "bad_rows.jsonl"
    own = {"columns": columns, "on_bad_row": on_bad_row, "bad_rows": bad_rows}
    opened = open_votes(votes, test_fraction=test_fraction, seed=seed or 0, **own)
    table = opened.tables
    log(f"{votes}: {table.comparisons.num_rows} votes of {table.num_users} users on {table.num_responses} responses")
    given = {"seed": seed, "workdir": workdir, "max_length": max_length, "pooling": pooling, "features": features}
    given["chat_template"] = None if chat_template is None else str(chat_template)
    options = {name: value for name, value in given.items() if value is not None}
    model, told = _fit(point, table, find_base(base), options)
    log(str(model))
    from pref_jax.eval.held_out import score_held_out
    from pref_jax.eval.reporting.training_report import write_training_report

    held = score_held_out(model, table, most=most_test_votes, seed=seed or 0)
    model.save(out)
    log(write_training_report(out, held, table, name=name, model=str(model), method=model.kind, choice=told))
    log(f"saved to {out}, with report.md; next: pref score {out} requests.jsonl, or pref info {out}")


def _fit(
    point: importlib.metadata.EntryPoint | None, table: "Preferences", base: str, options: dict[str, Any]
) -> tuple["PersonalReward", Sequence[str]]:
    """The model of a method, or the best of all, and how that was chosen."""
    if point is None:
        from pref_jax import auto

        chosen = auto.fit(table, base=base, **options)
        return chosen.model, auto.sentences(chosen)
    fit = point.load()
    if unknown := methods.not_taken(fit, options):
        raise UserError(f"method {point.name} takes no {', '.join(sorted(unknown))}; leave it out")
    return fit(table, base=base, **options), ()


def _method(name: str) -> importlib.metadata.EntryPoint:
    points = methods.installed()
    if name not in points:
        every = ", ".join(sorted(points)) or "none"
        raise UserError(f"--method: {name!r} is none of the installed methods: {every}; or write {methods.AUTO}")
    return points[name]


@app.command(epilog=example(f"{ASK}score mine", "pref score mine requests.jsonl --uncertainty --output scored.jsonl"))
def score(
    folder: Folder,
    path: Requests = STDIN,
    output: Output = STDIN,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Add posterior standard deviations.")] = False,
    base: Base = "",
    batch_size: BatchSize = 32,
) -> None:
    """Add the user's reward to every response.

    Lines are {user, prompt, response} or {user, prompt, responses}; user null is nobody in particular, and prompt a
    string or a list of chat messages. Each line comes back, in order, with reward or rewards (deviation, deviations).
    """
    added = ("reward*", "deviation*")[: 1 + uncertainty]
    requests = read_texts(folder, path, output, added)
    for request, scores in zip(requests, rewards(folder, requests, base, batch_size, uncertainty), strict=True):
        several = "responses" in request.line
        for name, values in zip(added, scores, strict=False):
            numbers = decimals(values)
            request.line[name.replace("*", "s" if several else "")] = numbers if several else numbers[0]
    write_lines(output, [request.line for request in requests])


@app.command(epilog=example(f"{ASK}rank mine", "pref rank mine candidates.jsonl --output ranked.jsonl"))
def rank(
    folder: Folder, path: Requests = STDIN, output: Output = STDIN, base: Base = "", batch_size: BatchSize = 32
) -> None:
    """Rank responses for their user.

    Lines are {user, prompt, responses}, as of pref score. Each comes back with ranking, numbers of the responses from
    0, best first (ties keep the order given), and rewards.
    """
    requests = read_texts(folder, path, output, ("ranking", "rewards"), several=True)
    for request, scores in zip(requests, rewards(folder, requests, base, batch_size), strict=True):
        request.line["ranking"] = (-scores.mean).argsort(kind="stable").tolist()
        request.line["rewards"] = decimals(scores.mean)
    write_lines(output, [request.line for request in requests])


@app.command(epilog=example("pref add-votes mine bo.jsonl", "pref add-votes mine more.jsonl --user bo --out newer"))
def add_votes(
    folder: Folder,
    votes: VotesFile = STDIN,
    user: Annotated[str, option(help="Whose votes; lines may leave it out.")] = "",
    out: Out = None,
    base: Base = "",
    columns: Columns = "",
    as_json: Json = False,
) -> None:
    """Learn from votes of new or known users.

    Votes are of any form that pref train reads. Nothing is trained; the model is
    saved once all votes are in, or stays as it was.
    """
    saved.check_target(out or folder)
    saved.about(folder)
    from pref_jax.data.sources.jsonl.requests import read_user_votes

    rows = read_user_votes(votes, user, columns)
    with hold(out or folder, beside=True, wait=SAVING):
        model = load_model(folder, base)
        many = getattr(model, "add_many", None)
        if many is None:
            done = [model.add_votes(name, some) for name, some in rows.items()]
        else:
            done = many(list(itertools.chain.from_iterable(rows.values())))
        model.save(out or folder)
    if as_json:
        write_lines(STDIN, [{"user": added.user, "votes": added.votes, "how": added.how} for added in done])
    for added in done if not as_json else []:
        log(f"{added.user}: {added.votes} votes; {added.how}")
    log(f"saved to {out or folder}")


@app.command(epilog=example("pref remove-user mine bo"))
def remove_user(
    folder: Folder,
    users: Annotated[list[str], typer.Argument(metavar="USER...", help="Ids.", show_default=False)],
    out: Out = None,
    base: Base = "",
    as_json: Json = False,
) -> None:
    """Remove users and all that is kept of them."""
    saved.check_target(out or folder)
    saved.about(folder)
    users = list(dict.fromkeys(users))
    with hold(out or folder, beside=True, wait=SAVING):
        known = saved.users(folder)
        if unknown := [user for user in users if user not in known]:
            some = ", ".join(map(repr, unknown))
            fix = f"pref info {folder} --json lists all"
            raise UserError(f"{folder}: nobody was removed, since {some} is not known; {fix}")
        model = load_model(folder, base)
        for user in users:
            model.remove_user(user)
        model.save(out or folder)
    if as_json:
        write_lines(STDIN, [{"user": user, "removed": True} for user in users])
    log(f"removed {', '.join(users)}; saved to {out or folder}")


@app.command(epilog=example("pref info mine", "pref info mine --json | jq .base.name"))
def info(folder: Folder, as_json: Json = False) -> None:
    """Say what a saved model is: method, users, base, versions."""
    about, users = saved.about(folder), saved.users(folder)
    if as_json:
        return print_data(json.dumps({**about, "users": users}, indent=2, ensure_ascii=False) + "\n")
    some = ", ".join(list(users)[:5]) + (", ..." if len(users) > 5 else "")
    facts = {"kind": about["kind"], "users": f"{len(users)} with {sum(users.values())} votes: {some}"}
    own = {name: value for name, value in about["model"].items() if isinstance(value, str | int | float)}
    facts |= {name: value for name, value in own.items() if name not in facts}
    if about["base"] is None:
        facts["base"] = "none: scores features, not texts"
    else:
        settings, text = about["base"]["settings"], about["base"]
        facts["base"] = text["name"] + (f" at {text['revision']}" if text["revision"] else "")
        layer = "last layer" if settings["layer"] == -1 else f"layer {settings['layer']}"
        facts["reads"] = f"{settings['max_length']} tokens at most, {text['pooling']} pooling, {layer}"
        facts["rendering"] = text["rendering"]
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    width = max(map(len, facts))
    print_data("".join(f"{name:<{width}}  {value}\n" for name, value in facts.items()))


@app.command(epilog=example("pref export mine hf", "pref export mine ada-hf --user ada"))
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    user: Annotated[str | None, option(help="For this user alone.")] = None,
    base: Base = "",
) -> None:
    """Write files that transformers or PEFT open.

    Other engines then score without this package; pref info says what the model is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty; name a new folder")
    if user is not None and user not in (known := saved.users(folder)):
        raise UserError(f"--user: {user!r} is not known to the model, {len(known)} users are; see pref info {folder}")
    model = load_model(folder, base)
    write = getattr(model, "export", None)
    if write is None:
        raise UserError(f"{folder}: a model of kind {model.kind!r} has no export; score it with pref score")
    write(out, user=user)
    log(f"exported to {out}")


add_commands(app)

if __name__ == "__main__":
    sys.exit(main())
