"""Crowd RAG Corpus 2025: votes of real crowd workers on pairs of answers to search queries.

Source: github.com/webis-de/sigir25-rag-crowdsourcing (CC-BY 4.0), read as cloned; these files of `data/raw`:

    study2_responses.jsonl.gz        votes: worker, query_id, response_a, response_b and A, B or N on seven dimensions
    study1_responses_human.jsonl.gz  typing logs: response, topic, timestamp, text (the last snapshot is the text)
    study1_responses_llm.jsonl.gz    response, topic, text
    study1_retrieval.jsonl.gz        topic, query (the prompt)

N, neutral, is a tie: it is left out and counted. Every filter's count stands in meta under `filtered`, in votes unless
the name says otherwise.

Axis letters: P votes, U users.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.common.options import SplitOptions, flat_options
from pref_jax.data.sources.common.vote_tables import Vote, build_preferences, once_each
from pref_jax.data.sources.formats.json_text import json_lines
from pref_jax.errors import Faults, UserError

DIMENSIONS = (
    "quality_overall",
    "validity",
    "coherence_logical",
    "coherence_stylistic",
    "coverage_broad",
    "coverage_deep",
    "consistency_internal",
)
REPOSITORY = "https://github.com/webis-de/sigir25-rag-crowdsourcing"
VOTES, HUMAN, LLM, QUERIES = (
    f"{name}.jsonl.gz"
    for name in ("study2_responses", "study1_responses_human", "study1_responses_llm", "study1_retrieval")
)
_MEND = "the corpus may have changed; check out its 2025 version"
# One or two digits each, so that a year in brackets stays: [3], [0, 10], [ 14], [3 5], [1,2,].
_CITATION = re.compile(r"[ \t]*\[\s*\d{1,2}(?:[\s,]+\d{1,2})*[\s,]*\]")


class Answer(NamedTuple):
    """A response text and the query that it answers."""

    topic: str
    text: str


@flat_options(split=SplitOptions())
def read(
    path: str | Path,
    *,
    dimensions: tuple[str, ...] = ("quality_overall",),
    split: SplitOptions,
    seed: int = 0,
) -> Preferences:
    """Reads a clone of the corpus.

    One dimension: users are workers, without groups. Several: users are worker/dimension and the group names the
    dimension. Seen and unseen are split by worker, test by query: a test query is in nobody's training pairs.
    `controversial` compares all raters of a pair on a dimension.

    Args:
      path: root of the clone.
      dimensions: of `DIMENSIONS`.
      split: its fields are keyword options, see `SplitOptions`.
      seed: of all draws.

    Raises:
      UserError: if options are bad, files are missing or damaged, or a row does not have the known keys.
    """
    split.check(_unknown(dimensions))
    raw = _raw(Path(path))
    filtered: Counter[str] = Counter()
    votes = list(_rows(raw / VOTES, ("worker", "query_id", "response_a", "response_b", *dimensions)))
    needed = {row[side] for _, row in votes for side in ("response_a", "response_b")}
    answers = _answers(raw, needed)
    queries = {row["topic"]: row["query"] for _, row in _rows(raw / QUERIES, ("topic", "query"))}
    given = _votes(raw / VOTES, votes, dimensions, answers, queries, filtered)
    return build_preferences(
        given,
        texts={name: answer.text for name, answer in answers.items()},
        queries=queries,
        seed=seed,
        options={"dimensions": list(dimensions), **dataclasses.asdict(split)},
        meta={
            "source": f"Crowd RAG Corpus 2025, {REPOSITORY}",
            "licence": "CC-BY-4.0",
            "filtered": dict(filtered),
            "votes_in_source": len(votes) * len(dimensions),
        },
    )


def strip_citations(text: str) -> str:
    """Removes markers such as `[0, 10]` with the blanks before them, and white space around the text."""
    return _CITATION.sub("", text).strip()


def _unknown(dimensions: tuple[str, ...]) -> Faults:
    """What is wrong with the dimensions."""
    faults = Faults()
    for word in dimensions:
        if word not in DIMENSIONS:
            faults.add("dimensions", f"{word!r} is unknown", f"use some of {', '.join(DIMENSIONS)}")
    if not dimensions or len(set(dimensions)) < len(dimensions):
        faults.add("dimensions", "empty or named twice", "name each dimension once")
    return faults


def _raw(folder: Path) -> Path:
    """The folder of the four files."""
    raw = folder / "data" / "raw"
    fix = f"give the root of a clone of {REPOSITORY}"
    if not raw.is_dir():
        raise UserError(f"{folder}: no folder data/raw in it; {fix}")
    faults = Faults()
    for name in (VOTES, HUMAN, LLM, QUERIES):
        if not (raw / name).is_file():
            faults.add(str(raw / name), "no such file", fix)
    faults.raise_if_any(f"{folder}: not a whole clone")
    return raw


def _rows(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams (line, row); every row has the keys, and all but `timestamp` and `text` are strings.

    After the last row it raises one `UserError` naming all lines at fault.
    """
    faults = Faults()
    for line, row in json_lines(path, faults, fix="fetch the file again"):
        before = len(faults)
        _check(row, keys, f"{path}:{line}", faults)
        if len(faults) == before:
            yield line, row
    faults.raise_if_any(f"{path}: not as the corpus is known")


