"""From reward margins on test pairs to accuracies by group, each with its 95 % interval.

A margin is the reward of the chosen response minus that of the rejected one. The mean is taken over users, not over
pairs, so that busy users do not outweigh the others. Everything is float64 NumPy on the host.

Axis letters: P pairs, U users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, SupportsFloat

import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from pref_jax.errors import Faults


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its 95 % interval.

    mean: the mean, a fraction for accuracies and nats for log-losses.
    low, high: ends of the interval, in the unit of `mean`; both None where the values give no interval: one alone, or
      so few fractions that every mean from 0 to 1 is possible.
    n: how many things the mean was taken over.
    over: which things: "users", "seeds" or "pairs".
    left_out: users of this kind that have no such pair and are therefore not among the `n`.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    over: str
    left_out: int = 0

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width, in the unit of `mean`, or None without an interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


class UserAccuracy(NamedTuple):
    """What `user_accuracy` gives: `accuracy` float64 [U] (0.5 where `pairs` is 0) and `pairs` int64 [U]."""

    accuracy: Float[np.ndarray, "U"]
    pairs: Int[np.ndarray, "U"]


def user_accuracy(
    margins: Float[Array | np.ndarray, "P"], user: Int[Array | np.ndarray, "P"], num_users: int
) -> UserAccuracy:
    """Each user's share of right pairs; a tie counts one half.

    Args:
      margins: float [P], reward of the chosen minus reward of the rejected response.
      user: int [P], row of the pair's user, in 0 .. num_users - 1.
      num_users: U.

    Raises:
      UserError: if a margin is NaN or infinite, a user out of range, or the lengths differ.
    """
    margin, index = _checked(margins, user, num_users)
    return _mean_by_user(_right(margin), index, num_users)


def group_metrics(
    margins: Float[Array | np.ndarray, "P"],
    user: Int[Array | np.ndarray, "P"],
    controversial: Int[Array | np.ndarray, "P"],
    seen: Bool[Array | np.ndarray, "U"],
    groups: Sequence[str | None],
) -> dict[str, Interval]:
    """Accuracies of seen and of unseen users on all, common and controversial pairs and by group, and certainty.

    Keys, each once with `seen/` and once with `unseen/`: `accuracy`, `common`, `controversial`, `log_loss`,
    `calibration_error` and `group/NAME` for each group. Accuracies are means over users with a Student t interval over
    users. `log_loss` is the mean of -log sigmoid(margin) in nats over all pairs at once, `calibration_error` that of
    the function; neither has an interval (users answer several pairs, so pairs are not independent). A key to which no
    pair belongs is absent: there is no number to give.

    Args:
      margins: float [P], reward of the chosen minus reward of the rejected response.
      user: int [P], row of the pair's user.
      controversial: int [P], 1 yes, 0 no, -1 unknown (then neither common nor controversial).
      seen: bool [U], whether the user was in training.
      groups: U names or None.

    Raises:
      UserError: if a margin is NaN or infinite, a user out of range, or the lengths differ.
    """
    known = np.asarray(seen, dtype=bool)
    flag = np.asarray(controversial)
    margin, index = _checked(margins, user, len(known), controversial=flag, groups=groups)
    right = _right(margin)
    kinds = {"accuracy": np.ones(len(margin), dtype=bool), "common": flag == 0, "controversial": flag == 1}
    scores = {kind: _mean_by_user(right[mask], index[mask], len(known)) for kind, mask in kinds.items()}
    # -log sigmoid(m) = log(exp(0) + exp(-m)), which neither overflows nor loses small values.
    loss = np.logaddexp(0.0, -margin)
    names, code = _codes(groups)
    metrics = {}
    for side, members in (("seen", known), ("unseen", ~known)):
        for kind, score in scores.items():
            metrics.update(_over_users(f"{side}/{kind}", score, members))
        if (own := members[index]).any():
            metrics[f"{side}/log_loss"] = _pooled(float(np.sum(loss[own] / own.sum())), int(own.sum()))
            metrics[f"{side}/calibration_error"] = _pooled(calibration_error(margin[own]), int(own.sum()))
        for number, name in enumerate(names):
            metrics.update(_over_users(f"{side}/group/{name}", scores["accuracy"], members & (code == number)))
    return metrics


def calibration_error(margins: Float[Array | np.ndarray, "P"], *, bins: int = 10) -> float:
    """How far confidence and accuracy are apart: the expected calibration error, in [0, 1]; 0 without pairs.

    The confidence of a pair is sigmoid(|margin|). Pairs are ordered by it and cut into bins of equal size; the error is
    the mean over pairs of |mean confidence - share of right ones| of their bin (a tie counts one half).

    Args:
      margins: float [P], reward of the chosen minus reward of the rejected response.
      bins: how many, at most P.
    """
    margin = np.asarray(margins, np.float64)
    confidence, right = special.expit(np.abs(margin)), _right(margin)
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(np.sum(confidence[part] - right[part])) for part in parts) / max(len(margin), 1))


def over_seeds(runs: Sequence[Mapping[str, SupportsFloat | Interval]]) -> dict[str, Interval]:
    """Mean and Student t interval over seeds of each metric, given one mapping per seed.

    A metric that some seeds lack is averaged over those that have it (`n` says how many).
    """
    keys = dict.fromkeys(key for run in runs for key in run)
    return {key: _over_seeds(key, [_mean(run[key]) for run in runs if key in run]) for key in keys}


def is_loss(name: str) -> bool:
    """Whether a metric of that name is a log-loss, in nats, rather than a fraction."""
    return name.rsplit("/", 1)[-1] == "log_loss" and "/group/" not in name


def _over_seeds(name: str, values: Sequence[float]) -> Interval:
    fractions = name.startswith(("seen/", "unseen/")) and not is_loss(name)
    return student_interval(values, over="seeds", fractions=fractions)


def student_interval(
    values: Sequence[float] | Float[np.ndarray, "n"], *, over: str, left_out: int = 0, fractions: bool = False
) -> Interval:
    """Mean of at least one value with the two-sided 95 % Student t interval; one value alone has no interval.

    With `fractions` values lie from 0 to 1, and so do the ends; an interval of all of that is none. Values that are all
    0, or all 1, have no spread to judge by: the other end is then that of n out of n (Clopper and Pearson, 1934).
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    # Huge log-losses must not overflow: divided before they are summed, and no interval where squares overflow.
    mean = float(np.sum(array / n))
    low = high = None
    if n > 1:
        with np.errstate(over="ignore"):
            half = float(special.stdtrit(n - 1, 0.975)) * float(np.std(array, ddof=1)) / n**0.5
        if np.isfinite(mean - half) and np.isfinite(mean + half):
            low, high = mean - half, mean + half
    if fractions and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)
        if np.all(array == array[0]) and array[0] in (0.0, 1.0):
            low, high = (0.025 ** (1 / n), 1.0) if array[0] else (0.0, 1 - 0.025 ** (1 / n))
        low, high = (None, None) if high - low >= 1 else (low, high)
    return Interval(mean=mean, low=low, high=high, n=n, over=over, left_out=left_out)


