"""What is let into a store: values that both databases hold alike, and votes that can be trained on."""

import functools
import math
import re
import struct
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from pref_jax.data.sources.jsonl.dialogues import Note, checked_messages
from pref_jax.errors import Faults, UserError
from pref_jax.serve.store.records import CHOICES, SIDES, Pair, Vote

# Letters of an id, and of a text; chat messages count as their JSON.
MOST_ID, MOST_TEXT = 256, 1_000_000
# What reads votes takes numbers from here on for milliseconds.
LAST_SECOND = 1e11
# Line and paragraph separators count as control characters: they break lines of lists and logs.
_CONTROL = ("Cc", "Cs", "Zl", "Zp")
# In JSON, after an even number of backslashes.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_PROVENANCE = ("asked", "pair", "page_version", "model_version")


def check_id(value: str, what: str) -> None:
    """Raises `UserError` if this is no id: a string of 1 to 256 letters, not blank, without control characters."""
    faults = Faults()
    _id(value, what, functools.partial(faults.add))
    faults.raise_if_any("not an id")


def check_number(value: int, what: str, least: int = 0) -> None:
    """Raises `UserError` if this is no whole number from `least` on that a database holds."""
    if not least <= value < 2**63:
        raise UserError(
            f"{what}: is {value if abs(value) < 2**63 else 'too large'}; give a whole number from {least} on"
        )


def check_votes(votes: Sequence[Vote]) -> None:
    """Looks at each vote.

    Raises:
      UserError: with all faults at once, each with the vote's place, the field and how to fix it; no text is told.
    """
    faults = Faults()
    for place, vote in enumerate(votes):
        note = functools.partial(_note, faults, f"vote {place}")
        _id(vote.id, "id", note)
        _texts(vote, note)
        _choice(vote, note)
        _provenance(vote, note)
    faults.raise_if_any("bad votes")


def check_pairs(pairs: Sequence[Pair]) -> None:
    """As `check_votes`, for pairs of a pool."""
    faults = Faults()
    for place, pair in enumerate(pairs):
        note = functools.partial(_note, faults, f"pair {place}")
        _id(pair.id, "id", note)
        _texts(pair, note)
    faults.raise_if_any("bad pairs")


def check_rights(rights: Iterable[str]) -> None:
    """Raises `UserError` unless rights are one or more words of small letters, digits, - and _."""
    given = list(rights)
    if not given or not all(1 <= len(right) <= 32 and right.replace("-", "_").isidentifier() for right in given):
        raise UserError("rights: name at least one, each a word such as score or vote")
    if any(not right.isascii() or right != right.lower() for right in given):
        raise UserError("rights: write them in small letters, such as score or vote")


def _note(faults: Faults, where: str, field: str, what: str, fix: str) -> None:
    faults.add(f"{where}, field {field!r}", what, fix)


def _id(value: Any, field: str, note: Note) -> None:
    if not isinstance(value, str):
        note(field, "is no string", "write it as a string")
    elif not value.strip():
        note(field, "is empty", "fill it in")
    elif len(value) > MOST_ID:
        note(field, f"has {len(value)} letters", f"use at most {MOST_ID}")
    elif any(unicodedata.category(letter) in _CONTROL for letter in value):
        note(field, "holds a control character or half a character", "leave it out")


def _texts(given: Vote | Pair, note: Note) -> None:
    messages = checked_messages(given.prompt, "prompt", note, lambda _: None)
    if messages is not None:
        said = [part for role, content, _ in messages for part in (role, content)]
        _storable(said, "prompt", note, "".join(fields for _, _, fields in messages if fields))
    for field in ("first", "second"):
        text = getattr(given, field)
        if not isinstance(text, str) or not text.strip():
            note(field, "is empty" if isinstance(text, str) else "is no string", "give the response")
        else:
            _storable([text], field, note)
    if given.first == given.second:
        note("second", "equals first", "ask about two different responses")


def _storable(parts: list[str], field: str, note: Note, fields: str = "") -> None:
    """PostgreSQL holds no NUL, and UTF-8 no half of a pair of surrogates; `fields` are JSON."""
    length = sum(map(len, [*parts, fields]))
    if length > MOST_TEXT:
        note(field, f"has {length} letters", f"give at most {MOST_TEXT}")
    elif any("\0" in part for part in parts) or _NUL.search(fields):
        note(field, "holds the character NUL", "leave it out")
    elif not all(map(_is_unicode, [*parts, fields])):
        note(field, "holds half a character (a lone surrogate)", "send the whole character, or leave it out")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _choice(vote: Vote, note: Note) -> None:
    if vote.choice not in CHOICES:
        return note("choice", "is none", f"use one of {', '.join(CHOICES)}")
    if vote.strength is None:
        return None
    if vote.choice not in CHOICES[:2]:
        return note("strength", f"given with choice {vote.choice!r}", "leave it out: nothing was preferred")
    if not _is_number(vote.strength) or not _float32(vote.strength):
        note("strength", "is no finite number above 0 that float32 can hold", "give such a number, or leave it out")
    return None


def _provenance(vote: Vote, note: Note) -> None:
    for field in _PROVENANCE:
        if getattr(vote, field) is not None:
            _id(getattr(vote, field), field, note)
    if vote.shown not in (None, *SIDES):
        note("shown", "is no side", "use left or right")
    if vote.latency is not None and not _is_number(vote.latency):
        note("latency", "is no finite number of seconds, 0 or more", "leave it out if it was not measured")
    if vote.time is not None and not _is_number(vote.time, LAST_SECOND):
        note("time", "is no time", "give seconds since 1970, or leave it out")


def _is_number(value: Any, end: float = math.inf) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return 0 <= float(value) < end
    except OverflowError:
        return False


def _float32(value: float) -> float:
    """The value as float32; 0 where it is too large or too small for it."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return 0.0
