"""One vote of a file, checked: every fault of a row noted with its field and how to fix it.

The forms are those of `pref_jax.data.sources.jsonl.reader`.
"""

import datetime
import functools
import math
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from pref_jax.data.schema import OUTCOMES, SPLITS
from pref_jax.data.sources.jsonl.dialogues import Answer, Messages, Note, Tell, kind_of, prompt_and_answers
from pref_jax.errors import Faults

OPTIONAL = {"split": str, "group": str, "seen": bool, "controversial": bool}
# What a row of each form has beside its user, prompt and optional fields.
FORMS = {
    "pair": ("chosen", "rejected", "strength", "margin", "outcome"),
    "two": ("responses", "preference", "winner", "outcome"),
    "ranking": ("ranking", "responses"),
    "rating": ("response", "rating"),
}
COMMON = ("user", "prompt", "time", *OPTIONAL)
FIELDS = tuple(dict.fromkeys([*COMMON, *(field for form in FORMS.values() for field in form)]))
FORMS_IN_WORDS = "chosen and rejected; responses with preference, winner or outcome; ranking; or response and rating"
# A ranking of m responses becomes m (m - 1) / 2 rows.
MOST_RANKED = 100
_THUMBS = {"up": 1.0, "down": 0.0, "thumbs_up": 1.0, "thumbs_down": 0.0, "👍": 1.0, "👎": 0.0}
_SIDE = re.compile(
    r"(?:(?:model|response|answer|option|completion|output|text|assistant|candidate|conversation)[ _-]?)(?:(a|1)|(b|2))"
    r"|(a|left|first)|(b|right|second)"
)
_WITHOUT = {"tie": "tie", "draw": "tie", "equal": "tie", "both_good": "tie", "tie_(both_good)": "tie"}
_WITHOUT |= dict.fromkeys(("both_bad", "bothbad", "neither", "tie_(bothbad)", "tie_(both_bad)"), "both_bad")
_WITHOUT |= dict.fromkeys(("skip", "skipped"), "skipped")
_SIGN = "preference was read as: below 0 the first response is better, above 0 the second, 0 is a tie"
# Numbers below the first are seconds, then milliseconds, then microseconds: all up to the year 5138.
_UNITS = ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0))


class Row(NamedTuple):
    """A vote that was read well.

    Attributes:
      where: file and line.
      user, prompt: whose it is, on what.
      answers: the preferred one first; of a ranking, best first.
      outcome: of `schema.OUTCOMES`, or "ranking" or "rating".
      value: strength of a preference, or the rating; None where there is none.
      time: microseconds since 1970.
    """

    where: str
    user: str
    prompt: Messages
    answers: tuple[Answer, ...]
    outcome: str
    value: float | None
    time: int | None
    split: str | None
    group: str | None
    seen: bool | None
    controversial: bool | None


class Notes(NamedTuple):
    """What is noted while rows are read: faults, fields that nobody reads, and what was guessed, with counts."""

    faults: Faults
    ignored: Counter[str]
    told: Counter[str]


def checked_row(where: str, value: Any, notes: Notes) -> Row | None:
    """The row of one JSON value; None if it has faults.

    Args:
      where: the file and line, as people know them.
      value: any JSON value.
      notes: gets all faults of the row.
    """
    before = len(notes.faults)
    note = functools.partial(note_field, notes.faults, where)
    if not isinstance(value, dict):
        notes.faults.add(where, f"holds {kind_of(value)}", "write one JSON object on each line")
        return None
    form = _form(value)
    notes.ignored.update([field for field in value if field not in COMMON and field not in FORMS[form]])
    user = value.get("user")
    if "user" not in value:
        note("user", "missing", "name who preferred the answer")
    elif not isinstance(user, str):
        note("user", f"is {kind_of(user)}", "write it as a string")
    elif not user.strip():
        note("user", "is empty", "name who preferred the answer")
    optional = {field: _option(value, field, kind, note) for field, kind in OPTIONAL.items()}
    time = _time(value.get("time"), note)
    found = _READERS[form](value, note, functools.partial(_count, notes.told))
    if len(notes.faults) > before or found is None:
        return None
    return Row(where, str(user), *found, time, **optional)


