"""The controls of a run's methods (`pref_jax.eval.controls`) as a table beside the one of their accuracies.

Axis letters: P test pairs, U users.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.methods import METHODS, compared_with
from experiments.runner.test_labels import Answered
from pref_jax.eval import controls
from pref_jax.eval.metrics import Interval, student_interval, user_accuracy
from pref_jax.eval.reporting import report
from pref_jax.eval.reporting.report import MISSING, Section
from pref_jax.eval.reporting.table import SIDES

FORMATTING = "formatting-only"
# Of a gain that is claimed, so much has to go with another user's parameters.
REMOVED = 0.9
COLLAPSED = 0.05
HEAD = (
    "method",
    *(f"{side}, {what}" for side in SIDES for what in ("gain", "another's parameters", "removed")),
    "turned",
    "length balanced",
    "format balanced",
    "worst tenth",
    "active units",
    "effective rank",
    "between seeds",
    "between people",
)
NOTE = (
    "Gains over the shared reward on the same states, in points, ± half of the 95 % interval over seeds; what is left "
    "of them when every user gets another user's parameters, and which part of the gain is removed by it. Turned: of "
    "the predictions for unseen users, those that become their opposite when all of the user's votes are turned round. "
    "Balanced: accuracy on pairs where the longer text (or the text that formatting alone prefers) is as often the "
    "chosen one as not, where following it gives 50. Worst tenth: mean accuracy of the tenth of people that are served "
    "worst, of few pairs each. Active units: part of a latent's numbers that vary over people at all; effective rank: "
    "in how many directions people differ. Between seeds, between people: standard deviations of the mean accuracy and "
    "of people's accuracies, in points. † marks a gain beyond its interval of which less than 90 % is removed, ‡ a "
    "latent of which less than 5 % of the numbers are active."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controls:
    """What the controls say of one method; fractions, None where they say nothing.

    Attributes:
      method: its name.
      gain: side -> over the shared reward.
      shuffled: side -> the same with another user's parameters.
      removed: side -> the part of the mean gain that is gone then.
      turned: flip rate of unseen users.
      length, formatting: balanced accuracies.
      worst: mean accuracy of the tenth of people that are served worst.
      active: part of the latent's numbers that vary.
      rank: directions in which people differ.
      seeds, people: standard deviations of accuracy.
    """

    method: str
    gain: dict[str, Interval]
    shuffled: dict[str, Interval]
    removed: dict[str, float | None]
    turned: float | None
    length: float | None
    formatting: float | None
    worst: float | None
    active: float | None
    rank: float | None
    seeds: float | None
    people: float | None

    @property
    def marks(self) -> str:
        """† where a claimed gain survives other users' parameters, ‡ where a latent has collapsed."""
        claimed = [side for side, own in self.gain.items() if own.low is not None and own.low > 0]
        survives = any((self.removed.get(side) or 0.0) < REMOVED for side in claimed if side in self.removed)
        collapsed = self.active is not None and self.active < COLLAPSED
        return "†" * survives + "‡" * collapsed


def measure(every: Sequence[Answered]) -> list[Controls]:
    """The controls of every method that all seeds have."""
    methods = [name for name in every[0].margins if all(name in one.margins for one in every)]
    longer = [_longer(one) for one in every]
    return [_of(every, longer, name, compared_with(name, methods) if name in METHODS else "") for name in methods]


