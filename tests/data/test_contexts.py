"""Contexts: they are the user's own other answers, and batches are those of `pair_batches`."""

from typing import Any

import numpy as np
import pytest

from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.batches import pair_batches
from pref_jax.data.loaders.contexts import context_batches, contexts
from pref_jax.errors import UserError

SIZES: Any = {"batch_size": 6, "num_steps": 50, "seed": 2}


def ragged() -> Comparisons:
    """Users 0, 2 and 3 with 1, 4 and 9 pairs, in mixed order; user 2 voted twice, both ways, on one pair."""
    rng = np.random.default_rng(0)
    user = rng.permutation(np.repeat([0, 2, 3], [1, 4, 9])).astype(np.int32)
    chosen = 2 * np.arange(len(user), dtype=np.int32)
    rejected = chosen + 1
    first, second = np.flatnonzero(user == 2)[:2]
    chosen[second], rejected[second] = rejected[first], chosen[first]
    return Comparisons(user, chosen, rejected, np.full(len(user), -1, np.int8), np.arange(len(user)))


def test_batches_are_those_of_pairs_with_a_context_each():
    pairs, sizes, met = ragged(), set(), set()
    votes = set(zip(*(column.tolist() for column in pairs[:3]), strict=True))
    plain: Any = pair_batches(pairs, **SIZES)
    for number, batch in enumerate(context_batches(pairs, context=5, **SIZES)):
        for name, column in plain[number].items():
            np.testing.assert_array_equal(batch[name], column)
        np.testing.assert_allclose(batch["progress"], number / 50)
        shapes = {batch[f"context_{name}"].shape for name in ("chosen", "rejected", "mask")}
        assert shapes == {(6, 5)}
        for b in range(6):
            own = (int(batch["user"][b]), int(batch["chosen"][b]), int(batch["rejected"][b]))
            mask = batch["context_mask"][b]
            assert not batch["context_chosen"][b][~mask].any()
            assert not batch["context_rejected"][b][~mask].any()
            others = list(zip(batch["context_chosen"][b][mask], batch["context_rejected"][b][mask], strict=True))
            assert len(set(others)) == len(others)
            for one, two in others:
                assert (own[0], one, two) in votes
                assert {one, two} != set(own[1:])
            sizes.add((own[0], len(others)))
            met.add(own)
    assert met == votes
    # User 2's pair that went both ways leaves two others where it is asked about, else three.
    assert sizes == {(0, 0)} | {(2, n) for n in range(4)} | {(3, n) for n in range(6)}


def test_a_batch_follows_from_its_number():
    batches: Any = context_batches(ragged(), context=5, **SIZES)
    again: Any = context_batches(ragged(), context=5, **SIZES)
    for name, leaf in batches[7].items():
        np.testing.assert_array_equal(leaf, again[7][name])
    assert any((batches[7]["context_chosen"] != batches[8]["context_chosen"]).ravel())


def test_contexts_hold_all_that_is_known_up_to_their_size():
    pairs = ragged()
    found = contexts(pairs, 5, 6, 0)
    assert found.mask.sum(1).tolist() == [1, 0, 4, 6, 0]
    for u in range(5):
        own = set(zip(pairs.chosen[pairs.user == u], pairs.rejected[pairs.user == u], strict=True))
        taken = set(zip(found.chosen[u][found.mask[u]], found.rejected[u][found.mask[u]], strict=True))
        assert taken <= own
        assert len(taken) == found.mask[u].sum()
    other = contexts(pairs, 5, 6, 1)
    assert (other.chosen[3] != found.chosen[3]).any(), "which answers are taken is drawn"
    nothing = contexts(pairs.take(slice(0)), 3, 2, 0)
    assert nothing.chosen.shape == (3, 2)
    assert not nothing.mask.any()


def test_a_negative_context_is_told():
    with pytest.raises(UserError, match="whole number from 0"):
        context_batches(ragged(), context=-1, **SIZES)
