"""Methods on frozen features: a reward model's own head, one reward for all, one a user, and low-rank ones between.

Each learns from the seen users once and then predicts for any unseen users from their context votes.

Axis letters: U users, n votes a user (padded), P votes, N responses, D features.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lore_jax.fitting import bradley_terry, model_selection
from lore_jax.fitting.principal import fit_principal
from lore_jax.fitting.published import fit_published, fit_published_anchored
from lore_jax.fitting.settings import PublishedConfig
from pref_jax.comparisons import Comparisons, Ratings, concatenate, decided
from pref_jax.errors import UserError
from pref_jax.eval.controls import REVERSED, SHUFFLED, another_user, effective_rank
from pref_jax.standardiser import fit_standardiser, standardise
from pref_jax.user_modes import solve_modes

Margins = np.ndarray
# Users or votes whose [n D] features are gathered at a time.
BLOCK = 256
NO_CHOICE = "no vote is held out to choose by"
OWN_VARIANCES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What methods learn from and are tested on; users are numbered from 0, the seen ones first.

    Attributes:
      features: float32 [N D] of all responses.
      train, validation: votes of the seen users.
      context: votes of the unseen users, who are numbered from 0 here.
      test: pairs of all users, as they prefer.
      seen: bool [U].
      head: float32 [D], a reward model that knows no user; None: there is none.
      ratings: of the seen users, to learn from and to choose by; None: there are none. LoRe and what shares its
        likelihood read them, and ties and strengths; other methods learn from decided votes.
      context_ratings: of the unseen users.
    """

    features: np.ndarray
    train: Comparisons
    validation: Comparisons
    context: Comparisons
    test: Comparisons
    seen: np.ndarray
    head: np.ndarray | None = None
    ratings: tuple[Ratings, Ratings] | None = None
    context_ratings: Ratings | None = None

    @property
    def num_seen(self) -> int:
        """Users to learn from."""
        return int(self.seen.sum())

    @property
    def num_unseen(self) -> int:
        """Users known by their context votes alone."""
        return len(self.seen) - self.num_seen

    @property
    def answers(self) -> Comparisons:
        """All votes of the seen users, for what chooses nothing by validation votes."""
        return join(self.train, self.validation)


class Model(NamedTuple):
    """What a method has learned from the seen users.

    predict: (context votes of unseen users numbered from 0, how many there are, test votes) -> margins [P]. In the
      test votes unseen users are numbered after the seen ones. They may be others than the task's, or more.
    facts: what the fit says of itself, as JSON values.
    found: the fit, where the method is a basis and weights.
    """

    predict: Callable[[Comparisons, int, Comparisons], Margins]
    facts: dict[str, Any]
    found: bradley_terry.Fit | None = None


def join(*votes: Comparisons) -> Comparisons:
    """One table of votes after the other."""
    return concatenate(votes)


def margins(task: Task, model: Model) -> Margins:
    """Margins [P] of the task's test pairs, its unseen users known by all of their context."""
    return model.predict(task.context, task.num_unseen, task.test)


def controls(task: Task, model: Model, seed: int) -> dict[str, Margins]:
    """The test pairs by another user's parameters, and of unseen users by their votes turned round."""
    others = task.test._replace(user=another_user(task.seen, seed)[task.test.user])
    turned = model.predict(task.context.reversed(), task.num_unseen, task.test)
    return {
        SHUFFLED: model.predict(task.context, task.num_unseen, others),
        REVERSED: np.where(task.seen[task.test.user], np.nan, turned),
    }


def given(task: Task) -> Model:
    """A reward model's own head, which learns nothing (K = 0).

    Raises:
      UserError: if the task has no head.
    """
    if task.head is None:
        raise UserError("no reward head is given; leave that method out, or take a backbone with a score head")
    rewards = task.features @ task.head
    return Model(lambda context, count, test: (rewards[test.chosen] - rewards[test.rejected]).astype(np.float64), {})


def shared(task: Task, config: bradley_terry.LoReConfig | None = None) -> Model:
    """One linear Bradley-Terry reward for everyone (K = 1)."""
    options: Any = {"config": config, "ratings": task.ratings}
    return fitted(task, bradley_terry.shared(task.features, task.train, task.validation, task.num_seen, **options))


def hierarchical(task: Task, config: bradley_terry.LoReConfig | None = None) -> Model:
    """LoRe by the full search (None), or as configured; `lore_jax.fitting.model_selection.fit`."""
    config = config or bradley_terry.LoReConfig()
    options: Any = {"config": config, "ratings": task.ratings}
    return fitted(task, model_selection.fit(task.features, task.train, task.validation, task.num_seen, **options))


def principal(task: Task, config: bradley_terry.LoReConfig | None = None) -> Model:
    """Weights on principal directions of the votes' differences; `lore_jax.fitting.principal`."""
    options: Any = {"config": config, "ratings": task.ratings}
    return fitted(task, fit_principal(task.features, task.train, task.validation, task.num_seen, **options))


