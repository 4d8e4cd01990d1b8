"""What the few-shot solvers minimise: pairs, prior, value, gradient and Hessian.

Axis letters: U users, L lanes (`lore_jax.lanes`; where users have one each, U), E further lanes, n pairs per lane
(padded), P pairs (flat), K basis.

A row of margin m (offset included) loses weight * softplus(-m), a Bradley-Terry preference; with `squared`
weight / 2 * m^2; and the rows of one `choice` together weight * log(1 + sum_j exp(-m_j)), one response taken out of
several (Plackett-Luce). All are convex. With p_j = exp(-m_j) / (1 + sum exp(-m)) and p_0 = 1 - sum p_j, the last
one's gradient is -sum_j p_j z_j, and its Hessian

    sum_j p_j (z_j - z) (z_j - z)ᵀ + p_0 z zᵀ,    z = sum_j p_j z_j,

a sum of squares, in which nothing cancels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lore_jax.lanes import fold, fold_max, spread
from pref_jax.errors import UserError


def together(values: Array, group: Array, reduce: Callable[..., Array] = jax.ops.segment_sum) -> Array:
    """For each row what `reduce` makes of the rows of its group: values [L n ...] or [P ...] -> the same shape.

    Args:
      values: numbers of rows.
      group: int [L n] or [P], in 0 .. L n - 1 (or P - 1); rows of one number are a group, and -1 is a row alone.
      reduce: `jax.ops.segment_sum` or one like it.
    """
    if not group.size:
        return values
    alone = group.size + jnp.arange(group.size, dtype=group.dtype).reshape(group.shape)
    number = jnp.where(group < 0, alone, group)
    flat = values.reshape(group.size, *values.shape[group.ndim :])
    return reduce(flat, number.reshape(-1), 2 * group.size)[number]


class _Choices(NamedTuple):
    """Of each row's choice: the loss's part of this row, p_j, p_0, and how many rows it has; weights left out."""

    loss: Array
    share: Array
    taken: Array
    size: Array


class Rows(NamedTuple):
    """Pairs of many users: `z [L n K]`, `weight [L n]`, `user [E]` of further lanes, or None for none; or flat:
    `z [P K]`, `weight [P]`, `user [P]`.

    `offset`, shaped as `weight`, is a part of the margins that no weight moves; None for none. `choice`, int: rows of
    one number, in 0 .. L n - 1 (or P - 1), are one choice and of one weight; -1 is a row alone; None: all are.
    `squared`, bool: rows that lose half the squared margin; None: none.
    """

    z: Array
    weight: Array
    user: Array | None
    offset: Array | None = None
    choice: Array | None = None
    squared: Array | None = None

    def margins(self, weights: Array) -> Array:
        """z.w (+ offset) for every pair, [L n] or [P], from weights [U K]."""
        if self.z.ndim == 3 or self.user is None:
            margins = jnp.einsum("unk,uk->un", self.z, spread(weights, self.user))
        else:
            margins = jnp.einsum("pk,pk->p", self.z, weights[self.user])
        return margins if self.offset is None else margins + self.offset

    def losses(self, margins: Array) -> Array:
        """What each row loses; a choice's loss is cut into equal parts over its rows. Shaped as `weight`."""
        loss = jax.nn.softplus(-margins) if self.choice is None else self._choices(margins).loss
        if self.squared is not None:
            loss = jnp.where(self.squared, 0.5 * margins**2, loss)
        return self.weight * loss

    def forces(self, margins: Array) -> Array:
        """Minus the derivative of the loss by each margin."""
        force = jax.nn.sigmoid(-margins) if self.choice is None else self._choices(margins).share
        if self.squared is not None:
            force = jnp.where(self.squared, -margins, force)
        return self.weight * force

    def information(self, margins: Array, num_users: int) -> Array:
        """Hessian of each user's loss: [U K K]."""
        if self.choice is None:
            # Not p * (1 - p): that loses its digits where p rounds to 1.
            curvature = jax.nn.sigmoid(margins) * jax.nn.sigmoid(-margins)
            if self.squared is not None:
                curvature = jnp.where(self.squared, 1, curvature)
            return self.gram(self.weight * curvature, num_users)
        found = self._choices(margins)
        share = found.share if self.squared is None else jnp.where(self.squared, 0, found.share)
        middle = together(share[..., None] * self.z, self.choice)
        around = share if self.squared is None else jnp.where(self.squared, 1, share)
        apart = self._replace(z=self.z - middle).gram(self.weight * around, num_users)
        return apart + self._replace(z=middle).gram(self.weight * found.taken / found.size, num_users)

    def _choices(self, margins: Array) -> _Choices:
        assert self.choice is not None, "asked for only where there are choices"
        live = self.weight > 0
        worst = jnp.where(live, -margins, -jnp.inf)
        top = lax.stop_gradient(jnp.maximum(together(worst, self.choice, jax.ops.segment_max), 0))
        odds = jnp.where(live, jnp.exp(jnp.where(live, -margins - top, 0)), 0)
        sums, size = together(odds, self.choice), jnp.maximum(together(live.astype(margins.dtype), self.choice), 1)
        # Less 1 before the logarithm, which keeps a small loss's digits.
        loss = top + jnp.log1p(jnp.expm1(-top) + sums)
        none = jnp.exp(-top)
        return _Choices(loss / size, odds / (none + sums), none / (none + sums), size)

    def total(self, values: Array, num_users: int) -> Array:
        """Sum over each user's pairs: [L n ...] or [P ...] -> [U ...]."""
        if self.z.ndim == 3 or self.user is None:
            return fold(values.sum(1), self.user)
        return jax.ops.segment_sum(values, self.user, num_users)

    def largest(self, values: Array, num_users: int) -> Array:
        """Largest non-negative value among each user's pairs, 0 for none: [L n] or [P] -> [U]."""
        if self.z.ndim == 3 or self.user is None:
            return fold_max(values.max(1, initial=0.0), self.user)
        return jax.ops.segment_max(values, self.user, num_users).clip(0)

    def gram(self, curvature: Array, num_users: int) -> Array:
        """Sum over each user's pairs of curvature * z zᵀ: [U K K]."""
        if self.z.ndim == 3 or self.user is None:
            return fold(jnp.einsum("unk,unl->ukl", self.z * curvature[..., None], self.z), self.user)
        outer = self.z[:, :, None] * (self.z * curvature[:, None])[:, None, :]
        return jax.ops.segment_sum(outer, self.user, num_users)

    def pull(self, force: Array, num_users: int) -> Array:
        """Sum over each user's pairs of force * z: [U K]."""
        if self.z.ndim == 3 or self.user is None:
            return fold(jnp.einsum("unk,un->uk", self.z, force), self.user)
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
    z: Array,
    mask: Array | None,
    prior: Prior,
    user: Array | None = None,
    num_users: int | None = None,
    **extras: Any,
) -> tuple[Problem, int]:
    """The problem and its number of users from the arguments of `lore_jax.weights.solve.solve_weights`.

    `extras`: offset, choice and squared of `Rows`.
    """
    if z.ndim != 3 and (z.ndim != 2 or user is None or num_users is None):
        raise UserError(
            f"weights: pairs of shape {z.shape} with user={'given' if user is not None else None}; "
            "give z [U n K] alone, z [L n K] with user [E] of further rows, or z [P K] with user [P] and num_users"
        )
    weight = jnp.ones(z.shape[:-1], z.dtype) if mask is None else mask.astype(z.dtype)
    # Padding may hold anything, NaN included: only a zero in z itself keeps it out of every sum.
    z = jnp.where((weight > 0)[..., None], z, 0)
    mean, precision = jnp.asarray(prior.mean, z.dtype), jnp.asarray(prior.precision, z.dtype)
    if extras.get("offset") is not None:
        extras["offset"] = jnp.where(weight > 0, extras["offset"], 0).astype(z.dtype)
    choice = extras.get("choice")
    if choice is not None and user is None:
        first = choice.shape[1] * jnp.arange(len(choice), dtype=choice.dtype)[:, None]
        extras["choice"] = jnp.where(choice < 0, -1, choice + first)
    rows = Rows(z, weight, user, **extras)
    further = 0 if user is None else len(user)
    return Problem(rows, mean, precision), len(z) - further if z.ndim == 3 else int(num_users or 0)


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
    force = problem.rows.forces(problem.rows.margins(weights))
    return _pulled(problem, weights) - problem.rows.pull(force, len(weights))


def logistic_hessian(problem: Problem, weights: Array) -> Array:
    """Hessian [U K K] of `logistic_objective`."""
    return problem.rows.information(problem.rows.margins(weights), len(weights)) + problem.precision[None]


def logistic_objective(problem: Problem, weights: Array) -> Array:
    """[U]: the rows' losses (of plain pairs softplus(-z.w)) + 1/2 |w - mean|^2_precision."""
    loss = problem.rows.losses(problem.rows.margins(weights))
    prior = 0.5 * jnp.sum((weights - problem.mean[None]) * _pulled(problem, weights), -1)
    return problem.rows.total(loss, len(weights)) + prior
