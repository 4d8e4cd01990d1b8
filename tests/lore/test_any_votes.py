"""Votes of any kind by one to three people on one to four responses: a model, finite scores, and more votes."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lore_jax
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.errors import UserError

CONFIG = LoReConfig(
    ranks=(1,), components=(), clusters=0, variances=(3.0,), shared_variances=(0.1, 1.0), line_search="bisection"
)
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 3), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=8,
)
RATED = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(-9, 9)), max_size=4)
# Duplicates, a constant column, nothing at all, and numbers far from 1.
FEATURES = st.sampled_from(["random", "same", "zero", "huge"])


def features(kind):
    table = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    if kind == "same":
        return np.repeat(table[:1], 4, axis=0)
    return table * {"random": 1.0, "zero": 0.0, "huge": 1e15}[kind]


@settings(max_examples=6, deadline=None)
@given(ROWS, RATED, FEATURES)
# What is held out is a tie, of which nothing was learnt.
@example(rows=[(0, 0, 1, False, 0), (0, 0, 1, True, 0)], rated=[], kind="random")
def test_any_votes_give_finite_scores(rows, rated, kind):
    user, chosen, step, tie, strength = (np.array(column) for column in zip(*rows, strict=True))
    votes = Comparisons(user, chosen, (chosen + step) % 4, tie=tie, strength=np.where(strength > 0, strength, np.nan))
    ratings = None
    if rated:
        who, response, rating = (np.array(column) for column in zip(*rated, strict=True))
        ratings = Ratings(who, response, rating.astype(np.float64))
    given = features(kind).astype(np.float32)
    model = lore_jax.fit(given, votes, user_ids=["a", "b", "c"], config=CONFIG, ratings=ratings)
    for name in ("a", "b", "c"):
        scores = model.score(name, None, given, uncertainty=True)
        assert np.isfinite(scores.mean).all()
        assert np.isfinite(scores.deviation).all()
    assert str(model)


@pytest.mark.parametrize("strength", [0.0, -1.0, np.inf])
def test_strengths_are_above_0(strength):
    votes = Comparisons(*np.array([[0, 0], [1, 2], [2, 1]]), tie=np.array([True, False]))
    with pytest.raises(UserError, match=r"strength of row 1 is .* give numbers above 0"):
        lore_jax.fit(features("random"), votes._replace(strength=np.array([strength, strength])), config=CONFIG)
