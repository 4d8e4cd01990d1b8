"""Few-shot solvers against SciPy's optimum of the same objective, in float64, and their behaviour at the edges."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from lore_jax.weights import newton
from lore_jax.weights.objective import Prior
from lore_jax.weights.simplex_qp import project_simplex
from lore_jax.weights.solve import solve_weights
from pref_jax.errors import UserError

KINDS: dict[str, dict[str, Any]] = {
    "ridge": {"likelihood": "ridge"},
    "logistic": {},
    "ridge_simplex": {"likelihood": "ridge", "constraint": "simplex"},
    "logistic_simplex": {"constraint": "simplex"},
}
METHODS = {name: lambda *a, _kind=kind, **k: solve_weights(*a, **_kind, **k).weights for name, kind in KINDS.items()}
COMPILED = {name: jax.jit(method) for name, method in METHODS.items()}
USERS, VOTES, BASIS = 200, 7, 4


def objective(kind, z, mean, precision):
    """Value and gradient in NumPy."""

    def both(w):
        m = z @ w
        if kind == "ridge":
            value, force = 0.5 * np.sum((1 - m) ** 2), 1 - m
        else:
            value, force = np.sum(np.logaddexp(0, -m)), np.exp(-np.logaddexp(0, m))
        pulled = precision @ (w - mean)
        return value + 0.5 * (w - mean) @ pulled, pulled - z.T @ force

    return both


def best(name, z, mean, precision):
    """SciPy's optimum of one user."""
    kind, *simplex = name.split("_")
    both = objective(kind, z, mean, precision)
    if not simplex:
        result = minimize(both, mean, jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 2000})
        return result.x
    size = len(mean)
    total = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(size)}
    options = {"maxiter": 500, "ftol": 1e-16}
    begin = np.full(size, 1 / size)
    return minimize(both, begin, jac=True, method="SLSQP", bounds=[(0, 1)] * size, constraints=total, options=options).x


