"""LoRe's basis at work: what its rewards mean, new users answer by answer, and simulated users who can be asked.

New users answer as they did in the data. Simulated ones, whose taste is known, answer whatever they are asked, and may
change. For notebooks and benchmarks.

Axis letters: U users, M new users, N responses, n pairs of the pool, T pairs of the test, K basis, S answers, P pairs,
D features.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lore_jax.comparisons import make_table
from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import Fit, LoReConfig
from lore_jax.online import acquisition, bayes_filter, change_detection, posterior_sampling, sliding_window
from lore_jax.online.bayes_filter import GaussianPosterior
from lore_jax.reward import basis_rewards, differences
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.comparisons import Comparisons
from pref_jax.data.preferences import Preferences
from pref_jax.eval.metrics import Interval, group_metrics, student_interval
from pref_jax.eval.reporting.results import result_row
from pref_jax.standardiser import standardise

# "bald_mc": the same score from draws of the exact posterior instead of the Laplace approximation.
Strategy = acquisition.Strategy | Literal["bald_mc"]


class World(NamedTuple):
    """Truth [U K] and a prior learned from other users' answers; pool [n K] to ask from, test [T K]; float32."""

    truth: jax.Array
    prior: Prior
    pool: jax.Array
    test: jax.Array


def answered(key: jax.Array, z: jax.Array, truth: jax.Array) -> jax.Array:
    """The pairs [U K] as the users answer them, by Bradley-Terry: chosen minus rejected."""
    margin = jnp.sum(z * truth, -1)
    return jnp.where(jax.random.bernoulli(key, jax.nn.sigmoid(margin))[:, None], z, -z)


def accuracy(weights: jax.Array, truth: jax.Array, test: jax.Array) -> jax.Array:
    """Share of the test's pairs [T K] that weights put in the order that the truth puts them, mean over users."""
    return jnp.mean(jnp.sign(test @ weights.T) == jnp.sign(test @ truth.T))


class Learned(NamedTuple):
    """Data, LoRe fitted to it, weights [U K] of all users (new ones' from all their answers), basis rewards [N K]."""

    data: Preferences
    fit: Fit
    weights: np.ndarray
    rewards: np.ndarray


def learned(data: Preferences, features: np.ndarray, *, config: LoReConfig | None = None) -> Learned:
    """LoRe fitted to the seen users' votes on features [N D], and the weights that the unseen users' answers give."""
    train, validation = (data.pairs(split, seen=True) for split in ("train", "validation"))
    found = model_selection.fit(features, train, validation, data.num_users, config=config)
    weights, own = np.array(found.weights), _context(data)
    weights[~data.seen] = np.asarray(model_selection.adapt(found, features, own, int((~data.seen).sum())))
    rewards = basis_rewards(standardise(found.standardiser, jnp.asarray(features)), found.basis)
    return Learned(data, found, weights, np.asarray(rewards))


def _context(data: Preferences) -> Comparisons:
    """What the new users answered, numbered from 0."""
    context = data.pairs("train", seen=False)
    return Comparisons(np.searchsorted(np.flatnonzero(~data.seen), context.user), context.chosen, context.rejected)


def basis_rows(found: Learned) -> list[dict[str, Any]]:
    """A row as of `results.json` for each basis reward: how often it alone puts test pairs in their users' order."""
    test = found.data.pairs("test")
    z = _differences(found, test)
    return [
        result_row(method=f"basis reward {k + 1}", seed=0, metrics=_metrics(found, margins, test), seconds=0)
        for k, margins in enumerate(z.T)
    ]


def beliefs(found: Learned) -> GaussianPosterior:
    """What is known of the new users before any answer and after each, in the order they came: leaves lead with S + 1.

    Bradley-Terry from `prior`, a Gaussian: for fits of other kinds not quite what `fit.adapt` does. A user with fewer
    answers than others stays at the last one.
    """
    count = int((~found.data.seen).sum())
    table = make_table(_context(found.data), None, count, found.data.num_responses, split=False)
    answers = int(table.train.sum(1).max(initial=0))
    z = differences(jnp.asarray(found.rewards), table.chosen, table.rejected)[:count, :answers]
    return _observed(prior(found), z, table.train[:count, :answers])


def prior(found: Learned) -> Prior:
    """The Gaussian of a new user's weights: the fit's own, or the first two moments of its population.

    On the simplex a fit holds weights by their bounds and hardly by its precision; there the moments are the seen
    users'.
    """
    if found.fit.kind != "simplex":
        return Prior(found.fit.mean, found.fit.precision)
    weights = jnp.asarray(found.weights[found.data.seen])
    covariance = jnp.cov(weights.T, bias=True).reshape(weights.shape[1], -1)
    # They sum to 1, so that in one direction they do not vary.
    return Prior(weights.mean(0), jnp.linalg.inv(covariance + 1e-3 * jnp.eye(len(covariance))))


@jax.jit
def _observed(prior: Prior, z: jax.Array, mask: jax.Array) -> GaussianPosterior:
    origin, begin = bayes_filter.start(prior, 1), bayes_filter.start(prior, len(z))

    def step(belief, given):
        belief = bayes_filter.update(belief, given[0], given[1], origin, bayes_filter.UpdateRule())
        return belief, belief

    after = lax.scan(step, begin, (jnp.moveaxis(z, 1, 0), mask.T))[1]
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), begin, after)


