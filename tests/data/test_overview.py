"""The overview of votes, against plain counting; its sentences, picture and command; tables of next to nothing."""

import itertools
import json

import numpy as np
import pytest

from pref_jax import cli
from pref_jax.data import preferences
from pref_jax.data.checks import outlook
from pref_jax.data.checks.overview import histogram, overview
from pref_jax.data.votes import read_votes
from pref_jax.eval.figures import canvas
from pref_jax.eval.figures.votes import votes_picture

META = {
    "source": "made up",
    "licence": "none",
    "rule": "by hand",
    "seed": None,
    "filtered": {"same_text": 2, "ties": 0},
}


def tables(num_users: int, votes: list[tuple[int, int, int, str]], ratings=(), texts=("aa", "b", "cccc", "ddd")):
    """Votes are (user, chosen, rejected, outcome), ratings (user, response, rating); two prompts of two responses."""
    prompts = [[{"role": "user", "content": f"Say something {name}."}] for name in ("short", "short", "long", "long")]
    columns = list(zip(*votes, strict=True)) or [(), (), (), ()]
    given = {
        name: np.array(column, np.int64)
        for name, column in zip(("user", "chosen", "rejected"), columns[:3], strict=True)
    }
    rated = list(zip(*ratings, strict=True)) or [(), (), ()]
    return preferences.build(
        {"user_id": [f"u{n}" for n in range(num_users)], "group": [None] * num_users, "seen": [True] * num_users},
        {"response_id": list("abcd"), "prompt": prompts, "text": list(texts)},
        given | {"split": ["train"] * len(votes), "controversial": [None] * len(votes), "outcome": list(columns[3])},
        META,
        ratings={
            "user": np.array(rated[0], np.int64),
            "response": np.array(rated[1], np.int64),
            "rating": np.array(rated[2], np.float64),
            "split": ["train"] * len(ratings),
        },
        test=False,
    )


