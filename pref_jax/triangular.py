"""Triangular systems, many small ones at once.

OpenBLAS, which JAX calls on CPUs, starts its threads for a system whose right side has 1024 entries, and they wait for
each other for 10 ms: a thousand users of 33 unknowns then take 20 s instead of 20 ms. Right sides are therefore solved
a few columns at a time there.

Axis letters: K unknowns, M columns.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Entries of a right side from which OpenBLAS takes threads (its interface/trsm.c).
THREADED = 1024


def solve_lower(
    lower: Float[Array, "*B K K"],
    right: Float[Array, "*B K M"],
    *,
    transposed: bool = False,
    unit_diagonal: bool = False,
) -> Float[Array, "*B K M"]:
    """L^-1 right, or L^-T right if `transposed`; what stands above the diagonal of L is not read.

    Args:
      lower: L.
      right: of the same leading axes.
      transposed: see above.
      unit_diagonal: L's diagonal is taken as 1, whatever stands there.

    Example:
      >>> solve_lower(jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([[2.0], [3.0]]))[:, 0].tolist()
      [1.0, 2.0]
    """
    options = {"lower": True, "trans": int(transposed), "unit_diagonal": unit_diagonal}
    solve = partial(jax.scipy.linalg.solve_triangular, **options)
    size, columns = right.shape[-2:]
    if size * columns < THREADED:
        return solve(lower, right)
    return lax.platform_dependent(lower, right, cpu=partial(_by_columns, solve), default=solve)


def _by_columns(solve: Callable[[Array, Array], Array], lower: Array, right: Array) -> Array:
    size, columns = right.shape[-2:]
    few = max((THREADED - 1) // size, 1)
    parts = [right[..., start : start + few] for start in range(0, columns, few)]
    return jnp.concatenate([solve(lower, part) for part in parts], axis=-1)


def inverse(lower: Float[Array, "*B K K"]) -> Float[Array, "*B K K"]:
    """(L Lᵀ)^-1 of lower triangles L."""
    eye = jnp.broadcast_to(jnp.eye(lower.shape[-1], dtype=lower.dtype), lower.shape)
    return solve_lower(lower, solve_lower(lower, eye), transposed=True)


@jax.custom_jvp
def log_determinant(matrix: Float[Array, "*B K K"]) -> Float[Array, "*B"]:
    """log det of symmetric positive definite matrices; the derivative is the inverse's product with the change."""
    return factored_log_determinant(jnp.linalg.cholesky(matrix))


def factored_log_determinant(lower: Float[Array, "*B K K"]) -> Float[Array, "*B"]:
    """log det of L Lᵀ."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), -1)


@log_determinant.defjvp
def _moved_log_determinant(given: tuple[Array], change: tuple[Array]) -> tuple[Array, Array]:
    lower = jnp.linalg.cholesky(given[0])
    return factored_log_determinant(lower), jnp.sum(inverse(lower) * change[0], (-2, -1))
