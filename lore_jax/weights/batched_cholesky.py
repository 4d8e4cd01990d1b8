"""Symmetric positive definite systems of a few unknowns, for many users at once.

Axis letters: U users, K basis.

LAPACK takes small matrices one after another, and a call costs more than the work. Up to UNROLLED unknowns the
recursion is therefore written out over entries, each an array [U]: vector instructions go across the users. Larger
systems go to LAPACK.
"""

from collections.abc import Iterable
from functools import reduce
from operator import add, sub
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pref_jax import triangular

UNROLLED = 8

# Rows of a matrix, entry by entry; each entry is an array over users.
Entries = list[list[Array]]


def _shift(diagonal: Array, size: int) -> Array:
    """A few roundings of each diagonal entry, in its coordinate's own unit: it keeps collinear pairs factorable."""
    info = jnp.finfo(diagonal.dtype)
    return jnp.maximum(diagonal * (4 * size * info.eps), info.tiny * 1e8)


def _less(value: Array, parts: Iterable[Array]) -> Array:
    return reduce(sub, parts, value)


def factor_entries(matrix: Entries) -> Entries:
    """Lower triangle L of L Lᵀ = matrix + shift, with the reciprocals of its diagonal in the diagonal's place."""
    size = len(matrix)
    lower: Entries = []
    for i in range(size):
        row: list[Array] = []
        for j in range(i):
            row.append(_less(matrix[i][j], (row[p] * lower[j][p] for p in range(j))) * lower[j][j])
        # In exact arithmetic no pivot is under the shift.
        shift = _shift(matrix[i][i], size)
        pivot = jnp.maximum(_less(matrix[i][i] + shift, (entry * entry for entry in row)), shift)
        lower.append([*row, 1 / jnp.sqrt(pivot)])
    return lower


def solve_entries(lower: Entries, right: list[Array]) -> list[Array]:
    """(L Lᵀ)^-1 right, by substitution forth and back."""
    size, forth = len(right), []
    for i in range(size):
        forth.append(_less(right[i], (lower[i][p] * forth[p] for p in range(i))) * lower[i][i])
    back: list[Array] = []
    for i in reversed(range(size)):
        below = (lower[p][i] * back[size - 1 - p] for p in range(i + 1, size))
        back.append(_less(forth[i], below) * lower[i][i])
    return back[::-1]


class Factor(NamedTuple):
    """A factored matrix [U K K]: the entries of its factor, or LAPACK's lower triangle [U K K]."""

    entries: Entries | None
    lower: Array | None

    def divide(self, right: Float[Array, "U K"]) -> Float[Array, "U K"]:
        """matrix^-1 right."""
        if self.entries is not None:
            return jnp.stack(solve_entries(self.entries, list(right.T)), axis=-1)
        assert self.lower is not None
        return jax.scipy.linalg.cho_solve((self.lower, True), right[..., None])[..., 0]

    def inverse(self) -> Float[Array, "U K K"]:
        """matrix^-1."""
        if self.entries is not None:
            size, like = len(self.entries), self.entries[0][0]
            units = [[jnp.full_like(like, float(i == j)) for i in range(size)] for j in range(size)]
            return jnp.stack([jnp.stack(solve_entries(self.entries, unit), axis=-1) for unit in units], axis=-1)
        assert self.lower is not None
        return triangular.inverse(self.lower)

    def log_determinant(self) -> Float[Array, " U"]:
        """log det of each matrix."""
        if self.entries is not None:
            # The factor's diagonal holds its reciprocals.
            return -2 * reduce(add, (jnp.log(row[-1]) for row in self.entries))
        assert self.lower is not None
        return triangular.factored_log_determinant(self.lower)


def cholesky(matrix: Float[Array, "U K K"]) -> Factor:
    """The factor of each matrix, each diagonal entry raised by a few of its roundings; finite for any finite input
    that is positive semi-definite up to rounding (up to UNROLLED unknowns, for any finite input).
    """
    size = matrix.shape[-1]
    if size <= UNROLLED:
        return Factor(factor_entries([[matrix[:, i, j] for j in range(size)] for i in range(size)]), None)
    shift = _shift(jnp.diagonal(matrix, axis1=-2, axis2=-1), size)
    eye = jnp.eye(size, dtype=matrix.dtype)
    return Factor(None, jnp.linalg.cholesky(matrix + shift[:, :, None] * eye[None]))
