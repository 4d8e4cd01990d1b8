"""PersonalLLM: drawn files in the public schema with every trap, against plain Python."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from votes import check_seeds, votes

from pref_jax.data.sources import personalllm
from pref_jax.errors import UserError

MODELS = (
    *("gemma_2b", "gemma_7b", "mistral_raft", "llama3_sfairx", "oasst_deberta_v3", "beaver_7b"),
    *("oasst_pythia_7b", "oasst_pythia_1b", "mistral_ray", "mistral_weqweasdas"),
)
FOUR = ("gemma_7b", "mistral_weqweasdas", "llama3_sfairx", "oasst_deberta_v3")


def prompt(name: str, rng: np.random.Generator) -> dict:
    """Scores on a grid of quarters, so that some are equal; answer k of a prompt is its name and k."""
    texts = {f"response_{k}": f"{name} ☃ {k}" for k in range(1, 9)}
    scores = {f"response_{k}_{model}": rng.integers(-9, 9) / 4 for k in range(1, 9) for model in MODELS}
    return {"prompt_id": 1, "prompt": name, "subset": "s", **texts, **scores}


def write(folder: Path, **parts: list[dict]) -> Path:
    (folder / "data").mkdir(parents=True)
    for part, rows in parts.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{part}-00000-of-00001.parquet")
    return folder


def drawn(seed: int, train: int = 60, test: int = 15) -> dict[str, list[dict]]:
    rng = np.random.default_rng(seed)
    sizes: dict[str, Any] = {"train": train, "test": test}
    return {part: [prompt(f"{part} {i}", rng) for i in range(count)] for part, count in sizes.items()}


def scores(rows: list[dict], text: str, models: tuple[str, ...]) -> list[float]:
    """All models' scores of the answer with this text."""
    (found,) = [(row, k) for row in rows for k in range(1, 9) if row[f"response_{k}"] == text]
    row, k = found
    return [row[f"response_{k}_{model}"] for model in models]


def weights(users: int, models: int, alpha: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(models, alpha), users)


def test_larger_weighted_score_among_answers_5_6_7(tmp_path):
    parts = drawn(1)
    sizes: dict[str, Any] = {"seen_users": 20, "unseen_users": 4, "test_pairs_per_user": 6}
    data = personalllm.read(write(tmp_path, **parts), **sizes, alpha=0.3, seed=9)
    rows = parts["train"] + parts["test"]
    mine = dict(zip(data.users["user_id"].to_pylist(), weights(24, 4, 0.3, 9), strict=True))
    found = votes(data)
    for vote in found:
        assert {vote.chosen[-1], vote.rejected[-1]} <= {"5", "6", "7"}
        gain = np.subtract(scores(rows, vote.chosen, FOUR), scores(rows, vote.rejected, FOUR))
        assert gain.min() < 0 < gain.max()
        assert mine[vote.user] @ gain > -1e-12
        assert vote.controversial is True
        assert (vote.split == "test") == vote.prompt.startswith("test")
    pairs = [(i, a, b) for i in rows for a, b in ((5, 6), (5, 7), (6, 7))]
    gains = [[row[f"response_{a}_{m}"] - row[f"response_{b}_{m}"] for m in FOUR] for row, a, b in pairs]
    dominated = sum(min(gain) >= 0 or max(gain) <= 0 for gain in gains)
    assert data.meta["filtered"]["pairs_dominated"] == dominated > 0
    asked = Counter((data.seen[int(vote.user.split("-")[1])], vote.split) for vote in found)
    assert asked == {
        (True, "train"): 20 * 15,
        (True, "validation"): 20,
        (True, "test"): 120,
        (False, "train"): 4 * 16,
        (False, "test"): 24,
    }


def test_best_against_worst_of_eight_on_all_test_prompts(tmp_path):
    parts = drawn(2)
    sizes: dict[str, Any] = {"seen_users": 10, "unseen_users": 6}
    data = personalllm.read(write(tmp_path, **parts), rule="lore", **sizes, alpha=1, seed=4)
    by_name = {row["prompt"]: row for row in parts["train"] + parts["test"]}
    mine = dict(zip(data.users["user_id"].to_pylist(), weights(16, 10, 1, 4), strict=True))
    found = votes(data)
    for vote in found:
        row = by_name[vote.prompt]
        value = {
            row[f"response_{k}"]: sum(
                w * row[f"response_{k}_{model}"] for w, model in zip(mine[vote.user], MODELS, strict=True)
            )
            for k in range(1, 9)
        }
        assert value[vote.chosen] >= max(value.values()) - 1e-9
        assert value[vote.rejected] <= min(value.values()) + 1e-9
        gain = np.subtract(scores([row], vote.chosen, MODELS), scores([row], vote.rejected, MODELS))
        assert vote.controversial == bool(gain.min() < 0 < gain.max())
    asked = Counter((vote.user, vote.split) for vote in found)
    for place in range(16):
        known = {"train": 47, "validation": 1} if place < 10 else {"train": 9, "validation": 0}
        for split, count in {**known, "test": 15}.items():
            assert asked[f"user-{place}", split] == count
    assert data.meta["prompts_tested"] == 15
    for user in mine:
        assert {vote.prompt for vote in found if vote.user == user and vote.split == "test"} == {
            row["prompt"] for row in parts["test"]
        }


