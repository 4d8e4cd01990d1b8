"""Draws from users' posteriors, for selecting queries where the Laplace approximation is too coarse.

Axis letters: U users, K basis, M answers kept, S draws, n pairs of a pool, F finalists.

An informative answer cuts the posterior in half, and what is left is far from Gaussian. Draws of Student's t about the
mode, with the Laplace covariance and heavier tails than the posterior, each weighted by posterior over proposal
(importance sampling; Geweke 1989), have the true moments as S grows. `select_query` then finds the pair of the largest
mutual information between its answer and the weights, H(E p) - E H(p) as in `lore_jax.online.acquisition`, with
expectations over the draws. Only the pairs that `acquisition.information` ranks first are scored this way: among all
pairs, the noise of a few hundred draws would decide.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lore_jax.online.acquisition import Choice, answers, entropy, information, mask_invalid
from lore_jax.online.sliding_window import Window
from lore_jax.weights.precision import full_matmul_precision
from pref_jax.errors import UserError

# Degrees of freedom of the proposal.
FREEDOM = 5.0
# Users whose draws are held at a time.
BLOCK = 256


class Draws(NamedTuple):
    """weights [U S K], importance_weights [U S]: each draw's part of the posterior, sums to 1."""

    weights: Array
    importance_weights: Array


@full_matmul_precision
def sample_posterior(window: Window, key: Array, count: int = 256) -> Draws:
    """`count` draws from each user's posterior: the window's base times Bradley-Terry of the answers in it.

    Draws come in opposite pairs about the mode, so an odd count is rounded up. Where no weight is finite (a base
    without an inverse) all draws count alike.

    Raises: UserError for a count below 2.
    """
    _need(count)
    keys = jax.random.split(key, len(window.belief.answers))
    return jax.vmap(lambda window, key: _sample_one(window, key, count))(window, keys)


def _need(count: int) -> None:
    if count < 2:
        raise UserError(f"draws: count {count}; give two at least")


def _sample_one(window: Window, key: Array, count: int) -> Draws:
    """`sample_posterior` for one user; unfilled places of the window are zero, which weights all draws alike."""
    belief, base, z = window.belief, window.base, window.z
    size, dtype = len(belief.weights), belief.weights.dtype
    direction, length = jax.random.split(key)
    half = jax.random.normal(direction, (-(-count // 2), size), dtype)
    half *= lax.rsqrt(jax.random.gamma(length, FREEDOM / 2, (len(half), 1), dtype) * (2 / FREEDOM))
    standard = jnp.concatenate([half, -half])
    weights = belief.weights[None] + standard @ belief.factor.T
    away = jnp.linalg.solve(base.factor, (weights - base.weights[None]).T)
    log_prior = -0.5 * jnp.sum(away**2, 0)
    margin = weights @ z.T
    if window.bounds is None:
        log_likelihood = jnp.sum(jax.nn.log_sigmoid(margin), 1)
    else:
        # Up to the interval's log width, which is the same for all draws.
        low, high = margin - window.bounds[None, :, 0], window.bounds[None, :, 1] - margin
        log_likelihood = jnp.sum(jax.nn.log_sigmoid(low) + jax.nn.log_sigmoid(high), 1)
    log_proposal = -0.5 * (FREEDOM + size) * jnp.log1p(jnp.sum(standard**2, 1) / FREEDOM)
    log_share = log_prior + log_likelihood - log_proposal
    usable = jnp.isfinite(log_share)
    share = jax.nn.softmax(jnp.where(usable, log_share, -jnp.inf))
    return Draws(weights, jnp.where(usable.any(), share, 1 / len(share)))


@full_matmul_precision
def sampled_information(
    weights: Float[Array, "S K"],
    share: Float[Array, " S"],
    z: Float[Array, "n K"],
    threshold: Float[Array, ""] | float | None = None,
) -> Float[Array, " n"]:
    """Mutual information in nats between one user's answer to each pair and the weights, over the draws.

    With a threshold the user may also say that neither is better.
    """
    if threshold is not None:
        outcomes = answers(z @ weights.T, threshold)
        mean = jnp.clip(jnp.einsum("ons,s->on", outcomes, share), 0, 1)
        return jnp.clip(entropy(mean) - entropy(outcomes) @ share, 0, math.log(3))
    likely = jax.nn.sigmoid(z @ weights.T)
    # Shares sum to 1 but for rounding, and above 1 there is no entropy.
    mean = jnp.clip(likely @ share, 0, 1)
    return jnp.clip(_entropy(mean) - _entropy(likely) @ share, 0, math.log(2))


def _entropy(likely: Array) -> Array:
    return -jax.scipy.special.xlogy(likely, likely) - jax.scipy.special.xlog1py(1 - likely, -likely)


@full_matmul_precision
def select_query(
    window: Window,
    pool: Float[Array, "*users n K"],
    open: Bool[Array, "U n"],
    key: Array,
    *,
    count: int = 256,
    finalists: int = 32,
    threshold: float | None = None,
) -> Choice:
    """The pair whose answer says most about each user's weights; see `acquisition.select_queries` for several at once.

    Args:
      window: users with their last answers.
      pool: differences of basis rewards, [n K] for all users or [U n K].
      open: true where a pair may be asked; other rows of the pool may hold anything.
      key: each user draws on their own.
      count: S, static.
      finalists: F, pairs weighed by the draws, the others by Laplace's Gaussian alone; static.
      threshold: where ties may be answered, the margin below which they are (see `bayes_filter.tie_bounds`).
    Returns: index [U 1], -1 where none is open, and score [U 1] in nats.
    Raises: UserError for an empty pool, no finalists or too few draws.
    """
    if finalists < 1 or pool.shape[-2] == 0:
        raise UserError(f"select_query: {finalists} finalists from a pool of {pool.shape[-2]}; both must be at least 1")
    _need(count)
    pool = pool.astype(window.belief.weights.dtype)

    def one(window: Window, own: Array, open: Array, key: Array) -> Choice:
        own, open = mask_invalid(own, open, window.belief.factor)
        spread = jnp.sum((own @ window.belief.factor) ** 2, -1)
        first = jnp.where(open, information(own @ window.belief.weights, spread, threshold), -1)
        _, final = lax.top_k(first, min(finalists, len(own)))
        drawn = _sample_one(window, key, count)
        found = sampled_information(drawn.weights, drawn.importance_weights, own[final], threshold)
        score = jnp.where(open[final], found, -1)
        best = jnp.argmax(score)
        there = open[final[best]]
        index = jnp.where(there, final[best], -1).astype(jnp.int32)
        return Choice(index[None], jnp.where(there, score[best], 0)[None])

    keys = jax.random.split(key, len(open))
    if pool.ndim == 2:
        return lax.map(lambda user: one(user[0], pool, *user[1:]), (window, open, keys), batch_size=BLOCK)
    return lax.map(lambda user: one(*user), (window, pool, open, keys), batch_size=BLOCK)
