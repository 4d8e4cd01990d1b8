"""Hugging Face checkpoints in and out: `config.json` with `model.safetensors`, whole or in shards.

Each family's table (`WEIGHTS` in its file) says which key is which parameter. Everything wrong with a checkpoint is
reported at once. Only safetensors are read: no pickle, no code from the checkpoint.
"""

import functools
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding

from pref_jax.errors import Faults, UserError
from pref_jax.files import read_json, write_json
from pref_jax.lm import backbone, sharding
from pref_jax.lm.config import LMConfig

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def locate(name: str | Path) -> Path:
    """The folder behind a name, which is one of

    - a folder,
    - `package:some_package/folder`: files inside an installed package, found without importing it,
    - a Hugging Face hub id such as `org/model`: fetched into the hub's cache (weights, configs, tokenizer files only).

    Raises:
      UserError: if there is no such folder or package, or the hub cannot be reached.
    """
    text = str(name)
    if text.startswith("package:"):
        return _in_package(text)
    if Path(text).is_dir():
        return Path(text)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) is None:
        raise UserError(f"{text}: no such folder, and no hub id (org/model) either; check the path")
    import huggingface_hub

    try:
        patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
        return Path(huggingface_hub.snapshot_download(text, allow_patterns=patterns))
    except Exception as error:  # the hub client raises errors of many libraries: all mean "not fetched" to the user
        raise UserError(
            f"{text}: no such folder here, and the hub did not give it ({type(error).__name__}: {error}); "
            "give a local folder with config.json and model.safetensors, or check the name and the connection"
        ) from error


def load(folder: str | Path, dtype: Any = jnp.float32, *, mesh: Mesh | None = None) -> tuple[LMConfig, dict[str, Any]]:
    """Reads a checkpoint into plain parameters.

    Args:
      folder: a folder, or any other name that `locate` understands.
      dtype: of the returned arrays, whatever the file holds.
      mesh: places each parameter as `sharding.RULES` says, each process reading only its own parts; by default all
        goes to the first device.

    Returns:
      The configuration, and parameters with the tree of `backbone.init`. Besides them, memory holds one parameter
      (all layers of it) at a time.

    Raises:
      UserError: with every missing, surplus and misshapen key at once; for a missing or damaged file; for a kind of
        model that is not supported.
    """
    folder = locate(folder)
    config = LMConfig.from_hf(read_json(folder / "config.json"), where=str(folder / "config.json"))
    tensors = _open(folder)
    wanted = _flat(backbone.shapes(config, dtype))
    sources = _match(config, tensors, {path: leaf.shape for path, leaf in wanted.items()}, folder)
    placed = _flat(sharding.specs(backbone.shapes(config), mesh)) if mesh is not None else {}
    params: dict[str, Any] = {}
    for path, leaf in wanted.items():
        place = SingleDeviceSharding(jax.devices()[0]) if mesh is None else NamedSharding(mesh, placed[path])
        _set(params, path, _read(sources[path], leaf.shape, leaf.dtype, place))
    return config, params


