"""Small systems and Newton's method against NumPy and SciPy, written out and through LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from lore_jax.weights import newton
from lore_jax.weights.batched_cholesky import UNROLLED, cholesky
from lore_jax.weights.objective import Problem, Rows


@pytest.mark.parametrize("size", [1, 2, 5, UNROLLED, UNROLLED + 1])
def test_systems_equal_numpy(size):
    rng = np.random.default_rng(size)
    root = rng.normal(size=(30, size, size + 2))
    matrix, right = root @ root.transpose(0, 2, 1), rng.normal(size=(30, size))
    with jax.enable_x64(True):
        factor = cholesky(jnp.asarray(matrix))
        np.testing.assert_allclose(factor.divide(jnp.asarray(right)), np.linalg.solve(matrix, right[..., None])[..., 0])
        np.testing.assert_allclose(factor.inverse(), np.linalg.inv(matrix), atol=1e-9)


@pytest.mark.parametrize("size", [3, UNROLLED])
def test_singular_systems_stay_finite(size):
    rng = np.random.default_rng(0)
    column = rng.normal(size=(20, size, 1)) * 10.0 ** rng.integers(-9, 9, (20, 1, 1))
    matrix = jnp.asarray(column @ column.transpose(0, 2, 1), jnp.float32).at[0].set(0)
    factor = cholesky(matrix)
    assert np.isfinite(factor.divide(jnp.ones((20, size)))).all()
    assert np.isfinite(factor.inverse()).all()


def problem(seed, users=40, votes=6, size=4):
    """Users of all kinds, one without pairs; weights of pairs that are no mere mask."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(users, votes, size)) * 10.0 ** rng.integers(-3, 3, (users, 1, 1))
    z[::4] = z[::4, :1]
    z[1::4] = np.abs(z[1::4])
    weight = rng.random((users, votes)) * (np.arange(votes) < rng.integers(0, votes + 1, users)[:, None])
    weight[0] = 0
    root = rng.normal(size=(size, size))
    precision = root @ root.T + 0.2 * np.eye(size)
    return z, weight, rng.normal(size=size), precision, rng.normal(size=(users, votes))


def value_of(w, z, weight, mean, precision, offset):
    margins = z @ w + offset
    return weight @ np.logaddexp(0, -margins) + 0.5 * (w - mean) @ precision @ (w - mean)


@pytest.mark.parametrize("votes", [1, 6, newton.WRITTEN_OUT + 1])
def test_both_forms_equal_numpy(votes):
    z, weight, mean, precision, offset = problem(1, votes=votes, size=3)
    point = np.random.default_rng(1).normal(size=(3, 40))
    with jax.enable_x64(True):
        whole = Problem(
            Rows(jnp.asarray(z), jnp.asarray(weight), None, jnp.asarray(offset)),
            jnp.asarray(mean),
            jnp.asarray(precision),
        )
        models = newton.rows(whole), newton.logistic_model(whole)
        found = [model.local(jnp.asarray(point)) for model in models]
        sizes = [model.change(jnp.asarray(point)) for model in models]
    margins = np.einsum("unk,ku->un", z, point) + offset
    p = 1 / (1 + np.exp(margins))
    hessian = np.einsum("un,unk,unl->ukl", weight * p * (1 - p), z, z) + precision
    gradient = precision @ (point - mean[:, None]) - np.einsum("un,unk->ku", weight * p, z)
    value = [value_of(point[:, u], z[u], weight[u], mean, precision, offset[u]) for u in range(40)]
    change = np.max(np.abs(margins - offset) * (weight > 0), 1)
    for here, size in zip(found, sizes, strict=True):
        np.testing.assert_allclose(here.value, value, rtol=1e-9)
        np.testing.assert_allclose(here.gradient, gradient, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(size, change, rtol=1e-12)
    np.testing.assert_allclose(found[0].hessian, hessian, rtol=1e-9)
    np.testing.assert_allclose(np.moveaxis(found[1].hessian, -1, 0), hessian, rtol=1e-9)


@pytest.mark.parametrize("size", [1, 4, UNROLLED + 1])
def test_minima_equal_scipy(size):
    z, weight, mean, precision, offset = problem(2, size=size)
    with jax.enable_x64(True):
        whole = Problem(
            Rows(jnp.asarray(z), jnp.asarray(weight), None, jnp.asarray(offset)),
            jnp.asarray(mean),
            jnp.asarray(precision),
        )
        found = newton.newton(newton.logistic_model(whole), jnp.asarray(np.repeat(mean[:, None], 40, 1)))
    for u in range(40):
        args = z[u], weight[u], mean, precision, offset[u]

        def slope(w, args=args):
            z, weight, mean, precision, offset = args
            return precision @ (w - mean) - z.T @ (weight * np.exp(-np.logaddexp(0, z @ w + offset)))

        expected = minimize(value_of, mean, args=args, jac=lambda w, *_: slope(w), options={"gtol": 1e-12}).x
        np.testing.assert_allclose(found[:, u], expected, atol=1e-6)


def test_nobodys_answer_depends_on_the_others():
    z, weight, mean, precision, _ = problem(3)
    z = np.asarray(z, np.float32)

    def solve(some):
        rows = Rows(jnp.asarray(z[some]), jnp.asarray(weight[some], jnp.float32), None)
        whole = Problem(rows, jnp.asarray(mean, jnp.float32), jnp.asarray(precision, jnp.float32))
        return newton.newton(newton.logistic_model(whole), jnp.zeros((4, len(z[some]))))

    np.testing.assert_allclose(solve(slice(0, 20)), solve(slice(None))[:, :20], atol=1e-6)
