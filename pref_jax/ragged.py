"""Rows of different lengths, such as users with different numbers of votes: grouping and padding, on the host.

Axis letters: P items, U owners.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Groups(NamedTuple):
    """Items grouped by owner.

    Attributes:
      order: int [P] item numbers, those of one owner side by side and in their own order.
      starts: int [U] place in `order` of each owner's first item.
      counts: int [U] number of each owner's items.
    """

    order: Int[np.ndarray, "P"]
    starts: Int[np.ndarray, "U"]
    counts: Int[np.ndarray, "U"]

    @property
    def places(self) -> Int[np.ndarray, "P"]:
        """For each entry of `order` its place among its owner's items, from 0."""
        return ranges(self.counts)


def group_by(owner: Int[np.ndarray, "P"], num_owners: int) -> Groups:
    """Groups items by their owner, in 0 .. num_owners - 1.

    Example:
      >>> group_by(np.array([1, 0, 1]), 2).order
      array([1, 0, 2])
    """
    counts = np.bincount(owner, minlength=num_owners)
    return Groups(np.argsort(owner, kind="stable"), starts(counts), counts)


def starts(counts: Int[np.ndarray, "U"]) -> Int[np.ndarray, "U"]:
    """Where each owner's items start, if they lie one owner after another."""
    return np.cumsum(counts) - counts


def ranges(counts: Int[np.ndarray, "U"]) -> Int[np.ndarray, "P"]:
    """0 .. count - 1 of each owner, one owner after another.

    Example:
      >>> ranges(np.array([2, 0, 3]))
      array([0, 1, 0, 1, 2])
    """
    return np.arange(counts.sum()) - np.repeat(starts(counts), counts)


def expand(starts: Int[np.ndarray, "U"], counts: Int[np.ndarray, "U"]) -> Int[np.ndarray, "P"]:
    """starts[u] .. starts[u] + counts[u] - 1 of each owner, one owner after another."""
    return np.repeat(starts, counts) + ranges(counts)


def padded(
    starts: Int[np.ndarray, "U"], counts: Int[np.ndarray, "U"], width: int
) -> tuple[Int[np.ndarray, "U W"], Bool[np.ndarray, "U W"]]:
    """Places of each owner's first `width` items as rows (0 at padding), and which are real."""
    column = np.arange(width)
    real = column < counts[:, None]
    return np.where(real, starts[:, None] + column, 0), real


def last_rows(key: Int[np.ndarray, " P"]) -> Int[np.ndarray, " K"]:
    """Row in which each distinct key stands for the last time, by rising key.

    Example:
      >>> last_rows(np.array([7, 3, 7])).tolist()
      [1, 2]
    """
    return len(key) - 1 - np.unique(key[::-1], return_index=True)[1]
