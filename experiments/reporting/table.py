"""The table of several data sets: gathers their scores, compares methods on the same users, says what to know."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.methods import compared_with, ignored
from experiments.reporting import checks
from experiments.runner.cli import Config
from experiments.runner.test_labels import Answered
from pref_jax.errors import UserError
from pref_jax.eval.metrics import Interval, student_interval, user_accuracy
from pref_jax.eval.reporting import report, table
from pref_jax.eval.reporting.table import SIDES, Block, Row
from pref_jax.files import read_json

# Lower ends of the numbers of pairs that seen users are sorted by.
COUNTS = (1, 2, 4, 8, 16, 32)
FEWEST = 5


class DataSet(NamedTuple):
    """One of the data sets: its name in the config, its config, its folder, its seeds' scores beside the answers."""

    name: str
    config: Config
    folder: Path
    every: list[Answered]


def present(config: Config) -> tuple[dict[str, Config], dict[str, str]]:
    """The config's data sets whose files are named, and for each other why it is left out.

    Raises:
      UserError: if none is left.
    """
    there, absent = {}, {}
    for name in config.datasets:
        own = config.datasets[name].copy_and_resolve_references()
        if own.source.get("path", None) == "":
            fix = f"--config.datasets.{name}.source.path=DIR"
            absent[str(own.dataset)] = f"no folder was named for its files ({fix})"
        else:
            there[name] = own
    if not there:
        raise UserError("config.datasets: " + "; ".join(f"{name}: {why}" for name, why in absent.items()))
    return there, absent


def block(own: DataSet) -> Block:
    """The rows of one data set; methods that some seed lacks are named in a note and left out."""
    methods = [name for name in own.config.methods if all(name in one.margins for one in own.every)]
    partners = {name: other for name in methods if (other := compared_with(name, methods))}
    sides = {
        side: table.compared(values, _asked(own.every, seen=side == "seen"), partners)
        for side in SIDES
        if (values := _accuracies(own.every, methods, seen=side == "seen"))
    }
    rows = [
        Row(
            method=name,
            against=partners.get(name, ""),
            accuracy={side: found[name] for side, (found, _) in sides.items()},
            gap={side: gaps[name] for side, (_, gaps) in sides.items() if name in gaps},
            seconds=float(np.mean([one.facts[name]["seconds"] for one in own.every])),
            parameters=_mean_fact(own.every, name, "parameters_per_user"),
            context=_mean_fact(own.every, name, "context_pairs"),
        )
        for name in methods
    ]
    return Block(
        title=str(own.config.dataset),
        seeds=[one.work.seed for one in own.every],
        rows=rows,
        notes=[
            *_lacking(own, methods),
            *_choices(own.every, methods),
            *_limits(own.every, methods),
            *(note.removesuffix(".") for note in ignored(own.every[0].data, methods)),
            *_times(own.every, methods),
            *checks.left_out([one.work for one in own.every]),
            *checks.told(own.every),
            *checks.notes([one.work for one in own.every]),
        ],
    )


def _lacking(own: DataSet, methods: Sequence[str]) -> list[str]:
    names = [name for name in own.config.methods if name not in methods]
    told = [f"left out: {why}" for why in own.config.get("left_out", ())]
    return told + ([f"not run, for want of what they need: {', '.join(names)}"] if names else [])


def _choices(every: Sequence[Answered], methods: Sequence[str]) -> list[str]:
    """How many candidates each method chose from by held-out answers."""
    counts = {name: len(every[0].facts[name].get("candidates") or ()) for name in methods}
    several = [f"{name} {count}" for name, count in counts.items() if count > 1]
    return [f"candidates that held-out answers chose from: {', '.join(several)}"] if several else []


def _limits(every: Sequence[Answered], methods: Sequence[str]) -> list[str]:
    """Which methods read but some of the pairs of users who gave more."""
    given = max(_given(one).max(initial=0) for one in every)
    limits: dict[int, list[str]] = {}
    for name in methods:
        most = every[0].facts[name].get("most_context_pairs", given)
        if most < given:
            limits.setdefault(most, []).append(name)
    return [
        f"{', '.join(names)}: of users known by their pairs at most {most} pairs each are read, drawn at random"
        for most, names in limits.items()
    ]


