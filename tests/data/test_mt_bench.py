"""MT-Bench human judgments from a Parquet file written by hand in the public schema: pairs, branches, traps."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from votes import check_seeds, dialogues

from pref_jax.data.sources import mt_bench
from pref_jax.errors import UserError

MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
SCHEMA = pa.schema(
    [
        ("question_id", pa.int64()),
        ("model_a", pa.string()),
        ("model_b", pa.string()),
        ("winner", pa.string()),
        ("judge", pa.string()),
        ("conversation_a", MESSAGES),
        ("conversation_b", MESSAGES),
        ("turn", pa.int64()),
    ]
)
EASY: dict[str, Any] = {"unseen_fraction": 0.3, "test_query_fraction": 0.3, "validation_fraction": 0.2, "min_votes": 1}


def talk(question: int, model: str, **changes: str | None) -> list[dict[str, str | None]]:
    texts = {"q1": f"question {question}", "a1": f"{model} on {question}", "q2": f"and {question}?"}
    texts |= {"a2": f"{model} on {question} again"} | changes
    return [{"content": texts[k], "role": role} for k, role in zip(texts, ("user", "assistant") * 2, strict=True)]


def vote(
    judge: str, question: int, winner: str, turn: int = 1, a: str = "gpt-4", b: str = "llama", **more: Any
) -> dict:
    row = {"question_id": question, "model_a": a, "model_b": b, "winner": winner, "judge": judge, "turn": turn}
    return row | {"conversation_a": talk(question, a), "conversation_b": talk(question, b)} | more


def usual() -> list[dict[str, Any]]:
    """Three judges, eight questions of two turns; the third judge always disagrees."""
    return [
        vote(judge, question, "model_b" if judge == "expert_2" else "model_a", turn)
        for judge in ("author_0", "expert_1", "expert_2")
        for question in range(81, 89)
        for turn in (1, 2)
    ]


def folder(root: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> Path:
    (root / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / "data" / "human-00000-of-00001-25f4.parquet")
    (root / "data" / "gpt4_pair-00000-of-00001-c0b4.parquet").write_bytes(b"not to be read")
    return root


def test_both_turns(tmp_path: Path):
    data = mt_bench.read(folder(tmp_path / "a", usual()), context_pairs=50, **EASY)
    assert data.comparisons.num_rows == data.meta["votes_in_source"] == 48
    assert data.users["user_id"].to_pylist() == ["author_0", "expert_1", "expert_2"]
    rows = dialogues(data)
    assert sorted(row[1:4] for row in rows if row[0] == "author_0" and row[1][0] == "question 83") == [
        (("question 83",), "gpt-4 on 83", "llama on 83"),
        (
            ("question 83",),
            "gpt-4 on 83\n\nUser: and 83?\n\nAssistant: gpt-4 on 83 again",
            "llama on 83\n\nUser: and 83?\n\nAssistant: llama on 83 again",
        ),
    ]
    # Both turns of a question are on one side: 2 of 8 questions are test, 4 votes each of 3 judges' 16.
    tested = {row[1][0] for row in rows if row[4] == "test"}
    assert len(tested) == 2
    assert not tested & {row[1][0] for row in rows if row[4] != "test"}
    assert data.num_responses == 8 * 4
    assert set(data.comparisons["controversial"].to_pylist()) == {True}
    assert data.groups == [None] * 3


def test_the_prompt_is_what_both_dialogues_share(tmp_path: Path):
    same: dict[str, Any] = {"conversation_a": talk(90, "x"), "conversation_b": talk(90, "x", a2="better")}
    rows = [*usual(), vote("author_0", 90, "model_b", 2, **same)]
    data = mt_bench.read(folder(tmp_path / "a", rows), context_pairs=50, **EASY)
    assert ("author_0", ("question 90", "x on 90", "and 90?"), "better", "x on 90 again") in {
        row[:4] for row in dialogues(data)
    }
    first = mt_bench.read(tmp_path / "a", turns=(1,), context_pairs=50, **EASY)
    assert first.comparisons.num_rows == 24
    assert first.meta["filtered"]["other_turns"] == 25


def test_everything_left_out_is_counted(tmp_path: Path):
    rows = [
        *usual(),
        vote("author_0", 81, "tie"),
        vote("author_0", 82, "tie", 2),
        # The same vote again with the sides changed; then its opposite by another judge.
        vote("author_0", 83, "model_b", a="llama", b="gpt-4"),
        vote("expert_1", 84, "model_a", a="llama", b="gpt-4"),
        vote("expert_1", 85, "model_a", a="gpt-4", b="gpt-4"),
        vote("expert_1", 86, "model_a", conversation_a=talk(86, "x", a1="  ")),
        vote("expert_1", 87, "model_a", 2, conversation_b=talk(87, "x", a2=None)),
        # The first replies are equal but for white space, unicode stays.
        vote("expert_1", 88, "model_a", conversation_a=talk(88, "x", a1=" naïve 🙂\n")),
        vote("lone", 88, "model_a"),
    ]
    data = mt_bench.read(folder(tmp_path / "a", rows), context_pairs=50, **{**EASY, "min_votes": 2})
    assert data.meta["filtered"] == {
        "ties": 2,
        "other_turns": 0,
        "missing_text": 2,
        "same_text": 1,
        "repeated": 1,
        "self_contradicting": 2,
        "users_under_min_votes": 1,
        "votes_under_min_votes": 1,
        "users_without_training": 0,
        "votes_of_users_without_training": 0,
        "unused_context": 0,
    }
    assert data.comparisons.num_rows == 57 - 9
    assert "naïve 🙂" in {row[2] for row in dialogues(data)}


def test_no_text_betrays_its_label(tmp_path: Path):
    other = [row | {"winner": "model_b" if row["winner"] == "model_a" else "model_a"} for row in usual()]
    texts = []
    for name, file in (("a", usual()), ("b", other)):
        data = mt_bench.read(folder(tmp_path / name, file), context_pairs=50, **EASY)
        texts.append({(str(row["prompt"]), row["text"]) for row in data.responses.to_pylist()})
    assert texts[0] == texts[1]


def test_one_judge_with_thousands_of_rows(tmp_path: Path):
    rows = usual()
    for n in range(2000):
        rows.append(vote("busy", 81 + n % 8, "model_a", 1 + n % 2, a=f"m{n // 8}", b="llama"))
    data = mt_bench.read(folder(tmp_path / "a", rows), seed=1)
    known = Counter(row[4] for row in dialogues(data) if row[0] == "busy")
    assert known["test"] == 500
    seen = data.seen[data.users["user_id"].to_pylist().index("busy")]
    assert known["train"] + known["validation"] == (1500 if seen else 8)


def test_same_seed_same_bytes(tmp_path: Path):
    root = folder(tmp_path / "a", usual())
    check_seeds(lambda seed: mt_bench.read(root, seed=seed, **EASY), tmp_path)


@pytest.mark.parametrize("column", list(mt_bench.COLUMNS))
def test_a_changed_schema_names_the_column(tmp_path: Path, column: str):
    schema = pa.schema([field.with_name(f"{field.name}2") if field.name == column else field for field in SCHEMA])
    rows = [{f"{key}2" if key == column else key: value for key, value in row.items()} for row in usual()]
    with pytest.raises(UserError, match=f"column '{column}': missing"):
        mt_bench.read(folder(tmp_path / "a", rows, schema))


def test_mistakes_are_told(tmp_path: Path):
    rows = usual()
    rows[3]["winner"], rows[5]["turn"] = "both", 3
    rows[7]["conversation_b"] = rows[7]["conversation_b"][1:]
    rows[8]["conversation_a"] = [None, *rows[8]["conversation_a"][1:]]
    rows[9]["conversation_b"] = talk(99, "llama")
    words = (
        r"(?s)5 faults.*row 3, column 'winner': is 'both'.*row 5, column 'turn': is 3.*row 7, columns 'conversation_a'"
        r".*row 8, columns 'conversation_a'.*row 9, columns 'conversation_a', 'conversation_b': two questions"
    )
    with pytest.raises(UserError, match=words):
        mt_bench.read(folder(tmp_path / "a", rows))
    rows = usual()
    rows[2]["judge"] = None
    with pytest.raises(UserError, match="column 'judge': null in 1 rows, first row 2"):
        mt_bench.read(folder(tmp_path / "b", rows))
    rows = [row | {"winner": "tie"} for row in usual()]
    with pytest.raises(UserError, match=r"no votes are left after filtering \({'ties': 48}\); lower min_votes"):
        mt_bench.read(folder(tmp_path / "c", rows))
    with pytest.raises(UserError, match=r"turns: is \(3,\); give some of 1 to 2"):
        mt_bench.read(tmp_path, turns=(3,))
