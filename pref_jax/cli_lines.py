"""What the commands of `pref` read and write: requests with their rewards, JSON lines, data on standard output."""

import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pref_jax import saved
from pref_jax.errors import UserError
from pref_jax.files import write_text
from pref_jax.progress import log

if TYPE_CHECKING:
    from pref_jax.data.sources.jsonl.requests import Request
    from pref_jax.personal import PersonalReward, Scores

STDIN = Path("-")


def load_model(folder: Path, base: str, **options: Any) -> "PersonalReward":
    """The saved model, its base at `base` if that is given."""
    from pref_jax.personal import load

    return load(folder, base=base or None, **options)


def read_texts(
    folder: Path, path: Path, output: Path, added: Sequence[str], *, several: bool = False, sampled: bool = False
) -> list["Request"]:
    """Requests; what can be found wrong is found before the model is opened."""
    from pref_jax.data.sources.jsonl.requests import read_requests

    if saved.about(folder)["base"] is None:
        raise UserError(f"{folder}: scores features, not texts; use pref_jax.load({str(folder)!r}).score in Python")
    check_output(output)
    return read_requests(path, saved.users(folder), added, several=several, sampled=sampled)


def check_output(output: Path) -> None:
    """Raises UserError for a path that no results can be written to."""
    if output.is_dir():
        raise UserError(f"--output: {output} is a folder; name a file")


def rewards(
    folder: Path, requests: list["Request"], base: str, batch_size: int, uncertainty: bool = False
) -> list["Scores"]:
    """`score` by a saved model; without requests, no model is opened."""
    if not requests:
        return []
    return score(load_model(folder, base, batch_size=batch_size), requests, uncertainty)


def score(model: "PersonalReward", requests: list["Request"], uncertainty: bool = False) -> list["Scores"]:
    """Scores of each request, all responses of all of them in common batches."""
    from pref_jax.personal import Scores

    each = [(request.user, request.prompt, text) for request in requests for text in request.responses]
    users, prompts, texts = (list(column) for column in zip(*each, strict=True))
    found = model.score(users, prompts, texts, uncertainty=uncertainty)
    mean, deviation = found if isinstance(found, Scores) else (found, found)
    ends = itertools.accumulate((len(request.responses) for request in requests), initial=0)
    return [Scores(mean[start:end], deviation[start:end]) for start, end in itertools.pairwise(ends)]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes JSON lines to a file, at once, or to standard output."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if path == STDIN:
        print_data(text)
    else:
        write_text(path, text)
        log(f"wrote {path}")


def print_data(text: str) -> None:
    """Writes data to standard output, whose reader may leave early."""
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # What is still held back goes nowhere, instead of failing again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
