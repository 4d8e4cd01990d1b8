"""The few-shot solvers at scale: in blocks that fit the cache, cut over a mesh, and streamed over millions of users.

Axis letters: U users, n pairs per user (padded), N responses, K basis.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from lore_jax.lanes import bucket
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.comparisons import Comparisons, Votes
from pref_jax.errors import UserError
from pref_jax.ragged import ranges

# Users solved together: their arrays stay in the cache, and the slowest of them holds up no more than these.
BLOCK = 4096

# (z [U n K], mask [U n], prior) -> arrays whose first axis is U.
Method = Callable[[jax.Array, jax.Array, Prior], Any]


def weights_of(likelihood: str, constraint: str | None = None) -> Method:
    """`solve_weights` of padded pairs as a method: its weights alone."""
    return lambda z, mask, prior: solve_weights(z, mask, prior, likelihood=likelihood, constraint=constraint).weights


def _padded(values: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(values, ((0, rows - len(values)), *((0, 0),) * (values.ndim - 1)))


def in_blocks(method: Method, block: int = BLOCK) -> Method:
    """The method, run over blocks of at most `block` users, one after another."""

    def run(z: jax.Array, mask: jax.Array, prior: Prior) -> Any:
        users = len(z)
        count = -(-users // block)
        if count <= 1:
            return method(z, mask, prior)
        size = -(-users // count)
        parts = [_padded(x, count * size).reshape(count, size, *x.shape[1:]) for x in (z, mask)]
        answers = lax.map(lambda part: method(part[0], part[1], prior), tuple(parts))
        return jax.tree.map(lambda x: x.reshape(count * size, *x.shape[2:])[:users], answers)

    return run


def over_users(method: Method, mesh: Mesh, axis: str | tuple[str, ...] = "data") -> Method:
    """The method with its users cut over axes of a mesh. Devices do not wait for each other: nothing is exchanged.

    Any number of users goes: the last device's rows are padded. The prior is on every device.
    """
    names = (axis,) if isinstance(axis, str) else axis
    devices = int(np.prod([mesh.shape[name] for name in names]))
    cut = PartitionSpec(names)

    def run(z: jax.Array, mask: jax.Array, prior: Prior) -> Any:
        rows = -(-len(z) // devices) * devices
        # Users without pairs are harmless, and are dropped again.
        call = jax.shard_map(method, mesh=mesh, in_specs=(cut, cut, PartitionSpec()), out_specs=cut, check_vma=False)
        return jax.tree.map(lambda x: x[: len(z)], call(_padded(z, rows), _padded(mask, rows), prior))

    return run


@partial(jax.jit, static_argnames=("likelihood", "constraint", "mesh"))
def _program(z, mask, prior: Prior, likelihood: str, constraint: str | None, mesh: Mesh | None) -> jax.Array:
    run = in_blocks(weights_of(likelihood, constraint))
    return (run if mesh is None else over_users(run, mesh, mesh.axis_names))(z, mask, prior)


# (users [rows], z [rows n K], mask [rows n]); z and mask have room for more users than there are.
_Table = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Tables:
    """Tables of one row length that fill up with users: z [rows n K], mask [rows n], users [rows]."""

    def __init__(self, length: int, rows: int, size: int):
        self.shape = (rows, length, size)
        self._renew()

    def _renew(self) -> None:
        # New arrays each time: the devices may still be reading the old ones.
        self.z, self.mask = np.zeros(self.shape, np.float32), np.zeros(self.shape[:2], bool)
        self.users = np.zeros(self.shape[0], np.int64)
        self.filled = 0

    def take(self) -> _Table:
        """(users, z, mask) of what is in the table, which is empty afterwards; z and mask keep their shapes."""
        full = self.users[: self.filled], self.z, self.mask
        self._renew()
        return full

    def fill(self, users: np.ndarray, counts: np.ndarray, z: np.ndarray) -> Iterator[_Table]:
        """Adds users whose pairs z [P K] stand in their order; yields each table that is full."""
        ends = np.cumsum(counts)
        done = 0
        while done < len(users):
            room = min(len(users) - done, self.shape[0] - self.filled)
            some = counts[done : done + room]
            first = int(ends[done] - counts[done])
            rows = np.repeat(np.arange(self.filled, self.filled + room), some)
            slots = ranges(some)
            self.z[rows, slots] = z[first : first + len(rows)]
            self.mask[rows, slots] = True
            self.users[self.filled : self.filled + room] = users[done : done + room]
            self.filled += room
            done += room
            if self.filled == self.shape[0]:
                yield self.take()


class _Span(NamedTuple):
    """Consecutive users with their number of votes, and the rows of those votes."""

    users: np.ndarray
    counts: np.ndarray
    votes: slice


def _spans(user: np.ndarray, num_users: int, votes: int) -> Iterator[_Span]:
    """All users in order, in spans of at most this many votes (or of one user) and as many users."""
    low, first = 0, 0
    while first < num_users:
        # The user of the first vote that no longer fits comes with the next span, unless this span would be empty.
        last = int(user[low + votes]) if low + votes < len(user) else num_users
        last = min(max(last, first + 1), first + votes, num_users)
        # A key of another type would make NumPy convert the whole array; all numbers lie below one past their type.
        past = last > np.iinfo(user.dtype).max
        high = len(user) if past else low + int(np.searchsorted(user[low:], np.asarray(last, user.dtype)))
        rows = np.asarray(user[low:high], np.int64)
        _check_order(rows, first, last, low)
        counts = np.bincount(rows - first, minlength=last - first)
        yield _Span(np.arange(first, last), counts, slice(low, high))
        low, first = high, last
    if low < len(user):
        _check_order(np.asarray(user[low : low + 1], np.int64), first, num_users, low)


def _check_order(rows: np.ndarray, first: int, last: int, start: int) -> None:
    wrong = np.flatnonzero((np.diff(rows, prepend=first) < 0) | (rows >= last))
    if len(wrong):
        raise UserError(
            f"votes: user {rows[wrong[0]]} of row {start + wrong[0]} is out of order or range; sort the votes by user "
            "(np.argsort(user, kind='stable')) and number the users from 0"
        )


def solve_stream(
    rewards: Any,
    votes: Votes,
    num_users: int,
    prior: Prior,
    *,
    likelihood: str = "logistic",
    constraint: str | None = None,
    mesh: Mesh | None = None,
    cells: int = 1 << 19,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights of any number of users in bounded memory: yields (users [u], their weights [u K]) part by part.

    Users with about as many votes are gathered into tables of a fixed shape, so that one program is compiled per row
    length (4, 6, 8, 12 ...), whatever the number of users. The next table is filled while the devices solve the last.
    Every user comes exactly once, users without votes too; users of different row lengths come out of order, so write
    `out[users] = weights` (`out` may be a memory map as well).

    Args:
      rewards: basis rewards [N K] of the responses: an array or a memory map; only rows in use are read.
      votes: `user` (sorted), `chosen`, `rejected` [P]: arrays or memory maps.
      num_users: users are numbered 0 to num_users - 1.
      prior: of the weights.
      likelihood: as of `lore_jax.weights.solve.solve_weights`, as is `constraint`.
      constraint: None or "simplex".
      mesh: users are cut over all of its devices; None for the default device.
      cells: pairs in a table, padding counted; this bounds the memory (a row never splits, so a longer row has a
        table of its own).
    Raises: UserError for votes out of order or range, or an unknown likelihood or constraint.
    """
    if not len(votes.user) == len(votes.chosen) == len(votes.rejected):
        raise UserError("votes: user, chosen and rejected differ in length; give three arrays of one length")
    devices = 1 if mesh is None else mesh.size
    rewards, votes = np.asarray(rewards), Comparisons(*map(np.asarray, (votes.user, votes.chosen, votes.rejected)))
    waiting: deque[tuple[np.ndarray, jax.Array]] = deque()
    for users, z, mask in _tables(rewards, votes, num_users, cells, devices):
        waiting.append((users, _program(z, mask, prior, likelihood, constraint, mesh)))
        if len(waiting) > 1:
            yield _answer(*waiting.popleft())
    while waiting:
        yield _answer(*waiting.popleft())


