"""Episodes: whose pairs stand where, that no query pair is in the support, and that batch i follows from i alone."""

from typing import Any

import numpy as np
import pytest

from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.episodes import episode_batches
from pref_jax.errors import UserError

SIZES = {"users_per_batch": 4, "pairs_per_user": 5, "splits": 3, "num_steps": 60, "seed": 1}


def make_pairs(user, chosen, rejected):
    user, chosen, rejected = (np.asarray(column, np.int32) for column in (user, chosen, rejected))
    return Comparisons(user, chosen, rejected, np.full(len(user), -1, np.int8), np.arange(len(user)))


def ragged(seed=0):
    """Users 2, 5, 7, 8, 11 and 12 with 1 to 9 pairs in mixed order; a response belongs to one user only."""
    rng = np.random.default_rng(seed)
    counts = {2: 1, 5: 2, 7: 5, 8: 4, 11: 9, 12: 3}
    user = rng.permutation(np.repeat(list(counts), list(counts.values())))
    return make_pairs(user, 2 * np.arange(len(user)), 2 * np.arange(len(user)) + 1), counts


def owners(pairs, batch):
    """User of each row [U], all of whose pairs, padding too, must be that user's."""
    user = pairs.user[batch["chosen"] // 2]
    np.testing.assert_array_equal(batch["rejected"], batch["chosen"] + 1)
    assert (user == user[:, :1]).all()
    return user[:, 0]


def test_rows_are_different_pairs_of_one_user():
    pairs, counts = ragged()
    batches = episode_batches(pairs, **SIZES)
    assert len(batches) == 60
    met = set()
    for batch in batches:
        assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in batch.items()} == {
            "chosen": ((4, 5), "int32"),
            "rejected": ((4, 5), "int32"),
            "mask": ((4, 5), "bool"),
            "support": ((4, 3, 5), "bool"),
        }
        users = owners(pairs, batch)
        assert len(set(users)) == 4
        for user, chosen, mask in zip(users, batch["chosen"], batch["mask"], strict=True):
            real = chosen[mask]
            assert len(set(real)) == len(real) == min(counts[user], 5)
            met |= set(real)
    assert met == set(pairs.chosen), "a user with more pairs than fit shows all of them in time"


def test_supports_are_of_every_size_but_all_and_every_pair_is_in_some():
    pairs, counts = ragged()
    sizes = {user: [] for user in counts}
    shares = {user: [] for user in counts}
    for batch in episode_batches(pairs, **{**SIZES, "num_steps": 300}):
        assert not (batch["support"] & ~batch["mask"][:, None]).any()
        for user, support in zip(owners(pairs, batch), batch["support"], strict=True):
            sizes[user] += support.sum(1).tolist()
            shares[user].append(support.mean(0)[: min(counts[user], 5)])
    for user, found in sizes.items():
        most = min(counts[user], 5)
        assert set(found) == set(range(most))
        frequencies = np.bincount(found, minlength=most) / len(found)
        np.testing.assert_allclose(frequencies, 1 / most, atol=0.07)
        np.testing.assert_allclose(np.mean(shares[user], axis=0), (most - 1) / 2 / most, atol=0.07)


def test_repeated_votes_stay_on_one_side():
    """Responses 0 and 1 three times, once the other way; 2 and 3 twice; 4 and 5 once."""
    pairs = make_pairs([3] * 6, [0, 2, 1, 0, 4, 3], [1, 3, 0, 1, 5, 2])
    found = set()
    for batch in episode_batches(pairs, **{**SIZES, "users_per_batch": 1, "pairs_per_user": 6}):
        assert batch["mask"].all()
        both = batch["chosen"][0] // 2
        for support in batch["support"][0]:
            inside, outside = set(both[support]), set(both[~support])
            assert not inside & outside
            assert outside
            found.add(frozenset(inside))
    assert found == {frozenset(some) for some in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2))}


def test_batch_i_follows_from_seed_and_i_alone():
    pairs, _ = ragged()
    one, other, short = (episode_batches(pairs, **{**SIZES, "num_steps": steps}) for steps in (40, 40, 23))

    def same(a, b):
        return all(np.array_equal(a[name], b[name]) for name in a)

    forward = [one[i] for i in range(40)]
    assert all(same(other[i], forward[i]) for i in (39, 0, 17, 18, 7, 38))
    assert same(short[22], forward[22])
    resumed = iter(one.to_iter_dataset())
    resumed.set_state({"next_index": 31})
    assert all(same(a, b) for a, b in zip(resumed, forward[31:], strict=True))
    assert not any(same(forward[i], forward[j]) for i in range(10) for j in range(i))
    another = episode_batches(pairs, **{**SIZES, "seed": 2})
    assert not any(same(another[i], forward[i]) for i in range(10))


def test_users_of_one_pair_have_no_support_and_few_users_fill_a_batch():
    batch: Any = episode_batches(make_pairs([0, 9], [0, 2], [1, 3]), **SIZES)[0]
    np.testing.assert_array_equal(batch["mask"].sum(1), 1)
    assert not batch["support"].any()
    np.testing.assert_array_equal(np.bincount(batch["chosen"][:, 0]), [2, 0, 2])


@pytest.mark.parametrize("changes", [{"pairs_per_user": 0}, {"splits": 0}, {"users_per_batch": 0}, {"seed": -1}])
def test_sizes_out_of_range_are_told(changes):
    with pytest.raises(UserError, match="fix the config"):
        episode_batches(ragged()[0], **{**SIZES, **changes})


def test_nobody_is_told():
    with pytest.raises(UserError, match="no rows to draw from"):
        episode_batches(make_pairs([], [], []), **SIZES)
