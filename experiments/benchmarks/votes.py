"""Votes whose truth is known, for benchmarks of the graph: everyone answers random pairs of a common pool."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pref_jax.comparisons import Comparisons


@dataclasses.dataclass(frozen=True, kw_only=True)
class VotesConfig:
    """A world of votes.

    Attributes:
      users: U.
      prompts: pairs of responses that are voted on.
      each: training votes per user, of which one goes to validation.
      camps: users of one camp agree on everything; two camps disagree on everything, more of them on random halves.
        0: no camps, but four qualities that each user weighs by Dirichlet(0.1).
      noise: probability that a training or validation vote is the wrong way round; tests never are.
      tests: test votes per user.
      seed: of all draws.
    """

    users: int
    prompts: int
    each: int = 8
    camps: int = 2
    noise: float = 0.0
    tests: int = 10
    seed: int = 0


class Votes(NamedTuple):
    """Votes in three parts, rows of U users and `num_responses` responses, and each user's camp."""

    train: Comparisons
    validation: Comparisons
    test: Comparisons
    camp: Int[np.ndarray, " U"]
    num_responses: int


def draw(config: VotesConfig) -> Votes:
    """Draws the votes."""
    rng = np.random.default_rng(config.seed)
    every = config.each + config.tests
    user = np.repeat(np.arange(config.users, dtype=np.int32), every)
    prompt = rng.integers(config.prompts, size=len(user))
    number = np.tile(np.arange(every), config.users)
    camp = rng.integers(max(config.camps, 1), size=config.users)
    second = _likes_second(config, rng, user, prompt, camp)
    second ^= (rng.random(len(user)) < config.noise) & (number < config.each)
    chosen, rejected = ((2 * prompt + side).astype(np.int32) for side in (second, ~second))
    pairs = Comparisons(user, chosen, rejected)
    train, validation, test = (
        pairs.take(part) for part in (number < config.each - 1, number == config.each - 1, number >= config.each)
    )
    return Votes(train, validation, test, camp, 2 * config.prompts)


def _likes_second(
    config: VotesConfig, rng: np.random.Generator, user: np.ndarray, prompt: np.ndarray, camp: np.ndarray
) -> Bool[np.ndarray, " P"]:
    if not config.camps:
        weights = rng.dirichlet(np.full(4, 0.1), size=config.users)
        better = rng.normal(size=(config.prompts, 4))
        return np.einsum("pq,pq->p", weights[user], better[prompt]) > 0
    taste = rng.integers(2, size=(config.camps, config.prompts)).astype(bool)
    if config.camps == 2:
        taste[1] = ~taste[0]
    return taste[camp[user], prompt]


def best_accuracy(votes: Votes) -> float:
    """The highest test accuracy to be expected of anybody told two camps of users, without noise.

    What nobody voted on can only be guessed; of all other pairs both camps' answers are known.
    """
    return float(np.where(np.isin(votes.test.chosen // 2, votes.train.chosen // 2), 1.0, 0.5).mean())
