"""One tensor of a checkpoint as its file says it, and the reading of a part of it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

Index = tuple[slice, ...]


class Tensor(NamedTuple):
    """What a file's header says of one tensor.

    Attributes:
      file: where it stands.
      key: its name there.
      shape: of the numbers that it stands for.
      dtype: of these, as safetensors names it.
      widen: reads a part of a tensor that is stored in another form; None for plain numbers of a safetensors file.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    widen: Callable[[Index], np.ndarray] | None = None


def read(tensor: Tensor, index: Index) -> np.ndarray:
    """The part of a tensor that slices of all its axes name.

    A file is mapped again for each part: pages of a mapping that stays would count as this process's memory.
    """
    if tensor.widen is not None:
        return tensor.widen(index)
    with safetensors.safe_open(tensor.file, framework="np") as file:
        return file.get_slice(tensor.key)[index]


def read_whole(tensor: Tensor) -> np.ndarray:
    """All of a tensor."""
    return read(tensor, tuple(slice(0, size) for size in tensor.shape))
