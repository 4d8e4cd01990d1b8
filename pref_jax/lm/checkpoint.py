"""Hugging Face checkpoints in and out: `config.json` with `model.safetensors`, whole or in shards.

The tables of `weights` say which key is which parameter. Everything wrong with a checkpoint is reported at once. Only
safetensors are read: no pickle, no code from the checkpoint.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding

from pref_jax.errors import Faults, UserError
from pref_jax.files import write_json, write_tensors
from pref_jax.lm import backbone, heads, hf_config, hub, int8, layer_sizes, sharding_rules, weight_files, weights
from pref_jax.lm.checkpoint_config import find_head, load_config
from pref_jax.lm.config import LMConfig
from pref_jax.lm.stored_tensors import Tensor, read, read_whole
from pref_jax.lm.weight_files import INDEX_FILE, WEIGHTS_FILE

__all__ = ["INDEX_FILE", "WEIGHTS_FILE", "flat", "load", "load_config", "save", "tensor"]

# Rows of a tensor that are read at a time, and rows of them that are transposed at a time.
_ROWS, _STRIP = 4096, 16
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def load(
    folder: str | Path,
    dtype: Any = jnp.float32,
    *,
    mesh: Mesh | None = None,
    lm_head: bool = True,
    only: str = "",
    in_bytes: bool = False,
) -> tuple[LMConfig, dict[str, Any]]:
    """Reads a checkpoint into plain parameters.

    Args:
      folder: a folder, or any other name that `hub.locate` understands.
      dtype: of the returned arrays, whatever the file holds.
      mesh: places each parameter as `sharding_rules.RULES` says, each process reading only its own parts; by default
        all goes to the first device.
      lm_head: False leaves the next-token head out, which reward models have no use for.
      only: reads parameters under this name alone, such as "lm_head", where the others are at hand; "" for all.
      in_bytes: the blocks' matrices in a byte a number (`pref_jax.lm.int8`), made of `dtype` one after another.

    Returns:
      The configuration, and parameters with the tree of `backbone.init`. Besides them, memory holds some rows of one
      tensor at a time (where devices have memory of their own: one parameter, all layers of it).

    Raises:
      UserError: with every missing, surplus and misshapen key at once, or with every tensor that holds NaN or infinite
        values; for a missing or damaged file; for a kind of model that is not supported.
    """
    folder = hub.locate(folder)
    config = load_config(folder)
    config = dataclasses.replace(config, lm_head=config.lm_head and lm_head)
    shapes = backbone.shapes(config, dtype)
    wanted = flat(shapes)
    tensors = weight_files.catalog(folder)
    sources = _match(config, tensors, {path: leaf.shape for path, leaf in wanted.items()}, folder)
    placed = flat(sharding_rules.specs(shapes, mesh)) if mesh is not None else {}
    params: dict[str, Any] = {}
    broken: set[str] = set()
    for path, leaf in wanted.items():
        if only and path.split("/")[0] != only:
            continue
        place = SingleDeviceSharding(jax.devices()[0]) if mesh is None else NamedSharding(mesh, placed[path])
        found = _read(sources[path], leaf, place, broken)
        _set(params, path, int8.quantise_in_place(found) if in_bytes and int8.holds(path) else found)
    faults = Faults()
    for key in sorted(broken):
        fix = "fetch the file again, or take an earlier checkpoint of the training that wrote it"
        faults.add(key, "holds NaN or infinite values", fix)
    faults.raise_if_any(f"{folder}: weights")
    return config, params


def save(
    folder: str | Path,
    config: LMConfig,
    params: Mapping[str, Any],
    *,
    max_shard_bytes: int = 5 * 10**9,
    extra: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `config.json` and safetensors so that transformers' `Auto` classes open them (its `save_pretrained`).

    The parameters' dtype is kept. Other files in `folder` (a tokenizer's) stay. Memory holds one shard at a time.

    Args:
      folder: made if it is missing.
      config: the transformer; with `num_labels` it is written as a sequence classifier.
      params: as from `backbone.init`; adapters must have been merged (`lora.merge`).
      max_shard_bytes: weights beyond this size go into several files with an index.
      extra: further fields of `config.json`, JSON values; they take precedence.
      metadata: further entries in the header of each file of weights.

    Raises:
      UserError: if a sequence classifier has no `pad_token_id`: transformers finds the last token of a row by it.
    """
    if config.num_labels and config.pad_token_id is None:
        raise UserError(
            f"{folder}: a sequence classifier needs pad_token_id, by which transformers finds the end of each row; "
            "set it with dataclasses.replace(config, pad_token_id=...), to the tokenizer's padding or an unused token"
        )
    int8.need_floats(params, str(folder))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _plan(config, flat(params), max_shard_bytes)
    for name, keys in shards.items():
        tensors = {key: make() for key, (_, make) in keys.items()}
        write_tensors(folder / f".{name}.part", tensors, {**(metadata or {}), "format": "pt"})
    for name in shards:
        os.replace(folder / f".{name}.part", folder / name)
    for stale in folder.iterdir():
        if stale.name not in shards and _OURS.fullmatch(stale.name):
            stale.unlink()
    if len(shards) > 1:
        size = sum(size for keys in shards.values() for size, _ in keys.values())
        where = {key: name for name, keys in shards.items() for key in keys}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": where})
    dtype = str(jax.tree.leaves(params)[0].dtype)
    write_json(
        folder / "config.json", hf_config.write(config) | {"dtype": dtype, "torch_dtype": dtype, **(extra or {})}
    )


