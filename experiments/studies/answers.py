"""LoRe's basis at work, for notebooks: what its rewards mean, and users who answer one by one.

The new users of a run answer as they did. Simulated ones, whose taste is known, answer what they are asked and may
change; `experiments.benchmarks.asking` and `.online` question them.

Axis letters: U users, M new users, N responses, n pairs of the pool, T pairs of the test, K basis, S answers, P pairs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.tastes import World
from experiments.runner.test_labels import load_test_labels
from experiments.runner.workspace import Workspace
from lore_jax.comparisons import make_table
from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import Fit
from lore_jax.online import bayes_filter
from lore_jax.online.bayes_filter import GaussianPosterior
from lore_jax.reward import basis_rewards, differences
from lore_jax.weights.objective import Prior
from pref_jax.comparisons import Comparisons
from pref_jax.data.preferences import Preferences
from pref_jax.eval.metrics import Interval, group_metrics, student_interval
from pref_jax.eval.reporting.results import result_row
from pref_jax.standardiser import standardise


class Learned(NamedTuple):
    """A run's data, LoRe fitted to it, weights [U K] of all users (new ones' from all their answers), rewards [N K]."""

    data: Preferences
    fit: Fit
    weights: np.ndarray
    rewards: np.ndarray


def learned(work: Workspace) -> Learned:
    """LoRe of a run whose features are there (`experiments.embed`), fitted as `experiments.lore` fits it."""
    data, features = load_test_labels(work, "a reader of the finished run"), np.asarray(work.features)
    votes, config = work.votes_by_prompt(0.2), work.lore
    found = model_selection.fit(features, *votes, data.num_users, config=config)
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
    table = make_table(_context(found.data), None, count, found.data.num_responses)
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
    """Users with the tastes of a run's seen users, who can be asked any pair that somebody was asked.

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
