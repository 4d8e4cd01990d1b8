"""What models are chosen by is as new to them as the test: prompts, pairs or responses that nothing else is of."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.data.choosing import hold_out_as_tested
from pref_jax.data.schema import prompt_ids
from pref_jax.data.votes import read_votes
from pref_jax.errors import UserError

LEARN = ("train", "validation")


def pairs(users, prompts, responses, **more):
    """Every user compares each response with the first one, on every prompt."""
    return [
        {"user": f"u{u}", "prompt": f"Why {p}?", "chosen": f"because {r + 1}", "rejected": "because 0", **more}
        for u, p, r in itertools.product(range(users), range(prompts), range(responses - 1))
    ]


def ratings(users, prompts, responses, **more):
    return [
        {"user": f"u{u}", "prompt": f"Why {p}?", "response": f"because {r}", "rating": (r + u) % responses, **more}
        for u, p, r in itertools.product(range(users), range(prompts), range(responses))
    ]


def held_of(votes, fraction=0.2, seed=0):
    """The known votes, and which of them are held out: of comparisons, then of ratings."""
    held = hold_out_as_tested(votes, fraction, np.random.default_rng(seed))
    known, rated = votes.pairs(LEARN, seen=True, ties=True), votes.rated(LEARN, seen=True)
    return known, held.pairs(known), rated, held.ratings(rated, votes)


@pytest.mark.parametrize("rows", [pairs(4, 10, 3), ratings(4, 10, 3), pairs(4, 10, 3) + ratings(4, 10, 3)])
@pytest.mark.parametrize("test", [0.0, 0.2])
def test_prompts_are_new_where_there_are_several(rows, test):
    votes = read_votes(rows, test_fraction=test, unseen_fraction=0.25)
    known, held, rated, held_ratings = held_of(votes)
    prompt = prompt_ids(votes.responses["prompt"])
    new = set(prompt[known.chosen[held]])
    assert len(new) == 2
    assert not new & set(prompt[known.chosen[~held]])
    assert (held_ratings == np.isin(prompt[rated.response], list(new))).all()
    assert set(known.row[held]) <= set(votes.pairs(LEARN, seen=True, ties=True).row)


def test_responses_are_new_where_one_prompt_has_ratings():
    votes = read_votes(ratings(6, 1, 20), test_fraction=0.2)
    known, held, rated, held_ratings = held_of(votes)
    new = set(rated.response[held_ratings])
    assert 2 <= len(new) <= 4
    assert not new & set(rated.response[~held_ratings])
    assert not new & {*known.chosen[~held], *known.rejected[~held]}
    assert 0 < held.sum() < len(held)


def test_pairs_are_new_where_one_prompt_has_comparisons():
    votes = read_votes(pairs(6, 1, 11), test_fraction=0.2)
    known, held, *_ = held_of(votes)
    pair = [frozenset(one) for one in zip(known.chosen.tolist(), known.rejected.tolist(), strict=True)]
    new = {one for one, out in zip(pair, held, strict=True) if out}
    assert new
    assert not new & {one for one, out in zip(pair, held, strict=True) if not out}


def test_given_validation_votes_are_what_is_chosen_by():
    rows = pairs(4, 6, 3) + pairs(4, 2, 4, split="validation") + ratings(4, 3, 1, split="validation")
    votes = read_votes([{**row, "prompt": f"{row.get('split')} {row['prompt']}"} for row in rows])
    known, held, rated, held_ratings = held_of(votes)
    assert set(known.row[held]) == set(votes.pairs("validation", seen=True).row)
    # Also a rating that makes no pair.
    assert held_ratings.all()
    assert len(rated.user) == 12


def test_nothing_is_held_out_of_nothing():
    votes = read_votes(pairs(3, 1, 2))
    assert not held_of(votes)[1].any()
    assert not held_of(read_votes(pairs(4, 4, 4)), fraction=0.0)[1].any()


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 3),
    prompts=st.integers(1, 3),
    responses=st.integers(1, 4),
    fraction=st.sampled_from([0.01, 0.2, 1.0]),
    kind=st.sampled_from([pairs, ratings, lambda *size: pairs(*size) + ratings(*size)]),
    seed=st.integers(0, 5),
)
def test_something_is_always_left_to_learn_from(users, prompts, responses, fraction, kind, seed):
    try:
        votes = read_votes(kind(users, prompts, responses), seed=seed)
    except UserError:
        return
    known, held, rated, held_ratings = held_of(votes, fraction, seed)
    assert not len(known.user) or not held.all()
    assert not len(rated.user) or not held_ratings.all() or len(known.user)
