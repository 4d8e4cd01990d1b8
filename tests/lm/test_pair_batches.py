"""Training reads pairs in one row where that is less work, and says so."""

from typing import Any

import numpy as np
import tiny

from pref_jax.comparisons import Comparisons
from pref_jax.data.text.token_table import TokenTable
from pref_jax.lm import pair_batches
from pref_jax.lm.pair_batches import shared_length, text_batches

LM = tiny.llama()


def table_of(*texts) -> TokenTable:
    flat = np.array([token for text in texts for token in text], np.int32)
    return TokenTable(flat, np.cumsum([0, *map(len, texts)]).astype(np.int64), 0)


def pairs_of(chosen, rejected):
    count = len(chosen)
    user, unknown = np.arange(count, dtype=np.int32), np.full(count, -1, np.int8)
    return Comparisons(user, np.array(chosen, np.int32), np.array(rejected, np.int32), unknown, np.arange(count))


PROMPT = list(range(10))
TABLE = table_of([*PROMPT, 11], [*PROMPT, 12, 13], [*PROMPT, 14], [15, 16, 17], [*range(20, 31)])


def test_decoders_share_rows_where_that_is_less_work(capsys):
    assert shared_length(LM, pairs_of([0, 3], [1, 0]), TABLE, 12) == 16
    assert capsys.readouterr().err == "  one row for both responses of a pair: 14 tokens in place of 24\n"
    assert shared_length(LM, pairs_of([0, 0], [1, 4]), TABLE, 12) is None
    assert "24 tokens a pair are less work than 22 in one row" in capsys.readouterr().err
    assert shared_length(tiny.bert(), pairs_of([0], [1]), TABLE, 12) is None
    assert capsys.readouterr().err == ""


def test_lengths_are_rounded_up_within_what_the_model_reads():
    short = tiny.llama(max_positions=30)
    found = {length: pair_batches.rounded(length, short) for length in (0, 1, 8, 9, 24, 25, 30)}
    assert found == {0: 0, 1: 8, 8: 8, 9: 16, 24: 24, 25: 30, 30: 30}


def test_work_counts_the_attention_of_long_rows():
    # Queries and outputs, keys and values of half as many heads, the three of the MLP; two products with each key.
    linears = 16 * 16 * 2 + 2 * 16 * 8 + 3 * 16 * 24
    assert pair_batches._work(LM, 10) == 10 * linears + 2 * 10 * 10 * 16
    assert pair_batches._work(LM, 400) > 2 * pair_batches._work(LM, 210)


def test_both_layouts_hold_the_same_pairs():
    pairs = pairs_of([0, 1, 3, 0], [1, 2, 2, 4])
    how = {"batch_size": 3, "num_steps": 4, "seed": 1}
    apart: Any = text_batches(pairs, TABLE, 12, **how)
    together: Any = text_batches(pairs, TABLE, 12, shared=24, **how)
    assert len(apart) == len(together) == 4
    for step in range(4):
        one, other = apart[step], together[step]
        np.testing.assert_array_equal(one["user"], other["user"])
        assert other["tokens"].shape == other["parts"].shape == (3, 24)
        for row in range(3):
            for side, part in (("chosen", 2), ("rejected", 3)):
                text = one[side][row][one[f"{side}_mask"][row]]
                own = (other["parts"][row] == 1) | (other["parts"][row] == part)
                np.testing.assert_array_equal(other["tokens"][row][own], text)
