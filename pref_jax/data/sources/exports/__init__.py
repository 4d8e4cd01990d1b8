"""Exports of the tools in which people vote, as rows of the forms in `pref_jax.data.sources.jsonl.reader`."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pref_jax.data.sources.exports import arena, argilla, label_studio

# Field, what is wrong, and the fix.
Note = Callable[[str, str, str], None]


class Tool(NamedTuple):
    """A tool: its name in words, whether a record is its, and the votes of a record.

    `votes` takes a record, columns by option, a function that notes a fault, and a counter of what is left out.
    """

    name: str
    is_record: Callable[[dict[str, Any]], bool]
    votes: Callable[[dict[str, Any], Mapping[str, str], Note, Counter[str]], list[dict[str, Any]]]


TOOLS = (
    Tool("Label Studio", label_studio.is_record, label_studio.votes),
    Tool("Chatbot Arena", arena.is_record, arena.votes),
    Tool("Argilla", argilla.is_record, argilla.votes),
)


def recognised(records: Iterable[Any]) -> Tool | None:
    """The tool whose export has these records; None for plain rows."""
    known = [record for record in records if isinstance(record, dict)]
    return next((tool for tool in TOOLS if any(tool.is_record(record) for record in known)), None)
