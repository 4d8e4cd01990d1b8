"""What the few-shot solvers minimise: pairs, prior, value, gradient and Hessian.

Axis letters: U users, n pairs per user (padded), P pairs (flat), K basis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pref_jax.errors import UserError


class Rows(NamedTuple):
    """Pairs of many users: `z [U n K]`, `weight [U n]`, `user` None; or flat: `z [P K]`, `weight [P]`, `user [P]`.

    `offset`, shaped as `weight`, is a part of the margins that no weight moves; None for none.
    """

    z: Array
    weight: Array
    user: Array | None
    offset: Array | None = None

    def margins(self, weights: Array) -> Array:
        """z.w (+ offset) for every pair, [U n] or [P], from weights [U K]."""
        if self.user is None:
            margins = jnp.einsum("unk,uk->un", self.z, weights)
        else:
            margins = jnp.einsum("pk,pk->p", self.z, weights[self.user])
        return margins if self.offset is None else margins + self.offset

    def total(self, values: Array, num_users: int) -> Array:
        """Sum over each user's pairs: [U n ...] or [P ...] -> [U ...]."""
        if self.user is None:
            return values.sum(1)
        return jax.ops.segment_sum(values, self.user, num_users)

    def largest(self, values: Array, num_users: int) -> Array:
        """Largest non-negative value among each user's pairs, 0 for none: [U n] or [P] -> [U]."""
        if self.user is None:
            return values.max(1, initial=0.0)
        return jax.ops.segment_max(values, self.user, num_users).clip(0)

    def gram(self, curvature: Array, num_users: int) -> Array:
        """Sum over each user's pairs of curvature * z zᵀ: [U K K]."""
        if self.user is None:
            return jnp.einsum("unk,unl->ukl", self.z * curvature[..., None], self.z)
        outer = self.z[:, :, None] * (self.z * curvature[:, None])[:, None, :]
        return jax.ops.segment_sum(outer, self.user, num_users)

    def pull(self, force: Array, num_users: int) -> Array:
        """Sum over each user's pairs of force * z: [U K]."""
        if self.user is None:
            return jnp.einsum("unk,un->uk", self.z, force)
        return jax.ops.segment_sum(self.z * force[:, None], self.user, num_users)


class Problem(NamedTuple):
    """Everything a solve depends on: pairs and prior."""

    rows: Rows
    mean: Array
    precision: Array


class Prior(NamedTuple):
    """Gaussian prior of weights: mean [K] and precision [K K] (symmetric, positive definite)."""

    mean: Array
    precision: Array


def problem(
    z: Array, mask: Array | None, prior: Prior, user: Array | None = None, num_users: int | None = None
) -> tuple[Problem, int]:
    """The problem and its number of users from the arguments of `lore_jax.weights.solve.solve_weights`."""
    if (user is None) != (z.ndim == 3) or (user is not None and num_users is None):
        raise UserError(
            f"weights: pairs of shape {z.shape} with user={'given' if user is not None else None}; "
            "give z [U n K] alone, or z [P K] with user [P] and num_users"
        )
    weight = jnp.ones(z.shape[:-1], z.dtype) if mask is None else mask.astype(z.dtype)
    # Padding may hold anything, NaN included: only a zero in z itself keeps it out of every sum.
    z = jnp.where((weight > 0)[..., None], z, 0)
    mean, precision = jnp.asarray(prior.mean, z.dtype), jnp.asarray(prior.precision, z.dtype)
    return Problem(Rows(z, weight, user), mean, precision), z.shape[0] if user is None else int(num_users or 0)


def _pulled(problem: Problem, weights: Array) -> Array:
    return jnp.einsum("kl,ul->uk", problem.precision, weights - problem.mean[None])


def ridge_gradient(problem: Problem, weights: Array) -> Array:
    """Gradient [U K] of 1/2 sum (1 - z.w)^2 plus the prior's term."""
    force = problem.rows.weight * (1 - problem.rows.margins(weights))
    return _pulled(problem, weights) - problem.rows.pull(force, len(weights))


def ridge_hessian(problem: Problem, num_users: int) -> Array:
    """Its Hessian [U K K]."""
    return problem.rows.gram(problem.rows.weight, num_users) + problem.precision[None]


def logistic_gradient(problem: Problem, weights: Array) -> Array:
    """Gradient [U K] of `logistic_objective`."""
    force = problem.rows.weight * jax.nn.sigmoid(-problem.rows.margins(weights))
    return _pulled(problem, weights) - problem.rows.pull(force, len(weights))


def logistic_hessian(problem: Problem, weights: Array) -> Array:
    """Hessian [U K K] of `logistic_objective`."""
    margins = problem.rows.margins(weights)
    # Not p * (1 - p): that loses its digits where p rounds to 1.
    curvature = problem.rows.weight * jax.nn.sigmoid(margins) * jax.nn.sigmoid(-margins)
    return problem.rows.gram(curvature, len(weights)) + problem.precision[None]


def logistic_objective(problem: Problem, weights: Array) -> Array:
    """[U]: sum softplus(-z.w) + 1/2 |w - mean|^2_precision."""
    loss = problem.rows.weight * jax.nn.softplus(-problem.rows.margins(weights))
    prior = 0.5 * jnp.sum((weights - problem.mean[None]) * _pulled(problem, weights), -1)
    return problem.rows.total(loss, len(weights)) + prior
