"""A trained reward model without its transformer, in a folder: experts, gates, head, and the users' table if wanted.

Files and their names are those of `pref_jax.lm.parameter_files`; among the tensors is `table`, and beside the model's
config (without the transformer's) stands `embedding_dim`.

Axes: U users, C features of a user embedding.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from copl_jax.reward import reward_model
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from pref_jax.errors import Faults
from pref_jax.lm import parameter_files
from pref_jax.lm.config import LMConfig
from pref_jax.lm.parameter_files import CONFIG, TENSORS


class Stored(NamedTuple):
    """What `load` gives back.

    Attributes:
      config: the model's.
      params: trainable parameters, as from `reward.init`.
      user_embeddings: float32 [U C], or group numbers int32 [U], or None if they were not kept.
    """

    config: RewardConfig
    params: dict[str, Any]
    user_embeddings: np.ndarray | None


def save(folder: str | Path, config: RewardConfig, params: Mapping[str, Any], table: np.ndarray | None = None) -> None:
    """Writes the folder, in place of what was there; if killed, it is whole or absent.

    Args:
      folder: replaced if it is there.
      config: the model's; its `lm` is left out.
      params: trainable parameters, as from `reward.init`.
      table: user embeddings float32 [U C] or group numbers int32 [U], as `config.routing` says.

    Raises:
      UserError: if parameters or table do not fit the config.
    """
    tensors = parameter_files.as_tensors(params)
    if table is not None:
        tensors["table"] = np.asarray(table, order="C")
    dim = _embedding_dim(params)
    _check(tensors, config, dim, where=f"Adapters for {folder}")
    own = {name: value for name, value in dataclasses.asdict(config).items() if name != "lm"}
    parameter_files.write(folder, {"model": own, "embedding_dim": dim}, tensors)


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
    config, dim = parse(parameter_files.read_about(folder), lm, where=str(folder / CONFIG))
    tensors = parameter_files.read_tensors(folder)
    _check(tensors, config, dim, where=str(folder / TENSORS))
    table = tensors.pop("table", None)
    return Stored(config, parameter_files.as_tree(tensors, _shapes(config, dim)), table)


def _shapes(config: RewardConfig, dim: int) -> Any:
    return jax.eval_shape(lambda: reward_model.init(config, jax.random.key(0), embedding_dim=dim))


def _embedding_dim(params: Mapping[str, Any]) -> int:
    """C as the gates read it; 0 without gates."""
    return next((int(own["hidden"]["kernel"].shape[1]) for own in params["gates"].values()), 0)


def _check(tensors: Mapping[str, np.ndarray], config: RewardConfig, dim: int, *, where: str) -> None:
    """`stored.check`, the table included."""
    wanted = parameter_files.kinds(_shapes(config, dim))
    if "table" in tensors:
        users = tensors["table"].shape[:1]
        tables = {"users": ((*users, dim), np.dtype(np.float32)), "groups": (users, np.dtype(np.int32))}
        wanted["table"] = tables[config.routing]
    parameter_files.check(tensors, wanted, where=where)


def as_params(tensors: Mapping[str, np.ndarray], config: RewardConfig, dim: int, *, where: str) -> Any:
    """The tensors by path as trainable parameters.

    Raises:
      UserError: naming every tensor that is missing, surplus, or of a wrong shape or dtype.
    """
    _check(tensors, config, dim, where=where)
    return parameter_files.as_tree(tensors, _shapes(config, dim))


def parse(raw: Mapping[str, Any], lm: LMConfig, *, where: str) -> tuple[RewardConfig, int]:
    """The model's config and the length of its embeddings from the JSON values that `save` wrote.

    Raises:
      UserError: naming every field that is missing, unknown or of a wrong type.
    """
    path, faults = where, Faults()
    dim, model = raw.get("embedding_dim"), raw.get("model")
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 0:
        faults.add(f"{path}: embedding_dim", f"is {dim!r}", "give a whole number from 0")
    if not isinstance(model, dict):
        faults.add(f"{path}: model", f"is {model!r}", "give the model's fields")
        model = {}
    parts: dict[str, Any] = {"mixture": ExpertsConfig, "gate": GateConfig}
    fields = {
        name: parameter_files.fields(kind, model.get(name), f"{path}: model.{name}", faults)
        for name, kind in parts.items()
    }
    own = parameter_files.fields(
        RewardConfig, {k: v for k, v in model.items() if k not in parts}, f"{path}: model", faults
    )
    faults.raise_if_any("Adapters")
    return RewardConfig(lm=lm, **own, **{name: kind(**fields[name]) for name, kind in parts.items()}), int(dim or 0)
