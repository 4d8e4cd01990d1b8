"""Tables: what they must hold, how they are kept, what is read out of them."""

import itertools
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.data import preferences as tables
from pref_jax.data import schema as checks
from pref_jax.data.preferences import Preferences
from pref_jax.errors import UserError
from pref_jax.files import read_json, write_json

META = {"source": "test", "licence": "none", "rule": "by hand", "seed": 7}


def ask(text: str) -> list[dict[str, str | None]]:
    return [{"role": "user", "content": text, "extra": None}]


def columns() -> dict[str, dict[str, list]]:
    """Two seen users and one unseen, two prompts with two answers each."""
    return {
        "users": {"user_id": ["ann", "bob", "cem"], "group": ["x", None, "x"], "seen": [True, True, False]},
        "responses": {
            "response_id": ["r0", "r1", "r2", "r3"],
            "prompt": [ask("p"), ask("p"), ask("q"), ask("q")],
            "text": ["yes", "no", "yes", "no"],
            "extra": [None] * 4,
        },
        "comparisons": {
            "user": [0, 0, 1, 1, 2, 2],
            "chosen": [0, 2, 1, 3, 0, 2],
            "rejected": [1, 3, 0, 2, 1, 3],
            "split": ["train", "test", "train", "validation", "train", "test"],
            "controversial": [True, None, False, True, None, False],
            "outcome": ["preferred"] * 6,
            "strength": [1.5, None, None, None, None, None],
            "choice": [None] * 6,
            "rated": [False] * 6,
            "time": [None] * 6,
        },
        "ratings": {"user": [0], "response": [3], "rating": [4.0], "split": ["train"], "time": [None]},
    }


def make(parts: dict[str, dict[str, list]] | None = None) -> Preferences:
    parts = columns() if parts is None else parts
    found = {
        name: pa.table(part, schema=pa.schema([field for field in checks.SCHEMAS[name] if field.name in part]))
        for name, part in parts.items()
    }
    return tables.build(**found, meta=META)


def same(one: Preferences, other: Preferences) -> bool:
    return one.meta == other.meta and all(getattr(one, name).equals(getattr(other, name)) for name in checks.SCHEMAS)


def test_build_and_read():
    built = make()
    assert (built.num_users, built.num_responses, built.groups) == (3, 4, ["x", None, "x"])
    np.testing.assert_array_equal(built.seen, [True, True, False])
    pairs = built.pairs(("train", "test"), seen=True)
    assert [list(column) for column in pairs[:5]] == [[0, 0, 1], [0, 2, 1], [1, 3, 0], [1, -1, 0], [0, 1, 2]]
    assert [column.dtype.name for column in pairs[:5]] == ["int32", "int32", "int32", "int8", "int64"]
    assert list(built.pairs("train", seen=False).row) == [4]
    assert len(built.pairs("validation", seen=False).user) == 0
    assert len(built.pairs(()).user) == 0
    counts = {"users": 3, "seen_users": 2, "unseen_users": 1, "responses": 4, "comparisons": 6}
    assert built.meta == {
        "format_version": 2,
        **META,
        "counts": {**counts, "train": 3, "validation": 1, "test": 2, "ratings": 1},
    }
    with pytest.raises(UserError, match=r"unknown split 'dev'; use train, validation, test"):
        built.pairs(("train", "dev"))


def test_build_mends_harmless_types():
    parts = columns()
    users = pa.table({**parts["users"], "group": pa.nulls(3), "age": [1, 2, 3]})
    responses = pa.table({**parts["responses"], "text": pa.array(parts["responses"]["text"], pa.large_string())})
    split = pa.array(parts["comparisons"]["split"]).dictionary_encode()
    comparisons = pa.table({**parts["comparisons"], "split": split, "controversial": pa.nulls(6)})
    built = tables.build(users, responses, comparisons, {"options": (1, 2)})
    for name, schema in checks.SCHEMAS.items():
        table = getattr(built, name)
        assert table.select(schema.names).schema.types == schema.types
    assert built.users["age"].to_pylist() == [1, 2, 3]
    assert built.meta["options"] == [1, 2]
    assert built.meta["licence"] == "unknown"
    assert set(built.pairs("train").controversial) == {-1}


def test_save_and_load(tmp_path: Path):
    built = make()
    tables.save(built, tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "comparisons.arrow",
        "meta.json",
        "ratings.arrow",
        "responses.arrow",
        "users.arrow",
    ]
    assert same(tables.load(tmp_path / "set"), built)
    # Saving what is mapped from the same folder must not pull the ground away.
    loaded = tables.load(tmp_path / "set", validate=False)
    tables.save(loaded, tmp_path / "set")
    assert same(loaded, built)
    assert same(tables.load(tmp_path / "set"), built)


