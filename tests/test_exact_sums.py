"""Sums on CPUs are right once `pref_jax` is imported, however early or late; without it some are not."""

import os
import subprocess
import sys

import pytest

from pref_jax import exact_sums

CHECK = """
import jax, jax.numpy as jnp, numpy as np
rows = np.zeros((32_769, 3), np.float32)
rows[:, 0] = np.arange(len(rows))
lengths = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
pairs = np.random.default_rng(0).random((70, 5, 8000), np.float32)
grams = jax.jit(lambda pairs: (pairs[:, :, None] * pairs[:, None]).sum(0))(pairs)
exact = np.asarray(pairs, np.float64)
right = [np.square(np.asarray(rows, np.float64)).sum(1), np.einsum("nku,nlu->klu", exact, exact)]
errors = [np.abs(one - other).max() / np.abs(other).max() for one, other in zip((lengths, grams), right)]
print(max(errors))
"""
SOLVE = """
import numpy as np
from lore_jax import Prior, solve_weights
z = np.random.default_rng(0).normal(size=(8000, 70, 5)).astype(np.float32)
prior = Prior(np.zeros(5, np.float32), np.eye(5, dtype=np.float32))
every, some = (solve_weights(votes, None, prior).weights for votes in (z, z[-50:]))
print(float(np.abs(every[-50:] - some).max()))
"""


def run(code):
    """Standard output and error of a new process without XLA flags."""
    drop = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    own = {name: value for name, value in os.environ.items() if name not in drop} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("first", ["import pref_jax", "import jax, lore_jax", "import copl_jax"])
def test_sums_are_right(first):
    assert float(run(f"{first}\n{CHECK}")[0]) < 1e-5


@pytest.mark.skipif(
    exact_sums._jaxlib() not in exact_sums.WRONG, reason="this jaxlib is not among those that are wrong"
)
def test_the_flag_is_what_makes_them_right():
    assert float(run(CHECK)[0]) > 1e-3, "this jaxlib is right by itself: take it from `exact_sums.WRONG`"


def test_many_users_of_many_votes_are_solved_as_few_are():
    assert float(run(SOLVE)[0]) < 1e-4


@pytest.mark.skipif(
    exact_sums._jaxlib() not in exact_sums.WRONG, reason="this jaxlib is not among those that are wrong"
)
def test_who_comes_too_late_says_so():
    assert "import pref_jax first" in run("import jax; jax.numpy.ones(3); import pref_jax")[1]
    assert "pref_jax first" not in run("import pref_jax, jax; jax.numpy.ones(3)")[1]


def test_given_flags_stay(monkeypatch):
    monkeypatch.setattr(exact_sums, "_jaxlib", lambda: exact_sums.WRONG[0])
    monkeypatch.setattr(exact_sums, "_runs_on_cpu", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", f"{exact_sums.FLAG}=dot")
    exact_sums.ensure()
    assert os.environ["XLA_FLAGS"] == f"{exact_sums.FLAG}=dot"
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    exact_sums.ensure()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=here {exact_sums.FLAG}=-reduce"
    monkeypatch.setattr(exact_sums, "_jaxlib", lambda: "0.10.1")
    monkeypatch.setenv("XLA_FLAGS", "")
    exact_sums.ensure()
    assert not os.environ["XLA_FLAGS"]
