"""Checkpoints that others have quantised: tensors of public forms as the float32 numbers that they stand for.

`quantization_config` of `config.json` says which form. A weight is widened as it is read, some rows at a time.

    fp8                  weight (float8) x weight_scale_inv, one scale for a block, a row or the tensor
    compressed-tensors   weight (float8, int8) or weight_packed (int4, int8 in int32 words) x weight_scale
    bitsandbytes         weight (int8) x SCB / 127, or 4 bits through a table x the largest of each block
    mxfp4                blocks of 32 4-bit floats with a power of two each (gpt-oss)

All other forms are refused by name. Axis letters: O outputs, I inputs, E experts, G blocks.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pref_jax.errors import Faults
from pref_jax.lm.stored_tensors import Index, Tensor, read, read_whole

Tensors = dict[str, Tensor]
FIX = "use the unquantised checkpoint, or one in the form of fp8, compressed-tensors, bitsandbytes, mxfp4 or GGUF"
# What quantises activations or the cache of keys and values; the weights are whole without it.
_ACTIVATIONS = re.compile(r".*\.(activation_scale|input_scale|output_scale|[kqv]_scale|input_zero_point|weight_format)")
_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "dense")
_STATE = ".quant_state.bitsandbytes__"
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def refused(config: Any) -> str:
    """What speaks against a `quantization_config`; "" if its form is read."""
    if not isinstance(config, Mapping):
        return "is no object"
    method = config.get("quant_method")
    if method not in _METHODS:
        return f"quant_method {method!r} is not read"
    formats = {config.get("format"), *(group.get("format") for group in _groups(config))} - {None, "mixed-precision"}
    if unknown := sorted(formats - set(_FORMATS)) if method == "compressed-tensors" else []:
        return f"format {unknown[0]!r} of compressed-tensors is not read"
    sparse = config.get("sparsity_config") or {}
    if sparse.get("format", "dense") != "dense" or config.get("transform_config"):
        return "weights that are sparse or rotated as well are not read"
    return ""


def widened(tensors: Tensors, config: Mapping[str, Any], where: str) -> Tensors:
    """The tensors, those that are quantised as what they stand for, under the key of an unquantised weight.

    Args:
      tensors: by their keys.
      config: `quantization_config`.
      where: for messages.

    Raises:
      UserError: for parts that are missing or do not fit.
    """
    kept = {key: tensor for key, tensor in tensors.items() if _ACTIVATIONS.fullmatch(key) is None}
    faults = Faults()
    _METHODS[config["quant_method"]](kept, config, faults)
    faults.raise_if_any(f"{where}: quantised weights")
    return kept


def _groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = config.get("config_groups")
    return [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []


def _put(tensors: Tensors, key: str, shape: Sequence[int], widen: Callable[[Index], np.ndarray], like: Tensor) -> None:
    tensors[key] = Tensor(like.file, key, tuple(map(int, shape)), "F32", widen)


def _fp8(tensors: Tensors, config: Mapping[str, Any], faults: Faults) -> None:
    """Weights beside their scales, whose blocks are `weight_block_size` or an even part of the weight."""
    block = config.get("weight_block_size")
    for key in [key for key in tensors if key.endswith("_scale_inv")]:
        scale, name = tensors.pop(key), key.removesuffix("_scale_inv")
        _scale(tensors, name, scale, block, None, faults)


def _compressed(tensors: Tensors, config: Mapping[str, Any], faults: Faults) -> None:
    """Weights, packed or not, beside `weight_scale` and perhaps `weight_zero_point`."""
    rules = [group.get("weights") or {} for group in _groups(config)]
    bits = {rule.get("num_bits", 8) for rule in rules} or {8}
    blocks = [rule["block_structure"] for rule in rules if rule.get("block_structure")]
    for key in [key for key in tensors if key.endswith(".weight_scale")]:
        scale, name = tensors.pop(key), key.removesuffix("_scale")
        zero, order = tensors.pop(f"{name}_zero_point", None), tensors.pop(f"{name}_g_idx", None)
        packed, shape = tensors.pop(f"{name}_packed", None), tensors.pop(f"{name}_shape", None)
        if packed is not None and (shape is None or len(bits) > 1 or order is not None):
            why = "lacks weight_shape, is of mixed numbers of bits, or is ordered by activations"
            faults.add(f"{name}_packed", why, FIX)
            continue
        if packed is not None and shape is not None:
            sizes, width = read_whole(shape).tolist(), min(bits)
            _put(tensors, name, sizes, functools.partial(_unpack, packed, width, sizes[1]), packed)
            if zero is not None:
                zeros = [sizes[0], scale.shape[1]]
                widen = functools.partial(_unpack_columns, zero, width, zeros[0])
                zero = Tensor(zero.file, zero.key, (zeros[0], zeros[1]), "F32", widen)
        _scale(tensors, name, scale, blocks[0] if blocks else None, zero, faults)


def _scale(
    tensors: Tensors, name: str, scale: Tensor, block: Sequence[int] | None, zero: Tensor | None, faults: Faults
) -> None:
    """Replaces a weight by (weight - zero) x scale."""
    weight = tensors.get(name)
    if weight is None:
        return faults.add(scale.key, f"stands without {name}", "fetch the files again")
    sizes = scale.shape if len(scale.shape) == len(weight.shape) else (1,) * len(weight.shape)
    if block is None or max(sizes) == 1 or len(weight.shape) != len(block):
        block = [-(-size // parts) for size, parts in zip(weight.shape, sizes, strict=True)]
    fits = all(-(-size // b) == parts for size, b, parts in zip(weight.shape, block, sizes, strict=True) if parts > 1)
    if not fits or np.prod(scale.shape) != np.prod(sizes):
        return faults.add(scale.key, f"shape {scale.shape} does not fit {name} {weight.shape}", "fetch the files again")
    _put(tensors, name, weight.shape, functools.partial(_scaled, weight, scale, zero, sizes, tuple(block)), weight)


def _scaled(
    weight: Tensor, scale: Tensor, zero: Tensor | None, sizes: Sequence[int], block: Sequence[int], index: Index
) -> np.ndarray:
    spans = zip(index, weight.shape, block, sizes, strict=True)
    places = [np.minimum(np.arange(*one.indices(size)) // b, parts - 1) for one, size, b, parts in spans]
    found = read(weight, index).astype(np.float32)
    if zero is not None:
        found -= read_whole(zero).astype(np.float32).reshape(sizes)[np.ix_(*places)]
    return found * read_whole(scale).astype(np.float32).reshape(sizes)[np.ix_(*places)]


def _unpack(packed: Tensor, bits: int, width: int, index: Index) -> np.ndarray:
    """Signed numbers [O I] of words [O, I / (32 / bits)], the lowest bits first and 2^(bits - 1) too large."""
    words = read(packed, (index[0], slice(0, packed.shape[1]))).view(np.uint32)
    return _numbers(words, bits)[:, :width][:, index[1]] - np.float32(1 << bits - 1)


def _unpack_columns(packed: Tensor, bits: int, rows: int, index: Index) -> np.ndarray:
    """The same of words [O / (32 / bits), G]."""
    words = np.ascontiguousarray(read_whole(packed).view(np.uint32).T)
    return (_numbers(words, bits)[:, :rows].T - np.float32(1 << bits - 1))[index]


def _numbers(words: np.ndarray, bits: int) -> np.ndarray:
    shifts = np.arange(0, 32 // bits * bits, bits, dtype=np.uint32)
    return ((words[..., None] >> shifts) & np.uint32((1 << bits) - 1)).reshape(len(words), -1).astype(np.float32)


def _bitsandbytes(tensors: Tensors, _: Mapping[str, Any], faults: Faults) -> None:
    """Weights of 8 bits beside SCB, or of 4 bits beside the state that says how they were made."""
    for key in [key for key in tensors if key.endswith(".SCB")]:
        name = f"{key.removesuffix('SCB')}weight"
        _scale(tensors, name, _over(tensors.pop(key), 127), None, None, faults)
    for key in [key for key in tensors if _STATE in key]:
        name = key.split(_STATE)[0]
        state = json.loads(read_whole(tensors.pop(key)).tobytes())
        parts = {part: tensors.pop(f"{name}.{part}", None) for part in ("absmax", "quant_map")}
        nested = {part: tensors.pop(f"{name}.{part}", None) for part in ("nested_absmax", "nested_quant_map")}
        packed = tensors.get(name)
        if packed is None or None in parts.values() or (state.get("nested_blocksize") and None in nested.values()):
            faults.add(key, "stands without weight, absmax or the tables", "fetch the files again")
            continue
        _put(tensors, name, state["shape"], functools.partial(_by_table, packed, state, {**parts, **nested}), packed)


def _over(scale: Tensor, divisor: int) -> Tensor:
    """A scale of each row [O], divided, as [O 1]."""

    def widen(index: Index) -> np.ndarray:
        return (read_whole(scale).astype(np.float32) / divisor)[:, None][index]

    return Tensor(scale.file, scale.key, (*scale.shape, 1), "F32", widen)


def _by_table(packed: Tensor, state: Mapping[str, Any], parts: Mapping[str, Tensor | None], index: Index) -> np.ndarray:
    """Numbers by their place in a table, the higher half of a byte first, times the largest of their block."""
    tables = {name: read_whole(part) for name, part in parts.items() if part is not None}
    absmax = tables["absmax"].reshape(-1)
    if state.get("nested_blocksize"):
        blocks = np.arange(len(absmax)) // state["nested_blocksize"]
        absmax = tables["nested_quant_map"][absmax] * tables["nested_absmax"][blocks] + state["nested_offset"]
    width = int(np.prod(state["shape"][1:]))
    first, last, _ = index[0].indices(state["shape"][0])
    places = np.arange(first * width, last * width)
    bytes_ = read(packed, (slice(first * width // 2, -(-last * width // 2)), slice(0, 1))).reshape(-1)
    codes = np.stack([bytes_ >> 4, bytes_ & 15], 1).reshape(-1)[first * width % 2 :][: len(places)]
    found = tables["quant_map"][codes] * absmax[places // state["blocksize"]].astype(np.float32)
    return found.reshape(last - first, *state["shape"][1:])[(slice(None), *index[1:])].astype(np.float32)


def _mxfp4(tensors: Tensors, _: Mapping[str, Any], faults: Faults) -> None:
    """Experts' weights [E I O] from blocks [E O G 16] and scales [E O G]."""
    for key in [key for key in tensors if key.endswith("_blocks")]:
        blocks, name = tensors.pop(key), key.removesuffix("_blocks")
        scales = tensors.pop(f"{name}_scales", None)
        if scales is None or scales.shape != blocks.shape[:-1]:
            faults.add(key, f"stands without {name}_scales of its shape", "fetch the files again")
            continue
        experts, outputs, groups, half = blocks.shape
        _put(tensors, name, (experts, 2 * half * groups, outputs), functools.partial(_blocks, blocks, scales), blocks)


def _blocks(blocks: Tensor, scales: Tensor, index: Index) -> np.ndarray:
    """4-bit floats (sign, two bits of exponent, one of fraction), the lower half of a byte first."""
    outputs = slice(*index[2].indices(blocks.shape[1]))
    bytes_ = read(blocks, (index[0], outputs, slice(0, blocks.shape[2]), slice(0, blocks.shape[3])))
    exponents = read(scales, (index[0], outputs, slice(0, scales.shape[2]))).astype(np.int32) - 127
    codes = np.stack([bytes_ & 15, bytes_ >> 4], -1).reshape(*bytes_.shape[:3], -1)
    values = np.where(codes & 8, -_FP4[codes & 7], _FP4[codes & 7])
    found = np.ldexp(values, exponents[..., None]).astype(np.float32)
    return found.reshape(*found.shape[:2], -1).swapaxes(1, 2)[:, index[1]]


_METHODS: dict[str, Callable[[Tensors, Mapping[str, Any], Faults], None]] = {
    "fp8": _fp8,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
}
