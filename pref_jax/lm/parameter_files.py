"""Trained parameters without their transformer, in a folder: what the stores of both methods have in common.

    adapters.safetensors   every parameter by its path, such as `experts/q_proj/shared/a`
    adapters.json          the format's version, and what the method writes about its model

The transformer stays where it is: whoever loads the folder brings the one that the parameters were trained on.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from pref_jax.errors import Faults, UserError
from pref_jax.files import atomic_folder, read_json, write_json, write_tensors
from pref_jax.lm.checkpoint import flat

TENSORS, CONFIG = "adapters.safetensors", "adapters.json"
FORMAT = 1
FIX = "restore the file, or write it again"

# Shape and dtype of each tensor by its path.
Kinds = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def write(folder: str | Path, about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the folder, in place of what was there; if killed, it is whole or absent."""
    with atomic_folder(folder) as part:
        write_tensors(part / TENSORS, tensors)
        write_json(part / CONFIG, {"format": FORMAT, **about})


def as_tensors(params: Any) -> dict[str, np.ndarray]:
    """A tree of dicts of arrays as host arrays by path."""
    return {path: np.asarray(leaf, order="C") for path, leaf in flat(params).items()}


def as_tree(tensors: Mapping[str, np.ndarray], shapes: Any) -> Any:
    """The tensors in the tree of `shapes`, on the first device, as they are: no dtype changes on the way."""
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.device_put([tensors[path] for path in flat(shapes)]))


def kinds(shapes: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype by path of a tree of `jax.ShapeDtypeStruct`."""
    return {path: (leaf.shape, np.dtype(leaf.dtype)) for path, leaf in flat(shapes).items()}


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors by path.

    Raises:
      UserError: if the file is missing or damaged.
    """
    path = folder / TENSORS
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the folder, or write it again") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: cut short or damaged ({error}); {FIX}") from None


def read_about(folder: Path) -> dict[str, Any]:
    """What the method wrote about its model.

    Raises:
      UserError: if the file is missing or damaged, or of another format.
    """
    path = folder / CONFIG
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else None
        raise UserError(f"{path}: format {found!r}, this version reads {FORMAT}; write the folder again")
    return raw


def check(tensors: Mapping[str, np.ndarray], wanted: Kinds, *, where: str) -> None:
    """Compares tensors with those that a config asks for.

    Raises:
      UserError: naming each tensor that is missing, surplus, or of a wrong shape or dtype.
    """
    faults = Faults()
    for path in sorted(wanted.keys() - tensors.keys()):
        faults.add(path, "missing", FIX)
    for path in sorted(tensors.keys() - wanted.keys()):
        faults.add(path, "the config knows no such tensor", "fix the config, or write the folder again")
    for path in sorted(wanted.keys() & tensors.keys()):
        found = tensors[path].shape, tensors[path].dtype
        if found != wanted[path]:
            faults.add(path, f"is {_kind(*found)}, where {_kind(*wanted[path])} is meant", "fix the config or it")
    faults.raise_if_any(where)


def _kind(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{dtype.name} {list(shape)}"


def fields(kind: Any, raw: Any, where: str, faults: Faults) -> dict[str, Any]:
    """The plain fields of a dataclass from JSON, each of its default's type; what does not fit goes to `faults`."""
    if not isinstance(raw, dict):
        faults.add(where, f"is {raw!r}", "give its fields")
        return {}
    known = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    for name in sorted(raw.keys() ^ known.keys()):
        faults.add(f"{where}.{name}", "unknown field" if name in raw else "is missing", FIX)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    for name in known.keys() & values.keys():
        if not _like(values[name], known[name]):
            faults.add(f"{where}.{name}", f"is {raw[name]!r}", f"give a value like {known[name]!r}")
    return values


def _like(value: Any, default: Any) -> bool:
    """Whether a JSON value is of the default's type; a default of None stands for a number or null."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if default is None:
        return value is None or number
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return number if isinstance(default, float) else type(value) is type(default)