def _times(every: Sequence[Answered], methods: Sequence[str]) -> list[str]:
    """What the times leave out: the frozen features, and what was done before a kill."""
    files = [one.work.folder / name / "features.json" for one in every for name in ("features", "prompt_features")]
    spent = sum(read_json(path)["seconds"] for path in files if path.exists()) / len(every)
    took = f"took {report.duration(spent)} per seed, which their times leave out"
    notes = [f"frozen features, made once for all methods that read them, {took}"] if spent else []
    for name in methods:
        seeds = [str(one.work.seed) for one in every if one.facts[name].get("was_resumed")]
        if seeds:
            notes.append(f"{name}, seed {', '.join(seeds)}: killed and taken up again, its time is of the rest alone")
    return notes


def _given(one: Answered) -> np.ndarray:
    """How many answers to learn from or to be known by each user [U] gave."""
    return np.bincount(one.data.pairs(("train", "validation")).user, minlength=one.data.num_users)


def _accuracies(every: Sequence[Answered], methods: Sequence[str], *, seen: bool) -> dict[str, list[np.ndarray]]:
    """Method -> for each seed the accuracy of each user [U] of that kind with test pairs; empty without users."""
    asked = [_with_test_pairs(one) & (one.data.seen == seen) for one in every]
    if not all(members.any() for members in asked):
        return {}
    return {
        name: [_user_accuracy(one, name)[members] for one, members in zip(every, asked, strict=True)]
        for name in methods
    }


def _asked(every: Sequence[Answered], *, seen: bool) -> list[np.ndarray]:
    """For each seed the ids [U] of the users of `_accuracies`."""
    return [_ids(one)[_with_test_pairs(one) & (one.data.seen == seen)] for one in every]


def _ids(one: Answered) -> np.ndarray:
    return np.array(one.data.users["user_id"].to_pylist(), str)


def _with_test_pairs(one: Answered) -> np.ndarray:
    return np.bincount(one.pairs.user, minlength=one.data.num_users) > 0


def _user_accuracy(one: Answered, method: str) -> np.ndarray:
    return user_accuracy(one.margins[method], one.pairs.user, one.data.num_users).accuracy


def _mean_fact(every: Sequence[Answered], method: str, name: str) -> float | str | None:
    values = [one.facts[method].get(name) for one in every]
    numbers = [value for value in values if isinstance(value, int | float)]
    return float(np.mean(numbers)) if len(numbers) == len(values) else values[0]


def by_pairs(every: Sequence[Answered], methods: Sequence[str]) -> dict[str, dict[int, Interval]]:
    """Method -> {training pairs: accuracy of the seen users who gave so many}, numbers sorted into those of `COUNTS`.

    All seeds' users together, who stands in several of them with the mean of theirs; the interval over users. Kinds of
    under `FEWEST` users are left out.
    """
    found: dict[str, dict[int, Interval]] = {name: {} for name in methods}
    for low, high in zip(COUNTS, (*COUNTS[1:], np.inf), strict=True):
        members = [_gave(one, low, high) for one in every]
        ids = [_ids(one)[own] for one, own in zip(every, members, strict=True)]
        number = np.unique(np.concatenate(ids), return_inverse=True)[1]
        if number.max(initial=-1) + 1 < FEWEST:
            continue
        for name in methods:
            values = [_user_accuracy(one, name)[own] for one, own in zip(every, members, strict=True)]
            own = np.bincount(number, weights=np.concatenate(values)) / np.bincount(number)
            found[name][low] = student_interval(own, over="users", fractions=True)
    return found


def _gave(one: Answered, low: float | int, high: float | int) -> np.ndarray:
    """bool [U]: seen users with test pairs who gave `low` to under `high` answers."""
    given = _given(one)
    return one.data.seen & _with_test_pairs(one) & (given >= low) & (given < high)
