"""What a study's page is told: out of both databases, and against plain counting."""

from collections import Counter

import numpy as np
import pytest

from pref_jax.eval.agreement import nominal_alpha
from pref_jax.serve import study
from pref_jax.serve.store.records import Mark, Vote


def vote(name, prompt, choice, *, turned=False, shown=None, latency=None):
    first, second = ("worse", "better") if turned else ("better", "worse")
    return Vote(
        id=name, prompt=prompt, first=first, second=second, choice=choice, shown=shown, latency=latency, asked="test"
    )


def test_marks_of_a_store(store):
    store.add("ada", [vote("1", "q", "first", shown="left", latency=2.0), vote("2", "r", "tie", shown="right")])
    store.add("bo", [vote("3", "q", "second", turned=True, shown="left"), vote("4", "s", "skip")])
    store.add("cy", [vote("5", "q", "second", shown="left", latency=4.0)])
    better, worse = ("first", "second")
    everyone = store.marks(most=100)
    assert everyone == [
        Mark(0, 0, better, True, 2.0),
        Mark(1, 0, "tie", None, None),
        Mark(0, 1, better, False, None),
        Mark(2, 1, "skip", None, None),
        Mark(0, 2, worse, False, 4.0),
    ]
    assert [mark.choice for mark in store.marks(most=2)] == ["skip", worse], "the last ones, in order"
    assert [(mark.pair, mark.user, mark.choice) for mark in store.marks(most=100, user="bo")] == [
        (0, 1, better), (0, 0, better), (1, 0, "skip"), (0, 2, worse),
    ]  # fmt: skip
    assert store.marks(most=100, user="nobody") == []


def marks(rng, users=8, pairs=20, each=40):
    return [
        Mark(
            int(rng.integers(pairs)),
            user,
            str(rng.choice(["first", "second", "tie", "both_bad", "skip"], p=[0.5, 0.3, 0.1, 0.05, 0.05])),
            [True, False, None][rng.integers(3)],
            float(rng.random()),
        )
        for _ in range(each)
        for user in rng.permutation(users).tolist()
    ]


def test_figures_against_plain_counting():
    given = marks(np.random.default_rng(0))
    found = study.figures(given)
    assert found["votes"] == len(given) == 320
    assert {name: share["count"] for name, share in found["choices"].items()} == Counter(one.choice for one in given)
    sides = [one.left for one in given if one.left is not None]
    assert (found["left"]["count"], found["left"]["of"]) == (sum(sides), len(sides))
    assert found["left"]["low"] < 0.5 < found["left"]["high"]
    assert found["median_seconds"] == np.median([one.latency or 0 for one in given])
    said, same, of = {}, 0, 0
    for one in given:
        if one.choice != "skip":
            before = said.get((one.pair, one.user))
            of, same = of + (before is not None), same + (before == one.choice)
            said[one.pair, one.user] = one.choice
    assert (found["itself"]["count"], found["itself"]["of"]) == (same, of)
    agreed = []
    for (pair, user), choice in said.items():
        others = Counter(c for (p, u), c in said.items() if p == pair and u != user)
        most = [c for c, times in others.items() if times == max(others.values())]
        if others.total() >= 2 and len(most) == 1:
            agreed.append(choice == most[0])
    assert (found["others"]["count"], found["others"]["of"]) == (sum(agreed), len(agreed))
    assert found["alpha"]["values"] == len(said)
    assert abs(found["alpha"]["value"]) < 0.1, "people who say what they say by chance"


def test_a_share_has_wilsons_interval():
    # Newcombe, Interval Estimation for the Difference Between Independent Proportions (1998), table I: 15 of 148.
    found = study.Share(15, 148).told()
    assert (found["low"], found["high"]) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))
    assert study.Share(0, 0).told()["share"] is None


def test_alpha_does_not_depend_on_how_pairs_were_entered():
    """Everyone prefers the better answer of most pairs, which was always entered first."""
    rng = np.random.default_rng(2)
    given = [
        Mark(pair, user, "second" if rng.random() < 0.02 else "first", None, None)
        for pair in range(60)
        for user in range(4)
    ]
    assert study.figures(given)["alpha"]["value"] > 0.85
    units = np.array([one.pair for one in given])
    as_entered = nominal_alpha(units, np.array([one.choice == "first" for one in given], int)).value
    assert as_entered is not None
    assert as_entered < 0.3


def drifting(rng, *, turn):
    """Ten users who say the truth with 0.9; the last third of the first six ones' votes, `turn`, says the contrary."""
    found = []
    for place in range(60):
        for user in range(10):
            truth = "first" if rng.random() < 0.9 else "second"
            if turn and user < 6 and place >= 40:
                truth = {"first": "second", "second": "first"}[truth]
            # Each sees the pairs in an order of their own.
            found.append(Mark((place * (user * 2 + 7)) % 61, user, truth, None, None))
    return found


def test_an_alarm_rings_when_people_change_and_only_then():
    rung = study.figures(drifting(np.random.default_rng(3), turn=True))["drift"][0]
    assert rung["alarm"]
    assert rung["users"] == 10
    assert rung["lately"] < rung["before"]
    quiet = [study.figures(drifting(np.random.default_rng(seed), turn=False))["drift"][0] for seed in range(20)]
    assert sum(one["alarm"] for one in quiet) <= 3
    few = study.figures(drifting(np.random.default_rng(4), turn=True)[:30])["drift"][0]
    assert (few["difference"], few["alarm"]) == (None, False)


def test_harder_pairs_are_no_drift():
    """All see the same pairs in the same order; on the later ones nobody agrees with anybody."""
    rng = np.random.default_rng(5)
    given = [
        Mark(pair, user, "first" if pair < 20 or rng.random() < 0.5 else "second", None, None)
        for pair in range(30)
        for user in range(12)
    ]
    found = study.figures(given)["drift"][0]
    assert not found["alarm"]
    assert abs(found["difference"]) < 0.05


def test_a_user_is_told_of_nobody_alone():
    """Of pairs that fewer than three others voted on nothing is told."""
    given = [Mark(0, user, "first", None, None) for user in range(3)]
    assert study.agreement(given)["others"]["of"] == 0
    found = study.agreement([*given, Mark(0, 3, "second", None, None), Mark(0, 0, "first", None, None)])
    assert (found["others"]["count"], found["others"]["of"]) == (1, 1)
    assert (found["itself"]["count"], found["itself"]["of"]) == (1, 1)
