"""The one door to groups and to the answers of test pairs: who opens it, and when, is kept with the run.

Methods get the tables of `Workspace.data`, which have neither, so none can learn, tune or choose by them. What needs
them comes here: scores, once all methods have theirs; the oracles (groups); the leave-one-out majority, whose rule is
to look at other people's votes on the very test pair. SEED/test_reads.jsonl has a line for each time:
{"reader", "what", "time" (UTC), "scored": the methods that had scores by then, each with a digest of its margins}.

Axis letters: U users, P test pairs.
"""

import datetime
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from experiments.methods import ANSWERS, GROUPS
from experiments.runner.workspace import Workspace, require
from pref_jax.comparisons import Comparisons
from pref_jax.data import preferences
from pref_jax.data.label_masking import label_signs
from pref_jax.data.preferences import Preferences

# Who reads answers for scores, not for a method.
TABLE = "the table"
FILE = "test_reads.jsonl"


class Answered(NamedTuple):
    """A run's scores beside what users answered.

    Attributes:
      work: the workspace.
      data: the whole tables.
      pairs: the test pairs [P] as users answered.
      margins: method -> float32 [P], rewards of the chosen less those of the rejected responses.
      facts: method -> what it says of itself.
      controls: method -> its further margins [P], turned likewise, by name; see `experiments.runner.workspace.Scored`.
    """

    work: Workspace
    data: Preferences
    pairs: Comparisons
    margins: dict[str, np.ndarray]
    facts: dict[str, dict[str, Any]]
    controls: dict[str, dict[str, np.ndarray]]


def load_test_labels(work: Workspace, reader: str) -> Preferences:
    """The whole tables, with groups and test answers; `reader` is a method's name or what else they are read for."""
    found = _tables(work)
    _record(work, reader, ANSWERS)
    return found


def load_groups(work: Workspace, reader: str) -> list[str | None]:
    """Group of each user [U], in the order of the tables: for the oracles and for reports."""
    found = _tables(work).groups
    _record(work, reader, GROUPS)
    return found


def test_signs(work: Workspace, truth: Preferences) -> np.ndarray:
    """float32 [P]: times the margins of `Workspace.test_pairs`, those of the pairs as users answered."""
    return label_signs(work.data, truth)


def answered(work: Workspace) -> Answered:
    """Every method of the config that has scores, beside the answers, which are read for the table."""
    truth = load_test_labels(work, TABLE)
    turn, scores = test_signs(work, truth), {method: work.scores(method) for method in work.done}
    return Answered(
        work=work,
        data=truth,
        pairs=truth.pairs("test"),
        margins={method: margins * turn for method, (margins, _) in scores.items()},
        facts={method: facts for method, (_, facts) in scores.items()},
        controls={
            method: {name: margins * turn for name, margins in work.controls(method).items()} for method in scores
        },
    )


def reads(work: Workspace) -> list[dict[str, Any]]:
    """The lines of `test_reads.jsonl`, oldest first."""
    path = work.folder / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def late(work: Workspace) -> list[str]:
    """Methods that got their scores, or others, after answers had been read for the table: they may be chosen by it.

    A method that was deleted and run again is one of them unless it gave the same margins to the bit.
    """
    first = next((line["scored"] for line in reads(work) if line["reader"] == TABLE), None)
    if first is None:
        return []
    return [method for method, digest in _scored(work).items() if first.get(method) != digest]


def _scored(work: Workspace) -> dict[str, str]:
    """Methods that have scores -> a digest of their margins."""
    return {method: hashlib.sha256(work.scores(method)[0].tobytes()).hexdigest()[:16] for method in work.done}


def _record(work: Workspace, reader: str, what: str) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"reader": reader, "what": what, "time": now, "scored": _scored(work)}
    with (work.folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _tables(work: Workspace) -> Preferences:
    return work.distinct(preferences.load(require(work.folder / "data", "prepare")))
