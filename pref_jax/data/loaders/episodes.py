"""Batches of users with several pairs each, split into pairs that tell about a user and pairs to predict.

Batch i follows from the seed and i alone, so a run resumes at any step.

Axis letters: U users of a batch, S splits, n pairs of a user (padded), m columns of all the pairs of a user.
"""

import grain
import numpy as np
from jaxtyping import Bool, Int, Int64

from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.batches import index_batches, sample_columns
from pref_jax.errors import UserError
from pref_jax.ragged import group_by


def episode_batches(
    pairs: Comparisons, *, users_per_batch: int, pairs_per_user: int, splits: int, num_steps: int, seed: int
) -> grain.MapDataset:
    """Users by the rule of `index_batches`, pairs of theirs, and splits of these into support and query.

    A user with more pairs than n gives n of them, others each time; one with fewer is padded. A split has a support
    of 0 to (number of pairs - 1) of a user's pairs, each size as likely: the user may turn up with any number of
    answers. Votes of one user on the same two responses stay on one side of a split, whichever way they went.

    Args:
      pairs: who preferred what; users without pairs do not turn up.
      users_per_batch: U.
      pairs_per_user: n.
      splits: S.
      num_steps: number of batches; the data set's length.
      seed: from 0.

    Returns:
      A `grain.MapDataset` of dicts with `chosen` and `rejected` int32 [U n], at padding those of a pair of the user's;
      `mask` bool [U n], true at real pairs; `support` bool [U S n], true at real pairs of the support. The other real
      pairs are the query, of which every user has one at least.

    Raises:
      UserError: if there are no pairs, or a size or the seed is out of range.
    """
    if pairs_per_user < 1 or splits < 1:
        raise UserError(
            f"episodes: pairs_per_user={pairs_per_user} splits={splits}: give whole numbers from 1; fix the config"
        )
    users, number = np.unique(pairs.user, return_inverse=True)
    groups = group_by(number, len(users))

    def draw(number: int, members: Int64[np.ndarray, "U"]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, number, 1])
        counts = groups.counts[members, None]
        there = np.arange(max(pairs_per_user, int(counts.max(initial=0)))) < counts
        column, mask = sample_columns(there, pairs_per_user, rng)
        # Padding repeats the user's first pair: it must be one whose texts fit wherever pairs do.
        row = groups.order[groups.starts[members][:, None] + np.where(mask, column, column[:, :1])]
        chosen, rejected = (side[row].astype(np.int32) for side in (pairs.chosen, pairs.rejected))
        support = _supports(_first_alike(chosen, rejected), mask, splits, rng)
        return {"chosen": chosen, "rejected": rejected, "mask": mask, "support": support}

    return index_batches(len(users), users_per_batch, num_steps, seed).map_with_index(draw)


def _first_alike(chosen: Int[np.ndarray, "U n"], rejected: Int[np.ndarray, "U n"]) -> Int64[np.ndarray, "U n"]:
    """For each pair the column of the user's first pair of the same two responses: its own, but for repetitions."""
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    alike = (low[:, :, None] == low[:, None, :]) & (high[:, :, None] == high[:, None, :])
    return np.argmax(alike, axis=2)


def _supports(
    first: Int64[np.ndarray, "U n"], mask: Bool[np.ndarray, "U n"], splits: int, rng: np.random.Generator
) -> Bool[np.ndarray, "U S n"]:
    """Random supports: of a user's D different pairs 0 to D - 1, with all their repetitions."""
    distinct = (first == np.arange(mask.shape[1])[None]) & mask
    key = np.where(distinct[:, None], rng.random((len(mask), splits, mask.shape[1])), 2.0)
    rank = np.argsort(np.argsort(key, axis=2), axis=2)
    rank = np.take_along_axis(rank, np.broadcast_to(first[:, None], rank.shape), axis=2)
    size = rng.integers(0, np.maximum(distinct.sum(1), 1)[:, None], (len(mask), splits))
    return mask[:, None] & (rank < size[:, :, None])
