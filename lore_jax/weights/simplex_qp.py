"""Small convex quadratic programmes over the probability simplex, for many users at once.

Axis letters: U users, K basis.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lore_jax.weights.batched_cholesky import Factor, cholesky

STEPS = 40


def project_simplex(points: Float[Array, "U K"]) -> Float[Array, "U K"]:
    """Nearest point of the simplex {w >= 0, sum w = 1} to each row, exactly (by sorting)."""
    size = points.shape[-1]
    ordered = -jnp.sort(-points, axis=-1)
    excess = jnp.cumsum(ordered, axis=-1) - 1
    ranks = jnp.arange(1, size + 1, dtype=points.dtype)[None]
    # Rank 1 always qualifies in exact arithmetic; saying so keeps it true for huge entries.
    support = (ordered * ranks > excess).at[:, 0].set(True)
    count = support.sum(-1)
    level = jnp.take_along_axis(excess, count[:, None] - 1, axis=-1) / count[:, None]
    return jnp.maximum(points - level, 0)


class _Factor(NamedTuple):
    """Cholesky factor of a matrix scaled to unit diagonal."""

    scaled: Factor
    scale: Array

    def solve(self, right: Array) -> Array:
        """matrix^-1 right, [U K]."""
        return self.scale * self.scaled.divide(self.scale * right)


def _factor(matrix: Array) -> _Factor:
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    # Scaling to a unit diagonal first keeps the huge barrier terms from drowning the others.
    scale = lax.rsqrt(jnp.maximum(diagonal, jnp.finfo(matrix.dtype).tiny * 1e8))
    return _Factor(cholesky(matrix * scale[:, :, None] * scale[:, None, :]), scale)


def _constrained_move(factor: _Factor, unit: Array, force: Array, sums: Array) -> Array:
    """The move d [U K] with  matrix d + nu 1 = force  and  sum d = sums [U]; `unit` = matrix^-1 1."""
    free = factor.solve(force)
    level = (free.sum(-1) - sums) / unit.sum(-1)
    return free - level[:, None] * unit


def _longest(values: Array, moves: Array) -> Array:
    """Largest step in (0, 1] that keeps values + step * moves >= 0, [U]."""
    ratios = jnp.where(moves < 0, -values / jnp.where(moves < 0, moves, -1), jnp.inf)
    return jnp.minimum(1, ratios.min(-1))


def _interior_point(matrix: Array, gradient_at, start: Array) -> tuple[Array, Array]:
    """Mehrotra's predictor-corrector method; returns (point, multipliers), both [U K]."""
    dtype, size = start.dtype, start.shape[-1]
    tiny = jnp.finfo(dtype).tiny ** 0.5
    goal = jnp.finfo(dtype).eps ** 0.9

    def diag(values):
        return values[:, :, None] * jnp.eye(size, dtype=dtype)[None]

    def body(carry):
        step, point, slack, _ = carry
        gap = jnp.mean(point * slack, -1, keepdims=True)
        factor = _factor(matrix + diag(slack / point))
        unit = factor.solve(jnp.ones_like(point))
        gradient = gradient_at(point)
        sums = 1 - point.sum(-1)
        ahead = _constrained_move(factor, unit, -gradient, sums)
        ahead_slack = -slack - slack / point * ahead
        reach = jnp.minimum(_longest(point, ahead), _longest(slack, ahead_slack))[:, None]
        later = jnp.mean((point + reach * ahead) * (slack + reach * ahead_slack), -1, keepdims=True)
        target = gap * (later / gap) ** 3 - ahead * ahead_slack
        move = _constrained_move(factor, unit, target / point - gradient, sums)
        move_slack = (target - slack * move) / point - slack
        reach = jnp.minimum(_longest(point, move), _longest(slack, move_slack))[:, None]
        reach = jnp.where(reach < 1, 0.99 * reach, 1)
        fresh = jnp.maximum(point + reach * move, tiny)
        fresh_slack = jnp.maximum(slack + reach * move_slack, tiny)
        going = gap[:, 0] > goal
        keep = going & jnp.isfinite(fresh).all(-1) & jnp.isfinite(fresh_slack).all(-1)
        point = jnp.where(keep[:, None], fresh, point)
        slack = jnp.where(keep[:, None], fresh_slack, slack)
        return step + 1, point, slack, jnp.any(going)

    slack = jnp.ones_like(start)
    begin = (0, jnp.full_like(start, 1 / size), slack, jnp.array(True))
    _, point, slack, _ = lax.while_loop(lambda carry: carry[3] & (carry[0] < STEPS), body, begin)
    return point, slack


def quadratic_simplex(
    matrix: Float[Array, "U K K"], gradient: Float[Array, "U K"], at: Float[Array, "U K"]
) -> Float[Array, "U K"]:
    """Minimum over the simplex of  gradient.(w - at) + 1/2 (w - at)ᵀ matrix (w - at), for positive definite matrices.

    An interior-point method finds the support, then the minimum over that support is solved directly and kept if it is
    feasible and no worse: exact to the float's precision. Not differentiable as written: `lore_jax.weights.solve`
    wraps it.
    """
    scale = jnp.maximum(
        jnp.diagonal(matrix, axis1=-2, axis2=-1).max(-1), jnp.abs(gradient).max(-1) / at.shape[-1]
    ).clip(jnp.finfo(at.dtype).tiny * 1e8)
    matrix, gradient = matrix / scale[:, None, None], gradient / scale[:, None]

    def gradient_at(point):
        return gradient + jnp.einsum("ukl,ul->uk", matrix, point - at)

    def value(point):
        move = point - at
        return jnp.sum(move * (gradient + 0.5 * jnp.einsum("ukl,ul->uk", matrix, move)), -1)

    point, slack = _interior_point(matrix, gradient_at, at)
    support = point > slack
    both = support[:, :, None] & support[:, None, :]
    eye = jnp.eye(at.shape[-1], dtype=at.dtype)[None]
    factor = _factor(jnp.where(both, matrix, eye))
    base = project_simplex(jnp.where(support, point, 0))
    polished = jnp.where(support, base, 0)
    # Coordinates off the support stay at zero: their rows of the matrix are those of the identity.
    unit = factor.solve(support.astype(at.dtype))
    for _ in range(2):
        force = jnp.where(support, -gradient_at(polished), 0)
        polished = polished + _constrained_move(factor, unit, force, 1 - polished.sum(-1))
    fallback = project_simplex(point)
    good = jnp.isfinite(polished).all(-1) & (polished >= -1e-9).all(-1)
    good &= value(polished) <= value(fallback) + jnp.finfo(at.dtype).eps ** 0.5
    return jnp.where(good[:, None], project_simplex(polished), fallback)
