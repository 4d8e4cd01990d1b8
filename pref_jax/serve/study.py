"""How people vote: agreement with each other and with themselves, sides, times, and whether votes change.

Of several votes of one user on one pair the last one counts, except where a user is compared with themselves. What is
called drift here knows no model: it compares the later votes of each user with their earlier ones. Agreement is taken
relative to that of all who voted on the same pair, since otherwise pairs that are harder looked like people who change;
so a change that everyone goes through at once is not seen.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from pref_jax.eval.agreement import nominal_alpha
from pref_jax.eval.bootstrap import paired_difference
from pref_jax.serve.store.records import Mark

# Votes that are looked at.
MOST = 100_000
# Others who must have voted on a pair before a user is told how most of them did, so that nobody's vote is told.
OTHERS = 3
# The part of a user's votes that is late, and how many of them must be on either side.
LATE, FEWEST = 1 / 3, 5
_VALUES = ("first", "second", "tie", "both_bad")


class Share(NamedTuple):
    """So many of so many, with Wilson's 95 % interval of the share."""

    count: int
    of: int

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        if not self.of:
            return {"count": 0, "of": 0, "share": None, "low": None, "high": None}
        low, high = binomtest(self.count, self.of).proportion_ci(method="wilson")
        return {
            "count": self.count,
            "of": self.of,
            "share": self.count / self.of,
            "low": float(low),
            "high": float(high),
        }


def figures(marks: Sequence[Mark]) -> dict[str, Any]:
    """All figures of a study, as JSON values."""
    choices = Counter(mark.choice for mark in marks)
    sides = [mark.left for mark in marks if mark.left is not None]
    latencies = [mark.latency for mark in marks if mark.latency is not None]
    agreed = _with_others(marks, 2)
    return {
        "votes": len(marks),
        "choices": {choice: Share(count, len(marks)).told() for choice, count in sorted(choices.items())},
        "left": Share(sum(sides), len(sides)).told(),
        "median_seconds": float(np.median(latencies)) if latencies else None,
        "alpha": _alpha(marks),
        "itself": _with_themselves(marks).told(),
        "others": Share(sum(agreed.values()), len(agreed)).told(),
        "drift": [
            _drift(marks, "agreement with others", _relative(marks)),
            _drift(
                marks, "votes that prefer one answer", {n: float(m.choice in _VALUES[:2]) for n, m in enumerate(marks)}
            ),
        ],
    }


def agreement(marks: Sequence[Mark]) -> dict[str, Any]:
    """How user 0 agrees with themselves on pairs that they saw again, and with most others."""
    own = [mark for mark in marks if mark.user == 0]
    agreed = _with_others(marks, OTHERS)
    mine = [same for place, same in agreed.items() if marks[place].user == 0]
    return {"itself": _with_themselves(own).told(), "others": Share(sum(mine), len(mine)).told(), "at_least": OTHERS}


def _last(marks: Sequence[Mark]) -> dict[tuple[int, int], int]:
    """Place of each user's last vote on each pair that is not a skip."""
    return {(mark.pair, mark.user): place for place, mark in enumerate(marks) if mark.choice != "skip"}


def _with_themselves(marks: Sequence[Mark]) -> Share:
    """Of votes on a pair that the user had voted on before, those that say the same as the one before."""
    before: dict[tuple[int, int], str] = {}
    same = of = 0
    for mark in marks:
        if mark.choice == "skip":
            continue
        known = before.get((mark.pair, mark.user))
        of += known is not None
        same += known == mark.choice
        before[mark.pair, mark.user] = mark.choice
    return Share(same, of)


def _with_others(marks: Sequence[Mark], least: int) -> dict[int, bool]:
    """Whether last votes, by their places, are what most others said, where so many did and most said one thing."""
    last, found = _last(marks), {}
    counts = _counts(marks, last)
    for (pair, _), place in last.items():
        others = counts[pair] - Counter([marks[place].choice])
        if others.total() < least:
            continue
        (most, times), *rest = others.most_common(2)
        if not rest or rest[0][1] < times:
            found[place] = most == marks[place].choice
    return dict(sorted(found.items()))


def _alpha(marks: Sequence[Mark]) -> dict[str, Any]:
    last = _last(marks)
    # Which answer of a pair is "first" is an accident of how it was entered: a draw decides, or else alpha depended
    # on it where good answers were entered first.
    turn = np.random.default_rng(0).integers(2, size=1 + max((mark.pair for mark in marks), default=0))
    units = np.array([pair for pair, _ in last], np.int64)
    values = np.array([_VALUES.index(marks[place].choice) for place in last.values()], np.int64)
    values = np.where(values < 2, values ^ turn[units], values) if len(units) else values
    return nominal_alpha(units, values)._asdict()


def _counts(marks: Sequence[Mark], last: Mapping[tuple[int, int], int]) -> dict[int, Counter[str]]:
    """How many users made each choice on each pair."""
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for (pair, _), place in last.items():
        counts[pair][marks[place].choice] += 1
    return counts


def _relative(marks: Sequence[Mark]) -> dict[int, float]:
    """Share of others who said the same, less its mean over all who voted on the pair; of pairs of three and more."""
    last, found = _last(marks), {}
    counts = _counts(marks, last)
    for (pair, _), place in last.items():
        own, of = counts[pair], counts[pair].total()
        if of > 2:
            mean = sum(times * (times - 1) for times in own.values()) / (of * (of - 1))
            found[place] = (own[marks[place].choice] - 1) / (of - 1) - mean
    return dict(sorted(found.items()))


def _drift(marks: Sequence[Mark], what: str, values: Mapping[int, float]) -> dict[str, Any]:
    """A rate in each user's later votes compared with their earlier ones, as a mean over users."""
    own: defaultdict[int, list[float]] = defaultdict(list)
    for place, value in values.items():
        own[marks[place].user].append(value)
    halves = [_halves(some) for some in own.values() if len(some) * LATE >= FEWEST]
    early, late = (np.array([np.mean(half[side]) for half in halves], np.float64) for side in (0, 1))
    gap, told = paired_difference(late, early), {"what": what, "users": len(halves)}
    if gap is None:
        return told | dict.fromkeys(("before", "lately", "difference", "low", "high")) | {"alarm": False}
    told |= {"before": float(early.mean()), "lately": float(late.mean()), "difference": gap.mean}
    return told | {"low": gap.low, "high": gap.high, "alarm": gap.high is not None and gap.high < 0}


def _halves(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    place = len(values) - int(len(values) * LATE)
    return values[:place], values[place:]