def test_a_folder_without_fields_of_messages_is_read(tmp_path: Path):
    built = make()
    tables.save(built, tmp_path / "set")
    old = pa.struct([("role", pa.string()), ("content", pa.string())])
    table = built.responses.drop_columns("extra")
    table = table.set_column(1, "prompt", pa.array([ask("p")] * 2 + [ask("q")] * 2, pa.list_(old)))
    feather.write_feather(table, str(tmp_path / "set" / "responses.arrow"), compression="uncompressed")
    read = tables.load(tmp_path / "set").responses
    assert read.select(built.responses.column_names).equals(built.responses)


def test_other_readers(tmp_path: Path):
    built = make()
    tables.save(built, tmp_path / "set")
    for name in checks.SCHEMAS:
        file = str(tmp_path / "set" / f"{name}.arrow")
        rows = getattr(built, name).to_pylist()
        frame = pd.read_feather(file)
        assert len(frame) == len(rows)
        assert list(frame.columns) == checks.SCHEMAS[name].names
        assert list(datasets.Dataset(getattr(tables.load(tmp_path / "set"), name))) == rows
        cache = str(tmp_path / "cache")
        read = datasets.load_dataset("arrow", data_files=file, split="train", cache_dir=cache)
        assert list(read) == rows
    frame = pd.read_feather(tmp_path / "set" / "responses.arrow")
    assert list(frame["prompt"].iloc[2]) == ask("q")


def test_load_maps_memory(tmp_path: Path):
    parts = columns()
    parts["responses"]["text"] = [text * 1_000_000 for text in "abcd"]
    tables.save(make(parts), tmp_path / "set")
    before = pa.total_allocated_bytes()
    loaded = tables.load(tmp_path / "set")
    assert pa.total_allocated_bytes() - before < 100_000
    assert loaded.responses["text"][3].as_py() == "d" * 1_000_000


