"""Which votes choose between models: votes that are as new to a model as those of the test.

Test prompts are new to a model, so what it is chosen by must be new too: on prompts that it has seen, remembering their
responses looks like understanding them.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import prompt_ids
from pref_jax.data.sources.common.split_rule import GIVEN_VALIDATION
from pref_jax.data.splits import hold_out_new


def validation_is_given(votes: Preferences) -> bool:
    """Whether votes to choose by came with the data, rather than were drawn."""
    return votes.meta.get("assigned", {}).get(GIVEN_VALIDATION, 0) > 0


def choosing_rows(
    votes: Preferences, fraction: float, rng: np.random.Generator, *, new: Literal["prompt", "pair"] = "prompt"
) -> Int[np.ndarray, " H"]:
    """Rows of the comparisons by which models are chosen: all votes of seen users, or none, on one prompt.

    Where validation votes were given with the votes, these; otherwise the votes on a fraction of the prompts that seen
    users voted on, at least one. Where all is on one prompt, they are drawn by pairs of responses, and of one pair by
    votes of users who have others; where that leaves none, none. A `fraction` of 0 holds nothing out.

    Args:
      votes: all tables; test votes are not read.
      fraction: of the prompts, or of the pairs.
      rng: of the draw.
      new: "pair" draws pairs of responses, whatever their prompts.
    """
    if fraction <= 0:
        return np.zeros(0, np.int64)
    if validation_is_given(votes):
        return votes.pairs("validation", seen=True, ties=True).row
    known = votes.pairs(("train", "validation"), seen=True, ties=True)
    sides = np.sort(np.stack([known.chosen, known.rejected]), axis=0)
    pair = np.unique(sides, axis=1, return_inverse=True)[1].reshape(-1)
    unit = pair if new == "pair" else prompt_ids(votes.responses["prompt"])[known.chosen]
    return known.row[hold_out_new(unit, pair, known.user, fraction, rng)]


def rated_in(ratings: Ratings, pairs: Comparisons, num_responses: int) -> Bool[np.ndarray, " R"]:
    """Which ratings are of a response that stands in one of the same user's pairs, and so tell how that was decided."""
    codes = [np.asarray(pairs.user, np.int64) * num_responses + side for side in (pairs.chosen, pairs.rejected)]
    return np.isin(np.asarray(ratings.user, np.int64) * num_responses + ratings.response, np.concatenate(codes))
