"""Votes of Argilla: rankings, ratings and labels of records, nested or flat, of its versions 1 and 2.

    {"fields": {"prompt": ..., "response1": ..., "response2": ...},
     "responses": {"preference": [{"value": ["response2", "response1"], "user_id": "..."}]}}            version 2
    {"prompt": ..., "response1": ..., "preference.responses": [...], "preference.responses.users": [...],
     "preference.responses.status": [...]}                                                              2, flat
    {"fields": {...}, "responses": [{"user_id": "...", "status": "submitted", "values": {"preference": {"value":
     [{"value": "response1", "rank": 2}, ...]}}}]}                                                      version 1
    {"prompt": ..., "response1": ..., "preference": [{"user_id": "...", "value": ..., "status": ...}]}  1, as datasets

Schemas: argilla.records._io (to_list, to_datasets) and FeedbackDataset.format_as of argilla-io/argilla. Drafts and
discarded answers are counted. Where several questions could be votes, columns={"question": NAME} chooses one. Equal
ranks are ties: such a ranking becomes one comparison for each pair.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pref_jax.data.sources.exports import fields

_FLAT = ".responses"


class _Answer(NamedTuple):
    """One person's answer to one question."""

    user: Any
    value: Any
    status: Any


def is_record(value: dict[str, Any]) -> bool:
    """Whether a row is a record of Argilla."""
    nested = isinstance(value.get("fields"), dict) and isinstance(value.get("responses"), list | dict)
    return nested or any(name.endswith(f"{_FLAT}.users") for name in value) or any(map(_is_column, value.values()))


def votes(value: dict[str, Any], columns: Mapping[str, str], note: Any, left_out: Counter[str]) -> list[dict[str, Any]]:
    """The votes of a record, one for each person who answered."""
    questions = _questions(value)
    nested = isinstance(value.get("fields"), dict)
    if not nested and not questions and "responses" in value:
        note("fields", "missing", "export fields and responses together")
        return []
    left_out["records without answers"] += not questions
    data = value["fields"] if nested else {name: one for name, one in value.items() if name not in questions}
    data = {name: one for name, one in data.items() if isinstance(one, str | list) and _FLAT not in name}
    usable = {name: answers for name, answers in questions.items() if any(_is_vote(one, data) for one in answers)}
    wanted = columns.get("question")
    if wanted is None and len(usable) > 1:
        note(
            "responses",
            f"{len(usable)} questions with votes ({', '.join(usable)})",
            "choose one: columns question=NAME",
        )
        return []
    chosen = [wanted] if wanted is not None else list(usable)
    left_out["answers to questions that are no votes"] += sum(
        len(answers) for name, answers in questions.items() if name not in chosen
    )
    rows = []
    for answer in itertools.chain.from_iterable(questions.get(name, []) for name in chosen):
        if answer.status not in (None, "submitted"):
            left_out[f"answers with status {answer.status!s:.20}"] += 1
            continue
        user = {} if answer.user is None else {"user": str(answer.user)}
        prompt = fields.prompt(data, columns)
        rows += [{**user, "prompt": prompt, **row} for row in _rows(answer.value, data, columns, note)]
    return rows


def _is_column(value: Any) -> bool:
    """Answers of one question in the form of `datasets`: a list of {user_id, value}, or a struct of such lists."""
    value = value[0] if isinstance(value, list) and value else value
    return isinstance(value, dict) and {"user_id", "value"} <= value.keys()


def _questions(value: dict[str, Any]) -> dict[str, list[_Answer]]:
    """All answers by question."""
    found: dict[str, list[_Answer]] = {}
    for name, answer in _answers(value):
        found.setdefault(name, []).append(answer)
    return found


def _answers(value: dict[str, Any]) -> Iterator[tuple[str, _Answer]]:
    given = value.get("responses")
    if isinstance(given, list) and isinstance(value.get("fields"), dict):
        for one in filter(_is_dict, given):
            values = one["values"] if _is_dict(one.get("values")) else {}
            for name, answer in values.items():
                answer = answer.get("value") if _is_dict(answer) else answer
                yield name, _Answer(one.get("user_id"), answer, one.get("status"))
        return
    if isinstance(given, dict) and _is_dict(value.get("fields")):
        columns = list(given.items())
    else:
        columns = [(name, one) for name, one in value.items() if _is_column(one)]
        for name in [name for name in value if name.endswith(_FLAT)]:
            lists = [value.get(f"{name}{rest}") for rest in (".users", "", ".status")]
            users, values, statuses = (one if isinstance(one, list) else [] for one in lists)
            for parts in itertools.zip_longest(users, values, statuses):
                yield name.removesuffix(_FLAT), _Answer(*parts)
    for name, answers in columns:
        if _is_dict(answers) and all(isinstance(one, list) for one in answers.values()):
            answers = [dict(zip(answers, parts, strict=False)) for parts in zip(*answers.values(), strict=False)]
        for one in filter(_is_dict, answers if isinstance(answers, list) else []):
            yield name, _Answer(one.get("user_id"), one.get("value"), one.get("status"))


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_vote(answer: _Answer, data: Mapping[str, Any]) -> bool:
    value = answer.value
    if isinstance(value, str):
        return fields.find(data, (value,)) is not None or fields.plain(value) in _WORDS
    return isinstance(value, int | float) or bool(_ranks(value))


_WORDS = {"a", "b", "left", "right", "first", "second", "tie", "bothbad", "neither", "skip", "skipped"}


def _ranks(value: Any) -> list[tuple[Any, str]]:
    """Rank and name of each option, best first; empty for what is no ranking."""
    if isinstance(value, dict) and isinstance(value.get("value"), list) and isinstance(value.get("rank"), list):
        value = [{"value": one, "rank": rank} for one, rank in zip(value["value"], value["rank"], strict=False)]
    if not isinstance(value, list) or not value:
        return []
    if all(isinstance(one, str) for one in value):
        return list(enumerate(value))
    if all(isinstance(one, dict) and isinstance(one.get("value"), str) for one in value):
        ranks = [one.get("rank") if isinstance(one.get("rank"), int) else place for place, one in enumerate(value)]
        return sorted(zip(ranks, (one["value"] for one in value), strict=True))
    return []


def _rows(value: Any, data: Mapping[str, Any], columns: Mapping[str, str], note: Any) -> list[dict[str, Any]]:
    """What one answer says of the record's responses."""
    if isinstance(value, int | float):
        return [{"response": fields.response(data, columns), "rating": value}]
    if isinstance(value, str):
        name, sides = fields.find(data, (value,)), fields.sides(data, columns)
        if name is None or sides is None:
            return [{"responses": sides, "winner": value}]
        other = [side for side in sides if side != data[name]]
        return [{"chosen": data[name], "rejected": other[0] if len(other) == 1 else None}]
    ranks = [(rank, fields.find(data, (name,))) for rank, name in _ranks(value)]
    if not ranks or any(name is None for _, name in ranks):
        note("responses", "an answer that names no field of the record", "export fields and responses together")
        return []
    texts = [(rank, data[name]) for rank, name in ranks if name is not None]
    if len({rank for rank, _ in texts}) == len(texts):
        return [{"ranking": [text for _, text in texts]}]
    pairs = itertools.combinations(texts, 2)
    return [
        {"responses": [one, other], "outcome": "tie"} if rank == below else {"chosen": one, "rejected": other}
        for (rank, one), (below, other) in pairs
    ]
