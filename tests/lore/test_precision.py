"""Solvers ask for full products whatever the device would round by default: what their compiled programs say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lore_jax.comparisons import make_table
from lore_jax.fitting import candidates, gaussian_mixture
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.fitting.priors import FitProblem
from lore_jax.online import acquisition, posterior_sampling
from lore_jax.online import sliding_window as windows
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.comparisons import Comparisons

USERS, PAIRS, BASIS = 3, 4, 2
PRIOR = Prior(jnp.full(BASIS, 1 / BASIS), jnp.eye(BASIS))
MASK = jnp.ones((USERS, PAIRS), bool)
FOUND = Clusters(jnp.log(jnp.full(2, 0.5)), jnp.eye(2), jnp.stack([jnp.eye(2)] * 2))
KEY = jax.random.key(0)


def on_simplex(z, **kind):
    return solve_weights(z, MASK, PRIOR, constraint="simplex", **kind)


FUNCTIONS = {
    "ridge": lambda z: solve_weights(z, MASK, PRIOR, likelihood="ridge").covariance.sum(),
    "logistic": lambda z: solve_weights(z, MASK, PRIOR).covariance.sum(),
    "ridge_simplex": lambda z: on_simplex(z, likelihood="ridge").weights[:, 0].sum(),
    "logistic_simplex": lambda z: on_simplex(z).weights[:, 0].sum(),
    "clusters": lambda z: gaussian_mixture.posterior(z, MASK, FOUND).covariance.sum(),
    "window": lambda z: windows.refit(windows.start(PRIOR, USERS, PAIRS).belief, z, MASK).factor.sum(),
}


def products(function, *values) -> list[str]:
    """The lines of a lowered program that multiply matrices, on a device that would round their factors."""
    with jax.default_matmul_precision("bfloat16"):
        text = jax.jit(function).lower(*values).as_text()
    return [line for line in text.splitlines() if "dot_general" in line]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_solvers_and_their_gradients_multiply_in_full(name):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(USERS, PAIRS, BASIS)), jnp.float32)
    for function in (FUNCTIONS[name], jax.grad(FUNCTIONS[name])):
        found = products(function, z)
        assert all("HIGHEST" in line for line in found)
    assert found, "its gradient has products"


def test_without_being_told_products_are_rounded():
    assert all("HIGHEST" not in line for line in products(lambda x: x @ x, jnp.eye(3)))


@pytest.mark.parametrize("ask", [posterior_sampling.select_query, acquisition.select_queries])
def test_the_next_pair_is_chosen_in_full(ask):
    window = windows.start(PRIOR, USERS, PAIRS)
    known = window if ask is posterior_sampling.select_query else window.belief
    found = products(lambda pool: ask(known, pool, jnp.ones((USERS, 5), bool), KEY), jnp.ones((5, BASIS)))
    assert found
    assert all("HIGHEST" in line for line in found)


@pytest.mark.parametrize("line_search", ["zoom", "bisection"])
@pytest.mark.parametrize("name", ["_gaussian_program", "_mixture_program"])
def test_fits_multiply_in_full(name, line_search):
    rng = np.random.default_rng(1)
    votes = Comparisons(np.repeat(np.arange(6), 6), rng.integers(0, 15, 36), rng.integers(15, 30, 36))
    table, features = make_table(votes, None, 6, 30), jnp.asarray(rng.normal(size=(30, 4)), jnp.float32)
    task = FitProblem(features, table, table.train, jnp.ones(2), jnp.ones(BASIS, bool))
    width = BASIS if name == "_gaussian_program" else BASIS - 1
    program = partial(getattr(candidates, name), steps=2, line_search=line_search)
    found = products(lambda shared: program(task, shared, jnp.ones((4, width)), {}, tolerance=1e-3), jnp.ones(4))
    assert found
    assert all("HIGHEST" in line for line in found)
