"""Which data of a tool's record are the prompt and the responses: by option, or by names that people use."""

import re
from collections.abc import Mapping
from typing import Any

from pref_jax.data.sources.jsonl.columns import PAIRED, PROMPTS, RESPONSES, SIDES


def plain(name: str) -> str:
    """A name without case, spaces, hyphens and underscores."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def find(data: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first name that the data has."""
    known = {plain(name): name for name in reversed(list(data))}
    return next((known[plain(name)] for name in names if plain(name) in known), None)


def prompt(data: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
    """The prompt, None where there is none."""
    name = columns.get("prompt") or find(data, ("prompt", *PROMPTS))
    return data.get(name) if name else None


def response(data: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
    """The only response: what is no prompt, if a single text is not, or by name; None where there is none."""
    name = columns.get("response") or find(data, ("response", *RESPONSES))
    asked = columns.get("prompt") or find(data, ("prompt", *PROMPTS))
    others = [key for key, value in data.items() if isinstance(value, str | list) and key != asked]
    name = name or (others[0] if len(others) == 1 else None)
    return data.get(name) if name else None


def sides(data: Mapping[str, Any], columns: Mapping[str, str]) -> list[Any] | None:
    """The two responses, None where there are no two."""
    named = [columns.get(side) for side in SIDES]
    pairs = [named] if all(named) else [[find(data, (a,)), find(data, (b,))] for a, b in PAIRED]
    return next(([data[a], data[b]] for a, b in pairs if a and b and a in data and b in data), None)
