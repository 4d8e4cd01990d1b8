"""How far raters are themselves: what one half of a rater's votes says of the other. No model can know more than that.

Axis letters: P votes, U users, D features.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

SPLITS = 50
RESAMPLES = 1000
# Votes of a user below which halves tell nothing.
FEWEST = 20


class Reliability(NamedTuple):
    """Split-half reliability of a number per user.

    Attributes:
      halves: mean over random splits of the correlation over users between both halves' means; None where fewer than
        three users qualify, or all are alike.
      whole: the same for all votes, by Spearman and Brown's formula, 2 r / (1 + r).
      low, high: 95 % of `halves`, by a bootstrap over users.
      users: how many qualify.
    """

    halves: float | None
    whole: float | None
    low: float | None
    high: float | None
    users: int


def split_half(
    values: Float[np.ndarray, " P"],
    user: Int[np.ndarray, " P"],
    *,
    fewest: int = FEWEST,
    splits: int = SPLITS,
    seed: int = 0,
) -> Reliability:
    """Whether users differ in the mean of `values`, beyond chance.

    Args:
      values: of each vote, such as 1 where the longer text was chosen and -1 where it was not.
      user: whose vote it is.
      fewest: votes of a user who is counted.
      splits: random halves.
      seed: of the splits and the bootstrap.

    Example:
      >>> split_half(np.tile([1.0, -1.0], 40), np.tile([0, 1], 40)).users  # two of them are too few to correlate
      2
    """
    number, row = _qualified(user, fewest)
    values, users = np.asarray(values, np.float64)[row], int(number.max(initial=-1)) + 1
    if users < 3:
        return Reliability(None, None, None, None, users)
    rng = np.random.default_rng([seed, 37])
    halves = [_halves(values[:, None], number, users, rng)[..., 0] for _ in range(splits)]
    found = _correlation(halves, np.arange(users)[None])[0]
    if not np.isfinite(found):
        return Reliability(None, None, None, None, users)
    drawn = _correlation(halves, rng.integers(0, users, (RESAMPLES, users)))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Reliability(float(found), float(2 * found / (1 + found)), float(low), float(high), users)


def taste_reliability(
    differences: Float[np.ndarray, "P D"],
    user: Int[np.ndarray, " P"],
    num_users: int,
    *,
    fewest: int = FEWEST,
    splits: int = 10,
    seed: int = 0,
) -> Float64[np.ndarray, " U"]:
    """Of each user the mean cosine between what either half of the votes says of a taste of their own; NaN below
    `fewest` votes.

    What half of the votes says is the mean difference of features between chosen and rejected, less that of everyone:
    positive where the user departs from others in the same way again.

    Args:
      differences: features of the chosen less those of the rejected response, standardised.
      user: whose vote it is.
      num_users: U.
      fewest: votes of a user who is counted.
      splits: random halves.
      seed: of the splits.
    """
    found = np.full(num_users, np.nan)
    number, row = _qualified(user, fewest)
    if not len(row):
        return found
    rng, users = np.random.default_rng([seed, 41]), int(number.max()) + 1
    own = np.asarray(differences, np.float64)[row] - np.mean(differences, axis=0, dtype=np.float64)
    total = np.zeros(users)
    for _ in range(splits):
        one, two = np.moveaxis(_halves(own, number, users, rng), 1, 0)
        size = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        total += np.sum(one * two, axis=1) / np.where(size > 0, size, 1)
    found[np.unique(user[row])] = total / splits
    return found


def _qualified(user: Int[np.ndarray, " P"], fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """Users of enough votes numbered from 0, and the rows of these votes, user by user."""
    counts = np.bincount(user, minlength=1)
    row = np.flatnonzero(counts[user] >= max(fewest, 2)) if len(user) else np.zeros(0, np.int64)
    row = row[np.argsort(user[row], kind="stable")]
    return np.unique(user[row], return_inverse=True)[1], row


def _halves(values: np.ndarray, number: np.ndarray, users: int, rng: np.random.Generator) -> np.ndarray:
    """Means [U 2 D] of a random half of each user's votes, and of the other."""
    order = np.lexsort((rng.random(len(number)), number))
    counts = np.bincount(number, minlength=users)
    place = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    second = np.zeros(len(number), np.int64)
    second[order] = place >= (counts // 2)[number[order]]
    bucket = 2 * number + second
    size = np.bincount(bucket, minlength=2 * users)
    sums = np.zeros((2 * users, values.shape[1]))
    np.add.at(sums, bucket, values)
    return (sums / size[:, None]).reshape(users, 2, -1)


def _correlation(halves: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """For each sample of users [S U], the mean over splits of the correlation between halves [U 2]."""
    total = np.zeros(len(rows))
    for both in halves:
        one, two = (part - part.mean(axis=1, keepdims=True) for part in np.moveaxis(both[rows], 2, 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            total += np.sum(one * two, axis=1) / np.sqrt(np.sum(one**2, axis=1) * np.sum(two**2, axis=1))
    return total / len(halves)
