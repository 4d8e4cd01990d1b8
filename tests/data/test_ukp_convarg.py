"""UKPConvArg1: hand-written files in the public schema with the traps of the real ones, which are read if at hand."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from pref_jax.data import sources
from pref_jax.data.checks.majority import majority_margins
from pref_jax.data.sources import ukp_convarg
from pref_jax.errors import UserError

SHARED = Path(os.environ.get("PREF_JAX_UKP", Path(__file__).parents[3] / "shared" / "data" / "ukp"))
NO_TEST = {"test_fraction": 0, "validation_fraction": 0, "unseen_fraction": 0}
TEXTS = {"a": "Tea keeps you calm.", "b": "Coffee &amp; haste go together.", "c": "I like tea.", "d": "I like tea."}


def argument(name: str, stance: str = "Tea", text: str | None = None) -> str:
    said = TEXTS[name] if text is None else text
    return f"<voteUpCount>1</voteUpCount><stance>{stance}</stance><text>{said}</text><id>{name}</id>"


def pair(left: str, right: str, votes: str, *, gold: bool = True, right_stance: str = "Tea") -> str:
    """`votes`: words such as `w1:a1`; each is submitted a minute after the one before."""
    cast = "".join(
        f"<mTurkAssignment><turkID>{word.split(':')[0]}</turkID>"
        f"<assignmentSubmitTime>2016-01-31 16:{minute:02d}:52.0 UTC</assignmentSubmitTime>"
        f"<value>{word.split(':')[1]}</value></mTurkAssignment>"
        for minute, word in enumerate(votes.split())
    )
    return (
        f"<annotatedArgumentPair><id>{left}_{right}</id><arg1>{argument(left)}</arg1>"
        f"<arg2>{argument(right, right_stance)}</arg2><debateMetaData><title>Tea or coffee?</title></debateMetaData>"
        f"<mTurkAssignments>{cast}</mTurkAssignments>{'<goldLabel>a1</goldLabel>' if gold else ''}"
        "</annotatedArgumentPair>"
    )


def write(path: Path, *pairs: str, head: str = "") -> Path:
    raw = f"{head}<list>{''.join(pairs)}</list>".encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    write(
        tmp_path / "tea_tea.xml.gz",
        pair("a", "b", "w1:a1 w2:a2 w3:equal w4:a1"),
        pair("b", "c", "w1:a1 w2:a1", gold=False),
        # c and d are one text: a pair of nothing, and w1's and w2's judgements of a pair that they have judged.
        pair("c", "d", "w1:equal w3:a1"),
        pair("d", "b", "w1:a2 w2:a1 w4:equal"),
        pair("a", "c", "w5:a2", right_stance="Coffee"),
    )
    write(tmp_path / "tea_coffee.xml", pair("a", "c", "w1:a2 w3:a1"))
    return tmp_path


def rows(data) -> list[tuple[str, str, str, str]]:
    users, texts = data.users["user_id"].to_pylist(), data.responses["text"].to_pylist()
    table = data.comparisons.to_pylist()
    return sorted((users[r["user"]], texts[r["chosen"]], texts[r["rejected"]], r["outcome"]) for r in table)


def test_judgements_become_preferences_and_ties(folder):
    data = ukp_convarg.read(folder, **NO_TEST)
    tea, coffee, like = "Tea keeps you calm.", "Coffee & haste go together.", "I like tea."
    decided = [row for row in rows(data) if row[3] == "preferred"]
    assert decided == [
        ("w1", coffee, like, "preferred"),
        ("w1", like, tea, "preferred"),
        ("w1", tea, coffee, "preferred"),
        ("w2", coffee, tea, "preferred"),
        ("w3", tea, like, "preferred"),
        ("w4", tea, coffee, "preferred"),
    ]
    assert sorted((row[0], row[3]) for row in rows(data) if row[3] != "preferred") == [("w3", "tie"), ("w4", "tie")]
    assert data.responses["prompt"].to_pylist()[0] == [
        {"role": "user", "content": "Debate: Tea or coffee?\nArgue for this side: Tea", "extra": None}
    ]
    assert data.groups == [None] * 4
    assert str(data.comparisons["time"][0]).startswith("2016-01-31 16:0")


def test_traps_are_counted(folder):
    meta = ukp_convarg.read(folder, **NO_TEST).meta
    left_out = {name: count for name, count in meta["filtered"].items() if count}
    # w1 chose b over c twice under two ids; w2 once b and once the copy of c.
    assert left_out == {"same_text": 2, "two_sides": 1, "self_contradicting": 2, "repeated": 1}
    facts = meta["in_source"]
    assert (facts["files"], facts["pairs"], facts["judgements"], facts["pairs_without_gold_label"]) == (2, 6, 14, 1)
    assert (facts["preferences"], facts["ties"], facts["workers"], facts["arguments"]) == (11, 3, 5, 3)
    assert facts["preferences_of_one_text"] == 1


def test_busy_workers_are_cut_and_told(folder, capsys):
    data = ukp_convarg.read(folder, max_votes_per_user=2, **NO_TEST)
    assert data.meta["filtered"]["over_max_votes_per_user"] == 1
    assert [row[0] for row in rows(data)].count("w1") == 2
    assert "1 judgements of 1 workers are left out, max_votes_per_user=2" in capsys.readouterr().err


def test_controversial_pairs_are_those_of_which_people_disagree(folder):
    data = ukp_convarg.read(folder, **NO_TEST)
    found = {
        tuple(sorted((row["chosen"], row["rejected"]))): row["controversial"] for row in data.comparisons.to_pylist()
    }
    texts = data.responses["text"].to_pylist()
    named = {tuple(sorted(texts[n].split()[0] for n in key)): value for key, value in found.items()}
    assert named == {("Coffee", "Tea"): True, ("Coffee", "I"): None, ("I", "Tea"): True}


def test_rows_are_numbered_by_texts_not_by_answers(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, vote in ((one, "a1"), (other, "a2")):
        folder.mkdir()
        write(folder / "tea.xml", pair("a", "b", f"w1:{vote} w2:{vote}"))
    first, second = (ukp_convarg.read(folder, **NO_TEST) for folder in (one, other))
    assert first.responses.equals(second.responses)
    assert first.comparisons["chosen"].equals(second.comparisons["rejected"])


@pytest.mark.parametrize(
    ("head", "body", "message"),
    [
        ('<!DOCTYPE list [<!ENTITY a "b">]>', pair("a", "b", "w1:a1"), "document type"),
        ('<!DOCTYPE list SYSTEM "file:///etc/passwd">', pair("a", "b", "w1:a1"), "document type"),
        ("", pair("a", "b", "w1:a3"), "value 'a3'"),
        ("", pair("a", "b", ":a1"), "turkID None"),
        ("", "<annotatedArgumentPair/>", "pair 1 .no id.: a 'annotatedArgumentPair' without"),
        ("", "<annotatedArgumentPair>", "cannot be read"),
        ("", "", "hold no judgements"),
    ],
)
def test_files_of_another_layout_are_refused(tmp_path, head, body, message):
    write(tmp_path / "tea.xml", body, head=head)
    with pytest.raises(UserError, match=message):
        ukp_convarg.read(tmp_path)


def test_damaged_and_missing_files(tmp_path, folder):
    whole = (folder / "tea_tea.xml.gz").read_bytes()
    for damaged in (whole[:-9], whole[:40] + b"\x00\x01" + whole[42:], b""):
        (folder / "tea_tea.xml.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"tea_tea\.xml\.gz: cannot be read"):
            ukp_convarg.read(folder)
    (folder / "tea_tea.xml").write_bytes(gzip.decompress(whole))
    with pytest.raises(UserError, match="plain and gzipped"):
        ukp_convarg.read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no XML files there"):
        ukp_convarg.read(tmp_path / "empty")


def test_options_are_checked_before_files(tmp_path):
    with pytest.raises(UserError, match=r"(?s)test_fraction.*unseen_fraction"):
        sources.read("ukp_convarg", path=tmp_path, seed=0, test_fraction=1.5, unseen_fraction=-1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real corpus is not at hand; set PREF_JAX_UKP to its folder")
def test_the_real_corpus_is_read_whole():
    data = sources.read("ukp_convarg", path=SHARED, seed=0, max_votes_per_user=None)
    facts, filtered = data.meta["in_source"], data.meta["filtered"]
    assert (facts["files"], facts["pairs"], facts["workers"], facts["without_time"]) == (32, 16_927, 3_815, 0)
    assert (facts["preferences"], facts["ties"]) == (65_340, 19_105)
    assert (
        data.comparisons.num_rows
        == facts["judgements"]
        - sum(filtered[name] for name in ("same_text", "two_sides", "repeated", "self_contradicting", "missing_text"))
        - filtered["rows_of_users_without_training"]
    )
    assert filtered["same_text"] == 75
    test = data.pairs("test")
    assert 0.15 < len(test.user) / len(data.pairs(("train", "validation", "test")).user) < 0.25
    margin = majority_margins(data, test)
    assert 0.72 < (margin[margin != 0] > 0).mean() < 0.82
    lengths = np.array([len(text) for text in data.responses["text"].to_pylist()])
    every = data.pairs(("train", "validation", "test"))
    assert 0.66 < (lengths[every.chosen] > lengths[every.rejected]).mean() < 0.70
