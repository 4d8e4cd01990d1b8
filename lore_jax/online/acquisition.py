"""Which pair to show a user next: the one whose answer is expected to say most about their weights.

Axis letters: U users, n pairs of a pool, K basis, B pairs selected at once.

With a user's posterior w ~ N(weights, covariance), a pair z of the pool has margin m = z.w and spread s = zᵀ covariance
z. Its score is the mutual information H(E p) - E H(p), p = sigmoid(z.w), between the answer and the weights (BALD;
Houlsby et al. 2011, arXiv 1112.5745). "random" is the baseline. D-optimality, expected variance reduction and Thompson
sampling needed more answers for the same accuracy in this project's benchmark (`lore_active`), and were removed.

Where the user may also answer that neither is better, the answer has three outcomes. Their entropy has no closed form,
and is integrated over the margin instead.

Several pairs are selected greedily: after each one the covariance shrinks by the curvature that its answer is expected
to have, whichever answer it is. The weights stay, because they move only with the answer.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from lore_jax.online.bayes_filter import GaussianPosterior, shrink
from lore_jax.weights.precision import full_matmul_precision
from pref_jax.errors import UserError
from pref_jax.likelihood import probabilities

Strategy = Literal["bald", "random"]
STRATEGIES: tuple[Strategy, ...] = ("bald", "random")
# sigmoid(x) is the sum of SHARE Phi(x / sqrt(VARIANCE)) to 5e-5, and the entropy of a coin with logit x the sum of
# HEIGHT exp(-x² / (2 VARIANCE)) to 2e-4 (nats): with both, expectations over Gaussian margins are closed forms.
# Fitted for the least largest error; after Monahan & Stefanski 1992.
CURVE_SHARES = (0.252998835, 0.584723801, 0.162277364)
CURVE_VARIANCES = (1.21461003, 2.99862737, 7.54896502)
ENTROPY_HEIGHTS = (0.164145610, 0.401059483, 0.127942088)
ENTROPY_VARIANCES = (1.39222585, 3.46381899, 8.45717632)
# Nodes and weights of expectations over a Gaussian narrower than NARROW, and of integrals from -1 to 1.
NARROW = 1.5
HERMITE: tuple[np.ndarray, np.ndarray] = np.polynomial.hermite_e.hermegauss(24)
LEGENDRE = np.polynomial.legendre.leggauss(64)


class Choice(NamedTuple):
    """Pairs in the order of selection: index [U B] into the pool, -1 where none was left; score [U B], 0 there."""

    index: Array
    score: Array


def _lead(values: tuple[float, ...], like: Array) -> Array:
    """Values of the components on an axis before those of `like`."""
    return jnp.asarray(values, like.dtype).reshape(-1, *[1] * like.ndim)


def expected_curvature(margin: Float[Array, "*pairs"], spread: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """E p (1 - p), p = sigmoid(t), t ~ N(margin, spread): the slope of E p in the margin; to 1e-3."""
    narrow = lax.rsqrt(_lead(CURVE_VARIANCES, margin) + spread[None])
    density = jnp.exp(-((margin[None] * narrow) ** 2) / 2) * narrow / math.sqrt(2 * math.pi)
    return jnp.sum(_lead(CURVE_SHARES, margin) * density, 0)


def answers(margin: Float[Array, "*pairs"], threshold: Float[Array, ""] | float) -> Float[Array, "3 *pairs"]:
    """P of each answer, the first, neither, the second, at margins, where ties lie within the threshold."""
    return jnp.moveaxis(probabilities(margin, jnp.asarray(threshold, margin.dtype)[None], ties=True), -1, 0)


def entropy(likely: Float[Array, "3 *pairs"]) -> Float[Array, "*pairs"]:
    """In nats, of outcomes on the first axis."""
    return -jnp.sum(jax.scipy.special.xlogy(likely, likely), 0)


def _expected(
    value: Callable[[Array], Array], margin: Array, spread: Array, threshold: Float[Array, ""] | float
) -> Array:
    """E value(t), t ~ N(margin, spread), of a value that vanishes but for margins within 16 of the threshold's.

    By Hermite's nodes where the Gaussian is narrower than what it averages, else by Legendre's over where that is.
    """

    def lead(nodes: Array) -> Array:
        return nodes.reshape(-1, *[1] * margin.ndim)

    deviation = jnp.sqrt(spread)
    nodes, shares = (jnp.asarray(x, margin.dtype) for x in HERMITE)
    narrow = jnp.tensordot(shares, value(margin[None] + deviation[None] * lead(nodes)), 1) / math.sqrt(2 * math.pi)
    nodes, shares = (jnp.asarray(x, margin.dtype) for x in LEGENDRE)
    reach = jnp.asarray(threshold, margin.dtype) + 16
    points = lead(reach * nodes)
    wide = jnp.maximum(deviation, NARROW)[None]
    density = jnp.exp(-0.5 * ((points - margin[None]) / wide) ** 2) / (wide * math.sqrt(2 * math.pi))
    return jnp.where(deviation < NARROW, narrow, jnp.tensordot(reach * shares, value(points) * density, 1))


def _three_outcomes(margin: Array, spread: Array, threshold: Float[Array, ""] | float) -> Array:
    """`information` of an answer that may be a tie."""
    narrow = lax.rsqrt(_lead(CURVE_VARIANCES, margin) + spread[None])
    shares = _lead(CURVE_SHARES, margin)
    first, second = (
        jnp.sum(shares * jax.scipy.special.ndtr((sign * margin[None] - threshold) * narrow), 0) for sign in (1, -1)
    )
    total = entropy(jnp.stack([first, jnp.clip(1 - first - second, 0), second]))
    known = _expected(lambda t: entropy(answers(t, threshold)), margin, spread, threshold)
    return jnp.clip(total - known, 0, math.log(3))


def _tied_curvature(margin: Array, spread: Array, threshold: Float[Array, ""] | float) -> Array:
    """`expected_curvature` of an answer that may be a tie, over the answers too."""

    def bend(t: Array) -> Array:
        first, _, second = answers(t, threshold)
        upper, lower = jax.nn.sigmoid(t - threshold), jax.nn.sigmoid(t + threshold)
        return upper * (1 - upper) * (1 - second) + lower * (1 - lower) * (1 - first)

    return _expected(bend, margin, spread, threshold)


def information(
    margin: Float[Array, "*pairs"],
    spread: Float[Array, "*pairs"],
    threshold: Float[Array, ""] | float | None = None,
) -> Float[Array, "*pairs"]:
    """Mutual information in nats between the answer and the weights, H(E p) - E H(p); to 1e-3.

    With a threshold the answer may be a tie: of three outcomes.
    """
    if threshold is not None:
        return _three_outcomes(margin, spread, threshold)
    narrow = lax.rsqrt(_lead(CURVE_VARIANCES, margin) + spread[None])
    # The smaller of E p and 1 - E p: it keeps its digits.
    tails = jax.scipy.special.ndtr(-jnp.abs(margin)[None] * narrow)
    unlikely = jnp.sum(_lead(CURVE_SHARES, margin) * tails, 0)
    total = -jax.scipy.special.xlogy(unlikely, unlikely) - (1 - unlikely) * jnp.log1p(-unlikely)
    variances = _lead(ENTROPY_VARIANCES, margin)
    narrow = lax.rsqrt(variances + spread[None])
    bells = jnp.sqrt(variances) * narrow * jnp.exp(-((margin[None] * narrow) ** 2) / 2)
    return jnp.clip(total - jnp.sum(_lead(ENTROPY_HEIGHTS, margin) * bells, 0), 0)


def mask_invalid(
    pool: Float[Array, "n K"], open: Bool[Array, " n"], factor: Float[Array, "K K"]
) -> tuple[Float[Array, "n K"], Bool[Array, " n"]]:
    """The pool with zeros, and not open, where a pair is not open or cannot be learned from.

    Such rows may hold anything. From a pair whose spread under the belief's factor overflows nothing is learned
    (`lore_jax.online.bayes_filter`), nor from one that is not finite.
    """
    open = open & jnp.isfinite(jnp.sum((pool @ factor) ** 2, -1))
    return jnp.where(open[:, None], pool, 0), open


def _select_one(weights, factor, pool, open, key, strategy: Strategy, count: int, threshold) -> Choice:
    """`select_queries` for one user."""
    pool, open = mask_invalid(pool, open, factor)
    margin = pool @ weights

    def pick(carry, key):
        factor, open = carry
        spread = jnp.sum((pool @ factor) ** 2, -1)
        bald = strategy == "bald"
        score = information(margin, spread, threshold) if bald else jax.random.uniform(key, margin.shape, margin.dtype)
        best = jnp.argmax(jnp.where(open, score, -jnp.inf))
        found = open[best]
        here = margin[best], spread[best]
        bend = expected_curvature(*here) if threshold is None else _tied_curvature(*here, threshold)
        curvature = jnp.where(found, bend, 0)
        factor = shrink(factor[None], (pool[best] @ factor)[None], curvature[None])[0][0]
        choice = Choice(jnp.where(found, best, -1).astype(jnp.int32), jnp.where(found, score[best], 0))
        return (factor, open.at[best].set(False)), choice

    return lax.scan(pick, (factor, open), jax.random.split(key, count))[1]


@full_matmul_precision
def select_queries(
    belief: GaussianPosterior,
    pool: Float[Array, "*users n K"],
    open: Bool[Array, "U n"],
    key: Array,
    *,
    strategy: Strategy = "bald",
    count: int = 1,
    threshold: float | None = None,
) -> Choice:
    """The next `count` pairs for each user, best first.

    Args:
      belief: of U users.
      pool: differences of basis rewards, [n K] for all users or [U n K]; which response comes first does not matter.
      open: true where a pair may be shown: not shown before, not padding. Other rows of the pool may hold anything.
      key: for "random"; each user has their own draws.
      strategy: "bald" or "random"; static, as is `count`.
      threshold: where ties may be answered, the margin below which they are (see `bayes_filter.tie_bounds`).
    Returns: indices without repetition, and scores. Of equal scores the first pair wins; where fewer than `count` pairs
      are open the last indices are -1.
    Raises: UserError for an unknown strategy, an empty pool or a count below 1.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"strategy: {strategy!r}; give one of {', '.join(STRATEGIES)}")
    if count < 1 or pool.shape[-2] == 0:
        raise UserError(f"select_queries: count {count} from a pool of {pool.shape[-2]}; both must be at least 1")

    def one(weights, factor, pool, open, key):
        return _select_one(weights, factor, pool, open, key, strategy, count, threshold)

    keys = jax.random.split(key, len(open))
    return jax.vmap(one, in_axes=(0, 0, 0 if pool.ndim == 3 else None, 0, 0))(
        belief.weights, belief.factor, pool.astype(belief.weights.dtype), open, keys
    )
