"""The installed methods: functions (votes, base=..., options) -> model, by the names that packages register."""

import importlib.metadata
import inspect
from collections.abc import Callable, Iterable
from typing import Any

GROUP = "pref_jax.methods"
# In place of a method's name: the one that held-out votes favour.
AUTO = "auto"


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of all methods by name; none is imported yet."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def not_taken(method: Callable[..., Any], options: Iterable[str]) -> set[str]:
    """Those of the options that a method has no argument for.

    Example:
      >>> sorted(not_taken(lambda votes, *, base, seed=0: None, ["seed", "workdir"]))
      ['workdir']
    """
    known = inspect.signature(method).parameters
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return set()
    return set(options) - known.keys()
