"""LoRe: low-rank reward modelling (arXiv 2504.14439) in JAX.

The front door is imported when it is first used, so that `import lore_jax` does no work and needs no transformer.
"""

import importlib
from typing import TYPE_CHECKING, Any

# At once, not when it is first used: importing `pref_jax` keeps JAX's sums exact.
from pref_jax.version import __version__

if TYPE_CHECKING:
    from lore_jax.fitting.bradley_terry import LoReConfig
    from lore_jax.model import LoRe, fit, load
    from lore_jax.weights.objective import Prior
    from lore_jax.weights.solve import solve_weights

_WHERE = {
    "LoRe": "lore_jax.model",
    "LoReConfig": "lore_jax.fitting.bradley_terry",
    "Prior": "lore_jax.weights.objective",
    "fit": "lore_jax.model",
    "load": "lore_jax.model",
    "solve_weights": "lore_jax.weights.solve",
}
__all__ = ["LoRe", "LoReConfig", "Prior", "__version__", "fit", "load", "solve_weights"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lore_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
