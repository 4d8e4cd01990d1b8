"""The rule that splits votes: what holds for every shape, shares that mean what they say, and what is told."""

import dataclasses
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.data.sources.common.split_rule import GIVEN_VALIDATION, Assigned, SplitOptions, assign_splits
from pref_jax.data.votes import as_preferences, read_votes
from pref_jax.errors import UserError

WORDS = st.sampled_from([None, None, None, "train", "validation", "test"])
VOTES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2), WORDS, st.booleans(), st.floats(0, 9)),
    min_size=1,
    max_size=30,
)
OPTIONS = st.builds(
    SplitOptions,
    validation=st.sampled_from([0.0, 0.1, 0.6]),
    test=st.sampled_from([0.0, 0.2, 0.8]),
    unseen=st.sampled_from([0.0, 0.2, 0.8]),
    by=st.sampled_from(["prompt", "pair", "time"]),
    min_votes_per_user=st.integers(1, 3),
)
FLAGS = st.lists(st.sampled_from([None, None, True, False]), min_size=5, max_size=5)


def split(votes, options=None, *, words=None, flags=None, times=None, seed=0, **masks) -> Assigned:
    """The rule on votes of (user, prompt, pair of the prompt)."""
    user, prompt, place = np.array([vote[:3] for vote in votes], np.int64).reshape(-1, 3).T
    flags = [None] * (int(user.max()) + 1) if flags is None else flags
    words = [None] * len(user) if words is None else words
    options = options or SplitOptions()
    rng = np.random.default_rng(seed)
    return assign_splits(user, prompt, 3 * prompt + place, words, flags, options, rng, times, **masks)


@settings(max_examples=400, deadline=None)
@given(VOTES, OPTIONS, FLAGS, st.integers(0, 3), st.booleans())
def test_whatever_is_voted(votes, options, flags, seed, timed):
    words = [vote[3] for vote in votes]
    learnable = np.array([vote[4] for vote in votes])
    times = np.array([vote[5] for vote in votes]) if timed else None
    given = {"words": words, "flags": flags, "times": times, "seed": seed, "learnable": learnable}
    try:
        found = split(votes, options, **given)
    except UserError as error:
        if not str(error).startswith(("no user has", "no user is seen", "no seen user", "no vote can be kept")):
            raise
        return
    user, prompt, place = np.array([vote[:3] for vote in votes]).T
    own, kept = (user * 5 + prompt) * 3 + place, found.keep
    part = found.split
    assert set(part[kept]) <= {"train", "validation", "test"}
    assert not part[~kept].astype(bool).any()
    # Who stays has something to learn from, and somebody is seen.
    assert set(user[kept]) == set(user[kept & (part == "train") & learnable])
    assert found.seen[user[kept]].any()
    # What was given stays.
    was_given = kept & np.array([word is not None for word in words])
    assert part[was_given].tolist() == [word for word, is_given in zip(words, was_given, strict=True) if is_given]
    assert all(flag in (None, bool(seen)) for flag, seen in zip(flags, found.seen, strict=True))
    # No pair is both learnt from and tested by one user, unless it was given so.
    drawn = kept & ~was_given
    known = np.isin(own, own[kept & np.isin(part, ("train", "validation"))])
    both_given = np.isin(own, own[was_given & (part == "test")]) & np.isin(own, own[was_given & (part != "test")])
    assert not (drawn & (part == "test") & known & ~both_given).any()
    assert not (drawn & (part == "validation") & np.isin(own, own[kept & (part == "train")])).any()
    assert options.validation or not (drawn & (part == "validation")).any()
    if options.test and found.counts["split_by"] != "given":
        assert (part == "test").any()
    seen = kept & found.seen[user]
    assert found.counts[GIVEN_VALIDATION] == (seen & was_given & (part == "validation")).sum()
    assert not (drawn & ~found.seen[user] & (part == "validation")).any()
    lost = sum(int(found.counts[name]) for name in ("rows_of_users_without_training", "rows_under_min_votes"))
    assert lost == (~kept).sum()
    again = split(votes, options, **given)
    assert again.split.tolist() == part.tolist()


@pytest.mark.parametrize(("users", "each", "prompts"), [(300, 2, 50), (3000, 3, 50), (100_000, 3, 200), (20, 3, 50)])
def test_light_voters_leave_the_test_as_large_as_asked(users, each, prompts):
    rng = np.random.default_rng(2)
    asked = np.argsort(rng.random((users, prompts)), axis=1)[:, :each].ravel()
    votes = np.stack([np.repeat(np.arange(users), each), asked, rng.integers(3, size=len(asked))], 1)
    start = time.perf_counter()
    found = split(votes)
    assert time.perf_counter() - start < 20
    assert found.counts["split_by"] == "prompt"
    assert found.counts["prompts_drawn_for_test"] == round(0.2 * len(set(asked)))
    test = found.split == "test"
    assert 0.17 < test.sum() / found.keep.sum() < 0.21
    assert not set(asked[test]) & set(asked[found.keep & ~test])
    assert found.keep.mean() > 0.95
    lost = int(found.counts["users_without_training"])
    assert lost == len(set(votes[~found.keep, 0]))
    assert found.told == (
        [f"users left out: {lost} whose votes all fell into the test, {lost * each} in all"] * (lost > 0)
    )


