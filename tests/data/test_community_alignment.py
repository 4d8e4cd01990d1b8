"""Community Alignment from a CSV written by hand in the public schema: pairs, dialogues, languages, traps."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from votes import check_seeds, dialogues

from pref_jax.data.sources import community_alignment
from pref_jax.errors import UserError

TURNS = ("first", "second", "third", "fourth")
EASY: dict[str, Any] = {"unseen_fraction": 0.3, "test_query_fraction": 0.3, "validation_fraction": 0.2, "min_votes": 1}
# A turn: prompt, four replies, the preferred one's letter.
Turn = tuple[str, tuple[str, str, str, str], str]


def dialogue(person: int | str, language: str, *turns: Turn) -> dict[str, str]:
    """A row of the file, with all of its columns; what is not there is an empty cell, pandas' way of saying null."""
    row: dict[str, str] = {"conversation_id": "1", "assigned_lang": language, "annotator_id": str(person)}
    for place, name in enumerate(TURNS):
        prompt, replies, letter = turns[place] if place < len(turns) else ("", ("",) * 4, "")
        row[f"{name}_turn_prompt"] = prompt
        row |= {f"{name}_turn_response_{one}": text for one, text in zip("abcd", replies, strict=True)}
        row[f"{name}_turn_preferred_response"] = f"response_{letter}" if letter else ""
        row[f"{name}_turn_feedback"] = ""
    row |= {"annotator_country": "italy", "annotator_age": "18-34", "is_pregenerated_first_prompt": "True"}
    return row | {"in_balanced_subset": "False", "in_balanced_subset_10": "False"}


def four(stem: str) -> tuple[str, str, str, str]:
    return (f"{stem} a", f"{stem} b", f"{stem} c", f"{stem} d")


