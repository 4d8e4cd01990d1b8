"""Votes of many users as arrays.

Axis letters: U users, n votes per user (padded), P votes (flat), N responses.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from pref_jax.comparisons import Votes, check_comparisons, concatenate
from pref_jax.ragged import group_by


class Table(NamedTuple):
    """A row per user: rows in responses `chosen`, `rejected` [U n]; masks `train`, `validation` [U n], or padding."""

    chosen: Int[Array, "U n"]
    rejected: Int[Array, "U n"]
    train: Bool[Array, "U n"]
    validation: Bool[Array, "U n"]


def bucket(size: int) -> int:
    """Next of 4, 6, 8, 12, 16, 24 ...: few shapes to compile, at most half of padding."""
    power = 4
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


def make_table(train: Votes, validation: Votes | None, num_users: int, num_responses: int) -> Table:
    """Votes in one padded row per user, validation after training; users and row length padded to buckets.

    Raises: UserError for indices out of range or arrays of different lengths.
    """
    parts = [check_comparisons(train, num_users, num_responses, "training votes")]
    if validation is not None:
        parts.append(check_comparisons(validation, num_users, num_responses, "validation votes"))
    user, chosen, rejected = concatenate(parts)[:3]
    held = np.repeat(np.arange(len(parts)), [len(part.user) for part in parts])
    groups = group_by(user, num_users)
    order, place = groups.order, (user[groups.order], groups.places)
    shape = (bucket(num_users), bucket(int(groups.counts.max(initial=0))))
    arrays = []
    for values, dtype in ((chosen, np.int32), (rejected, np.int32), (held == 0, bool), (held == 1, bool)):
        array = np.zeros(shape, dtype)
        array[place] = values[order]
        arrays.append(jnp.asarray(array))
    return Table(*arrays)
