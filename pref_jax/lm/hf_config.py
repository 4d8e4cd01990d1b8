"""Between `LMConfig` and Hugging Face's `config.json`, as transformers 4 and 5 write it.

What a file leaves out takes the default of its family's class in transformers: `DEFAULTS`. Which fields a family reads
is told by `hf_fields`.
"""

from collections.abc import Mapping
from typing import Any

from pref_jax import json_fields
from pref_jax.errors import Faults
from pref_jax.lm import hf_fields, hf_rope
from pref_jax.lm.config import TRAITS, LMConfig
from pref_jax.lm.hf_fields import USED

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
_QWEN = _DECODER | {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA = _DECODER | {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 256,
    "num_key_value_heads": 16,
    "pad_token_id": 0,
}
_GEMMA2 = _GEMMA | {"sliding_window": 4096, "query_pre_attn_scalar": 256, "num_key_value_heads": 4}
DEFAULTS: dict[str, Raw] = {
    "llama": _DECODER,
    "mistral": _DECODER | {"sliding_window": 4096, "num_key_value_heads": 8},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "gemma": _GEMMA,
    "gemma2": _GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _GEMMA2
    | {
        "sliding_window_pattern": 6,
        # The files of the larger models leave out what does not differ from these.
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "max_position_embeddings": 131_072,
    },
    "bert": {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0},
    "modernbert": {
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "pad_token_id": 50283,
    },
}
# Fields in which null is a value of its own: where the class has a default, null says otherwise.
_NULLS = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "num_key_value_heads", "pad_token_id")
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


def read(raw: Any, *, where: str = "config.json") -> LMConfig:
    """Reads the dictionary of a `config.json`.

    Of a `gemma3` model with pictures, the part that reads text is taken.

    Raises:
      UserError: with every field that is missing, of a wrong type, or that this code cannot honour.
    """
    faults = Faults()
    raw = hf_fields.text_part(json_fields.record(raw, where), faults, where)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in TRAITS:
        shown = json_fields.brief(family)
        faults.add(f"{where}: model_type", f"{shown} is not supported", f"use one of {', '.join(TRAITS)}")
        family = ""
    said = {key: value for key, value in raw.items() if value is not None}
    whole = {**DEFAULTS.get(family, {}), **said}
    whole |= {name: None for name in _NULLS if name in raw and raw[name] is None}
    for name in _SIZES.values():
        if not json_fields.is_whole(whole.get(name)):
            faults.add(f"{where}: {name}", f"is {json_fields.brief(whole.get(name))}", "give a whole number")
    known = {name: whole[name] for name in whole.keys() & USED.get(family, set())} | {"model_type": family}
    json_fields.check(known, hf_fields.KINDS, faults, where)
    hf_fields.refuse(said, family, faults, where)
    turned = family not in ("", "bert") and json_fields.is_whole(whole.get("max_position_embeddings"))
    rope = hf_rope.read(said | known, faults, where) if turned else {}
    faults.raise_if_any("Transformer configuration")
    fields = _bert(known) if family == "bert" else _rotary(known)
    eos = known.get("eos_token_id")
    return LMConfig(
        **{
            "family": family,
            **{ours: known[theirs] for ours, theirs in _SIZES.items()},
            **fields,
            **rope,
            "bos_token_id": known.get("bos_token_id"),
            "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
            "pad_token_id": known.get("pad_token_id"),
        }
    )


def _rotary(raw: Raw) -> dict[str, Any]:
    """The fields of all families but `bert`, rotary positions apart."""
    family = raw["model_type"]
    architectures = " ".join(raw.get("architectures") or [])
    # As there, a number of labels takes precedence over their names, and without either there are two.
    labels = raw.get("num_labels") or len(raw.get("id2label") or (0, 1))
    fields = {
        "num_kv_heads": raw.get("num_key_value_heads") or 0,
        "head_dim": raw.get("head_dim") or 0,
        "norm_eps": float(raw["norm_eps" if family == "modernbert" else "rms_norm_eps"]),
        "query_scalar": raw.get("query_pre_attn_scalar"),
        "attention_softcap": _number(raw, "attn_logit_softcapping"),
        "logit_softcap": _number(raw, "final_logit_softcapping"),
        "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "lm_head": "CausalLM" in architectures or "ConditionalGeneration" in architectures,
        "num_labels": labels if "SequenceClassification" in architectures else 0,
        "activation": _activation(raw),
        "attention_bias": TRAITS[family].attention_bias or raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
        "sliding_layers": _sliding(raw),
        "window": raw.get("sliding_window"),
        "pooling": "last",
    }
    if family != "modernbert":
        return fields
    # Their local_attention counts the tokens in sight on both sides together.
    reach = raw["local_attention"] // 2 + 1
    return fields | {"window": reach, "num_labels": 0, "lm_head": False, "tie_embeddings": False, "pooling": "mean"}


def _bert(raw: Raw) -> dict[str, Any]:
    """The fields of `bert`."""
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
    name = raw["hidden_activation"] if "hidden_activation" in USED[raw["model_type"]] else raw["hidden_act"]
    # The first files of Gemma say "gelu", but its weights were trained with the tanh form.
    return "gelu_pytorch_tanh" if name == "gelu" and raw["model_type"] == "gemma" else name


def _sliding(raw: Raw) -> tuple[bool, ...]:
    """Which layers see only what is near."""
    family, layers = raw["model_type"], raw["num_hidden_layers"]
    if family in ("llama", "gemma"):
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
    every = 2 if family == "gemma2" else raw["sliding_window_pattern"]
    return tuple(bool((layer + 1) % every) for layer in range(layers))


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
    return common | _write_rotary(config) | _write_sliding(config) | hf_rope.write(config)


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