def save(folder: str | Path, config: LMConfig, params: Mapping[str, Any]) -> None:
    """Writes `config.json` and `model.safetensors` so that transformers' `Auto` classes open them.

    The parameters' dtype is kept. Other files in `folder` (a tokenizer's) stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    module = backbone.family(config)
    ours = _flat(params)
    tensors: dict[str, np.ndarray] = {}
    for key, (path, transpose) in module.WEIGHTS.items():
        if path not in ours:
            continue
        full = key if key.startswith(module.UNPREFIXED) else _save_prefix(config) + key
        array = np.asarray(ours[path])
        for layer, part in enumerate(array) if "{}" in key else [(0, array)]:
            tensors[full.format(layer)] = np.ascontiguousarray(part.T if transpose else part)
    part_file = folder / f".{WEIGHTS_FILE}.part"
    safetensors.numpy.save_file(tensors, part_file, metadata={"format": "pt"})
    os.replace(part_file, folder / WEIGHTS_FILE)
    name = str(next(iter(tensors.values())).dtype)
    write_json(folder / "config.json", config.to_hf() | {"torch_dtype": name})


def tensor(folder: str | Path, key: str) -> np.ndarray:
    """One tensor by its Hugging Face key, such as a reward model's `score.weight` [labels, D], which `load` leaves out.

    Raises:
      UserError: if the checkpoint has no such key, or is damaged.
    """
    folder = locate(folder)
    tensors = _open(folder)
    if key not in tensors:
        raise UserError(f"{folder}: no tensor {key!r}; it holds {len(tensors)} others, such as {sorted(tensors)[:3]}")
    return tensors[key].get_tensor(key)


def _in_package(name: str) -> Path:
    package, _, inside = name.removeprefix("package:").partition("/")
    # Asking for the top package's spec runs none of its code, which may need libraries that are not installed.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        dashed = package.replace("_", "-")
        raise UserError(f"{name}: package {package!r} is not installed; try: pip install --no-deps {dashed}")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise UserError(f"{name}: the installed package has no folder {inside!r}; look into {root}")
    return folder


def _open(folder: Path) -> dict[str, Any]:
    """Hugging Face key -> the open file that holds it.

    Raises:
      UserError: if a weight file is missing or damaged, or the index names a key that is nowhere.
    """
    indexed: dict[str, str] = {}
    if (folder / WEIGHTS_FILE).exists():
        names = [WEIGHTS_FILE]
    elif (folder / INDEX_FILE).exists():
        indexed = read_json(folder / INDEX_FILE).get("weight_map", {})
        names = sorted(set(indexed.values()))
    else:
        raise UserError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE}; convert the weights to safetensors first")
    faults, tensors = Faults(), {}
    for name in names:
        try:
            handle = safetensors.safe_open(folder / name, framework="np")
            tensors |= dict.fromkeys(handle.keys(), handle)
        except FileNotFoundError:
            faults.add(str(folder / name), "the index names this file, but it is missing", "fetch it again")
        except (safetensors.SafetensorError, OSError) as error:
            faults.add(str(folder / name), f"cut short or damaged ({error})", "fetch it again")
    if not faults:
        for key in sorted(set(indexed) - set(tensors)):
            faults.add(str(folder / indexed[key]), f"lacks {key}, which the index promises", "fetch it again")
    faults.raise_if_any("Weight files")
    return tensors


def _match(
    config: LMConfig, tensors: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], folder: Path
) -> dict[str, list[tuple[Any, str, bool]]]:
    """Our path -> the (file, key, transpose) of each of its layers, all keys accounted for.

    Raises:
      UserError: with every missing, surplus and misshapen key.
    """
    module = backbone.family(config)
    bare = {_plain(key, module.PREFIX): key for key in tensors}
    faults, sources, used = Faults(), {}, set()
    for pattern, (path, transpose) in module.WEIGHTS.items():
        if path not in wanted:
            continue
        stacked = "{}" in pattern
        shape = wanted[path][1:] if stacked else wanted[path]
        shape = shape[::-1] if transpose else shape
        sources[path] = []
        for layer in range(config.num_layers if stacked else 1):
            key = pattern.format(layer)
            if key not in bare:
                faults.add(key, "missing", "use a checkpoint that fits config.json")
                continue
            handle, full = tensors[bare[key]], bare[key]
            found = handle.get_slice(full)
            if tuple(found.get_shape()) != tuple(shape):
                fits = "mend config.json or the weights"
                faults.add(full, f"shape {tuple(found.get_shape())}, where config.json means {tuple(shape)}", fits)
            elif found.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                faults.add(full, f"holds {found.get_dtype()}, no plain floats", "use an unquantised checkpoint")
            sources[path].append((handle, full, transpose))
            used.add(key)
    unused = re.compile("|".join(module.KNOWN_UNUSED))
    for key in sorted(set(bare) - used):
        if unused.fullmatch(key) is None:
            faults.add(bare[key], "surplus: this model has no such parameter", "use a checkpoint that fits config.json")
    faults.raise_if_any(f"{folder}: weights and config.json do not fit")
    return sources


def _plain(key: str, prefix: str) -> str:
    """The key as the tables spell it: no prefix, and today's names for the norms of 2018."""
    key = key.removeprefix(prefix)
    return re.sub(r"(LayerNorm)\.(gamma|beta)$", lambda m: f"{m[1]}.{'weight' if m[2] == 'gamma' else 'bias'}", key)


def _read(sources: list[tuple[Any, str, bool]], shape: tuple[int, ...], dtype: Any, place: Sharding) -> jax.Array:
    """One parameter, read straight into its place on the device(s)."""
    stacked = len(shape) > len(sources[0][0].get_slice(sources[0][1]).get_shape())

    @functools.cache
    def part(*bounds: tuple[int, int]) -> np.ndarray:
        layers, rest = (range(*bounds[0]), bounds[1:]) if stacked else (range(1), bounds)
        out = _aligned([hi - lo for lo, hi in bounds], dtype)
        for row, layer in zip(out if stacked else out[None], layers, strict=True):
            handle, key, transpose = sources[layer]
            index = tuple(slice(lo, hi) for lo, hi in rest)
            found = handle.get_slice(key)[index[::-1] if transpose else index]
            row[...] = found.T if transpose else found
        return out

    def callback(index: tuple[slice, ...] | None) -> np.ndarray:
        return part(*(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True)))

    return jax.make_array_from_callback(shape, place, callback)


def _aligned(shape: list[int], dtype: Any) -> np.ndarray:
    """An empty array at a multiple of 64 bytes, which JAX on CPU takes over without a copy."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _save_prefix(config: LMConfig) -> str:
    # AutoModel opens a bare BertModel; for llama the prefix suits LlamaForCausalLM and LlamaModel alike.
    return "" if config.family == "bert" else backbone.family(config).PREFIX


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: not isinstance(leaf, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _set(tree: dict[str, Any], path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