def folder(root: Path, rows: list[dict[str, str]]) -> Path:
    root.mkdir(exist_ok=True)
    with (root / "community_alignment.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def usual() -> list[dict[str, str]]:
    """Three people answer the same six openings; who prefers b goes on to a second turn."""
    rows = []
    for person, letter in ((11, "a"), (12, "b"), (13, "a")):
        for n in range(6):
            more: list[Turn] = [(f"more {n}?", four(f"then {n}"), "d")] if letter == "b" else []
            rows.append(dialogue(person, "en", (f"ask {n}", four(f"say {n}"), letter), *more))
    return rows


def test_one_pair_for_each_reply_not_preferred(tmp_path: Path):
    data = community_alignment.read(folder(tmp_path / "a", usual()), context_pairs=100, **EASY)
    rows = dialogues(data)
    # By hand: 3 people x 6 openings x 3 pairs, and a second turn of one of them.
    assert data.comparisons.num_rows == data.meta["votes_in_source"] == 54 + 18
    assert Counter(row[0] for row in rows) == {"11": 18, "12": 36, "13": 18}
    assert sorted(row[1:4] for row in rows if row[0] == "12" and row[1][0] == "ask 3") == [
        (("ask 3",), "say 3 b", "say 3 a"),
        (("ask 3",), "say 3 b", "say 3 c"),
        (("ask 3",), "say 3 b", "say 3 d"),
        (("ask 3", "say 3 b", "more 3?"), "then 3 d", "then 3 a"),
        (("ask 3", "say 3 b", "more 3?"), "then 3 d", "then 3 b"),
        (("ask 3", "say 3 b", "more 3?"), "then 3 d", "then 3 c"),
    ]
    # Shared replies are one row: 24 of the first turns, 24 of the second.
    assert data.num_responses == 48
    tested = {row[1][0] for row in rows if row[4] == "test"}
    assert len(tested) == 2
    assert not tested & {row[1][0] for row in rows if row[4] != "test"}
    assert data.seen.tolist().count(False) == 1
    controversial = {
        (row[2], row[3]): pair["controversial"] for row, pair in zip(rows, data.comparisons.to_pylist(), strict=True)
    }
    assert controversial["say 0 a", "say 0 b"] is controversial["say 0 b", "say 0 a"] is True
    assert controversial["say 0 a", "say 0 c"] is False
    assert controversial["then 0 d", "then 0 a"] is None
    assert data.groups == ["en"] * 3
    assert not any(data.meta["filtered"].values())


def traps() -> list[dict[str, str]]:
    hindi: Turn = ("क्या? 🙂", (" हाँ\n", "नहीं<|end_of_text|>", "हाँ", ""), "a")
    gap: Turn = ("", four("gap"), "a")
    open_end: Turn = ("open", four("open"), "")
    return [
        *usual(),
        dialogue(21, "hi", hindi, ("और?", four("और"), "b")),
        dialogue(21, "en", ("ask 0", four("say 0"), "c")),
        dialogue(21, "fr", ("quoi", four("quoi"), "c")),
        # Turns that lack a prompt or a preference end what is known of their dialogue.
        dialogue(
            11, "en", ("before", four("before"), "a"), gap, ("late", four("late"), "b"), ("end", four("end"), "c")
        ),
        dialogue(11, "en", ("ask 1", four("say 1"), "a"), open_end, ("later", four("later"), "b")),
        # All replies are equal; the same vote again; its opposite.
        dialogue(13, "en", ("equal", ("=", "= ", "=", "="), "b")),
        dialogue(13, "en", ("ask 2", four("say 2"), "a")),
        dialogue(13, "en", ("ask 3", four("say 3"), "b")),
    ]


def test_everything_left_out_is_counted(tmp_path: Path):
    data = community_alignment.read(
        folder(tmp_path / "a", traps()), languages=("en", "hi"), context_pairs=100, seed=2, **EASY
    )
    found = data.meta["filtered"]
    users = {key: found.pop(key) for key in [key for key in found if key.startswith("users_")]}
    assert not users["users_under_min_votes"]
    lost = {found.pop(key) for key in ("votes_under_min_votes", "votes_of_users_without_training", "unused_context")}
    assert lost == {0}
    assert found == {
        "other_language": 3,
        "other_turns": 0,
        "no_preference": 3,
        # Two turns after the one without a prompt, one after the one without a preference.
        "after_gap": 9,
        # The empty reply, and the turn without a prompt.
        "missing_text": 1 + 3,
        # Once in Hindi, where white space differs, and three times where all are equal.
        "same_text": 1 + 3,
        # ask 1 and ask 2 again.
        "repeated": 6,
        # ask 3: a over b and b over a.
        "self_contradicting": 2,
    }
    assert data.comparisons.num_rows == data.meta["votes_in_source"] - sum(found.values())
    rows = dialogues(data)
    assert ("21", ("क्या? 🙂",), "हाँ", "नहीं") in {row[:4] for row in rows}
    assert ("21", ("क्या? 🙂", "हाँ", "और?"), "और b", "और a") in {row[:4] for row in rows}
    assert dict(zip(data.users["user_id"].to_pylist(), data.groups, strict=True)) == {
        "11": "en",
        "12": "en",
        "13": "en",
        "21": None,
    }
    assert not any("<|" in row["text"] for row in data.responses.to_pylist())


def test_languages_and_turns_are_chosen(tmp_path: Path):
    root = folder(tmp_path / "a", traps())
    english = community_alignment.read(root, languages=("en",), context_pairs=100, **EASY)
    assert english.meta["filtered"]["other_language"] == 9
    assert set(english.groups) == {"en"}
    second = community_alignment.read(root, turns=(2,), context_pairs=100, **{**EASY, "unseen_fraction": 0})
    # 12's six, and the Hindi one; after a gap there is no second turn.
    assert {len(row[1]) for row in dialogues(second)} == {3}
    assert second.meta["filtered"]["other_turns"] + second.meta["filtered"]["no_preference"] > 0
    with pytest.raises(UserError, match=r"no dialogue in de; there are en, fr, hi"):
        community_alignment.read(root, languages=("de", "en"))


def test_no_text_betrays_its_label(tmp_path: Path):
    rows = [dialogue(p, "en", (f"ask {n}", four(f" {n}"), "a")) for p in (1, 2) for n in range(8)]
    other = [row | {"first_turn_preferred_response": "response_c"} for row in rows]
    texts = []
    for name, file in (("a", rows), ("b", other)):
        data = community_alignment.read(folder(tmp_path / name, file), context_pairs=99, **EASY)
        texts.append({(str(row["prompt"]), row["text"]) for row in data.responses.to_pylist()})
    assert texts[0] == texts[1]


def test_one_annotator_with_thousands_of_rows(tmp_path: Path):
    rows = usual() + [dialogue(99, "en", (f"ask {n}", four(f"say {n}"), "abcd"[n % 4])) for n in range(1000)]
    data = community_alignment.read(folder(tmp_path / "a", rows), context_pairs=24, seed=1)
    known = Counter(row[4] for row in dialogues(data) if row[0] == "99")
    assert 500 <= known["test"] <= 700
    seen = data.seen[data.users["user_id"].to_pylist().index("99")]
    assert known["train"] > 2000 if seen else known["train"] == 24
    assert data.meta["filtered"]["unused_context"] == (0 if seen else 3000 - known["test"] - 24)


def test_same_seed_same_bytes(tmp_path: Path):
    root = folder(tmp_path / "a", traps())
    check_seeds(lambda seed: community_alignment.read(root, seed=seed, **EASY), tmp_path)


@pytest.mark.parametrize("column", ["annotator_id", "first_turn_response_c", "third_turn_preferred_response"])
def test_a_changed_schema_names_the_column(tmp_path: Path, column: str):
    rows = [{(f"{key}2" if key == column else key): value for key, value in row.items()} for row in usual()]
    with pytest.raises(UserError, match=f"column '{column}': missing"):
        community_alignment.read(folder(tmp_path / "a", rows))


def test_mistakes_are_told(tmp_path: Path):
    rows = usual()
    rows[4] |= {"first_turn_preferred_response": "response_e"}
    rows[7] |= {"second_turn_preferred_response": "none"}
    words = r"(?s)2 faults.*row 4, column 'first_turn_preferred_response': is 'response_e'.*row 7, column 'second_"
    with pytest.raises(UserError, match=words):
        community_alignment.read(folder(tmp_path / "a", rows))
    rows = [row | {"annotator_id": "" if n == 2 else "x"} for n, row in enumerate(usual())]
    with pytest.raises(UserError, match="column 'annotator_id': null in 1 rows, first row 2"):
        community_alignment.read(folder(tmp_path / "b", rows))
    with pytest.raises(UserError, match=r"(?s)turns: is \(0,\); give some of 1 to 4.*min_votes: is 0"):
        community_alignment.read(tmp_path, turns=(0,), min_votes=0)
