"""Crowd RAG Corpus 2025: a hand-written clone in the public schema, drawn ones, and the real one if it is at hand."""

import gzip
import itertools
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.data import preferences as tables
from pref_jax.data.checks.majority import majority_margins
from pref_jax.data.preferences import Preferences
from pref_jax.data.sources import crowdrag
from pref_jax.errors import UserError

VOTES, HUMAN, LLM, QUERIES = "study2_responses", "study1_responses_human", "study1_responses_llm", "study1_retrieval"
SHARED = Path(os.environ.get("PREF_JAX_CROWDRAG", Path(__file__).parents[3] / "shared" / "data" / "crowdrag"))
FILTERS = (
    *("ties", "missing_text", "missing_query", "other_query", "same_text", "repeated", "self_contradicting"),
    *("users_under_min_votes", "votes_under_min_votes", "users_without_training", "votes_of_users_without_training"),
    "unused_context",
)
NOTHING_FILTERED = dict.fromkeys(FILTERS, 0)


def vote(worker: str, query: str, a: str, b: str, overall: str = "A", **others: str) -> dict[str, Any]:
    dimensions = {name: "N" for name in crowdrag.DIMENSIONS} | {"quality_overall": overall} | others
    return {
        "submission_id": "s",
        "worker": worker,
        "item_index": 1,
        "query_id": query,
        "response_a": a,
        "response_b": b,
        **dimensions,
    }


def human(response: str, topic: str, timestamp: int, text: str | None) -> dict[str, Any]:
    return {"response": response, "topic": topic, "style": "news", "timestamp": timestamp, "text": text}


def llm(response: str, topic: str, text: str | None) -> dict[str, Any]:
    return {"response": response, "topic": topic, "style": "essay", "text": text}


def query(topic: str, text: str) -> dict[str, Any]:
    return {"topic": topic, "query": text, "references_ids": ["d1"], "references_texts": ["a page"]}


def clone(root: Path, **files: list[dict[str, Any]]) -> Path:
    (root / "data" / "raw").mkdir(parents=True)
    for name in (VOTES, HUMAN, LLM, QUERIES):
        lines = "".join(json.dumps(row) + "\n" for row in files[name])
        (root / "data" / "raw" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return root


def small() -> dict[str, list[dict[str, Any]]]:
    """Two queries; human answers h1, h2 and machine answers m1, m2; two workers who vote on both."""
    return {
        HUMAN: [
            human("h1", "t1", 30, "too early"),
            human("h2", "t2", 10, "only"),
            human("h1", "t1", 50, "early of equals"),
            human("h1", "t1", 50, "Final text [0, 10]. More [3]"),
            human("h1", "t1", 40, "too early, though a later line"),
            human("unused", "t1", 50, "nobody votes on this"),
        ],
        LLM: [llm("m1", "t1", "- point [1]\n- other [2,3]"), llm("m2", "t2", "machine"), llm("m3", "t2", "third")],
        QUERIES: [query("t1", "why?"), query("t2", "how?"), query("t3", "never asked")],
        VOTES: [
            vote("ann", "t1", "h1", "m1", "A"),
            vote("ann", "t2", "h2", "m2", "B"),
            vote("bob", "t1", "m1", "h1", "A"),
            vote("bob", "t2", "m2", "h2", "A"),
        ],
    }


OPTIONS = {
    "unseen_fraction": 0,
    "test_query_fraction": 0.5,
    "validation_fraction": 0,
    "min_votes": 1,
    "context_pairs": 1,
    "seed": 0,
}


def named(data: Preferences) -> list[tuple]:
    """(user, chosen, rejected, split, controversial) by name, sorted."""
    users, responses = data.users["user_id"].to_pylist(), data.responses["response_id"].to_pylist()
    return sorted(
        (users[row["user"]], responses[row["chosen"]], responses[row["rejected"]], row["split"], row["controversial"])
        for row in data.comparisons.to_pylist()
    )


def ask(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt, "extra": None}]


def test_small_clone(tmp_path: Path):
    data = crowdrag.read(clone(tmp_path, **small()), **OPTIONS)
    (test,) = data.meta["test_queries"]
    words = {"t1": "train", "t2": "train", test: "test"}
    assert named(data) == [
        ("ann", "h1", "m1", words["t1"], True),
        ("ann", "m2", "h2", words["t2"], False),
        ("bob", "m1", "h1", words["t1"], True),
        ("bob", "m2", "h2", words["t2"], False),
    ]
    assert data.responses.drop_columns("extra").to_pylist() == [
        {"response_id": "h1", "prompt": ask("why?"), "text": "Final text. More"},
        {"response_id": "h2", "prompt": ask("how?"), "text": "only"},
        {"response_id": "m1", "prompt": ask("why?"), "text": "- point\n- other"},
        {"response_id": "m2", "prompt": ask("how?"), "text": "machine"},
    ]
    assert data.groups == [None, None]
    assert data.meta["licence"] == "CC-BY-4.0"
    assert data.meta["filtered"] == NOTHING_FILTERED
    assert data.meta["votes_in_source"] == 4
    tables.save(data, tmp_path / "set")
    assert tables.load(tmp_path / "set").meta == data.meta


