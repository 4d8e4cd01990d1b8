"""Public data sets from folders and from the hub's cache: formats, types, and what is said when they cannot be read."""

import gzip
import json
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pref_jax.data.sources import community_alignment, mt_bench, personalllm, prism, reward_bench_2, tldr, ultrafeedback
from pref_jax.data.sources.common import hub
from pref_jax.errors import UserError

SCHEMA = {
    "name": pa.string(),
    "score": pa.float64(),
    "parts": pa.list_(pa.struct([("text", pa.string()), ("mark", pa.struct([("Rating", pa.string())]))])),
}
ROWS = [
    {"name": "ä", "score": 1, "parts": [{"text": "x", "mark": {"Rating": "5", "Rationale": "r"}}], "other": 1},
    {"name": "b", "score": 2, "parts": [], "other": None},
    {"name": None, "score": None, "parts": [{"text": None, "mark": {"Rating": "N/A"}}, {"text": "z"}], "other": 3},
]
WANTED = [
    {"name": "ä", "score": 1.0, "parts": [{"text": "x", "mark": {"Rating": "5"}}]},
    {"name": "b", "score": 2.0, "parts": []},
    {"name": None, "score": None, "parts": [{"text": None, "mark": {"Rating": "N/A"}}, {"text": "z", "mark": None}]},
]


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder: Path, ending: str, rows=ROWS) -> Path:
    file = folder / "data" / f"train-00000{ending}"
    file.parent.mkdir(parents=True)
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif ending == ".jsonl.gz":
        file.write_bytes(gzip.compress(lines(rows).encode()))
    else:
        file.write_text(lines(rows), encoding="utf-8")
    return folder


def read(folder, columns=SCHEMA, **how) -> pa.Table:
    return hub.read_columns(folder, files=["data/train*"], columns=columns, **how)


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".jsonl.gz"])
def test_formats_give_the_same_columns(ending, tmp_path):
    table = read(write(tmp_path / "set", ending))
    assert table.schema == pa.schema(SCHEMA)
    assert table.to_pylist() == WANTED


def test_csv_with_digits_for_names_and_a_column_without_values(tmp_path):
    (tmp_path / "votes.csv").write_text("id,score,note\n12,1,\n7,3,\n", encoding="utf-8")
    columns = {"id": pa.string(), "score": pa.float64(), "note": pa.string()}
    table = hub.read_columns(tmp_path, files=["votes"], columns=columns)
    assert table.to_pydict() == {"id": ["12", "7"], "score": [1.0, 3.0], "note": [None, None]}


def test_csv_whose_late_rows_differ_from_the_first(tmp_path):
    """`datasets` reads csv by 10 000 rows and would keep the types of the first ones; pandas takes words for null."""
    words = {15_000: "None", 15_001: "NA", 15_002: '"a, b\n""c"""', 15_003: "7.0", 15_004: "007"}
    lines = [f"{row},{words.get(row, '')},x" for row in range(20_000)]
    (tmp_path / "votes.csv").write_text("\n".join(["id,late,other", *lines, ""]), encoding="utf-8-sig")
    columns = {"id": pa.string(), "late": pa.string()}
    table = hub.read_columns(tmp_path, files=["votes"], columns=columns)
    assert table.schema == pa.schema(columns)
    assert table["late"].slice(15_000, 6).to_pylist() == ["None", "NA", 'a, b\n"c"', "7.0", "007", None]
    assert table["late"].null_count == 20_000 - 5
    with pytest.raises(UserError, match=r"has id, late, other(.|\n)*column 'early': missing"):
        hub.read_columns(tmp_path, files=["votes"], columns={"early": pa.string()})
    with pytest.raises(UserError, match=r"cannot be read .*'None'.*votes.csv"):
        hub.read_columns(tmp_path, files=["votes"], columns={"late": pa.float64()})


def test_files_come_in_the_order_of_their_names_and_stay_mapped(tmp_path):
    (tmp_path / "data").mkdir()
    for place in (2, 0, 1):
        pq.write_table(pa.table({"n": [place] * 50_000}), tmp_path / "data" / f"train-{place}.parquet")
    pq.write_table(pa.table({"n": [9]}), tmp_path / "data" / "test-0.parquet")
    before = pa.total_allocated_bytes()
    table = read(tmp_path, {"n": pa.int64()})
    assert table["n"].unique().to_pylist() == [0, 1, 2]
    assert table.nbytes == 150_000 * 8
    assert pa.total_allocated_bytes() - before < table.nbytes / 10