def by_hand(name: str) -> dict:
    """Scores that can be added in the head; of the four of `copl`, in the order of `FOUR`:

    answer 5: 4 0 0 0, answer 6: 0 3 0 0, answer 7: -1 -1 0 0; no other answer or model gives any but these: answer 3
    has 10 by gemma_2b, and answer 8 has -2 by each model but oasst_pythia_1b, which gives it 5.
    """
    row = prompt(name, np.random.default_rng(0))
    row |= {f"response_{k}_{model}": 0.0 for k in range(1, 9) for model in MODELS}
    row |= {"response_5_gemma_7b": 4.0, "response_6_mistral_weqweasdas": 3.0, "response_3_gemma_2b": 10.0}
    row |= {"response_7_gemma_7b": -1.0, "response_7_mistral_weqweasdas": -1.0}
    return row | {f"response_8_{model}": 5.0 if model == "oasst_pythia_1b" else -2.0 for model in MODELS}


def test_prompts_scored_by_hand(tmp_path):
    """Users who weigh all models alike: of 5 and 6, 1 against 0.75, while every model puts 7 last; of all eight, 3 has
    the most (1) and 8 the least (-1.3), which one model would turn round."""
    folder = write(tmp_path, train=[by_hand("ask"), by_hand("beg")], test=[by_hand("say")])
    sizes: dict[str, Any] = {"seen_users": 2, "unseen_users": 1, "pairs_per_user": 2, "test_pairs_per_user": 1}
    for rule, best, worst in (("copl", 5, 6), ("lore", 3, 8)):
        data = personalllm.read(folder, rule=rule, **sizes, context_pairs=2, alpha=1e8)
        found = votes(data)
        assert {(vote.chosen[-1], vote.rejected[-1], vote.controversial) for vote in found} == {
            (str(best), str(worst), True)
        }
        asked = Counter((vote.user, vote.prompt) for vote in found)
        assert asked == {(f"user-{user}", name): 1 for user in range(3) for name in ("ask", "beg", "say")}
        assert data.meta["filtered"].get("pairs_dominated", 6) == 6, "7 against 5 and against 6, on three prompts"


def test_traps_are_counted(tmp_path):
    parts = drawn(3)
    train, test = parts["train"], parts["test"]
    train[0]["prompt"] = test[2]["prompt"]  # would leak
    train[1]["prompt"] = train[2]["prompt"]  # a duplicate that may stay
    train[3]["response_6"] = ""
    train[4]["response_7_gemma_7b"] = None
    train[5]["response_5_oasst_deberta_v3"] = float("nan")
    train[9] |= {"response_5_gemma_7b": float("inf"), "response_6_gemma_7b": -float("inf")}
    train[6]["prompt"] = "\n"
    train[7]["response_6"] = train[7]["response_5"]
    train[8]["response_1"] = None  # not among the answers of `copl`
    test[0]["response_3_beaver_7b"] = None  # nor this
    folder = write(tmp_path, **parts)
    sizes: dict[str, Any] = {"seen_users": 5, "unseen_users": 2}
    data = personalllm.read(folder, **sizes, test_pairs_per_user=3)
    common = {"prompts_empty": 1, "prompts_with_an_empty_answer": 1, "prompts_without_a_score": 3}
    known = {**common, "training_prompts_in_test": 1, "pairs_of_same_text": 1, "pairs_again": 1}
    # Of prompt 7, answers 5 and 6 are one: 5 against 7 and 6 against 7 are the same pair.
    assert data.meta["filtered"] == {**known, "pairs_dominated": data.meta["filtered"]["pairs_dominated"]}
    data = personalllm.read(folder, rule="lore", **sizes)
    filtered = data.meta["filtered"]
    assert filtered["prompts_with_an_empty_answer"] == 2
    assert filtered["prompts_without_a_score"] == 4
    found = votes(data)
    assert {vote.prompt for vote in found if vote.split == "test"} == {row["prompt"] for row in test[1:]}
    assert not {vote.prompt for vote in found if vote.split != "test"} & {row["prompt"] for row in test}


@pytest.mark.parametrize("rule", ["copl", "lore"])
def test_same_seed_same_bytes(rule, tmp_path):
    folder = write(tmp_path / "set", **drawn(5))
    sizes: dict[str, Any] = {"seen_users": 12, "unseen_users": 3, "test_pairs_per_user": 4}
    check_seeds(lambda seed: personalllm.read(folder, rule=rule, seed=seed, **sizes), tmp_path)


def test_small_alpha_is_diverse(tmp_path):
    folder = write(tmp_path, **drawn(6))
    sizes: dict[str, Any] = {"seen_users": 60, "unseen_users": 1, "test_pairs_per_user": 20}

    def agreement(alpha: float) -> float:
        data = personalllm.read(folder, **sizes, alpha=alpha)
        said: dict[tuple, list] = {}
        for vote in votes(data):
            said.setdefault((vote.prompt, *sorted((vote.chosen, vote.rejected))), []).append(vote.chosen)
        return float(np.mean([Counter(texts).most_common(1)[0][1] / len(texts) for texts in said.values()]))

    assert agreement(0.01) < agreement(100) - 0.1


def test_a_changed_schema_no_network_and_bad_options(tmp_path):
    parts = drawn(7, train=3, test=2)
    for row in parts["train"] + parts["test"]:
        row["response_6_gemma"] = row.pop("response_6_gemma_7b")
        del row["response_7"]
    folder = write(tmp_path, **parts)
    with pytest.raises(UserError, match=r"column 'response_7': missing(.|\n)*column 'response_6_gemma_7b': missing"):
        personalllm.read(folder)
    with pytest.raises(UserError, match=r"hf download --repo-type dataset namkoong-lab/PersonalLLM"):
        personalllm.read()
    with pytest.raises(UserError, match=r"alpha is 0; give"):
        personalllm.read(folder, alpha=0)
    with pytest.raises(UserError, match=r"copl or lore"):
        personalllm.read(folder, rule="x")
