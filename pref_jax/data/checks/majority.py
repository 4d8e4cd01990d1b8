"""What the other users chose: the majority of everyone else on the same pair, leaving the user in question out.

Axis letters: P pairs, C comparisons of the whole data set.
"""

import numpy as np
from jaxtyping import Float32, Int

from pref_jax.comparisons import Comparisons
from pref_jax.data.preferences import SPLITS, Preferences

GROUPS_ARE_QUESTIONS = "groups_are_questions"


def majority_margins(
    preferences: Preferences, pairs: Comparisons, *, by_group: bool | None = None
) -> Float32[np.ndarray, "P"]:
    """Share of the other users' votes for `chosen` less the share for `rejected`, over all comparisons of all splits.

    A baseline that looks at votes a reward model never sees (people on the same test pair), and an estimate of how far
    people agree at all; it is no model input. All votes of the pair's own user are left out.

    Args:
      preferences: all votes.
      pairs: comparisons of `preferences`.
      by_group: count only votes by users of the same group. None: only if the source says that groups are different
        questions about the same pair (meta `groups_are_questions`), not kinds of people.

    Returns:
      float32 [P] in [-1, 1]; 0 where nobody else voted or the others are even.

    Raises:
      ValueError: if `pairs` are not comparisons of `preferences`.
    """
    everything = preferences.pairs(SPLITS)
    place = _places(everything, pairs)
    by_group = bool(preferences.meta.get(GROUPS_ARE_QUESTIONS, False)) if by_group is None else by_group
    low = np.minimum(everything.chosen, everything.rejected).astype(np.int64)
    high = np.maximum(everything.chosen, everything.rejected)
    item = _number(low * preferences.num_responses + high)
    if by_group:
        group = preferences.users["group"].fill_null("").combine_chunks().dictionary_encode()
        group = group.indices.to_numpy(zero_copy_only=False)[everything.user]
        item = _number(item * (int(group.max(initial=0)) + 1) + group)
    vote = np.where(everything.chosen < everything.rejected, 1, -1)
    own = _number(item * preferences.num_users + everything.user)
    votes = _totals(item, np.ones_like(vote)) - _totals(own, np.ones_like(vote))
    balance = _totals(item, vote) - _totals(own, vote)
    margin = vote * balance / np.maximum(votes, 1)
    return margin[place].astype(np.float32)


def _places(everything: Comparisons, pairs: Comparisons) -> Int[np.ndarray, "P"]:
    """Where each pair stands among all comparisons, ties aside, found by its row number.

    Raises:
      ValueError: if a pair is not the comparison that its row number names.
    """
    place = np.minimum(np.searchsorted(everything.row, pairs.row), max(len(everything.row) - 1, 0))
    columns = [(getattr(everything, name), getattr(pairs, name)) for name in ("row", "user", "chosen", "rejected")]
    if len(place) and not (len(everything.row) and all(np.array_equal(a[place], b) for a, b in columns)):
        raise ValueError("pairs are not comparisons of these preferences")
    return place


def _number(key: Int[np.ndarray, "C"]) -> Int[np.ndarray, "C"]:
    """Distinct keys as 0, 1, 2 ..., so that they can be counted and joined without overflow."""
    return np.unique(key, return_inverse=True)[1].astype(np.int64)


def _totals(bucket: Int[np.ndarray, "C"], value: Int[np.ndarray, "C"]) -> Int[np.ndarray, "C"]:
    """Sum of `value` over each row's bucket; exact in float64 below 2^53 votes."""
    return np.bincount(bucket, weights=value)[bucket].astype(np.int64) if len(bucket) else value