def test_everything_left_out_is_counted(tmp_path: Path):
    files = small()
    files[HUMAN] += [human("empty", "t1", 1, "first words"), human("empty", "t1", 2, " [3] ")]
    files[HUMAN] += [human("null", "t1", 1, None), human("lost", "t9", 1, "to a query nobody knows")]
    files[LLM] += [llm("twin", "t1", "Final text [7]. More"), llm("lost2", "t9", "other")]
    files[VOTES] += [
        vote("ann", "t1", "h1", "empty"),
        vote("ann", "t1", "null", "h1"),
        vote("ann", "t1", "h1", "absent"),
        vote("ann", "t1", "h1", "m1", "N"),
        vote("ann", "t2", "h1", "m2"),
        vote("ann", "t9", "lost", "lost2"),
        vote("ann", "t1", "h1", "twin"),
        vote("bob", "t1", "m1", "twin", "A"),
        vote("bob", "t2", "h2", "m3", "A"),
        vote("bob", "t2", "m3", "h2", "A"),
    ]
    data = crowdrag.read(clone(tmp_path, **files), **OPTIONS)
    assert data.meta["filtered"] == NOTHING_FILTERED | {
        "missing_text": 3,
        "ties": 1,
        "other_query": 1,
        "missing_query": 1,
        "same_text": 1,
        "repeated": 1,
        "self_contradicting": 2,
    }
    assert data.comparisons.num_rows == 4
    assert data.meta["votes_in_source"] == 14 == 4 + sum(data.meta["filtered"].values())


def test_dimensions_as_users(tmp_path: Path):
    files = small()
    files[VOTES] = [
        vote("ann", "t1", "h1", "m1", "A", validity="B"),
        vote("ann", "t2", "h2", "m2", "A", validity="A"),
        vote("bob", "t1", "h1", "m1", "A", validity="A"),
        vote("bob", "t2", "h2", "m2", "B", validity="N"),
        vote("cem", "t2", "h2", "m3", "B", validity="A"),
        vote("cem", "t1", "h1", "m1", "N", validity="A"),
    ]
    data = crowdrag.read(clone(tmp_path, **files), dimensions=("quality_overall", "validity"), **OPTIONS)
    (test,) = data.meta["test_queries"]
    assert data.meta["filtered"]["ties"] == 2
    # cem's overall vote and bob's vote on validity lie on one query each; on the test query alone they are left out.
    lone = {"t1": "bob/validity", "t2": "cem/quality_overall"}[test]
    users = ["ann/quality_overall", "ann/validity", "bob/quality_overall", "bob/validity", "cem/quality_overall"]
    users = [user for user in [*users, "cem/validity"] if user != lone]
    assert data.users["user_id"].to_pylist() == users
    assert data.groups == [user.split("/")[1] for user in users]
    assert data.meta["filtered"]["users_without_training"] == 1
    assert data.meta["filtered"]["votes_of_users_without_training"] == 1
    by_pair = {(row[0], frozenset(row[1:3])): row[4] for row in named(data)}
    assert by_pair["ann/quality_overall", frozenset(("h1", "m1"))] is False
    assert by_pair["ann/quality_overall", frozenset(("h2", "m2"))] is True
    assert by_pair["ann/validity", frozenset(("h1", "m1"))] is True
    assert by_pair["ann/validity", frozenset(("h2", "m2"))] is None
    # The overall votes of ann do not count as another rater of her votes on validity.
    rows = data.pairs(tables.SPLITS)
    names = [users[user] for user in rows.user]
    chosen = [data.responses["response_id"][int(row)].as_py() for row in rows.chosen]
    margin = majority_margins(data, rows)[list(zip(names, chosen, strict=True)).index(("ann/validity", "h2"))]
    assert margin == 0


