"""JSON lines that a saved model is given: responses to be scored, and votes sorted by their user.

    {"user": "ada", "prompt": "How long?", "response": "Seven minutes."}
    {"user": null, "prompt": [{"role": "user", "content": "How long?"}], "responses": ["Seven minutes.", "It depends."]}

The user null is nobody in particular. Other fields are kept as they are.
"""

import functools
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pref_jax.data.messages import Chat, as_chat
from pref_jax.data.sources.formats.json_text import json_lines
from pref_jax.data.sources.formats.streams import STDIN, STDIN_NAME
from pref_jax.data.sources.jsonl.dialogues import Messages, Note, checked_messages, kind_of
from pref_jax.data.sources.jsonl.reader import Reading
from pref_jax.data.sources.jsonl.rows import checked_row, note_field
from pref_jax.data.sources.jsonl.tables import as_messages
from pref_jax.errors import Faults, UserError
from pref_jax.progress import log


class Request(NamedTuple):
    """Responses to be scored under one prompt for one user (None: nobody in particular); `line` is what was read."""

    line: dict[str, Any]
    user: str | None
    prompt: Chat
    responses: list[str]


def read_requests(
    path: Path, known: Collection[str], added: Sequence[str], *, several: bool = False, sampled: bool = False
) -> list[Request]:
    """Requests of a file, or of standard input (`-`).

    Args:
      path: the file, UTF-8, see above.
      known: ids of users.
      added: fields that the answer will add; one that ends in `*` gets an "s" where there are several responses.
      several: whether every line must have `responses`, and none `response`.
      sampled: lines may have none, which gives an empty list: they will be sampled.

    Raises:
      UserError: with all bad lines at once, each with line, field and fix.
    """
    faults = Faults()
    found = [_request(where, value, faults, known, added, several, sampled) for where, value in _places(path, faults)]
    faults.raise_if_any(f"{path}: bad requests")
    return [request for request in found if request]


def read_prompts(path: Path, added: Sequence[str]) -> list[Request]:
    """Prompts of a file, or of standard input (`-`), as requests of nobody in particular without responses.

    Args:
      path: the file, UTF-8, an object with `prompt` on each line.
      added: fields that the answer will add.

    Raises:
      UserError: with all bad lines at once, each with line, field and fix.
    """
    faults, found = Faults(), []
    for where, value in _places(path, faults):
        note = functools.partial(note_field, faults, where)
        if not isinstance(value, dict):
            faults.add(where, f"holds {kind_of(value)}", "write one JSON object on each line")
            continue
        prompt = _prompt(value, note)
        _check_added(value, added, note)
        found.append(Request(value, None, prompt, []))
    faults.raise_if_any(f"{path}: bad prompts")
    return found


def read_user_votes(path: Path, user: str = "", columns: str = "") -> dict[str, list[dict[str, Any]]]:
    """Rows of a file of votes (`-`: standard input) by their users, in order of appearance, under the fields' names.

    Args:
      path: see `pref_jax.data.sources.jsonl.reader`.
      user: whose votes they are; rows may then leave it out, and must not name someone else.
      columns: as `pref_jax.data.sources.jsonl.reader.read` takes them.

    Raises:
      UserError: with all bad rows at once, each with line, field and fix; or if there are none.
    """
    faults, users = Faults(), {}
    _tell_terminal(path)
    reading = Reading(path, columns, faults)
    for where, value in reading.rows():
        if user and isinstance(value, dict) and value.setdefault("user", user) != user:
            faults.add(f"{where}, field 'user'", f"is {value['user']!r}", f"drop it, or name another user than {user}")
        row = checked_row(where, value, reading.notes)
        if row is not None:
            users.setdefault(row.user, []).append(value)
    faults.raise_if_any(f"{path}: bad votes")
    if not users:
        raise UserError(f"{path}: no votes; give one JSON object a line with user, prompt, chosen and rejected")
    return users


def _places(path: Path, faults: Faults) -> Iterator[tuple[str, Any]]:
    """Where each line is, and its value."""
    _tell_terminal(path)
    name = STDIN_NAME if path == STDIN else path
    return ((f"{name}:{line}", value) for line, value in json_lines(path, faults))


def _tell_terminal(path: Path) -> None:
    if path == STDIN and sys.stdin.isatty():
        log("reading JSON lines from the terminal; end with Ctrl-D")


def _request(
    where: str,
    value: Any,
    faults: Faults,
    known: Collection[str],
    added: Sequence[str],
    several: bool,
    sampled: bool,
) -> Request | None:
    note = functools.partial(note_field, faults, where)
    if not isinstance(value, dict):
        faults.add(where, f"holds {kind_of(value)}", "write one JSON object on each line")
        return None
    user = value.get("user")
    if "user" not in value:
        note("user", "missing", "name a user, or write null for nobody in particular")
    elif user is not None and not isinstance(user, str):
        note("user", f"is {kind_of(user)}", "write it as a string, or null for nobody in particular")
    elif user is not None and user not in known:
        note("user", f"{user!r} is not known to the model", "add votes of this user (pref add-votes), or write null")
    prompt, responses = _prompt(value, note), _responses(value, several, sampled, note)
    _check_added(value, [name.replace("*", "s" if "responses" in value else "") for name in added], note)
    return Request(value, user, prompt, responses)


def _prompt(value: dict[str, Any], note: Note) -> Chat:
    """`prompt`; notes what is none."""
    prompt: Messages | None = None
    if value.get("prompt") is None:
        note("prompt", "missing", "give it as a string or a list of {role, content}")
    else:
        prompt = checked_messages(value["prompt"], "prompt", note, lambda _: None)
    return as_chat(as_messages(prompt or ()))


def _check_added(value: dict[str, Any], added: Sequence[str], note: Note) -> None:
    for field in added:
        if field in value:
            note(field, "is there already", "rename or drop it: the answer is written there")


def _responses(value: dict[str, Any], several: bool, sampled: bool, note: Note) -> list[Any]:
    """`responses`, or `response` alone; notes what is no text."""
    if several and "responses" not in value:
        if "response" in value or not sampled:
            note("responses", "missing", "give a list of strings to be ranked")
        return []
    if ("response" in value) == ("responses" in value):
        fix = "give response, a string, or responses, a list of strings"
        note("response", "given beside responses" if "response" in value else "missing", fix)
        return []
    field = "response" if "response" in value else "responses"
    given = value[field] if field == "responses" else [value[field]]
    if not isinstance(given, list) or not given:
        note(field, "is an empty list" if given == [] else f"is {kind_of(given)}", "write a list of strings")
        return []
    for place, text in enumerate(given):
        name = f"response {place} " if field == "responses" else ""
        if not isinstance(text, str):
            note(field, f"{name}is {kind_of(text)}", "write a string")
        elif not text.strip():
            note(field, f"{name}is empty", "fill it in or drop it")
    return given
