"""The choice of a method by held-out votes: what judges, what methods see, and which one wins."""

import itertools
from typing import Any, ClassVar

import numpy as np
import pytest

from pref_jax import auto
from pref_jax.data.votes import read_votes
from pref_jax.errors import UserError
from pref_jax.personal import PersonalReward, Scores


class Given(PersonalReward):
    """Scores texts by a function of user and text; more is not asked of it here."""

    kind: ClassVar[str] = "given"
    users = add_votes = remove_user = state = restore = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, of):
        self._of = of

    def knows(self, user):
        return True

    def rewards(self, users, rows, *, uncertainty=False):
        found = [self._of(user, text) for user, text in zip(users, rows["text"].to_pylist(), strict=True)]
        return Scores(np.array(found, np.float32), np.zeros(len(found), np.float32))


def method(of, seen: list[Any]):
    def fit(votes, *, base, seed=0):
        seen.append(votes)
        return Given(of)

    return fit


def taste(user, text):
    """All but the odd users like long texts."""
    return len(text) * (-1 if user is not None and int(user[1:]) % 2 else 1)


def rows(users=6, prompts=10, **more):
    found = []
    for user, prompt in itertools.product(range(users), range(prompts)):
        texts = (f"Because {prompt}, and so on and so forth.", f"Yes {prompt}.")
        chosen, rejected = texts if taste(f"u{user}", texts[0]) > 0 else texts[::-1]
        found.append({"user": f"u{user}", "prompt": f"Why {prompt}?", "chosen": chosen, "rejected": rejected, **more})
    return found


def test_the_method_that_knows_its_users_wins_and_is_fitted_to_all_votes():
    votes, seen = read_votes(rows(), test_fraction=0.2), {name: [] for name in "abc"}
    methods = {
        "a": method(lambda user, text: 3.0 * len(text), seen["a"]),
        "b": method(taste, seen["b"]),
        "c": method(lambda user, text: 0.0, seen["c"]),
    }
    chosen = auto.fit(votes, base="none", methods=methods, seed=1)
    assert chosen.trials[0].method == "b"
    assert [trial.accuracy for trial in sorted(chosen.trials)] == [0.5, 1.0, 0.5]
    assert sorted(chosen.trials)[2].log_loss == pytest.approx(np.log(2), rel=1e-6)
    assert [len(seen[name]) for name in "abc"] == [1, 2, 1]
    assert seen["b"][1] is votes
    assert "chosen: b" in auto.sentences(chosen)[0]


def pairs_of(votes, splits=("train", "validation", "test")):
    ids, texts = votes.users["user_id"].to_pylist(), votes.responses["text"].to_pylist()
    found = votes.pairs(splits, ties=True)
    columns = (found.user.tolist(), found.chosen.tolist(), found.rejected.tolist())
    return {(ids[user], texts[one], texts[two]) for user, one, two in zip(*columns, strict=True)}


@pytest.mark.parametrize("by", ["prompt", "pair"])
def test_no_method_sees_what_judges_or_tests(by):
    votes = read_votes(rows(), test_fraction=0.2, unseen_fraction=0.2, split_by=by)
    part, judging = auto.hold_out_judges(votes, 0)
    known, hidden = pairs_of(part), pairs_of(votes, "test")
    assert known
    assert not known & hidden
    ids, texts = votes.users["user_id"].to_pylist(), votes.responses["text"].to_pylist()
    columns = (judging.user.tolist(), judging.chosen.tolist(), judging.rejected.tolist())
    judged = {(ids[user], texts[one], texts[two]) for user, one, two in zip(*columns, strict=True)}
    assert judged
    assert not judged & (known | hidden)
    seen = {name for name, flag in zip(ids, votes.seen, strict=True) if flag}
    assert {user for user, *_ in judged} <= seen
    learned = {(user, *pair) for user, *pair in known if user in seen}
    assert {pair[1:] for pair in judged}.isdisjoint({pair[1:] for pair in learned})
    assert learned | judged == {vote for vote in pairs_of(votes, ("train", "validation")) if vote[0] in seen}


def test_given_validation_votes_judge():
    given = [row | {"split": "validation" if int(row["prompt"][4]) < 3 else "train"} for row in rows()]
    _, judging = auto.hold_out_judges(read_votes(given), 0)
    assert len(judging.user) == 6 * 3


def test_ratings_behind_judging_votes_are_hidden():
    given = [
        {"user": f"u{user}", "prompt": f"Why {prompt}?", "response": "x" * (place + 1), "rating": place + user % 2}
        for user, prompt, place in itertools.product(range(5), range(8), range(3))
    ]
    votes = read_votes(given, test_fraction=0.25)
    part, judging = auto.hold_out_judges(votes, 0)
    left = part.rated(("train", "validation", "test"))
    known = set(zip(left.user.tolist(), left.response.tolist(), strict=True))
    assert known
    for side in (judging.chosen, judging.rejected):
        assert not known & set(zip(judging.user.tolist(), side.tolist(), strict=True))


def test_nothing_to_judge_by():
    with pytest.raises(UserError, match="no vote can be held out to judge"):
        auto.fit(read_votes(rows(1, 1)), base="none", methods={"a": method(taste, [])})


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_methods_are_judged_whatever_the_scale_of_their_rewards(size):
    votes = read_votes(rows())
    methods = {"a": method(lambda user, text: size * taste(user, text), []), "b": method(lambda user, text: 0.0, [])}
    trials = auto.fit(votes, base="none", methods=methods).trials
    assert [(trial.method, trial.accuracy) for trial in trials] == [("a", 1.0), ("b", 0.5)]
    assert trials[0].log_loss < 0.01
