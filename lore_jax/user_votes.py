"""Votes of many users on the basis: one flat array, to which votes of single users are added at little cost.

Axis letters: U users, P votes, n votes of a user (padded), K basis.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float32, Int, Int64

from lore_jax.lanes import bucket
from pref_jax import ragged

# Users at a time: it bounds the memory.
USERS_AT_A_TIME = 1 << 15


class UserVotes:
    """Differences of basis rewards, chosen minus rejected, of users by number.

    Example:
      >>> votes = UserVotes(np.zeros((3, 2), np.float32), np.array([1, 2]))
      >>> votes.of(1).shape
      (2, 2)
    """

    def __init__(self, z: Float32[np.ndarray, "P K"], counts: Int[np.ndarray, " U"]):
        """Votes z, users one after another, and how many each has."""
        self._z, self._counts = z, np.asarray(counts, np.int64)
        self._starts = ragged.starts(self._counts)
        # Users whose votes have changed since they were last laid out, and users that are new.
        self._changed: dict[int, np.ndarray] = {}

    def of(self, user: int) -> Float32[np.ndarray, "n K"]:
        """A user's votes; none of a number that is not known, such as -1."""
        if user in self._changed:
            return self._changed[user]
        if not 0 <= user < len(self._counts):
            return self._z[:0]
        return self._z[self._starts[user] :][: self._counts[user]]

    def replace(self, votes: Mapping[int, Float32[np.ndarray, "n K"]]) -> None:
        """Puts these in place of what the users had; new users have the next numbers."""
        self._changed |= votes

    def remove(self, user: int) -> None:
        """Removes a user's votes; the numbers of later users fall by one."""
        z, counts = self.flat()
        start = self._starts[user]
        self.__init__(np.delete(z, slice(start, start + counts[user]), axis=0), np.delete(counts, user))

    def flat(self) -> tuple[Float32[np.ndarray, "P K"], Int64[np.ndarray, " U"]]:
        """All votes, users one after another, and how many each has."""
        if self._changed:
            rows = np.array(list(self._changed), np.int64)
            counts = np.zeros(max(len(self._counts), int(rows.max()) + 1), np.int64)
            counts[: len(self._counts)] = self._counts
            old = np.repeat(np.arange(len(counts)), counts)
            kept = ~np.isin(old, rows)
            counts[rows] = [len(votes) for votes in self._changed.values()]
            owner = np.concatenate([old[kept], np.repeat(rows, counts[rows])])
            z = np.concatenate([self._z[kept], *self._changed.values()])
            self.__init__(z[np.argsort(owner, kind="stable")], counts)
        return self._z, self._counts


def per_user(
    program: Callable[[Any, Any], Array],
    z: Float32[np.ndarray, "P K"],
    counts: Int[np.ndarray, " U"],
    shape: tuple[int, ...],
) -> np.ndarray:
    """What a program finds for each user, float32 [U *shape].

    Args:
      program: (z [u n K], mask [u n]) -> [u *shape]; users and votes are padded to buckets, so that few are compiled.
      z: votes, users one after another.
      counts: how many each has.
      shape: of what is found for one user.
    """
    found, starts = np.empty((len(counts), *shape), np.float32), ragged.starts(counts)
    z = z if len(z) else np.zeros((1, z.shape[1]), np.float32)
    # 8, 32, 128 ..: a user who goes on voting meets few programs, and what is padded costs little.
    width = 8 * 4 ** np.searchsorted(8 * 4 ** np.arange(16), counts)
    for size in np.unique(width):
        members = np.flatnonzero(width == size)
        for first in range(0, len(members), USERS_AT_A_TIME):
            some = members[first : first + USERS_AT_A_TIME]
            filled = np.pad(some, (0, bucket(len(some)) - len(some)), mode="edge")
            place, mask = ragged.padded(starts[filled], counts[filled], int(size))
            found[some] = np.asarray(program(z[place], mask))[: len(some)]
    return found
