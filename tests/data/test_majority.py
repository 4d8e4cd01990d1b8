"""Leave-one-out majority against a plain double loop."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.data import schema as checks
from pref_jax.data.checks.majority import majority_margins
from pref_jax.data.preferences import SPLITS, Preferences, build


def make(votes: list[tuple[int, int, bool]], groups: Sequence[str | None], **meta: bool) -> Preferences:
    """Votes (user, prompt, whether the first of its two answers is chosen); each user's first vote is for training."""
    first = {user: place for place, (user, _, _) in reversed(list(enumerate(votes)))}
    users, prompts = len(groups), 1 + max(prompt for _, prompt, _ in votes)
    return build(
        pa.table({"user_id": [f"u{user}" for user in range(users)], "group": groups, "seen": [True] * users}),
        pa.table(
            {
                "response_id": [f"r{row}" for row in range(2 * prompts)],
                "prompt": [[{"role": "user", "content": f"p{row // 2}"}] for row in range(2 * prompts)],
                "text": ["a", "b"] * prompts,
                "extra": [None] * 2 * prompts,
            },
            schema=checks.RESPONSES,
        ),
        pa.table(
            {
                "user": [user for user, _, _ in votes],
                "chosen": [2 * prompt + (not one) for _, prompt, one in votes],
                "rejected": [2 * prompt + one for _, prompt, one in votes],
                "split": ["train" if first[user] == place else "test" for place, (user, _, _) in enumerate(votes)],
                "controversial": pa.nulls(len(votes)),
            }
        ),
        meta,
    )


VOTES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.booleans()), max_size=25)


@settings(max_examples=60, deadline=None)
@given(VOTES, st.lists(st.sampled_from(["x", "y", None]), min_size=5, max_size=5), st.booleans())
def test_against_a_double_loop(votes: list, groups: list, by_group: bool):
    votes = [*((user, 0, True) for user in range(5)), *votes, (0, 1, False)]
    data = make(votes, groups)
    expected = []
    for user, prompt, one in votes:
        others = [
            1 if choice == one else -1
            for other, asked, choice in votes
            if other != user and asked == prompt and (not by_group or groups[other] == groups[user])
        ]
        expected.append(sum(others) / len(others) if others else 0.0)
    margins = majority_margins(data, data.pairs(SPLITS), by_group=by_group)
    np.testing.assert_allclose(margins, np.array(expected, np.float32), rtol=0, atol=1e-7)
    assert margins.dtype == np.float32
    tests = data.pairs("test")
    np.testing.assert_array_equal(majority_margins(data, tests, by_group=by_group), margins[tests.row])


def test_groups_that_are_questions_count_apart():
    votes = [(0, 0, True), (1, 0, False), (2, 0, True), (0, 1, True)]
    groups = ["x", "x", "y"]
    people, questions = make(votes, groups), make(votes, groups, groups_are_questions=True)
    np.testing.assert_array_equal(majority_margins(people, people.pairs(SPLITS)), [0, -1, 0, 0])
    np.testing.assert_array_equal(majority_margins(questions, questions.pairs(SPLITS)), [-1, -1, 0, 0])


def test_pairs_must_be_of_the_data():
    data = make([(0, 0, True), (0, 1, True)], [None])
    pairs = data.pairs(SPLITS)
    assert majority_margins(data, data.pairs("validation")).shape == (0,)
    for bad in (pairs._replace(chosen=pairs.rejected), pairs._replace(row=pairs.row + 1)):
        with pytest.raises(ValueError, match="not comparisons of these preferences"):
            majority_margins(data, bad)
