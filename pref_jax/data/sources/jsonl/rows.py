"""One vote of a JSONL file, checked: every fault of a row noted with its field and how to fix it.

The format is `pref_jax.data.sources.jsonl.reader`'s.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from pref_jax.data.schema import ROLES, SPLITS
from pref_jax.errors import Faults

Messages = tuple[tuple[str, str], ...]
Note = Callable[[str, str, str], None]
OPTIONAL = {"split": str, "group": str, "seen": bool, "controversial": bool}
FIELDS = ("user", "prompt", "chosen", "rejected", *OPTIONAL)


class Row(NamedTuple):
    """One line that was read well; `line` counts from 1."""

    line: int
    user: str
    prompt: Messages
    chosen: str
    rejected: str
    split: str | None
    group: str | None
    seen: bool | None
    controversial: bool | None


def checked_row(where: str, line: int, value: Any, faults: Faults, ignored: Counter[str]) -> Row | None:
    """The row of one JSON value; None if it has faults.

    Args:
      where: the file and line, as people know them.
      line: its number, from 1.
      value: any JSON value.
      faults: gets all faults of the row.
      ignored: counts fields that nobody reads.
    """
    before = len(faults)
    note = functools.partial(note_field, faults, where)
    if not isinstance(value, dict):
        faults.add(where, f"holds {kind_of(value)}", "write one JSON object on each line")
        return None
    ignored.update(field for field in value if field not in FIELDS)
    user = value.get("user")
    if "user" not in value:
        note("user", "missing", "name who preferred the answer")
    elif not isinstance(user, str):
        note("user", f"is {kind_of(user)}", "write it as a string")
    elif not user.strip():
        note("user", "is empty", "name who preferred the answer")
    optional = {field: _option(value, field, kind, note) for field, kind in OPTIONAL.items()}
    pair = _pair(value, note)
    if len(faults) > before or pair is None:
        return None
    prompt, chosen, rejected = pair
    return Row(line, str(user), prompt, chosen, rejected, **optional)


def note_field(faults: Faults, where: str, field: str, what: str, fix: str) -> None:
    """Notes a fault of one field."""
    faults.add(f"{where}, field {field!r}", what, fix)


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


def _pair(value: dict[str, Any], note: Note) -> tuple[Messages, str, str] | None:
    """Prompt, chosen and rejected text of a row; None, and notes, if something is wrong with them."""
    prompt = checked_messages(value["prompt"], "prompt", note) if value.get("prompt") is not None else None
    given = {field: _given(value, field, note) for field in ("chosen", "rejected")}
    chosen, rejected = given["chosen"], given["rejected"]
    if value.get("prompt") is None:
        if not (isinstance(value.get("chosen"), list) and isinstance(value.get("rejected"), list)):
            note("prompt", "missing", "give the prompt, or whole dialogues as chosen and rejected")
            return None
        if chosen is None or rejected is None:
            return None
        prompt = chosen[:-1]
        if not prompt or prompt != rejected[:-1]:
            fix = "let them differ in the last message only, or give the prompt"
            note("prompt", "missing, and chosen and rejected share no dialogue before their last messages", fix)
            return None
    if prompt is None or chosen is None or rejected is None:
        return None
    texts = [_answer(prompt, messages, field, note) for field, messages in (("chosen", chosen), ("rejected", rejected))]
    if texts[0] is None or texts[1] is None:
        return None
    if texts[0] == texts[1]:
        note("rejected", "equals chosen", "drop the row: it prefers nothing")
    return prompt, texts[0], texts[1]


def _given(value: dict[str, Any], field: str, note: Note) -> Messages | None:
    """`chosen` or `rejected` as messages; a string is one message of the assistant."""
    if value.get(field) is None:
        note(field, "missing", "give the answer as a string or a list of messages")
        return None
    return checked_messages(value[field], field, note, role="assistant")


def checked_messages(value: Any, field: str, note: Note, role: str = "user") -> Messages | None:
    """A string (said by `role`) or a list of {role, content}, checked."""
    if isinstance(value, str):
        if value.strip():
            return ((role, value),)
        value = [{"role": role, "content": value}]
    if not isinstance(value, list):
        note(field, f"is {kind_of(value)}", "write a string or a list of {role, content}")
        return None
    if not value:
        note(field, "is an empty list", "give at least one message")
        return None
    good = True
    for place, message in enumerate(value):
        speaker, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        if not (isinstance(speaker, str) and isinstance(content, str)):
            note(field, f"message {place} is no {{role, content}} of strings", "write both as strings")
        elif speaker not in ROLES:
            note(field, f"message {place} has role {speaker!r}", f"use {', '.join(ROLES)}")
        elif not content.strip():
            note(field, "is empty" if len(value) == 1 else f"message {place} is empty", "fill it in or drop the row")
        else:
            continue
        good = False
    return tuple((message["role"], message["content"]) for message in value) if good else None


def _answer(prompt: Messages, messages: Messages, field: str, note: Note) -> str | None:
    """The one message of the assistant that follows the prompt."""
    if len(messages) > len(prompt) and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1:
        fix = "give one answer, and everything before it as the prompt"
        note(field, f"holds {len(messages)} messages after the prompt", fix)
        return None
    if messages[0][0] != "assistant":
        note(field, f"ends with a message of role {messages[0][0]!r}", "end with the assistant's answer")
        return None
    return messages[0][1]


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