def _of(every: Sequence[Answered], longer: Sequence[np.ndarray], method: str, base: str) -> Controls:
    gain, shuffled, removed = {}, {}, {}
    for side in SIDES:
        own = _means(every, [one.margins[method] for one in every], side)
        if base not in every[0].margins or not len(own):
            continue
        others = _means(every, [one.margins[base] for one in every], side)
        gain[side] = student_interval(own - others, over="seeds")
        if all(controls.SHUFFLED in one.controls.get(method, {}) for one in every):
            mixed = _means(every, [one.controls[method][controls.SHUFFLED] for one in every], side)
            shuffled[side] = student_interval(mixed - others, over="seeds")
            removed[side] = controls.removed_share(float(own.mean()), float(mixed.mean()), float(others.mean()))
    turned = [_turned(one, method) for one in every]
    everyone = [_accuracies(one, one.margins[method]) for one in every]
    return Controls(
        method=method,
        gain=gain,
        shuffled=shuffled,
        removed=removed,
        turned=_mean(turned),
        length=_mean([_balanced(one, method, own) for one, own in zip(every, longer, strict=True)]),
        formatting=_mean([_balanced(one, method, one.margins.get(FORMATTING)) for one in every]),
        worst=_mean([controls.worst_share(own) for own in everyone]),
        active=_mean([one.facts[method].get("active_units") for one in every]),
        rank=_mean([one.facts[method].get("effective_rank") for one in every]),
        seeds=float(np.std([own.mean() for own in everyone], ddof=1)) if len(everyone) > 1 else None,
        people=_mean([float(np.std(own, ddof=1)) if len(own) > 1 else None for own in everyone]),
    )


def _accuracies(one: Answered, margins: np.ndarray, side: str = "") -> np.ndarray:
    """Of each user with test pairs, of one side or of both."""
    found = user_accuracy(margins, one.pairs.user, one.data.num_users)
    asked = found.pairs > 0
    return found.accuracy[asked if not side else asked & (one.data.seen == (side == "seen"))]


def _means(every: Sequence[Answered], margins: Sequence[np.ndarray], side: str) -> np.ndarray:
    """Mean accuracy of each seed; empty where some seed has no such users."""
    found = [_accuracies(one, own, side) for one, own in zip(every, margins, strict=True)]
    return np.array([own.mean() for own in found]) if all(len(own) for own in found) else np.zeros(0)


def _turned(one: Answered, method: str) -> float | None:
    other = one.controls.get(method, {}).get(controls.REVERSED)
    if other is None:
        return None
    late = ~one.data.seen[one.pairs.user]
    return controls.turned_share(one.margins[method][late], other[late])


def _longer(one: Answered) -> np.ndarray:
    lengths = np.array([len(text) for text in one.data.responses["text"].to_pylist()])
    return (lengths[one.pairs.chosen] - lengths[one.pairs.rejected]).astype(np.float64)


def _balanced(one: Answered, method: str, told: np.ndarray | None) -> float | None:
    if told is None or not len(one.pairs.user):
        return None
    return controls.balanced_accuracy(one.margins[method], told, one.pairs.user)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def grid(found: Sequence[Controls]) -> str:
    """The table in Markdown; `NOTE` says what it shows."""
    return report.grid([list(HEAD), *(_cells(own) for own in found)])


def _cells(own: Controls) -> list[str]:
    cells = [f"{own.method} {own.marks}".rstrip()]
    for side in SIDES:
        cells += [report.plus_minus(part.get(side), scale=100, sign="+") for part in (own.gain, own.shuffled)]
        # Of next to no gain the part that goes says nothing.
        gained = side in own.gain and own.gain[side].mean >= 0.005
        cells.append(_percent(own.removed.get(side) if gained else None, digits=0))
    cells += [_percent(value) for value in (own.turned, own.length, own.formatting, own.worst, own.active)]
    cells += [MISSING if own.rank is None else f"{own.rank:.1f}", _percent(own.seeds), _percent(own.people)]
    return cells


def _percent(value: float | None, *, digits: int = 1) -> str:
    return MISSING if value is None else f"{100 * value:.{digits}f}"


def section(every: Sequence[Answered]) -> Section:
    """The controls of all seeds as a chapter of a report."""
    return Section("Controls", f"{grid(measure(every))}\n\n{NOTE}")


def as_json(found: Sequence[Controls]) -> list[dict[str, Any]]:
    """JSON values, each with its `marks`."""
    return [{**dataclasses.asdict(own), "marks": own.marks} for own in found]