def case(seed, users=USERS, votes=VOTES, basis=BASIS):
    """Random users with 0 .. votes pairs; some duplicated, some separable, some collinear, some large or small."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(users, votes, basis)) * rng.choice([0.01, 0.3, 1, 6], size=(users, 1, 1))
    fifth = users // 5
    z[:fifth] = z[:fifth, :1]
    z[fifth : 2 * fifth] = np.abs(z[fifth : 2 * fifth])
    z[2 * fifth : 3 * fifth] = z[2 * fifth : 3 * fifth, :, :1]
    mask = np.arange(votes) < rng.integers(0, votes + 1, users)[:, None]
    root = rng.normal(size=(basis, basis))
    return z, mask, rng.normal(size=basis) * 0.5, root @ root.T + 0.3 * np.eye(basis)


@pytest.mark.parametrize("name", METHODS)
def test_equals_scipy(name):
    z, mask, mean, precision = case(seed=1)
    with jax.enable_x64(True):
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))
        weights = np.asarray(COMPILED[name](jnp.asarray(z), jnp.asarray(mask), prior))
    expected = np.stack([best(name, z[u][mask[u]], mean, precision) for u in range(USERS)])
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    single = solve_float32(name, z, mask, mean, precision)
    np.testing.assert_allclose(single, expected, atol=2e-3)


def crowd(seed, users, votes, basis):
    """Users of every kind there is: so many random ones, and as many of each degenerate sort."""
    rng = np.random.default_rng(seed)
    z, kind = rng.normal(size=(users, votes, basis)), np.arange(users) % 8
    z[kind == 1] = z[kind == 1, :1]
    z[kind == 2] = np.abs(z[kind == 2])
    z[kind == 3] = z[kind == 3, :, :1]
    z[kind == 4] *= 1e3
    z[kind == 5] *= 1e-6
    counts = np.where(kind == 6, 0, np.where(kind == 7, 1, rng.integers(1, votes + 1, users)))
    return z, np.arange(votes) < counts[:, None]


def test_thousands_of_users_equal_scipy():
    z, mask = crowd(12, 2400, 5, 3)
    mean, precision = np.array([0.4, -0.3, 0.6]), np.diag([1.0, 0.5, 2.0])
    with jax.enable_x64(True):
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))
        weights = np.asarray(COMPILED["logistic"](jnp.asarray(z), jnp.asarray(mask), prior))
    for u in range(len(z)):
        rows = z[u][mask[u]]

        def hessian(w, rows=rows):
            p = np.exp(-np.logaddexp(0, rows @ w))
            return precision + (rows * (p * (1 - p))[:, None]).T @ rows

        both = objective("logistic", rows, mean, precision)
        # From zero: far from it, with features of a thousand, SciPy gives up.
        found = minimize(both, np.zeros(3), jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-9}).x
        # A last Newton step brings SciPy's gradient from its tolerance to rounding.
        found = found - np.linalg.solve(hessian(found), both(found)[1])
        np.testing.assert_allclose(weights[u], found, atol=1e-6, err_msg=f"user {u}")


def solve_float32(name, z, mask, mean, precision):
    prior = Prior(jnp.asarray(mean, jnp.float32), jnp.asarray(precision, jnp.float32))
    return np.asarray(COMPILED[name](jnp.asarray(z, jnp.float32), jnp.asarray(mask), prior))


def test_users_solved_in_blocks_have_the_weights_and_gradients_of_all_at_once(monkeypatch):
    z, mask, mean, precision = case(seed=5, users=27)
    squared, offset = np.random.default_rng(6).random((2, *mask.shape)) < 0.3
    prior = Prior(jnp.asarray(mean, jnp.float32), jnp.asarray(precision, jnp.float32))
    z = jnp.asarray(z, jnp.float32)
    more: dict[str, Any] = {"squared": jnp.asarray(squared), "offset": jnp.asarray(offset, jnp.float32)}
    towards = jnp.asarray(np.random.default_rng(7).normal(size=(27, BASIS)), jnp.float32)

    def found(z, prior):
        weights = solve_weights(z, jnp.asarray(mask), prior, **more).weights
        return (weights * towards).sum(), weights

    want = jax.jit(jax.grad(found, (0, 1), has_aux=True))(z, prior)
    monkeypatch.setattr(newton, "BLOCK", 5)
    jax.clear_caches()
    got = jax.jit(jax.grad(found, (0, 1), has_aux=True))(z, prior)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("name", ["logistic", "ridge_simplex"])
def test_flat_pairs_equal_padded_ones(name):
    z, mask, mean, precision = case(seed=2, users=40)
    prior = Prior(jnp.asarray(mean, jnp.float32), jnp.asarray(precision, jnp.float32))
    user = np.repeat(np.arange(40), VOTES)
    order = np.random.default_rng(0).permutation(len(user))
    pairs = jnp.asarray(z.reshape(-1, BASIS)[order], jnp.float32), jnp.asarray(mask.reshape(-1)[order])
    flat = METHODS[name](*pairs, prior, user=jnp.asarray(user[order]), num_users=40)
    np.testing.assert_allclose(flat, solve_float32(name, z, mask, mean, precision), atol=2e-4)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_equal_finite_differences(name):
    # On the simplex the users are generic: at duplicates the support may sit on an edge, where no derivative exists.
    rng = np.random.default_rng(3)
    z, mask = rng.normal(size=(6, 5, 3)), rng.random((6, 5)) < 0.8
    _, _, mean, precision = case(seed=3, basis=3)
    sent, lean = rng.normal(size=(6, 3)), [rng.normal(size=x.shape) for x in (z, mean, precision)]
    with jax.enable_x64(True):

        @jax.jit
        def run(z, mean, precision):
            return METHODS[name](z, jnp.asarray(mask), Prior(mean, precision))

        args, lean = tuple(map(jnp.asarray, (z, mean, precision))), tuple(map(jnp.asarray, lean))
        _, forward = jax.jvp(run, args, lean)
        backward = jax.vjp(run, *args)[1](jnp.asarray(sent))
        step = 1e-5
        ahead = run(*(a + step * d for a, d in zip(args, lean, strict=True)))
        behind = run(*(a - step * d for a, d in zip(args, lean, strict=True)))
        dot = sum(float(jnp.sum(b * d)) for b, d in zip(backward, lean, strict=True))
    slope = (np.asarray(ahead) - np.asarray(behind)) / (2 * step)
    np.testing.assert_allclose(forward, slope, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dot, np.sum(sent * slope), rtol=1e-5, atol=1e-5)


def test_covariance_is_the_inverse_hessian():
    z, mask, mean, precision = case(seed=4, users=20)
    with jax.enable_x64(True):
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))
        ridge = solve_weights(jnp.asarray(z), jnp.asarray(mask), prior, likelihood="ridge")
        logistic = solve_weights(jnp.asarray(z), jnp.asarray(mask), prior)
    for u in range(20):
        rows = z[u][mask[u]]
        np.testing.assert_allclose(ridge.covariance[u], np.linalg.inv(precision + rows.T @ rows), atol=1e-9)
        p = 1 / (1 + np.exp(-rows @ np.asarray(logistic.weights[u])))
        hessian = precision + (rows * (p * (1 - p))[:, None]).T @ rows
        np.testing.assert_allclose(logistic.covariance[u], np.linalg.inv(hessian), atol=1e-9)


@pytest.mark.parametrize("size", [5, 9])
def test_coordinates_of_unlike_units_keep_their_digits(size):
    """One precision of 1e4 beside others of 1e-2 to 1, as of the shared reward: float32 against float64."""
    rng = np.random.default_rng(14)
    z, mask, mean, _ = case(14, users=40, basis=size)
    precision = np.diag([1e4, *10 ** rng.uniform(-2, 0, size - 1)])
    prior = Prior(jnp.asarray(mean, jnp.float32), jnp.asarray(precision, jnp.float32))
    found = solve_weights(jnp.asarray(z, jnp.float32), jnp.asarray(mask), prior)
    for u in range(40):
        rows = z[u][mask[u]]
        p = 1 / (1 + np.exp(-rows @ np.asarray(found.weights[u], np.float64)))
        expected = np.linalg.inv(precision + (rows * (p * (1 - p))[:, None]).T @ rows)
        scale = np.sqrt(np.outer(np.diagonal(expected), np.diagonal(expected)))
        np.testing.assert_allclose(np.asarray(found.covariance[u]) / scale, expected / scale, atol=1e-2)


@pytest.mark.parametrize("name", METHODS)
def test_no_pairs_give_the_prior_exactly(name):
    mean = jnp.asarray([0.1, 0.2, 0.7, 0.0])
    prior = Prior(mean, jnp.eye(4))
    # Padding may hold anything.
    z = jnp.full((3, VOTES, 4), jnp.nan).at[2].set(1.0)
    mask = jnp.zeros((3, VOTES), bool).at[2].set(True)
    weights = COMPILED[name](z, mask, prior)
    np.testing.assert_array_equal(weights[:2], np.stack([mean, mean]))
    assert np.isfinite(weights).all()


EDGES = {
    "huge": lambda rng, z: z * 1e6,
    "smoke": lambda rng, z: z * 1e-6,
    "separable": lambda rng, z: np.abs(z) * 100,
    "contradicting": lambda rng, z: z * np.where(np.arange(z.shape[1]) % 2, -1, 1)[None, :, None] * 1e3,
    "collinear": lambda rng, z: np.repeat(z[..., :1], z.shape[-1], -1) * 1e3,
    "mixed": lambda rng, z: z * 10.0 ** rng.integers(-6, 7, z.shape),
    "zero": lambda rng, z: z * 0,
}


@pytest.mark.parametrize("name", METHODS)
def test_never_nan(name):
    rng = np.random.default_rng(5)
    prior = Prior(jnp.asarray([0.5, 0.2, 0.3, 0.0]), jnp.eye(4))

    @jax.jit
    def run(z):
        def total(z):
            weights = METHODS[name](z, None, prior)
            return weights.sum(), weights

        return jax.value_and_grad(total, has_aux=True)(z)

    for edge, change in EDGES.items():
        z = change(rng, rng.normal(size=(30, VOTES, 4)))
        (_, weights), grad = run(jnp.asarray(z, jnp.float32))
        assert np.isfinite(weights).all(), edge
        assert np.isfinite(grad).all(), edge
        if "simplex" in name:
            np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
            assert (np.asarray(weights) >= 0).all()


@pytest.mark.parametrize("scale", [1e5, 1e6])
def test_huge_features_still_reach_the_optimum(scale):
    users = 800
    z = np.random.default_rng(6).normal(size=(users, VOTES, 4)) * scale
    mean = np.array([0.5, -0.2, 0.3, 0.0])
    with jax.enable_x64(True):
        weights = np.asarray(solve_weights(jnp.asarray(z), None, Prior(jnp.asarray(mean), jnp.eye(4))).weights)
    for u in range(users):
        _, gradient = objective("logistic", z[u], mean, np.eye(4))(weights[u])
        m = z[u] @ weights[u]
        curvature = np.exp(-np.logaddexp(0, m) - np.logaddexp(0, -m))
        hessian = np.eye(4) + (z[u] * curvature[:, None]).T @ z[u]
        assert np.abs(np.linalg.solve(hessian, gradient)).max() < 1e-6


def test_projection_equals_brute_force():
    points = np.random.default_rng(7).normal(size=(50, 5)) * 3
    with jax.enable_x64(True):
        found = np.asarray(project_simplex(jnp.asarray(points)))
    levels = np.zeros(50)
    low, high = points.min(1) - 2, points.max(1)
    for _ in range(100):
        levels = (low + high) / 2
        over = np.maximum(points - levels[:, None], 0).sum(1) > 1
        low, high = np.where(over, levels, low), np.where(over, high, levels)
    np.testing.assert_allclose(found, np.maximum(points - levels[:, None], 0), atol=1e-12)


def test_mixture_is_bayes_rule():
    z, mask, _, _ = case(seed=8, users=20)
    share = np.array([0.4, 0.3, 0.2, 0.1])
    likelihood = np.where(mask[..., None], 1 / (1 + np.exp(-z)), 1).prod(1) * share
    prior = Prior(jnp.asarray(share, jnp.float32), jnp.eye(4))
    found = solve_weights(jnp.asarray(z, jnp.float32), jnp.asarray(mask), prior, likelihood="mixture")
    assert found.covariance is None
    np.testing.assert_allclose(found.weights, likelihood / likelihood.sum(1, keepdims=True), atol=1e-5)


def test_wrong_shapes_are_told():
    prior = Prior(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(UserError, match="num_users"):
        solve_weights(jnp.ones((3, 2)), None, prior)
    with pytest.raises(UserError, match="'probit', constraint None; give one of logistic, ridge, mixture"):
        solve_weights(jnp.ones((3, 1, 2)), None, prior, likelihood="probit")
