"""Pairs of texts that begin alike: one row for both, in which their common beginning stands once.

What is shared is found in the tokens themselves, so it holds for any chat template and for texts that were cut: a row
says exactly what its two texts say.

Axis letters: B pairs of a batch, P pairs, L length.
"""

import numpy as np
from jaxtyping import Int, Int32, Int64

from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import UserError


def common_prefix(
    table: TokenTable, first: Int[np.ndarray, "P"], second: Int[np.ndarray, "P"], *, chunk: int = 4096
) -> Int64[np.ndarray, "P"]:
    """Tokens that sequences `first` and `second` of a table have in common from their beginning on.

    Args:
      table: the sequences.
      first: numbers of sequences.
      second: the same.
      chunk: pairs that are compared at a time.
    """
    found = np.zeros(len(first), np.int64)
    for start in range(0, len(first), chunk):
        here = slice(start, start + chunk)
        length = int(np.minimum(table.lengths[first[here]], table.lengths[second[here]]).max(initial=0))
        (a, inside_a), (b, inside_b) = table.take(first[here], length), table.take(second[here], length)
        found[here] = np.logical_and.accumulate((a == b) & inside_a & inside_b, axis=1).sum(axis=1)
    return found


def shared_lengths(
    table: TokenTable, chosen: Int[np.ndarray, "P"], rejected: Int[np.ndarray, "P"]
) -> Int64[np.ndarray, "P"]:
    """Tokens of each pair in one row: both texts less one of their common beginnings."""
    lengths = table.lengths
    return lengths[chosen] + lengths[rejected] - common_prefix(table, chosen, rejected)


def shared_rows(
    table: TokenTable, chosen: Int[np.ndarray, "B"], rejected: Int[np.ndarray, "B"], length: int
) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]:
    """Rows of common beginning, rest of the chosen text, rest of the rejected one, padded on the right.

    Args:
      table: the sequences.
      chosen: numbers of sequences.
      rejected: the same.
      length: L, at least the largest of `shared_lengths`.

    Returns:
      Tokens, 0 at padding; and parts, as `pref_jax.lm.attention.branches` takes them: 1 at the common beginning, 2
      and 3 at the rests of the chosen and of the rejected text, 0 at padding.

    Raises:
      UserError: if a pair is longer than a row.
    """
    prefix = common_prefix(table, chosen, rejected)[:, None]
    middle = table.lengths[chosen][:, None]  # where the rejected text goes on
    end = middle + table.lengths[rejected][:, None] - prefix
    if (longest := int(end.max(initial=0))) > length:
        raise UserError(f"shared_rows: a pair of {longest} tokens in rows of {length}; give the longest of the pairs")
    column = np.arange(length)[None]
    first, second = table.offsets[chosen][:, None], table.offsets[rejected][:, None]
    place = np.where(column < middle, first + column, second + prefix + column - middle)
    parts = np.select([column < prefix, column < middle, column < end], [1, 2, 3]).astype(np.int32)
    if not len(table.flat):
        return np.zeros_like(parts), parts
    return np.where(parts > 0, table.flat[np.minimum(place, len(table.flat) - 1)], 0), parts
