"""Pairs in one row: what is shared is the common beginning, and nothing of either text is lost."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pref_jax.data.text.shared_prefix import common_prefix, shared_lengths, shared_rows
from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import UserError

# Few different tokens, 0 among them, so that beginnings often agree; 0 is also what stands at padding.
TEXTS = st.lists(st.lists(st.integers(0, 1), max_size=7), min_size=1, max_size=8)


def table_of(texts) -> TokenTable:
    flat = np.array(list(itertools.chain.from_iterable(texts)), np.int32)
    return TokenTable(flat, np.cumsum([0, *map(len, texts)]).astype(np.int64), 0)


def all_pairs(count):
    grid = np.indices((count, count)).reshape(2, -1)
    return grid[0].astype(np.int32), grid[1].astype(np.int32)


@given(TEXTS, st.integers(0, 3))
def test_rows_hold_both_texts_and_their_beginning_once(texts, spare):
    table, (chosen, rejected) = table_of(texts), all_pairs(len(texts))
    lengths = shared_lengths(table, chosen, rejected)
    width = int(lengths.max()) + spare
    tokens, parts = shared_rows(table, chosen, rejected, width)
    assert tokens.dtype == parts.dtype == np.int32
    assert tokens.shape == parts.shape == (len(chosen), width)
    for c, r, length, row, part in zip(chosen, rejected, lengths, tokens, parts, strict=True):
        prefix = 0
        while prefix < min(len(texts[c]), len(texts[r])) and texts[c][prefix] == texts[r][prefix]:
            prefix += 1
        assert list(row[(part == 1) | (part == 2)]) == texts[c]
        assert list(row[(part == 1) | (part == 3)]) == texts[r]
        assert (part == 1).sum() == prefix
        assert (part > 0).sum() == length
        # Trunk, chosen, rejected, padding: in this order, without gaps, and nothing under the padding.
        assert list(part) == sorted(part[part > 0]) + [0] * (width - length)
        assert not row[part == 0].any()


def test_it_does_not_matter_how_many_pairs_are_compared_at_a_time():
    rng = np.random.default_rng(0)
    table = table_of([list(rng.integers(0, 2, size)) for size in rng.integers(0, 9, 30)])
    chosen, rejected = all_pairs(30)
    whole = common_prefix(table, chosen, rejected)
    np.testing.assert_array_equal(common_prefix(table, chosen, rejected, chunk=7), whole)
    assert whole.max() > 2


def test_nothing_at_all():
    none = np.zeros(0, np.int32)
    assert shared_lengths(table_of([]), none, none).shape == (0,)
    assert [found.shape for found in shared_rows(table_of([]), none, none, 3)] == [(0, 3), (0, 3)]
    empty = table_of([[], []])
    tokens, parts = shared_rows(empty, np.array([0]), np.array([1]), 2)
    assert not tokens.any()
    assert not parts.any()


def test_rows_too_short_are_told():
    with pytest.raises(UserError, match="a pair of 4 tokens in rows of 3"):
        shared_rows(table_of([[1, 2, 3], [1, 2, 4]]), np.array([0]), np.array([1]), 3)
