"""The dictionary of a `config.json` from the fields of a GGUF file.

What llama.cpp's converter (`convert_hf_to_gguf.py`) does to the weights and leaves out of the fields is undone here and
in `gguf_unpack`. A field that is not known is refused: it may change the mathematics.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pref_jax.errors import Faults
from pref_jax.lm import hf_fields
from pref_jax.lm.families import stem

Fields = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# `general.architecture` -> Hugging Face's `model_type`; what a file says beside may make another one of it (`_family`).
# Mistral's files are those of a llama; those of Mistral 3 and Ministral 3 are "mistral3".
FAMILIES = {
    "llama": "llama",
    "mistral3": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "granite": "granite",
    "gpt-oss": "gpt_oss",
}
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
_YARN = {
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "attention_factor": "rope.scaling.yarn_attn_factor",
}
_OPTIONAL = {
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size", "expert_count"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "expert_used_count"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "attention.causal", "tensor_data_layout"),
    *_YARN.values(),
}
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_GEMMA = {_WINDOW, _PATTERN, "rope.freq_base_swa", "attn_logit_softcapping", "final_logit_softcapping"}
_EXPERTS = {
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "num_experts": "expert_count",
}
_GRANITE = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
# What the files of one architecture have beside, and what they must have.
_OWN: dict[str, set[str]] = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), _GEMMA),
    "mistral3": {"attention.temperature_scale", "rope.scaling.yarn_log_multiplier"},
    "qwen3moe": set(_EXPERTS.values()),
    "olmo2": {_WINDOW, _PATTERN, "rope.freq_base_swa"},
    "phi3": {_WINDOW, "rope.scaling.attn_factor"},
    "granite": set(_GRANITE.values()),
    "gpt-oss": {_WINDOW, *_EXPERTS.values()},
}
_NEEDED: dict[str, set[str]] = {
    "qwen3moe": set(_EXPERTS.values()),
    "phi3": {_WINDOW},
    "granite": {"attention.scale"},
    "gpt-oss": {_WINDOW, "expert_count", "expert_used_count"},
}
_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
# Factors of wavelengths, in tensors of their own.
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
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
    heads, family = own["attention.head_count"], _family(str(kind), own)
    width = own.get("attention.key_length") or (kind != "phi3" and own.get("rope.dimension_count"))
    width = width or own["embedding_length"] // heads
    found = {
        "architectures": [f"{stem(family)}ForCausalLM"],
        "model_type": family,
        **{ours: own[theirs] for ours, theirs in _SIZES.items()},
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": width,
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "rope_theta": own.get("rope.freq_base", 10000.0),
        **{f"{name}_token_id": fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")},
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        **{ours: theirs in shapes for ours, theirs in _BIASES.items() if ours in hf_fields.USED[family]},
    }
    if scaling := _scaling(own, family):
        found["rope_scaling"] = scaling
    found |= _of_family(own, family, width)
    turned = own.get("rope.dimension_count", width)
    if turned != width and family != "phi3":
        faults.add(f"{where}: {kind}.rope.dimension_count", f"is {turned}, but a head has {width} features", _FIX)
    faults.raise_if_any("GGUF file")
    return found


def _family(kind: str, own: Fields) -> str:
    """The `model_type` of a file; some architectures hold several."""
    if kind == "mistral3" and own.get("rope.scaling.type") == "yarn":
        return "ministral3"
    return "olmo3" if kind == "olmo2" and own.get(_WINDOW) else FAMILIES[kind]


def _scaling(own: Fields, family: str) -> dict[str, Any] | None:
    """`rope_scaling` as far as fields tell."""
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("linear", "yarn"):
        return None
    found: dict[str, Any] = {"rope_type": kind, "factor": own["rope.scaling.factor"]}
    if kind == "linear":
        return found
    found["original_max_position_embeddings"] = own.get("rope.scaling.original_context_length", own["context_length"])
    found |= {ours: own[theirs] for ours, theirs in _YARN.items() if theirs in own}
    if family == "gpt_oss":
        found["truncate"] = False
    if family == "ministral3":
        # llama.cpp takes the other of the two for 1.
        found |= {"mscale": 1.0, "mscale_all_dim": own.get("rope.scaling.yarn_log_multiplier", 0.0)}
        found["llama_4_scaling_beta"] = own.get("attention.temperature_scale", 0.0)
    return found


def _of_family(own: Fields, family: str, width: int) -> dict[str, Any]:
    """The fields that some families have beside the common ones."""
    if family.startswith("gemma"):
        return _gemma(own, family, width)
    if family == "mistral":
        return {"sliding_window": None}
    if family == "granite":
        return {ours: own[theirs] for ours, theirs in _GRANITE.items() if theirs in own}
    if family == "qwen3_moe":
        # llama.cpp always does so, and no file tells.
        return {ours: own[theirs] for ours, theirs in _EXPERTS.items()} | {"norm_topk_prob": True}
    if family == "gpt_oss":
        count = {"num_local_experts": own["expert_count"], "num_experts_per_tok": own["expert_used_count"]}
        return count | {"sliding_window": own[_WINDOW]}
    if family == "olmo3":
        near = {"rope_type": "default", "rope_theta": own.get("rope.freq_base_swa", own.get("rope.freq_base", 1e4))}
        return {"sliding_window": own[_WINDOW], "layer_types": _layer_types(own, 4)} | {
            "rope_parameters": {"sliding_attention": near}
        }
    if family == "phi3":
        turned = own.get("rope.dimension_count", width)
        # Readers round down.
        share = 1.0 if turned == width else math.nextafter(turned / width, 1)
        original = own.get("rope.scaling.original_context_length", own["context_length"])
        found = {"sliding_window": own[_WINDOW] or None, "original_max_position_embeddings": original}
        return found | {"partial_rotary_factor": share}
    return {}


def _layer_types(own: Fields, every: int) -> list[str]:
    pattern = own.get(_PATTERN, every)
    near = pattern if isinstance(pattern, list) else [bool((n + 1) % pattern) for n in range(own["block_count"])]
    return ["sliding_attention" if flag else "full_attention" for flag in near]


def rope_scaling(tensors: Mapping[str, np.ndarray], raw: Mapping[str, Any], fields: Fields, where: str) -> Any:
    """`rope_scaling` of a file that holds the numbers by which each wavelength is stretched.

    Args:
      tensors: those of `ROPE_TENSORS` that the file has.
      raw: what `config` has made of the fields.
      fields: of the file.
      where: the file, for messages.

    Raises:
      UserError: if they are not Llama 3's, or only half of what longrope has.
    """
    if "rope_freqs.weight" in tensors:
        factors = tensors["rope_freqs.weight"]
        return llama3_scaling(factors, raw["rope_theta"], raw["head_dim"], where)
    faults = Faults()
    for name in ROPE_TENSORS[1:]:
        if name not in tensors or raw["model_type"] != "phi3":
            faults.add(f"{where}: {name}", "missing, or in a model that is no Phi 3", _FIX)
    faults.raise_if_any("GGUF file")
    found = {
        f"{kind}_factor": [_shortest(float(one)) for one in tensors[f"rope_factors_{kind}.weight"]]
        for kind in ("long", "short")
    }
    attention = fields.get("phi3.rope.scaling.attn_factor")
    return {"rope_type": "longrope", **found} | ({} if attention is None else {"attention_factor": attention})


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
    known = {*_SIZES.values(), *_OPTIONAL, *_OWN.get(kind, ())}
    for name in sorted({*_SIZES.values(), *_NEEDED.get(kind, ())} - own.keys()):
        faults.add(f"{where}.{name}", "missing", _FIX)
    for name in sorted(own.keys() - known):
        faults.add(f"{where}.{name}", f"is {own[name]!r:.60}, a field that is not known here", _FIX)
    for name in own.keys() & known - {_PATTERN}:
        if isinstance(own[name], list):
            faults.add(f"{where}.{name}", "differs between layers", _FIX)
    if own.get("expert_count") and "expert_count" not in _OWN.get(kind, ()):
        faults.add(f"{where}.expert_count", f"is {own['expert_count']}: routed experts are not read here", _FIX)
    if kind == "gpt-oss" and own.get("expert_feed_forward_length", own.get("feed_forward_length")) != own.get(
        "feed_forward_length"
    ):
        faults.add(f"{where}.expert_feed_forward_length", "is not feed_forward_length", _FIX)
    if kind == "granite" and own.get("rope.scaling.finetuned") is False:
        faults.add(f"{where}.rope.scaling.finetuned", "is false: tokens are not told positions", _FIX)
    if own.get("attention.value_length") not in (None, own.get("attention.key_length")):
        faults.add(f"{where}.attention.value_length", "is not attention.key_length", _FIX)
    if own.get("attention.causal") is False:
        faults.add(f"{where}.attention.causal", "is false", _FIX)
    scaling = own.get("rope.scaling.type", "none")
    known_scaling = ("none", "linear", "yarn", *(["longrope"] if kind == "phi3" else []))
    if scaling not in known_scaling or (scaling in ("linear", "yarn") and "rope.scaling.factor" not in own):
        faults.add(f"{where}.rope.scaling.type", f"is {scaling!r}, with what we do not read or without factor", _FIX)


def _gemma(own: Fields, family: str, width: int) -> dict[str, Any]:
    """What the Gemmas have beside the common fields; the scale of attention scores follows from the size alone."""
    found: dict[str, Any] = {"hidden_activation": "gelu_pytorch_tanh"}
    if family == "gemma":
        return found | {"hidden_act": "gelu_pytorch_tanh"}
    largest = own["block_count"] == {"gemma2": 46, "gemma3_text": 62}[family]
    scalar = own["embedding_length"] // own["attention.head_count"] if largest else width
    found |= {"query_pre_attn_scalar": scalar, "sliding_window": own.get(_WINDOW)}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        found[name] = own.get(name)
    if family == "gemma3_text":
        found["layer_types"] = _layer_types(own, 6)
        found["rope_local_base_freq"] = own.get("rope.freq_base_swa", 10000.0)
    return found


def _shortest(value: Any) -> Any:
    """Numbers of single precision as the shortest decimals that name them, as a config has them."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
