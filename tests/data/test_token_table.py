"""Ragged tables of tokens: padding, buckets, packing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pref_jax.data.text.token_table import TokenTable, bucket_length, pack
from pref_jax.errors import UserError

LENGTHS = st.lists(st.integers(0, 40), max_size=60).map(lambda found: np.array(found, np.int64))


def table_of(lengths) -> TokenTable:
    """Every token of the table is another number, from 1."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenTable(np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets, 0)


def test_take_pads_on_the_right():
    table = table_of([2, 0, 4])
    ids, mask = table.take(np.array([2, 0, 1]), 4)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 6], [1, 2, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask.sum(1), [4, 2, 0])
    assert ids.dtype == np.int32


def test_an_empty_table_gives_no_rows():
    table = table_of([])
    ids, mask = table.take(np.zeros(0, np.int64))
    assert ids.shape == mask.shape == (0, 1)


@pytest.mark.parametrize(
    ("longest", "columns"),
    [(0, 32), (1, 32), (32, 32), (33, 48), (48, 48), (49, 64), (64, 64), (65, 96), (96, 96), (97, 100), (100, 100)],
)
def test_buckets_are_few_and_end_at_the_limit(longest, columns):
    assert bucket_length(longest, limit=100) == columns
    assert bucket_length(longest, limit=1000, step=1) == max(longest, 1)


def test_a_text_beyond_the_limit_has_no_bucket():
    with pytest.raises(UserError, match=r"101 tokens .* reads 100; cut"):
        bucket_length(101, limit=100)


@given(LENGTHS, st.integers(1, 6), st.integers(40, 90))
def test_packing_keeps_every_sequence_once_and_whole(lengths, most, capacity):
    packing, table = pack(lengths, capacity, most=most), table_of(lengths)
    assert packing.sequences.shape == packing.starts.shape == (len(packing.sequences), most)
    present = packing.sequences >= 0
    assert present.any(axis=1).all()
    # Slots are filled from the left, so that texts are numbered upwards.
    assert (present[:, 1:] <= present[:, :-1]).all()
    np.testing.assert_array_equal(np.sort(packing.sequences[present]), np.arange(len(lengths)))
    tokens, segments = table.packed(packing, np.arange(len(packing.sequences)))
    assert tokens.shape == segments.shape == (len(packing.sequences), capacity)
    assert tokens.dtype == segments.dtype == np.int32
    np.testing.assert_array_equal(segments > 0, tokens > 0)
    # No token is lost under another one, and each text lies whole, in order, at its place.
    np.testing.assert_array_equal(np.sort(tokens[tokens > 0]), table.flat)
    for row, slot in zip(*np.nonzero(present), strict=True):
        sequence, start = packing.sequences[row, slot], packing.starts[row, slot]
        own = table.flat[table.offsets[sequence] : table.offsets[sequence + 1]]
        np.testing.assert_array_equal(tokens[row, start : start + len(own)], own)
        np.testing.assert_array_equal(tokens[row][segments[row] == slot + 1], own)


@given(st.lists(st.integers(0, 32), max_size=200).map(lambda found: np.array(found, np.int64)))
def test_short_sequences_fill_their_rows(lengths):
    rows = len(pack(lengths, 64, most=max(1, len(lengths))).sequences)
    assert rows <= 1.5 * np.ceil(lengths.sum() / 64) + 1


@pytest.mark.parametrize(
    ("lengths", "most", "rows"),
    [
        ([], 4, 0),
        ([5], 4, 1),
        ([10], 4, 1),
        ([10, 0], 4, 1),
        ([0, 0, 0], 4, 1),
        ([5] * 6, 4, 3),
        ([2] * 10, 4, 3),
        ([1] * 5, 1, 5),
        ([3, 4, 5, 5, 6, 7], 4, 3),  # longest first and then the tightest gap: 7+3, 6+4, 5+5
    ],
)
def test_small_packings(lengths, most, rows):
    assert len(pack(np.array(lengths, np.int64), 10, most=most).sequences) == rows


def test_a_row_of_minus_one_is_padding():
    table = table_of([2, 3])
    packing = pack(table.lengths, 6)
    tokens, segments = table.packed(packing, np.array([-1, 0]))
    np.testing.assert_array_equal(tokens, [[0] * 6, [3, 4, 5, 1, 2, 0]])
    np.testing.assert_array_equal(segments, [[0] * 6, [1, 1, 1, 2, 2, 0]])


def test_packing_mistakes_are_told():
    with pytest.raises(UserError, match=r"2 of 3 sequences are longer than a row of 4 .* 9\); cut them"):
        pack(np.array([9, 5, 4]), 4)
    with pytest.raises(UserError, match="most=0"):
        pack(np.array([1]), 4, most=0)
