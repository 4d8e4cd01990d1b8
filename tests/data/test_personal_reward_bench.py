"""PersonalRewardBench from Parquet files written by hand: who is seen, what may be known, replies in every form."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pref_jax.data import sources
from pref_jax.data.sources import personal_reward_bench as bench
from pref_jax.errors import UserError

MESSAGE = pa.struct([("content", pa.string()), ("role", pa.string())])
FORMS = {
    "text": (pa.string(), lambda text: text),
    "message": (MESSAGE, lambda text: {"role": "assistant", "content": text}),
    "list": (pa.list_(MESSAGE), lambda text: [{"role": "assistant", "content": text}]),
}


def vote(user: str, split: str, number: int, **more: Any) -> dict[str, Any]:
    context = [{"role": "user", "content": f"question {number}"}]
    return {"user_id": user, "split": split, "context": context, "chosen": f"good {number}", "rejected": "bad"} | more


def person(user: str) -> list[dict[str, Any]]:
    return [vote(user, split, place) for place, split in enumerate(("train", "train", "val", "test"))]


def folder(root: Path, form: str = "text", **rows: list[dict[str, Any]]) -> Path:
    kind, make = FORMS[form]
    columns = {"user_id": pa.string(), "split": pa.string(), "context": pa.list_(MESSAGE)}
    schema = pa.schema({**columns, "chosen": kind, "rejected": kind, "prediction": pa.string()})
    (root / "data").mkdir(parents=True)
    everyone = {"train": person("ada"), "val": person("bo"), "test": person("cy")} | rows
    for split, own in everyone.items():
        made = [{**row, "chosen": make(row["chosen"]), "rejected": make(row["rejected"])} for row in own]
        pq.write_table(pa.Table.from_pylist(made, schema=schema), root / "data" / f"{split}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("form", FORMS)
def test_people_of_train_are_seen_and_those_of_test_known_by_some_votes(tmp_path, form):
    found = sources.read("personal_reward_bench", path=folder(tmp_path, form), seed=0)
    assert found.users["user_id"].to_pylist() == ["ada", "cy"]
    assert found.seen.tolist() == [True, False]
    assert [len(found.pairs(split, seen=True).user) for split in ("train", "validation", "test")] == [2, 1, 1]
    assert [len(found.pairs(split, seen=False).user) for split in ("train", "validation", "test")] == [3, 0, 1]
    pairs, texts = found.pairs("test"), found.responses["text"].to_pylist()
    assert {(texts[c], texts[r]) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)} == {("good 3", "bad")}
    assert found.responses["prompt"][0].as_py()[0]["content"] == "question 0"


def test_people_of_val_are_unseen_too_where_they_are_asked_for(tmp_path):
    found = bench.read(folder(tmp_path), unseen=("val", "test"))
    assert found.seen.tolist() == [True, False, False]


def test_no_name_of_a_response_tells_which_was_chosen(tmp_path):
    rows = [vote("ada", "train", n, chosen=f"{'ab'[n % 2]} {n}", rejected=f"{'ba'[n % 2]} {n}") for n in range(8)]
    found = bench.read(folder(tmp_path, train=[*rows, *person("ada")]))
    pairs = found.pairs("train", seen=True)
    own = pairs.take(pairs.chosen < 16)
    assert 0 < (own.chosen < own.rejected).sum() < len(own.user)


def test_what_is_no_vote_is_left_out_and_counted(tmp_path):
    odd = [vote("ada", "train", 7, chosen="same", rejected=" same "), vote("ada", "train", 8, rejected="")]
    found = bench.read(folder(tmp_path, train=[*person("ada"), *odd]))
    assert found.meta["filtered"] == {"missing_text": 1, "same_text": 1}
    assert found.meta["votes_in_source"] == 10


def test_faults_are_told(tmp_path):
    with pytest.raises(UserError, match="name the hub's splits of people"):
        bench.read(tmp_path, unseen=("train",))
    with pytest.raises(UserError, match="is 'later', not train, val, test"):
        bench.read(folder(tmp_path / "a", train=[*person("ada"), vote("ada", "later", 1)]))
    with pytest.raises(UserError, match="no such file"):
        bench.read(tmp_path)
    wrong = folder(tmp_path / "b")
    pq.write_table(pa.table({"user_id": ["ada"], "split": ["train"]}), wrong / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="column 'context': missing"):
        bench.read(wrong)
