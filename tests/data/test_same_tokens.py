"""Comparisons of equal tokens: found, counted, left out, and refused where nothing else is there."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pref_jax.data import preferences
from pref_jax.data.preferences import Preferences
from pref_jax.data.text.same_tokens import left_out, same_tokens, told, without, without_same_tokens
from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import UserError

TEXTS = st.lists(st.lists(st.integers(0, 1), max_size=4), min_size=1, max_size=8)
SPLITS = ["train", "train", "validation", "test", "test"]


def table_of(texts) -> TokenTable:
    flat = np.array(list(itertools.chain.from_iterable(texts)), np.int32)
    return TokenTable(flat, np.cumsum([0, *map(len, texts)]).astype(np.int64), 0)


@given(TEXTS)
def test_pairs_are_the_same_if_their_lists_are(texts):
    first, second = np.indices((len(texts), len(texts))).reshape(2, -1)
    want = [texts[a] == texts[b] for a, b in zip(first, second, strict=True)]
    assert same_tokens(table_of(texts), first, second).tolist() == want


@given(TEXTS, st.randoms())
def test_selected_sequences_are_those_of_the_rows(texts, draw):
    rows = np.array([draw.randrange(len(texts)) for _ in range(5)])
    found = table_of(texts).select(rows)
    assert [found.flat[a:b].tolist() for a, b in itertools.pairwise(found.offsets)] == [texts[row] for row in rows]


def votes(splits=SPLITS, **columns: Any) -> Preferences:
    """One user on pairs (0, 1), (2, 3) .. of responses."""
    count = len(splits)
    responses = {
        "response_id": [f"r{n}" for n in range(2 * count)],
        "prompt": [[{"role": "user", "content": f"{n // 2}?"}] for n in range(2 * count)],
        "text": [f"text {n}" for n in range(2 * count)],
    }
    comparisons = {
        "user": [0] * count,
        "chosen": list(range(0, 2 * count, 2)),
        "rejected": list(range(1, 2 * count, 2)),
        "split": splits,
        "controversial": [None] * count,
        **columns,
    }
    return preferences.build({"user_id": ["ada"], "group": [None], "seen": [True]}, responses, comparisons, {})


def test_they_are_left_out_and_counted_by_split():
    equal = [0, 3, 4]
    texts = [[n, n + 1] if n // 2 not in equal else [7] for n in range(10)]
    whole = votes(strength=[0.25, 0.5, 0.75, 1.0, 1.25])
    found = without_same_tokens(whole, table_of(texts))
    assert found.comparisons["strength"].to_pylist() == [0.5, 0.75]
    assert found.pairs("test").user.size == 0
    assert left_out(found) == {"same_tokens": {"train": 1, "validation": 0, "test": 2}}
    assert told(found) == (
        "left out: 1 of 2 training votes, 2 of 2 test votes, on two texts that are the same tokens to the model"
    )
    assert found.responses is whole.responses
    assert left_out(whole) == {}


def test_nothing_is_said_where_nothing_is_left_out():
    whole = votes()
    found = without_same_tokens(whole, table_of([[n] for n in range(10)]))
    assert found is whole
    assert (told(found), left_out(found)) == ("", {})


def test_all_training_votes_on_equal_tokens_are_an_error():
    with pytest.raises(UserError, match=r"all 2 training votes .* same tokens .* 'text 0' and 'text 1'; take a model"):
        without(votes(), np.array([True, True, False, False, False]))