def tensor(folder: str | Path, key: str) -> np.ndarray:
    """One tensor by its Hugging Face key, such as a reward model's `score.weight` [labels, D], without the model.

    `score.weight` stands for the reward head under whatever name the trainer gave it.

    Raises:
      UserError: if the checkpoint has no such key, or is damaged.
    """
    folder = hub.locate(folder)
    tensors = weight_files.catalog(folder)
    if key == "score.weight" and key not in tensors:
        plain = find_head(load_config(folder), tensors).key
        key = next((full for full in tensors if weights.plain(full) == plain), key)
    if key not in tensors:
        raise UserError(f"{folder}: no tensor {key!r}; it holds {len(tensors)} others, such as {sorted(tensors)[:3]}")
    return read_whole(tensors[key])


class _Part(NamedTuple):
    """Some of a tensor: `rows` of its first axis, transposed on the way in, to `places` of ours (None: all)."""

    tensor: Tensor
    rows: tuple[int, int]
    transpose: bool
    places: layer_sizes.Places | None


def _match(
    config: LMConfig, tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], folder: Path
) -> dict[str, list[_Part | None]]:
    """Our path -> where each of its layers comes from (None: it has no tensor there), all keys accounted for.

    Raises:
      UserError: with every missing, surplus and misshapen key.
    """
    layout = weights.layout(config)
    bare = {weights.plain(key): tensor for key, tensor in tensors.items()}
    weight_files.check_wrapping(tensors, next(iter(layout.table)), weights.PREFIXES, str(folder))
    faults, used = Faults(), set()
    head = heads.find(config, bare).key
    sources: dict[str, list[_Part | None]] = {path: [] for path in wanted}
    for pattern, row in layout.table.items():
        if row.paths[0] not in wanted:
            continue
        stacked = pattern.count("{}")
        for place in np.ndindex(wanted[row.paths[0]][:stacked]):
            places = [layer_sizes.places(config, path, place[0]) if place else None for path in row.paths]
            ours = zip((wanted[path][stacked:] for path in row.paths), places, strict=True)
            shapes = [layer_sizes.cut_shape(shape, own)[:: -1 if row.transpose else 1] for shape, own in ours]
            whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            ends = np.cumsum([shape[0] for shape in shapes]).tolist()
            key = head or pattern if pattern == "score.weight" else pattern.format(*place)
            absent = stacked > 0 and not row.at(config, place[0])
            found = None if absent else bare.get(key)
            _check(key, found, whole, faults, optional=absent)
            used.add(key)
            for path, end, shape, own in zip(row.paths, ends, shapes, places, strict=True):
                span = (end - shape[0], end)
                sources[path].append(None if found is None else _Part(found, span, row.transpose, own))
    unused = re.compile("|".join(layout.unused))
    for key in sorted(set(bare) - used):
        if unused.fullmatch(key) is None:
            surplus = "surplus: this model has no such parameter"
            faults.add(bare[key].key, surplus, "use a checkpoint that fits config.json")
    faults.raise_if_any(f"{folder}: weights and config.json do not fit")
    return sources


def _check(key: str, found: Tensor | None, shape: tuple[int, ...], faults: Faults, *, optional: bool) -> None:
    """Notes a tensor that is missing, of another shape, or not of floats."""
    if found is None:
        if not optional:
            faults.add(key, "missing", "use a checkpoint that fits config.json")
    elif found.shape != shape:
        faults.add(found.key, f"shape {found.shape}, where config.json means {shape}", "fix config.json or the weights")
    elif found.dtype not in ("F64", "F32", "F16", "BF16"):
        faults.add(found.key, f"holds {found.dtype}, no plain floats", "use an unquantised checkpoint")