def drawn(seed: int) -> list[tuple[int, int, int, str]]:
    rng = np.random.default_rng(seed)
    outcomes = rng.choice(["preferred", "tie", "both_bad", "skipped"], p=[0.7, 0.15, 0.1, 0.05], size=80)
    sides = [(a, b) if rng.random() < 0.6 else (b, a) for a, b in (rng.choice([(0, 1), (2, 3)]) for _ in outcomes)]
    users = [*range(6), *rng.integers(6, size=74)]
    kinds = ["preferred"] * 6 + outcomes[6:].tolist()
    return [(int(u), int(a), int(b), kind) for u, (a, b), kind in zip(users, sides, kinds, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_plain_counting(seed):
    votes = drawn(seed)
    found = overview(tables(6, votes, ratings=[(0, 0, 2.5), (0, 2, 3.0)]))
    decided = [vote for vote in votes if vote[3] == "preferred"]
    for word in ("preferred", "tie", "both_bad", "skipped"):
        assert found["votes"][word] == sum(vote[3] == word for vote in votes)
    assert (found["users"], found["prompts"], found["responses"], found["votes"]["ratings"]) == (6, 2, 4, 2)
    sizes = [sum(vote[0] == user for vote in votes) + 2 * (user == 0) for user in range(6)]
    spread = found["votes_per_user"]
    assert (spread["least"], spread["median"], spread["most"]) == (min(sizes), np.median(sizes), max(sizes))
    assert sum(spread["histogram"].values()) == 6
    length = [2, 1, 4, 3]
    longer = [length[v[1]] > length[v[2]] for v in decided]
    assert found["length"]["longer_chosen"] == pytest.approx(np.mean(longer))
    right = 0.0
    for place, (user, chosen, rejected, _) in enumerate(decided):
        others = [
            v for n, v in enumerate(decided) if v[0] != user and n != place and {v[1], v[2]} == {chosen, rejected}
        ]
        balance = sum(1 if v[1] == chosen else -1 for v in others)
        right += 0.5 * (np.sign(balance) + 1)
    assert found["agreement"]["majority"] == pytest.approx(right / len(decided))
    told = [vote for vote in votes if vote[3] != "skipped"]
    own = {(v[0], frozenset(v[1:3])) for v in told}
    assert found["agreement"]["repeated"] == len(told) - len(own)
    both = sum(len({v[1] for v in decided if (v[0], frozenset(v[1:3])) == key}) == 2 for key in own)
    assert found["agreement"]["opposite"] == both
    met = {(v[0], side) for v in votes for side in v[1:3]} | {(0, 0), (0, 2)}
    judges = [sum(side == one for _, side in met) for one in range(4)]
    assert found["sharing"]["users_per_response"] == pytest.approx(np.mean(judges))
    assert found["sharing"]["responses_of_two_users"] == pytest.approx(np.mean(np.array(judges) > 1))
    assert found["left_out"] == {"same_text": 2}


def test_histogram_counts_every_user_once():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 70, size=300)
    found = histogram(counts)
    assert sum(found.values()) == 300
    for name, number in found.items():
        low, high = map(int, (name.split("-") * 2)[:2])
        assert number == ((counts >= low) & (counts <= high)).sum()
    assert histogram(np.array([5])) == {"1": 0, "2": 0, "3-4": 0, "5-8": 1}


LITTLE = [
    (1, [(0, 0, 1, "preferred")], []),
    (1, [(0, 0, 1, "tie")], []),
    (1, [], [(0, 0, 1.0)]),
    (2, [(0, 0, 1, "preferred"), (1, 2, 3, "both_bad")], []),
    (2, [(0, 0, 1, "preferred"), (1, 1, 0, "preferred")], []),
    (3, [(u, 0, 1, "preferred") for u in range(3)] * 4, []),
    (3, [(u, *sides, "preferred") for u in range(3) for sides in ((0, 1), (1, 0), (2, 3))], []),
]


@pytest.mark.parametrize(("num_users", "votes", "ratings"), LITTLE)
def test_next_to_nothing_is_told_without_nan(num_users, votes, ratings, tmp_path):
    found = overview(tables(num_users, votes, ratings))
    json.dumps(found, allow_nan=False)
    told = outlook.lines(found) + [("", text) for text in outlook.sentences(found)]
    assert not any("nan" in text or "None" in text for _, text in told)
    assert canvas.save(votes_picture(found, "little"), tmp_path / "little.png").stat().st_size > 10_000


def test_sentences_follow_the_votes():
    def words(votes, users):
        return " ".join(outlook.sentences(overview(tables(users, votes))))

    alike = words([(u, 0, 1, "preferred") for u in range(20)], 20)
    assert "Two users agree on 100%" in alike
    split = words([(u, *((0, 1) if u % 2 else (1, 0)), "preferred") for u in range(20)], 20)
    assert "a shared reward can hardly beat chance" in split
    # Half of the users always choose the longer response, half the shorter one.
    tastes = [(u, *(pair if u % 2 else pair[::-1]), "preferred") for u in range(40) for pair in ((0, 1), (2, 3))]
    lasting = words(tastes * 10, 40)
    assert "Users differ in their liking of length" in lasting
    rng = np.random.default_rng(0)
    coins = [(u, *rng.permutation(pair).tolist(), "preferred") for u in range(40) for pair in ((0, 1), (2, 3)) * 20]
    assert "hardly shows in the other" in words(coins, 40)


def test_the_command_tells_all_and_splits_nothing_off(tmp_path, capsys):
    rows = [
        {"user": f"u{user}", "prompt": f"Prompt {n}?", "chosen": "Yes, gladly.", "rejected": "No."}
        for user, n in itertools.product(range(5), range(6))
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["data", "check", str(path), "--picture", str(tmp_path / "votes.png")]) == 0
    told = capsys.readouterr()
    assert "30 preferences" in told.out
    assert "the longer response is chosen in 100.0%" in told.out
    assert "Two users agree on 100%" in told.out
    assert (tmp_path / "votes.png").exists()
    assert cli.main(["data", "check", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["votes"]["preferred"] == 30
    assert found["outlook"]
    rated = [{"user": "a", "prompt": "p", "response": text, "rating": n} for n, text in enumerate(["x", "yy", "zzz"])]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    assert cli.main(["data", "check", str(tmp_path / "rated.jsonl"), "--json"]) == 0
    votes = json.loads(capsys.readouterr().out)["votes"]
    assert (votes["ratings"], votes["comparisons_of_ratings"]) == (3, 3)
    preferences.save(read_votes(path, test_fraction=0.2), tmp_path / "saved")
    assert cli.main(["data", "check", str(tmp_path / "saved"), "--json"]) == 0
    saved = json.loads(capsys.readouterr().out)
    assert (saved["format"], saved["votes"]) == ("saved preferences", found["votes"])
    assert cli.main(["data", "check", str(tmp_path / "saved"), "--on-bad-row", "drop"]) == 2
    assert "leave --columns, --on-bad-row out" in capsys.readouterr().err
