"""Votes in every form, from every format and tool, as people have them; and the same votes damaged."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from experiments.benchmarks import fuzz
from experiments.benchmarks.fuzzing import damage
from pref_jax.data import preferences
from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.jsonl import reader
from pref_jax.data.votes import read_votes, vote_rows
from pref_jax.errors import UserError

ALL = {"validation_fraction": 0, "test_fraction": 0, "unseen_fraction": 0}
ROWS = [
    {"user": f"u{i % 3}", "prompt": f"How, {i % 5}?", "chosen": f'a "{i}"\nb', "rejected": f"ü{i}", "strength": i + 1.0}
    for i in range(12)
]


def read(rows: Any, **options: Any) -> Preferences:
    return reader.read(rows, **{**ALL, **options})


def told(data: Preferences) -> list[tuple]:
    """Comparisons with names and texts in place of numbers."""
    texts, users = data.responses["text"].to_pylist(), data.users["user_id"].to_pylist()
    return [
        (
            users[one["user"]],
            texts[one["chosen"]],
            texts[one["rejected"]],
            one["outcome"],
            one["strength"],
            one["choice"],
        )
        for one in data.comparisons.to_pylist()
    ]


def vote(**more: Any) -> dict[str, Any]:
    return {"user": "u", "prompt": "p", **more}


FORMS = [
    (vote(chosen="x", rejected="y", margin=2), [("u", "x", "y", "preferred", 2.0, None)]),
    (vote(chosen="x", rejected="y", margin=0), [("u", "x", "y", "preferred", None, None)]),
    (vote(responses=["x", "y"], preference=1.5), [("u", "y", "x", "preferred", 1.5, None)]),
    (vote(responses=["x", "y"], preference=-3), [("u", "x", "y", "preferred", 3.0, None)]),
    (vote(responses=["x", "y"], preference=0), [("u", "x", "y", "tie", None, None)]),
    (vote(responses=["x", "y"], outcome="both_bad"), [("u", "x", "y", "both_bad", None, None)]),
    (vote(responses=["x", "y"], winner="Model B"), [("u", "y", "x", "preferred", None, None)]),
    (vote(responses=["x", "y"], winner="tie (bothbad)"), [("u", "x", "y", "both_bad", None, None)]),
    (vote(chosen="x", rejected="y", outcome="tie"), [("u", "x", "y", "tie", None, None)]),
    (
        vote(ranking=["x", "y", "z"]),
        [
            ("u", "x", "y", "preferred", None, 0),
            ("u", "x", "z", "preferred", None, 0),
            ("u", "y", "z", "preferred", None, 1),
        ],
    ),
    (vote(responses=["x", "y"], ranking=[1, 0]), [("u", "y", "x", "preferred", None, 0)]),
]


@pytest.mark.parametrize("place", range(len(FORMS)))
def test_forms(place: int):
    row, want = FORMS[place]
    assert told(read([row])) == want


def test_ratings_are_kept_and_compared():
    rated = [("x", 4, 10), ("y", 2, 20), ("x", 1, 30), ("z", "up", None)]
    rows = [vote(response=text, rating=rating, time=time) for text, rating, time in rated]
    data = read(rows)
    assert data.ratings["rating"].to_pylist() == [4, 2, 1, 1]
    # The later rating of x counts for pairs: y above it, z level with it.
    got = {frozenset(one[1:3]): one[3:5] for one in told(data)}
    assert got == {
        frozenset("xy"): ("preferred", 1.0),
        frozenset("yz"): ("preferred", 1.0),
        frozenset("xz"): ("tie", None),
    }
    assert all(data.comparisons["rated"].to_pylist())
    assert data.meta["votes"] == {"rating": 4}


@pytest.mark.parametrize(
    ("time", "want"),
    [
        ("2026-07-01T12:30:00Z", "2026-07-01 12:30:00+00:00"),
        ("2026-07-01T14:30:00+02:00", "2026-07-01 12:30:00+00:00"),
        ("2026-07-01", "2026-07-01 00:00:00+00:00"),
        (1_700_000_000, "2023-11-14 22:13:20+00:00"),
        (1_700_000_000_000, "2023-11-14 22:13:20+00:00"),
        (1_700_000_000.25, "2023-11-14 22:13:20.250000+00:00"),
    ],
)
def test_times(time: Any, want: str):
    assert str(read([vote(chosen="x", rejected="y", time=time)]).comparisons["time"][0].as_py()) == want


BAD = [
    (vote(chosen="x", rejected="y", strength=0), "strength", "is 0; give a number above 0, or outcome 'tie'"),
    (vote(chosen="x", rejected="y", strength=1, outcome="tie"), "strength", "given with outcome 'tie'"),
    (vote(chosen="x", rejected="y", strength=1, margin=1), "margin", "given beside strength"),
    (vote(chosen="x", rejected="y", outcome="draw"), "outcome", "use one of preferred, tie, both_bad, skipped"),
    (vote(chosen="x", rejected="y", time="yesterday"), "time", "is 'yesterday'; write it as in"),
    (vote(chosen="x", rejected="y", time=-5), "time", "is -5"),
    (vote(responses=["x", "y"], preference=True), "preference", "is true or false; write a number"),
    (vote(responses=["x", "y"], preference=1e60), "preference", "no number that float32 can hold"),
    (vote(responses=["x", "y"], preference=1e-60), "preference", "no number that float32 can hold"),
    (vote(responses=["x", "y"], winner=1), "winner", "is 1; write a, b, tie, both_bad or skipped"),
    (vote(responses=["x", "y"]), "preference", "missing; say once which is better"),
    (vote(responses=["x", "y"], winner="a", preference=1), "preference", "given beside winner"),
    (vote(responses=["x", "y", "z"], winner="a"), "responses", "holds 3 responses; give two, or a ranking"),
    (vote(responses=["x", "x"], winner="a"), "responses", "holds a response twice"),
    (vote(ranking=["x"]), "ranking", "holds 1 responses; rank 2 to 100"),
    (vote(responses=["x", "y"], ranking=[0, 0]), "ranking", "is no order of the responses"),
    (vote(response="x"), "rating", "missing; give a number, true or false"),
    (vote(response="x", rating=float("nan")), "rating", "no number that float32 can hold"),
    (vote(response="x", rating="good"), "rating", "is a string; write a number"),
    (vote(rating=3), "response", "missing; give the answer"),
    (vote(chosen=[{"role": "assistant", "content": [{"type": "image"}]}], rejected="y"), "chosen", "that is no text"),
    (vote(chosen=[{"role": "assistant", "name": "x"}], rejected="y"), "chosen", "message 0 is no {role, content}"),
]


@pytest.mark.parametrize("place", range(len(BAD)))
def test_bad_forms(place: int, tmp_path: Path):
    row, field, words = BAD[place]
    with pytest.raises(UserError) as caught:
        read([vote(chosen="x", rejected="y"), row])
    assert f"votes:2, field {field!r}: " in str(caught.value)
    assert words in str(caught.value)
    assert "(1 fault)" in str(caught.value)
    kept = read([vote(chosen="x", rejected="y"), row], on_bad_row="drop", bad_rows=tmp_path / "bad.jsonl")
    assert (kept.comparisons.num_rows, kept.meta["dropped_rows"]) == (1, 1)
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 2
    assert json.loads(line)["faults"][0]["field"] == field


def test_dropped_rows_are_counted_listed_and_hold_no_text(tmp_path: Path, capsys: pytest.CaptureFixture):
    file, listed = tmp_path / "a.jsonl", tmp_path / "bad.jsonl"
    rows = [vote(chosen="x", rejected="y"), vote(chosen="secret", rejected="secret"), vote(chosen=" ", rejected="y")]
    rows += [vote(chosen="x", rejected="z", group="g"), vote(chosen="x", rejected="z", group="my secret")]
    file.write_text("\n".join([*map(json.dumps, rows), "{secret"]))
    data = read(file, on_bad_row="drop", bad_rows=listed)
    assert data.meta["dropped_rows"] == 4
    assert sum(data.meta["dropped"].values()) == 4
    assert [json.loads(line)["line"] for line in listed.read_text().splitlines()] == [2, 3, 5, 6]
    assert "secret" not in listed.read_text() + json.dumps(data.meta)
    assert "dropped 4 of 6 rows" in capsys.readouterr().err
    with pytest.raises(UserError, match="bad rows"):
        read(rows[1:3], on_bad_row="drop")
    with pytest.raises(UserError, match="on_bad_row: is 'skip'; use error or drop"):
        read(rows, on_bad_row="skip")
    read(rows[:1], on_bad_row="drop", bad_rows=listed)
    assert not listed.exists()


def arrow(table: pa.Table, open_: Any) -> bytes:
    sink = io.BytesIO()
    with open_(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def files() -> dict[str, bytes]:
    """The rows in every format, by file name."""
    lines, table = "".join(json.dumps(row) + "\n" for row in ROWS), pa.Table.from_pylist(ROWS)
    sinks = {name: io.BytesIO() for name in ("csv", "parquet", "feather")}
    pyarrow.csv.write_csv(table, sinks["csv"])
    pq.write_table(table, sinks["parquet"])
    feather.write_feather(table, sinks["feather"])
    separated = sinks["csv"].getvalue()
    return {
        "a.jsonl": lines.encode(),
        "crlf.jsonl": lines.replace("\n", "\r\n").encode(),
        "mac.jsonl": lines.replace("\n", "\r").encode(),
        "utf16.jsonl": lines.encode("utf-16"),
        "utf16le.txt": lines.encode("utf-16-le"),
        "packed.jsonl": gzip.compress(lines.encode()),
        "array.json": json.dumps(ROWS).encode(),
        "indented.json": json.dumps(ROWS, indent=2).encode(),
        "values.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
        "a.csv": separated,
        "no_ending": separated,
        "bom.csv": b"\xef\xbb\xbf" + separated,
        "utf16.csv": separated.decode().encode("utf-16"),
        "a.csv.gz": gzip.compress(separated),
        "a.parquet": sinks["parquet"].getvalue(),
        "packed.parquet": gzip.compress(sinks["parquet"].getvalue()),
        "a.feather": sinks["feather"].getvalue(),
        "a.arrow": arrow(table, pa.ipc.new_file),
        "stream.arrow": arrow(table, pa.ipc.new_stream),
    }


@pytest.mark.parametrize("name", files())
def test_every_format_is_the_same_votes(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(files()[name])
    assert told(read(tmp_path / name)) == told(read(ROWS))


def test_folders(tmp_path: Path, capsys: pytest.CaptureFixture):
    table = pa.Table.from_pylist(ROWS)
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    assert told(read(tmp_path / "saved")) == told(read(ROWS))
    holes = table.set_column(4, "strength", pa.array([float("nan")] * 12))
    datasets.Dataset(holes).save_to_disk(str(tmp_path / "holes"))
    assert read(tmp_path / "holes").comparisons["strength"].null_count == 12
    both: Any = {"train": datasets.Dataset(table), "test": datasets.Dataset(table)}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "parts"))
    assert read(tmp_path / "parts").comparisons["split"].to_pylist() == ["train"] * 12 + ["test"] * 12
    (tmp_path / "mixed").mkdir()
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        (tmp_path / "mixed" / name).write_bytes(files()[name])
    (tmp_path / "mixed" / "README.md").write_text("words")
    capsys.readouterr()
    assert read(tmp_path / "mixed").comparisons.num_rows == 36
    assert "left aside 1 (README.md)" in capsys.readouterr().err
    preferences.save(read(ROWS), tmp_path / "tables")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"%PDF-1.4", "is a PDF"),
        (b"PK\x03\x04....xl/workbook.xml", "is an Excel workbook; save it as CSV"),
        (b"PK\x03\x04....", "is a zip archive; unpack it first"),
        (b"SQLite format 3\x00", "is an SQLite database; sqlite3 -json"),
        (b"\x80\x04\x95....", "is a Python pickle, which is never opened"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"\x28\xb5\x2f\xfd....", "is packed by zstd"),
        (b"a sentence\nand another\n", "neither JSON, nor a table"),
        (bytes(range(256)), "neither JSON, nor a table"),
        (b"a,b\n1,2\n", "no votes in columns 'a', 'b'; say which they are with columns"),
        (b'a,a\n"1",2\n', "the header names ['a'] twice"),
        (b'user,prompt,chosen,rejected\nu,p,"x\ny,z\n', "no row from line 2 to 3"),
        (b'[{"user": "u"}, {"user"', "damaged at line 1"),
        (b"PAR1....", "damaged after 0 rows of Parquet"),
        (b"\x1f\x8b....", "cut short or not gzip"),
    ],
)
def test_other_formats_are_named(start: bytes, words: str, tmp_path: Path):
    (tmp_path / "votes.jsonl").write_bytes(start)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "votes.jsonl")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_columns_by_option_and_by_guess(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "a.csv"
    file.write_text("Annotator ID,question,response_a,response_b,label,note\n7,q,x,y,b,n\n")
    data = read(file)
    assert told(data) == [("7", "y", "x", "preferred", None, None)]
    assert data.meta["ignored_fields"] == {"note": 1}
    assert data.meta["columns"]["user"] == "Annotator ID"
    said = capsys.readouterr().err
    assert "reads 'Annotator ID' as user, 'response_a'" not in said
    assert "'Annotator ID' as user" in said
    assert "'label' as winner" in said
    file.write_text("who,ask,good,bad\nu,q,[1],y\n")
    for columns in (
        "user=who,prompt=ask,chosen=good,rejected=bad",
        dict(user="who", prompt="ask", chosen="good", rejected="bad"),
    ):
        assert told(read(file, columns=columns)) == [("u", "[1]", "y", "preferred", None, None)]
    with pytest.raises(UserError, match="no column 'x'; there are 'who'"):
        read(file, columns="user=x")
    with pytest.raises(UserError, match="columns: no field 'usr'; there are user"):
        read(file, columns="usr=who")
    with pytest.raises(UserError, match="not of the form user=annotator"):
        read(file, columns="user")


def said(text: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "p"}, {"role": "assistant", "content": text, **more}]


ARGILLA = {"fields": {"prompt": "p", "response1": "x", "response2": "y"}}
TOOLS: dict[str, tuple[list[Any], list[tuple]]] = {
    "argilla 2": (
        [
            {
                **ARGILLA,
                "responses": {
                    "best": [
                        {"value": ["response2", "response1"], "user_id": "a"},
                        {"value": ["response1", "response2"], "user_id": "b", "status": "draft"},
                    ]
                },
            }
        ],
        [("a", "y", "x", "preferred", None, 0)],
    ),
    "argilla 2, flat": (
        [
            {
                "prompt": "p",
                "response-1": "x",
                "response-2": "y",
                "best.responses": ["response_1", "tie"],
                "best.responses.users": ["a", "b"],
                "best.responses.status": ["submitted", "submitted"],
                "why.responses": ["so"],
                "why.responses.users": ["a"],
            }
        ],
        [("a", "x", "y", "preferred", None, None), ("b", "x", "y", "tie", None, None)],
    ),
    "argilla 1": (
        [
            {
                **ARGILLA,
                "responses": [
                    {
                        "user_id": "a",
                        "status": "submitted",
                        "values": {
                            "best": {"value": [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]}
                        },
                    }
                ],
            }
        ],
        [("a", "x", "y", "tie", None, None)],
    ),
    "label studio": (
        [
            {
                "data": {"prompt": "p", "answer1": "x", "answer2": "y"},
                "annotations": [
                    {
                        "completed_by": {"id": 7, "email": "a@b.c"},
                        "result": [{"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "right"}}],
                    },
                    {"completed_by": 5, "was_cancelled": True, "result": []},
                    {"completed_by": 5, "result": [{"type": "pairwise", "value": {"selected": "left"}}]},
                    {"completed_by": 5, "result": []},
                ],
            }
        ],
        [
            ("a@b.c", "y", "x", "preferred", None, None),
            ("5", "x", "y", "skipped", None, None),
            ("5", "x", "y", "preferred", None, None),
        ],
    ),
    "label studio, short": (
        [{"prompt": "p", "text1": "x", "text2": "y", "pw": {"selected": "left"}, "annotator": 4, "annotation_id": 9}],
        [("4", "x", "y", "preferred", None, None)],
    ),
    "arena": (
        [
            {
                "winner": "model_b",
                "judge": "j",
                "conversation_a": said("x"),
                "conversation_b": said("y"),
                "tstamp": 1e9,
            },
            {
                "winner": "tie (bothbad)",
                "judge": "k",
                "conversation_a": json.dumps(said("x")),
                "conversation_b": json.dumps(said("y")),
            },
            {"winner": "tie", "judge": "k", "conversation_a": said("x") * 2, "conversation_b": said("y") * 2},
        ],
        [("j", "y", "x", "preferred", None, None), ("k", "x", "y", "both_bad", None, None)],
    ),
}


@pytest.mark.parametrize("name", TOOLS)
def test_exports_of_tools(name: str, tmp_path: Path):
    records, want = TOOLS[name]
    (tmp_path / "a.json").write_text(json.dumps(records))
    data = read(tmp_path / "a.json")
    assert told(data) == want
    asked = [[message["content"] for message in prompt] for prompt in data.responses["prompt"].to_pylist()]
    assert asked == [["p"]] * data.num_responses


def test_what_tools_have_beside_votes_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    counts = {}
    for name, (records, _) in TOOLS.items():
        counts[name] = read(records).meta["left_out"]
    assert counts["argilla 2"] == {"answers with status draft": 1}
    assert counts["argilla 2, flat"] == {"answers to questions that are no votes": 1}
    assert counts["label studio"] == {"annotations without a vote": 1}
    assert counts["arena"] == {"votes on dialogues that part before the last reply": 1}
    assert "answers with status draft (1)" in capsys.readouterr().err


def test_a_log_of_fastchat_needs_to_be_told_who_voted():
    state = {"roles": ["USER", "ASSISTANT"], "messages": [["USER", "p"], ["ASSISTANT", "x"]], "offset": 0}
    other = {**state, "messages": [["USER", "p"], ["ASSISTANT", "y"]]}
    log: list[Any] = [{"type": "chat", "state": state}, {"type": [1]}]
    log += [{"type": "rightvote", "states": [state, other], "ip": "1.2.3.4"}]
    assert told(read(log, columns={"user": "ip"})) == [("1.2.3.4", "y", "x", "preferred", None, None)]
    with pytest.raises(UserError, match="field 'user': missing"):
        read(log)


def test_every_field_of_a_message_is_kept():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "A"}}}
    prompt = [
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": "22", "note": None},
    ]
    other = json.loads(json.dumps(prompt).replace('"A"', '"B"'))
    answer = [{"role": "assistant", "content": "x", "reasoning_content": "hm"}]
    data = read([vote(prompt=one, chosen=answer, rejected="y") for one in (prompt, other)])
    assert data.num_responses == 4
    held = data.responses.to_pylist()
    assert [json.loads(message["extra"] or "{}") for message in held[0]["prompt"]] == [
        {},
        {"tool_calls": [call]},
        {"name": "weather"},
    ]
    assert [one["extra"] for one in held] == ['{"reasoning_content": "hm"}', None] * 2


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("\n\nHuman: Hi\n\nAssistant: A", "\n\nHuman: Hi\n\nAssistant: B", ["Hi"], ["A", "B"]),
        (
            "\n\nHuman: Hi\n\nAssistant: So?\n\nHuman: Yes\n\nAssistant: A\n\nB",
            "\n\nHuman: Hi\n\nAssistant: So?\n\nHuman: Yes\n\nAssistant: C",
            ["Hi", "So?", "Yes"],
            ["A\n\nB", "C"],
        ),
        ("Question?\nAnswer one", "Question?\nAnswer two", ["Question?"], ["Answer one", "Answer two"]),
    ],
)
def test_whole_dialogues_as_texts(chosen: str, rejected: str, prompt: list[str], answers: list[str]):
    data = read([{"user": "u", "chosen": chosen, "rejected": rejected}])
    held = data.responses.to_pylist()
    assert sorted(one["text"] for one in held) == answers
    assert [message["content"] for message in held[0]["prompt"]] == prompt
    assert sum(data.meta["guessed"].values()) == 1


def test_texts_that_share_no_line_need_a_prompt():
    with pytest.raises(UserError, match="field 'prompt': missing; give the prompt, or whole dialogues"):
        read([{"user": "u", "chosen": "The answer is 5", "rejected": "The answer is 6"}])


def test_vote_rows_tell_what_they_leave_out():
    rows = [
        vote(chosen="x", rejected="y", strength=2),
        vote(responses=["x", "y"], outcome="tie"),
        vote(chosen="x", rejected="y", outcome="skipped"),
        vote(ranking=["x", "y", "z"]),
        vote(response="x", rating=1),
        vote(response="z", rating=3),
    ]
    plain, all_ = vote_rows(rows), vote_rows(rows, ties=True)
    assert plain.unused == "not used: 1 ties and 1 skipped pairs"
    assert all_.unused == "not used: 1 skipped pairs"
    assert all_.comparisons.tie.tolist() == [False, True, False, False, False, False]
    assert all_.comparisons.choice.tolist() == [-1, -1, 0, 0, 1, -1]
    np.testing.assert_array_equal(all_.comparisons.strength, [2, *[np.nan] * 4, 2])
    texts = all_.responses["text"].to_pylist()
    assert list(zip(texts[:6], texts[6:], strict=True))[2:] == [("x", "y"), ("x", "z"), ("y", "z"), ("z", "x")]
    assert all_.rated.tolist() == [False] * 5 + [True]
    assert len(plain.users) == 5
    with pytest.raises(UserError, match="no comparison to learn from: not used: 1 ties"):
        vote_rows(rows[1:2])


def test_skipped_and_tied_votes_are_no_test():
    rows = [vote(prompt=f"p{i}", responses=["x", "y"], winner="skip" if i % 2 else "a") for i in range(12)]
    data = read_votes(rows, test_fraction=0.3)
    tested = data.comparisons.filter(pa.array(np.asarray(data.comparisons["split"]) == "test"))
    assert "preferred" in tested["outcome"].to_pylist()


@pytest.mark.parametrize("name", damage.FORMATS)
def test_damaged_files(name: str, tmp_path: Path):
    """A part of `python -m experiments.bench fuzz`."""
    counts = fuzz.run(name, 12, str(tmp_path / "failures"), start=20_000)
    assert {failure: counts[failure] for failure in fuzz.FAILURES} == dict.fromkeys(fuzz.FAILURES, 0)
    assert counts["read_whole"] + counts["refused"] == counts["files"]


def test_the_slow_reader_finds_a_wrong_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = reader.checked_row
    monkeypatch.setattr(reader, "checked_row", lambda where, *rest: whole(where, *rest) if ":1" not in where else None)
    assert fuzz.run("JSON lines", 12, str(tmp_path / "failures"), start=20_000)["wrong_counts"]
    assert list((tmp_path / "failures").glob("*.bin"))
