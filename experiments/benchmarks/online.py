"""LoRe, one answer at a time: what an update costs, and how soon a changed taste is known again.

Axis letters: U users, n answers so far, K basis, S answers of a run.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measure import Result, in_turns, result
from experiments.benchmarks.tastes import interval, make_world
from lore_jax.online import bayes_filter, change_detection
from lore_jax.online import sliding_window as windows
from lore_jax.online.simulate import World, accuracy, answer_stream, run_refit, run_watched
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights

# How far below the level before the change an accuracy still counts as recovered.
TOLERANCE = 0.05


def lore_online(
    users: int = 10_000, rank: int = 5, trials: int = 20, drifting: int = 200, change: int = 50, after: int = 100
) -> list[Result]:
    """One answer of every user, one user's call, and users whose taste flips, against refits from all answers."""
    return [
        _update(users, rank, rounds=5, each=4),
        _update(1, rank, rounds=5, each=100),
        _changing(trials, drifting, rank, change, after, turned=True),
        _changing(trials, drifting, rank, change, after, turned=False),
    ]


def _update(users: int, rank: int, *, rounds: int, each: int, past: int = 50, window: int = 20) -> Result:
    """Updates of all kinds after `past` answers; the baseline solves the logistic MAP again from all of them."""
    rng = np.random.default_rng(0)
    prior = Prior(jnp.full(rank, 0.5), jnp.eye(rank))
    answers = jnp.asarray(rng.normal(size=(users, past, rank)), jnp.float32)
    z, origin = answers[:, -1], bayes_filter.start(prior, 1)
    events = jnp.asarray(rng.permutation(users), jnp.int32)
    logistic = bayes_filter.UpdateRule()
    rules = {"logistic": logistic, "ridge": bayes_filter.UpdateRule(likelihood="ridge")}
    rules |= {"forgetting": bayes_filter.UpdateRule(forgetting_factor=0.98)}
    observe = {
        name: jax.jit(lambda state, z, rule=rule: bayes_filter.update(state, z, None, origin, rule))
        for name, rule in rules.items()
    }
    track = jax.jit(lambda state, z: change_detection.track(state, z, None, origin, logistic))
    slide = jax.jit(lambda state, z: windows.update(state, z, None))
    arrive = jax.jit(
        lambda state, user, z: bayes_filter.in_order(
            lambda rows, z, mask: bayes_filter.update(rows, z, mask, origin, logistic), state, user, z
        )
    )
    refit = jax.jit(lambda z: solve_weights(z, None, prior).weights)
    belief, watched = bayes_filter.start(prior, users), change_detection.start_tracker(prior, users)
    kept = windows.start(prior, users, window)
    for step in range(past):
        belief, watched = observe["logistic"](belief, answers[:, step]), track(watched, answers[:, step])
    for step in range(window + 1):
        kept = slide(kept, answers[:, step])
    runs = {name: partial(run, belief, z) for name, run in observe.items()}
    runs |= {
        "tracked": lambda: track(watched, z),
        "events": lambda: arrive(belief, events, z),
        f"exact_last_{window}": lambda: slide(kept, z),
        "refit": lambda: refit(answers),
    }
    seconds = dict(zip(runs, in_turns(list(runs.values()), rounds=rounds, each=each), strict=True))
    size = f"{users} user{'s' * (users > 1)}, one answer each, K={rank}"
    told = {f"microseconds_a_user_{name}": 1e6 * span / users for name, span in seconds.items()}
    return result("lore_online", size, seconds["refit"], seconds["logistic"], answers_before=past, **told)


@partial(jax.jit, static_argnames=("rule",))
def run_fading(world: World, answers: jax.Array, truth: jax.Array, rule: bayes_filter.UpdateRule) -> jax.Array:
    """Accuracy after each answer [S] with forgetting and nothing watched."""
    origin = bayes_filter.start(world.prior, 1)

    def step(state, given):
        z, now = given
        state = bayes_filter.update(state, z, None, origin, rule)
        return state, accuracy(state.weights, now, world.test)

    return jax.lax.scan(step, bayes_filter.start(world.prior, answers.shape[1]), (answers, truth))[1]


def recovered(curve: np.ndarray, change: int, tolerance: float = TOLERANCE) -> int:
    """Answers after the change from which on the accuracy stays within the tolerance of the last one before it."""
    low = np.flatnonzero(curve[change:] < curve[change - 1] - tolerance)
    return int(low[-1]) + 2 if len(low) else 0


def _changing(trials: int, users: int, rank: int, change: int, after: int, *, turned: bool) -> Result:
    """Populations whose tastes all turn round, or are drawn again, after `change` answers to random pairs."""
    logistic, fading = bayes_filter.UpdateRule(), bayes_filter.UpdateRule(forgetting_factor=0.95)
    curves: dict[str, list[np.ndarray]] = {name: [] for name in ("watched", "forgetting", "refit")}
    steady: dict[str, list[float]] = {"watched": [], "refit": [], "false_alarms": []}
    seconds = {"watched": 0.0, "refit": 0.0}
    for trial in range(trials):
        world = make_world(trial, users=users, pairs=400, rank=rank, uneven=0.0, strength=6.0)
        same = jnp.broadcast_to(world.truth[None], (change + after, users, rank))
        # Everyone gets someone else's taste: a new one from the same population.
        other = -world.truth if turned else jnp.roll(world.truth, 1, axis=0)
        truth = jnp.where(jnp.arange(change + after)[:, None, None] < change, same, other[None])
        key = jax.random.key(trial)
        answers = answer_stream(key, world, truth, 400)
        curves["watched"].append(np.asarray(run_watched(world, answers, truth, logistic)[0]))
        curves["forgetting"].append(np.asarray(run_fading(world, answers, truth, fading)))
        curves["refit"].append(np.asarray(run_refit(world, answers, truth)))
        quiet = answer_stream(key, world, same, 400)
        level, alarms = run_watched(world, quiet, same, logistic)
        steady["watched"].append(float(level[-1]))
        steady["refit"].append(float(run_refit(world, quiet, same)[-1]))
        steady["false_alarms"].append(float(alarms[-1]) / (change + after) * 1000)
        if trial == trials - 1:
            watched, refit = (partial(run, world, answers, truth) for run in (run_watched, run_refit))
            seconds = dict(zip(seconds, in_turns([partial(watched, logistic), refit], rounds=1, each=2), strict=True))
    told = _told(curves, steady, change, after)
    told |= {"trials": trials, "users_a_trial": users}
    size = f"taste {'flips' if turned else 'is drawn again'} after {change} answers, K={rank}"
    return result("lore_online", size, seconds["refit"], seconds["watched"], **told)


def _told(curves: dict[str, list[np.ndarray]], steady: dict[str, list[float]], change: int, after: int) -> Any:
    """Means over trials and halves of their intervals."""
    told: dict[str, Any] = {"tolerance": TOLERANCE, "answers_watched_after_the_change": after}
    for name, curve in curves.items():
        told[f"recovered_within_{name}"] = interval([recovered(c, change) for c in curve])
        told[f"accuracy_before_{name}"] = interval([c[change - 1] for c in curve])
        told[f"accuracy_15_after_{name}"] = interval([c[min(change + 14, len(c) - 1)] for c in curve])
    told |= {f"steady_accuracy_{name}": interval(steady[name]) for name in ("watched", "refit")}
    return told | {"false_alarms_in_1000_answers": interval(steady["false_alarms"])}