def _check(row: Any, keys: tuple[str, ...], where: str, faults: Faults) -> None:
    """Notes what is wrong with the value of a line."""
    if missing := [key for key in keys if not isinstance(row, dict) or key not in row]:
        faults.add(where, f"key {', '.join(map(repr, missing))} missing", _MEND)
        return
    for key in keys:
        kinds = {"timestamp": (int, float), "text": (str, type(None))}.get(key, str)
        if not isinstance(row[key], kinds):
            faults.add(where, f"key {key!r} holds {row[key]!r:.40}", _MEND)


def _answers(raw: Path, needed: set[str]) -> dict[str, Answer]:
    """Stripped texts of the needed responses that have one. The human log is streamed, not held."""
    last: dict[str, float] = {}
    answers: dict[str, Answer] = {}
    for _, row in _rows(raw / HUMAN, ("response", "topic", "timestamp", "text")):
        name = row["response"]
        # The log is not everywhere in order; of equal timestamps the later line is the later state.
        if name in needed and row["timestamp"] >= last.get(name, row["timestamp"]):
            last[name] = row["timestamp"]
            answers[name] = Answer(row["topic"], row["text"] or "")
    for line, row in _rows(raw / LLM, ("response", "topic", "text")):
        if row["response"] in last:
            raise UserError(f"{raw / LLM}:{line}: response {row['response']!r} is in {HUMAN} too; {_MEND}")
        if row["response"] in needed:
            answers[row["response"]] = Answer(row["topic"], row["text"] or "")
    stripped = {name: Answer(answer.topic, strip_citations(answer.text)) for name, answer in answers.items()}
    return {name: answer for name, answer in stripped.items() if answer.text}


def _votes(
    path: Path,
    votes: list[tuple[int, dict[str, Any]]],
    dimensions: tuple[str, ...],
    answers: dict[str, Answer],
    queries: dict[str, str],
    filtered: Counter[str],
) -> list[Vote]:
    """Usable votes: no ties, both texts known and different, one for each worker, dimension and pair."""
    first = _first_of_equal(answers)
    faults = Faults()
    cast: list[Vote] = []
    filtered.update(dict.fromkeys(("ties", "missing_text", "missing_query", "other_query", "same_text"), 0))
    for line, row in votes:
        sides = (row["response_a"], row["response_b"])
        fault = _unusable(row["query_id"], sides, answers, queries, first)
        for dimension in dimensions:
            choice = row[dimension]
            if choice not in ("A", "B", "N"):
                faults.add(f"{path}:{line}, key {dimension!r}", f"is {choice!r}, not A, B or N", _MEND)
            elif choice == "N" or fault:
                filtered["ties" if choice == "N" else fault] += 1
            else:
                chosen, rejected = (first[side] for side in (sides if choice == "A" else sides[::-1]))
                cast.append(Vote(row["worker"], dimension, row["query_id"], chosen, rejected))
    faults.raise_if_any(f"{path}: unknown votes")
    return once_each(cast, filtered)


def _unusable(
    query: str, sides: tuple[str, str], answers: dict[str, Answer], queries: dict[str, str], first: dict[str, str]
) -> str:
    """Name of the filter that a vote falls under, or ''."""
    if any(side not in answers for side in sides):
        return "missing_text"
    if any(answers[side].topic != query for side in sides):
        return "other_query"
    if not queries.get(query, "").strip():
        return "missing_query"
    return "same_text" if first[sides[0]] == first[sides[1]] else ""


def _first_of_equal(answers: dict[str, Answer]) -> dict[str, str]:
    """Response -> the first response by id with the same text for the same query (equal texts are one row)."""
    owner: dict[Answer, str] = {}
    return {name: owner.setdefault(answers[name], name) for name in sorted(answers)}