def test_too_few_votes(tmp_path: Path):
    files = small()
    files[VOTES].append(vote("cem", "t1", "h1", "m1"))
    data = crowdrag.read(clone(tmp_path / "a", **files), **{**OPTIONS, "min_votes": 2})
    assert data.users["user_id"].to_pylist() == ["ann", "bob"]
    assert data.meta["filtered"]["users_under_min_votes"] == 1
    assert data.meta["filtered"]["votes_under_min_votes"] == 1
    with pytest.raises(
        UserError, match=r"no votes are left after filtering .*'votes_under_min_votes': 5.*; lower min_votes"
    ):
        crowdrag.read(tmp_path / "a", **{**OPTIONS, "min_votes": 3})


WORKERS, TOPICS, ANSWERS = [f"w{i}" for i in range(8)], [f"t{i}" for i in range(6)], 3
CAST = st.tuples(
    st.sampled_from(WORKERS),
    st.sampled_from(TOPICS),
    st.permutations(range(ANSWERS)),
    st.sampled_from("ABN"),
    st.sampled_from("ABN"),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(CAST, min_size=30, max_size=80),
    st.sampled_from([("quality_overall",), ("validity", "quality_overall")]),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_the_rule(
    tmp_path_factory: pytest.TempPathFactory,
    cast: list,
    dimensions: tuple[str, ...],
    unseen_fraction: float,
    validation_fraction: float,
    min_votes: int,
    context_pairs: int,
    seed: int,
):
    # Two workers who answered everything keep every draw possible.
    cast = [*cast, *((worker, topic, (0, 1, 2), "A", "B") for worker in ("x", "y") for topic in TOPICS)]
    root = clone(
        tmp_path_factory.mktemp("any") / "clone",
        **{
            VOTES: [
                vote(worker, topic, f"{topic}{order[0]}", f"{topic}{order[1]}", overall, validity=validity)
                for worker, topic, order, overall, validity in cast
            ],
            HUMAN: [
                human(f"{topic}{place}", topic, 1, f"{topic} text {place}") for topic in TOPICS for place in (0, 1)
            ],
            LLM: [llm(f"{topic}2", topic, f"{topic} text 2") for topic in TOPICS],
            QUERIES: [query(topic, f"query {topic}") for topic in TOPICS],
        },
    )
    options = {
        "dimensions": dimensions,
        "unseen_fraction": unseen_fraction,
        "test_query_fraction": 0.3,
        "validation_fraction": validation_fraction,
        "min_votes": min_votes,
        "context_pairs": context_pairs,
        "seed": seed,
    }
    data = crowdrag.read(root, **options)
    rows = named(data)
    assert named(crowdrag.read(root, **options)) == rows
    assert data.meta["votes_in_source"] == len(cast) * len(dimensions)
    lost = {name: count for name, count in data.meta["filtered"].items() if not name.startswith("users_")}
    assert len(rows) + sum(lost.values()) == data.meta["votes_in_source"]
    test_queries = set(data.meta["test_queries"])
    for _, chosen, _, split, _ in rows:
        assert (split == "test") == (chosen[:2] in test_queries)
    seen = dict(zip(data.users["user_id"].to_pylist(), data.seen, strict=True))
    by_worker = defaultdict(set)
    for user, flag in seen.items():
        by_worker[user.split("/")[0]].add(flag)
        train = [row for row in rows if row[0] == user and row[3] == "train"]
        assert len(train) >= 1
        assert flag or len(train) <= context_pairs
        assert flag or not any(row[0] == user and row[3] == "validation" for row in rows)
    assert all(len(flags) == 1 for flags in by_worker.values())
    if not unseen_fraction:
        assert all(seen.values())


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("a [0]. b [0, 10]", "a. b"),
        ("a[ 14] b [3 5], c [1,2,] d", "a b, c d"),
        ("in [2024] and [captured] and [...] and [] stay", "in [2024] and [captured] and [...] and [] stay"),
        (" \n- one [1]\n- two\n", "- one\n- two"),
        ("[3]", ""),
        ("[" * 2000 + "1 " * 2000, ("[" * 2000 + "1 " * 2000).strip()),
    ],
)
def test_citations(text: str, bare: str):
    assert crowdrag.strip_citations(text) == bare