def test_a_changed_file_is_read_anew(tmp_path):
    folder = write(tmp_path / "set", ".parquet")
    assert read(folder, {"name": pa.string()}).num_rows == 3
    pq.write_table(pa.table({"name": ["new"]}), folder / "data" / "train-00000.parquet")
    assert read(folder, {"name": pa.string()})["name"].to_pylist() == ["new"]


def test_a_changed_schema_names_every_column_at_once(tmp_path):
    rows = [{"name": "a", "score": "high", "parts": [{"text": 3, "mark": {"rating": "5"}}]}]
    folder = write(tmp_path / "set", ".parquet", rows)
    with pytest.raises(UserError) as error:
        read(folder, {**SCHEMA, "worker": pa.string()})
    said = str(error.value)
    assert "3 faults" in said
    assert "column 'score': has type string, wanted as double" in said
    assert "column 'parts[].mark.Rating': missing, wanted as string" in said
    assert "column 'worker': missing, wanted as string" in said
    assert "has name, score, parts" in said
    # A whole number stands for a string, as csv gives it; a broken one for nothing.
    assert "parts[].text" not in said
    with pytest.raises(UserError, match=r"column 'n': has type double, wanted as int32"):
        hub.conform(pa.table({"n": [1.5]}), {"n": pa.int32()}, "here")
    with pytest.raises(UserError, match=r"column 'n': cannot be read as int8"):
        hub.conform(pa.table({"n": [1000]}), {"n": pa.int8()}, "here")


def test_no_network_says_how_to_use_a_folder():
    with pytest.raises(UserError) as error:
        read("org/votes", revision="abc", flag="--config.source.pairs_path")
    said = str(error.value)
    assert "--config.source.pairs_path=FOLDER" in said
    assert "hf download --repo-type dataset org/votes --revision abc --local-dir FOLDER" in said


SOURCES = (community_alignment, mt_bench, personalllm, prism, reward_bench_2, tldr, ultrafeedback)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__.rsplit(".", 1)[-1])
def test_every_source_takes_a_revision(source):
    name = source.RATINGS_ID if source is ultrafeedback else source.ID
    with pytest.raises(UserError) as error:
        source.read(revision="v7")
    assert f"hf download --repo-type dataset {name} --revision v7 --local-dir FOLDER" in str(error.value)
    flag = "--path" if source is reward_bench_2 else "--config.source.path"
    assert f"give a local folder with {flag}=FOLDER" in str(error.value)


def test_what_the_hub_gave_once_is_read_without_network(tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    root, commit = cache / "datasets--org--votes", "a" * 40
    write(root / "snapshots" / commit, ".parquet")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    assert read("org/votes").to_pylist() == WANTED
    assert hub.describe("org/votes") == "org/votes@main"
    assert hub.describe(root) == "local folder datasets--org--votes"


@pytest.mark.parametrize("name", ["", "nowhere", "a/b/c", "/no/such/folder"])
def test_a_path_that_is_neither_folder_nor_id(name):
    with pytest.raises(UserError, match=r"no hub id .org/name. either; check --config.source.path"):
        read(name)


def test_every_missing_file_is_named(tmp_path):
    folder = write(tmp_path / "set", ".jsonl")
    with pytest.raises(UserError) as error:
        hub.read_columns(folder, files=["data/train*", "data/valid*", "extra"], columns=SCHEMA)
    assert "2 faults" in str(error.value)
    assert "data/valid*" in str(error.value)
    (folder / "data" / "train-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="several formats"):
        read(folder)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".parquet", b"PAR1 cut short"),
        (".csv", b"name\n\xff"),
        (".csv", b"n\xffme\n"),
        (".jsonl", b'{"name": 1}\n{"na'),
        (".jsonl.gz", b"\x1f\x8b"),
    ],
)
def test_a_broken_file_is_named(ending, content, tmp_path):
    file = write(tmp_path / "set", ending) / "data" / f"train-00000{ending}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"set: cannot be read .*fetch the files again.*train-00000"):
        read(tmp_path / "set")
