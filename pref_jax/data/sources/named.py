"""Votes as a command names them: a file, a folder of saved preferences, NAME:PATH of a data set, or its folder."""

import contextlib
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
from pref_jax.data.sources.jsonl.reader import STDIN
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
    """Votes that were read.

    Attributes:
      name: short, for a folder or a heading.
      format: what they were taken for.
      tables: users, responses, comparisons and ratings.
    """

    name: str
    format: str
    tables: Preferences


def source(votes: str) -> tuple[str, str] | None:
    """(name, path) of a data set of `READERS`; None for anything else.

    Raises:
      UserError: for a folder that is neither of a known layout nor of saved preferences.
    """
    name, colon, path = votes.partition(":")
    if colon and name in READERS:
        return name, path
    folder = Path(votes)
    if votes == "-" or not folder.is_dir() or (folder / "meta.json").exists():
        return None
    for name, globs in LAYOUTS.items():
        if any(next(folder.glob(pattern), None) for pattern in globs):
            return name, votes
    raise UserError(
        f"{votes}: a folder of no known layout ({', '.join(LAYOUTS)}, or saved preferences); "
        f"give a file, or NAME:PATH with one of {', '.join(READERS)}"
    )


def open_votes(votes: str, *, test_fraction: float | None = None, seed: int = 0, **options: Any) -> Opened:
    """Reads votes, a part of them for a test.

    Args:
      votes: as a command names them.
      test_fraction: None: `TEST_FRACTION`, a data set's own, or none where none is possible, which is told.
      seed: of all draws.
      **options: of the reader; those it does not have are refused.

    Raises:
      UserError: as the readers do.
    """
    found = source(votes)
    if found is not None:
        name, path = found
        known = inspect.signature(reader(name)).parameters
        given: dict[str, Any] = {"path": path} if path or "path" in known else {}
        if test_fraction is not None:
            test = next((key for key in ("test_fraction", "test_query_fraction") if key in known), None)
            if test is None:
                raise UserError(f"--test-fraction: {name} has a test part of its own; leave it out")
            given[test] = test_fraction
        return Opened(name, name, read(name, seed=seed, **given, **options))
    path = Path(votes)
    if votes != "-" and path.is_dir():
        if test_fraction is not None or options:
            raise UserError(f"{votes}: saved preferences have their splits; leave options of splits out")
        return Opened(path.resolve().name, "saved preferences", preferences.load(path))
    name = "votes" if votes == "-" else path.name.split(".")[0] or "votes"
    return Opened(name, "votes in a file", _read_file(path, test_fraction, seed, options))


def open_whole(votes: str, *, seed: int = 0) -> Opened:
    """Reads all votes: nobody is left out and nothing is held out, where the reader allows it.

    Raises:
      UserError: as the readers do.
    """
    if (found := source(votes)) is None:
        tables = votes != "-" and Path(votes).is_dir()
        return open_votes(votes, seed=seed) if tables else open_votes(votes, test_fraction=0.0, seed=seed)
    known = inspect.signature(reader(found[0])).parameters
    wanted: dict[str, Any] = {"validation_fraction": 0, "unseen_fraction": 0, "users": None, "max_votes_per_user": None}
    options = {name: value for name, value in wanted.items() if name in known}
    return open_votes(votes, test_fraction=0.0 if "test_fraction" in known else None, seed=seed, **options)


def _read_file(path: Path, test_fraction: float | None, seed: int, options: dict[str, Any]) -> Preferences:
    if test_fraction is not None:
        return read_votes(path, test_fraction=test_fraction, seed=seed, **options)
    # What comes by standard input may have to be read twice.
    raw = sys.stdin.buffer.read() if path == STDIN else b""
    try:
        with _stdin(path, raw):
            return read_votes(path, test_fraction=TEST_FRACTION, seed=seed, **options)
    except NoTestError as error:
        log(f"{path}: trained on all votes and tested on none: {error}")
    with _stdin(path, raw):
        return read_votes(path, test_fraction=0.0, seed=seed, **options)


@contextlib.contextmanager
def _stdin(path: Path, raw: bytes) -> Iterator[None]:
    """Standard input with these bytes, where it is what is read."""
    before = sys.stdin
    if path == STDIN:
        sys.stdin = io.TextIOWrapper(io.BytesIO(raw))
    try:
        yield
    finally:
        sys.stdin = before