def fixed_rank(config: bradley_terry.LoReConfig, rank: int) -> bradley_terry.LoReConfig:
    """The config without a choice of how many basis rewards: shared reward and spread, or tastes, `rank` in all."""
    alone = rank == 1
    ranks, components = () if alone else (rank - 1,), () if alone else (rank,)
    return dataclasses.replace(config, ranks=ranks, components=components, allow_shared=alone)


def published(task: Task, config: PublishedConfig, seed: int) -> Model:
    """LoRe by the published recipe; unseen users' weights are solved on the simplex."""
    options: dict[str, Any] = {"rank": config.rank, "seed": seed}
    if config.steps:
        options["steps"] = config.steps
    if config.recipe == "anchored" and task.head is not None:
        recipe = config.recipe
        found = fit_published_anchored(task.features, task.answers, task.num_seen, anchor=task.head, **options)
    else:
        recipe, found = (
            "reference",
            fit_published(task.features, task.answers, task.num_seen, **options),
        )
    model = fitted(task, found)
    return model._replace(facts={**model.facts, "recipe": recipe})


def fitted(task: Task, found: bradley_terry.Fit) -> Model:
    """A fit of `lore_jax` to the task's seen users; unseen users' weights in the fit's own way."""

    def predict(context: Comparisons, count: int, test: Comparisons) -> Margins:
        # Ratings go with the whole context; a part of it is of votes alone.
        ratings = task.context_ratings if context is task.context else None
        unseen = model_selection.adapt(found, task.features, context, count, ratings=ratings)
        weights = jnp.concatenate([found.weights[: task.num_seen], unseen])
        return np.asarray(model_selection.predict(found, task.features, weights, test), np.float64)

    return Model(predict, _facts(found), found)


def _facts(found: bradley_terry.Fit) -> dict[str, Any]:
    facts = {"chosen": found.chosen, "candidates": list(found.candidates), "rank": int(found.basis.shape[1])}
    if found.kind not in ("shared", "group"):
        facts["effective_rank"] = effective_rank(np.asarray(found.weights))
    if found.chosen.get("log_loss", 0) is None:
        facts["fallback"] = f"{NO_CHOICE}: it is the shared reward of prior variance {found.chosen['variance']:g}"
    return facts


def per_group(task: Task, groups: np.ndarray, config: bradley_terry.LoReConfig | None = None) -> Model:
    """The oracle: one linear reward a group; `groups` int [U] tells those of all users, unseen ones too."""
    options: Any = {"config": config, "ratings": task.ratings}
    found = bradley_terry.per_group(task.features, task.train, task.validation, groups, **options)

    def predict(context: Comparisons, count: int, test: Comparisons) -> Margins:
        del context, count
        return np.asarray(model_selection.predict(found, task.features, found.weights, test), np.float64)

    return Model(predict, _facts(found))


def single(task: Task, variances: tuple[float, ...] = OWN_VARIANCES) -> Model:
    """A linear reward for each user alone: the MAP of a logistic regression on all features.

    Ties are left out. The prior variance is that of a logit, for all users the one of the best log-loss on the
    validation votes; without such votes `bradley_terry.VARIANCE`.
    """
    validation = decided(task.validation)
    rows = np.unique(np.concatenate([task.answers.chosen, task.answers.rejected]))
    phi = np.asarray(standardise(fit_standardiser(task.features[rows]), jnp.asarray(task.features, jnp.float32)))

    def solved(votes: Comparisons, users: int, variance: float) -> np.ndarray:
        nothing: Any = {"embeddings": phi, "bias": np.zeros(len(phi), np.float32)}
        start = np.zeros((users, phi.shape[1]), np.float32)
        return solve_modes(start, decided(votes), precision=phi.shape[1] / variance, **nothing)

    def loss(variance: float) -> float:
        own = _products(phi, solved(task.train, task.num_seen, variance), validation)
        return float(np.logaddexp(0, -own).mean())

    chosen_by = len(validation.user) > 0
    losses = {variance: loss(variance) for variance in variances} if chosen_by else {bradley_terry.VARIANCE: None}
    best = min(losses, key=lambda variance: losses[variance] or 0)
    known = solved(task.answers, task.num_seen, best)

    def predict(context: Comparisons, count: int, test: Comparisons) -> Margins:
        return _products(phi, np.concatenate([known, solved(context, count, best)]), test)

    tried = [{"variance": variance, "log_loss": value} for variance, value in losses.items()]
    facts = {"variance": best, "validation_log_loss": losses[best], "candidates": tried}
    return Model(predict, facts if chosen_by else {**facts, "fallback": f"{NO_CHOICE}: prior variance {best:g}"})


@jax.jit
def _products_program(features, weights, user, chosen, rejected):
    def product(row):
        u, c, r = row
        return (features[c] - features[r]) @ weights[u]

    return lax.map(product, (user, chosen, rejected), batch_size=BLOCK)


def _products(features, weights, votes: Comparisons) -> Margins:
    """Margins [P] of votes by users with directions [U D]."""
    return np.asarray(_products_program(features, weights, *(jnp.asarray(x, jnp.int32) for x in votes[:3])), np.float64)
