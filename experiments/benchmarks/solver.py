"""LoRe's solver: weights of new users on a given basis, from hundreds of them to millions."""

import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measure import Result, in_new_process, memory, result, timed
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from lore_jax.weights.streaming import in_blocks, over_users, solve_stream, weights_of
from pref_jax.comparisons import Comparisons
from pref_jax.files import reserve
from pref_jax.mesh import make_mesh

SCALES = (10**3, 10**4, 10**5, 10**6)
STREAMED = (10**5, 10**6)


def lore_solve(
    users: int = 500,
    pairs: int = 9,
    rank: int = 5,
    sample: int = 25,
    scales: tuple[int, ...] = SCALES,
    streamed: tuple[int, ...] = STREAMED,
) -> list[Result]:
    """New users' weights in closed form against 500 steps of Adam for one user after another: in one call; at scale,
    cut over this machine's cores; and streamed from votes and rewards on disk.
    """
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(rank, 0.5), users)
    z = _pairs(rng, truth, pairs)
    mask, prior = jnp.ones((users, pairs), bool), _prior(rank)
    program = jax.jit(lambda z: solve_weights(z, mask, prior).weights)
    first, ours, weights = timed(lambda: program(z), repeats=20)
    start = time.perf_counter()
    for user in range(sample):
        _adam(z[user])
    loop = (time.perf_counter() - start) / sample
    fresh = rng.normal(size=(users, 100, rank))
    agree = np.mean(
        np.sign(np.einsum("unk,uk->un", fresh, truth)) == np.sign(np.einsum("unk,uk->un", fresh, np.asarray(weights)))
    )
    facts = {"accuracy": float(agree), "baseline_users_measured": sample, "first_call_seconds": first}
    rows = [_row(users, f"{pairs} pairs, K={rank}", loop, ours, **facts)]
    for function, label, sizes in (("at_scale", "", scales), ("from_disk", ", streamed", streamed)):
        for size in sizes:
            told = in_new_process(__name__, function, size, pairs, rank)
            seconds = told.pop("seconds")
            rows.append(_row(size, f"{pairs} pairs, K={rank}{label}", loop, seconds, **told))
    return rows


def _row(users: int, what: str, loop: float, seconds: float, **facts: float) -> Result:
    """One result; the baseline's time for one user is taken times the users."""
    size = f"{users} users, {what}"
    return result("lore_solve", size, loop * users, seconds, users_a_second=users / seconds, **facts)


def _prior(rank: int) -> Prior:
    return Prior(jnp.full(rank, 1 / rank), jnp.eye(rank))


def _pairs(rng: np.random.Generator, truth: np.ndarray, pairs: int) -> np.ndarray:
    """Differences of basis rewards [U n K], the better response first."""
    z = rng.standard_normal((len(truth), pairs, truth.shape[1]), np.float32)
    z *= np.sign(np.einsum("unk,uk->un", z, truth))[..., None].astype(np.float32)
    return z


def _use_all_cores() -> None:
    """A device a core, unless the environment asks for another number; to be called before JAX starts."""
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def at_scale(users: int, pairs: int, rank: int) -> dict[str, float]:
    """Seconds of one call for all users, pairs in memory, users cut over the cores."""
    _use_all_cores()
    mesh = make_mesh()
    method = over_users(in_blocks(weights_of("logistic")), mesh, mesh.axis_names)
    rng = np.random.default_rng(1)
    z = jnp.asarray(_pairs(rng, rng.dirichlet(np.full(rank, 0.5), users), pairs))
    mask, prior = jnp.ones(z.shape[:2], bool), _prior(rank)
    program = jax.jit(method)
    first, seconds, _ = timed(lambda: program(z, mask, prior), repeats=5)
    return {"seconds": seconds, "first_call_seconds": first}


def from_disk(users: int, pairs: int, rank: int) -> dict[str, float]:
    """Seconds of streaming all users from memory maps to a memory map, and its memory, mapped files apart."""
    _use_all_cores()
    mesh = make_mesh()
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as folder:

        def on_disk(name: str, shape: tuple[int, ...], dtype: type) -> np.memmap:
            found = np.memmap(Path(folder) / name, dtype, "w+", shape=shape)
            reserve(Path(folder) / name)
            return found

        rewards = on_disk("rewards", (20_000, rank), np.float32)
        rewards[:] = rng.standard_normal(rewards.shape, np.float32)
        votes = Comparisons(*(on_disk(name, (users * pairs,), np.int32) for name in Comparisons._fields[:3]))
        part = 10_000 * pairs
        for low in range(0, users * pairs, part):
            here = slice(low, min(low + part, users * pairs))
            votes.user[here] = np.arange(here.start, here.stop) // pairs
            for side in (votes.chosen, votes.rejected):
                side[here] = rng.integers(0, len(rewards), here.stop - here.start)
        out = on_disk("weights", (users, rank), np.float32)
        small = votes.take(slice(2000 * pairs))
        for _ in solve_stream(rewards, small, 2000, _prior(rank), mesh=mesh):
            pass
        before = anonymous = memory().get("RssAnon", 0)
        start = time.perf_counter()
        for which, weights in solve_stream(rewards, votes, users, _prior(rank), mesh=mesh):
            out[which] = weights
            anonymous = max(anonymous, memory().get("RssAnon", 0))
        return {"seconds": time.perf_counter() - start, "streaming_bytes": anonymous - before, "before_bytes": before}


def _adam(z: np.ndarray, steps: int = 500, rate: float = 0.1) -> np.ndarray:
    """The reference few-shot recipe for one user in NumPy: Adam on softmax weights."""
    logits, mean, square = np.zeros(z.shape[1]), np.zeros(z.shape[1]), np.zeros(z.shape[1])
    for step in range(1, steps + 1):
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        slope = -(z / (1 + np.exp(z @ weights))[:, None]).mean(axis=0)
        gradient = weights * (slope - slope @ weights)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        logits -= rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights
