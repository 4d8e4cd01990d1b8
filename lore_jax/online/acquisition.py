"""Which pair to show a user next: the one whose answer tells most.

Axis letters: U users, n pairs of a pool, K basis, B pairs asked at once.

With a user's belief w ~ N(weights, covariance), a pair z of the pool has margin m = z.w and spread s = zᵀ covariance z:

- "bald": what the answer tells of w, the mutual information H(E p) - E H(p), p = sigmoid(z.w) (BALD; Houlsby et
  al. 2011). At most log 2, as an answer is: a pair whose outcome is wide open is not thought to tell more.
- "d_optimal": half the gain in log det of the precision, 1/2 log(1 + c s), c = the expected curvature E p (1 - p).
- "boundary": how much the answer lowers the variance of the margins of the pool's other pairs, those counted most whose
  order is least sure: the pairs that a wrong weight would get wrong.
- "thompson": one w' is drawn from the belief, then 1/2 log(1 + p (1 - p) s) with p = sigmoid(z.w').
- "random": the baseline.

Several pairs are chosen greedily: after each the covariance shrinks by the curvature that its answer is expected to
have, whichever it will be. The weights stay, for they move only with the answer.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lore_jax.online.bayes_filter import GaussianPosterior, shrink
from lore_jax.weights.precision import full_matmul_precision
from pref_jax.errors import UserError

Strategy = Literal["bald", "d_optimal", "boundary", "thompson", "random"]
# sigmoid(x) is the sum of SHARE Phi(x / sqrt(VARIANCE)) to 5e-5, and the entropy of a coin with logit x the sum of
# HEIGHT exp(-x² / (2 VARIANCE)) to 2e-4 (nats): with both, expectations over Gaussian margins are closed forms.
# Fitted for the least largest error; after Monahan & Stefanski 1992.
CURVE_SHARES = (0.252998835, 0.584723801, 0.162277364)
CURVE_VARIANCES = (1.21461003, 2.99862737, 7.54896502)
ENTROPY_HEIGHTS = (0.164145610, 0.401059483, 0.127942088)
ENTROPY_VARIANCES = (1.39222585, 3.46381899, 8.45717632)


class Choice(NamedTuple):
    """Pairs in the order of choice: index [U B] into the pool, -1 where none was left; score [U B] of each, 0 there."""

    index: Array
    score: Array


class _Case(NamedTuple):
    """One user before one choice: weights [K], factor [K K], pool [n K], open [n], margin and spread [n], key."""

    weights: Array
    factor: Array
    pool: Array
    open: Array
    margin: Array
    spread: Array
    key: Array


def _lead(values: tuple[float, ...], like: Array) -> Array:
    """Values of the components on an axis before those of `like`."""
    return jnp.asarray(values, like.dtype).reshape(-1, *[1] * like.ndim)


def expected_curvature(margin: Float[Array, "*pairs"], spread: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """E p (1 - p), p = sigmoid(t), t ~ N(margin, spread): the slope of E p in the margin; to 1e-3."""
    narrow = lax.rsqrt(_lead(CURVE_VARIANCES, margin) + spread[None])
    density = jnp.exp(-((margin[None] * narrow) ** 2) / 2) * narrow / math.sqrt(2 * math.pi)
    return jnp.sum(_lead(CURVE_SHARES, margin) * density, 0)


def information(margin: Float[Array, "*pairs"], spread: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """Mutual information in nats between the answer and the weights, H(E p) - E H(p); to 1e-3."""
    narrow = lax.rsqrt(_lead(CURVE_VARIANCES, margin) + spread[None])
    # The smaller of E p and 1 - E p: it keeps its digits.
    tails = jax.scipy.special.ndtr(-jnp.abs(margin)[None] * narrow)
    unlikely = jnp.sum(_lead(CURVE_SHARES, margin) * tails, 0)
    total = -jax.scipy.special.xlogy(unlikely, unlikely) - (1 - unlikely) * jnp.log1p(-unlikely)
    variances = _lead(ENTROPY_VARIANCES, margin)
    narrow = lax.rsqrt(variances + spread[None])
    bells = jnp.sqrt(variances) * narrow * jnp.exp(-((margin[None] * narrow) ** 2) / 2)
    return jnp.clip(total - jnp.sum(_lead(ENTROPY_HEIGHTS, margin) * bells, 0), 0)


def _informative(case: _Case) -> Array:
    return information(case.margin, case.spread)


def _d_optimal(case: _Case) -> Array:
    return 0.5 * jnp.log1p(expected_curvature(case.margin, case.spread) * case.spread)


def _boundary(case: _Case) -> Array:
    """c zᵀ C M C z / (1 + c s), C the covariance, M the sum over the pool of density(order is a tie) z zᵀ / sqrt(s)."""
    spread = jnp.maximum(case.spread, jnp.finfo(case.spread.dtype).tiny)
    # A normal density of the margin at 0, over the root of s: large where one answer may turn the order.
    weight = jnp.where(case.spread > 0, jnp.exp(-(case.margin**2) / (2 * spread)) / spread, 0)
    pulled = case.pool @ case.factor
    inner = (pulled * weight[:, None]).T @ pulled
    curvature = expected_curvature(case.margin, case.spread)
    return curvature * jnp.sum((pulled @ inner) * pulled, -1) / (1 + curvature * case.spread)


def _thompson(case: _Case) -> Array:
    drawn = case.weights + case.factor @ jax.random.normal(case.key, case.weights.shape, case.weights.dtype)
    margin = case.pool @ drawn
    return 0.5 * jnp.log1p(jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin) * case.spread)


def _random(case: _Case) -> Array:
    return jax.random.uniform(case.key, case.margin.shape, case.margin.dtype)


_SCORES: dict[str, Callable[[_Case], Array]] = {
    "bald": _informative,
    "d_optimal": _d_optimal,
    "boundary": _boundary,
    "thompson": _thompson,
    "random": _random,
}


def mask_invalid(
    pool: Float[Array, "n K"], open: Bool[Array, " n"], factor: Float[Array, "K K"]
) -> tuple[Float[Array, "n K"], Bool[Array, " n"]]:
    """The pool with zeros, and not open, where a pair is not open or cannot be learned from.

    Such rows may hold anything. From a pair whose spread under the belief's factor overflows nothing is learned
    (`lore_jax.online.bayes_filter`), nor from one that is not finite.
    """
    open = open & jnp.isfinite(jnp.sum((pool @ factor) ** 2, -1))
    return jnp.where(open[:, None], pool, 0), open


def _choose_one(weights, factor, pool, open, key, strategy: str, count: int) -> Choice:
    """`choose` for one user."""
    pool, open = mask_invalid(pool, open, factor)
    margin = pool @ weights

    def pick(carry, key):
        factor, open = carry
        spread = jnp.sum((pool @ factor) ** 2, -1)
        score = _SCORES[strategy](_Case(weights, factor, pool, open, margin, spread, key))
        best = jnp.argmax(jnp.where(open, score, -jnp.inf))
        found = open[best]
        curvature = jnp.where(found, expected_curvature(margin[best], spread[best]), 0)
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
) -> Choice:
    """The next `count` pairs for each user, best first.

    Args:
      belief: of U users.
      pool: differences of basis rewards, [n K] for everybody or [U n K]; which response comes first does not matter.
      open: true where a pair may be asked: not asked before, not padding. Other rows of the pool may hold anything.
      key: for "thompson" and "random"; each user draws on their own.
      strategy: see the module; static, as is `count`.
    Returns: indices without repetition, and scores. Of equal scores the first pair wins; where fewer than `count` pairs
      are open the last indices are -1.
    Raises: UserError for an unknown strategy, an empty pool or a count below 1.
    """
    if strategy not in _SCORES:
        raise UserError(f"strategy: {strategy!r}; give one of {', '.join(_SCORES)}")
    if count < 1 or pool.shape[-2] == 0:
        raise UserError(f"choose: count {count} from a pool of {pool.shape[-2]}; both must be at least 1")

    def one(weights, factor, pool, open, key):
        return _choose_one(weights, factor, pool, open, key, strategy, count)

    keys = jax.random.split(key, len(open))
    return jax.vmap(one, in_axes=(0, 0, 0 if pool.ndim == 3 else None, 0, 0))(
        belief.weights, belief.factor, pool.astype(belief.weights.dtype), open, keys
    )