def note_field(faults: Faults, where: str, field: str, what: str, fix: str) -> None:
    """Notes a fault of one field."""
    faults.add(f"{where}, field {field!r}", what, fix)


def _count(told: Counter[str], what: str) -> None:
    told[what] += 1


def _form(value: dict[str, Any]) -> str:
    """A pair goes before the others, whose fields may stand beside it as remarks."""
    there = {field for field in value if value[field] is not None}
    if there & {"chosen", "rejected"}:
        return "pair"
    if "ranking" in there:
        return "ranking"
    if "responses" in there:
        return "two"
    return "rating" if there & {"response", "rating"} else "pair"


_Found = tuple[Messages, tuple[Answer, ...], str, float | None]


def _pair(value: dict[str, Any], note: Note, tell: Tell) -> _Found | None:
    outcome = value.get("outcome")
    if outcome is not None and outcome not in OUTCOMES:
        note("outcome", f"is {_shown(outcome)}", f"use one of {', '.join(OUTCOMES)}")
    strengths = [field for field in ("strength", "margin") if value.get(field) is not None]
    if len(strengths) > 1:
        note("margin", "given beside strength", "give one of them")
    strength = _number(value, strengths[0], note) if strengths else None
    if strength == 0 and strengths == ["margin"]:
        tell("a margin of 0 was read as a preference without a strength")
        strength = None
    if strength is not None and strength <= 0:
        note(strengths[0], f"is {strength:g}", "give a number above 0, or outcome 'tie'")
    if strength is not None and outcome not in (None, OUTCOMES[0]):
        note(strengths[0], f"given with outcome {_shown(outcome)}", "leave it out: nothing was preferred")
    sides = [(side, value.get(side)) for side in ("chosen", "rejected")]
    found = prompt_and_answers(value.get("prompt"), sides, note, tell)
    if found is None:
        return None
    if found[1][0] == found[1][1]:
        note("rejected", "equals chosen", "drop the row: it prefers nothing")
    return found[0], tuple(found[1]), outcome or OUTCOMES[0], strength


def _two(value: dict[str, Any], note: Note, tell: Tell) -> _Found | None:
    found = _responses(value, "responses", note, tell)
    verdicts = [field for field in ("preference", "winner", "outcome") if value.get(field) is not None]
    if len(verdicts) != 1:
        what = f"given beside {' and '.join(verdicts[1:])}" if verdicts else "missing"
        note(verdicts[0] if verdicts else "preference", what, "say once which is better: preference, winner or outcome")
        return None
    verdict = _verdict(value, verdicts[0], note, tell)
    if found is None or verdict is None:
        return None
    if len(found[1]) != 2:
        note("responses", f"holds {len(found[1])} responses", "give two, or a ranking of several")
        return None
    outcome, second, strength = verdict
    return found[0], tuple(reversed(found[1])) if second else tuple(found[1]), outcome, strength


def _verdict(value: dict[str, Any], field: str, note: Note, tell: Tell) -> tuple[str, bool, float | None] | None:
    """Outcome, whether the second response is the better one, and strength."""
    given = value[field]
    if field == "preference" and not isinstance(given, str):
        number = _number(value, field, note)
        if number is None:
            return None
        tell(_SIGN)
        return (OUTCOMES[0], number > 0, abs(number)) if number else (OUTCOMES[1], False, None)
    word = re.sub(r"[ -]+", "_", given.strip().lower()) if isinstance(given, str) else ""
    if field == "outcome":
        if given in OUTCOMES[1:]:
            return given, False, None
        fix = f"use {', '.join(OUTCOMES[1:])}; a preference between responses is told by preference or winner"
    else:
        if word in _WITHOUT:
            return _WITHOUT[word], False, None
        if side := _SIDE.fullmatch(word):
            return OUTCOMES[0], bool(side[2] or side[4]), None
        fix = "write a, b, tie, both_bad or skipped" + (", or a number" if field == "preference" else "")
    note(field, f"is {_shown(given)}", fix)
    return None


