"""Simulated users over real texts: who is asked which pairs, by the protocols of CoPL (arXiv 2503.01658).

Axis letters: U users, P answers given, I items that can be asked.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pref_jax.data.schema import SPLITS
from pref_jax.data.splits import answers_a_user, draw_pairs
from pref_jax.errors import Faults

TRAIN, VALIDATION, TEST = (SPLITS.index(word) for word in ("train", "validation", "test"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """How many users are asked, and how many pairs each; None until `filled` with the data set's own value.

    Attributes:
      seen_users: users that shared models train on.
      unseen_users: users that arrive later.
      pairs_per_user: n of `protocol`, of which one is for validation.
      context_pairs: an unseen user's known pairs; n if None.
      test_pairs_per_user: test pairs of everyone; all there are if None.
      protocol: `ALL` or `AVG`, see `pref_jax.data.splits.answers_a_user`.
    """

    seen_users: int | None = 10_000
    unseen_users: int | None = 100
    pairs_per_user: int | None = None
    context_pairs: int | None = None
    test_pairs_per_user: int | None = 100
    protocol: str = "ALL"

    def __post_init__(self):
        faults = Faults()
        least = {"seen_users": 1, "unseen_users": 0, "pairs_per_user": 2, "context_pairs": 1, "test_pairs_per_user": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                faults.add(f"source.{name}", f"is {value}", f"give {bound} or more")
        if self.protocol not in ("ALL", "AVG"):
            faults.add("source.protocol", f"is {self.protocol!r}", "give ALL or AVG")
        faults.raise_if_any("bad options")

    def filled(self, **own: int | None) -> "SimulationConfig":
        """With the data set's `own` values in place of None."""
        missing: Any = {name: value for name, value in own.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    @property
    def seen(self) -> Bool[np.ndarray, "U"]:
        """Seen users come first."""
        assert self.seen_users is not None
        assert self.unseen_users is not None
        return np.arange(self.seen_users + self.unseen_users) < self.seen_users


class Asked(NamedTuple):
    """Who is asked what.

    Attributes:
      user: int64 [P].
      item: int64 [P].
      split: int64 [P] place in `SPLITS`.
    """

    user: Int[np.ndarray, "P"]
    item: Int[np.ndarray, "P"]
    split: Int[np.ndarray, "P"]


def tastes(survey: SimulationConfig, kinds: int, rng: np.random.Generator) -> Int[np.ndarray, "U"]:
    """A kind for each user, from 0: as many users of each, of the seen ones and of the unseen ones, in drawn order."""
    sizes = (survey.seen.sum(), (~survey.seen).sum())
    return np.concatenate([rng.permutation(np.arange(size) % kinds) for size in sizes])


def sample_comparisons(survey: SimulationConfig, test: Bool[np.ndarray, "I"], rng: np.random.Generator) -> Asked:
    """Draws what everyone is asked: distinct items, first of the training ones, then of the test ones.

    Args:
      survey: how many.
      test: True for items that only test.
      rng: of all draws.

    Raises:
      UserError: if there are fewer items than a user is to answer.
    """
    seen = survey.seen
    assert survey.pairs_per_user is not None
    counts, held_out = answers_a_user(seen, survey.pairs_per_user, survey.protocol, rng)
    if survey.context_pairs is not None:
        counts = np.where(seen, counts, survey.context_pairs)
    fix = "lower {}, or change what is held out"
    pool = np.flatnonzero(~test)
    user, pick, last = draw_pairs(counts, len(pool), rng, fix=fix.format("source.pairs_per_user"))
    split = np.where(last & held_out[user], VALIDATION, TRAIN)
    tests = np.flatnonzero(test)
    if survey.test_pairs_per_user is None:
        tester, asked = np.repeat(np.arange(len(seen)), len(tests)), np.tile(np.arange(len(tests)), len(seen))
    else:
        wanted = np.full(len(seen), survey.test_pairs_per_user)
        tester, asked, _ = draw_pairs(wanted, len(tests), rng, fix=fix.format("source.test_pairs_per_user"))
    return Asked(
        np.concatenate([user, tester]),
        np.concatenate([pool[pick], tests[asked]]),
        np.concatenate([split, np.full(len(tester), TEST)]),
    )