def test_heavy_prompts_and_users_do_not_decide_how_much_is_tested():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(2000), np.minimum(rng.zipf(1.6, 2000), 400))
    prompt = np.minimum(rng.zipf(1.5, len(user)) - 1, 199)
    shares = [
        np.mean(found.split[found.keep] == "test")
        for seed in range(5)
        if (found := split(np.stack([user, prompt, 0 * user], 1), seed=seed)).counts["split_by"] == "prompt"
    ]
    assert len(shares) == 5
    assert np.allclose(shares, 0.2, atol=0.05)


def test_people_who_vote_on_one_prompt_each_are_split_by_pair():
    votes = [(user, user % 8, place) for user in range(80) for place in range(3)]
    found = split(votes)
    assert (found.counts["split_asked"], found.counts["split_by"]) == ("prompt", "pair")
    assert any(text.startswith("split by pair instead: by prompt, only 0 votes could be tested") for text in found.told)
    assert 0.1 < np.mean(found.split == "test") < 0.3
    assert found.keep.all()


def test_where_most_know_one_pair_votes_are_drawn_of_those_who_know_more():
    votes = [(user, 0, user % 2) for user in range(20)] + [(20, 0, 0), (20, 0, 1)]
    found = split(votes, SplitOptions(unseen=0))
    assert found.counts["split_by"] == "vote"
    assert sorted(found.split[-2:]) == ["test", "train"]
    assert found.keep.all()
    assert "by pair, only 1 votes could be tested, and 10 votes are of people without others" in found.told[1]


def test_the_latest_votes_are_tested():
    rng = np.random.default_rng(0)
    votes = [(user, prompt, 0) for user in range(20) for prompt in range(20)]
    times = rng.random(len(votes))
    times[::10] = np.nan
    found = split(votes, SplitOptions(by="time", validation=0.0), times=times)
    test = found.split == "test"
    assert found.counts["split_by"] == "time"
    assert test.sum() == round(0.2 * np.isfinite(times).sum())
    assert np.nanmin(times[test]) > np.nanmax(times[~test])
    assert (found.split[np.isnan(times)] == "train").all()


def test_people_who_vote_one_after_the_other_are_tested_on_their_own_latest():
    votes = [(user, prompt, 0) for user in range(20) for prompt in range(10)]
    times = np.arange(200.0)
    found = split(votes, SplitOptions(by="time", validation=0.0), times=times)
    assert found.counts["split_by"] == "time of each user"
    for user in range(20):
        own = found.split[10 * user : 10 * user + 10].tolist()
        assert own == ["train"] * 8 + ["test"] * 2
    assert split(votes, SplitOptions(by="time")).counts["split_by"] == "prompt"


def test_given_validation_votes_are_the_only_ones():
    votes = [(user, prompt, 0) for user in range(4) for prompt in range(10)]
    words = ["validation" if vote[1] == 0 else None for vote in votes]
    found = split(votes, SplitOptions(unseen=0), words=words)
    assert found.counts[GIVEN_VALIDATION] == 4
    assert [vote[1] for vote, part in zip(votes, found.split, strict=True) if part == "validation"] == [0] * 4


def test_light_users_are_left_out_and_counted():
    found = split([(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0)], SplitOptions(min_votes_per_user=2))
    assert found.keep.tolist() == [False, True, True, True]
    assert (found.counts["users_under_min_votes"], found.counts["rows_under_min_votes"]) == (1, 1)
    assert found.told == ["users left out: 1 with fewer than 2 votes each, 1 in all"]
    with pytest.raises(UserError, match="no user has 9 votes; lower min_votes_per_user"):
        split([(0, 0, 0)], SplitOptions(min_votes_per_user=9))


@pytest.mark.parametrize("users", [1, 2, 3])
def test_few_users_are_not_all_unseen(users):
    found = split([(user, prompt, 0) for user in range(users) for prompt in range(5)], SplitOptions(unseen=0.9))
    assert found.seen.sum() == 1


def test_nobody_seen_and_bad_options():
    with pytest.raises(UserError, match="no user is seen: nobody to learn from; mark some as seen"):
        split([(0, 0, 0), (0, 1, 0)], flags=[False])
    rows = [{"user": "u", "prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    tables = read_votes(rows)
    nobody = tables.users.set_column(2, "seen", pa.array([False]))
    with pytest.raises(UserError, match="no user is seen"):
        as_preferences(dataclasses.replace(tables, users=nobody))
    with pytest.raises(UserError, match=r"(?s)split_by: is 'day'.*test_fraction: is 2.*min_votes_per_user: is 0"):
        SplitOptions(by="day", test=2, min_votes_per_user=0).check()


def test_what_a_test_cannot_score_is_not_drawn_alone():
    votes = [(0, prompt, 0) for prompt in range(6)]
    testable = np.array([True, True, False, False, False, False])
    for seed in range(5):
        found = split(votes, SplitOptions(unseen=0), testable=testable, seed=seed)
        assert (testable & (found.split == "test")).any()
