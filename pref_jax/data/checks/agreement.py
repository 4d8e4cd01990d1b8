"""How far people agree with one another and with themselves, from votes as numbers.

Axis letters: P votes, U users.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

HALVINGS = 20


class Agreement(NamedTuple):
    """Of votes on things that two people or more decided on.

    Attributes:
      votes: how many there are.
      items: on how many things.
      agree: probability that two people who decided on the same thing agree; NaN without such votes.
      ceiling: what no reward that is the same for all can exceed on them, see `agreement`; NaN likewise.
    """

    votes: int
    items: int
    agree: float
    ceiling: float


class SplitHalf(NamedTuple):
    """Whether what a user's votes show in one half of them shows in the other.

    Attributes:
      users: with enough votes.
      r: mean over halvings of the correlation, over users, of the two halves' means; NaN where there is none.
      low, high: 95 % interval by Fisher's transformation; NaN likewise.
      reliability: of the mean of all of a user's votes, 2 r / (1 + r) (Spearman and Brown, 1910); NaN likewise.
    """

    users: int
    r: float
    low: float
    high: float
    reliability: float


class Opposite(NamedTuple):
    """Repeated judgements of one pair by one user: rows beyond the first, and pairs on which the user differs."""

    repeated: int
    opposite: int


def agreement(item: Int[np.ndarray, "P"], sign: Int[np.ndarray, "P"]) -> Agreement:
    """How often two people agree, and what that leaves to a shared reward.

    Of n decisions on an item, k one way, k (k - 1) + (n - k)(n - k - 1) of the n (n - 1) pairs of people agree. Items
    weigh by their votes. If people choose one side of an item with probability p, then A = 1/2 + E (2p - 1)² / 2, and
    the best shared reward is right with probability 1/2 + E |2p - 1| / 2, at most (1 + sqrt(2 A - 1)) / 2.

    Args:
      item: what was decided on, such as the number of a pair of responses.
      sign: 1 or -1, which side was taken.
    """
    number = np.unique(item, return_inverse=True)[1].reshape(-1)
    count = np.bincount(number).astype(np.float64)
    first = np.bincount(number, weights=sign > 0)
    several = count > 1
    n, k = count[several], first[several]
    if not len(n):
        return Agreement(0, 0, np.nan, np.nan)
    same = (k * (k - 1) + (n - k) * (n - k - 1)) / (n - 1)
    agree = float(same.sum() / n.sum())
    return Agreement(int(n.sum()), len(n), agree, 0.5 + 0.5 * max(2 * agree - 1, 0.0) ** 0.5)


def split_half(
    user: Int[np.ndarray, "P"],
    value: Float[np.ndarray, "P"],
    *,
    least: int,
    seed: int,
    halvings: int = HALVINGS,
) -> SplitHalf:
    """Halves every user's votes at random, several times, and correlates the means of the halves over users.

    Args:
      user: number of each vote's user.
      value: what the vote shows, such as 1 where the longer response was chosen and -1 where the shorter was.
      least: users with fewer votes are left out; 2 or more.
      seed: of the halvings.
      halvings: how many.
    """
    number, counts = np.unique(user, return_inverse=True, return_counts=True)[1:]
    keep = counts[number.reshape(-1)] >= max(least, 2)
    number, value = number.reshape(-1)[keep], np.asarray(value, np.float64)[keep]
    users = int((counts >= max(least, 2)).sum())
    number = np.unique(number, return_inverse=True)[1].reshape(-1)
    rng, found = np.random.default_rng(seed), []
    size = np.bincount(number, minlength=users)
    for _ in range(halvings if users > 2 else 0):
        order = np.lexsort((rng.random(len(number)), number))
        half = np.empty(len(number), np.int64)
        half[order] = (np.arange(len(number)) - np.repeat(np.cumsum(size) - size, size)) % 2
        means = [
            np.bincount(number, weights=value * (half == side), minlength=users)
            / np.bincount(number, weights=half == side, minlength=users)
            for side in (0, 1)
        ]
        first, second = (mean - mean.mean() for mean in means)
        if min(np.abs(first).max(), np.abs(second).max()) > 1e-12:
            found.append(first @ second / np.sqrt((first @ first) * (second @ second)))
    r = float(np.mean(found)) if found else np.nan
    if not found:
        return SplitHalf(users, r, r, r, r)
    edge = special.ndtri(0.975) / np.sqrt(users - 3) if users > 3 else np.inf
    middle = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    low, high = np.tanh([middle - edge, middle + edge])
    return SplitHalf(users, r, float(low), float(high), 2 * r / (1 + r) if r > -1 else np.nan)


def opposite_votes(user: Int[np.ndarray, "P"], item: Int[np.ndarray, "P"], sign: Int[np.ndarray, "P"]) -> Opposite:
    """Repeated judgements, and those in which one user chose both ways.

    Args:
      user: number of each vote's user.
      item: number of the unordered pair.
      sign: 1 or -1 for the side that was taken, 0 for neither.
    """
    own = np.unique(np.stack([user, item]), axis=1, return_inverse=True)[1].reshape(-1)
    count = np.bincount(own)
    sides = [np.bincount(own, weights=sign == side) > 0 for side in (1, -1)]
    return Opposite(int((count - 1).sum()), int((sides[0] & sides[1]).sum()))