FAULTS = {
    "split word": (("comparisons", "split", 3, "dev"), "comparisons row 3 ('dev'): unknown split"),
    "tie": (("comparisons", "rejected", 1, 2), "comparisons row 1: chosen equals rejected"),
    "prompts": (("comparisons", "rejected", 1, 0), "comparisons row 1: chosen and rejected answer different prompts"),
    "range": (
        ("comparisons", "chosen", 0, 4),
        "comparisons row 0: column 'chosen' out of range; use row numbers of re",
    ),
    "negative": (("comparisons", "user", 5, -1), "comparisons row 5: column 'user' out of range"),
    "null index": (("comparisons", "user", 4, None), "comparisons row 4: column 'user' is null"),
    "null split": (("comparisons", "split", 4, None), "comparisons row 4: column 'split' is null"),
    "idle user": (("comparisons", "split", 4, "test"), "users row 2 ('cem'): no training pair"),
    "user twice": (("users", "user_id", 1, "ann"), "users row 1 ('ann'): user_id used before"),
    "no name": (("users", "user_id", 1, " "), "users row 1: user_id is empty"),
    "null seen": (("users", "seen", 0, None), "users row 0: column 'seen' is null"),
    "response twice": (("responses", "response_id", 3, "r0"), "responses row 3 ('r0'): response_id used before"),
    "blank": (("responses", "text", 2, "\n\t\u00a0"), "responses row 2: text is empty"),
    "same text": (("responses", "text", 1, "yes"), "responses row 1: same text under the same prompt"),
    "null text": (("responses", "text", 1, None), "responses row 1: column 'text' is null"),
    "no message": (("responses", "prompt", 3, []), "responses row 3: prompt has no message"),
    "null prompt": (("responses", "prompt", 3, None), "responses row 3: column 'prompt' is null"),
    "role": (("responses", "prompt", 1, [{"role": "bot", "content": "p"}]), "responses row 1: prompt has an unknown"),
    "content": (("responses", "prompt", 0, [{"role": "user", "content": None}]), "responses row 0: prompt has a mess"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault(name: str):
    (table, column, row, value), message = FAULTS[name]
    parts = columns()
    parts[table][column][row] = value
    with pytest.raises(UserError) as caught:
        make(parts)
    assert message in str(caught.value)


def test_all_faults_at_once():
    parts = columns()
    chosen = ["split word", "tie", "negative", "user twice", "blank", "role"]
    for (table, column, row, value), _ in (FAULTS[name] for name in chosen):
        parts[table][column][row] = value
    with pytest.raises(UserError) as caught:
        make(parts)
    for name in chosen:
        assert FAULTS[name][1] in str(caught.value)


def test_long_lists_of_rows_are_cut():
    parts = columns()
    parts["comparisons"] = {name: column * 10 for name, column in parts["comparisons"].items()}
    parts["comparisons"]["rejected"] = parts["comparisons"]["chosen"]
    with pytest.raises(UserError, match=r"rows 0, 1, 2, 3, 4 and 55 more: chosen equals rejected"):
        make(parts)


@pytest.mark.parametrize("word", ["train", "test"])
def test_empty_split(word: str):
    parts = columns()
    parts["comparisons"]["split"] = ["test" if word == "train" else "train"] * 6
    del parts["ratings"]
    with pytest.raises(UserError, match=f"no pair has split '{word}'"):
        make(parts)


def test_wrong_columns():
    users, responses, comparisons, _ = (
        pa.table(columns()[name], schema=schema) for name, schema in checks.SCHEMAS.items()
    )
    floats = pa.array([0.0, 0.0, 1.0, 1.0, 2.0, float("nan")])
    large = pa.array([0, 2, 1, 3, 0, 2**40])
    with pytest.raises(UserError) as caught:
        tables.build(
            users.drop_columns(["seen"]),
            responses.set_column(2, "text", pa.array([1, 2, 3, 4])),
            comparisons.set_column(0, "user", floats).set_column(1, "chosen", large),
            META,
        )
    for message in (
        "users, column 'seen': missing; add it as bool",
        "responses, column 'text': has type int64; give it as string",
        "comparisons, column 'user': has type double and holds NaN",
        "comparisons, column 'chosen': has type int64; give it as int32",
    ):
        assert message in str(caught.value)


def test_empty_tables():
    with pytest.raises(UserError) as caught:
        tables.build(checks.USERS.empty_table(), checks.RESPONSES.empty_table(), checks.COMPARISONS.empty_table(), META)
    for message in ("users: no rows", "responses: no rows", "no pair has split 'train'", "no pair has split 'test'"):
        assert message in str(caught.value)


def test_validate_checks_what_was_not_built():
    built = make()
    bad = Preferences(users=built.users.slice(0, 2), responses=built.responses, comparisons=built.comparisons, meta={})
    tables.validate(built)
    with pytest.raises(UserError, match="column 'user' out of range; use row numbers of users, 0 to 1"):
        tables.validate(bad)


def test_load_errors(tmp_path: Path):
    folder = tmp_path / "set"

    def fails(match: str, **options: bool) -> None:
        with pytest.raises(UserError, match=match):
            tables.load(folder, **options)

    fails("no such folder; prepare the data first")
    tables.save(make(), folder)
    whole = (folder / "responses.arrow").read_bytes()
    for part in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], b"version https://git-lfs"):
        (folder / "responses.arrow").write_bytes(part)
        fails("responses.arrow: cut short or no Arrow file", validate=False)
    (folder / "responses.arrow").unlink()
    fails("responses.arrow: no such file")
    (folder / "responses.arrow").write_bytes(whole)
    meta = read_json(folder / "meta.json")
    write_json(folder / "meta.json", {**meta, "format_version": 3})
    fails("format version 3 is newer than 2.*update pref_jax")
    write_json(folder / "meta.json", {"name": "other"})
    fails("no format_version")
    write_json(folder / "meta.json", {**meta, "counts": {"users": 4}})
    fails(r"users.arrow: 3 rows where meta.json counts 4")
    (folder / "meta.json").unlink()
    fails("meta.json: no such file")


def test_load_checks_content_unless_told(tmp_path: Path):
    built = make()
    broken = built.comparisons.set_column(2, "rejected", built.comparisons["chosen"])
    tables.save(
        Preferences(
            users=built.users, responses=built.responses, comparisons=broken, meta=built.meta, ratings=built.ratings
        ),
        tmp_path / "set",
    )
    with pytest.raises(UserError, match="chosen equals rejected"):
        tables.load(tmp_path / "set")
    assert tables.load(tmp_path / "set", validate=False).num_users == 3


def test_save_spares_other_folders(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        tables.save(make(), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "text.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    tables.save(make(), tmp_path / "empty")
    assert tables.load(tmp_path / "empty").num_users == 3


def test_save_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tables.save(make(), tmp_path / "set")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(tables, "write_json", fails)
    with pytest.raises(OSError, match="disk full"):
        tables.save(make(), tmp_path / "set")
    assert same(tables.load(tmp_path / "set"), make())
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(checks.ROLES),
            "content": st.sampled_from(["", "a", "b", "ab"]),
            "extra": st.sampled_from([None, "", "a"]),
        }
    ),
    max_size=3,
)


