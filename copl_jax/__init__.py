"""CoPL: collaborative preference learning (arXiv 2503.01658) in JAX.

The front door is imported when it is first used, so that `import copl_jax` does no work.
"""

import importlib
from typing import TYPE_CHECKING, Any

# At once, not when it is first used: importing `pref_jax` keeps JAX's sums exact.
from pref_jax.version import __version__

if TYPE_CHECKING:
    from copl_jax.fitted import CoPL
    from copl_jax.graph.settings import GCFConfig
    from copl_jax.model import CoPLConfig, fit, load
    from copl_jax.reward.reward_model import RewardConfig

_WHERE = {
    "CoPL": "copl_jax.fitted",
    "CoPLConfig": "copl_jax.model",
    "GCFConfig": "copl_jax.graph.settings",
    "RewardConfig": "copl_jax.reward.reward_model",
    "fit": "copl_jax.model",
    "load": "copl_jax.model",
}
__all__ = ["CoPL", "CoPLConfig", "GCFConfig", "RewardConfig", "__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'copl_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
