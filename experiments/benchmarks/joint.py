"""LoRe's joint fit: the fast recipe against the published one, looped over users in torch and jitted.

Axes: U users, n votes a user, D features, K basis.
"""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.benchmarks import reference
from experiments.benchmarks.measure import Result, result, timed
from lore_jax.fitting import variable_projection
from pref_jax.comparisons import Comparisons

RATE = 0.5


class Case(NamedTuple):
    """A size: U users, n votes a user, D features, K basis."""

    users: int
    votes: int
    features: int
    rank: int


CASES = (Case(500, 45, 384, 5), Case(500, 45, 4096, 25))


class World(NamedTuple):
    """Features of responses [2 U n, D], one pair a vote; the votes; fresh differences [U m D] and what users think of
    them, [U m] (true: the first is better).
    """

    features: jax.Array
    votes: Comparisons
    fresh: np.ndarray
    better: np.ndarray


def make_world(case: Case, *, fresh: int = 20, seed: int = 0) -> World:
    """Tastes of Dirichlet(0.5) over K directions; votes drawn by Bradley-Terry, so that about one in six is a slip."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(case.features, case.rank)).astype(np.float32) * 3 / np.sqrt(case.features)
    tastes = rng.dirichlet(np.full(case.rank, 0.5), case.users).astype(np.float32)
    features = rng.standard_normal((2 * case.users * case.votes, case.features), np.float32)
    rewards = (features @ basis).reshape(case.users, case.votes, 2, case.rank)
    margin = np.einsum("unk,uk->un", rewards[:, :, 0] - rewards[:, :, 1], tastes).ravel()
    first = rng.random(len(margin)) < 1 / (1 + np.exp(-margin))
    pairs = np.arange(len(features)).reshape(-1, 2)
    chosen, rejected = np.where(first, pairs.T, pairs.T[::-1])
    later = rng.standard_normal((case.users, fresh, case.features), np.float32)
    votes = Comparisons(np.repeat(np.arange(case.users), case.votes), chosen, rejected)
    return World(
        jnp.asarray(features), votes, later, np.einsum("umd,dk,uk->um", later, basis, tastes, optimize=True) > 0
    )


def lore_fit(cases: tuple[Case, ...] = CASES, steps: int = 1000, sample: int = 10) -> list[Result]:
    """The time to the loss at which the published recipe ends: twice a size, once against each form of that recipe."""
    return [row for case in cases for row in _case(case, steps, sample)]


def _case(case: Case, steps: int, sample: int) -> list[Result]:
    world = make_world(case)
    differences = world.features[world.votes.chosen] - world.features[world.votes.rejected]
    differences = differences.reshape(case.users, case.votes, case.features)
    params = _start(case)
    looped = _looped_step_seconds(np.asarray(differences), params, sample) * steps
    compiling, jitted, (params, goal) = _compiled_then_run(differences, params, steps)
    run = partial(variable_projection.fit_varpro, world.features, world.votes, case.users, rank=case.rank)
    compile_and_run, ours, found = timed(lambda: run(goal=goal), repeats=2)
    whole_seconds, whole = timed(run, repeats=1)[1:]
    shared = {
        "goal": goal,
        "loss": float(found.history[-1]),
        "iterations": int(np.argmax(np.asarray(found.history) == float(found.history[-1]))) + 1,
        "first_call_seconds": compile_and_run,
        "accuracy": _accuracy(world, found.basis @ found.weights.T),
        "recipe_accuracy": _accuracy(world, params["V"] @ jax.nn.softmax(params["W"]).T),
        "converged_seconds": whole_seconds,
        "converged_loss": float(whole.history[-1]),
        "converged_accuracy": _accuracy(world, whole.basis @ whole.weights.T),
    }
    size = f"{case.users} users x {case.votes}, d={case.features}, K={case.rank}, against "
    return [
        result("lore_fit", size + "torch, a loop over users", looped, ours, baseline_steps_measured=sample, **shared),
        result("lore_fit", size + "the recipe jitted", jitted, ours, baseline_compile_seconds=compiling, **shared),
    ]


def _start(case: Case) -> dict[str, jax.Array]:
    w_key, v_key = jax.random.split(jax.random.key(0))
    return {
        "W": jax.random.normal(w_key, (case.users, case.rank)),
        "V": jax.random.normal(v_key, (case.features, case.rank)),
    }


def _accuracy(world: World, tastes: jax.Array) -> float:
    """Share of fresh pairs that are judged as the user would; tastes [D U]."""
    judged = np.einsum("umd,du->um", world.fresh, np.asarray(tastes)) > 0
    return float(np.mean(judged == world.better))


@partial(jax.jit, static_argnames=("steps",))
def _jitted(differences: jax.Array, params: dict[str, jax.Array], steps: int):
    """The recipe from differences [U n D], which is less work than from responses; (parameters, loss at the end)."""
    optimizer = optax.adam(RATE)

    def loss(params):
        margins = jnp.einsum("unk,uk->un", differences @ params["V"], jax.nn.softmax(params["W"]))
        return jnp.sum(jnp.mean(jax.nn.softplus(-margins / 100), 1))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    last: Any = lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0]
    return last[0], loss(last[0])


def _compiled_then_run(
    differences: jax.Array, params: dict[str, jax.Array], steps: int
) -> tuple[float, float, tuple[dict[str, jax.Array], float]]:
    """Seconds of compiling and of one run, which takes minutes, and what it gives."""
    begin = time.perf_counter()
    program = _jitted.lower(differences, params, steps=steps).compile()
    compiled = time.perf_counter()
    found, loss = jax.block_until_ready(program(differences, params))
    return compiled - begin, time.perf_counter() - compiled, (found, float(loss))


def _looped_step_seconds(differences: np.ndarray, params: dict[str, jax.Array], sample: int) -> float:
    """Seconds of one step of the recipe in torch, whose loss is summed in a loop over users; mean of `sample` steps."""
    torch: Any = reference.library("torch")
    rows = torch.from_numpy(differences.copy())
    logits, basis = (torch.tensor(np.asarray(params[name]), requires_grad=True) for name in ("W", "V"))
    optimizer = torch.optim.Adam([logits, basis], lr=RATE)

    def step() -> None:
        weights = torch.softmax(logits, 1)
        total = torch.zeros(())
        for user in range(len(rows)):
            margins = rows[user] @ basis @ weights[user] / 100
            total = total - torch.nn.functional.logsigmoid(margins).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    step()
    start = time.perf_counter()
    for _ in range(sample):
        step()
    return (time.perf_counter() - start) / sample
