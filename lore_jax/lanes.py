"""Ragged tables: a row per user of one width, and further rows ("lanes") for users who have more.

The first U rows of a table [L w] are one of each user; the last E are further ones, of the users `owner [E]`. The
width is such that users with a few items and a user with thousands take cells in proportion to the items. Where all
users fit in one row E is 0, and every function here hands back what it was given.

Axis letters: U users, L lanes (U + E), E further lanes, P items.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from pref_jax.ragged import ranges

# What it costs to add a lane's sums to those of its user, in cells of one.
FURTHER = 16


class Lanes(NamedTuple):
    """Items that lie one user after another: their `lane` and `place` [P] in a table of `shape`; `owner` int32 [E]."""

    lane: Int[np.ndarray, " P"]
    place: Int[np.ndarray, " P"]
    shape: tuple[int, int]
    owner: Int[np.ndarray, " E"]


def bucket(size: int) -> int:
    """Next of 4, 6, 8, 12, 16, 24 ...: few shapes to compile, at most half of padding."""
    power = 4
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


def _further(counts: np.ndarray, width: int) -> np.ndarray:
    return np.maximum(-(-counts // width) - 1, 0)


def _width(counts: Int[np.ndarray, " U"], rows: int, *, fill: bool) -> int:
    """The width of the least cost, in cells; a further lane, whose sums are scattered, costs FURTHER more."""
    widest = bucket(int(counts.max(initial=0)))
    different, people = np.unique(counts, return_counts=True)
    best, least = widest, rows * widest
    while fill and widest > 4:
        widest = bucket(widest * 3 // 4 if widest % 3 else widest * 2 // 3)
        cost = rows * widest + bucket(int(people @ _further(different, widest))) * (widest + FURTHER)
        best, least = (widest, cost) if cost < least else (best, least)
    return best


def lay_out(counts: Int[np.ndarray, " U"], *, rows: int | None = None, split: bool = True) -> Lanes:
    """Lanes for users with these numbers of items.

    Args:
      counts: items of each user.
      rows: of the table, one of each user, at least U; None: U padded to its bucket.
      split: whether users with many items may have several lanes; otherwise E is 0.

    Example:
      >>> lay_out(np.array([9, 2, 2, 2, 2, 2, 2, 2])).shape
      (12, 4)
    """
    rows = bucket(len(counts)) if rows is None else rows
    width = _width(counts, rows, fill=split)
    further = _further(counts, width)
    count = int(further.sum())
    owner = np.full(bucket(count) if count else 0, rows - 1, np.int32)
    owner[:count] = np.repeat(np.arange(len(counts)), further)
    place = ranges(counts)
    user = np.repeat(np.arange(len(counts)), counts)
    lane = np.where(place < width, user, rows + (np.cumsum(further) - further)[user] + place // width - 1)
    return Lanes(lane, place % width, (rows + len(owner), width), owner)


def fold(values: Array, owner: Int[Array, " E"] | None, *, axis: int = 0) -> Array:
    """Sums over each user's lanes: L -> U on an axis."""
    return _folded(values, owner, axis, "add")


def fold_max(values: Array, owner: Int[Array, " E"] | None, *, axis: int = 0) -> Array:
    """Largest values of each user's lanes: L -> U on an axis."""
    return _folded(values, owner, axis, "max")


def _folded(values: Array, owner: Int[Array, " E"] | None, axis: int, how: Literal["add", "max"]) -> Array:
    if owner is None or not owner.size:
        return values
    values = jnp.moveaxis(values, axis, 0)
    users = len(values) - len(owner)
    folded = getattr(values[:users].at[owner], how)(values[users:], indices_are_sorted=True)
    return jnp.moveaxis(folded, 0, axis)


def spread(values: Array, owner: Int[Array, " E"] | None, *, axis: int = 0) -> Array:
    """Each user's values for each of the user's lanes: U -> L on an axis."""
    if owner is None or not owner.size:
        return values
    return jnp.concatenate([values, jnp.take(values, owner, axis=axis, indices_are_sorted=True)], axis)
