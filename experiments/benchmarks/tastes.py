"""Users whose taste is known and who answer what they are asked, for benchmarks of LoRe.

Axis letters: U users, n pairs of the pool, T pairs of the test, K basis.
"""

from collections.abc import Sequence
from functools import partial
from typing import SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np

from lore_jax.online.simulate import World
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.eval.metrics import student_interval


def make_world(seed: int, *, users: int, pairs: int, rank: int, uneven: float, strength: float = 3.0) -> World:
    """A Gaussian population, learned from 300 seen users with 30 random answers each.

    Args:
      seed: of everything.
      users: U, unseen ones.
      pairs: n, of the pool; the test has 500.
      rank: K.
      uneven: spread of log |z| among pairs. 0 makes all pairs alike; at 1, as with real prompts, the two responses to
        some differ in everything and to others in next to nothing.
      strength: standard deviation of the margin of an ordinary pair.
    """
    rng = np.random.default_rng(seed)
    spread = strength * 0.8 ** np.arange(rank) / np.sqrt(rank)
    mean = rng.normal(size=rank) * spread / 2

    def people(count):
        return mean + rng.normal(size=(count, rank)) * spread

    def pairs_of(count):
        return rng.normal(size=(count, rank)) * np.exp(uneven * rng.normal(size=(count, 1)))

    pool, test, seen, truth = pairs_of(pairs), pairs_of(500), people(300), people(users)
    asked = pool[rng.integers(0, pairs, (300, 30))]
    margin = np.einsum("unk,uk->un", asked, seen)
    answers = asked * np.where(rng.random(margin.shape) < 1 / (1 + np.exp(-margin)), 1, -1)[..., None]
    single = (jnp.asarray(x, jnp.float32) for x in (truth, pool, test, answers))
    truth, pool, test, answers = single
    return World(truth, learned_prior(answers), pool, test)


@partial(jax.jit, static_argnames=("steps",))
def learned_prior(answers: jax.Array, steps: int = 20) -> Prior:
    """Mean and covariance of a population from its answers [U n K]: expectation maximisation, Laplace's moments."""
    size = answers.shape[-1]

    def step(prior, _):
        found = solve_weights(answers, None, prior)
        mean = found.weights.mean(0)
        away = found.weights - mean[None]
        covariance = found.covariance.mean(0) + away.T @ away / len(away) + 1e-3 * jnp.eye(size)
        return Prior(mean, jnp.linalg.inv(covariance)), None

    return jax.lax.scan(step, Prior(jnp.zeros(size), jnp.eye(size)), None, length=steps)[0]


def interval(values: Sequence[SupportsFloat]) -> tuple[float, float]:
    """Mean over trials, and half of its 95 % interval (Student's t); at least two trials."""
    found = student_interval([float(value) for value in values], over="trials")
    assert found.high is not None
    return found.mean, found.high - found.mean
