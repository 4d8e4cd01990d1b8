"""Which column is which: as an option says, or by names that people use."""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from pref_jax.data.sources.jsonl.rows import FIELDS, FORMS_IN_WORDS
from pref_jax.errors import UserError

# Two columns that together are `responses`; the tool's question that is read where it asks several.
SIDES, QUESTION = ("response_a", "response_b"), "question"
KNOWN = (*FIELDS, *SIDES, QUESTION)
USERS = ("user_id", "userid", "username", "annotator", "annotator_id", "annotator_name", "rater", "rater_id")
USERS += ("worker", "worker_id", "workerid", "participant", "participant_id", "voter", "judge", "judge_id", "labeler")
USERS += ("reviewer", "assessor", "evaluator", "person", "judge_hash", "completed_by", "evaluation_session_id")
PROMPTS = ("prompts", "question", "instruction", "query", "context", "input", "question_text", "prompt_text", "post")
_TIME = ("timestamp", "tstamp", "created_at", "submitted_at", "updated_at", "date", "datetime")
_PAIRS = (
    ("chosen_response", "rejected_response"),
    ("chosen_text", "rejected_text"),
    ("preferred", "dispreferred"),
    ("preferred_response", "dispreferred_response"),
    ("winning_response", "losing_response"),
    ("better", "worse"),
)
_STEMS = ("response", "answer", "completion", "output", "option", "candidate", "text", "generation", "reply", "summary")
_ENDS = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"))
PAIRED = tuple((f"{stem}{gap}{a}", f"{stem}{gap}{b}") for stem in _STEMS for gap in ("_", "") for a, b in _ENDS)
_VERDICTS = {
    "preference": ("overall_preference", "preference_score", "likert"),
    "winner": ("label", "choice", "verdict", "selected", "vote", "preferred", "better", "judgement", "judgment"),
}
_RANKING = ("ranked", "ranked_responses", "ranking_of_responses")
RESPONSES = ("answer", "completion", "output", "reply", "text", "item", "generation")
_RATING = ("score", "stars", "rate", "thumbs", "likert", "label", "vote")


def parse_option(text: str) -> dict[str, str]:
    """`user=annotator,prompt=question` as a mapping.

    Raises:
      UserError: where a part is not NAME=COLUMN.
    """
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not (name.strip() and column.strip()) for name, _, column in parts):
        raise UserError(f"columns: {text!r} is not of the form user=annotator,prompt=question")
    return {name.strip(): column.strip() for name, _, column in parts}


def choose(names: Iterable[str], given: Mapping[str, str], where: str, sample: Mapping[str, Any]) -> dict[str, str]:
    """Field -> column, for the fields whose column has another name.

    Args:
      names: of all columns.
      given: field -> column, by option.
      where: names the file in errors.
      sample: some row.

    Raises:
      UserError: for a field or a column that there is not; or if there is no vote in such columns.
    """
    names = list(names)
    check_given(given)
    if missing := [column for field, column in given.items() if column not in names and field != QUESTION]:
        raise UserError(f"{where}: no column {', '.join(map(repr, missing))}; there are {', '.join(map(repr, names))}")
    plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in reversed(names)}
    there = {*names, *given}
    chosen = {field: column for field, column in given.items() if field != QUESTION}

    def guess(field: str, others: Iterable[str]) -> bool:
        if field in there:
            return True
        taken = {*chosen.values(), *FIELDS}
        found = next((plain[name] for name in (field, *others) if name in plain and plain[name] not in taken), None)
        chosen.update({field: found} if found else {})
        return found is not None

    guess("user", USERS)
    guess("time", _TIME)
    pair = next(((a, b) for a, b in _PAIRS if a in plain and b in plain), None)
    two = next(((a, b) for a, b in PAIRED if a in plain and b in plain), None)
    if pair and not there & {"chosen", "rejected"}:
        chosen.update(chosen=plain[pair[0]], rejected=plain[pair[1]])
    elif not there & {"chosen", "rejected", "ranking", "rating"}:
        if "responses" not in there and two and not set(SIDES) <= given.keys():
            chosen.update({side: plain[name] for side, name in zip(SIDES, two, strict=True)})
        if "responses" in there or set(SIDES) <= chosen.keys():
            any(guess(field, others) for field, others in {"outcome": (), **_VERDICTS}.items())
        elif not guess("ranking", _RANKING) and guess("response", RESPONSES):
            guess("rating", _RATING)
    elif "rating" in there and not there & {"chosen", "rejected", "ranking"}:
        guess("response", RESPONSES)
    if not (isinstance(sample.get("chosen"), list) and len(sample["chosen"]) > 1):
        guess("prompt", PROMPTS)
    votes = {"chosen", "rejected", "responses", *SIDES, "ranking", "response", "rating"}
    if not {*there, *chosen} & votes and any(name not in FIELDS for name in names):
        raise UserError(
            f"{where}: no votes in columns {', '.join(map(repr, names[:20]))}; say which they are with "
            f"columns (--columns user=...,prompt=...,chosen=...); a vote is {FORMS_IN_WORDS}"
        )
    return {field: column for field, column in chosen.items() if field != column}


def check_given(given: Mapping[str, str]) -> None:
    """Raises `UserError` for fields that there are not."""
    if unknown := [field for field in given if field not in KNOWN]:
        raise UserError(f"columns: no field {', '.join(map(repr, unknown))}; there are {', '.join(KNOWN)}")


def renamed(row: dict[str, Any], columns: Mapping[str, str], cells: str) -> dict[str, Any]:
    """A row with the fields' own names, two sides as `responses`, and cells of a table as the values they stand for."""
    if columns:
        back = {column: field for field, column in columns.items()}
        # A column that takes a field's name makes way for the one that was named as this field.
        row = {back.get(name, name): value for name, value in row.items() if name in back or name not in columns}
    if SIDES[0] in row and SIDES[1] in row and "responses" not in row:
        rest = {name: value for name, value in row.items() if name not in SIDES}
        sides = [_messages(row[side]) if cells == "text" else row[side] for side in SIDES]
        row = {**rest, "responses": sides}
    if cells == "text":
        return {name: _CELLS[name](value) if name in _CELLS else value for name, value in row.items()}
    if cells == "typed":
        return {name: _TYPED[name](value) if name in _TYPED else value for name, value in row.items()}
    return row


_NUMBERS = ("strength", "margin", "preference", "rating", "time")


def _messages(value: Any) -> Any:
    """A cell that holds a list of messages as that list; any other is text, whatever it looks like."""
    found = _texts(value)
    return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) and found else value


def _texts(value: Any) -> Any:
    """A cell that holds a list, as JSON or as pandas writes it, as that list."""
    if not isinstance(value, str) or value[:1] not in "[":
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return value


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (ValueError, TypeError):
        return value


def _flag(value: Any) -> Any:
    return {"true": True, "false": False, "1": True, "0": False}.get(value.lower(), value)


def _rating(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.strip().lower(), _number(value))


def _id(value: Any) -> Any:
    """A whole number as the name it is in a typed column."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    return str(int(value)) if whole else value


_CELLS = {
    **dict.fromkeys(("prompt", "chosen", "rejected", "response"), _messages),
    **dict.fromkeys(("responses", "ranking"), _texts),
    **dict.fromkeys(_NUMBERS, _number),
    **dict.fromkeys(("seen", "controversial"), _flag),
    "rating": _rating,
}
_TYPED = {"user": _id, **dict.fromkeys(_NUMBERS, lambda value: float(value) if isinstance(value, Decimal) else value)}
