"""Users' weights on a given basis from a few pairs each, solved inside jit (LoRe: arXiv 2504.14439).

Axis letters: U users, n pairs per user (padded), P pairs (flat), K basis.

With z = basis rewards of the chosen response minus those of the rejected one, and the prior w ~ N(mean, precision^-1),
`solve_weights` finds for each user

- "logistic": the minimum of sum softplus(-z.w) + 1/2 |w - mean|^2_precision, the Bradley-Terry MAP. Exact to the
  float's precision: Newton steps with a safeguard that cannot diverge, until every user's decrement vanishes
  (`lore_jax.weights.newton`).
- "ridge": the minimum of 1/2 sum (1 - z.w)^2 + 1/2 |w - mean|^2_precision. Exact: one Cholesky factor, used again for
  two refinements.
- "mixture": the posterior probabilities that the user's taste is the k-th basis reward, by Bayes' rule; exact.
- "logistic" and "ridge" over the simplex w >= 0, sum w = 1. The quadratic programmes go through an interior-point
  method with a final solve on its support: exact to the float's precision, except for coordinates whose weight and
  multiplier both vanish, where the error is about the square root of that precision.

Votes that are more than preferences are rows of other kinds (`lore_jax.weights.objective`; how ties, strengths,
rankings and ratings become such rows: `lore_jax.fitting.reading`). What is said of "logistic" and "mixture" holds for
them.

Users without pairs get the prior's mean, exactly (over the simplex, a mean outside of it is projected in the prior's
metric). All are differentiable in z, mean and precision by the implicit function theorem ("ridge" and "mixture"
directly); over the simplex wherever the support is locally constant.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lore_jax.weights.batched_cholesky import cholesky
from lore_jax.weights.newton import in_blocks, logistic_model, newton, rows
from lore_jax.weights.objective import (
    Prior,
    Problem,
    Rows,
    logistic_gradient,
    logistic_hessian,
    problem,
    ridge_gradient,
    ridge_hessian,
)
from lore_jax.weights.precision import full_matmul_precision
from lore_jax.weights.simplex_qp import project_simplex, quadratic_simplex
from pref_jax.errors import UserError

LIKELIHOODS = ("logistic", "ridge", "mixture")


class Posterior(NamedTuple):
    """Weights [U K] and covariance [U K K]: the inverse Hessian at the solution (for "logistic", Laplace's).

    Weights on the simplex come without a covariance.
    """

    weights: Array
    covariance: Any


def _blocks(linear: Callable[[Array], Array], num_users: int, size: int, dtype) -> Array:
    """The blocks [U K K] of a linear map on [U K] that does not mix users."""
    probes = jnp.broadcast_to(jnp.eye(size, dtype=dtype)[:, None, :], (size, num_users, size))
    return jnp.moveaxis(jax.vmap(linear)(probes), 0, -1)


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


def _from_better_start(problem: Problem, prior: Array) -> Array:
    """Newton's from the prior's mean [K U] or zero, whichever fits better: with huge features a wrong mean is far."""
    model = logistic_model(problem)
    zero = jnp.zeros_like(prior)
    better = (model.local(prior).value <= model.local(zero).value)[None]
    return newton(model, jnp.where(better, prior, zero))


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _minimum(problem: Problem, num_users: int, blocks: bool) -> Array:
    prior = jnp.broadcast_to(problem.mean[:, None], (len(problem.mean), num_users))
    return (in_blocks(_from_better_start, problem, prior) if blocks else _from_better_start(problem, prior)).T


@_minimum.defjvp
def _moved_minimum(num_users: int, blocks: bool, given: tuple[Problem], change: tuple[Problem]) -> tuple[Array, Array]:
    """By the implicit function theorem: the Hessian times the change is minus the gradient's change at the minimum."""
    found = _minimum(given[0], num_users, blocks)
    factor = cholesky(logistic_hessian(given[0], found))
    _, slope = jax.jvp(lambda problem: logistic_gradient(problem, found), given, change)
    if factor.lower is not None:
        # Whatever is factored at the minimum waits for this factor. On CPUs two batches of factors at a time can wait
        # for each other's threads for ever (seen with jaxlib on two cores: both calls block the pool that they need).
        found = found + 0 * factor.lower[:, :1, 0]
    return found, -factor.divide(slope)


@full_matmul_precision
def logistic_weights(problem: Problem, num_users: int, *, blocks: bool = True) -> Array:
    """MAP weights [U K], differentiable implicitly.

    In blocks of users a fit's step reads from the caches what it would read from memory again and again; one solve
    alone is twice as fast on all users at once, on all cores.
    """
    return _or_prior(problem, _minimum(problem, num_users, blocks), problem.mean)


def _logistic(problem: Problem, num_users: int) -> Posterior:
    weights = logistic_weights(problem, num_users, blocks=False)
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


def component_losses(rows: Rows) -> Array:
    """Each row's loss if the user's taste were the k-th basis reward alone: [U n K] or [P K]."""
    if rows.offset is None and rows.choice is None and rows.squared is None:
        return jax.nn.softplus(-rows.z) * rows.weight[..., None]
    margins = rows.z if rows.offset is None else rows.z + rows.offset[..., None]
    return jax.vmap(rows.losses, in_axes=-1, out_axes=-1)(margins)


def _mixture(problem: Problem, num_users: int) -> Array:
    loss = component_losses(problem.rows)
    return jax.nn.softmax(jnp.log(problem.mean + 1e-30)[None] - problem.rows.total(loss, num_users), axis=-1)


@full_matmul_precision
def solve_weights(
    z: Float[Array, "*pairs K"],
    mask: Bool[Array, "*pairs"] | Float[Array, "*pairs"] | None,
    prior: Prior,
    *,
    likelihood: str = "logistic",
    constraint: str | None = None,
    user: Int[Array, " users"] | None = None,
    num_users: int | None = None,
    offset: Float[Array, "*pairs"] | None = None,
    choice: Int[Array, "*pairs"] | None = None,
    squared: Bool[Array, "*pairs"] | None = None,
) -> Posterior:
    """Weights of every user, each from their own pairs and the prior alone; see the module for what is minimised.

    Args:
      z: differences of basis rewards, chosen minus rejected: a padded table [U n K]; a table [L n K] of lanes
        (`lore_jax.lanes`), with `user` of those beyond one per user; or [P K] with `user`.
      mask: true where a pair is real, [U n], [L n] or [P], or weights of pairs, 0 where one is not; None for all.
        Pairs that are not real may hold anything.
      prior: mean [K] and precision [K K]. For "mixture" the mean holds the basis rewards' probabilities, and the
        precision is not read.
      likelihood: one of `LIKELIHOODS`; static, as is `constraint`.
      constraint: "simplex" for w >= 0, sum w = 1; "mixture" lies there anyway.
      user: user of each further lane, ascending; or of each flat pair, in [0, num_users), in any order.
      num_users: of flat pairs, the number of users.
      offset: shaped as `mask`, added to margins.
      choice: likewise; pairs of one user and one number, in 0 .. n - 1, are one choice out of several responses and of
        one weight; with `user` those of one number, in 0 .. L n - 1 (or P - 1); -1 for a pair alone.
      squared: likewise; true where a pair loses weight / 2 (z.w + offset)^2.
    Returns: weights [U K] and covariance [U K K]; for weights on the simplex the covariance is None.
    Raises: UserError for an unknown likelihood or constraint, if the shapes fit neither form, or for an offset, choice
      or squared row under "ridge", which has preferences alone.
    Source: the few-shot adaptation of LoRe (arXiv 2504.14439), V fixed; the prior and the exact solvers are ours.

    Example:
      >>> z = jnp.array([[[1.0, 0.0]], [[0.0, -1.0]]])  # two users, one pair each, K = 2
      >>> solve_weights(z, None, Prior(jnp.zeros(2), jnp.eye(2))).weights.shape
      (2, 2)
    """
    if likelihood not in LIKELIHOODS or constraint not in (None, "simplex"):
        raise UserError(
            f"weights: likelihood {likelihood!r}, constraint {constraint!r}; give one of "
            f"{', '.join(LIKELIHOODS)} and None or 'simplex'"
        )
    extras = {"offset": offset, "choice": choice, "squared": squared}
    if likelihood == "ridge" and any(extra is not None for extra in extras.values()):
        raise UserError("weights: 'ridge' knows preferences alone; solve ties, choices and ratings by 'logistic'")
    given = problem(z, mask, prior, user, num_users, **extras)
    if likelihood == "mixture":
        return Posterior(_mixture(*given), None)
    if constraint == "simplex":
        return Posterior((_ridge_on_simplex if likelihood == "ridge" else _logistic_on_simplex)(*given), None)
    return (_ridge if likelihood == "ridge" else _logistic)(*given)
