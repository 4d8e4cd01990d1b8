"""Token sequences of different lengths: laid end to end, padded into batches, or packed several to a row.

Axis letters: N sequences, T tokens of all of them, B batch, L length, R packed rows, S sequences in a row.
"""

import bisect
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from pref_jax.errors import UserError
from pref_jax.ragged import expand, padded


class Packing(NamedTuple):
    """Which sequences share a row, and where in it they stand.

    Attributes:
      sequences: int64 [R S] number of each row's sequences from left to right, then -1.
      starts: int32 [R S] place of each one's first token; 0 where there is none.
      capacity: L, tokens that fit in a row.
    """

    sequences: Int[np.ndarray, "R S"]
    starts: Int[np.ndarray, "R S"]
    capacity: int


class TokenTable(NamedTuple):
    """Token sequences of different lengths, end to end.

    Attributes:
      flat: int32 [T] all tokens.
      offsets: int64 [N+1]; sequence i is flat[offsets[i]:offsets[i+1]].
      truncated: how many of the N sequences were cut to the length limit.
    """

    flat: Int[np.ndarray, "T"]
    offsets: Int[np.ndarray, "N1"]
    truncated: int

    @property
    def lengths(self) -> Int[np.ndarray, "N"]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    def take(
        self, rows: Int[np.ndarray, "B"], length: int | None = None
    ) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
        """Sequences `rows` padded on the right with zeros to `length` (the table's longest if None), and their mask."""
        length = int(self.lengths.max(initial=1)) if length is None else length
        place, mask = padded(self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows], length)
        return (np.where(mask, self.flat[place], 0) if len(self.flat) else np.zeros(mask.shape, np.int32)), mask

    def select(self, rows: Int[np.ndarray, "B"]) -> "TokenTable":
        """A table of these sequences alone; `truncated` stays that of all."""
        lengths = self.lengths[rows]
        ends = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        return TokenTable(self.flat[expand(self.offsets[rows], lengths)], ends, self.truncated)

    def packed(
        self, packing: Packing, rows: Int[np.ndarray, "B"]
    ) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]:
        """Rows of a packing of this table's `lengths`.

        Args:
          packing: as from `pack`.
          rows: numbers of its rows; -1 gives a row of padding, to fill up a batch.

        Returns:
          Tokens, 0 at padding; and segments: 1 at the tokens of a row's first sequence, 2 at those of its second, and
          so on, 0 at padding.
        """
        sequences = np.where(rows[:, None] < 0, -1, packing.sequences[rows])
        row, slot = np.nonzero(sequences >= 0)
        chosen = sequences[row, slot]
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        column = expand(packing.starts[rows[row], slot], lengths)
        tokens, segments = np.zeros((2, len(rows), packing.capacity), np.int32)
        tokens[np.repeat(row, lengths), column] = self.flat[expand(self.offsets[chosen], lengths)]
        segments[np.repeat(row, lengths), column] = np.repeat(slot + 1, lengths)
        return tokens, segments


def bucket_length(longest: int, *, limit: int, step: int = 32) -> int:
    """Columns of a batch whose longest sequence has `longest` tokens: few different ones, so few programs to compile.

    Args:
      longest: tokens of the longest sequence.
      limit: the most columns that the model reads; no length is rounded up beyond it.
      step: the fewest columns; lengths are rounded up to a multiple of it, or, up to twice as many, of its half.

    Raises:
      UserError: if the sequence is longer than the limit.
    """
    if longest > limit:
        raise UserError(f"a text of {longest} tokens for a model that reads {limit}; cut texts to at most {limit}")
    fine = step if longest > 2 * step else max(step // 2, 1)
    return min(limit, max(step, -(-longest // fine) * fine))


def pack(lengths: Int[np.ndarray, "N"], capacity: int, *, most: int = 32) -> Packing:
    """Packs sequences into rows by best fit, longest first: each goes where it leaves the least room.

    O(N log C) steps for rows of C tokens. As long as no row is closed by `most`, that is at most 11/9 of the rows of
    the best packing (and one); and sequences of half a row or less fill all rows but one to two thirds.

    Args:
      lengths: tokens of each sequence; 0 is allowed.
      capacity: tokens that fit in a row.
      most: S, sequences that fit in a row. It is a fixed number because it becomes part of compiled shapes.

    Raises:
      UserError: if a sequence is longer than a row, or a number is not positive.
    """
    if capacity < 1 or most < 1:
        raise UserError(f"pack: capacity={capacity}, most={most}; give whole numbers from 1")
    if long := int((lengths > capacity).sum()):
        raise UserError(
            f"pack: {long} of {len(lengths)} sequences are longer than a row of {capacity} tokens (the longest has "
            f"{lengths.max()}); cut them or give a larger capacity"
        )
    order = np.argsort(-lengths, kind="stable")
    row, slot, start = (np.zeros(len(lengths), np.int64) for _ in range(3))  # of each sequence
    counts: list[int] = []  # of each row, its sequences
    rows_with: dict[int, list[int]] = {}  # free tokens -> rows that have just so many left
    free: list[int] = []  # the keys of `rows_with` in rising order
    for sequence, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        tightest = bisect.bisect_left(free, length)
        if tightest == len(free):
            room, into = capacity, len(counts)
            counts.append(0)
        else:
            room = free[tightest]
            into = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], free[tightest]
        row[sequence], slot[sequence], start[sequence] = into, counts[into], capacity - room
        counts[into] += 1
        if counts[into] < most:
            if room - length not in rows_with:
                bisect.insort(free, room - length)
            rows_with.setdefault(room - length, []).append(into)
    sequences, starts = np.full((len(counts), most), -1, np.int64), np.zeros((len(counts), most), np.int32)
    sequences[row, slot], starts[row, slot] = np.arange(len(lengths)), start
    return Packing(sequences, starts, capacity)
