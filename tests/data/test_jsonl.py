"""Bring-your-own rows: every accepted form, every fault with its line, and the rule that splits."""

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.data import preferences as tables
from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.jsonl import reader, rows
from pref_jax.errors import UserError


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(user: Any = "u", prompt: Any = "p", chosen: Any = "yes", rejected: Any = "no", **more: Any) -> dict[str, Any]:
    return {"user": user, "prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def said(*contents: str) -> list[dict[str, str]]:
    """A dialogue that the user opens."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


def asked(text: str) -> list[dict[str, str | None]]:
    """A prompt as a table holds it."""
    return [{"role": "user", "content": text, "extra": None}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def spelled(data: Preferences) -> list[tuple]:
    """Comparisons with names and texts in place of numbers."""
    responses = data.responses.to_pylist()
    users = data.users["user_id"].to_pylist()
    return [
        (
            users[one["user"]],
            [message["content"] for message in responses[one["chosen"]]["prompt"]],
            responses[one["chosen"]]["text"],
            responses[one["rejected"]]["text"],
            one["split"],
        )
        for one in data.comparisons.to_pylist()
    ]


def test_all_forms_of_one_pair_are_one_pair(tmp_path: Path):
    forms = [
        row(),
        row(prompt=said("p"), chosen=answer("yes"), rejected=answer("no")),
        row(chosen=said("p", "yes"), rejected=said("p", "no")),
        row(prompt=said("p"), chosen="yes", rejected=answer("no")),
        {"user": "u", "chosen": said("p", "yes"), "rejected": said("p", "no")},
        {"user": "u", "prompt": None, "chosen": said("p", "yes"), "rejected": said("p", "no"), "split": None},
    ]
    file = write(tmp_path / "a.jsonl", [*forms, row(prompt="q", split="test", chosen="no", rejected="yes")])
    data = reader.read(file, validation_fraction=0, test_fraction=0, unseen_fraction=0)
    assert data.responses.to_pylist() == [
        {"response_id": "r0", "prompt": asked("p"), "text": "no", "extra": None},
        {"response_id": "r1", "prompt": asked("p"), "text": "yes", "extra": None},
        {"response_id": "r2", "prompt": asked("q"), "text": "no", "extra": None},
        {"response_id": "r3", "prompt": asked("q"), "text": "yes", "extra": None},
    ]
    assert spelled(data) == [("u", ["p"], "yes", "no", "train")] * 6 + [("u", ["q"], "no", "yes", "test")]
    assert data.meta["repeated_rows"] == 5
    assert data.meta["source"] == "jsonl: a.jsonl"


def test_the_order_of_rows_does_not_tell_who_was_chosen(tmp_path: Path):
    sides = [("a", "b", "train"), ("d", "c", "train"), ("e", "f", "test")]
    votes = [row("u", f"p{i}", one, two, split=split) for i, (one, two, split) in enumerate(sides)]
    turned = [{**vote, "chosen": vote["rejected"], "rejected": vote["chosen"]} for vote in votes]
    ours, theirs = (
        reader.read(write(tmp_path / name, rows), test_fraction=0, unseen_fraction=0)
        for name, rows in (("a.jsonl", votes), ("b.jsonl", turned))
    )
    assert ours.responses.equals(theirs.responses)
    assert ours.responses["text"].to_pylist() == list("abcdef")


def test_longer_dialogues(tmp_path: Path):
    system = [{"role": "system", "content": "be brief"}]
    rows = [
        {"user": "u", "chosen": system + said("a", "b", "c", "d"), "rejected": system + said("a", "b", "c", "e")},
        row(prompt=said("a", "b", "c"), split="test"),
    ]
    data = reader.read(write(tmp_path / "a.jsonl", rows), test_fraction=0, unseen_fraction=0)
    assert spelled(data) == [
        ("u", ["be brief", "a", "b", "c"], "d", "e", "train"),
        ("u", ["a", "b", "c"], "yes", "no", "test"),
    ]


def test_optional_fields_are_kept(tmp_path: Path):
    rows = [
        row("ann", split="train", group="x", controversial=True, score=3, origin="web"),
        row("ann", prompt="q", split="test", controversial=False),
        row("bob", split="train", seen=False, score=1),
        row("bob", prompt="q", split="validation", group="y"),
    ]
    data = reader.read(write(tmp_path / "a.jsonl", rows), unseen_fraction=0)
    assert data.users.to_pylist() == [
        {"user_id": "ann", "group": "x", "seen": True},
        {"user_id": "bob", "group": "y", "seen": False},
    ]
    assert data.comparisons["split"].to_pylist() == ["train", "test", "train", "validation"]
    assert data.comparisons["controversial"].to_pylist() == [True, False, None, None]
    assert data.meta["ignored_fields"] == {"score": 2, "origin": 1}
    assert data.meta["assigned"]["rows_with_given_split"] == 4
    assert data.meta["assigned"]["rows_assigned"] == 0


def test_blank_lines_byte_order_mark_and_gzip(tmp_path: Path):
    lines = [json.dumps(row(split="train")), "", json.dumps(row(prompt="ü", split="test"), ensure_ascii=False), "  "]
    raw = b"\xef\xbb\xbf" + "\r\n".join(lines).encode()
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(raw))
    plain, packed = (reader.read(tmp_path / name) for name in ("a.jsonl", "a.jsonl.gz"))
    assert spelled(plain) == spelled(packed) == [("u", ["p"], "yes", "no", "train"), ("u", ["ü"], "yes", "no", "test")]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(raw)[:-9])
    with pytest.raises(UserError, match="cut short or not gzip"):
        reader.read(tmp_path / "a.jsonl.gz")


BAD_ROWS = [
    (b"{", None, "not JSON"),
    (b'{"user": "\xff"}', None, "not UTF-8 (byte 0xff at column 11); save the file as UTF-8"),
    (rb'{"user": "u", "prompt": "\ud800", "chosen": "a", "rejected": "b"}', None, "holds half of a surrogate pair"),
    ([1], None, "holds a list; write one JSON object on each line"),
    (row(user=3), "user", "is a number; write it as a string"),
    (row(user=" "), "user", "is empty"),
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, "user", "missing; name who preferred the answer"),
    ({"user": "u", "chosen": "a", "rejected": "b"}, "prompt", "missing; give the prompt, or whole dialogues"),
    ({"user": "u", "prompt": "p", "rejected": "b"}, "chosen", "missing; give the answer"),
    (row(rejected=None), "rejected", "missing"),
    (row(chosen=7), "chosen", "is a number; write a string or a list of {role, content}"),
    (row(chosen=""), "chosen", "is empty; fill it in or drop the row"),
    (row(prompt=[]), "prompt", "is an empty list"),
    (row(rejected="yes"), "rejected", "equals chosen; drop the row"),
    (row(chosen=answer("no"), rejected="no"), "rejected", "equals chosen"),
    (row(prompt=[{"role": "bot", "content": "x"}]), "prompt", "message 0 has role 'bot'; use system, user"),
    (row(prompt=[*said("a", "b"), {"role": "user"}]), "prompt", "message 2 is no {role, content} of strings"),
    (row(prompt=said("a", " ", "c")), "prompt", "message 1 is empty"),
    (row(chosen=["yes"]), "chosen", "message 0 is no {role, content}"),
    (row(chosen=said("yes")), "chosen", "ends with a message of role 'user'"),
    (row(chosen=said("q", "yes")), "chosen", "holds 2 messages after the prompt"),
    ({"user": "u", "chosen": said("p", "a"), "rejected": said("q", "b")}, "prompt", "share no dialogue"),
    ({"user": "u", "chosen": answer("a"), "rejected": answer("b")}, "prompt", "share no dialogue"),
    (row(split="dev"), "split", "is 'dev'; use train, validation, test"),
    (row(split=1), "split", "is a number; write a string"),
    (row(group=["x"]), "group", "is a list; write a string"),
    (row(group=""), "group", "is empty"),
    (row(seen="yes"), "seen", "is a string; write true or false"),
    (b'{"user": "u", "prompt": "p", "chosen": "a", "chosen": "b", "rejected": "c"}', "", "'chosen' is named twice"),
    (b"[" * 10**5 + b"]" * 10**5, "", "not read (maximum recursion depth"),
    (b'{"user": ' + b"9" * 5000 + b"}", "", "not read (Exceeds the limit"),
]


@pytest.mark.parametrize("place", range(len(BAD_ROWS)))
def test_one_bad_row(tmp_path: Path, place: int):
    bad, field, message = BAD_ROWS[place]
    raw = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([json.dumps(row(prompt="a")).encode(), raw, json.dumps(row(prompt="b")).encode()]))
    with pytest.raises(UserError) as caught:
        reader.read(file)
    where = f"{file}:2" + (f", field {field!r}" if field else "")
    assert f"{where}: " in str(caught.value)
    assert message in str(caught.value)
    assert "(1 fault)" in str(caught.value)


def test_all_bad_rows_at_once(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    bad = [bad if isinstance(bad, bytes) else json.dumps(bad).encode() for bad, _, _ in BAD_ROWS[:15]]
    file.write_bytes(b"\n".join([*bad, json.dumps(row(user="", chosen=[], split="x")).encode()]))
    with pytest.raises(UserError) as caught:
        reader.read(file)
    for line in range(1, 16):
        assert f"{file}:{line}" in str(caught.value)
    for field in ("user", "chosen", "split"):
        assert f"{file}:16, field {field!r}" in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["user", "assistant", "train"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES | st.dictionaries(st.sampled_from(rows.FIELDS), VALUES, min_size=3), max_size=4))
def test_any_json_is_read_or_explained(tmp_path_factory: pytest.TempPathFactory, rows: list):
    file = write(tmp_path_factory.mktemp("any") / "a.jsonl", [row("x", "p"), row("x", "q"), *rows])
    # Anything but a UserError fails here.
    with contextlib.suppress(UserError):
        assert reader.read(file).comparisons.num_rows >= 2


def test_contradictions_about_users(tmp_path: Path):
    rows = [
        row("ann", group="x", split="train"),
        row("ann", prompt="q", group="y", split="test"),
        row("bob", seen=True, split="train"),
        row("bob", seen=False, split="train"),
        row("cem", prompt="q", split="test"),
        row("cem", prompt="q", split="validation"),
    ]
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as caught:
        reader.read(file)
    assert f"{file}:2, field 'group': 'y' for user 'ann', but 'x' at line 1; give a user one value" in str(caught.value)
    assert f"{file}:4, field 'seen': False for user 'bob', but True at line 3" in str(caught.value)
    assert f"{file}:5, field 'split': user 'cem' has no training pair; give the user a row" in str(caught.value)


def test_no_file_no_rows_bad_options(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.jsonl: no such file; check the path"):
        reader.read(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"no file of votes in this folder"):
        reader.read(tmp_path)
    with pytest.raises(UserError, match="no rows; give one JSON object a line"):
        reader.read(write(tmp_path / "a.jsonl", []))
    with pytest.raises(UserError) as caught:
        reader.read(tmp_path / "a.jsonl", test_fraction=1.0, unseen_fraction=float("nan"))
    assert "test_fraction: is 1.0" in str(caught.value)
    assert "unseen_fraction: is nan" in str(caught.value)


def test_nothing_to_test_on_is_said(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [row("ann"), row("bob", chosen="no", rejected="yes")])
    with pytest.raises(UserError, match="no vote can be kept for a test: nobody has votes on two different pairs"):
        reader.read(file)


def test_open_rows_follow_given_test_prompts(tmp_path: Path):
    rows = [row("ann", prompt="a", split="test"), row("ann", prompt="b", split="train"), row("bob", prompt="b")]
    rows += [row("bob", prompt="a"), row("bob", prompt="c", split="train"), row("ann", prompt="c")]
    data = reader.read(write(tmp_path / "a.jsonl", rows), validation_fraction=0, unseen_fraction=0)
    assert data.comparisons["split"].to_pylist() == ["test", "train", "train", "test", "train", "train"]


ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.booleans()), min_size=1, max_size=60)
FRACTIONS = st.sampled_from([0.0, 0.1, 0.3, 0.9])


@settings(max_examples=60, deadline=None)
@given(ROWS, FRACTIONS, FRACTIONS, FRACTIONS, st.integers(0, 5))
def test_the_rule(
    tmp_path_factory: pytest.TempPathFactory,
    votes: list,
    validation_fraction: float,
    test_fraction: float,
    unseen_fraction: float,
    seed: int,
):
    rows = [row(f"u{u}", f"p{p}", *(("a", "b") if first else ("b", "a"))) for u, p, first in votes]
    # One more user with two prompts keeps a test split possible: nobody else answers them.
    rows += [row("last", "x"), row("last", "y"), row("last", "z", split="test")]
    file = write(tmp_path_factory.mktemp("any") / "a.jsonl", rows)
    options = {
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "unseen_fraction": unseen_fraction,
        "seed": seed,
    }
    data = reader.read(file, **options)
    out = spelled(data)
    counts = data.meta["assigned"]
    kept = data.users["user_id"].to_pylist()
    assert [one[0] for one in out] == [one["user"] for one in rows if one["user"] in kept]
    assert counts["users_without_training"] == len({one["user"] for one in rows}) - len(kept)
    assert counts["rows_of_users_without_training"] == len(rows) - len(out)
    prompts = {word: {one[1][0] for one in out if one[4] == word} for word in tables.SPLITS}
    by_prompt = counts["split_by"] == "prompt"
    assert not (by_prompt and prompts["test"] & (prompts["train"] | prompts["validation"]))
    assert {one[0] for one in out if one[4] == "train"} == set(kept)
    unseen = {name for name, seen in zip(data.users["user_id"].to_pylist(), data.seen, strict=True) if not seen}
    assert not unseen & {one[0] for one in out if one[4] == "validation"}
    num_users = len({one["user"] for one in rows})
    expected = min(max(round(unseen_fraction * num_users), 1), num_users - 1) if unseen_fraction else 0
    assert expected - counts["users_without_training"] <= len(unseen) <= expected
    if not test_fraction:
        assert prompts["test"] == {"z"}
    if not validation_fraction:
        assert not prompts["validation"]
    assert not by_prompt or counts["prompts_drawn_for_test"] >= len(prompts["test"] - {"z"})
    assert (counts["rows_with_given_split"], counts["rows_assigned"]) == (1, len(rows) - 1)
    assert spelled(reader.read(file, **options)) == out


def test_fractions_are_met_on_plenty(tmp_path: Path):
    rows = [row(f"u{u}", f"p{(u * 7 + place) % 100}") for u in range(50) for place in range(20)]
    file = write(tmp_path / "a.jsonl", rows)
    data = reader.read(file, validation_fraction=0.1, test_fraction=0.2, unseen_fraction=0.2, seed=1)
    summary = tables.summarise(data)
    assert summary["users"] == {"total": 50, "seen": 40, "unseen": 10}
    assert data.meta["assigned"]["prompts_drawn_for_test"] == 20
    assert summary["pairs"]["test"] == pytest.approx(200, abs=40)
    kept = 800 - len(data.pairs("test", seen=True).user)
    assert summary["pairs"]["validation"] == round(0.1 * kept)
    assert summary["sharing"]["shared"] == 1
    other = reader.read(file, validation_fraction=0.1, test_fraction=0.2, unseen_fraction=0.2, seed=2)
    assert other.comparisons["split"] != data.comparisons["split"]