@given(st.lists(MESSAGES, max_size=30), st.integers(1, 4))
def test_prompt_ids_are_equality(prompts: list[list[dict[str, str]]], chunk: int):
    kind = checks.RESPONSES.field("prompt").type
    pieces = [prompts[start : start + chunk] for start in range(0, len(prompts), chunk)]
    ids = checks.prompt_ids(pa.chunked_array([pa.array(piece, kind) for piece in pieces], kind))
    assert len(ids) == len(prompts)
    assert set(ids) == set(range(len(set(ids))))
    for (i, one), (j, other) in itertools.combinations(enumerate(prompts), 2):
        assert (ids[i] == ids[j]) == (one == other)


@st.composite
def data_sets(draw) -> dict[str, dict[str, list]]:
    """Any valid data set: every user trains, someone tests, the rest is free."""
    num_users, num_prompts, answers = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(2, 4))
    pair = st.tuples(st.integers(0, num_prompts - 1), st.permutations(range(answers)))
    free = st.tuples(st.integers(0, num_users - 1), st.sampled_from(tables.SPLITS), pair)
    rows = [(user, "train", draw(pair)) for user in range(num_users)]
    rows += [(0, "test", draw(pair)), *draw(st.lists(free, max_size=20))]
    rows = draw(st.permutations(rows))
    flags = st.sampled_from([True, False, None])
    return {
        "users": {
            "user_id": [f"u{user}" for user in range(num_users)],
            "group": [draw(st.sampled_from(["x", "y", None])) for _ in range(num_users)],
            "seen": [draw(st.booleans()) for _ in range(num_users)],
        },
        "responses": {
            "response_id": [f"r{row}" for row in range(num_prompts * answers)],
            "prompt": [ask(f"p{row // answers}") for row in range(num_prompts * answers)],
            "text": [f"t{row % answers}" for row in range(num_prompts * answers)],
        },
        "comparisons": {
            "user": [user for user, _, _ in rows],
            "chosen": [prompt * answers + order[0] for _, _, (prompt, order) in rows],
            "rejected": [prompt * answers + order[1] for _, _, (prompt, order) in rows],
            "split": [word for _, word, _ in rows],
            "controversial": [draw(flags) for _ in rows],
        },
    }


@settings(max_examples=25, deadline=None)
@given(data_sets())
def test_round_trip_and_partition(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, dict[str, list]]):
    data = make(parts)
    folder = tmp_path_factory.mktemp("any") / "set"
    tables.save(data, folder)
    loaded = tables.load(folder)
    assert same(loaded, data)
    rows = [loaded.pairs(word, seen).row for word in tables.SPLITS for seen in (True, False)]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(data.comparisons.num_rows))


@settings(max_examples=50, deadline=None)
@given(data_sets())
def test_summary_against_plain_python(parts: dict[str, dict[str, list]]):
    data = make(parts)
    rows = data.comparisons.to_pylist()
    seen = data.users["seen"].to_pylist()
    summary = tables.summarise(data)
    assert summary["users"] == {"total": len(seen), "seen": sum(seen), "unseen": len(seen) - sum(seen)}
    assert summary["pairs"] == {
        "total": len(rows),
        **{word: sum(row["split"] == word for row in rows) for word in tables.SPLITS},
    }
    for name, words, kept in (
        ("all", tables.SPLITS, [0, 1]),
        ("train", ("train",), [0, 1]),
        ("seen", tables.SPLITS, [1]),
        ("unseen", tables.SPLITS, [0]),
    ):
        counts = [sum(row["user"] == user and row["split"] in words for row in rows) for user in range(len(seen))]
        counts = [count for count, flag in zip(counts, seen, strict=True) if flag in kept] or [0]
        expected = {"min": min(counts), "median": float(np.median(counts)), "max": max(counts)}
        assert summary["pairs_a_user"][name] == expected
    users: dict[int, set[int]] = {}
    for row in rows:
        for side in ("chosen", "rejected"):
            users.setdefault(row[side], set()).add(row["user"])
    sizes = [len(group) for group in users.values()]
    assert summary["sharing"]["mean_users"] == pytest.approx(sum(sizes) / len(sizes))
    assert summary["sharing"]["shared"] == pytest.approx(sum(size > 1 for size in sizes) / len(sizes))
    known = [row["controversial"] for row in rows if row["controversial"] is not None]
    assert summary["controversial"] == {"share": sum(known) / len(known) if known else None, "known": len(known)}
    assert sum(summary["groups"].values()) == len(seen)
    assert summary["prompts"] == len({row["prompt"][0]["content"] for row in data.responses.to_pylist()})


