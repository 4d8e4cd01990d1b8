"""Comparisons of two texts that are the same tokens: no model can tell which was chosen, so none is asked.

Case means nothing to an uncased encoder, a chat template may leave out part of an answer, and two long texts may be cut
to equal ends.

Axis letters: P comparisons.
"""

import dataclasses

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import SPLITS, in_splits
from pref_jax.data.text.shared_prefix import common_prefix
from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import UserError

# Where `meta` has how many comparisons were left out, by split.
FIELD = "same_tokens"


def same_tokens(tokens: TokenTable, first: Int[np.ndarray, "P"], second: Int[np.ndarray, "P"]) -> Bool[np.ndarray, "P"]:
    """Where sequences `first` and `second` of a table are equal.

    Example:
      >>> table = TokenTable(np.array([7, 8, 7, 8, 7], np.int32), np.array([0, 2, 4, 5]), 0)
      >>> same_tokens(table, np.array([0, 0]), np.array([1, 2]))
      array([ True, False])
    """
    found = tokens.lengths[first] == tokens.lengths[second]
    rows = np.flatnonzero(found)
    found[rows] = common_prefix(tokens, first[rows], second[rows]) == tokens.lengths[first[rows]]
    return found


def without_same_tokens(votes: Preferences, tokens: TokenTable) -> Preferences:
    """The tables without comparisons of equal token sequences, whose number stands in `meta`, by split.

    Args:
      votes: tables.
      tokens: of all their responses.

    Raises:
      UserError: if no training comparison is left.
    """
    table = votes.comparisons
    chosen, rejected = (table[name].to_numpy() for name in ("chosen", "rejected"))
    return without(votes, same_tokens(tokens, chosen, rejected))


def without(votes: Preferences, same: Bool[np.ndarray, "P"]) -> Preferences:
    """The tables without the comparisons that `same` marks; see `without_same_tokens`."""
    table = votes.comparisons
    counts = {split: int((same & in_splits(table["split"], (split,))).sum()) for split in SPLITS}
    train = in_splits(table["split"], ("train",))
    if train.any() and not (train & ~same).any():
        row = table.slice(int(np.flatnonzero(train)[0]), 1).to_pylist()[0]
        one, other = (votes.responses["text"][row[side]].as_py() for side in ("chosen", "rejected"))
        raise UserError(
            f"all {counts['train']} training votes are on two texts that are the same tokens to the model, such as "
            f"{one!r:.60} and {other!r:.60}; take a model or chat template that tells them apart, or raise max_length"
        )
    if not same.any():
        return votes
    kept = table.filter(pa.array(~same)).combine_chunks()
    return dataclasses.replace(votes, comparisons=kept, meta={**votes.meta, FIELD: counts})


def left_out(votes: Preferences) -> dict[str, dict[str, int]]:
    """{"same_tokens": how many comparisons were left out, by split}, a fact of a model; empty if none was."""
    return {FIELD: votes.meta[FIELD]} if FIELD in votes.meta else {}


def told(votes: Preferences) -> str:
    """How many comparisons were left out and why, as a sentence; "" if none was."""
    counts = {split: count for split, count in votes.meta.get(FIELD, {}).items() if count}
    if not counts:
        return ""
    words = {"train": "training"}
    parts = [
        f"{count} of {count + len(votes.pairs(split).user)} {words.get(split, split)} votes"
        for split, count in counts.items()
    ]
    return f"left out: {', '.join(parts)}, on two texts that are the same tokens to the model"