def _read(sources: list[_Part | None], leaf: jax.ShapeDtypeStruct, place: Sharding, broken: set[str]) -> jax.Array:
    """One parameter, read straight into its place on the device(s); keys of tensors with NaN go to `broken`."""
    # Leading axes of which each index is a tensor of its own: none, layers, or layers and parts of a routed MLP.
    whole = [len(source.tensor.shape) for source in sources if source is not None]
    axes = leaf.ndim - whole[0] if whole else 1
    numbers = np.arange(len(sources)).reshape(leaf.shape[:axes])

    @functools.cache
    def part(*bounds: tuple[int, int]) -> np.ndarray:
        out = _aligned([hi - lo for lo, hi in bounds], leaf.dtype)
        these = numbers[tuple(slice(*bound) for bound in bounds[:axes])].reshape(-1)
        for row, number in zip(out.reshape(-1, *out.shape[axes:]), these, strict=True):
            source = sources[number]
            _fill(row, source, bounds[axes:])
            if source is not None and not _finite(row):
                broken.add(source.tensor.key)
        return out

    def callback(index: tuple[slice, ...] | None) -> np.ndarray:
        return part(*(s.indices(n)[:2] for s, n in zip(index or (), leaf.shape, strict=True)))

    return jax.make_array_from_callback(leaf.shape, place, callback)


def _fill(row: np.ndarray, part: _Part | None, bounds: Sequence[tuple[int, int]]) -> None:
    """Reads `bounds` of one layer of a parameter into `row`; without a tensor, ones, which nothing reads."""
    if part is None:
        row[...] = 1
        return
    if part.places is not None:
        spans, targets = layer_sizes.within(part.places, bounds)
        found = np.empty([hi - lo for lo, hi in spans], row.dtype)
        if found.size:
            _fill(found, part._replace(places=None), spans)
        row[...] = 0
        row[np.ix_(*targets)] = found
        return
    rest = [slice(lo, hi) for lo, hi in (bounds[::-1] if part.transpose else bounds)][1:]
    first, last = (bound + part.rows[0] for bound in bounds[-1 if part.transpose else 0])
    theirs = row.T if part.transpose else row
    # Transposed in strips as wide as a cache line, a block takes a quarter of the time.
    strip = _STRIP if part.transpose else _ROWS
    for start in range(first, last, _ROWS):
        found = read(part.tensor, (slice(start, min(start + _ROWS, last)), *rest))
        for at in range(0, len(found), strip):
            to = start - first + at
            theirs[to : to + strip] = found[at : at + strip]


def _finite(row: np.ndarray) -> bool:
    """Whether no value is NaN or infinite, without an array of truth values."""
    if row.dtype == np.float32:
        return row.size == 0 or bool(np.isfinite(row.min()) and np.isfinite(row.max()))
    return bool(np.isfinite(row).all())


def _plan(
    config: LMConfig, ours: Mapping[str, Any], max_bytes: int
) -> dict[str, dict[str, tuple[int, Callable[[], np.ndarray]]]]:
    """File name -> key -> (bytes, the function that makes the tensor), files filled in the order of the table."""
    layout = weights.layout(config)
    shards: list[dict[str, tuple[int, Callable[[], np.ndarray]]]] = [{}]
    for pattern, row in layout.table.items():
        if row.paths[0] not in ours:
            continue
        arrays = [ours[path] for path in row.paths]
        stacked = pattern.count("{}")
        for place in np.ndindex(arrays[0].shape[:stacked]):
            if place and not row.at(config, place[0]):
                continue
            cuts = [layer_sizes.places(config, path, place[0]) if place else None for path in row.paths]
            pairs = list(zip(arrays, cuts, strict=True))
            size = sum(
                math.prod(layer_sizes.cut_shape(array.shape[stacked:], cut)) * array.dtype.itemsize
                for array, cut in pairs
            )
            make = functools.partial(_theirs, pairs, place, row.transpose)
            if shards[-1] and sum(size for size, _ in shards[-1].values()) + size > max_bytes:
                shards.append({})
            shards[-1][weights.full(layout, pattern).format(*place)] = size, make
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{i + 1:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards)}


def _theirs(
    pairs: Sequence[tuple[Any, layer_sizes.Places | None]], place: tuple[int, ...], transpose: bool
) -> np.ndarray:
    """One tensor of theirs from one layer (or all) of ours, of each array the entries that the layer has."""
    parts = [layer_sizes.cut(np.asarray(array[place]), places) for array, places in pairs]
    parts = [part.T if transpose else part for part in parts]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _aligned(shape: list[int], dtype: Any) -> np.ndarray:
    """An empty array at a multiple of 64 bytes, which JAX on CPU takes over without a copy."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def flat(tree: Any) -> dict[str, Any]:
    """A tree of dicts as one dict, path such as `blocks/q_proj/kernel` -> leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: not isinstance(leaf, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _set(tree: dict[str, Any], path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
