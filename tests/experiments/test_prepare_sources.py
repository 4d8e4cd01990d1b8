"""Public sources through `experiments.prepare`, with no option but where the files are."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from configs import jsonl
from experiments.prepare import prepare
from experiments.runner.workspace import Workspace
from pref_jax.errors import UserError

PEOPLE = range(5)


def _prism(root: Path) -> None:
    rows = [
        {"user_id": f"u{person}", "conversation_id": f"c{person}{n}", "turn": 0, "user_prompt": f"{person} asks {n}"}
        | {"model_response": text, "score": score, "if_chosen": score == 90}
        for person in PEOPLE
        for n in range(6)
        for text, score in (("a", 90), ("b", 10), ("c", 5))
    ]
    (root / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _community_alignment(root: Path) -> None:
    rows = []
    for person in PEOPLE:
        for n in range(10):
            row = {"annotator_id": str(person), "assigned_lang": "en"}
            for turn in ("first", "second", "third", "fourth"):
                there = turn == "first"
                row |= {f"{turn}_turn_response_{one}": f"{one} {n}" if there else "" for one in "abcd"}
                row |= {f"{turn}_turn_prompt": f"ask {n}" if there else ""}
                row |= {f"{turn}_turn_preferred_response": "response_b" if there else ""}
            rows.append(row)
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows), root / "community_alignment.csv")


def _mt_bench(root: Path) -> None:
    def talk(model: str, question: int) -> list[dict[str, str]]:
        texts = {"user": f"question {question}", "assistant": f"{model} on {question}"}
        return [{"content": text, "role": role} for role, text in texts.items()] * 2

    rows = [
        {"winner": "model_b", "judge": f"j{person}", "turn": 1}
        | {"conversation_a": talk("a", question), "conversation_b": talk("b", question)}
        for person in PEOPLE
        for question in range(10)
    ]
    (root / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / "human-0.parquet")


# Pairs by hand: 5 people x 6 dialogues x 2 rejected; x 10 prompts x 3; x 10 questions, each less what an unseen
# annotator or judge has beyond context: 8 of 10 prompts are not test, of which 24 votes stay; 8 questions, of which 8.
SOURCES = {"prism": (_prism, 60), "community_alignment": (_community_alignment, 150), "mt_bench": (_mt_bench, 50)}


@pytest.mark.parametrize("name", SOURCES)
def test_defaults_do(tmp_path: Path, name: str, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    write, pairs = SOURCES[name]
    write(tmp_path)
    config: Any = jsonl.get_config()
    config.source = ConfigDict({"name": name, "path": str(tmp_path)})
    config.backbone.name = str(tmp_path)
    run = Workspace(config, 3, tmp_path / "run")
    prepare(run)
    data = run.data
    assert data.comparisons.num_rows == pairs
    assert data.num_users == len(PEOPLE)
    assert data.seen.sum() == 4
    assert data.meta["seed"] == 3
    config.source.nonsense = 1
    with pytest.raises(UserError, match=f"config.source does not fit {name}: .*nonsense"):
        prepare(Workspace(config, 3, tmp_path / "other"))
