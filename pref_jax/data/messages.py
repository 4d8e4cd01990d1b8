"""Chat messages between the form of chat templates and that of the tables.

A template gets {role, content, tool_calls, name, ...}; a table holds {role, content, extra}, where `extra` is the JSON
text of all other fields, or null. Fields that are null count as absent, as columnar files cannot tell the two apart.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

Chat = list[dict[str, Any]]
# A message with one of these need say nothing.
_CALLS = ("tool_calls", "function_call")


def as_chat(messages: Iterable[Mapping[str, Any]]) -> Chat:
    """Messages of a table as a chat template reads them.

    Example:
      >>> as_chat([{"role": "tool", "content": "22", "extra": '{"name": "weather"}'}])
      [{'role': 'tool', 'content': '22', 'name': 'weather'}]
    """
    return [
        {"role": message["role"], "content": message["content"], **json.loads(message.get("extra") or "{}")}
        for message in messages
    ]


def answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """The assistant's message of a row of responses, by its `text` and, where there is one, its `extra`."""
    return {"role": "assistant", "content": row["text"], "extra": row.get("extra")}


def as_rows(chat: Iterable[Mapping[str, Any]]) -> list[dict[str, str | None]]:
    """Messages of a chat template as a table holds them; content that is null, beside tool calls, becomes empty.

    Raises:
      ValueError: if something is no message; the error says what.
    """
    rows = []
    for place, message in enumerate(chat):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {place} is no {{role, content}} of strings")
        try:
            extra = other_fields(message)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"message {place} has a field that is no JSON ({error})") from None
        content = content_of(message)
        content = joined(content) if isinstance(content, list) else content
        if not isinstance(content, str):
            raise ValueError(f"message {place} is no {{role, content}} of strings")
        rows.append({"role": message["role"], "content": content, "extra": extra})
    return rows


def content_of(message: Mapping[str, Any]) -> Any:
    """A message's content; empty where it is null beside a tool call."""
    content = message.get("content")
    return "" if content is None and any(message.get(name) for name in _CALLS) else content


def joined(parts: list[Any]) -> str | None:
    """Content that is a list of parts {type: text, text}, as the text they are together; None if it has other parts.

    Example:
      >>> joined([{"type": "text", "text": "How "}, {"type": "text", "text": "long?"}])
      'How long?'
    """
    texts = []
    for part in parts:
        own = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
        text = part if isinstance(part, str) else own.get("text")
        if not isinstance(text, str) or own.keys() - {"type", "text"} or own.get("type", "text") != "text":
            return None
        texts.append(text)
    return "".join(texts)


def other_fields(message: Mapping[str, Any]) -> str | None:
    """JSON text of all fields but role and content; None where there are none.

    Raises:
      ValueError, TypeError, RecursionError: for values that JSON does not have.
    """
    rest = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
    return json.dumps(rest, ensure_ascii=False, allow_nan=False) if rest else None


def as_text(message: Mapping[str, Any]) -> str:
    """A message for models without a chat template: the content, then its other fields as JSON."""
    return "\n".join(part for part in (message["content"], message.get("extra")) if part)
