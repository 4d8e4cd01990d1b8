"""Tensors of a GGUF file (llama.cpp's form), by the keys of Hugging Face and in their order of rows, widened as read.

The folder that `gguf_unpack` makes of such a file has

    model.gguf        the file itself, by a symbolic link
    model.gguf.json   {key: {"name", "type", "shape", "offset"} and how it is turned back: "heads", "shift", "swap"
                      (of the last two axes), "pair" (two such entries, every other output from each)}
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pref_jax.errors import UserError
from pref_jax.files import read_json
from pref_jax.lm.stored_tensors import Index, Tensor

FILE, TABLE = "model.gguf", "model.gguf.json"


def library(where: str | Path) -> ModuleType:
    """The library `gguf`.

    Raises:
      UserError: if it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(f"{where}: GGUF files are read with the library gguf; pip install 'pref-jax[gguf]'") from None
    return gguf


def catalog(folder: Path) -> dict[str, Tensor]:
    """Every tensor of an unpacked GGUF file by its key.

    Raises:
      UserError: if the file has gone, or the library is missing.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{path}: the GGUF file has moved away; name the base by where it lies now")
    library(path)
    return {
        key: Tensor(path, key, tuple(entry["shape"]), "F32", functools.partial(_widen, path, entry))
        for key, entry in read_json(folder / TABLE).items()
    }


def _widen(path: Path, entry: Mapping[str, Any], index: Index) -> np.ndarray:
    """A part of a tensor in float32; only its rows (of the first axis) are read."""
    rows = np.arange(*index[0].indices(entry["shape"][0]))
    if pair := entry.get("pair"):
        found = np.stack([_rows(path, one, rows) for one in pair], 2)
        found = found.reshape(len(rows), -1, *found.shape[3:])
    else:
        found = _rows(path, entry, rows)
    found = (found.swapaxes(1, 2) if entry.get("swap") else found)[(slice(None), *index[1:])]
    return found + np.float32(entry["shift"]) if "shift" in entry else found


def _rows(path: Path, entry: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
    """Rows of a tensor as it is stored, in Hugging Face's order."""
    gguf = library(path)
    shape, kind = entry["shape"], gguf.GGMLQuantizationType[entry["type"]]
    if entry.get("swap"):
        shape = [shape[0], shape[2], shape[1]]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # Vectors are never quantised: each number is a row.
    inner = (*shape[1:-1], shape[-1] // block * size) if len(shape) > 1 else (size,)
    stored = np.memmap(path, np.uint8, "r", offset=entry["offset"], shape=(shape[0], *inner))
    if heads := entry.get("heads"):
        rows = _order(shape[0], heads)[rows]
    return gguf.quants.dequantize(stored[rows], kind).reshape(len(rows), *shape[1:])


def _order(rows: int, heads: int) -> np.ndarray:
    """Where each row stands in llama.cpp's order, which has the two halves of a rotary head interleaved."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
