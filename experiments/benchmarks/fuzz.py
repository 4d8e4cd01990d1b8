"""Damaged files of votes: each is read whole, with the counts of a slow reader, or refused in words."""

import contextlib
import io
import json
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.fuzzing import damage, slow_reader
from experiments.benchmarks.measure import Result, in_new_process, result
from pref_jax.data import preferences
from pref_jax.data.sources.jsonl import reader
from pref_jax.errors import UserError

FILES = 10_000
# A file that takes longer to read hangs.
SECONDS = 60
FAILURES = ("tracebacks", "wrong_counts", "half_written", "crashes")
_WHOLE = {"validation_fraction": 0, "test_fraction": 0, "unseen_fraction": 0}


def fuzz(
    files: int = FILES, keep: str = "fuzz_failures", formats: Sequence[str] = tuple(damage.FORMATS)
) -> list[Result]:
    """One result for each format; the baseline is the slow reader's time.

    Args:
      files: in all.
      keep: folder for files that are failures, with what happened; none is made if there are none.
      formats: of `damage.FORMATS`.
    """
    found, share = [], -(-files // len(formats))
    for place, name in enumerate(formats):
        number = min(share, files - place * share)
        facts: dict[str, Any]
        try:
            facts = in_new_process(__name__, "run", name, number, keep)
        except RuntimeError as error:
            facts = dict.fromkeys(("files", "slow_seconds", "seconds"), 1) | {"crashes": 1, "how": str(error)[-300:]}
        baseline, seconds = facts.pop("slow_seconds"), facts.pop("seconds")
        found.append(result("fuzz", f"{number} damaged files: {name}", baseline, seconds, **facts))
    return found


def run(name: str, files: int, keep: str, start: int = 0) -> dict[str, Any]:
    """Counts of what became of damaged files of one format, and seconds of both readers.

    Args:
      name: of `damage.FORMATS`.
      files: with seeds from `start`.
      keep: as for `fuzz`.
      start: first seed.
    """
    counts: Counter[str] = Counter(dict.fromkeys(("read_whole", "rows_dropped", "refused", *FAILURES), 0))
    spent, slow = 0.0, 0.0
    place = list(damage.FORMATS).index(name)
    for seed in range(start, start + files):
        rng = np.random.default_rng([place, seed])
        data, drop = damage.damaged(name, rng), bool(rng.integers(2))
        with tempfile.TemporaryDirectory() as folder:
            before = time.perf_counter()
            outcome, found = _read(Path(folder), name, data, drop)
            between = time.perf_counter()
            wrong = _judge(name, data, drop, outcome, found)
            spent, slow = spent + between - before, slow + time.perf_counter() - between
        if wrong:
            outcome = wrong
            Path(keep).mkdir(parents=True, exist_ok=True)
            stem = Path(keep) / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
            stem.with_suffix(".bin").write_bytes(data)
            stem.with_suffix(".json").write_text(json.dumps({"outcome": wrong, "drop": drop, "found": repr(found)}))
        counts[outcome] += 1
        if outcome == "read_whole" and isinstance(found, dict) and found["dropped_rows"]:
            counts["rows_dropped"] += found["dropped_rows"]
    return {"files": files, **counts, "seconds": spent, "slow_seconds": slow}


def _read(folder: Path, name: str, data: bytes, drop: bool) -> tuple[str, Any]:
    """What became of one file, and the counts or the words."""
    file = folder / damage.FORMATS[name][2]
    if "." in file.name:
        file.write_bytes(data)
    else:
        damage.write_datasets_folder(file, data)
    out, listed = folder / "tables", folder / "bad_rows.jsonl"
    given: dict[str, Any] = {"on_bad_row": "drop" if drop else "error", "bad_rows": listed, **_WHOLE}
    try:
        with contextlib.redirect_stderr(io.StringIO()), _limit():
            preferences.save(reader.read(file, **given), out)
    except UserError as error:
        left = [one.name for one in folder.iterdir() if one != file]
        return ("half_written", left) if left else ("refused", str(error))
    except Exception:  # whatever it is, it is what is looked for
        return "tracebacks", traceback.format_exc()
    data_set = preferences.load(out)
    meta = data_set.meta
    lines = len(listed.read_text().splitlines()) if listed.exists() else 0
    if lines != meta["dropped_rows"] or any(one.name.startswith(".") for one in folder.iterdir()):
        return "half_written", {"listed": lines, **meta}
    users = data_set.users["user_id"].to_pylist()
    return "read_whole", {"votes": meta["votes"], "users": users, "dropped_rows": meta["dropped_rows"], **meta}


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _judge(name: str, data: bytes, drop: bool, outcome: str, found: Any) -> str:
    """The failure that this is, "" if it is none: what the slow reader reads well must be read, with its counts."""
    if outcome in FAILURES or not slow_reader.knows(name, data):
        return outcome if outcome in FAILURES else ""
    try:
        votes, users, bad = slow_reader.kinds(name, data)
    except slow_reader.Unreadable:
        return "wrong_counts" if outcome == "read_whole" else ""
    if outcome == "refused":
        # Without bad rows, or where these may be dropped, something must be left to read.
        whole = votes and (not bad or drop) and set(votes) - {"skipped"}
        return "wrong_counts" if whole and not _excused(found) else ""
    left_out = sum(found["filtered"].values())
    if found["columns"]:
        # Damage to a name was guessed away, aloud.
        return ""
    same = found["votes"] == dict(votes) and sorted(found["users"]) == sorted(users) and found["dropped_rows"] == bad
    return "" if same or (left_out and found["dropped_rows"] == bad) else "wrong_counts"


def _excused(words: str) -> bool:
    """Refusals of what the slow reader is too simple to see."""
    return any(said in words for said in ("neither JSON", "no votes in columns", "no seen user has a vote"))
