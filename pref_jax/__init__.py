"""Shared ground of the personalised reward models: votes, transformers, training, evaluation, saved models.

The front door is imported when it is first used, so that `import pref_jax` does no work but to keep JAX's sums exact.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pref_jax import exact_sums
from pref_jax.errors import UserError
from pref_jax.version import __version__

if TYPE_CHECKING:
    from pref_jax.data.preferences import Preferences
    from pref_jax.data.votes import read_votes
    from pref_jax.lm.next_token import SamplingConfig
    from pref_jax.lm.text_model import TextModel
    from pref_jax.personal import PersonalReward, load

_WHERE = {
    "PersonalReward": "pref_jax.personal",
    "Preferences": "pref_jax.data.preferences",
    "SamplingConfig": "pref_jax.lm.next_token",
    "TextModel": "pref_jax.lm.text_model",
    "load": "pref_jax.personal",
    "read_votes": "pref_jax.data.votes",
}
__all__ = [
    "PersonalReward",
    "Preferences",
    "SamplingConfig",
    "TextModel",
    "UserError",
    "__version__",
    "load",
    "read_votes",
]

exact_sums.ensure()


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'pref_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
