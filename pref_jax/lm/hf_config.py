"""Between `LMConfig` and Hugging Face's `config.json`, as transformers 4 and 5 write it.

What a file leaves out takes the default of its family's class in transformers: `DEFAULTS`.
"""

from collections.abc import Mapping
from typing import Any

from pref_jax.errors import Faults
from pref_jax.lm.config import TRAITS, LMConfig, RopeScaling

Raw = Mapping[str, Any]

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}
_DECODER = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "architectures": ["ForCausalLM"]}
_GEMMA = _DECODER | {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_GEMMA2 = _GEMMA | {"sliding_window": 4096, "query_pre_attn_scalar": 256}
DEFAULTS: dict[str, Raw] = {
    "llama": _DECODER,
    "mistral": _DECODER | {"sliding_window": 4096},
    "qwen2": _DECODER | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": _DECODER | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
    "gemma": _GEMMA,
    "gemma2": _GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window_pattern": 2},
    "gemma3_text": _GEMMA2
    | {
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        # The files of the larger models leave out what does not differ from these.
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    },
    "bert": {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2},
    "modernbert": {
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
    },
}
# Without these, engines put a softmax or a sigmoid on rewards: transformers' pipelines and vLLM's /classify go by the
# first, vLLM's /score and cross-encoders of sentence-transformers by the second.
RAW_SCORES: Raw = {
    "problem_type": "regression",
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
}
# How transformers' classes of a family begin.
_STEMS = {"qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3_text": "Gemma3", "modernbert": "ModernBert"}
_TRUNKS = {"gemma3_text": "Gemma3TextModel"}
_CLASSIFIERS = {"gemma3_text": "Gemma3TextForSequenceClassification"}


def read(raw: Raw, *, where: str = "config.json") -> LMConfig:
    """Reads the dictionary of a `config.json`.

    Of a `gemma3` model with pictures, the part that reads text is taken.

    Raises:
      UserError: with every field that is missing or that this code cannot honour.
    """
    if raw.get("model_type") == "gemma3" and isinstance(raw.get("text_config"), Mapping):
        outer = {
            key: raw[key] for key in ("architectures", "bos_token_id", "eos_token_id", "pad_token_id") if key in raw
        }
        raw = {**raw["text_config"], **outer, "model_type": "gemma3_text"}
    faults = Faults()
    family = raw.get("model_type")
    if family not in TRAITS:
        faults.add(f"{where}: model_type", f"{family!r} is not supported", f"use one of {', '.join(TRAITS)}")
    said = {key: value for key, value in raw.items() if value is not None}
    raw = {**DEFAULTS.get(str(family), {}), **said, **_nulls(raw)}
    for name in _SIZES.values():
        if not isinstance(raw.get(name), int):
            faults.add(f"{where}: {name}", f"is {raw.get(name)!r}", "give a whole number")
    if raw.get("quantization_config"):
        faults.add(f"{where}: quantization_config", "the weights are quantised", "use the unquantised checkpoint")
    if raw.get("use_bidirectional_attention"):
        faults.add(f"{where}: use_bidirectional_attention", "not supported", "use a causal checkpoint")
    own: dict[str, Any] = {}
    if family in TRAITS:
        own = _bert(raw, faults, where) if family == "bert" else _rotary(raw, faults, where)
    faults.raise_if_any("Transformer configuration")
    eos = raw.get("eos_token_id")
    return LMConfig(
        family=raw["model_type"],
        **{ours: raw[theirs] for ours, theirs in _SIZES.items()},
        **own,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        pad_token_id=raw.get("pad_token_id"),
    )


def _nulls(raw: Raw) -> dict[str, None]:
    """Fields that say "none" and mean it, against the default."""
    meaning = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
    return {name: None for name in meaning if name in raw and raw[name] is None}


def _rotary(raw: Raw, faults: Faults, where: str) -> dict[str, Any]:
    """The fields of all families but `bert`; notes what cannot be honoured."""
    family = raw["model_type"]
    architectures = " ".join(raw.get("architectures") or [])
    labels = raw.get("num_labels") or len(raw.get("id2label") or (0, 1))
    fields = {
        "num_kv_heads": raw.get("num_key_value_heads") or 0,
        "head_dim": raw.get("head_dim") or 0,
        "norm_eps": float(raw.get("norm_eps", raw.get("rms_norm_eps", 1e-6))),
        "query_scalar": raw.get("query_pre_attn_scalar"),
        "attention_softcap": _number(raw, "attn_logit_softcapping"),
        "logit_softcap": _number(raw, "final_logit_softcapping"),
        "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "lm_head": "CausalLM" in architectures or "ConditionalGeneration" in architectures,
        "num_labels": labels if "SequenceClassification" in architectures else 0,
        "activation": _activation(raw),
        "attention_bias": TRAITS[family].attention_bias or bool(raw.get("attention_bias", False)),
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "sliding_layers": _sliding(raw),
        "window": raw.get("sliding_window"),
        "pooling": "last",
        **_rope(raw, faults, where),
    }
    if family != "modernbert":
        return fields
    if raw.get("norm_bias"):
        faults.add(f"{where}: norm_bias", "biases in norms are not supported", "use another checkpoint")
    # Their local_attention counts the tokens in sight on both sides together.
    reach = raw["local_attention"] // 2 + 1
    return fields | {"window": reach, "num_labels": 0, "lm_head": False, "tie_embeddings": False, "pooling": "mean"}


def _bert(raw: Raw, faults: Faults, where: str) -> dict[str, Any]:
    """The fields of `bert`; notes what cannot be honoured."""
    if raw.get("position_embedding_type", "absolute") != "absolute":
        faults.add(f"{where}: position_embedding_type", "only absolute is supported", "use another checkpoint")
    if raw.get("is_decoder"):
        faults.add(f"{where}: is_decoder", "a causal bert is not supported", "use an encoder checkpoint")
    return {
        "norm_eps": float(raw["layer_norm_eps"]),
        "type_vocab_size": raw["type_vocab_size"],
        "activation": raw["hidden_act"],
        "mlp_bias": True,
        "tie_embeddings": False,
        "lm_head": False,
        "pooling": "mean",
    }


def _number(raw: Raw, name: str) -> float | None:
    return None if raw.get(name) is None else float(raw[name])


def _activation(raw: Raw) -> str:
    name = raw.get("hidden_activation") or raw["hidden_act"]
    # The first files of Gemma say "gelu", but its weights were trained with the tanh form.
    return "gelu_pytorch_tanh" if name == "gelu" and raw["model_type"] == "gemma" else name


def _sliding(raw: Raw) -> tuple[bool, ...]:
    """Which layers see only what is near."""
    family, layers = raw["model_type"], raw.get("num_hidden_layers")
    if not isinstance(layers, int) or family in ("llama", "gemma"):
        return ()
    if family == "mistral":
        return (raw["sliding_window"] is not None,) * layers
    if family in ("qwen2", "qwen3") and not (raw["use_sliding_window"] and raw["sliding_window"]):
        return ()
    if raw.get("layer_types"):
        return tuple(kind == "sliding_attention" for kind in raw["layer_types"])
    if family in ("qwen2", "qwen3"):
        return tuple(layer >= raw["max_window_layers"] for layer in range(layers))
    if family == "modernbert":
        return tuple(bool(layer % raw["global_attn_every_n_layers"]) for layer in range(layers))
    return tuple(bool((layer + 1) % raw["sliding_window_pattern"]) for layer in range(layers))


def _rope(raw: Raw, faults: Faults, where: str) -> dict[str, Any]:
    """Rotary positions: one flat record, or one for each kind of layer (their `rope_parameters` of transformers 5)."""
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    nested = isinstance(found.get("full_attention"), Mapping)
    full = found["full_attention"] if nested else found
    near = (found.get("sliding_attention") or {}) if nested else {}
    if near.get("rope_type", "default") != "default":
        faults.add(f"{where}: rope_type", "sliding layers are stretched", "use another checkpoint")
    if raw.get("partial_rotary_factor", full.get("partial_rotary_factor")) not in (None, 1, 1.0):
        faults.add(f"{where}: partial_rotary_factor", "only part of a head is rotated", "use another checkpoint")
    theta = full.get("rope_theta", raw.get("global_rope_theta", raw.get("rope_theta", 10000.0)))
    local = near.get("rope_theta", raw.get("rope_local_base_freq", raw.get("local_rope_theta")))
    return {
        "rope_theta": float(theta),
        "rope_scaling": _scaling(raw, full, faults, where),
        "local_rope_theta": None if local is None else float(local),
    }


def _scaling(raw: Raw, rope: Raw, faults: Faults, where: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        faults.add(f"{where}: rope_type", f"{kind!r} is unknown", "use a checkpoint with default, linear, llama3")
        return None
    if not isinstance(rope.get("factor"), int | float):
        faults.add(f"{where}: rope factor", f"is {rope.get('factor')!r}", "give a number")
        return None
    original = rope.get("original_max_position_embeddings", raw.get("max_position_embeddings"))
    return RopeScaling(
        kind=kind,
        factor=float(rope["factor"]),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        original_max_positions=original if isinstance(original, int) else 8192,
    )


def write(config: LMConfig) -> dict[str, Any]:
    """The dictionary that transformers (4 or 5) and `read` take for the same model."""
    eos = config.eos_token_id
    common = {
        "architectures": [architecture(config)],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "hidden_act": config.activation,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
    }
    if config.family == "bert":
        return common | {"layer_norm_eps": config.norm_eps, "type_vocab_size": config.type_vocab_size}
    if config.num_labels:
        names = {str(label): f"LABEL_{label}" for label in range(config.num_labels)}
        common |= {"id2label": names, "label2id": {name: int(label) for label, name in names.items()}, **RAW_SCORES}
    return common | _write_rotary(config) | _write_sliding(config) | _write_rope(config)


def architecture(config: LMConfig) -> str:
    """The name of transformers' class for this model."""
    stem = _STEMS.get(config.family, config.family.capitalize())
    if config.num_labels:
        return _CLASSIFIERS.get(config.family, f"{stem}ForSequenceClassification")
    return f"{stem}ForCausalLM" if config.lm_head else _TRUNKS.get(config.family, f"{stem}Model")


def _write_rotary(config: LMConfig) -> dict[str, Any]:
    fields = {
        "hidden_activation": config.activation,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }
    if config.family == "modernbert":
        return fields | {"norm_eps": config.norm_eps}
    fields |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if config.traits.post_norms:
        fields |= {
            "query_pre_attn_scalar": config.query_scalar or config.head_dim,
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.logit_softcap,
        }
    return fields


def _write_sliding(config: LMConfig) -> dict[str, Any]:
    if config.family in ("llama", "gemma"):
        return {}
    slides = config.sliding_layers or (False,) * config.num_layers
    kinds = {"layer_types": ["sliding_attention" if near else "full_attention" for near in slides]}
    if config.family == "modernbert":
        return kinds | {"local_attention": 2 * (config.window - 1) if config.window else 128}
    fields: dict[str, Any] = {"sliding_window": config.window}
    if config.family == "mistral":
        return fields
    return fields | kinds | ({"use_sliding_window": any(slides)} if config.family.startswith("qwen") else {})


def _write_rope(config: LMConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    kind = {"rope_type": "default"} if scaling is None else _write_scaling(scaling)
    full = {"rope_theta": config.rope_theta, **kind}
    if config.local_rope_theta is None:
        return {
            "rope_theta": config.rope_theta,
            "rope_scaling": None if scaling is None else kind,
            "rope_parameters": full,
        }
    local = config.local_rope_theta
    nested = {"full_attention": full, "sliding_attention": {"rope_theta": local, "rope_type": "default"}}
    if config.family == "modernbert":
        return {"global_rope_theta": config.rope_theta, "local_rope_theta": local, "rope_parameters": nested}
    return {
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": local,
        "rope_scaling": None if scaling is None else kind,
        "rope_parameters": nested,
    }


def _write_scaling(rope: RopeScaling) -> dict[str, Any]:
    if rope.kind == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    return {
        "rope_type": rope.kind,
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_positions,
    }
