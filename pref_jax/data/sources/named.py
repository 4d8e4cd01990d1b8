"""Votes as a command names them: a file, a folder of saved preferences, NAME:PATH of a data set, or its folder."""

import contextlib
import dataclasses
import inspect
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pref_jax.data import preferences
from pref_jax.data.preferences import Preferences
from pref_jax.data.sources import READERS, read, reader
from pref_jax.data.sources.common.split_rule import NoTestError
from pref_jax.data.votes import read_votes
from pref_jax.errors import UserError
from pref_jax.progress import log

# By which files a folder is known, any one of them.
LAYOUTS = {
    "crowdrag": ("data/raw/study2_responses.jsonl.gz",),
    "ukp_convarg": tuple(f"{folder}*.xml{end}" for folder in ("", "*-XML/", "data/*full-XML/") for end in ("", ".gz")),
    "jester": ("jester-data-*.zip", "jester-data-*.csv"),
}
TEST_FRACTION = 0.2


class Opened(NamedTuple):
    """Votes that were read: what they were taken for, and the tables."""

    format: str
    tables: Preferences


def source(votes: str) -> tuple[str, str] | None:
    """(name, path) of a data set of `READERS`, named or known by its layout; None for anything else."""
    name, colon, path = votes.partition(":")
    if colon and name in READERS:
        return name, path
    folder = Path(votes)
    for name, globs in LAYOUTS.items():
        if votes != "-" and folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in globs):
            return name, votes
    return None


def short_name(votes: str) -> str:
    """A name for folders and headings: that of the data set, or of the file without its ending."""
    found = source(votes)
    name = found[0] if found else "votes" if votes == "-" else Path(votes).resolve().name.split(".")[0]
    return name or "votes"


def open_votes(
    votes: str,
    *,
    test_fraction: float | None = None,
    seed: int = 0,
    columns: str = "",
    on_bad_row: str = "error",
    bad_rows: str | Path = "",
    **options: Any,
) -> Opened:
    """Reads votes, a part of them for a test.

    Args:
      votes: as a command names them.
      test_fraction: None: `TEST_FRACTION`, a data set's own, or none where none is possible, which is told.
      seed: of all draws.
      columns, on_bad_row, bad_rows: of votes in a file, see `read_votes`.
      **options: of a data set's reader.

    Raises:
      UserError: as the readers do; for options that do not fit.
    """
    found, of_file = source(votes), bool(columns or on_bad_row != "error")
    saved = found is None and votes != "-" and (Path(votes) / "comparisons.arrow").exists()
    if of_file and (found or saved):
        raise UserError(
            f"{votes}: columns and bad rows are those of votes in a file; leave --columns, --on-bad-row out"
        )
    if found is not None:
        return Opened(found[0], _read_source(*found, test_fraction, seed, options))
    if saved:
        if test_fraction is not None:
            raise UserError(f"{votes}: saved preferences have their splits; leave --test-fraction out")
        return Opened("saved preferences", preferences.load(votes))
    own = {"columns": columns, "on_bad_row": on_bad_row, "bad_rows": bad_rows, **options}
    return Opened("votes in a file", _read_file(votes, test_fraction, seed, own))


def open_whole(votes: str, *, seed: int = 0, **options: Any) -> Opened:
    """`open_votes` of all votes: nobody is left out and nothing is held out, where the reader allows it."""
    found = source(votes)
    if found is None:
        saved = votes != "-" and (Path(votes) / "comparisons.arrow").exists()
        # Ratings are compared within one split only.
        nothing = {} if saved else {"test_fraction": 0.0, "validation_fraction": 0.0}
        return open_votes(votes, seed=seed, **nothing, **options)
    known = inspect.signature(reader(found[0])).parameters
    wanted: dict[str, Any] = {"validation_fraction": 0, "unseen_fraction": 0, "users": None, "max_votes_per_user": None}
    options |= {name: value for name, value in wanted.items() if name in known}
    return open_votes(votes, test_fraction=0.0 if "test_fraction" in known else None, seed=seed, **options)


def _read_source(name: str, path: str, test_fraction: float | None, seed: int, options: dict[str, Any]) -> Preferences:
    known = inspect.signature(reader(name)).parameters
    given: dict[str, Any] = {"path": path} if path or "path" in known else {}
    if test_fraction is not None:
        test = next((key for key in ("test_fraction", "test_query_fraction") if key in known), None)
        if test is None:
            raise UserError(f"--test-fraction: {name} has a test part of its own; leave it out")
        given[test] = test_fraction
    found = read(name, seed=seed, **given, **options)
    return dataclasses.replace(found, meta={**found.meta, "path": path}) if path else found


def _read_file(votes: str, test_fraction: float | None, seed: int, options: dict[str, Any]) -> Preferences:
    if test_fraction is not None:
        return read_votes(votes, test_fraction=test_fraction, seed=seed, **options)
    # What comes by standard input may have to be read twice.
    raw = sys.stdin.buffer.read() if votes == "-" else None
    try:
        with _stdin(raw):
            return read_votes(votes, test_fraction=TEST_FRACTION, seed=seed, **options)
    except NoTestError as error:
        log(f"{votes}: trained on all votes and tested on none: {error}")
    with _stdin(raw):
        return read_votes(votes, test_fraction=0.0, seed=seed, **options)


@contextlib.contextmanager
def _stdin(raw: bytes | None) -> Iterator[None]:
    """Standard input with these bytes; None: as it is."""
    before = sys.stdin
    if raw is not None:
        sys.stdin = io.TextIOWrapper(io.BytesIO(raw))
    try:
        yield
    finally:
        sys.stdin = before