def _ranking(value: dict[str, Any], note: Note, tell: Tell) -> _Found | None:
    order = value["ranking"]
    if value.get("responses") is None:
        found = _responses(value, "ranking", note, tell)
    else:
        found = _responses(value, "responses", note, tell)
        count = len(found[1]) if found else 0
        if found and not (isinstance(order, list) and sorted(map(repr, order)) == sorted(map(repr, range(count)))):
            note("ranking", "is no order of the responses", f"give their numbers from 0 to {count - 1}, best first")
            return None
        found = found and (found[0], [found[1][place] for place in order])
    if found is None:
        return None
    if not 2 <= len(found[1]) <= MOST_RANKED:
        note("ranking", f"holds {len(found[1])} responses", f"rank 2 to {MOST_RANKED}, best first")
        return None
    return found[0], tuple(found[1]), "ranking", None


def _rating(value: dict[str, Any], note: Note, tell: Tell) -> _Found | None:
    given = value.get("rating")
    rating: float | None = None
    if given is None:
        note("rating", "missing", "give a number, true or false, or up or down")
    elif isinstance(given, bool):
        rating = float(given)
    elif isinstance(given, str) and given.strip().lower() in _THUMBS:
        rating = _THUMBS[given.strip().lower()]
    else:
        rating = _number(value, "rating", note)
    found = prompt_and_answers(value.get("prompt"), [("response", value.get("response"))], note, tell)
    if found is None or rating is None:
        return None
    return found[0], tuple(found[1]), "rating", rating


_READERS = {"pair": _pair, "two": _two, "ranking": _ranking, "rating": _rating}


def _responses(value: dict[str, Any], field: str, note: Note, tell: Tell) -> tuple[Messages, list[Answer]] | None:
    """A list of different responses under one prompt."""
    given = value[field]
    if not isinstance(given, list) or not given:
        note(field, "is an empty list" if given == [] else f"is {kind_of(given)}", "write a list of responses")
        return None
    found = prompt_and_answers(
        value.get("prompt"), [(f"{field}[{place}]", one) for place, one in enumerate(given)], note, tell
    )
    if found is not None and len(set(found[1])) < len(found[1]):
        note(field, "holds a response twice", "give different responses, or drop the row")
        return None
    return found


def _number(value: dict[str, Any], field: str, note: Note) -> float | None:
    """A finite number that float32 can hold; what is not 0 must not become it."""
    given = value[field]
    if isinstance(given, bool) or not isinstance(given, int | float):
        note(field, f"is {kind_of(given)}", "write a number")
        return None
    try:
        with np.errstate(all="ignore"):
            held = float(np.float32(given))
    except OverflowError:
        held = math.inf
    if not math.isfinite(held) or (held == 0) != (given == 0):
        note(field, "is no number that float32 can hold", "write a finite number, not too large or small")
        return None
    return held


def _option(value: dict[str, Any], field: str, kind: type, note: Note) -> Any:
    """An optional field, None where it is absent or null."""
    given = value.get(field)
    if given is None:
        return None
    if not isinstance(given, kind):
        note(field, f"is {kind_of(given)}", "write a string" if kind is str else "write true or false")
    elif field == "split" and given not in SPLITS:
        note(field, f"is {given!r}", f"use {', '.join(SPLITS)}, or leave it out")
    elif kind is str and not given.strip():
        note(field, "is empty", "fill it in or leave it out")
    return given


def _time(given: Any, note: Note) -> int | None:
    """Microseconds since 1970; without a zone it is UTC."""
    if given is None:
        return None
    fix = "write it as in 2026-07-01T12:30:00Z, or as seconds or milliseconds since 1970"
    try:
        if isinstance(given, int | float) and not isinstance(given, bool):
            unit = next(unit for limit, unit in _UNITS if 0 <= given < limit)
            return round(given * unit)
        if isinstance(given, str):
            given = datetime.datetime.fromisoformat(given.strip())
        if isinstance(given, datetime.date) and not isinstance(given, datetime.datetime):
            given = datetime.datetime(given.year, given.month, given.day)
        if isinstance(given, datetime.datetime):
            aware = given if given.tzinfo else given.replace(tzinfo=datetime.UTC)
            since = aware - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
            return round(since / datetime.timedelta(microseconds=1))
    except (ValueError, OverflowError, StopIteration):
        note("time", f"is {_shown(given)}", fix)
        return None
    note("time", f"is {kind_of(given)}", fix)
    return None


def _shown(value: Any) -> str:
    """A word or number for messages, not a text."""
    return repr(value) if isinstance(value, str | int | float) and len(repr(value)) < 40 else kind_of(value)
