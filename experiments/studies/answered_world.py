"""Planted worlds whose users answer as people do: with noise, ties and strengths.

Axis letters: U users, P votes, K directions.
"""

import dataclasses

import numpy as np

from experiments.studies import planted_world
from experiments.studies.planted_world import PlantedConfig, World
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweredConfig:
    """How users answer.

    Attributes:
      planted: users, tastes and responses; its `wrong` is 0, as `noise` makes answers wrong.
      noise: scale of the logistic noise on a margin, in standard deviations of all margins.
      ties: share of answers, those of the smallest noisy margins, that are ties.
      strengths: levels of strength of the others, as many of each; 1: strengths are not told.
    """

    planted: PlantedConfig
    noise: float
    ties: float = 0.0
    strengths: int = 1

    def __post_init__(self):
        """Raises UserError for numbers out of range."""
        if self.planted.wrong or not self.noise > 0 or not 0 <= self.ties < 1 or self.strengths < 1:
            raise UserError(f"{self}: wrong is 0, noise above 0, ties in [0, 1), strengths at least 1")


def draw(config: AnsweredConfig, seed: int) -> tuple[World, Comparisons]:
    """A world, and its test pairs as users answer them, ties among them (the world's own are as they truly prefer)."""
    world = planted_world.draw(config.planted, seed)
    rng = np.random.default_rng([seed, 23])
    levels = world.features.astype(np.float64) @ world.directions
    parts = {"train": world.train, "validation": world.validation, "test": world.test}
    parts["context"] = world.context._replace(user=world.context.user + world.num_seen)
    margins = {
        name: np.einsum("pk,pk->p", levels[part.chosen] - levels[part.rejected], world.mixture[part.user])
        for name, part in parts.items()
    }
    unit = np.concatenate(list(margins.values())).std()
    noisy = {
        name: margin / unit + rng.logistic(scale=config.noise, size=len(margin)) for name, margin in margins.items()
    }
    size = np.abs(noisy["train"])
    tie_below = np.quantile(size, config.ties) if config.ties else 0.0
    edges = np.quantile(size[size >= tie_below], np.arange(1, config.strengths) / config.strengths)
    said = {name: _answered(parts[name], noisy[name], tie_below, edges) for name in parts}
    context = said["context"]._replace(user=said["context"].user - world.num_seen)
    return dataclasses.replace(world, train=said["train"], validation=said["validation"], context=context), said["test"]


def _answered(votes: Comparisons, noisy: np.ndarray, tie_below: float, edges: np.ndarray) -> Comparisons:
    tie, flip = np.abs(noisy) < tie_below, noisy < 0
    strength = np.where(tie | (len(edges) == 0), np.nan, 1 + np.searchsorted(edges, np.abs(noisy), side="right"))
    return votes._replace(
        chosen=np.where(flip, votes.rejected, votes.chosen),
        rejected=np.where(flip, votes.chosen, votes.rejected),
        tie=tie,
        strength=strength.astype(np.float32),
    )
