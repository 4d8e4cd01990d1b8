"""Where preferences come from, one file for each data set; `read` finds them by name."""

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pref_jax.errors import UserError

if TYPE_CHECKING:
    from pref_jax.data.preferences import Preferences

# Name -> module with a function `read`, imported when it is asked for. Hub sets need no path.
READERS = {
    "world": "synthetic.world",
    "crowdrag": "crowdrag",
    "jsonl": "jsonl.reader",
    "ultrafeedback": "ultrafeedback",
    "tldr": "tldr",
    "personalllm": "personalllm",
    "prism": "prism",
    "community_alignment": "community_alignment",
    "mt_bench": "mt_bench",
    "personal_reward_bench": "personal_reward_bench",
    "ukp_convarg": "ukp_convarg",
    "jester": "jester",
}


def reader(name: str) -> "Callable[..., Preferences]":
    """The function `read` of a data set; its signature tells all options and their defaults.

    Raises:
      UserError: if there is no such data set.
    """
    if name not in READERS:
        raise UserError(f"config.source.name is {name!r}; give one of {', '.join(READERS)}")
    return importlib.import_module(f"{__name__}.{READERS[name]}").read


def read(name: str, *, seed: int, **options: Any) -> "Preferences":
    """Reads a data set.

    Args:
      name: of `READERS`.
      seed: of all draws.
      **options: of the reader.

    Raises:
      UserError: for an unknown name or option, a missing or empty path, or as the reader does.

    Example:
      >>> read("world", seed=0, seen_users=30, unseen_users=5).num_users
      35
    """
    found = reader(name)
    if options.get("path") == "":
        raise UserError(f"config.source.path is empty; say where the {name} files are with --config.source.path=...")
    try:
        inspect.signature(found).bind(seed=seed, **options)
    except TypeError as error:
        known = ", ".join(inspect.signature(found).parameters)
        raise UserError(
            f"config.source does not fit {name}: {error}; fix --config.source, whose options are {known}"
        ) from None
    return found(seed=seed, **options)
