"""A GGUF file as a folder in Hugging Face layout, its weights left where they are; see `gguf_file`."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pref_jax.errors import Faults, UserError
from pref_jax.files import atomic_folder, user_cache, write_json
from pref_jax.lm import gguf_config, gguf_tokenizer, hf_config, weights
from pref_jax.lm.gguf_file import FILE, TABLE, catalog, library
from pref_jax.lm.stored_tensors import read_whole
from pref_jax.locks import hold
from pref_jax.progress import log

# Between the keys of Hugging Face and the spelling that the library's table of names knows.
_SPELLED = ((r"\.sinks$", ".sinks.weight"), (r"_proj_bias$", "_proj.bias"), (r"experts\.\d+\.", "experts."))
_SPELLED += ((r"experts\.(gate_up|down)_proj$", r"experts.\1_proj.weight"),)
# Families whose rotary heads llama.cpp keeps with their halves interleaved.
_INTERLEAVED = ("llama", "mistral", "ministral3", "smollm3", "granite")
# Seconds to wait for another process that unpacks the same file.
UNPACKING = 120.0


def unpack(path: str | Path) -> Path:
    """The folder with config, tokenizer and table of tensors of a GGUF file, in the user's cache; made if it is not
    there. It is made again when the file changes.

    Raises:
      UserError: if the library is missing, the file is damaged, or of an architecture, a type of numbers or a tokenizer
        that is not read.

    Example:
      >>> unpack("SmolLM2-135M-Instruct.Q4_1.gguf").name[:26]
      'SmolLM2-135M-Instruct.Q4_1'
    """
    path = Path(path).resolve()
    stat = path.stat()
    look = hashlib.sha256(f"2 {path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = user_cache() / "gguf" / f"{path.stem}-{look}"
    if not _whole(folder):
        with hold(folder, beside=True, wait=UNPACKING):
            if not _whole(folder):
                _unpack(path, folder)
    return folder


def _whole(folder: Path) -> bool:
    return (folder / TABLE).exists() and (folder / FILE).exists()


def _unpack(path: Path, folder: Path) -> None:
    gguf = library(path)
    log(f"{path.name}: reading its configuration and tokenizer")
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the library raises errors of many kinds: all mean that the bytes make no sense
        raise UserError(f"{path}: no GGUF file, or cut short ({error}); fetch it again") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if reader.byte_order != "I" or fields.get("split.count", 0) > 1 or fields.get("general.type", "model") != "model":
        fix = "give a little-endian file that holds a whole model (llama-gguf-split --merge joins parts)"
        raise UserError(f"{path}: is a part of a model, an adapter, or big-endian; {fix}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in tensors.items()}
    raw = gguf_config.config(fields, shapes, str(path))
    entries = _table(raw, str(fields["general.architecture"]), tensors, gguf, str(path))
    with atomic_folder(folder) as part:
        os.symlink(path, part / FILE)
        if rope := {name: entries.pop(name) for name in gguf_config.ROPE_TENSORS if name in entries}:
            write_json(part / TABLE, rope)
            factors = {name: read_whole(tensor) for name, tensor in catalog(part).items()}
            raw["rope_scaling"] = gguf_config.rope_scaling(factors, raw, fields, str(path))
        hf_config.read(raw, where=str(path))
        gguf_tokenizer.write(part, fields, raw, str(path))
        write_json(part / "config.json", raw)
        write_json(part / TABLE, entries)


def _table(raw: dict[str, Any], architecture: str, tensors: Mapping[str, Any], gguf: Any, where: str) -> dict[str, Any]:
    """Every tensor by Hugging Face's key, or by its own name where that has none.

    Raises:
      UserError: naming the types of numbers that the library does not widen.
    """
    faults = Faults()
    for name, tensor in tensors.items():
        if not _widens(gguf, tensor.tensor_type):
            fix = "take a file of another quantisation, such as Q8_0"
            faults.add(f"{where}: {name}", f"holds {tensor.tensor_type.name}", fix)
    faults.raise_if_any("GGUF file")
    plain = {name: value for name, value in raw.items() if name != "rope_scaling"}
    read = hf_config.read(plain, where=where)
    layout = weights.layout(read)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], read.num_layers)
    entries, rest = {}, dict(tensors)
    for pattern in layout.table:
        for layer in range(read.num_layers if "{}" in pattern else 1):
            spelled = [names.get_name(key, (".weight", ".bias")) for key in _spelled(layout, pattern, layer)]
            found = [tensors[name] for name in spelled if name in tensors]
            if len(found) < len(spelled):
                continue
            for part in range(int(found[0].shape[-1]) if pattern.count("{}") > 1 else 1):
                key = weights.full(layout, pattern.format(layer, part))
                entries[key] = _entry(found, part if pattern.count("{}") > 1 else None, raw)
            for name in spelled:
                rest.pop(name, None)
    return entries | {name: _entry([tensor], None, raw) for name, tensor in rest.items()}


def _spelled(layout: weights.Layout, pattern: str, layer: int) -> list[str]:
    """A key as the library's table of names knows it; two, where the file holds gate and up apart."""
    key = weights.full(layout, pattern.format(layer, 0))
    for old, new in _SPELLED:
        key = re.sub(old, new, key)
    return [key.replace("gate_up", one) for one in ("gate", "up")] if ".experts.gate_up" in key else [key]


def _entry(tensors: Sequence[Any], part: int | None, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says of one tensor: of two that are one there, of one `part` along the first axis, or of all."""
    name, shape = tensors[0].name, [int(size) for size in tensors[0].shape[::-1]]
    if len(tensors) > 1:
        pair = [_entry([one], None, {"model_type": ""}) for one in tensors]
        shape[1] *= 2
        return {"name": name, "shape": _swapped(shape), "pair": pair, "swap": len(shape) > 2}
    found = {"name": name, "type": tensors[0].tensor_type.name, "shape": shape, "offset": int(tensors[0].data_offset)}
    if part is not None:
        found |= {"shape": shape[1:], "offset": found["offset"] + part * int(tensors[0].n_bytes) // shape[0]}
    kind = name.split(".")[-2] if "." in name else name
    if raw["model_type"] in _INTERLEAVED and kind in ("attn_q", "attn_k"):
        found["heads"] = raw["num_attention_heads" if kind == "attn_q" else "num_key_value_heads"]
    if raw["model_type"].startswith("gemma") and name.endswith("norm.weight"):
        found["shift"] = -1.0
    if raw["model_type"] == "gpt_oss" and name.endswith("_exps.weight"):
        found |= {"shape": _swapped(shape), "swap": True}
    return found


def _swapped(shape: list[int]) -> list[int]:
    """The shape of a kernel as Hugging Face's gpt-oss has it, [E, in, out]."""
    return [shape[0], shape[2], shape[1]] if len(shape) > 2 else shape


def _widens(gguf: Any, kind: Any) -> bool:
    """Whether the library makes floats of one block of this kind."""
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True
