"""Votes of every kind and shape, drawn at random: read, split and told about without NaN, or refused in words."""

import json
import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.data.checks import outlook
from pref_jax.data.checks.majority import majority_margins
from pref_jax.data.checks.overview import overview
from pref_jax.data.sources.common.split_rule import NoTestError
from pref_jax.data.votes import read_votes
from pref_jax.errors import UserError

USERS, PROMPTS, TEXTS = st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)


@st.composite
def vote(draw):
    user, prompt = f"u{draw(USERS)}", f"q{draw(PROMPTS)}"
    kind = draw(st.sampled_from(["pair", "pair", "tie", "both_bad", "skipped", "ranking", "rating"]))
    one, two = draw(st.permutations(["red", "green", "blue", "grey"]))[:2]
    row = {"user": user, "prompt": prompt}
    if kind == "pair":
        strength = draw(st.sampled_from([{}, {"strength": 1}, {"strength": 3}]))
        return row | {"chosen": one, "rejected": two} | strength
    if kind == "rating":
        return row | {"response": one, "rating": draw(st.integers(1, 5))}
    if kind == "ranking":
        order = draw(st.permutations(["red", "green", "blue"]))
        return row | {"responses": list(order), "ranking": draw(st.permutations([0, 1, 2]))}
    return row | {"responses": [one, two], "outcome": kind}


def tail(rows):
    """One user's votes many times over: a heavy tail, and all but the first are repeats."""
    return rows + [rows[0]] * 40


def opposed(rows):
    """Every pair answered both ways by the same user."""
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows if "chosen" in row]
    return rows + turned


BY, UNSEEN = st.sampled_from(["prompt", "pair"]), st.sampled_from([0.0, 0.3])
SHAPES = st.sampled_from([list, list, tail, opposed])
# What people are told of votes that say nothing.
NOTHING = "no user has a vote"


@settings(max_examples=150, deadline=None)
@given(st.lists(vote(), min_size=1, max_size=12), SHAPES, st.integers(0, 2), BY, UNSEEN)
def test_any_votes_are_read_split_and_told_about(rows, shape, seed, by, unseen):
    rows = shape(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            tables = read_votes(rows, test_fraction=0.2, unseen_fraction=unseen, split_by=by, seed=seed)
        except NoTestError:
            tables = read_votes(rows, split_by=by, seed=seed)
        except UserError as error:
            if NOTHING not in str(error) and "no user is seen" not in str(error):
                raise
            return
        found = overview(tables, seed=seed)
        json.dumps([found, outlook.sentences(found), outlook.lines(found)], allow_nan=False)
        test = tables.pairs("test")
        margins = majority_margins(tables, test)
    assert margins is None or (np.isfinite(margins).all() and len(margins) == len(test.user))
    assert tables.num_users <= len({row["user"] for row in rows})
    splits = [set(tables.pairs(split).row.tolist()) for split in ("train", "validation", "test")]
    assert not splits[0] & splits[1]
    assert not (splits[0] | splits[1]) & splits[2]
