"""Ratings as comparisons with the average response: what each rater calls average, and how far they spread.

A rating is y = a_u + b_u y~, with an offset a_u and a slope b_u of the rater's own. Both are shrunk to what raters are
like (empirical Bayes), a ~ N(mean, mean_variance) and log b ~ N(log_spread, log_spread_variance):

- of n ratings of sample variance S, log b is seen as (log S - psi(f) + log f) / 2 with variance psi'(f) / 4,
  f = (n - 1) / 2, the moments of log chi-squared; raters of one rating, or of equal ones, say nothing of it;
- a is seen as the mean rating, with variance b² / n;
- each pair of population parameters is DerSimonian and Laird's (1986), a random-effects estimate by moments.

y~ is then taken as a noisy utility: with s its scale, s y~ = m + noise, where m is the reward less the average
response's (0 after standardising) and the noise has the variance pi²/6 of a Gumbel utility, of which Bradley-Terry's
logistic noise is a difference of two. The loss 3/pi² (s y~ - m)² - log s is convex in s and m together.

Axis letters: R ratings, U raters.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy.special import digamma, polygamma

# 1 / variance of a Gumbel utility.
PRECISION = 6 / math.pi**2


class Raters(NamedTuple):
    """What raters are like: mean and variance of their offsets, and of the logs of their slopes."""

    mean: float = 0.0
    mean_variance: float = 0.0
    log_spread: float = 0.0
    log_spread_variance: float = 0.0


def _pool(seen: Float64[np.ndarray, " n"], variance: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """Mean and variance of what was seen with these error variances (DerSimonian and Laird)."""
    weight = 1 / variance
    middle = weight @ seen / weight.sum()
    excess = weight @ (seen - middle) ** 2 - (len(seen) - 1)
    between = max(0.0, excess / (weight.sum() - weight @ weight / weight.sum())) if len(seen) > 1 else 0.0
    weight = 1 / (variance + between)
    return float(weight @ seen / weight.sum()), float(between)


def _shrunk(
    mean: float, between: float, seen: Float64[np.ndarray, " U"], variance: Float64[np.ndarray, " U"]
) -> Float64[np.ndarray, " U"]:
    """Posterior means: nothing is seen where the variance is infinite."""
    share = np.where(np.isfinite(variance), between / (between + np.where(np.isfinite(variance), variance, 1)), 0)
    return mean + share * (np.where(share > 0, seen, mean) - mean)


class _Seen(NamedTuple):
    """Of each rater: ratings, their mean, the log slope as seen, and its variance (infinite: nothing seen)."""

    counts: np.ndarray
    mean: np.ndarray
    log_spread: np.ndarray
    variance: np.ndarray


def _seen(user: np.ndarray, rating: np.ndarray, num_users: int) -> _Seen:
    counts = np.bincount(user, minlength=num_users)
    mean = np.bincount(user, rating, num_users) / np.maximum(counts, 1)
    away = rating - mean[user]
    # What is equal but for rounding is equal.
    away = np.where(np.abs(away) <= 1e-6 * np.abs(mean[user]), 0, away)
    scatter = np.bincount(user, away**2, num_users)
    half = np.maximum(counts - 1, 1) / 2
    known = scatter > 0
    log_spread = 0.5 * (np.log(np.where(known, scatter / (2 * half), 1)) - digamma(half) + np.log(half))
    return _Seen(counts, mean, log_spread, np.where(known, polygamma(1, half) / 4, np.inf))


def fit_raters(user: Int[np.ndarray, " R"], rating: Float[np.ndarray, " R"]) -> Raters:
    """What the raters of some ratings are like.

    Example:
      >>> fit_raters(np.array([0, 0, 1, 1]), np.array([1.0, 3.0, 2.0, 4.0])).mean
      2.5
    """
    rating = np.asarray(rating, np.float64)
    if not len(rating):
        return Raters()
    seen = _seen(user, rating, int(np.max(user)) + 1)
    known = np.isfinite(seen.variance)
    if known.any():
        log_spread, between = _pool(seen.log_spread[known], seen.variance[known])
    else:
        # Nobody's ratings differ: what is left is how raters differ from each other.
        spread = float(rating.std())
        log_spread, between = math.log(spread) if spread > 0 else 0.0, 0.0
    spread = np.exp(_shrunk(log_spread, between, seen.log_spread, seen.variance))
    rated = seen.counts > 0
    return Raters(*_pool(seen.mean[rated], spread[rated] ** 2 / seen.counts[rated]), log_spread, between)


def standardise_ratings(
    raters: Raters,
    user: Int[np.ndarray, " R"],
    rating: Float[np.ndarray, " R"],
    *,
    known: Bool[np.ndarray, " R"] | None = None,
) -> Float64[np.ndarray, " R"]:
    """y~ of ratings: (y - a_u) / b_u, with what each rater's own ratings say of a_u and b_u.

    Args:
      raters: what raters are like.
      user: whose rating each is, from 0.
      rating: in each rater's unit.
      known: true for the ratings from which a and b are taken; None: all.

    Example:
      >>> standardise_ratings(Raters(3.0, 0.0, 0.0, 0.0), np.array([0]), np.array([5.0]))
      array([2.])
    """
    rating, user = np.asarray(rating, np.float64), np.asarray(user)
    if not len(rating):
        return rating
    which = slice(None) if known is None else known
    seen = _seen(user[which], rating[which], int(user.max()) + 1)
    spread = np.exp(_shrunk(raters.log_spread, raters.log_spread_variance, seen.log_spread, seen.variance))
    error = np.where(seen.counts > 0, spread**2 / np.maximum(seen.counts, 1), np.inf)
    offset = _shrunk(raters.mean, raters.mean_variance, seen.mean, error)
    return (rating - offset[user]) / spread[user]
