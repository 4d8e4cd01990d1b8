"""One tensor of a checkpoint as its file says it, and the reading of a part of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

# safetensors' names of 8-bit floats -> NumPy's.
_FLOATS8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
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
    if tensor.dtype.startswith("F8_"):
        return _floats8(tensor)[index]
    with safetensors.safe_open(tensor.file, framework="np") as file:
        return file.get_slice(tensor.key)[index]


def _floats8(tensor: Tensor) -> np.ndarray:
    """A mapped tensor of 8-bit floats, which the library knows in torch alone."""
    with tensor.file.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start = json.loads(file.read(size))[tensor.key]["data_offsets"][0]
    kind = getattr(ml_dtypes, _FLOATS8[tensor.dtype])
    return np.memmap(tensor.file, np.uint8, "r", offset=8 + size + start, shape=tensor.shape).view(kind)


def read_whole(tensor: Tensor) -> np.ndarray:
    """All of a tensor."""
    return read(tensor, tuple(slice(0, size) for size in tensor.shape))