def weight_path(belief: GaussianPosterior, user: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [S + 1, K] of one user's weights, from `beliefs`."""
    variance = jax.vmap(bayes_filter.covariance)(belief)[:, user].diagonal(axis1=-2, axis2=-1)
    return np.asarray(belief.weights[:, user]), np.sqrt(np.asarray(variance))


def accuracy_by_answer(found: Learned, belief: GaussianPosterior) -> dict[int, Interval]:
    """Accuracy of the new users on their test pairs, by the answers given; `belief` from `beliefs`."""
    test = found.data.pairs("test", seen=False)
    own = np.searchsorted(np.flatnonzero(~found.data.seen), test.user)
    z = _differences(found, test)
    return {
        count: _metrics(found, np.einsum("pk,pk->p", z, weights[own]), test)["unseen/accuracy"]
        for count, weights in enumerate(np.asarray(belief.weights))
    }


def _differences(found: Learned, pairs: Comparisons) -> np.ndarray:
    return found.rewards[pairs.chosen] - found.rewards[pairs.rejected]


def _metrics(found: Learned, margins: np.ndarray, pairs: Comparisons) -> dict[str, Interval]:
    data = found.data
    return group_metrics(margins, pairs.user, pairs.controversial, data.seen, data.groups)


def simulated(found: Learned, *, users: int, pairs: int, seed: int = 0) -> World:
    """Users with the tastes of a run's seen users, who can be asked any pair that someone was asked.

    Args:
      found: the run.
      users: U; tastes are drawn with replacement.
      pairs: n at most, of the pool. The test has all different test pairs.
      seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    tastes = found.weights[found.data.seen]
    pool = _different(found, found.data.pairs("train"))
    pool = pool[rng.permutation(len(pool))[:pairs]]
    parts = (tastes[rng.integers(len(tastes), size=users)], pool, _different(found, found.data.pairs("test")))
    truth, pool, test = (jnp.asarray(part, jnp.float32) for part in parts)
    return World(truth, prior(found), pool, test)


def _different(found: Learned, pairs: Comparisons) -> np.ndarray:
    """Differences of basis rewards [n K] of the pairs, each once, whichever response was chosen."""
    both = np.unique(np.sort(np.stack([pairs.chosen, pairs.rejected], axis=1), axis=1), axis=0)
    return found.rewards[both[:, 0]] - found.rewards[both[:, 1]]


def opposites(world: World) -> jax.Array:
    """For each user the taste [U K], among those of all, that agrees with theirs on the fewest test pairs."""
    order = jnp.sign(world.test @ world.truth.T)
    return world.truth[jnp.argmin(order.T @ order, axis=1)]


def over_trials(curves: Sequence[Any]) -> dict[int, Interval]:
    """Mean and interval over trials of curves [S], by position."""
    return {place: student_interval(values, over="trials") for place, values in enumerate(np.stack(curves, axis=1))}


@partial(jax.jit, static_argnames=("strategy", "answers", "batch"))
def questioned(key: jax.Array, world: World, strategy: Strategy, answers: int = 20, batch: int = 1) -> jax.Array:
    """Accuracy before any answer and after each round of `batch` answers, every user asked by the strategy: [S + 1].

    "bald_mc" asks one pair at a time, whatever the batch.
    """
    batch = 1 if strategy == "bald_mc" else batch
    users, pairs = len(world.truth), len(world.pool)
    every = jnp.arange(users)

    def answer(window, given):
        index, key = given
        return sliding_window.update(window, answered(key, world.pool[index], world.truth), None), None

    def step(carry, key):
        window, open = carry
        ask, reply = jax.random.split(key)
        if strategy == "bald_mc":
            index = posterior_sampling.select_query(window, world.pool, open, ask).index
        else:
            index = acquisition.select_queries(
                window.belief, world.pool, open, ask, strategy=strategy, count=batch
            ).index
        window, _ = jax.lax.scan(answer, window, (index.T, jax.random.split(reply, batch)))
        level = accuracy(window.belief.weights, world.truth, world.test)
        return (window, open.at[every[:, None], index].set(False)), level

    window = sliding_window.start(world.prior, users, answers)
    begin = accuracy(window.belief.weights, world.truth, world.test)
    levels = jax.lax.scan(step, (window, jnp.ones((users, pairs), bool)), jax.random.split(key, answers // batch))[1]
    return jnp.concatenate([begin[None], levels])


@partial(jax.jit, static_argnames=("rule",))
def run_watched(
    world: World, answers: jax.Array, truth: jax.Array, rule: bayes_filter.UpdateRule
) -> tuple[jax.Array, jax.Array]:
    """Accuracy after each answer [S], watched and updated by one step each, and alarms [S] so far."""
    origin = bayes_filter.start(world.prior, 1)

    def step(state, given):
        z, now = given
        state = change_detection.track(state, z, None, origin, rule)
        return state, (accuracy(state.belief.weights, now, world.test), state.alarms.mean())

    return jax.lax.scan(step, change_detection.start_tracker(world.prior, answers.shape[1]), (answers, truth))[1]


@jax.jit
def run_refit(world: World, answers: jax.Array, truth: jax.Array) -> jax.Array:
    """Accuracy after each answer [S] of the exact MAP from all answers so far."""
    table = jnp.moveaxis(answers, 0, 1)

    def step(_, given):
        place, now = given
        mask = jnp.broadcast_to(jnp.arange(table.shape[1])[None] <= place, table.shape[:2])
        return None, accuracy(solve_weights(table, mask, world.prior).weights, now, world.test)

    return jax.lax.scan(step, None, (jnp.arange(table.shape[1]), truth))[1]


def answer_stream(key: jax.Array, world: World, truth: jax.Array, pairs: int) -> jax.Array:
    """Random pairs of the pool, answered by the taste of each moment: [S U K] from truth [S U K]."""
    ask, reply = jax.random.split(key)
    z = world.pool[jax.random.randint(ask, truth.shape[:2], 0, pairs)]
    return jax.vmap(answered)(jax.random.split(reply, len(truth)), z, truth)