def test_wrong_folder_and_missing_files(tmp_path: Path):
    with pytest.raises(UserError, match="no folder data/raw in it; give the root of a clone of https://github"):
        crowdrag.read(tmp_path)
    root = clone(tmp_path / "clone", **small())
    for name in (LLM, QUERIES):
        (root / "data" / "raw" / f"{name}.jsonl.gz").unlink()
    with pytest.raises(UserError) as caught:
        crowdrag.read(root)
    for name in (LLM, QUERIES):
        assert f"{root / 'data' / 'raw' / name}.jsonl.gz: no such file" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *itertools.product([VOTES], ["worker", "query_id", "response_a", "response_b", "quality_overall"]),
        *itertools.product([HUMAN], ["response", "topic", "timestamp", "text"]),
        *itertools.product([LLM], ["response", "topic", "text"]),
        *itertools.product([QUERIES], ["topic", "query"]),
    ],
)
def test_changed_schema(tmp_path: Path, name: str, key: str):
    files = small()
    del files[name][1][key]
    root = clone(tmp_path / "gone", **files)
    with pytest.raises(UserError, match=rf"{name}\.jsonl\.gz:2: key '{key}' missing; the corpus may have changed"):
        crowdrag.read(root)
    files[name][1][key] = ["?"]
    root = clone(tmp_path / "other", **files)
    with pytest.raises(UserError, match=rf"{name}\.jsonl\.gz:2: key '{key}' holds \['\?'\]; the corpus may have"):
        crowdrag.read(root)


def test_unknown_votes_and_shared_ids(tmp_path: Path):
    files = small()
    files[VOTES][0]["quality_overall"] = files[VOTES][2]["quality_overall"] = "C"
    with pytest.raises(UserError) as caught:
        crowdrag.read(clone(tmp_path / "a", **files))
    for line in (1, 3):
        assert f"{VOTES}.jsonl.gz:{line}, key 'quality_overall': is 'C', not A, B or N" in str(caught.value)
    files = small()
    files[LLM].append(llm("h1", "t1", "x"))
    with pytest.raises(UserError, match="response 'h1' is in study1_responses_human"):
        crowdrag.read(clone(tmp_path / "b", **files))


def test_all_bad_rows_at_once(tmp_path: Path):
    files: dict[str, list[Any]] = small()
    del files[VOTES][1]["worker"]
    files[VOTES][2] |= {"query_id": None, "quality_overall": 3}
    files[VOTES][0] = 5
    with pytest.raises(UserError) as caught:
        crowdrag.read(clone(tmp_path, **files))
    assert "(4 faults)" in str(caught.value)
    for fault in (":1: key 'worker', ", ":2: key 'worker' missing", ":3: key 'query_id'", ":3: key 'quality_overall'"):
        assert f"{VOTES}.jsonl.gz{fault}" in str(caught.value)


def test_damaged_files(tmp_path: Path):
    root = clone(tmp_path / "clone", **small())
    file = root / "data" / "raw" / f"{HUMAN}.jsonl.gz"
    whole = file.read_bytes()
    for part in (whole[:-20], b"version https://git-lfs.github.com/spec/v1", whole[:20] + b"\0" * 40):
        file.write_bytes(part)
        with pytest.raises(UserError, match=rf"{HUMAN}\.jsonl\.gz: cut short or not gzip"):
            crowdrag.read(root)
    file.write_bytes(gzip.compress(b'{"response": \n'))
    with pytest.raises(UserError, match=rf"{HUMAN}\.jsonl\.gz:1: not JSON .*; fetch the file again"):
        crowdrag.read(root)


def test_bad_options(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        crowdrag.read(tmp_path, dimensions=("quality", "validity", "validity"), min_votes=0, context_pairs=0)
    for message in ("'quality' is unknown; use some of", "named twice", "min_votes: is 0", "context_pairs: is 0"):
        assert message in str(caught.value)
    with pytest.raises(UserError, match="unseen_fraction: is 1"):
        crowdrag.read(tmp_path, unseen_fraction=1)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real corpus is not at {SHARED}; set PREF_JAX_CROWDRAG to a clone")
def test_real_corpus():
    data = crowdrag.read(SHARED, unseen_fraction=0.25, test_query_fraction=0.2, context_pairs=8, min_votes=4, seed=0)
    lost = {name: count for name, count in data.meta["filtered"].items() if not name.startswith("users_")}
    assert data.meta["votes_in_source"] == 6920 == data.comparisons.num_rows + sum(lost.values())
    assert lost["ties"] == lost["missing_text"] == lost["other_query"] == 0
    summary = tables.summarise(data)
    assert summary["users"] == {"total": 420, "seen": 315, "unseen": 105}
    assert (summary["responses"], summary["prompts"], len(data.meta["test_queries"])) == (390, 65, 13)
    texts = data.responses["text"].to_pylist()
    assert min(map(len, texts)) > 100
    assert not any("[0" in text and "[0." not in text for text in texts)
    # Known of this corpus: where the other raters of a pair have a majority, it predicts 63.9 % of the votes.
    margins = majority_margins(data, data.pairs(tables.SPLITS))
    assert np.mean(margins[margins != 0] > 0) == pytest.approx(0.639, abs=0.01)
