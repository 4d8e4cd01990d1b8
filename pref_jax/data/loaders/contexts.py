"""Batches of pairs, each with some other pairs of its user: what a model may know of the user when it is asked.

Axis letters: B batch, P pairs, U users, n context pairs (padded).
"""

from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int, Int32

from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.batches import pair_batches, sample_columns
from pref_jax.errors import UserError
from pref_jax.ragged import Groups, group_by, padded


class Context(NamedTuple):
    """Some answers of each of B users; at padding the rows of responses are 0 and `mask` is False."""

    chosen: Int32[np.ndarray, "B n"]
    rejected: Int32[np.ndarray, "B n"]
    mask: Bool[np.ndarray, "B n"]


def context_batches(
    pairs: Comparisons, *, context: int, batch_size: int, num_steps: int, seed: int
) -> grain.MapDataset:
    """`pair_batches`, the same pairs in the same order, with a context for each of them.

    Of a user's other pairs, those of the same two responses left out whichever way they went, 0 to n are drawn, each
    number as likely: whoever is met later may have given any number of answers.

    Args:
      pairs: who preferred what.
      context: n.
      batch_size: B.
      num_steps: number of batches; the data set's length.
      seed: from 0.

    Returns:
      A `grain.MapDataset` of dicts with `user`, `chosen`, `rejected` int32 [B]; `context_chosen`, `context_rejected`
      int32 [B n] and `context_mask` bool [B n]; `progress` float32 [B], the part of all steps that is done.

    Raises:
      UserError: if there are no pairs, or a size or the seed is out of range.
    """
    if context < 0:
        raise UserError(f"contexts: {context} pairs in a context; give a whole number from 0; fix the config")
    index = group_by(pairs.user, 0)

    def add(number: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, number, 11])
        rows, mask = _draw(pairs, index, (batch["user"], batch["chosen"], batch["rejected"]), context, rng)
        size = rng.integers(0, mask.sum(axis=1) + 1)
        own = _context(pairs, rows, mask & (np.arange(context)[None] < size[:, None]))
        progress = np.full(batch_size, number / num_steps, np.float32)
        return {**batch, **{f"context_{name}": leaf for name, leaf in own._asdict().items()}, "progress": progress}

    return pair_batches(pairs, batch_size=batch_size, num_steps=num_steps, seed=seed).map_with_index(add)


def contexts(pairs: Comparisons, num_users: int, context: int, seed: int) -> Context:
    """What is known of each of U users: all of their pairs, or n of them, drawn at random, where they have more.

    Args:
      pairs: who preferred what.
      num_users: U; users without pairs get an empty context.
      context: n.
      seed: of the draw.
    """
    nobody = np.full(num_users, -1)
    asked = (np.arange(num_users), nobody, nobody)
    rows, mask = _draw(pairs, group_by(pairs.user, num_users), asked, context, np.random.default_rng([seed, 13]))
    return _context(pairs, rows, mask)


def _draw(
    pairs: Comparisons, index: Groups, asked: tuple[np.ndarray, ...], most: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "B n"], Bool[np.ndarray, "B n"]]:
    """For each (user, chosen, rejected) up to `most` rows of that user's other pairs in random order; padding last."""
    user, chosen, rejected = (column.astype(np.int64) for column in asked)
    if not len(pairs.user):
        return np.zeros((len(user), most), np.int64), np.zeros((len(user), most), bool)
    counts = index.counts[user]
    place, there = padded(index.starts[user], counts, max(most, int(counts.max(initial=0))))
    row, chosen, rejected = index.order[place], chosen[:, None], rejected[:, None]
    first, second = pairs.chosen[row], pairs.rejected[row]
    there = there & ~((first == chosen) & (second == rejected) | (first == rejected) & (second == chosen))
    drawn, real = sample_columns(there, most, rng)
    return np.take_along_axis(row, drawn, axis=1), real


def _context(pairs: Comparisons, rows: Int[np.ndarray, "B n"], mask: Bool[np.ndarray, "B n"]) -> Context:
    def side(column: np.ndarray) -> np.ndarray:
        own = np.zeros(mask.shape, np.int32)
        own[mask] = column[rows[mask]]
        return own

    return Context(side(pairs.chosen), side(pairs.rejected), mask)
