"""What values in the JSON files of a checkpoint have to be."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pref_jax.errors import Faults, UserError

# A test of a value, and what to give where it fails.
Kind = tuple[Callable[[Any], bool], str]


def is_whole(value: Any) -> bool:
    """A whole number, not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite number, not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


WHOLE: Kind = is_whole, "give a whole number"
COUNT: Kind = (lambda value: is_whole(value) and value > 0), "give a whole number above 0"
NUMBER: Kind = is_number, "give a number"
AMOUNT: Kind = (lambda value: is_number(value) and value > 0), "give a number above 0"
FLAG: Kind = (lambda value: isinstance(value, bool)), "give true or false"
WORD: Kind = (lambda value: isinstance(value, str)), "give a text in quotes"
WORDS: Kind = (lambda value: _all(value, str)), "give a list of texts"
RECORD: Kind = (lambda value: isinstance(value, dict)), "give an object {...}"
TOKEN: Kind = is_whole, "give a token's number"
TOKENS: Kind = (lambda value: all(map(is_whole, value if isinstance(value, list) else [value]))), "give tokens' numbers"


def brief(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def record(value: Any, where: str) -> Mapping[str, Any]:
    """The value itself.

    Raises:
      UserError: if it is no JSON object.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: is {brief(value)}, where an object {{...}} is meant; fetch the file again")
    return value


def check(raw: Mapping[str, Any], kinds: Mapping[str, Kind], faults: Faults, where: str) -> None:
    """Notes every field that is there, is not null, and is of another kind than it should be."""
    for name, (fits, fix) in kinds.items():
        if raw.get(name) is not None and not fits(raw[name]):
            faults.add(f"{where}: {name}", f"is {brief(raw[name])}", fix)


def decimals(values: Any) -> list[float]:
    """Float32 values as the shortest decimals that name them."""
    return [float(str(value)) for value in values]