def _right(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)


def _mean(value: SupportsFloat | Interval) -> float:
    return value.mean if isinstance(value, Interval) else float(value)


def _mean_by_user(right: np.ndarray, user: np.ndarray, num_users: int) -> UserAccuracy:
    pairs = np.bincount(user, minlength=num_users)
    total = np.bincount(user, weights=right, minlength=num_users)
    return UserAccuracy(np.where(pairs > 0, total / np.maximum(pairs, 1), 0.5), pairs)


def _over_users(key: str, score: UserAccuracy, members: np.ndarray) -> dict[str, Interval]:
    counted = members & (score.pairs > 0)
    if not counted.any():
        return {}
    left_out = int(members.sum() - counted.sum())
    return {key: student_interval(score.accuracy[counted], over="users", left_out=left_out, fractions=True)}


def _pooled(value: float, pairs: int) -> Interval:
    return Interval(mean=value, low=None, high=None, n=pairs, over="pairs")


def _codes(groups: Sequence[str | None]) -> tuple[list[str], np.ndarray]:
    """Sorted group names and each user's position among them (-1 without a group)."""
    names = sorted({name for name in groups if name is not None})
    position = {name: number for number, name in enumerate(names)}
    return names, np.array([-1 if name is None else position[name] for name in groups], dtype=np.int64)


def _checked(
    margins: Array | np.ndarray,
    user: Array | np.ndarray,
    num_users: int,
    *,
    controversial: np.ndarray | None = None,
    groups: Sequence[str | None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Margins as float64 and users as int64, after all faults were reported at once."""
    margin, index = np.asarray(margins).astype(np.float64), np.asarray(user).astype(np.int64)
    faults = Faults()
    add_not_finite(faults, "margins", margin)
    for name, array in (("user", index), ("controversial", controversial)):
        if array is not None and len(array) != len(margin):
            faults.add(name, f"{len(array)} values for {len(margin)} margins", "give one for each pair")
    if groups is not None and len(groups) != num_users:
        faults.add("groups", f"{len(groups)} names for {num_users} users", "give one (or None) for each user")
    wrong = int(((index < 0) | (index >= num_users)).sum())
    if wrong:
        what = f"{wrong} of {len(index)} rows are not in 0 .. {num_users - 1}"
        faults.add("user", what, "use rows of the users table")
    faults.raise_if_any("cannot score these pairs")
    return margin, index


def add_not_finite(faults: Faults, name: str, array: np.ndarray) -> None:
    """Notes how many values are NaN, and how many infinite."""
    for what, count in (("NaN", int(np.isnan(array).sum())), ("infinite", int(np.isinf(array).sum()))):
        if count:
            fix = "look for a diverged run or an overflow in half precision (lower the learning rate, use float32)"
            faults.add(name, f"{count} of {len(array)} are {what}", fix)
