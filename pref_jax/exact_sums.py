"""Keeps XLA from handing sums on CPUs to a library that gets some of them wrong.

jaxlib 0.10.2 and 0.11.0 leave sums to YNNPACK, which silently returns wrong values where many rows are summed: of
`sum((matrix @ row) ** 2)` from 32 769 rows on (jax-ml/jax issue 39103), and of products of two broadcast arrays, as in
a Hessian of 7 000 users. An XLA flag turns that off. It has to be set before JAX compiles anything.
"""

import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

WRONG = ("0.10.2", "0.11.0")
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_SETTING = f"{FLAG}=-reduce"


def ensure() -> None:
    """Sets the flag in this process's environment where jaxlib needs it; a given one stays.

    Warns:
      RuntimeWarning: if JAX runs on a CPU already, so that the flag comes too late.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags or _jaxlib() not in WRONG:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {_SETTING}".strip()
    if _runs_on_cpu():
        warnings.warn(
            f"JAX started before pref_jax, and sums of jaxlib {_jaxlib()} can be wrong on CPUs: import pref_jax first, "
            f"or set XLA_FLAGS={_SETTING}",
            RuntimeWarning,
            stacklevel=2,
        )


def _jaxlib() -> str:
    try:
        return version("jaxlib")
    except PackageNotFoundError:
        return ""


def _runs_on_cpu() -> bool:
    """Whether JAX has been used in this process, on a CPU; JAX tells it in a private module alone."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = getattr(bridge, "backends_are_initialized", bool)()
    return started and sys.modules["jax"].default_backend() == "cpu"
