"""Users' embeddings of highest posterior, given those of responses: many small concave problems at once.

    e_u = argmin over e of sum over u's votes of loss(e·(e_p - e_n) + b_p - b_n) + λ/2 |e - m_u|²,

by Newton's method. Users are solved in blocks of like numbers of votes, so that cost is linear in votes. Where a user
has fewer votes than there are features, a step solves a system of the size of the votes:

    (λ I + X^T X)^-1 g = (g - X^T (λ I + X X^T)^-1 X g) / λ,    X the differences times the roots of the curvatures.

Axes: U users, N responses, D features, B users and J pairs each of a block, E thresholds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pref_jax.comparisons import Comparisons
from pref_jax.graded import FittedScale, Graded, grade, losses
from pref_jax.ragged import group_by, padded

_CELLS = 1 << 14  # pairs of a block of users, padding included
_USERS = 1 << 10  # users of a block at most
_STEPS = 50  # at most; far fewer are taken
_CLOSE = 1e-6  # how much lower the objective could still be, about, where a user is done


def solve_modes(
    means: Float[np.ndarray, "U D"],
    votes: Comparisons,
    *,
    embeddings: Float[np.ndarray, "N D"],
    bias: Float[np.ndarray, " N"],
    precision: float,
    scale: FittedScale | None = None,
) -> Float[np.ndarray, "U D"]:
    """The modes; m itself for users without votes.

    Args:
      means: m, a row per user.
      votes: rows of `means` and of `embeddings`.
      embeddings: of responses.
      bias: b.
      precision: λ, above 0.
      scale: how ties, strengths and choices are read; None: all votes are preferences.
    """
    graded = grade(votes, None if scale is None else scale.scale)
    groups, found = group_by(votes.user, len(means)), means.copy()
    # Powers of two: few programs, and at most twice the work.
    widths = 1 << np.ceil(np.log2(np.maximum(groups.counts, 4))).astype(int)
    for width in np.unique(widths[groups.counts > 0]):
        rows = np.flatnonzero((widths == width) & (groups.counts > 0))
        size = min(max(1, _CELLS // int(width)), _USERS)
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            # Padded to `size` users without votes.
            places, real = padded(groups.starts[some], groups.counts[some], int(width))
            index, real = (np.pad(part, ((0, size - len(some)), (0, 0))) for part in (groups.order[places], real))
            own, ends, ties = None, np.zeros(0), False
            if graded is not None and scale is not None:
                own, ends, ties = Graded(*(column[index] for column in graded)), scale.thresholds, scale.scale.ties
            chosen, rejected = votes.chosen[index], votes.rejected[index]
            solved = _solve(
                np.pad(means[some], ((0, size - len(some)), (0, 0))),
                embeddings[chosen] - embeddings[rejected],
                bias[chosen] - bias[rejected],
                real,
                own,
                ends.astype(means.dtype),
                np.asarray(precision, means.dtype),
                ties=ties,
            )
            found[some] = np.asarray(solved)[: len(some)]
    return found


def differentiable_modes(
    means: Float[Array, "B D"],
    differences: Float[Array, "B J D"],
    offsets: Float[Array, "B J"],
    real: Bool[Array, "B J"],
    precision: Float[Array, ""],
) -> Float[Array, "B D"]:
    """The modes of B users of J preferences each, inside jit, with their derivatives by the implicit function theorem.

    One more Newton step from the solution, which it does not move, carries the derivative: with the curvature H held,
    d(mode) = -H^-1 d(gradient).

    Args:
      means: m.
      differences: of the embeddings of chosen and rejected responses.
      offsets: margins before anything is known of the user.
      real: False at padding, whose differences and offsets have to be finite.
      precision: λ, above 0.

    Example:
      >>> alone = jnp.zeros((1, 2)), jnp.ones((1, 1, 2)), jnp.zeros((1, 1)), jnp.zeros((1, 1), bool), jnp.ones(())
      >>> differentiable_modes(*alone).tolist()  # without votes, the mean
      [[0.0, 0.0]]
    """
    given = jax.lax.stop_gradient((means, differences, offsets, precision))
    ends = jnp.zeros(0, means.dtype)
    found = jax.lax.stop_gradient(_solve(*given[:3], real, None, ends, given[3], ties=False))
    margin = jnp.einsum("bjd,bd->bj", differences, found) + offsets
    slope = jnp.where(real, -jax.nn.sigmoid(-margin), 0)
    gradient = jnp.einsum("bj,bjd->bd", slope, differences) + precision * (found - means)
    curvature = jnp.where(real, jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin), 0)
    scaled = jax.lax.stop_gradient(jnp.sqrt(curvature))[:, :, None] * given[1]
    return found - _newton_moves(scaled, gradient, given[3])


@functools.partial(jax.jit, static_argnames="ties")
def _solve(
    means: Float[Array, "B D"],
    differences: Float[Array, "B J D"],
    offsets: Float[Array, "B J"],
    real: Bool[Array, "B J"],
    graded: Graded | None,
    ends: Float[Array, " E"],
    precision: Float[Array, ""],
    *,
    ties: bool,
) -> Float[Array, "B D"]:
    """Newton steps, each half as long as the one before where that did not lower the objective."""

    def votes(margin: Array) -> Array:
        each = -jax.nn.log_sigmoid(margin) if graded is None else losses(margin, graded, ends, ties=ties)
        return jnp.where(real, each, 0)

    def slopes(margin: Array) -> Array:
        return jax.grad(lambda margin: jnp.sum(votes(margin)))(margin)

    def margins(users: Array) -> Array:
        return jnp.einsum("bjd,bd->bj", differences, users) + offsets

    def objective(users: Array) -> Array:
        return jnp.sum(votes(margins(users)), axis=1) + precision / 2 * jnp.sum((users - means) ** 2, axis=1)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        users, value, length, _, count = carry
        margin = margins(users)
        slope, curvature = jax.jvp(slopes, (margin,), (jnp.ones_like(margin),))
        gradient = jnp.einsum("bj,bjd->bd", slope, differences) + precision * (users - means)
        # Losses are convex; a rounding below 0 has no root.
        scaled = jnp.sqrt(jnp.maximum(curvature, 0))[:, :, None] * differences
        move = _newton_moves(scaled, gradient, precision)
        tried = users - length[:, None] * move
        new = objective(tried)
        better = new < value
        length = jnp.where(better, jnp.minimum(2 * length, 1), length / 2)
        users, value = jnp.where(better[:, None], tried, users), jnp.where(better, new, value)
        return users, value, length, jnp.sum(gradient * move, axis=1) / 2, count + 1

    def unfinished(carry: tuple[Array, ...]) -> Array:
        _, value, length, left, count = carry
        # A length that small: rounding alone keeps the objective from falling.
        return (count < _STEPS) & jnp.any((left > _CLOSE * (1 + value)) & (length > 1e-3))

    ones = jnp.ones(len(means), means.dtype)
    start = (means, objective(means), ones, jnp.inf * ones, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, step, start)[0]


def _newton_moves(
    scaled: Float[Array, "B J D"], gradient: Float[Array, "B D"], precision: Float[Array, ""]
) -> Float[Array, "B D"]:
    """(λ I + X^T X)^-1 g of each user, by the smaller of the two systems that give it."""
    if scaled.shape[1] >= scaled.shape[2]:
        return _solve_shifted(jnp.einsum("bjd,bje->bde", scaled, scaled), gradient, precision)
    right = jnp.einsum("bjd,bd->bj", scaled, gradient)
    inner = _solve_shifted(jnp.einsum("bjd,bkd->bjk", scaled, scaled), right, precision)
    return (gradient - jnp.einsum("bjd,bj->bd", scaled, inner)) / precision


def _solve_shifted(
    gram: Float[Array, "B S S"], right: Float[Array, "B S"], precision: Float[Array, ""]
) -> Float[Array, "B S"]:
    """(G + λ I)^-1 r."""
    factor = jnp.linalg.cholesky(gram + precision * jnp.eye(gram.shape[1], dtype=gram.dtype)[None])
    return jax.scipy.linalg.cho_solve((factor, True), right[:, :, None])[:, :, 0]
