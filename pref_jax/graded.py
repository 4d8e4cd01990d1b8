"""Losses of batches of votes of every kind, a row per vote: what trainings that read both responses at once share.

`pref_jax.likelihood` makes of each vote one logistic row or two of a margin m. Where reading the pair is what costs, as
in a transformer, both rows of a vote stay together:

    loss = weight [ softplus(-(m + shift - low)) + softplus(m + shift - high) - log(1 - exp(low - high)) ]

with the thresholds `low` and `high` by number; the second and third terms are those of votes with a bound from above.

A choice of one response out of several counts as one vote: as a batch of pairs need not hold the whole choice, each of
its rows is a Bradley-Terry loss of weight 1 / rows, in place of Plackett and Luce's.

Axis letters: P votes, T thresholds.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64
from scipy import optimize

from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.likelihood import Scale, StrengthUse, fit_scale, log_widths, logistic_rows, offsets, thresholds

# Trainable numbers that `thresholds` reads: {"ties": [1], "levels": [T or T - 1]}, without what is empty; {} for T = 0.
Gaps = Mapping[str, Float[Array | np.ndarray, "..."]]
GAPS = "gaps"
# Learning rate of gaps in that of the other parameters: they are few, of size 1, and move with the size of margins.
LR_MULT = 10.0
# Numbers that `thresholds` turns into 0.0001 and 12: beyond, a float32 likelihood tells nothing.
_RANGE = (-10.0, 12.0)


class Graded(NamedTuple):
    """What votes say of their margins, as arrays [P] on host or device; see the module.

    Attributes:
      lower: int32, k > 0: `low` is t_k; k < 0: -t_|k|, which is a tie; 0: 0.
      upper: int32, k > 0: `high` is t_k; 0: there is no bound from above.
      weight: float32, 0 where a vote says nothing on this scale.
      shift: float32, a fixed part of the margin.
    """

    lower: Any
    upper: Any
    weight: Any
    shift: Any

    @property
    def decided(self) -> Any:
        """bool [P]: who was preferred is known."""
        return (self.lower >= 0) & (self.weight > 0)


class FittedScale(NamedTuple):
    """A scale with its thresholds, float64 [T], for margins of one model."""

    scale: Scale
    thresholds: Float64[np.ndarray, " T"]

    def about(self) -> dict[str, Any]:
        """JSON values, which `read_scale` takes back."""
        own = self.scale._asdict()
        return {**own, "edges": list(self.scale.edges), "thresholds": self.thresholds.tolist()}


def read_scale(about: Mapping[str, Any] | None) -> FittedScale | None:
    """The scale that `FittedScale.about` told; None of None."""
    if about is None:
        return None
    own = {**about, "edges": tuple(about["edges"])}
    return FittedScale(thresholds=np.array(own.pop("thresholds"), np.float64), scale=Scale(**own))


def find_scale(votes: Comparisons, strengths: str) -> Scale:
    """`fit_scale` by a setting.

    Raises:
      UserError: for an unknown use of strengths.
    """
    known = get_args(StrengthUse)
    if strengths not in known:
        raise UserError(f"strengths is {strengths!r}; write one of {', '.join(known)}")
    return fit_scale(votes, cast(StrengthUse, strengths))


def grade(votes: Comparisons, scale: Scale | None) -> Graded | None:
    """What votes say on a scale; None where all are plain preferences, or without a scale.

    Example:
      >>> votes = Comparisons(*np.zeros((3, 2), int), tie=np.array([True, False]))
      >>> grade(votes, Scale(ties=True)).lower
      array([-1,  1], dtype=int32)
    """
    if scale is None:
        return None
    rows = logistic_rows(votes, scale)
    second = rows.interval > 0
    upper = np.zeros(len(votes.user), np.int32)
    upper[rows.vote[second]] = rows.interval[second]
    lower, weight, shift = rows.bound[~second].astype(np.int32), rows.weight[~second], rows.margin[~second]
    weight = weight / choice_sizes(votes).astype(np.float32)
    plain = not (lower.any() or upper.any() or shift.any()) and bool((weight == 1).all())
    return None if plain else Graded(lower, upper, weight, shift)


def choice_sizes(votes: Comparisons) -> np.ndarray:
    """int64 [P]: rows of the choice that each row is of; 1 for a pair alone."""
    sizes = np.ones(len(votes.user), np.int64)
    if votes.choice is None:
        return sizes
    rows = np.flatnonzero(np.asarray(votes.choice) >= 0)
    _, number, count = np.unique(np.asarray(votes.choice)[rows], return_inverse=True, return_counts=True)
    sizes[rows] = count[number]
    return sizes


def losses(
    margin: Float[Array, "*batch P"], graded: Graded, ends: Float[Array, " T"], *, ties: bool
) -> Float[Array, "*batch P"]:
    """The loss of each vote, its weight included; convex in margins and thresholds together.

    Args:
      margin: rewards of the chosen responses less those of the rejected ones.
      graded: of the same votes.
      ends: thresholds.
      ties: whether the first of them bounds ties.
    """
    margin = margin + graded.shift
    loss = jax.nn.softplus(-(margin + offsets(ends, graded.lower)))
    if len(ends):
        upper = jnp.asarray(graded.upper)
        above = jax.nn.softplus(margin - jnp.concatenate([jnp.zeros(1, ends.dtype), ends])[upper])
        loss += jnp.where(upper > 0, above, 0) - log_widths(ends, ties=ties)[upper]
    return graded.weight * loss


def losses_by_gaps(margin: Float[Array, "*batch P"], graded: Graded, gaps: Gaps) -> Float[Array, "*batch P"]:
    """`losses` with thresholds made of trainable gaps."""
    return losses(margin, graded, ends_of(gaps), ties="ties" in gaps)


def ends_of(gaps: Gaps) -> Float[Array, " T"]:
    """The thresholds that gaps stand for."""
    own = [gaps[name] for name in ("ties", "levels") if name in gaps]
    return thresholds(jnp.concatenate([jnp.asarray(part) for part in own])) if own else jnp.zeros(0)


def begin_gaps(graded: Graded | None, scale: Scale | None) -> dict[str, np.ndarray]:
    """Gaps to begin a training with: those that explain the votes best where all margins are 0."""
    if graded is None or scale is None or not scale.num_thresholds:
        return {}
    found = _fit_gaps(np.zeros(len(graded.lower), np.float32), graded, scale).astype(np.float32)
    parts = {"ties": found[: int(scale.ties)], "levels": found[int(scale.ties) :]}
    return {name: part for name, part in parts.items() if len(part)}


def fit_thresholds(margin: Float[np.ndarray, " P"], votes: Comparisons, scale: Scale) -> FittedScale:
    """The thresholds under which the votes are most likely at given margins."""
    graded = grade(votes, scale)
    if graded is None or not scale.num_thresholds:
        return FittedScale(scale, np.zeros(0))
    gaps = _fit_gaps(np.asarray(margin, np.float32), graded, scale)
    return FittedScale(scale, np.asarray(thresholds(jnp.asarray(gaps, jnp.float32)), np.float64))


def _fit_gaps(margin: np.ndarray, graded: Graded, scale: Scale) -> np.ndarray:
    rows = jax.device_put((margin, graded))

    def objective(gaps: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _mean_loss(jnp.asarray(gaps, jnp.float32), *rows, scale.ties)
        return float(value), np.asarray(slope, np.float64)

    begin, bounds = np.zeros(scale.num_thresholds), [_RANGE] * scale.num_thresholds
    return optimize.minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=bounds).x


@functools.partial(jax.jit, static_argnums=3)
@jax.value_and_grad
def _mean_loss(gaps, margin, graded, ties):
    return jnp.sum(losses(margin, graded, thresholds(gaps), ties=ties)) / jnp.maximum(jnp.sum(graded.weight), 1e-6)
