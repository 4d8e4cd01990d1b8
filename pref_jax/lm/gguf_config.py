"""The dictionary of a `config.json` from the fields of a GGUF file.

What llama.cpp's converter (`convert_hf_to_gguf.py`) does to the weights and leaves out of the fields is undone here and
in `gguf_unpack`. A field that is not known is refused: it may change the mathematics.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pref_jax.errors import Faults

Fields = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# `general.architecture` -> Hugging Face's `model_type`.
FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
_STEMS = {"gemma3_text": "Gemma3"}
_FIX = "take the model's safetensors, or another GGUF file of it"
# Our field -> theirs, which every file has.
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size", "expert_count"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "expert_used_count"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "attention.causal", "tensor_data_layout"),
}
_GEMMA = {"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"}
_GEMMA |= {"attn_logit_softcapping", "final_logit_softcapping"}
# The parameters of Llama 3's stretched rotary positions, of which a file has nothing but the factors they come to.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config(fields: Fields, shapes: Shapes, where: str) -> dict[str, Any]:
    """The dictionary that transformers' class of the family reads.

    Args:
      fields: of the file, by name.
      shapes: of its tensors, by llama.cpp's names.
      where: the file, for messages.

    Raises:
      UserError: with every field that is missing or that this reader does not know.
    """
    faults = Faults()
    kind = fields.get("general.architecture")
    if kind not in FAMILIES:
        faults.add(f"{where}: general.architecture", f"{kind!r} is not supported", f"use one of {', '.join(FAMILIES)}")
        faults.raise_if_any("GGUF file")
    inside = [name for name in fields if name.startswith(f"{kind}.")]
    own = {name.removeprefix(f"{kind}."): _shortest(fields[name]) for name in inside}
    _check(own, str(kind), f"{where}: {kind}", faults)
    if "token_embd.weight" not in shapes:
        faults.add(f"{where}: token_embd.weight", "missing", _FIX)
    faults.raise_if_any("GGUF file")
    heads = own["attention.head_count"]
    width = own.get("attention.key_length") or own.get("rope.dimension_count") or own["embedding_length"] // heads
    family = FAMILIES[str(kind)]
    found = {
        "architectures": [f"{_STEMS.get(family, family.capitalize())}ForCausalLM"],
        "model_type": family,
        **{ours: own[theirs] for ours, theirs in _SIZES.items()},
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": width,
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "rope_theta": own.get("rope.freq_base", 10000.0),
        **{f"{name}_token_id": fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")},
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    if family == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in shapes
        found["mlp_bias"] = "blk.0.ffn_gate.bias" in shapes
    if family.startswith("gemma"):
        found |= _gemma(own, family, width)
    scaling = own.get("rope.scaling.type", "none")
    if scaling == "linear":
        found["rope_scaling"] = {"rope_type": "linear", "factor": own["rope.scaling.factor"]}
    elif scaling == "yarn":
        original = own.get("rope.scaling.original_context_length", own["context_length"])
        found["rope_scaling"] = {"rope_type": "yarn", "factor": own["rope.scaling.factor"]}
        found["rope_scaling"]["original_max_position_embeddings"] = original
    return found


def llama3_scaling(factors: np.ndarray, theta: float, width: int, where: str) -> dict[str, Any]:
    """`rope_scaling` from the factors (`rope_freqs.weight` [width / 2]) by which wavelengths are stretched.

    Raises:
      UserError: if they are not those of Llama 3's formula with its usual parameters.
    """
    factor = float(factors.max())
    found = {"rope_type": "llama3", "factor": float(np.float32(factor)), **_LLAMA3}
    length = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    low, high, original = _LLAMA3.values()
    smooth = np.clip((original / length - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    faults = Faults()
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        faults.add(f"{where}: rope_freqs.weight", "holds other factors than Llama 3's", _FIX)
    faults.raise_if_any("GGUF file")
    return found


def _check(own: Fields, kind: str, where: str, faults: Faults) -> None:
    """Notes fields that are missing, unknown, or of a model that the family's class is not."""
    known = {*_SIZES.values(), *_OPTIONAL, *(_GEMMA if kind.startswith("gemma") else ())}
    for name in sorted(set(_SIZES.values()) - own.keys()):
        faults.add(f"{where}.{name}", "missing", _FIX)
    for name in sorted(own.keys() - known):
        faults.add(f"{where}.{name}", f"is {own[name]!r:.60}, a field that is not known here", _FIX)
    for name in own.keys() & known - {"attention.sliding_window_pattern"}:
        if isinstance(own[name], list):
            faults.add(f"{where}.{name}", "differs between layers", _FIX)
    if own.get("expert_count"):
        faults.add(f"{where}.expert_count", f"is {own['expert_count']}: routed experts are not read from GGUF", _FIX)
    if own.get("attention.value_length") not in (None, own.get("attention.key_length")):
        faults.add(f"{where}.attention.value_length", "is not attention.key_length", _FIX)
    if own.get("attention.causal") is False:
        faults.add(f"{where}.attention.causal", "is false", _FIX)
    scaling = own.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn") or (scaling != "none" and "rope.scaling.factor" not in own):
        faults.add(f"{where}.rope.scaling.type", f"is {scaling!r}, with what we do not read or without factor", _FIX)


def _gemma(own: Fields, family: str, width: int) -> dict[str, Any]:
    """What the Gemmas have beside the common fields; the scale of attention scores follows from the size alone."""
    found: dict[str, Any] = {"hidden_activation": "gelu_pytorch_tanh"}
    if family == "gemma":
        return found | {"hidden_act": "gelu_pytorch_tanh"}
    largest = own["block_count"] == {"gemma2": 46, "gemma3_text": 62}[family]
    scalar = own["embedding_length"] // own["attention.head_count"] if largest else width
    found |= {"query_pre_attn_scalar": scalar, "sliding_window": own.get("attention.sliding_window")}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        found[name] = own.get(name)
    if family == "gemma3_text":
        pattern = own.get("attention.sliding_window_pattern", 6)
        layers = range(own["block_count"])
        near = pattern if isinstance(pattern, list) else [bool((layer + 1) % pattern) for layer in layers]
        found["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in near]
        found["rope_local_base_freq"] = own.get("rope.freq_base_swa", 10000.0)
    return found


def _shortest(value: Any) -> Any:
    """Numbers of single precision as the shortest decimals that name them, as a config has them."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