def _answer(users: np.ndarray, weights: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    return users, np.asarray(weights)[: len(users)]


def _tables(rewards: np.ndarray, votes: Comparisons, num_users: int, cells: int, devices: int) -> Iterator[_Table]:
    """(users, z [rows n K], mask [rows n]) by row lengths: full tables first, what is left at the end."""
    tables: dict[int, _Tables] = {}
    for span in _spans(votes.user, num_users, cells):
        chosen, rejected = votes.chosen[span.votes], votes.rejected[span.votes]
        _check_responses(chosen, rejected, len(rewards), span.votes.start)
        z = np.asarray(rewards[chosen], np.float32) - np.asarray(rewards[rejected], np.float32)
        different, which = np.unique(span.counts, return_inverse=True)
        lengths = np.array([bucket(count) for count in different.tolist()])[which]
        for length in np.unique(lengths):
            if length not in tables:
                rows = -(-max(cells // int(length), 1) // devices) * devices
                tables[length] = _Tables(int(length), rows, z.shape[1])
            mine = lengths == length
            of_mine = z if mine.all() else z[np.repeat(mine, span.counts)]
            yield from tables[length].fill(span.users[mine], span.counts[mine], of_mine)
    for table in tables.values():
        if table.filled:
            yield table.take()


def _check_responses(chosen: np.ndarray, rejected: np.ndarray, num_responses: int, start: int) -> None:
    for name, values in (("chosen", chosen), ("rejected", rejected)):
        wrong = np.flatnonzero((values < 0) | (values >= num_responses))
        if len(wrong):
            raise UserError(
                f"votes: {name} of row {start + wrong[0]} is {values[wrong[0]]}; "
                f"indices run from 0 to {num_responses - 1}"
            )
