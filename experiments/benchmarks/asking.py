"""LoRe, choosing questions: how many answers a well-chosen pair saves, and what choosing costs.

Axis letters: U users, n pairs of the pool, K basis, S answers of a run.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measure import Result, result, timed
from experiments.benchmarks.tastes import interval, make_world
from lore_jax.online import acquisition, bayes_filter, posterior_sampling
from lore_jax.online import sliding_window as windows
from lore_jax.online.simulate import Strategy, World, answered, questioned

STRATEGIES: tuple[Strategy, ...] = ("random", "bald", "bald_mc")
# The others should reach with fewer answers the accuracy that "random" reaches with this many.
GOAL = 20


def lore_active(
    users: int = 1000, pairs: int = 400, rank: int = 5, trials: int = 20, sample: int = 20, each: int = 200
) -> list[Result]:
    """Answers that each strategy needs to be as good as 20 random ones, and the time of one choice for all users."""
    return [
        _world(users, pairs, rank, trials, sample, each, uneven, strength)
        for uneven, strength in ((0.0, 3.0), (1.0, 3.0), (1.0, 6.0))
    ]


def needed(curve: np.ndarray, goal: float) -> int:
    """Answers after which the accuracy first reaches the goal; one more than there are if never."""
    reached = np.flatnonzero(curve >= goal)
    return int(reached[0]) if len(reached) else len(curve)


def _world(
    users: int, pairs: int, rank: int, trials: int, sample: int, each: int, uneven: float, strength: float
) -> Result:
    curves: dict[str, list[np.ndarray]] = {name: [] for name in STRATEGIES}
    for trial in range(trials):
        world = make_world(trial, users=each, pairs=pairs, rank=rank, uneven=uneven, strength=strength)
        for name in STRATEGIES:
            curves[name].append(np.asarray(questioned(jax.random.key(trial), world, name)))
    goals = [curve[GOAL] for curve in curves["random"]]
    told: dict[str, Any] = {"accuracy_of_20_random": interval(goals)}
    for name in STRATEGIES[1:]:
        told[f"answers_needed_{name}"] = interval([needed(c, g) for c, g in zip(curves[name], goals, strict=True)])
        told[f"accuracy_of_8_{name}"] = interval([c[8] for c in curves[name]])
    told["accuracy_of_8_random"] = interval([c[8] for c in curves["random"]])
    world = make_world(0, users=users, pairs=pairs, rank=rank, uneven=uneven, strength=strength)
    ours, loop, agree = _choosing(world, sample)
    size = f"{users} users, {pairs} pairs, K={rank}, log-norms +-{uneven:g}, strength {strength:g}"
    told |= {"trials": trials, "users_a_trial": each, "seconds_posterior": _drawing(world)}
    return result("lore_active", size, loop, ours, baseline_users_measured=sample, same_choice=agree, **told)


def _three_answers(world: World) -> list[jax.Array]:
    """Three answers [U K] of every user to pairs of the pool."""
    users, pairs = len(world.truth), len(world.pool)
    places = jnp.arange(users) * 7 % pairs
    return [answered(jax.random.key(step), world.pool[places - step], world.truth) for step in range(3)]


def _drawing(world: World) -> float:
    """Seconds of one choice for all users by draws from the posterior."""
    window = windows.start(world.prior, len(world.truth), GOAL)
    for z in _three_answers(world):
        window = windows.update(window, z, None)
    open, key = jnp.ones((len(world.truth), len(world.pool)), bool), jax.random.key(0)
    program = jax.jit(lambda window: posterior_sampling.select_query(window, world.pool, open, key).index)
    return timed(lambda: program(window), repeats=5)[1]


def _choosing(world: World, sample: int) -> tuple[float, float, float]:
    """Seconds of one choice for all users, of NumPy's for one user after another, share of equal choices."""
    users, key = len(world.truth), jax.random.key(0)
    belief = bayes_filter.start(world.prior, users)
    for z in _three_answers(world):
        belief = bayes_filter.update(belief, z, None, bayes_filter.start(world.prior, 1), bayes_filter.UpdateRule())
    open = jnp.ones((users, len(world.pool)), bool)
    program = jax.jit(lambda belief: acquisition.select_queries(belief, world.pool, open, key).index[:, 0])
    _, ours, found = timed(lambda: program(belief), repeats=5)
    pool, weights, factor = (np.asarray(x, np.float64) for x in (world.pool, belief.weights, belief.factor))
    begin = time.perf_counter()
    alone = [_most_informative(weights[user], factor[user], pool) for user in range(sample)]
    loop = (time.perf_counter() - begin) * users / sample
    return ours, loop, float(np.mean(np.asarray(found)[:sample] == alone))


def _most_informative(weights: np.ndarray, factor: np.ndarray, pool: np.ndarray, nodes: int = 32) -> int:
    """The pair of the largest mutual information for one user in NumPy, by Gauss-Hermite quadrature."""
    at, mass = np.polynomial.hermite_e.hermegauss(nodes)
    deviation = np.sqrt(np.sum((pool @ factor) ** 2, axis=1))
    logits = (pool @ weights)[:, None] + deviation[:, None] * at
    mass = mass / mass.sum()
    share = np.exp(-np.logaddexp(0, -logits))
    noise = np.logaddexp(0, -logits) + logits * (1 - share)
    mean = np.clip(share @ mass, 1e-12, 1 - 1e-12)
    total = -mean * np.log(mean) - (1 - mean) * np.log1p(-mean)
    return int(np.argmax(total - noise @ mass))
