"""Which votes choose between models: votes that are as new to a model as those of the test.

What is new in a test, prompts or pairs or responses, must be new in what a model is chosen by: on prompts that it has
seen, remembering their responses looks like understanding them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import prompt_ids
from pref_jax.data.sources.common.split_rule import GIVEN_VALIDATION
from pref_jax.data.splits import draw, hold_out_new, whole_choices

# Of the prompts, pairs or responses: those that LoRe chooses by.
FRACTION = 0.2


class HeldOut(NamedTuple):
    """What is held out of all votes of seen users.

    Attributes:
      row: of the table of comparisons.
      response: bool [N], the responses of which no vote is left; None where votes are held out pair by pair.
    """

    row: Int[np.ndarray, " H"]
    response: Bool[np.ndarray, " N"] | None = None

    def pairs(self, pairs: Comparisons) -> Bool[np.ndarray, " P"]:
        """Which pairs of the tables are held out."""
        return np.isin(pairs.row, self.row)

    def ratings(self, ratings: Ratings, votes: Preferences) -> Bool[np.ndarray, " R"]:
        """Which ratings of seen users are held out: where pairs are, those that tell how one of them was decided."""
        if self.response is not None:
            return self.response[ratings.response]
        user, *sides = (votes.comparisons[name].to_numpy()[self.row] for name in ("user", "chosen", "rejected"))
        told = [(user, side) for side in sides]
        if validation_is_given(votes):
            told.append(votes.rated("validation", seen=True)[:2])
        one, *held = (who * np.int64(votes.num_responses) + what for who, what in (ratings[:2], *told))
        return np.isin(one, np.concatenate(held))


def validation_is_given(votes: Preferences) -> bool:
    """Whether votes to choose by came with the data, rather than were drawn."""
    return votes.meta.get("assigned", {}).get(GIVEN_VALIDATION, 0) > 0


def hold_out_as_tested(votes: Preferences, fraction: float, rng: np.random.Generator) -> HeldOut:
    """Votes by which models are chosen, as new as those of the test, or as a test would be.

    Where validation votes were given with the votes, these. Otherwise the votes of seen users on a fraction of the
    prompts, at least one. Where all is on one prompt, or the test is of new pairs, those on a fraction of the pairs of
    responses; where all votes are ratings, those on a fraction of the responses. Of one pair, votes of users who have
    others; where nobody has, none. A `fraction` of 0 holds nothing out.

    Args:
      votes: all tables; test votes are not read.
      fraction: of the prompts, pairs or responses.
      rng: of the draw.
    """
    if fraction <= 0:
        return HeldOut(np.zeros(0, np.int64))
    if validation_is_given(votes):
        return HeldOut(votes.pairs("validation", seen=True, ties=True).row)
    learn = ("train", "validation")
    known = votes.pairs(learn, seen=True, ties=True)
    sides = np.stack([known.chosen, known.rejected])
    judged = sides.reshape(-1) if sides.size else votes.rated(learn, seen=True).response
    prompts = prompt_ids(votes.responses["prompt"])
    units = []
    if votes.meta.get("assigned", {}).get("split_by") != "pair":
        units.append(prompts)
    if votes.comparisons["rated"].to_numpy()[known.row].all():
        units.append(np.arange(votes.num_responses))
    for unit in units:
        distinct = np.unique(unit[judged])
        response = np.isin(unit, distinct[draw(len(distinct), fraction, rng)])
        concerned = response[sides].any(0)
        if response.any() and not (sides.size and concerned.all()):
            return HeldOut(known.row[concerned], response)
    pair = np.unique(np.sort(sides, axis=0), axis=1, return_inverse=True)[1].reshape(-1)
    return HeldOut(known.row[whole_choices(known.choice, hold_out_new(pair, known.user, fraction, rng))])
