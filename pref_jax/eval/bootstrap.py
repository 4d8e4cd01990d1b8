"""Methods compared on the same users: a paired bootstrap over users, and Holm's correction.

Seeds are taken as they are: an interval tells what other users asked in these very seeds would have changed. Each
resample draws people with replacement, the same ones for all methods and all seeds, takes each method's mean over them
within every seed and then the mean over seeds (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters
13 and 16). One who answers in several seeds, as people of a real data set do, is drawn for all of them at once: their
scores go together, and seeds are no new people. Where seeds have different people under the same names, as simulated
ones do, those go together too, which changes nothing: what is independent stays so.

Axis letters: S seeds, M methods, U users of a seed, C users of all seeds, B resamples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float, Float64, Shaped

from pref_jax.errors import Faults
from pref_jax.eval.metrics import Interval, add_not_finite

RESAMPLES = 4000
# Of n users even the widest percentile interval, from the lowest to the highest, misses the median of all people with
# probability 2 ** (1 - n), as in a sign test: of fewer than these in more than one case of twenty.
FEWEST = 6
# Random indices drawn at once: 32 MB, whatever the number of users.
_BLOCK = 4_000_000
# Far below one answer of one user, far above the rounding of sums of fractions.
_ZERO = 1e-12


def means(accuracies: Sequence[Float64[np.ndarray, "M _"]]) -> Float64[np.ndarray, "M"]:
    """Each method's mean over seeds of its mean over users; `accuracies` has an array [M U] for each seed."""
    return np.mean([own.mean(axis=1) for own in accuracies], axis=0)


def resampled_means(
    accuracies: Sequence[Float64[np.ndarray, "M _"]],
    users: Sequence[Shaped[np.ndarray, "_"]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float64[np.ndarray, "B M"]:
    """`means` of B resamples of the users, paired over methods and over seeds.

    A seed of which a resample has nobody, which happens where users are few, is left out of that resample's mean.

    Args:
      accuracies: an array [M U] for each seed; seeds may differ in U but not in M.
      users: names or numbers [U] of the users of each seed, each once.
      resamples: B.
      seed: of the draw: `Generator.integers(C, size=[B, C])`, in blocks of whole rows, of the users in sorted order.
    """
    everyone = np.unique(np.concatenate(users))
    places = [np.searchsorted(everyone, names) for names in users]
    count, rng = len(everyone), np.random.default_rng(seed)
    found = []
    rows = max(1, _BLOCK // count)
    for start in range(0, resamples, rows):
        drawn = rng.integers(count, size=(min(rows, resamples - start), count))
        # How often each user was drawn, so that all methods' means are one product.
        place = drawn + count * np.arange(len(drawn))[:, None]
        times = np.bincount(place.ravel(), minlength=drawn.size).reshape(drawn.shape)
        total, seeds = np.zeros((len(drawn), len(accuracies[0]))), np.zeros((len(drawn), 1))
        for own, columns in zip(accuracies, places, strict=True):
            weights = times[:, columns]
            size = weights.sum(axis=1, keepdims=True)
            total += weights @ own.T / np.maximum(size, 1)
            seeds += size > 0
        found.append(total / seeds)
    return np.concatenate(found)


def interval(mean: float, draws: Float64[np.ndarray, "B"], *, users: int) -> Interval:
    """The percentile interval of `draws` around `mean`; fewer than `FEWEST` users have none."""
    low, high = map(float, np.quantile(draws, [0.025, 0.975]))
    few = users < FEWEST
    return Interval(mean=float(mean), low=None if few else low, high=None if few else high, n=users, over="users")


def paired_difference(
    accuracy_a: Float[Array | np.ndarray, "U"],
    accuracy_b: Float[Array | np.ndarray, "U"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Mean over users of accuracy_a - accuracy_b with the 95 % percentile bootstrap interval over users.

    Pairing by user removes what makes users easy or hard for both methods, so the interval is much narrower than the
    difference of two separate ones.

    Args:
      accuracy_a: float [U], accuracy of each user under method a.
      accuracy_b: float [U], of the same users, in the same order, under method b.
      resamples: how many bootstrap samples to draw.
      seed: seed of the draw; the same seed gives the same interval.

    Returns:
      The interval, without ends for fewer than `FEWEST` users; None for nobody.

    Raises:
      UserError: if a value is NaN or infinite, or the lengths differ.
    """
    first, second = np.asarray(accuracy_a, dtype=np.float64), np.asarray(accuracy_b, dtype=np.float64)
    faults = Faults()
    if len(first) != len(second):
        faults.add("accuracy_b", f"{len(second)} users against {len(first)} in accuracy_a", "give the same users twice")
    for name, array in (("accuracy_a", first), ("accuracy_b", second)):
        add_not_finite(faults, name, array)
    faults.raise_if_any("cannot compare two methods")
    difference = first - second
    if not len(difference):
        return None
    count, rng = len(difference), np.random.default_rng(seed)
    rows = max(1, _BLOCK // count)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    draws = [difference[rng.integers(count, size=(size, count))].mean(axis=1) for size in sizes]
    return interval(float(difference.mean()), np.concatenate(draws), users=count)


def two_sided(draws: Float64[np.ndarray, "B"]) -> float:
    """p of "no difference" from resampled differences: twice the smaller part on either side of 0, at most 1.

    The observed data count as one more resample, so that no p is 0 (Davison and Hinkley, 1997, equation 4.11). What
    rounding leaves of a difference of 0 counts on both sides.
    """
    beyond = 1 + min(int((draws <= _ZERO).sum()), int((draws >= -_ZERO).sum()))
    return min(1.0, 2 * beyond / (len(draws) + 1))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for how many they are (Holm, 1979): the k-th smallest of n times n - k + 1, never falling."""
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        highest = max(highest, min(1.0, (len(values) - place) * values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in values}
