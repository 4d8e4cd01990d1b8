"""Pairs of responses that people rated, new to them but not to others: who prefers what is known from their ratings.

Axis letters: U people, N responses, P pairs.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmConfig:
    """How pairs are drawn.

    Attributes:
      seen: people whose votes are trained on, drawn at random among all who qualify.
      unseen: further people, who give context votes.
      min_ratings: people of fewer ratings are left out.
      min_difference: between the two ratings of a pair.
      most: training (or context) pairs of a person that there have to be, of which fewer may be taken.
      validation: pairs of each seen person to choose by.
      tests: pairs of each person.
    """

    seen: int = 1000
    unseen: int = 300
    min_ratings: int = 70
    min_difference: float = 3.0
    most: int = 40
    validation: int = 3
    tests: int = 20


class WarmWorld(NamedTuple):
    """Votes, rows of users and of N responses; unseen users' rows begin at 0 again. No person gives a pair twice."""

    train: Comparisons
    validation: Comparisons
    test: Comparisons
    context: Comparisons
    unseen_test: Comparisons
    num_seen: int
    num_unseen: int
    num_responses: int


def draw(ratings: Float32[np.ndarray, "U N"], config: WarmConfig, *, pairs: int, seed: int) -> WarmWorld:
    """The world in which each person gives `pairs` votes to learn from; smaller ones are parts of larger ones.

    Args:
      ratings: NaN where a person rated nothing.
      config: how.
      pairs: at most `config.most`.
      seed: of all draws.

    Raises:
      UserError: if too few people qualify, or more pairs are asked for than are drawn.
    """
    if not 0 < pairs <= config.most:
        raise UserError(f"warm pairs: {pairs} per person; give 1 to {config.most}, or raise world.most")
    rng, every = np.random.default_rng(seed), config.most + config.validation + config.tests
    people = rng.permutation(np.flatnonzero(np.isfinite(ratings).sum(axis=1) >= config.min_ratings))
    drawn: list[np.ndarray] = []
    for person in people:
        own = _pairs(ratings[person].astype(np.float64), config.min_difference)
        if len(own) >= every:
            drawn.append(rng.permutation(own)[:every])
        if len(drawn) == config.seen + config.unseen:
            break
    else:
        raise UserError(
            f"warm pairs: {len(drawn)} people have {config.min_ratings} ratings and {every} pairs; "
            f"lower world.seen or world.unseen ({config.seen + config.unseen} together), or ask less of them"
        )
    ends = np.stack(drawn)  # [U every 2]
    seen, unseen = ends[: config.seen], ends[config.seen :]
    train, tests = slice(0, pairs), slice(config.most + config.validation, None)
    return WarmWorld(
        train=_votes(seen[:, train]),
        validation=_votes(seen[:, config.most : config.most + config.validation]),
        test=_votes(seen[:, tests]),
        context=_votes(unseen[:, train]),
        unseen_test=_votes(unseen[:, tests]),
        num_seen=config.seen,
        num_unseen=config.unseen,
        num_responses=ratings.shape[1],
    )


def _pairs(ratings: Float64[np.ndarray, " N"], least: float) -> np.ndarray:
    """int [P 2]: all (preferred, other) of one person."""
    rated = np.flatnonzero(np.isfinite(ratings))
    better, worse = np.nonzero(ratings[rated][:, None] - ratings[rated][None] >= least)
    return np.stack([rated[better], rated[worse]], axis=1)


def _votes(ends: np.ndarray) -> Comparisons:
    people, each = ends.shape[:2]
    user = np.repeat(np.arange(people, dtype=np.int32), each)
    chosen, rejected = ends.reshape(-1, 2).T.astype(np.int32)
    return Comparisons(user, chosen, rejected)
