"""`LMConfig` as the `config.json` that transformers (4 or 5) and `hf_config.read` take for the same model."""

from collections.abc import Mapping
from typing import Any

from pref_jax.lm import families, hf_gemma4, hf_rope
from pref_jax.lm.config import LMConfig
from pref_jax.lm.hf_fields import DELTA, MULTIPLIERS, SIZES, USED

# Without these, engines put a softmax or a sigmoid on rewards: transformers' pipelines and vLLM's /classify go by the
# first, vLLM's /score and cross-encoders of sentence-transformers by the second.
RAW_SCORES: Mapping[str, Any] = {
    "problem_type": "regression",
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
}
_TRUNKS = {"gemma3_text": "Gemma3TextModel", "gemma4_text": "Gemma4TextModel", "qwen3_5_text": "Qwen3_5TextModel"}
_CLASSIFIERS = {family: name.replace("Model", "ForSequenceClassification") for family, name in _TRUNKS.items()}


def write(config: LMConfig) -> dict[str, Any]:
    """The dictionary of a `config.json`."""
    eos = config.eos_token_id
    common = {
        "architectures": [architecture(config)],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "hidden_act": config.activation,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
    }
    if config.num_labels:
        names = {str(label): f"LABEL_{label}" for label in range(config.num_labels)}
        common |= {"id2label": names, "label2id": {name: int(label) for label, name in names.items()}, **RAW_SCORES}
    if config.traits.kind in ("bert", "deberta"):
        return common | _write_bert(config)
    own = hf_gemma4.write(config, config.gemma4) if config.gemma4 else {}
    return common | _write_rotary(config) | _write_sliding(config) | hf_rope.write(config) | own


def architecture(config: LMConfig) -> str:
    """The name of transformers' class for this model."""
    stem = families.stem(config.family)
    if config.num_labels:
        return _CLASSIFIERS.get(config.family, f"{stem}ForSequenceClassification")
    return f"{stem}ForCausalLM" if config.lm_head else _TRUNKS.get(config.family, f"{stem}Model")


def _write_bert(config: LMConfig) -> dict[str, Any]:
    fields = {
        "max_position_embeddings": config.max_positions + config.position_offset,
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": config.type_vocab_size,
    }
    own = config.disentangled
    if own is None:
        return fields
    return fields | {
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": list(own.scores),
        "max_relative_positions": own.max_distance,
        "position_buckets": own.buckets or -1,
        "norm_rel_ebd": "layer_norm" if own.normed else "none",
        "position_biased_input": config.absolute_positions,
        "attention_head_size": config.head_dim,
        "pooler_hidden_act": config.head_activation,
        "pooler_hidden_size": config.hidden_size,
    }


def _write_rotary(config: LMConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "hidden_activation": config.activation,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }
    if config.family == "modernbert":
        return fields | {
            "norm_eps": config.norm_eps,
            "classifier_pooling": "cls" if config.head_pooling == "first" else "mean",
            "classifier_bias": config.head_bias,
            "classifier_activation": config.head_activation,
        }
    fields |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if "query_pre_attn_scalar" in USED[config.family]:
        fields |= {
            "query_pre_attn_scalar": config.query_scalar or config.head_dim,
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.logit_softcap,
        }
    if "use_bidirectional_attention" in USED[config.family]:
        fields["use_bidirectional_attention"] = config.bidirectional
    if config.family == "granite":
        fields |= {theirs: getattr(config.multipliers, ours) for ours, theirs in MULTIPLIERS.items()}
        fields["attention_multiplier"] = config.query_scale
    return fields | _write_experts(config)


def _write_experts(config: LMConfig) -> dict[str, Any]:
    own = config.experts
    if own is None:
        return {}
    fields: dict[str, Any] = {"num_experts_per_tok": own.per_token, "num_local_experts": own.count}
    if own.clamp is not None:
        return fields | {"swiglu_limit": own.clamp}
    normalised = own.scores == "normalised"
    return fields | {
        "num_experts": own.count,
        "moe_intermediate_size": config.intermediate_size,
        "norm_topk_prob": normalised,
    }


def _write_sliding(config: LMConfig) -> dict[str, Any]:
    used = USED[config.family]
    slides = config.sliding_layers or (False,) * config.num_layers
    kinds = {"layer_types": ["sliding_attention" if near else "full_attention" for near in slides]}
    if config.family == "modernbert":
        return kinds | {"local_attention": 2 * (config.window - 1) if config.window else 128}
    if config.delta is not None:
        still = config.still_layers or (False,) * config.num_layers
        delta = {theirs: getattr(config.delta, ours) for ours, theirs in DELTA.items()}
        return delta | {"layer_types": ["linear_attention" if one else "full_attention" for one in still]}
    if "sliding_window" not in used:
        return {}
    both = config.bidirectional and config.window
    fields: dict[str, Any] = {"sliding_window": 2 * (config.window - 1) if both and config.window else config.window}
    fields |= kinds if "layer_types" in used else {}
    if config.family == "smollm3":
        still = config.still_layers or (False,) * config.num_layers
        fields["no_rope_layers"] = [int(not one) for one in still]
    return fields | ({"use_sliding_window": any(slides)} if "use_sliding_window" in used else {})
