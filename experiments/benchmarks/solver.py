"""LoRe's solver: weights of new users on a given basis."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measure import Result, result, timed
from lore_jax import solve
from lore_jax.objective import Prior


def lore_solve(users: int = 500, pairs: int = 9, rank: int = 5, sample: int = 25) -> list[Result]:
    """New users' weights: all of them in one closed-form call against 500 steps of Adam for one user after another."""
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(rank, 0.5), users)
    z = rng.normal(size=(users, pairs, rank)).astype(np.float32)
    z *= np.sign(np.einsum("unk,uk->un", z, truth))[..., None].astype(np.float32)
    prior = Prior(jnp.full(rank, 1 / rank), jnp.eye(rank))
    mask = jnp.ones((users, pairs), bool)
    program = jax.jit(lambda z: solve.logistic(z, mask, prior).weights)
    first, ours, weights = timed(lambda: program(z), repeats=20)
    start = time.perf_counter()
    for user in range(sample):
        _adam(z[user])
    loop = (time.perf_counter() - start) * users / sample
    fresh = rng.normal(size=(users, 100, rank))
    agree = np.mean(
        np.sign(np.einsum("unk,uk->un", fresh, truth)) == np.sign(np.einsum("unk,uk->un", fresh, np.asarray(weights)))
    )
    return [
        result(
            "lore_solve",
            f"{users} users, {pairs} pairs, K={rank}",
            loop,
            ours,
            users_a_second=users / ours,
            accuracy=float(agree),
            baseline_users_measured=sample,
            first_call_seconds=first,
        )
    ]


def _adam(z: np.ndarray, steps: int = 500, rate: float = 0.1) -> np.ndarray:
    """The reference few-shot recipe for one user in NumPy: Adam on softmax weights (DESIGN 4.4)."""
    logits, mean, square = np.zeros(z.shape[1]), np.zeros(z.shape[1]), np.zeros(z.shape[1])
    for step in range(1, steps + 1):
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        slope = -(z / (1 + np.exp(z @ weights))[:, None]).mean(axis=0)
        gradient = weights * (slope - slope @ weights)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        logits -= rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights
