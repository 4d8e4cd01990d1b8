"""Triangular systems against float64, in sizes that are solved at once and in ones that are solved by columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pref_jax import triangular

SIZES = pytest.mark.parametrize("size", [1, 7, 31, 32, 33, 70])


def positive(size, seed=0):
    root = np.random.default_rng(seed).normal(size=(3, size, size + 4))
    return root @ root.swapaxes(1, 2) / size


@SIZES
@pytest.mark.parametrize("columns", [1, 5, 40])
def test_systems_are_solved(size, columns):
    rng = np.random.default_rng(1)
    lower, right = np.linalg.cholesky(positive(size)), rng.normal(size=(3, size, columns))
    upper = rng.normal(size=lower.shape)
    given = jnp.asarray(lower + np.triu(upper, 1), jnp.float32), jnp.asarray(right, jnp.float32)
    for transposed in (False, True):
        want = np.linalg.solve(lower.swapaxes(1, 2) if transposed else lower, right)
        got = jax.jit(triangular.solve_lower, static_argnames="transposed")(*given, transposed=transposed)
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())
    got = triangular.solve_lower(given[0] / 50, given[1], unit_diagonal=True)
    want = np.linalg.solve(np.tril(lower, -1) / 50 + np.eye(size), right)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@SIZES
def test_inverses_and_determinants(size):
    matrix = positive(size)
    lower = np.linalg.cholesky(matrix)
    want = np.linalg.inv(matrix)
    got = triangular.inverse(jnp.asarray(lower, jnp.float32))
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())
    np.testing.assert_allclose(
        triangular.log_determinant(jnp.asarray(matrix, jnp.float32)), np.linalg.slogdet(matrix)[1], rtol=1e-4, atol=1e-4
    )


@SIZES
def test_the_slope_of_a_determinant_is_the_inverse(size):
    matrix = positive(size)
    weight = np.array([1.0, -2.0, 0.5])
    slope = jax.grad(lambda matrix: triangular.log_determinant(matrix) @ weight.astype(np.float32))
    want = weight[:, None, None] * np.linalg.inv(matrix)
    np.testing.assert_allclose(slope(jnp.asarray(matrix, jnp.float32)), want, atol=5e-4 * np.abs(want).max())


def test_no_right_side_is_large_enough_for_threads():
    """Compiled for a CPU, where threads of OpenBLAS would wait for each other."""
    lower, right = jnp.zeros((2, 40, 40)), jnp.zeros((2, 40, 60))
    text = jax.jit(triangular.solve_lower).lower(lower, right).as_text()
    calls = [line for line in text.splitlines() if "trsm" in line and "custom_call" in line]
    assert calls
    assert all("40x25" in line or "40x10" in line for line in calls)
