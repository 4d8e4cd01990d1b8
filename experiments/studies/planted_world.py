"""Users whose tastes are known exactly: mixtures of a few directions in a space of Gaussian features.

Axis letters: U users, N responses, D features, K directions, P votes.
"""

import dataclasses

import numpy as np

from experiments.linear import Task
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantedConfig:
    """One world.

    Attributes:
      alpha: of the Dirichlet that draws each user's mixture; small ones: most care for one direction; None: all alike.
      pairs: votes of each user, a fifth of them (one at least) for validation.
      wrong: share of votes that name the worse response, test votes for calibration among them.
      seen: users to learn from.
      unseen: users who come later, with as many votes.
      tests: test pairs of each user, of responses nobody voted on, or with `known` of those that people voted on.
      responses: to draw training pairs from, and as many to draw test pairs from.
      features: D.
      directions: K, orthonormal.
    """

    alpha: float | None
    pairs: int
    wrong: float
    seen: int
    unseen: int
    tests: int
    responses: int
    features: int
    directions: int
    known: bool = False

    def __post_init__(self):
        """Raises UserError for numbers out of range."""
        if min(self.pairs, self.seen, self.responses) < 2 or not 0 <= self.wrong < 0.5:
            raise UserError(f"{self}: pairs, seen and responses are at least 2, wrong lies in [0, 0.5)")
        if self.alpha is not None and not self.alpha > 0:
            raise UserError(f"{self}: alpha is above 0, or None where all users are alike")
        if not 1 <= self.directions <= self.features:
            raise UserError(f"{self}: directions lie between 1 and features")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World(Task):
    """What `draw` gives: a task whose votes are partly wrong, but whose test pairs are as users truly prefer.

    Attributes:
      said: bool [P], whether the users' votes on the test pairs say so too.
      head: the mean of all directions.
      mixture: float64 [U K], of the directions, of which each user's taste is made.
      directions: float32 [D K], whose mixtures all tastes are; no method knows them but the one that is told.
    """

    said: np.ndarray
    directions: np.ndarray
    mixture: np.ndarray


def draw(config: PlantedConfig, seed: int) -> World:
    """A world of the config."""
    rng = np.random.default_rng(seed)
    size, total = config.responses, config.seen + config.unseen
    directions = np.linalg.qr(rng.standard_normal((config.features, config.directions)))[0]
    features = rng.standard_normal((2 * size, config.features)).astype(np.float32)
    mixture = np.full((total, config.directions), 1 / config.directions)
    if config.alpha is not None:
        mixture = rng.dirichlet(np.full(config.directions, config.alpha), total)
    levels = features @ directions

    def vote(user: np.ndarray, first: int) -> Comparisons:
        left = rng.integers(first, first + size, len(user))
        right = first + (left - first + rng.integers(1, size, len(user))) % size
        better = np.einsum("pk,pk->p", levels[left] - levels[right], mixture[user]) > 0
        return Comparisons(user, np.where(better, left, right), np.where(better, right, left))

    votes = vote(np.repeat(np.arange(total), config.pairs), 0)
    wrong = rng.random(len(votes.user)) < config.wrong
    votes = Comparisons(
        votes.user, np.where(wrong, votes.rejected, votes.chosen), np.where(wrong, votes.chosen, votes.rejected)
    )
    place, known = np.arange(len(votes.user)) % config.pairs, votes.user < config.seen
    held = known & (place >= config.pairs - max(1, config.pairs // 5))
    train, validation, context = (votes.take(which) for which in (known & ~held, held, ~known))
    test = vote(np.repeat(np.arange(total), config.tests), 0 if config.known else size)
    return World(
        features=features,
        train=train,
        validation=validation,
        context=context._replace(user=context.user - config.seen),
        test=test,
        said=rng.random(len(test.user)) >= config.wrong,
        seen=np.arange(total) < config.seen,
        head=directions.mean(axis=1).astype(np.float32),
        directions=directions.astype(np.float32),
        mixture=mixture,
    )
