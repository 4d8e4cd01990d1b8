"""A user's weights from a few pairs, solved inside jit (DESIGN 4.4).

Axis letters: U users, n pairs a user (padded), P pairs (flat), K basis.

With z = basis rewards of the chosen response minus those of the rejected one, and the prior w ~ N(mean, precision^-1):

- `ridge`: the minimum of 1/2 sum (1 - z.w)^2 + 1/2 |w - mean|^2_precision. Exact: one Cholesky factor, used
  again for two refinements.
- `logistic`: the minimum of sum softplus(-z.w) + 1/2 |w - mean|^2_precision, the MAP. Exact to the float's precision:
  Newton steps with a safeguard that cannot diverge, until every user's decrement vanishes (`lore_jax.weights.newton`).
- `ridge_simplex`, `logistic_simplex`: the same minima over w >= 0, sum w = 1. The quadratic programmes go through an
  interior-point method with a final solve on its support: exact to the float's precision, but for coordinates whose
  weight and multiplier both vanish, where the error is about the square root of that precision.
- `mixture`: Bayes' rule over K tastes; exact.

Users without pairs get the prior's mean, exactly (on the simplex, a mean outside comes back projected in the prior's
metric). All are differentiable in z, mean and precision by the implicit function theorem (`lax.custom_root`; `ridge`
and `mixture` directly); the simplex ones wherever the support is locally constant. Pairs come as a padded table
`z [U n K]` with `mask [U n]`, or flat, `z [P K]` with `user [P]` in any order, for rows too uneven to pad.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lore_jax.weights.batched_cholesky import cholesky
from lore_jax.weights.newton import Model, logistic_model, newton, rows
from lore_jax.weights.objective import (
    Prior,
    Problem,
    logistic_gradient,
    logistic_hessian,
    problem,
    ridge_gradient,
    ridge_hessian,
)
from lore_jax.weights.precision import full_matmul_precision
from lore_jax.weights.simplex_qp import project_simplex, quadratic_simplex

Mask = Bool[Array, "*pairs"] | None


class Posterior(NamedTuple):
    """Weights [U K] and covariance [U K K]: the inverse Hessian at the solution (for logistic, Laplace's)."""

    weights: Array
    covariance: Array


def _blocks(linear: Callable[[Array], Array], num_users: int, size: int, dtype) -> Array:
    """The blocks [U K K] of a linear map on [U K] that does not mix users."""
    probes = jnp.broadcast_to(jnp.eye(size, dtype=dtype)[:, None, :], (size, num_users, size))
    return jnp.moveaxis(jax.vmap(linear)(probes), 0, -1)


def _hessian_solve(linear: Callable[[Array], Array], right: Array) -> Array:
    return cholesky(_blocks(linear, right.shape[0], right.shape[1], right.dtype)).divide(right)


def _projected_solve(linear: Callable[[Array], Array], right: Array) -> Array:
    blocks = _blocks(linear, right.shape[0], right.shape[1], right.dtype)
    # Singular to the float's precision (collinear huge features): no direction moves the solution.
    # The trial stands apart from `right`, in which this function has to stay linear.
    trial = jnp.linalg.solve(blocks, jnp.ones_like(right)[..., None])[..., 0]
    sound = jnp.all(jnp.isfinite(trial), -1)[:, None]
    blocks = jnp.where(sound[..., None], blocks, jnp.eye(right.shape[1], dtype=right.dtype)[None])
    return jnp.linalg.solve(blocks, jnp.where(sound, right, 0)[..., None])[..., 0]


def _or_prior(problem: Problem, weights: Array, fallback: Array) -> Array:
    counts = problem.rows.total(problem.rows.weight, len(weights))
    return jnp.where((counts > 0)[:, None], weights, fallback[None])


def _ridge(problem: Problem, num_users: int) -> Posterior:
    factor = cholesky(ridge_hessian(problem, num_users))
    prior = jnp.broadcast_to(problem.mean, (num_users, len(problem.mean)))
    weights = prior - factor.divide(ridge_gradient(problem, prior))
    for _ in range(2):
        weights = weights - factor.divide(ridge_gradient(problem, weights))
    return Posterior(_or_prior(problem, weights, problem.mean), factor.inverse())


def _better_start(model: Model, mean: Array, num_users: int) -> Array:
    """[K U]: the prior's mean or zero, whichever fits better: with huge features a wrong mean is a far start."""
    prior = jnp.broadcast_to(mean[:, None], (len(mean), num_users))
    zero = jnp.zeros_like(prior)
    return jnp.where((model.local(prior).value <= model.local(zero).value)[None], prior, zero)


@full_matmul_precision
def logistic_weights(problem: Problem, num_users: int) -> Array:
    """MAP weights [U K], differentiable implicitly."""

    model = logistic_model(problem)

    def solve(_, start: Array) -> Array:
        return newton(model, start.T).T

    start = lax.stop_gradient(_better_start(model, problem.mean, num_users).T)
    weights = lax.custom_root(lambda w: logistic_gradient(problem, w), start, solve, _hessian_solve)
    return _or_prior(problem, weights, problem.mean)


def _logistic(problem: Problem, num_users: int) -> Posterior:
    weights = logistic_weights(problem, num_users)
    return Posterior(weights, cholesky(logistic_hessian(problem, weights)).inverse())


def _on_simplex(problem: Problem, num_users: int, gradient_of, solve) -> Array:
    """A simplex solver with implicit derivatives (of w = project(w - gradient / scale)); empty users get the prior."""
    scale = lax.stop_gradient(
        jnp.diagonal(ridge_hessian(problem, num_users), axis1=-2, axis2=-1).max(-1, keepdims=True)
    )

    def residual(weights):
        return weights - project_simplex(weights - gradient_of(problem, weights) / scale)

    size = len(problem.mean)
    start = jnp.full((num_users, size), 1 / size, problem.mean.dtype)
    weights = lax.custom_root(residual, start, lambda _, begin: solve(begin), _projected_solve)
    # A mean on the simplex comes back exactly; another one is brought there by the prior's own metric, as solved.
    inside = jnp.all(problem.mean >= 0) & (jnp.abs(problem.mean.sum() - 1) < 1e-6)
    return jnp.where(inside, _or_prior(problem, weights, problem.mean), weights)


def _ridge_on_simplex(problem: Problem, num_users: int) -> Array:
    def solve(start):
        return quadratic_simplex(ridge_hessian(problem, num_users), ridge_gradient(problem, start), start)

    return _on_simplex(problem, num_users, ridge_gradient, solve)


def _logistic_on_simplex(problem: Problem, num_users: int) -> Array:
    model = rows(problem)

    def aim(weights, here):
        return quadratic_simplex(here.hessian, here.gradient.T, weights.T).T - weights

    def solve(start):
        return newton(model._replace(aim=aim), start.T).T

    return _on_simplex(problem, num_users, logistic_gradient, solve)


@full_matmul_precision
def ridge(
    z: Float[Array, "*pairs K"],
    mask: Mask,
    prior: Prior,
    *,
    user: Int[Array, " P"] | None = None,
    num_users: int | None = None,
) -> Posterior:
    """Minimum of 1/2 sum (1 - z.w)^2 + 1/2 |w - mean|^2_precision for each user; exact (one Cholesky factor).

    Args:
      z: differences of basis rewards, chosen minus rejected, [U n K], or [P K] with `user`.
      mask: true where a pair is real, [U n] or [P]; None for all.
      prior: mean [K] and precision [K K].
      user: user of each flat pair, in [0, num_users), any order.
      num_users: with `user`, the number of users.
    Returns: weights [U K] and posterior covariance [U K K] (unit noise).
    Raises: UserError if the shapes fit neither form.
    Source: DESIGN 4.4 (a).
    """
    return _ridge(*problem(z, mask, prior, user, num_users))


@full_matmul_precision
def logistic(
    z: Float[Array, "*pairs K"],
    mask: Mask,
    prior: Prior,
    *,
    user: Int[Array, " P"] | None = None,
    num_users: int | None = None,
) -> Posterior:
    """Minimum of sum softplus(-z.w) + 1/2 |w - mean|^2_precision for each user, the Bradley-Terry MAP; exact.

    Arguments as `ridge`. Returns weights [U K] and the Laplace covariance [U K K]. Source: DESIGN 4.4 (b).
    """
    return _logistic(*problem(z, mask, prior, user, num_users))


@full_matmul_precision
def ridge_simplex(
    z: Float[Array, "*pairs K"],
    mask: Mask,
    prior: Prior,
    *,
    user: Int[Array, " P"] | None = None,
    num_users: int | None = None,
) -> Float[Array, "U K"]:
    """`ridge` restricted to w >= 0, sum w = 1; exact. As `ridge`; returns weights [U K]. Source: DESIGN 4.4 (c)."""
    return _ridge_on_simplex(*problem(z, mask, prior, user, num_users))


@full_matmul_precision
def logistic_simplex(
    z: Float[Array, "*pairs K"],
    mask: Mask,
    prior: Prior,
    *,
    user: Int[Array, " P"] | None = None,
    num_users: int | None = None,
) -> Float[Array, "U K"]:
    """`logistic` restricted to w >= 0, sum w = 1; exact. As `ridge`; returns weights [U K]. Source: DESIGN 4.4 (c)."""
    return _logistic_on_simplex(*problem(z, mask, prior, user, num_users))


@full_matmul_precision
def mixture(
    z: Float[Array, "*pairs K"],
    mask: Mask,
    log_prior: Float[Array, " K"],
    *,
    user: Int[Array, " P"] | None = None,
    num_users: int | None = None,
) -> Float[Array, "U K"]:
    """Posterior probabilities [U K] that a user's taste is the k-th basis reward; exact, a point of the simplex.

    Proportional to prior_k * product over the user's pairs of sigmoid(z_k). Otherwise as `ridge`.
    """
    prior = Prior(jnp.zeros_like(log_prior), jnp.eye(len(log_prior), dtype=log_prior.dtype))
    given, users = problem(z, mask, prior, user, num_users)
    loss = jax.nn.softplus(-given.rows.z) * given.rows.weight[..., None]
    return jax.nn.softmax(log_prior[None] - given.rows.total(loss, users), axis=-1)
