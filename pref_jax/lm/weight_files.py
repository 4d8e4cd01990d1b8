"""What the weight files of a checkpoint's folder hold, and what else such a folder may be.

Only safetensors are read: no pickle, no code from the checkpoint.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors

from pref_jax import json_fields
from pref_jax.errors import Faults, UserError
from pref_jax.files import read_json
from pref_jax.lm import gguf_file, quantisation
from pref_jax.lm.stored_tensors import Tensor
from pref_jax.progress import log_once

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
_POINTER = b"version https://git-lfs"
# Parts of keys that wrappers put between the names of a model's own modules.
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_ADAPTERS = re.compile(r"\.(base_layer|lora_[AB]|lora_embedding_[AB])\.|\.lora_magnitude_vector")


def check_folder(folder: Path) -> None:
    """Tells apart a checkpoint and what is often taken for one.

    Raises:
      UserError: if the folder holds an adapter, or no `config.json`; says what it holds and how to go on.
    """
    if (folder / ADAPTER_FILE).exists():
        path = folder / ADAPTER_FILE
        base = json_fields.record(read_json(path), str(path)).get("base_model_name_or_path")
        named = base if isinstance(base, str) and base else "an unnamed base"
        raise UserError(
            f"{folder}: this is an adapter of {named}, no checkpoint; merge it first (peft's merge_and_unload, then "
            f"save_pretrained) and give that folder, or remove {ADAPTER_FILE} if the weights are merged already"
        )
    if (folder / "config.json").exists():
        return
    inner = sorted(path.parent.name for path in folder.glob("*/config.json") if list(path.parent.glob("*.safetensors")))
    if inner:
        raise UserError(f"{folder}: no config.json here, but in {', '.join(inner)}; give {folder / inner[0]}")
    if other := _other_weights(folder):
        raise UserError(f"{folder}: no config.json; {other}")


def _other_weights(folder: Path) -> str:
    """What is said of weights in another form than we read; "" if there are none."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return f"to read a GGUF file, name the file: {' or '.join(str(folder / name) for name in gguf[:3])}"
    if pickled := [name for name in names if re.fullmatch(r".*\.(bin|pt|pth|ckpt|pkl)(\.index\.json)?", name)]:
        return (
            f"{pickled[0]}: pickled weights can run code and are not opened; convert them to safetensors with the "
            "model's own class in transformers: from_pretrained(folder), then save_pretrained"
        )
    tensors = [name for name in names if name.endswith(".safetensors")]
    if any(re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) for name in tensors):
        return f"{tensors[0]}: part of a model without its {INDEX_FILE}; fetch that too"
    if tensors:
        return f"{', '.join(tensors[:3])}: no weights under a known name; give them as {WEIGHTS_FILE} with config.json"
    return ""


def files(folder: Path) -> list[Path]:
    """The files of weights in a checkpoint's folder."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob(gguf_file.FILE)])


def catalog(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its key.

    Raises:
      UserError: if there are no weight files that we read, one is missing or damaged, or the index is broken or names
        a key that is nowhere.
    """
    if (folder / gguf_file.TABLE).exists():
        return gguf_file.catalog(folder)
    indexed: dict[str, str] = {}
    if (folder / WEIGHTS_FILE).exists():
        names: Iterable[str] = [WEIGHTS_FILE]
    elif (folder / INDEX_FILE).exists():
        indexed = _weight_map(folder / INDEX_FILE)
        names = sorted(set(indexed.values()))
    else:
        other = _other_weights(folder) or "convert the weights to safetensors first"
        raise UserError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE}; {other}")
    faults, tensors = Faults(), {}
    for name in names:
        tensors |= _header(folder / name, faults)
    if not faults:
        for key in sorted(set(indexed) - set(tensors)):
            faults.add(str(folder / indexed[key]), f"lacks {key}, which the index promises", "fetch it again")
        odd = [key for key in sorted(tensors) if indexed and indexed.get(key) != tensors[key].file.name]
        if odd:
            where = f"such as {odd[0]} in {tensors[odd[0]].file.name}"
            log_once(
                f"  {folder}: {len(odd)} tensors stand elsewhere than {INDEX_FILE} says, {where}; read where they are"
            )
    faults.raise_if_any("Weight files")
    how = _quantised(folder / "config.json")
    return quantisation.widened(tensors, how, str(folder)) if how and not quantisation.refused(how) else tensors


def _quantised(path: Path) -> Any:
    """How a config says that the weights are quantised; None if it does not."""
    raw = read_json(path) if path.exists() else {}
    raw = raw if isinstance(raw, dict) else {}
    text = raw.get("text_config")
    return raw.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)


def _weight_map(path: Path) -> dict[str, str]:
    """Key -> file, as an index says."""
    found = json_fields.record(read_json(path), str(path)).get("weight_map")
    named = json_fields.record(found, f"{path}: weight_map")
    for key, name in named.items():
        if not isinstance(name, str) or Path(name).name != name:
            shown = json_fields.brief(name)
            raise UserError(f"{path}: weight_map: {key} is {shown}, no file beside the index; fetch the file again")
    if not named:
        raise UserError(f"{path}: weight_map is empty; fetch the file again")
    return dict(named)


def _header(path: Path, faults: Faults) -> dict[str, Tensor]:
    """The tensors of one file."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            slices: dict[str, Any] = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            return {key: Tensor(path, key, tuple(own.get_shape()), own.get_dtype()) for key, own in slices.items()}
    except FileNotFoundError:
        faults.add(str(path), "the index names this file, but it is missing", "fetch it again")
    except (safetensors.SafetensorError, OSError) as error:
        with path.open("rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
        what = "a pointer of git-lfs, not the weights" if pointer else f"cut short or damaged ({error})"
        faults.add(str(path), what, "run git lfs pull" if pointer else "fetch it again")
    return {}


def check_wrapping(tensors: Mapping[str, Tensor], embedding: str, prefixes: str, where: str) -> None:
    """Tells keys that a wrapper has changed.

    Args:
      tensors: all of a checkpoint, by their keys.
      embedding: the key of the embedding table, as a checkpoint without any prefix has it.
      prefixes: a regular expression of what may stand before it.
      where: stands at the head of the message.

    Raises:
      UserError: naming what to take away from the keys, or that adapters are to be merged.
    """
    if adapted := [key for key in tensors if _ADAPTERS.search(key)]:
        raise UserError(
            f"{where}: {len(adapted)} of {len(tensors)} keys are those of adapters that are not merged, such as "
            f"{adapted[0]}; merge them first (peft's merge_and_unload, then save_pretrained)"
        )
    if inner := [key for key in tensors if _WRAPPERS.search(key)]:
        found = _WRAPPERS.findall(inner[0])[0]
        who = "all keys hold" if len(inner) == len(tensors) else f"{len(inner)} of {len(tensors)} keys hold"
        raise UserError(
            f"{where}: {who} {found}., such as {inner[0]}: a wrapper was saved; strip it, by saving the module inside"
        )
    tables = [key for key in tensors if key.endswith(f".{embedding}")]
    before = [re.sub(rf"(^|(?<=\.)){prefixes}$", "", key.removesuffix(embedding)) for key in tables]
    if len(before) == 1 and before[0]:
        # peft's own wrapper is two modules deep.
        prefix = before[0] if before[0] != "base_model." else "base_model.model."
        count = sum(key.startswith(prefix) for key in tensors)
        who = "all keys begin" if count == len(tensors) else f"{count} of {len(tensors)} keys begin"
        raise UserError(f"{where}: {who} with {prefix}: a wrapper was saved; strip it, by saving the module inside")
