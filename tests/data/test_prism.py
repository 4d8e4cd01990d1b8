"""PRISM from a folder written by hand in the public schema: rows, splits, traps."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from votes import check_seeds, dialogues

from pref_jax.data.sources import prism
from pref_jax.errors import UserError

NOT_VOTES = {"users_under_min_dialogues"}


def reply(person: str, dialogue: str, turn: int, prompt: str, text: str | None, score: int, chosen: bool) -> dict:
    """A row of utterances.jsonl, with all of its columns."""
    return {
        "utterance_id": "ut0",
        "interaction_id": f"int{turn}",
        "conversation_id": f"{person}-{dialogue}",
        "user_id": person,
        "turn": turn,
        "within_turn_id": 0,
        "conversation_type": "unguided",
        "user_prompt": prompt,
        "model_response": text,
        "model_name": "gpt-4",
        "model_provider": "openai",
        "score": score,
        "if_chosen": chosen,
        "included_in_balanced_subset": True,
    }


def turn_rows(person: str, dialogue: str, turn: int, prompt: str, best: str, *others: str) -> list[dict]:
    rows = [reply(person, dialogue, turn, prompt, text, 10 + n, False) for n, text in enumerate(others)]
    return [*rows, reply(person, dialogue, turn, prompt, best, 90, True)]


def usual(person: str, count: int = 6) -> list[dict]:
    """Dialogues of two turns: four replies, then two; four pairs each."""
    rows = []
    for n in range(count):
        said = f"{person} asks {n}"
        rows += turn_rows(person, str(n), 0, said, f"best {n}", f"worse {n}", f"bad {n}", f"worst {n}")
        rows += turn_rows(person, str(n), 1, "go on", f"more {n}", f"less {n}")
    return rows


def folder(root: Path, rows: list[dict], survey: list[dict] | None = None) -> Path:
    root.mkdir(exist_ok=True)
    for name, lines in (("utterances", rows), ("survey", survey)):
        if lines is not None:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (root / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return root


def test_the_protocol(tmp_path: Path):
    data = prism.read(folder(tmp_path / "a", usual("ann") + usual("bob")), validation_fraction=1 / 3, seed=4)
    rows = dialogues(data)
    # By hand: 6 dialogues a person, 3 of them test, of the seen person's other 3 one is validation; 4 pairs each.
    splits = Counter((row[0], row[4]) for row in rows)
    seen, unseen = ("ann", "bob") if data.seen[0] else ("bob", "ann")
    assert data.seen.sum() == 1
    assert splits == {
        (seen, "test"): 12,
        (seen, "train"): 8,
        (seen, "validation"): 4,
        (unseen, "test"): 12,
        (unseen, "train"): 12,
    }
    of_dialogue = defaultdict(set)
    for user, prompt, _, _, split in rows:
        of_dialogue[user, prompt[0]].add(split)
    assert set(map(len, of_dialogue.values())) == {1}
    assert sorted(row[1:4] for row in rows if row[1][0] == "ann asks 2") == [
        (("ann asks 2",), "best 2", "bad 2"),
        (("ann asks 2",), "best 2", "worse 2"),
        (("ann asks 2",), "best 2", "worst 2"),
        (("ann asks 2", "best 2", "go on"), "more 2", "less 2"),
    ]
    roles = {tuple(message["role"] for message in row["prompt"]) for row in data.responses.to_pylist()}
    assert roles == {("user",), ("user", "assistant", "user")}
    assert data.meta["votes_in_source"] == 48 == data.comparisons.num_rows
    assert not any(data.meta["filtered"].values())
    assert data.meta["options"]["min_dialogues"] == 6
    assert "NonCommercial" not in data.meta["licence"]
    assert data.meta["licence"].startswith("CC-BY-4.0 (human texts), CC-BY-NC-4.0")


def traps() -> list[dict]:
    rows = usual("ann") + usual("bob") + usual("few", 5)
    rows += [
        reply("ann", "t", 0, "traps", " नमस्ते 🙂\n", 80, True),
        reply("ann", "t", 0, "traps", "equal score", 80, False),
        reply("ann", "t", 0, "traps", "EMPTY STRING", 5, False),
        reply("ann", "t", 0, "traps", None, 5, False),
        reply("ann", "t", 0, "traps", "नमस्ते 🙂", 60, False),
        reply("ann", "t", 0, "traps", "[a list?]", 60, False),
        # Chosen twice, but one text: as if once.
        reply("ann", "t", 1, "and then", "same", 70, True),
        reply("ann", "t", 1, "and then", "same ", 70, True),
        reply("ann", "t", 1, "and then", "other", 30, False),
        # Two chosen texts: nobody knows with which the dialogue went on.
        reply("ann", "t", 2, "which", "one", 50, True),
        reply("ann", "t", 2, "which", "two", 50, True),
        reply("ann", "t", 2, "which", "three", 40, False),
        reply("ann", "t", 3, "after it", "x", 50, True),
        reply("ann", "t", 3, "after it", "y", 40, False),
    ]
    # Turn 1 is missing; and nothing chosen in a turn.
    rows += turn_rows("bob", "g", 0, "gap", "a", "b") + turn_rows("bob", "g", 2, "later", "c", "d", "e")
    # Turns that do not begin with 0.
    rows += turn_rows("ann", "b", -1, "before", "a", "b") + turn_rows("ann", "l", 10**12, "late", "a", "b", "c")
    rows += [reply("bob", "n", 0, "none", text, 5, False) for text in ("p", "q")]
    # The same opening by both, and twice by one of them, once with the choice turned round.
    rows += turn_rows("ann", "h1", 0, "Hi", "hello", "hey") + turn_rows("ann", "h2", 0, "Hi", "hello", "hey")
    rows += turn_rows("bob", "h1", 0, "Hi", "hey", "hello") + turn_rows("bob", "h2", 0, "Hi", "yo", "hello")
    return rows + turn_rows("bob", "h3", 0, "Hi", "hello", "yo")


def test_everything_left_out_is_counted(tmp_path: Path):
    root = folder(tmp_path / "a", traps())
    for seed in range(6):
        data = prism.read(root, seed=seed)
        found = dict(data.meta["filtered"])
        leaked = found.pop("test_on_training_prompts")
        assert found == {
            "ties": 1,
            "unclear_choice": 3,
            "after_gap": 6,
            "missing_text": 2,
            "same_text": 1,
            "repeated": 1,
            "self_contradicting": 2,
            "users_under_min_dialogues": 1,
            "votes_under_min_dialogues": 20,
        }
        assert data.meta["votes_in_source"] == 89
        assert data.comparisons.num_rows == 89 - sum(found.values()) + 1 - leaked
        rows = dialogues(data)
        trained = {row[1] for row in rows if row[4] != "test"}
        assert not trained & {row[1] for row in rows if row[4] == "test"}
        assert ("नमस्ते 🙂", "[a list?]") in {row[2:4] for row in rows}
        assert ("ann", ("traps", "नमस्ते 🙂", "and then"), "same", "other") in {row[:4] for row in rows}
        # Votes on one pair by two people who disagree.
        hi = [
            row["controversial"]
            for row, name in zip(data.comparisons.to_pylist(), rows, strict=True)
            if {"hello", "hey"} == set(name[2:4])
        ]
        assert set(hi) == {True}
    with_ties = prism.read(root, keep_ties=True)
    assert with_ties.meta["filtered"]["ties"] == 0
    assert ("नमस्ते 🙂", "equal score") in {row[2:4] for row in dialogues(with_ties)}


def test_dialogues_without_a_choice_do_not_count(tmp_path: Path):
    alone = [reply("ann", "6", 0, "one reply", "x", 50, True)]
    empty = [reply("ann", "7", 0, "an empty one", "x", 50, True), reply("ann", "7", 0, "an empty one", "", 5, False)]
    rows = usual("ann", 5) + alone + empty + usual("bob") + usual("eve")
    data = prism.read(folder(tmp_path / "a", rows))
    assert data.users["user_id"].to_pylist() == ["bob", "eve"]
    assert data.meta["filtered"]["users_under_min_dialogues"] == 1
    assert data.meta["filtered"]["votes_under_min_dialogues"] == 20
    rows += turn_rows("ann", "6", 1, "and now", "y", "z")
    assert prism.read(folder(tmp_path / "b", rows)).users["user_id"].to_pylist() == ["ann", "bob", "eve"]


def test_no_text_betrays_its_label(tmp_path: Path):
    """The defect of the published code: whichever reply is chosen, it and the others must be written alike."""
    rows = [row for row in traps() if row["turn"] == 0 and row["conversation_id"].split("-")[1] in "012345"]
    other = [dict(row) for row in rows]
    for dialogue in {row["conversation_id"] for row in rows}:
        own = [row for row in other if row["conversation_id"] == dialogue]
        own[0]["if_chosen"], own[-1]["if_chosen"] = True, False
    one, two = (prism.read(folder(tmp_path / name, file)) for name, file in (("a", rows), ("b", other)))
    texts = [{(str(row["prompt"]), row["text"]) for row in data.responses.to_pylist()} for data in (one, two)]
    assert texts[0] == texts[1]
    assert {row[2] for row in dialogues(one)} != {row[2] for row in dialogues(two)}
    source = {row["model_response"] for row in rows}
    assert {text for _, text in texts[0]} <= source
    for _, prompt, chosen, rejected, _ in dialogues(one):
        assert len(prompt) == 1
        assert {chosen, rejected} <= source


def test_one_person_with_thousands_of_rows(tmp_path: Path):
    rows = usual("ann") + usual("bob")
    for n in range(50):
        for turn in range(20):
            rows += turn_rows("zoe", str(n), turn, f"turn {turn} of {n}", f"yes {n} {turn}", "no", "never")
    data = prism.read(folder(tmp_path / "a", rows))
    own = [row for row in dialogues(data) if row[0] == "zoe"]
    assert len(own) == 2000
    assert Counter(row[4] == "test" for row in own) == {True: 1000, False: 1000}
    assert max(len(row[1]) for row in own) == 39


def test_same_seed_same_bytes(tmp_path: Path):
    root = folder(tmp_path / "a", traps())
    check_seeds(lambda seed: prism.read(root, seed=seed), tmp_path)


def test_groups_are_words_of_the_survey(tmp_path: Path):
    survey = [{"user_id": "bob", "gender": "Male", "age": "18-24"}, {"user_id": "eve", "gender": "Female", "age": "x"}]
    root = folder(tmp_path / "a", usual("ann") + usual("bob"), survey)
    assert prism.read(root).groups == [None, None]
    assert prism.read(root, group="gender").groups == [None, "Male"]
    with pytest.raises(UserError, match="column 'gendre': missing"):
        prism.read(root, group="gendre")


@pytest.mark.parametrize("column", list(prism.COLUMNS))
def test_a_changed_schema_names_the_column(tmp_path: Path, column: str):
    rows = [{(f"{key}2" if key == column else key): value for key, value in row.items()} for row in usual("ann")]
    with pytest.raises(UserError, match=f"column '{column}': missing"):
        prism.read(folder(tmp_path / "a", rows))


def test_mistakes_are_told(tmp_path: Path):
    rows: list[dict[str, Any]] = usual("ann")
    rows[3]["if_chosen"] = rows[5]["user_id"] = None
    with pytest.raises(UserError, match=r"(?s)'user_id': null in 1 rows, first row 5.*'if_chosen': null in 1 rows, f"):
        prism.read(folder(tmp_path / "a", rows))
    rows = usual("ann")
    rows[0]["user_prompt"] = rows[6]["user_prompt"] = "something else"
    with pytest.raises(UserError, match=r"(?s)2 faults.*ann-0, turn 0: 2 values in column 'user_prompt'.*ann-1"):
        prism.read(folder(tmp_path / "b", rows))
    with pytest.raises(UserError, match="nobody has 7 dialogues"):
        prism.read(folder(tmp_path / "c", usual("ann")), min_dialogues=7)
    with pytest.raises(UserError, match="min_dialogues: is 1; give 2 or more"):
        prism.read(tmp_path / "c", min_dialogues=1)
    with pytest.raises(UserError, match="test_fraction: is 1"):
        prism.read(tmp_path / "c", test_fraction=1)
