"""TL;DR: a hand-written file in the public schema with every trap, and drawn ones against plain Python."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from votes import check_seeds, votes

from pref_jax.data.sources import tldr
from pref_jax.errors import UserError

FEATURES = pa.schema(
    [
        ("info", pa.struct([(name, pa.string()) for name in ("id", "post", "title", "subreddit", "site", "article")])),
        ("summaries", pa.list_(pa.struct([("text", pa.string()), ("policy", pa.string()), ("note", pa.string())]))),
        ("choice", pa.int32()),
        ("worker", pa.string()),
        ("batch", pa.string()),
        ("split", pa.string()),
        ("extra", pa.struct([("confidence", pa.int32())])),
    ]
)
SHORT, LONG = "short", "a longer one"


def row(
    worker: str | None,
    post: str | None,
    texts: Sequence[str | None],
    choice: int | None,
    policy: str | None = "sup2",
    **info: Any,
) -> dict:
    return {
        "info": {"id": "t3", "post": post, "title": "t", "subreddit": "s", "site": None, "article": None, **info},
        "summaries": [{"text": text, "policy": policy, "note": "n"} for text in texts],
        "choice": choice,
        "worker": worker,
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": None},
    }


def write(folder: Path, train: list[dict], test: list[dict], schema: pa.Schema = FEATURES) -> Path:
    for part, rows in (("train", train), ("validation", test)):
        file = folder / "comparisons" / part / "0000.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    return folder


TRAIN = [
    row("ann", "post 1", [SHORT, LONG], 0),
    row("bob", "post 1", [LONG, SHORT], 0),  # the same pair the other way round; bob disagrees
    row("ann", "post 1", [SHORT, LONG], 0),  # repeated
    row("cat", "post 2", ["same", "same"], 0),
    row("bob", "post 2", [" \n", "x"], 0),
    row("bob", "post 2", [None, "x"], 1),
    row("bob", "post 2", ["ä", "bc"], 1),  # shorter in characters, not in bytes
    row("ann", "post 2", ["xy", "zw"], 0),  # equal length
    row(None, "post 2", ["xy", "zw"], 0),
    row("", "post 2", ["xy", "zw"], 0),
    row("bob", "post 2", ["xy", "zw"], None),
    row("bob", "post 2", ["xy", "zw"], 2),
    row("bob", "post 2", ["xy"], 0),
    row("bob", "post 2", ["xy", "zw", "uv"], 1),
    row("bob", None, ["xy", "zw"], 0),
    row("bob", "  ", ["xy", "zw"], 0),
    row("cat", "post 2", ["ä", "bc"], 0),
    row("bob", "post 1", [SHORT, LONG], 1),  # repeated, the other way round
    row("ann", "post 2", ["xy", "zw"], 1),  # takes the earlier vote back
    row("cat", "post 4", ["q", "rst"], 0, "sup4_ppo_rm3_kl10"),
    row("cat", "post 4", ["u", "vwx"], 0, "ref"),
    row("cat", "post 4", ["f", "ghi"], 0, None),
    row("ann", "news", ["b", "cc"], 1),  # the prompt is tested
    row("dan", "post 5", ["m", "nop"], 1),  # in this part alone
]
TEST = [
    row("ann", None, ["a", "bbb"], 1, article="news"),
    row("bob", None, ["bbb", "a"], 1, article="news"),
    row("cat", None, ["a", "bbb"], 1, article="news"),
    row("cat", "post 6", ["d", "ee"], 0),
    row("eve", "post 6", ["d", "ee"], 0),  # in this part alone
    row("eve", "post 7", ["g", "hh"], 0, "sup4_ppo_rm3_kl10"),
]
UNUSABLE = {
    "not_two_summaries": 2,
    "no_choice": 2,
    "no_worker": 2,
    "empty_prompt": 2,
    "empty_text": 2,
    "same_text": 1,
    "training_prompts_in_test": 1,
}
SMALL: dict[str, Any] = {
    "workers": 2,
    "seen_users": 6,
    "unseen_users": 2,
    "pairs_per_user": 2,
    "test_pairs_per_user": 1,
}


def test_shorter_and_longer_by_hand(tmp_path):
    data = tldr.read(write(tmp_path, TRAIN, TEST), **SMALL, seed=3)
    # ann (4 votes in training) and bob (3) are the busiest; cat's votes on post 4 do not count.
    assert data.meta["filtered"] == {
        **UNUSABLE,
        "other_policies": 4,
        "other_workers": 5,
        "same_pair_again": 5,
        "equal_length": 1,
    }
    assert data.meta["votes_in_source"] == 30
    assert data.meta["workers_in_source"] == 5
    assert data.meta["pairs_asked_of"] == {"train": 2, "test": 1}
    pairs = {"post 1": (SHORT, LONG), "post 2": ("ä", "bc"), "news": ("a", "bbb")}
    group = dict(zip(data.users["user_id"].to_pylist(), data.groups, strict=True))
    found = votes(data)
    for vote in found:
        shorter, longer = pairs[vote.prompt]
        assert (vote.chosen, vote.rejected) == (
            (shorter, longer) if group[vote.user] == "shorter" else (longer, shorter)
        )
        assert vote.controversial is True
        assert (vote.split == "test") == (vote.prompt == "news")
    assert Counter(vote.split for vote in found) == {"train": 6 + 2 * 2, "validation": 6, "test": 8}
    # Half of the seen and half of the unseen users.
    assert Counter(data.groups[:6]) == {"shorter": 3, "longer": 3}
    assert Counter(data.groups[6:]) == {"shorter": 1, "longer": 1}
    assert data.users["seen"].to_pylist() == [True] * 6 + [False] * 2


KEPT = {  # of both parts, for `lore`: what each worker of both said last and only once
    ("ann", "post 1", SHORT, LONG),
    ("ann", "news", "bbb", "a"),
    ("bob", "post 1", LONG, SHORT),
    ("bob", "post 2", "bc", "ä"),
    ("bob", "news", "a", "bbb"),
    ("cat", "post 2", "ä", "bc"),
    ("cat", "news", "bbb", "a"),
    ("cat", "post 6", "d", "ee"),
    ("cat", "post 4", "q", "rst"),
    ("cat", "post 4", "u", "vwx"),
    ("cat", "post 4", "f", "ghi"),
}


@pytest.mark.parametrize("seed", range(4))
def test_workers_votes_by_hand(seed, tmp_path):
    data = tldr.read(write(tmp_path, TRAIN, TEST), rule="lore", unseen_fraction=0.34, seed=seed)
    found = votes(data)
    assert {vote[:4] for vote in found} == KEPT
    assert len(found) == len(KEPT)
    assert all((vote.prompt in ("news", "post 6")) == (vote.split == "test") for vote in found)
    disputed = {"post 1": True, "post 2": True, "news": True}
    assert [vote.controversial for vote in found] == [disputed.get(vote.prompt) for vote in found]
    assert sorted(data.seen.tolist()) == [False, True, True]
    assert data.meta["filtered"] == {
        **UNUSABLE,
        "self_contradicting": 2,
        "repeated": 2,
        "votes_of_workers_without_training": 2,
        "votes_of_workers_without_test": 1,
        "over_train_pairs": 0,
        "over_context_pairs": 0,
        "workers_of_one_part": 2,
    }


def drawn(rng: np.random.Generator, count: int, part: str) -> list[dict]:
    """Few prompts and texts, so that pairs repeat; worker-0 says most of it."""
    rows = []
    for _ in range(count):
        worker = "worker-0" if rng.random() < 0.6 else f"worker-{rng.integers(1, 12)}"
        texts = [f"summary {'x' * rng.integers(9)} ☃ {rng.integers(4)}" for _ in range(2)]
        rows.append(row(worker, f"{part} {rng.integers(300)}", texts, int(rng.integers(2))))
    return rows


def parts(seed: int, train: int, test: int) -> tuple[list[dict], list[dict]]:
    rng = np.random.default_rng(seed)
    return drawn(rng, train, "post"), drawn(rng, test, "later post")


def test_workers_votes_against_plain_python(tmp_path):
    rows, later = parts(5, 4500, 1500)
    limits: dict[str, Any] = {"train_pairs": 40, "context_pairs": 7}
    data = tldr.read(write(tmp_path, rows, later), rule="lore", seed=5, **limits)
    said = defaultdict(list)
    for one in rows + later:
        a, b = (one["summaries"][place]["text"] for place in (one["choice"], 1 - one["choice"]))
        if a != b:
            said[one["worker"], one["info"]["post"], frozenset((a, b))].append(a)
    sure = {key: answers[0] for key, answers in said.items() if len(set(answers)) == 1}
    found = votes(data)
    keys = [(vote.user, vote.prompt, frozenset((vote.chosen, vote.rejected))) for vote in found]
    assert len(set(keys)) == len(keys)
    assert [sure[key] for key in keys] == [vote.chosen for vote in found]

    seen = dict(zip(data.users["user_id"].to_pylist(), data.seen.tolist(), strict=True))
    assert sorted(seen.values()) == [False] * 6 + [True] * 6
    for user, flag in seen.items():
        mine = Counter(vote.split for vote in found if vote.user == user)
        open_ = sum(key[0] == user and key[1].startswith("post") for key in sure)
        assert mine["train"] + mine["validation"] == min(open_, 40 if flag else 7)
        assert mine["test"] == sum(key[0] == user and key[1].startswith("later") for key in sure)
        assert flag or not mine["validation"]
    assert all(vote.prompt.startswith("later") == (vote.split == "test") for vote in found)
    opinions = defaultdict(list)
    for key, vote in zip(keys, found, strict=True):
        opinions[key[1:]].append(vote.chosen)
    for key, vote in zip(keys, found, strict=True):
        heard = opinions[key[1:]]
        assert vote.controversial == (len(set(heard)) > 1 if len(heard) > 1 else None)
    filtered = data.meta["filtered"]
    assert filtered["self_contradicting"] == sum(len(v) for v in said.values() if len(set(v)) > 1)
    assert filtered["repeated"] == sum(len(v) - 1 for v in said.values() if len(set(v)) == 1)
    left_out = sum(count for name, count in filtered.items() if not name.startswith("workers"))
    assert left_out + len(found) == data.meta["votes_in_source"] == 6000


def test_the_busiest_workers_pairs_are_asked(tmp_path):
    rows, later = parts(6, 1500, 500)
    sizes: dict[str, Any] = {"seen_users": 300, "unseen_users": 20, "pairs_per_user": 5, "test_pairs_per_user": 7}
    data = tldr.read(write(tmp_path, rows, later), workers=1, protocol="AVG", **sizes, seed=6)
    by_busiest = {
        (one["info"]["post"], frozenset(summary["text"] for summary in one["summaries"]))
        for one in rows + later
        if one["worker"] == "worker-0"
    }
    found = votes(data)
    assert {(vote.prompt, frozenset((vote.chosen, vote.rejected))) for vote in found} <= by_busiest
    asked = Counter(vote.user for vote in found if vote.split != "test")
    held_out = Counter(vote.user for vote in found if vote.split == "validation")
    for user, flag in zip(data.users["user_id"].to_pylist(), data.seen, strict=True):
        assert asked[user] in (range(1, 10) if flag else (5,))
        assert held_out[user] == (flag and asked[user] >= 5)


@pytest.mark.parametrize("rule", ["copl", "lore"])
def test_same_seed_same_bytes(rule, tmp_path):
    folder = write(tmp_path / "set", *parts(7, 1100, 400))
    sizes: dict[str, Any] = {"seen_users": 30, "unseen_users": 5, "test_pairs_per_user": 3}
    check_seeds(lambda seed: tldr.read(folder, rule=rule, seed=seed, **sizes), tmp_path)


def test_workers_of_one_part_alone_are_told(tmp_path):
    folder = write(tmp_path, [row("ann", "post", ["a", "b"], 0)], [row("bob", "news", ["a", "b"], 0)])
    with pytest.raises(UserError, match="no worker has votes in both parts"):
        tldr.read(folder, rule="lore")


def test_a_changed_schema_and_bad_options(tmp_path):
    schema = pa.schema([field if field.name != "choice" else pa.field("label", pa.int32()) for field in FEATURES])
    folder = write(tmp_path, TRAIN, TEST, schema)
    with pytest.raises(UserError, match=r"column 'choice': missing"):
        tldr.read(folder)
    with pytest.raises(UserError, match=r"--config.source.path=FOLDER"):
        tldr.read()
    with pytest.raises(UserError, match="copl or lore"):
        tldr.read(folder, rule="both")
    with pytest.raises(UserError, match=r"seen_users: is 0(.|\n)*protocol: is 'SOME'"):
        tldr.read(folder, seen_users=0, protocol="SOME")
    with pytest.raises(UserError, match=r"unseen_fraction: is 1.5"):
        tldr.read(folder, unseen_fraction=1.5)
    with pytest.raises(UserError, match=r"workers: is 0"):
        tldr.read(folder, workers=0)
    with pytest.raises(UserError, match=r"train_pairs: is 0"):
        tldr.read(folder, rule="lore", train_pairs=0)


def test_too_few_pairs_say_what_to_lower(tmp_path):
    with pytest.raises(UserError, match=r"lower source.pairs_per_user.* 8 of a pool of"):
        tldr.read(write(tmp_path, TRAIN, TEST), seen_users=3)
