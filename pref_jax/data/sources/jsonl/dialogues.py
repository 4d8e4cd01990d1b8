"""Prompts and answers of a row, checked: strings, lists of chat messages, and whole dialogues."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from pref_jax.data.messages import content_of, joined, other_fields
from pref_jax.data.schema import ROLES

# Role, content, and the JSON text of a message's other fields or None.
Messages = tuple[tuple[str, str, str | None], ...]
# Text, and the same.
Answer = tuple[str, str | None]
Note = Callable[[str, str, str], None]
Tell = Callable[[str], None]
_TURNS = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def prompt_and_answers(
    prompt: Any, given: Sequence[tuple[str, Any]], note: Note, tell: Tell
) -> tuple[Messages, list[Answer]] | None:
    """The prompt and its answers; None, and notes, if something is wrong with them.

    Without a prompt the answers are whole dialogues that differ in the last message: lists of messages, or texts, in
    the form of Anthropic's sets ("\\n\\nHuman: ... \\n\\nAssistant: ...") or with common first lines, which become the
    prompt.

    Args:
      prompt: a string, a list of messages, or None.
      given: field and value of each answer.
      note: notes a fault: field, what, fix.
      tell: counts what was done to rows of a form that leaves something to guess.
    """
    fields = " and ".join(field for field, _ in given)
    if prompt is None and all(isinstance(value, str) and value.strip() for _, value in given):
        prompt, given = _of_texts(given, tell)
    asked = checked_messages(prompt, "prompt", note, tell) if prompt is not None else None
    said = [_said(field, value, note, tell) for field, value in given]
    if prompt is None:
        if any(value is not None and not isinstance(value, list) for _, value in given) or not given:
            note("prompt", "missing", f"give the prompt, or whole dialogues as {fields}")
            return None
        if any(one is None for one in said):
            if all(value is None for _, value in given):
                note("prompt", "missing", f"give the prompt, or whole dialogues as {fields}")
            return None
        beginnings = {one[:-1] for one in said if one is not None}
        asked = beginnings.pop()
        if beginnings or not asked:
            fix = "let them differ in the last message only, or give the prompt"
            note("prompt", f"missing, and {fields} share no dialogue before their last messages", fix)
            return None
    if asked is None or any(one is None for one in said):
        return None
    answers = [_answer(asked, one, field, note) for one, (field, _) in zip(said, given, strict=True) if one]
    if any(one is None for one in answers):
        return None
    return asked, [one for one in answers if one is not None]


def _of_texts(given: Sequence[tuple[str, Any]], tell: Tell) -> tuple[Any, Sequence[tuple[str, Any]]]:
    """Whole texts as messages, or as a prompt and answers; as they are where they share no first line."""
    parsed = [(field, _parsed(value)) for field, value in given]
    if all(value is not None for _, value in parsed):
        tell("dialogues in one text were read as messages (Human: user, Assistant: assistant)")
        return None, parsed
    texts = sorted(value for _, value in given)
    # What the first and the last in order share, all share.
    equal = (one == other for one, other in zip(texts[0], texts[-1], strict=False))
    common = texts[0][: sum(itertools.takewhile(bool, equal))]
    end = common.rfind("\n") + 1
    if len(given) < 2 or not common[:end].strip() or not all(value[end:].strip() for _, value in given):
        return None, given
    tell("common first lines of two texts were taken as their prompt")
    return common[:end].strip(), [(field, value[end:]) for field, value in given]


def _parsed(text: str) -> list[dict[str, str]] | None:
    """Messages of a text like "\\n\\nHuman: Hi!\\n\\nAssistant: Hello."; None where it is none."""
    start, *parts = _TURNS.split(text)
    if start.strip() or len(parts) < 4 or parts[0] != "Human" or parts[-2] != "Assistant":
        return None
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _SPEAKERS[speaker], "content": content.strip()} for speaker, content in pairs]


def _said(field: str, value: Any, note: Note, tell: Tell) -> Messages | None:
    """An answer as messages; a string is one message of the assistant."""
    if value is None:
        note(field, "missing", "give the answer as a string or a list of messages")
        return None
    return checked_messages(value, field, note, tell, role="assistant")


def _answer(prompt: Messages, messages: Messages, field: str, note: Note) -> Answer | None:
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
    return messages[0][1:]


def checked_messages(value: Any, field: str, note: Note, tell: Tell, role: str = "user") -> Messages | None:
    """A string (said by `role`) or a list of chat messages, checked; every field of a message is kept."""
    if isinstance(value, str):
        if value.strip():
            return ((role, value, None),)
        note(field, "is empty", "fill it in or drop the row")
        return None
    if not isinstance(value, list):
        note(field, f"is {kind_of(value)}", "write a string or a list of {role, content}")
        return None
    if not value:
        note(field, "is an empty list", "give at least one message")
        return None
    found = [_message(message, place, len(value), field, note, tell) for place, message in enumerate(value)]
    return None if any(one is None for one in found) else tuple(one for one in found if one is not None)


def _message(
    message: Any, place: int, count: int, field: str, note: Note, tell: Tell
) -> tuple[str, str, str | None] | None:
    role, content = (message.get("role"), content_of(message)) if isinstance(message, dict) else (None, None)
    try:
        extra = (
            other_fields(message)
            if isinstance(message, dict) and len(message) > 2 - ("content" not in message)
            else None
        )
    except (ValueError, TypeError, RecursionError) as error:
        note(field, f"message {place} has a field that is no JSON ({error})", "write its fields as JSON")
        return None
    if isinstance(content, list) and isinstance(role, str):
        content = _joined(content, place, field, note, tell)
        if content is None:
            return None
    if not (isinstance(role, str) and isinstance(content, str)):
        note(field, f"message {place} is no {{role, content}} of strings", "write both as strings")
    elif role not in ROLES:
        note(field, f"message {place} has role {role!r}", f"use {', '.join(ROLES)}")
    elif not content.strip() and content_of({**message, "content": None}) is None:
        note(field, "is empty" if count == 1 else f"message {place} is empty", "fill it in or drop the row")
    else:
        return role, content, extra
    return None


def _joined(parts: list[Any], place: int, field: str, note: Note, tell: Tell) -> str | None:
    """Content that is a list of parts, as the text they are together; None, and a note, if there is more than text."""
    text = joined(parts)
    if text is None:
        note(field, f"message {place} has a part that is no text", "give parts {type: text, text}, or a string")
        return None
    tell("contents in several parts were joined to one text")
    return text


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
