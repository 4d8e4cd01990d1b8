"""How far raters agree: Krippendorff's alpha for nominal values, with any number of raters and missing values.

Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section E: of all pairs of values that one unit was
given by different raters, the share that differ, compared with what values drawn from all of them would give.

Axis letters: N values, U units, C categories, B resamples.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

RESAMPLES = 1000
# Of fewer units an interval would tell nothing.
FEWEST = 6


class Alpha(NamedTuple):
    """Krippendorff's alpha: 1 if raters agree in all, 0 if as by chance; with a 95 % interval.

    Attributes:
      value: None where nothing could differ: no unit of two values, or one category alone.
      low, high: of a percentile bootstrap over units; None for fewer than `FEWEST` units.
      units: that at least two raters gave a value.
      values: that these were given.
    """

    value: float | None
    low: float | None
    high: float | None
    units: int
    values: int


def nominal_alpha(
    units: Int[np.ndarray, " N"], values: Int[np.ndarray, " N"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Alpha:
    """Alpha of values, of which each rater gives a unit at most one.

    Args:
      units: number of the unit of each value; a value that is missing is left out.
      values: its category, from 0.
      resamples: B.
      seed: of the bootstrap.

    Example:
      >>> nominal_alpha(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 0, 1])).value
      0.4444444444444444
    """
    counts = _counts(units, values)
    if not len(counts):
        return Alpha(None, None, None, 0, 0)
    alpha = float(_alpha(counts, np.ones((1, len(counts))))[0])
    value = None if np.isnan(alpha) else alpha
    low = high = None
    if value is not None and len(counts) >= FEWEST:
        rng = np.random.default_rng(seed)
        times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
        low, high = map(float, np.nanquantile(_alpha(counts, times.astype(np.float64)), [0.025, 0.975]))
    return Alpha(value, low, high, len(counts), int(counts.sum()))


def _counts(units: Int[np.ndarray, " N"], values: Int[np.ndarray, " N"]) -> Int[np.ndarray, "U C"]:
    """How often each category was given to each unit of at least two values."""
    if not len(units):
        return np.zeros((0, 1), np.int64)
    names, place = np.unique(units, return_inverse=True)
    counts = np.zeros((len(names), int(values.max()) + 1), np.int64)
    np.add.at(counts, (place, values), 1)
    return counts[counts.sum(1) >= 2]


def _alpha(counts: Int[np.ndarray, "U C"], times: Float64[np.ndarray, "B U"]) -> Float64[np.ndarray, " B"]:
    """Alpha where each unit counts so many times; NaN where all values are of one category."""
    size = counts.sum(1)
    # Of the ordered pairs of values of a unit, those that differ, each worth 1 / (size - 1).
    differing = (size**2 - (counts**2).sum(1)) / (size - 1)
    totals = times @ counts
    number = totals.sum(1)
    expected = (number**2 - (totals**2).sum(1)) / np.maximum(number - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - (times @ differing) / expected, np.nan)
