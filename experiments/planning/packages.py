"""Prints the packages that compile for a kind of machine with the JAX that is installed: `tpu` or `cuda`."""

import importlib.metadata
import sys
from collections.abc import Sequence

from pref_jax.errors import UserError

# cuDNN is asked for its version when its attention is compiled.
_CUDA = ("nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12")


def packages(kind: str) -> Sequence[str]:
    """Requirements, as pip reads them.

    Raises:
      UserError: for another kind, or a JAX that names no libtpu.

    Example:
      >>> packages("tpu")[0].startswith("libtpu==")
      True
    """
    if kind == "cuda":
        version = importlib.metadata.version("jaxlib")
        return (f"jax-cuda12-plugin=={version}", f"jax-cuda12-pjrt=={version}", *_CUDA)
    if kind != "tpu":
        raise UserError(f"packages: {kind!r} is unknown; give tpu or cuda")
    named = [one.split(";")[0].strip() for one in importlib.metadata.requires("jax") or () if one.startswith("libtpu")]
    if not named:
        raise UserError("packages: this JAX names no libtpu; install one that does")
    return (named[0],)


if __name__ == "__main__":
    print(*packages(sys.argv[1]))
