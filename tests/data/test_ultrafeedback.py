"""UltraFeedback-P: hand-written files in both public schemas with every trap, and drawn ones against plain Python."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from votes import check_seeds, votes

from pref_jax.data.sources import ultrafeedback
from pref_jax.data.text.tokenization import train_tokenizer
from pref_jax.errors import UserError

ATTRIBUTES = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def completion(text: str, *ratings: Any) -> dict:
    marks: dict[str, dict[str, Any]] = {
        name: {"Rating": str(one), "Rationale": "why"} for name, one in zip(ATTRIBUTES, ratings, strict=True)
    }
    marks["truthfulness"] |= {"Type": ["1"], "Rationale For Rating": "so"}
    return {
        "annotations": marks,
        "critique": "c",
        "custom_system_prompt": "s",
        "fine-grained_score": 4.25,
        "model": "alpaca-7b",
        "overall_score": 7.0,
        "principle": "helpfulness",
        "response": text,
    }


def rated(prompt: str, *completions: dict) -> dict:
    return {
        "source": "flan",
        "instruction": prompt,
        "models": [one["model"] for one in completions],
        "completions": list(completions),
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def pair(prompt: str, chosen: str, rejected: str, *, role: str = "assistant") -> dict:
    def chat(text: str) -> list[dict]:
        return [{"content": prompt, "role": "user"}, {"content": text, "role": role}]

    models = {"chosen-rating": 4.0, "chosen-model": "a", "rejected-rating": 3.0, "rejected-model": "b"}
    return {"source": "flan", "prompt": prompt, "chosen": chat(chosen), "rejected": chat(rejected), **models}


def write(folder: Path, ratings: list[dict], pairs: list[dict]) -> dict[str, Any]:
    first, second = folder / "ratings", folder / "pairs"
    first.mkdir(parents=True)
    (second / "data").mkdir(parents=True)
    for place, name in enumerate(ultrafeedback.FILES):
        some = ratings[place :: len(ultrafeedback.FILES)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (first / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(pairs), second / "data" / "train-00000-of-00001.parquet")
    return {"path": first, "pairs_path": second}


RATINGS = [
    rated("Größe?", completion("gut", 5, 1, 4, 2), completion("böse", 2, 4, 1, 5), completion("?", 1, 1, 1, 1)),
    rated("agree", completion("best", 5, 5, 5, 5), completion("worst", 1, 1, 1, 1)),
    rated("no mark", completion("one", 5, "N/A", 4, 2), completion("two", 1, 2, 3, 4)),
    rated("ties", completion("left", 3, 3, 5, 1), completion("right", 3, 3, 1, 5)),
    rated("blank", completion("", 1, 2, 3, 4), completion("full", 4, 3, 2, 1)),
    rated("Größe?", completion("gut", 1, 5, 1, 5), completion("neu", 2, 2, 2, 2)),  # the prompt again
]
PAIRS = [  # in another order than the ratings, and not of all of them
    pair("ties", "right", "left"),
    pair("blank", "full", ""),
    pair("no mark", "one", "two"),
    pair("agree", "best", "worst"),
    pair("Größe?", "gut \n", "böse"),  # white space at the end
    pair("Größe?", "böse", "gut"),  # again, the other way round
    pair("agree", "best", "best"),
    pair("agree", "best", "never rated"),
    pair("nobody asked", "best", "worst"),
    pair(" ", "best", "worst"),
    pair("agree", "best", "worst", role="user"),
]
SMALL: dict[str, Any] = {"seen_users": 12, "unseen_users": 3, "pairs_per_user": 2, "test_pairs_per_user": 1}
FILTERED = {
    "not_answered_by_assistant": 1,
    "empty_prompt": 1,
    "empty_text": 1,
    "same_text": 1,
    "same_pair_again": 1,
    "not_in_ratings": 2,
    "without_rating": 1,
    "attributes_agree": 1,
}


def test_rules_by_hand(tmp_path):
    # A third pair on which attributes disagree, so that two train and one tests.
    ratings = [*RATINGS, rated("third", completion("a", 5, 1, 1, 1), completion("b", 1, 5, 5, 5))]
    data = ultrafeedback.read(
        **write(tmp_path, ratings, [*PAIRS, pair("third", "a", "b")]), **SMALL, test_fraction=0.34, seed=1
    )
    assert data.meta["filtered"] == FILTERED
    assert data.meta["pairs_in_source"] == 12
    assert data.meta["completions_in_source"] == 15
    assert data.meta["completions_repeated"] == 1
    assert data.meta["completions_without_rating"] == 1
    assert data.meta["pairs_with_tied_ratings"] == 1
    assert data.meta["pairs_asked_of"] == {"train": 2, "test": 1}
    assert data.meta["counted"].startswith("nothing")
    group = dict(zip(data.users["user_id"].to_pylist(), data.groups, strict=True))
    assert set(group.values()) == {"helpfulness", "honesty"}
    said: dict[tuple, set] = {}
    for vote in votes(data):
        if vote.prompt == "ties":
            said.setdefault((group[vote.user],), set()).add(vote.chosen)
            continue
        # The first rating counts: böse is the honest answer, gut the helpful one.
        helpful, honest = {"Größe?": ("gut", "böse"), "third": ("a", "b")}[vote.prompt]
        assert vote.chosen == (helpful if group[vote.user] == "helpfulness" else honest)
        assert vote.controversial is True
    assert all(len(texts) == 1 for texts in said.values())
    splits = Counter(vote.split for vote in votes(data))
    assert splits == {"train": 12 + 2 * 3, "validation": 12, "test": 15}


def drawn(rng: np.random.Generator, prompts: int) -> tuple[list[dict], list[dict]]:
    ratings = [
        rated(
            f"ask {i}", *(completion(f"answer {i} {k}", *rng.choice([1, 2, 3, 4, 5, "N/A"], 4, p=P)) for k in range(4))
        )
        for i in range(prompts)
    ]
    pairs = [pair(f"ask {i}", *(f"answer {i} {k}" for k in rng.permutation(4)[:2])) for i in rng.permutation(prompts)]
    return ratings, pairs


P = [0.19] * 5 + [0.05]


@pytest.mark.parametrize("attributes", [2, 4])
def test_users_choose_by_their_attribute(attributes, tmp_path):
    ratings, pairs = drawn(np.random.default_rng(attributes), 400)
    sizes: dict[str, Any] = {"seen_users": 60, "unseen_users": 5, "test_pairs_per_user": 9}
    data = ultrafeedback.read(**write(tmp_path, ratings, pairs), **sizes, attributes=attributes, seed=attributes)
    marks = {
        one["response"]: [one["annotations"][name]["Rating"] for name in ATTRIBUTES]
        for row in ratings
        for one in row["completions"]
    }
    group = dict(zip(data.users["user_id"].to_pylist(), data.groups, strict=True))
    assert Counter(data.groups[:60]) == dict.fromkeys(ATTRIBUTES[:attributes], 60 // attributes)
    assert set(data.groups[60:]) == set(ATTRIBUTES[:attributes])
    broken: dict[tuple, set] = {}
    for vote in votes(data):
        better, worse = marks[vote.chosen], marks[vote.rejected]
        assert "N/A" not in better + worse
        gain = [int(a) - int(b) for a, b in zip(better, worse, strict=True)]
        mine = ATTRIBUTES.index(group[vote.user])
        assert gain[mine] >= 0
        if gain[mine] == 0:
            broken.setdefault((vote.prompt, mine), set()).add(vote.chosen)
        if 0 not in gain:
            assert min(gain) < 0 < max(gain)
            assert vote.controversial == (min(gain[:attributes]) < 0 < max(gain[:attributes]))
    assert broken
    assert all(len(texts) == 1 for texts in broken.values())
    asked = Counter((vote.user, vote.split) for vote in votes(data))
    n = {2: 8, 4: 16}[attributes]
    for place in range(65):
        known = {"train": n - 1, "validation": 1} if place < 60 else {"train": n, "validation": 0}
        for split, count in {**known, "test": 9}.items():
            assert asked[f"user-{place}", split] == count
    tested = {vote.prompt for vote in votes(data) if vote.split == "test"}
    assert tested.isdisjoint(vote.prompt for vote in votes(data) if vote.split != "test")


def test_tokens_are_counted_by_the_tokenizer_given(tmp_path):
    def marked(i: int, text: str) -> dict:
        return rated(f"ask {i}", completion(text, 5, 1, 1, 1), completion("b", 1, 5, 5, 5))

    texts = {i: "b " * (i + 1) + "a" for i in range(9)}
    ratings = [marked(i, text) for i, text in texts.items()]
    tokenizer = train_tokenizer(["ask a b 0 1 2 3 4 5 6 7 8"], vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "model")
    folders = write(tmp_path, ratings, [pair(f"ask {i}", text, "b") for i, text in texts.items()])
    length = {
        i: len(tokenizer(f"ask {i}<|end_of_user|>{text}<|end_of_assistant|>")["input_ids"]) for i, text in texts.items()
    }
    bound = length[5]
    data = ultrafeedback.read(
        **folders, **SMALL, test_fraction=0.2, tokenizer=str(tmp_path / "model"), max_tokens=bound
    )
    assert data.meta["filtered"]["too_long"] == sum(count > bound for count in length.values()) == 3
    assert data.meta["counted"].startswith("tokens of")
    assert {vote.prompt for vote in votes(data)} <= {f"ask {i}" for i in range(6)}


def test_same_seed_same_bytes(tmp_path):
    folders = write(tmp_path, *drawn(np.random.default_rng(3), 150))
    sizes: dict[str, Any] = {"seen_users": 30, "unseen_users": 5, "test_pairs_per_user": 3, "protocol": "AVG"}
    check_seeds(lambda seed: ultrafeedback.read(**folders, seed=seed, **sizes), tmp_path)


def test_a_changed_schema_no_network_and_bad_options(tmp_path):
    folders = write(tmp_path, RATINGS, [{**row, "prompt": [row["prompt"]]} for row in PAIRS])
    with pytest.raises(UserError, match=r"column 'prompt': has type list<.*wanted as string"):
        ultrafeedback.read(**folders)
    with pytest.raises(UserError, match=r"--config.source.pairs_path=FOLDER"):
        ultrafeedback.read(folders["path"])
    (folders["path"] / "flan.jsonl").unlink()
    with pytest.raises(UserError, match=r"flan: no such file"):
        ultrafeedback.read(**folders)
    with pytest.raises(UserError, match=r"attributes is 3; give 2"):
        ultrafeedback.read(**folders, attributes=3)
    for name in ("honesty", "truthfulness"):
        changed = json.loads(json.dumps(RATINGS).replace(f'"{name}": {{"Rating"', f'"{name}": {{"Score"'))
        with pytest.raises(UserError, match=rf"column 'completions\[\].annotations.{name}.Rating': missing"):
            ultrafeedback.read(**write(tmp_path / name, changed, PAIRS))


def test_nothing_in_common_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no pair is left of 1: .*'not_in_ratings': 1"):
        ultrafeedback.read(**write(tmp_path, RATINGS, [pair("agree", "best", "never rated")]))
