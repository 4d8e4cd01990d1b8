"""A GGUF file as a folder in Hugging Face layout, its weights left where they are; see `gguf_file`."""

import hashlib
import os
from collections.abc import Mapping
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

_ROPE = "rope_freqs.weight"
# Seconds to wait for another process that unpacks the same file.
UNPACKING = 120.0


def unpack(path: str | Path) -> Path:
    """The folder with config, tokenizer and table of tensors of a GGUF file, in the user's cache; made if it is not
    there. It is made anew when the file changes.

    Raises:
      UserError: if the library is missing, the file is damaged, or of an architecture, a type of numbers or a tokenizer
        that is not read.

    Example:
      >>> unpack("SmolLM2-135M-Instruct.Q4_1.gguf").name[:26]
      'SmolLM2-135M-Instruct.Q4_1'
    """
    path = Path(path).resolve()
    stat = path.stat()
    look = hashlib.sha256(f"1 {path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
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
    entries = _table(raw, tensors, shapes, gguf, str(path))
    with atomic_folder(folder) as part:
        os.symlink(path, part / FILE)
        if rope := entries.pop(_ROPE, None):
            write_json(part / TABLE, {_ROPE: rope})
            factors = read_whole(catalog(part)[_ROPE])
            raw["rope_scaling"] = gguf_config.llama3_scaling(factors, raw["rope_theta"], raw["head_dim"], str(path))
        hf_config.read(raw, where=str(path))
        gguf_tokenizer.write(part, fields, raw, str(path))
        write_json(part / "config.json", raw)
        write_json(part / TABLE, entries)


def _table(
    raw: dict[str, Any], tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], gguf: Any, where: str
) -> dict[str, Any]:
    """Every tensor by Hugging Face's key, or by its own name where that has none.

    Raises:
      UserError: naming the types of numbers that the library does not widen.
    """
    faults = Faults()
    plain = {name: value for name, value in raw.items() if name != "rope_scaling"}
    read, family = hf_config.read(plain, where=where), raw["model_type"]
    layout = weights.layout(read)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[_architecture(family)], read.num_layers)
    keys = {}
    for pattern in layout.table:
        for layer in range(read.num_layers if "{}" in pattern else 1):
            key = weights.full(layout, pattern.format(layer))
            keys[names.get_name(key, (".weight", ".bias"))] = key
    entries = {}
    for name, tensor in tensors.items():
        kind = tensor.tensor_type
        if not _widens(gguf, kind):
            faults.add(f"{where}: {name}", f"holds {kind.name}", "take a file of another quantisation, such as Q8_0")
        entry = {"name": name, "type": kind.name, "shape": list(shapes[name]), "offset": int(tensor.data_offset)}
        part = name.split(".")[-2] if "." in name else name
        if family == "llama" and part in ("attn_q", "attn_k"):
            entry["heads"] = raw["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        if family.startswith("gemma") and name.endswith("norm.weight"):
            entry["shift"] = -1.0
        entries[keys.get(name, name)] = entry
    faults.raise_if_any("GGUF file")
    return entries


def _architecture(family: str) -> str:
    return next(kind for kind, name in gguf_config.FAMILIES.items() if name == family)


def _widens(gguf: Any, kind: Any) -> bool:
    """Whether the library makes floats of one block of this kind."""
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True
