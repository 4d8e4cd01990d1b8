"""`pref data`: look at votes before training."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pref_jax.cli_lines import print_data
from pref_jax.cli_options import ENCODER, Columns, Json, OnBadRow, VotesName, example, find_base, option
from pref_jax.errors import UserError
from pref_jax.files import write_text
from pref_jax.progress import log

data_app = typer.Typer(help="Look at votes before training.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command(epilog=example("pref data check votes.jsonl --picture votes.png"))
def check(
    votes: VotesName,
    as_json: Json = False,
    picture: Annotated[Path | None, option(metavar="PNG", help="Also draw it.")] = None,
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
        return print_data(json.dumps({**found, "outlook": hopes}, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    lines = outlook.lines(found)
    width = max(len(name) for name, _ in lines)
    print_data("".join(f"{name:<{width}}  {text}\n" for name, text in lines) + "\n" + "\n".join(hopes) + "\n")


@data_app.command(epilog=example("pref data render votes.jsonl --base Qwen/Qwen3-0.6B --html votes.html"))
def render(
    votes: VotesName,
    base: Annotated[str, typer.Option(help="The transformer, as of pref train.")] = ENCODER,
    first: Annotated[int, typer.Option(min=0, help="The first response that is shown, from 0.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 2,
    html: Annotated[Path | None, option(metavar="FILE", help="Write a page instead.")] = None,
    max_length: Annotated[int, typer.Option(min=0, help="As of pref train; 0 for what the base reads.")] = 0,
    chat_template: Annotated[str, option(help="A Jinja file.")] = "",
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

    model = open_text(find_base(base), max_length=max_length, chat_template=chat_template)
    found = rendering.render(model, rows.slice(first, count))
    if html is not None:
        write_text(html, rendering.as_html(found, f"{short_name(votes)} as {base} reads it"))
        return log(f"wrote {html}")
    show = rendering.as_colours if sys.stdout.isatty() else rendering.as_table
    print_data("\n".join(show(one) for one in found))
