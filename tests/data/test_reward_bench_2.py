"""RewardBench 2 from a Parquet file written by hand in the public schema."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pref_jax.data.sources import reward_bench_2
from pref_jax.errors import UserError
from pref_jax.eval import reward_bench
from pref_jax.eval.reward_bench import Responses

TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", TEXTS),
        ("rejected", TEXTS),
        ("num_correct", pa.int64()),
        ("num_incorrect", pa.int64()),
        ("total_completions", pa.int64()),
        ("models", TEXTS),
        ("subset", pa.string()),
        ("additional_metadata", pa.struct([("category", pa.string()), ("index", pa.float64())])),
    ]
)


def row(name: str, subset: str, chosen: list[str | None], rejected: list[str | None], prompt: str = "p") -> dict:
    counts = {"num_correct": len(chosen), "num_incorrect": len(rejected)}
    counts["total_completions"] = len(chosen) + len(rejected)
    return {
        "id": name,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "models": ["m"],
        "subset": subset,
    } | counts


def usual() -> list[dict[str, Any]]:
    return [
        row("7", "Math", ["4"], ["5", "6", "7"], "2 + 2?"),
        row("8", "Math", ["9"], ["", "9", "🙂"], "2 + 2?"),
        row("tied:0", "Ties", ["red", "blue"], ["dog"], "a colour"),
        row("ref:0", "Ties", ["Paris"], ["Rome", "Bonn"], "capital of France"),
        row("7", "Safety", ["no"], ["yes", "yes", "sure"], "bad thing"),
        row("tied:10", "Ties", ["1", "2", "3"], ["x"], "a number"),
        row("ref:10", "Ties", ["1"], ["2"], "one"),
    ]


def folder(root: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> Path:
    (root / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / "data" / "test-00000-of-00001.parquet")
    return root


def test_every_answer_is_a_row(tmp_path: Path):
    bench = reward_bench_2.read(folder(tmp_path, usual()))
    assert bench.subset == ["Math"] * 8 + ["Ties"] * 6 + ["Safety"] * 4 + ["Ties"] * 6
    assert bench.prompt.tolist() == [0] * 4 + [1] * 4 + [0] * 6 + [4] * 4 + [10] * 6
    assert bench.correct.astype(int).tolist() == [1, 0, 0, 0] * 2 + [1, 1, 0] + [1, 0, 0] + [
        1,
        0,
        0,
        0,
        1,
        1,
        1,
        0,
        1,
        0,
    ]
    assert np.flatnonzero(bench.reference).tolist() == [11, 12, 13, 22, 23]
    # Empty, equal and unicode answers stay what they are.
    assert bench.responses["text"].to_pylist()[4:8] == ["9", "", "9", "🙂"]
    assert bench.responses.to_pylist()[10] == {
        "response_id": "Ties/tied:0/2",
        "prompt": [{"role": "user", "content": "a colour", "extra": None}],
        "text": "dog",
        "extra": None,
    }
    again = reward_bench_2.read(tmp_path)
    assert again.responses.equals(bench.responses)
    assert bench.source == f"local folder {tmp_path.name}"


def test_the_rules_take_it(tmp_path: Path):
    bench = reward_bench_2.read(folder(tmp_path, usual()))
    responses = Responses(subset=bench.subset, prompt=bench.prompt, correct=bench.correct, reference=bench.reference)
    right = bench.correct[:, None].astype(float)
    found = reward_bench.scores(np.concatenate([right, -right, 0 * right], axis=1), responses)
    # By hand: all right; all wrong; all equal, where each answer of four earns a quarter. In Ties, no spread: the
    # closeness counts as 1, -1 and 0.
    assert found["Math"].tolist() == found["Safety"].tolist() == [1, 0, 0.25]
    np.testing.assert_allclose(found["Ties"], [1.01, -0.01, 0], atol=1e-12)
    np.testing.assert_allclose(found["overall"], [3.01 / 3, -0.01 / 3, 0.5 / 3], atol=1e-12)


@pytest.mark.parametrize("column", list(reward_bench_2.COLUMNS))
def test_a_changed_schema_names_the_column(tmp_path: Path, column: str):
    schema = pa.schema([field.with_name(f"{field.name}2") if field.name == column else field for field in SCHEMA])
    rows = [{f"{key}2" if key == column else key: value for key, value in one.items()} for one in usual()]
    with pytest.raises(UserError, match=f"column '{column}': missing"):
        reward_bench_2.read(folder(tmp_path, rows, schema))


def test_mistakes_are_told(tmp_path: Path):
    rows = [
        *usual(),
        row("tied-11", "Ties", ["a"], ["b"]),
        row("9", "Math", [], ["b"]),
        row("10", "Math", ["a"], [None]),
    ]
    words = r"(?s)3 faults.*row 7, column 'id': is 'tied-11'.*row 8, column 'chosen'.*row 9, column 'rejected'"
    with pytest.raises(UserError, match=words):
        reward_bench_2.read(folder(tmp_path, rows))
    rows = [one | {"prompt": None} for one in usual()]
    with pytest.raises(UserError, match="column 'prompt': null in 7 rows, first row 0"):
        reward_bench_2.read(folder(tmp_path / "b", rows))
