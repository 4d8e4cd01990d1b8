"""A trained reward model without its transformer, in a folder: experts, gates, head, and the users' table if wanted.

    adapters.safetensors   every parameter by its path, such as `experts/q_proj/shared/a`, and `table`
    adapters.json          the format's version, the model's config without the transformer's, embedding_dim

The transformer stays where it is: whoever loads the folder brings the one that the model was trained on.

Axes: U users, C features of a user embedding.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from copl_jax import reward
from copl_jax.experts import ExpertsConfig
from copl_jax.gates import GateConfig
from copl_jax.reward import RewardConfig
from pref_jax.errors import Faults, UserError
from pref_jax.files import atomic_folder, read_json, write_json
from pref_jax.lm.checkpoint import flat
from pref_jax.lm.config import LMConfig

TENSORS, CONFIG = "adapters.safetensors", "adapters.json"
FORMAT = 1
_MEND = "restore the file, or write it anew"


class Stored(NamedTuple):
    """What `load` gives back.

    Attributes:
      config: the model's.
      params: trainable parameters, as from `reward.init`.
      table: user embeddings float32 [U C] or group numbers int32 [U], or None if they were not kept.
    """

    config: RewardConfig
    params: dict[str, Any]
    table: np.ndarray | None


def save(folder: str | Path, config: RewardConfig, params: Mapping[str, Any], table: np.ndarray | None = None) -> None:
    """Writes the folder, in place of what was there; if killed, it is whole or absent.

    Args:
      folder: made anew.
      config: the model's; its `lm` is left out.
      params: trainable parameters, as from `reward.init`.
      table: user embeddings float32 [U C] or group numbers int32 [U], as `config.routing` says.

    Raises:
      UserError: if parameters or table do not fit the config.
    """
    tensors = {path: np.asarray(leaf, order="C") for path, leaf in flat(params).items()}
    if table is not None:
        tensors["table"] = np.asarray(table, order="C")
    dim = _embedding_dim(params)
    _check(tensors, config, dim, where=f"Adapters for {folder}")
    own = {name: value for name, value in dataclasses.asdict(config).items() if name != "lm"}
    with atomic_folder(folder) as part:
        safetensors.numpy.save_file(tensors, part / TENSORS)
        write_json(part / CONFIG, {"format": FORMAT, "model": own, "embedding_dim": dim})


def load(folder: str | Path, lm: LMConfig) -> Stored:
    """Reads what `save` wrote, bit for bit.

    Args:
      folder: the folder.
      lm: the transformer that the model was trained on.

    Raises:
      UserError: if a file is missing or damaged, with every field of the config and every tensor that is missing,
        surplus, or of a wrong shape or dtype.
    """
    folder = Path(folder)
    config, dim = _read_config(folder / CONFIG, lm)
    tensors = _read_tensors(folder / TENSORS)
    _check(tensors, config, dim, where=str(folder / TENSORS))
    table = tensors.pop("table", None)
    # Moved at once and as they are: no dtype changes on the way.
    paths, shapes = list(flat(_shapes(config, dim))), jax.tree.structure(_shapes(config, dim))
    return Stored(config, jax.tree.unflatten(shapes, jax.device_put([tensors[path] for path in paths])), table)


def _shapes(config: RewardConfig, dim: int) -> Any:
    return jax.eval_shape(lambda: reward.init(config, jax.random.key(0), embedding_dim=dim))


def _embedding_dim(params: Mapping[str, Any]) -> int:
    """C as the gates read it; 0 without gates."""
    return next((int(own["hidden"]["kernel"].shape[1]) for own in params["gates"].values()), 0)


def _check(tensors: Mapping[str, np.ndarray], config: RewardConfig, dim: int, *, where: str) -> None:
    """All that does not fit.

    Raises:
      UserError: naming each tensor.
    """
    faults = Faults()
    wanted = {path: (leaf.shape, np.dtype(leaf.dtype)) for path, leaf in flat(_shapes(config, dim)).items()}
    if "table" in tensors:
        users = tensors["table"].shape[:1]
        kinds = {"users": ((*users, dim), np.dtype(np.float32)), "groups": (users, np.dtype(np.int32))}
        wanted |= {"table": kinds[config.routing]} if config.routing in kinds else {}
    for path in sorted(wanted.keys() - tensors.keys()):
        faults.add(path, "missing", _MEND)
    for path in sorted(tensors.keys() - wanted.keys()):
        faults.add(path, "the config knows no such tensor", "mend the config, or write the folder anew")
    for path in sorted(wanted.keys() & tensors.keys()):
        found = tensors[path].shape, tensors[path].dtype
        if found != wanted[path]:
            faults.add(path, f"is {_kind(*found)}, where {_kind(*wanted[path])} is meant", "mend the config or it")
    faults.raise_if_any(where)


def _kind(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{dtype.name} {list(shape)}"


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the folder, or write it anew") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: cut short or damaged ({error}); {_MEND}") from None


def _read_config(path: Path, lm: LMConfig) -> tuple[RewardConfig, int]:
    raw, faults = read_json(path), Faults()
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else None
        raise UserError(f"{path}: format {found!r}, this version reads {FORMAT}; write the folder anew")
    dim, model = raw.get("embedding_dim"), raw.get("model")
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 0:
        faults.add(f"{path}: embedding_dim", f"is {dim!r}", "give a whole number from 0")
    if not isinstance(model, dict):
        faults.add(f"{path}: model", f"is {model!r}", "give the model's fields")
        model = {}
    parts: dict[str, Any] = {"mixture": ExpertsConfig, "gate": GateConfig}
    fields = {name: _fields(kind, model.get(name), f"{path}: model.{name}", faults) for name, kind in parts.items()}
    own = _fields(RewardConfig, {k: v for k, v in model.items() if k not in parts}, f"{path}: model", faults)
    faults.raise_if_any("Adapters")
    return RewardConfig(lm=lm, **own, **{name: kind(**fields[name]) for name, kind in parts.items()}), int(dim or 0)


def _fields(kind: Any, raw: Any, where: str, faults: Faults) -> dict[str, Any]:
    """The plain fields of a dataclass from JSON, each of its default's type."""
    if not isinstance(raw, dict):
        faults.add(where, f"is {raw!r}", "give its fields")
        return {}
    known = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    for name in sorted(raw.keys() ^ known.keys()):
        faults.add(f"{where}.{name}", "unknown field" if name in raw else "is missing", _MEND)
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