def test_large_tables_take_seconds():
    rng = np.random.default_rng(0)
    num_users, num_prompts, rows = 2_000, 5_000, 300_000
    prompt, side = rng.integers(0, num_prompts, rows), rng.integers(0, 2, rows)
    users = pa.table(
        {"user_id": [f"u{u}" for u in range(num_users)], "group": pa.nulls(num_users), "seen": [True] * 2000}
    )
    responses = pa.table(
        {
            "response_id": [f"r{row}" for row in range(2 * num_prompts)],
            "prompt": [ask(f"p{row // 2}") for row in range(2 * num_prompts)],
            "text": ["yes", "no"] * num_prompts,
            "extra": pa.nulls(2 * num_prompts),
        },
        schema=checks.RESPONSES,
    )
    comparisons = pa.table(
        {
            "user": np.arange(rows) % num_users,
            "chosen": 2 * prompt + side,
            "rejected": 2 * prompt + 1 - side,
            "split": np.where(np.arange(rows) < num_users, "train", rng.choice(tables.SPLITS, rows)),
            "controversial": pa.nulls(rows),
        }
    )
    start = time.perf_counter()
    built = tables.build(users, responses, comparisons, META)
    assert built.comparisons.num_rows == rows
    # It takes about 0.2 s; a loop over rows anywhere would take far longer than the limit.
    assert time.perf_counter() - start < 5, "build has become slow: look for a Python loop over comparisons"


def test_ties_and_skipped_pairs_come_when_asked_for():
    parts = columns()
    parts["comparisons"]["outcome"] = ["tie", "preferred", "both_bad", "skipped", "preferred", "preferred"]
    parts["comparisons"]["strength"] = [None] * 6
    parts["comparisons"]["split"][1] = "train"
    built = make(parts)
    assert built.pairs(("train", "validation")).row.tolist() == [1, 4]
    everything = built.pairs(("train", "validation"), ties=True)
    assert everything.row.tolist() == [0, 1, 2, 4]
    assert everything.tie.tolist() == [True, False, True, False]


def test_ratings_strengths_and_choices_are_read():
    parts = columns()
    parts["comparisons"] |= {"choice": [None, None, None, None, 0, None], "rated": [True] + [False] * 5}
    built = make(parts)
    found = built.pairs("train")
    np.testing.assert_array_equal(found.strength, np.array([1.5, np.nan, np.nan], np.float32))
    assert found.choice.tolist() == [-1, -1, 0]
    assert built.pairs("train", rated=False).row.tolist() == [2, 4]
    assert [column.tolist() for column in built.rated("train", seen=True)] == [[0], [3], [4.0]]
    assert not len(built.rated("test").user)


def test_columns_of_plain_preferences_may_be_left_out():
    parts = columns()
    plain = {name: parts["comparisons"][name] for name in ("user", "chosen", "rejected", "split", "controversial")}
    built = tables.build(parts["users"], parts["responses"], pa.table(plain), META)
    assert built.comparisons["outcome"].to_pylist() == ["preferred"] * 6
    assert not any(built.comparisons["rated"].to_pylist())
    assert built.ratings.num_rows == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": ["won"] + ["preferred"] * 5}, "unknown outcome"),
        ({"strength": [0.0] + [None] * 5}, "strength is not above 0"),
        ({"strength": [float("nan")] + [None] * 5}, "strength is not above 0"),
        ({"outcome": ["tie"] + ["preferred"] * 5}, "strength without a preference"),
        ({"choice": [0, None, 0, None, None, None]}, "rows of one choice differ"),
        ({"choice": [-2] + [None] * 5}, "choice is negative"),
    ],
)
def test_faults_of_votes(change, message):
    parts = columns()
    parts["comparisons"] |= change
    with pytest.raises(UserError, match=message):
        make(parts)


def test_faults_of_ratings():
    parts = columns()
    parts["ratings"] |= {"response": [9], "rating": [float("inf")], "split": ["dev"]}
    with pytest.raises(UserError) as caught:
        make(parts)
    for message in ("ratings row 0: column 'response' out of range", "rating is not finite", "unknown split"):
        assert message in str(caught.value)
