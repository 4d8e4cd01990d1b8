from typing import Any

import numpy as np
import pytest

from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.batches import index_batches, pair_batches
from pref_jax.errors import UserError


def make_pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    user, chosen, rejected = rng.integers(0, 50, (3, count)).astype(np.int32)
    return Comparisons(user, chosen, rejected, np.full(count, -1, np.int8), np.arange(count, dtype=np.int64))


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (13, 4), (4, 4), (1, 1), (101, 10)])
def test_every_epoch_visits_each_row_once_but_for_the_remainder(rows, size):
    per_epoch = rows // size
    batches = index_batches(rows, size, 5 * per_epoch, seed=3)
    epochs = [np.concatenate([batches[e * per_epoch + i] for i in range(per_epoch)]) for e in range(5)]
    for epoch in epochs:
        assert epoch.dtype == np.int64
        assert len(set(epoch.tolist())) == per_epoch * size
        assert epoch.min() >= 0
        assert epoch.max() < rows
    if rows > 4:
        assert len({tuple(epoch) for epoch in epochs}) == 5, "each epoch has an order of its own"


def test_batch_i_follows_from_seed_and_i_alone():
    one, other, short = (index_batches(37, 5, steps, seed=8) for steps in (40, 40, 23))
    forward = [one[i] for i in range(40)]
    for i in (39, 0, 17, 18, 7, 38):
        np.testing.assert_array_equal(other[i], forward[i])
    np.testing.assert_array_equal(short[22], forward[22])
    resumed = iter(one.to_iter_dataset())
    resumed.set_state({"next_index": 31})
    np.testing.assert_array_equal(list(resumed), forward[31:])
    other_seed = index_batches(37, 5, 40, seed=9)
    assert any((other_seed[i] != forward[i]).any() for i in range(40))
    assert (len(one), len(short)) == (40, 23)


@pytest.mark.parametrize(("rows", "size"), [(3, 8), (1, 5), (7, 8), (4, 8)])
def test_a_batch_larger_than_the_data_repeats_rows_evenly(rows, size):
    batches = index_batches(rows, size, 6, seed=1)
    for batch in batches:
        counts = np.bincount(batch, minlength=rows)
        assert counts.sum() == size
        assert set(counts.tolist()) <= {size // rows, -(-size // rows)}


def test_pair_batches_take_whole_pairs():
    pairs = make_pairs(29)
    batches = pair_batches(pairs, batch_size=6, num_steps=9, seed=2)
    rows = index_batches(29, 6, 9, seed=2)
    assert len(batches) == 9
    for batch, row in zip(batches, rows, strict=True):
        assert list(batch) == ["user", "chosen", "rejected"]
        for name, column in batch.items():
            assert column.dtype == np.int32
            np.testing.assert_array_equal(column, getattr(pairs, name)[row])


def test_what_cannot_be_batched_is_told():
    with pytest.raises(UserError, match="no rows"):
        pair_batches(make_pairs(0), batch_size=4, num_steps=2, seed=0)
    for sizes in ({"batch_size": 0}, {"num_steps": 0}, {"seed": -1}):
        given: Any = {"batch_size": 4, "num_steps": 2, "seed": 0, **sizes}
        with pytest.raises(UserError, match="fix the config"):
            pair_batches(make_pairs(5), **given)
