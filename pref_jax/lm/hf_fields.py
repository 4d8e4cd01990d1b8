"""Which fields of a `config.json` each family reads, as its class in transformers 5 does.

All others are known to change nothing, or refused by name, or told (`unread`).
"""

import re
from collections.abc import Mapping
from typing import Any

from pref_jax import json_fields
from pref_jax.errors import Faults
from pref_jax.json_fields import AMOUNT, COUNT, FLAG, RECORD, TOKEN, TOKENS, WHOLE, WORD, WORDS, Kind
from pref_jax.lm import hf_gemma4, hf_rope, quantisation

Raw = Mapping[str, Any]

# Our names -> theirs.
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}
MULTIPLIERS = {
    "embedding": "embedding_multiplier",
    "residual": "residual_multiplier",
    "attention": "attention_multiplier",
    "logits": "logits_scaling",
}
DELTA = {
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_dim": "linear_key_head_dim",
    "value_dim": "linear_value_head_dim",
    "kernel": "linear_conv_kernel_dim",
}
_WHOLES: Kind = (
    lambda value: isinstance(value, list) and all(map(json_fields.is_whole, value)),
    "give a list of whole numbers",
)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window", "max_window_layers", "num_labels"), WHOLE),
    "attention_head_size": COUNT,
    **dict.fromkeys(("type_vocab_size", "max_relative_positions", "position_buckets"), WHOLE),
    **dict.fromkeys(("sliding_window_pattern", "local_attention", "global_attn_every_n_layers"), COUNT),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"), COUNT),
    **dict.fromkeys(("no_rope_layer_interval", "decoder_sparse_step", "full_attention_interval"), COUNT),
    **dict.fromkeys(DELTA.values(), COUNT),
    **dict.fromkeys(("no_rope_layers", "mlp_only_layers"), _WHOLES),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_eps", "query_pre_attn_scalar"), AMOUNT),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "swiglu_limit", "logits_scaling"), AMOUNT),
    "swiglu_alpha": AMOUNT,
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier"), AMOUNT),
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window", "norm_bias"), FLAG),
    **dict.fromkeys(("use_bidirectional_attention", "norm_topk_prob", "position_biased_input"), FLAG),
    **dict.fromkeys(("share_att_key", "relative_attention", "classifier_bias"), FLAG),
    **dict.fromkeys(("hidden_act", "hidden_activation", "norm_rel_ebd", "pooler_hidden_act"), WORD),
    **dict.fromkeys(("classifier_pooling", "classifier_activation"), WORD),
    "pos_att_type": ((lambda value: isinstance(value, str) or WORDS[0](value)), 'give a list such as ["p2c", "c2p"]'),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), TOKEN),
    **dict.fromkeys(("architectures", "layer_types"), WORDS),
    "eos_token_id": TOKENS,
    "id2label": RECORD,
}
_HEADS = {"architectures", "id2label", "num_labels", "bos_token_id", "eos_token_id", "pad_token_id"}
_ALL = {*SIZES.values(), *_HEADS, "tie_word_embeddings"}
_GROUPED = _ALL | {"num_key_value_heads", "head_dim", "rms_norm_eps"}
_WINDOWS = {"sliding_window", "layer_types"}
_SOFTCAPS = {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"}
_BIASES = {"hidden_act", "attention_bias", "mlp_bias"}
_QWEN_USED = _GROUPED | _WINDOWS | {"hidden_act", "use_sliding_window", "max_window_layers"}
_OLMO_USED = _GROUPED | {"hidden_act", "attention_bias"}
_BERT_USED = _ALL | {"hidden_act", "layer_norm_eps", "type_vocab_size"}
_GEMMA2_USED = _GROUPED | _WINDOWS | _SOFTCAPS | {"hidden_activation", "attention_bias"}
USED: dict[str, set[str]] = {
    "llama": _GROUPED | _BIASES,
    "mistral": _GROUPED | {"hidden_act", "sliding_window"},
    "ministral": _GROUPED | _WINDOWS | {"hidden_act"},
    "ministral3": _GROUPED | {"hidden_act", "sliding_window"},
    "qwen2": _QWEN_USED,
    "qwen3": _QWEN_USED | {"attention_bias"},
    "qwen3_moe": _QWEN_USED - {"layer_types", "max_window_layers"}
    | {"attention_bias", "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"}
    | {"norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"},
    "qwen3_5_text": _GROUPED | {"hidden_act", "layer_types", "full_attention_interval", *DELTA.values()},
    "gemma": _GROUPED | {"hidden_act", "attention_bias"},
    "gemma2": _GEMMA2_USED,
    "gemma3_text": _GEMMA2_USED | {"sliding_window_pattern", "use_bidirectional_attention"},
    "gemma4_text": _GROUPED
    | _WINDOWS
    | {"hidden_activation", "attention_bias", "final_logit_softcapping", *hf_gemma4.KINDS},
    "smollm3": _GROUPED | _BIASES | _WINDOWS | {"use_sliding_window", "no_rope_layers", "no_rope_layer_interval"},
    "olmo2": _OLMO_USED,
    "olmo3": _OLMO_USED | _WINDOWS,
    "phi3": _GROUPED | {"hidden_act", "sliding_window"},
    "granite": _GROUPED
    | _BIASES
    | {"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"},
    "gpt_oss": _GROUPED
    | _WINDOWS
    | {"attention_bias", "num_experts", "num_local_experts", "num_experts_per_tok", "swiglu_limit", "hidden_act"}
    | {"swiglu_alpha"},
    "bert": _BERT_USED,
    "roberta": _BERT_USED,
    "xlm-roberta": _BERT_USED,
    "deberta-v2": _BERT_USED
    | {"relative_attention", "share_att_key", "pos_att_type", "max_relative_positions", "position_buckets"}
    | {"position_biased_input", "norm_rel_ebd", "pooler_hidden_act", "attention_head_size"},
    "modernbert": _ALL
    | {"hidden_activation", "norm_eps", "attention_bias", "mlp_bias", "norm_bias", "layer_types"}
    | {"local_attention", "global_attn_every_n_layers"}
    | {"classifier_pooling", "classifier_bias", "classifier_activation"},
}
# Of a model with pictures, fields beside its `text_config` that hold for reading text too.
_OUTER = {*_HEADS - {"pad_token_id"}, "tie_word_embeddings", "quantization_config"}
# What changes the mathematics of some family, and stands for a part that is not there if a file of ours has it.
_PARTS = {
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "logit_scale"),
    *("scale_emb", "scale_depth", "dim_model_base", "no_rope_layers", "no_rope_layer_interval", "use_qk_norm"),
    *("qk_layernorm", "qk_norm", "parallel_attn", "use_parallel_residual", "alibi", "attention_chunk_size"),
    *("attn_temperature_tuning", "num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"),
    *("num_kv_shared_layers", "hidden_size_per_layer_input", "altup_num_inputs", "clip_qkv", "mrope_section"),
    *("per_layer_config", "embedding_size", "add_cross_attention", "is_encoder_decoder", "attention_sinks"),
    *("use_bidirectional_attention", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    *("conv_kernel_size", "attention_head_size", "pooler_hidden_size", "share_att_key", "position_buckets"),
}
# The model that reads text in a model with pictures, where that part does not say.
_WRAPPERS = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "mistral3": "mistral", "qwen3_5": "qwen3_5_text"}
# Fields without effect on states and rewards: of training, of generation, of other heads, of whoever wrote the file.
_NO_EFFECT = re.compile(
    r"_.*|.*dropout.*|.*_pdrop|output_.*|return_dict.*|use_(cache|return_dict|bfloat16)|(torch_)?dtype|torchscript|"
    r"transformers_version|auto_map|init(ializer)?_.*|classifier_.*|decoder_bias|sparse_pred.*|reference_compile|"
    r"deterministic_.*|router_.*|legacy|mtp_.*|attn_output_gate|mamba_ssm_dtype|language_model_only|cls_dropout|(cls|sep|unk|mask)_token_id|label2id|problem_type|pretraining_tp|sentence_transformers|"
    r"reward_offset|summary_.*|finetuning_task|task_specific_params|chunk_size_feed_forward|gradient_checkpointing|"
    r"(attn|experts|cache)_implementation|mm_.*|(boi|eoi|image|video|vision)_.*|text_config|model_type|"
    r"name_or_path|tie_encoder_decoder|is_decoder|pruned_heads|directionality|pooler_.*|unsloth_.*|hidden_act(ivation)?|"
    r"(max|min)_(new_)?(length|tokens)|temperature|top_[kp]|typical_p|num_beams?.*|do_sample|repetition_penalty|"
    r"early_stopping|length_penalty|no_repeat_ngram_size|bad_words_ids|prefix|.*rope_interleaved"
)


def unread(raw: Any) -> list[str]:
    """Fields that say something which neither transformers' class of this family reads nor we."""
    raw = text_part(raw, Faults(), "")
    family = raw["model_type"]
    known = USED[family] | hf_rope.fields(family) | {"quantization_config"}
    # Every encoder of before transformers 5 has it, and none reads another value.
    rest = {name: value for name, value in raw.items() if (name, value) != ("position_embedding_type", "absolute")}
    return sorted(
        name for name, value in rest.items() if value and name not in known and not _NO_EFFECT.fullmatch(name)
    )


def text_part(raw: Raw, faults: Faults, where: str) -> Raw:
    """What concerns reading text, of a model with pictures; any other as it is."""
    text, kind = raw.get("text_config"), raw.get("model_type")
    if not isinstance(kind, str) or kind not in _WRAPPERS or text is None:
        return raw
    text = json_fields.record(text, f"{where}: text_config")
    family = text.get("model_type", _WRAPPERS[kind]) if kind == "mistral3" else _WRAPPERS[kind]
    if not isinstance(family, str):
        return {**text, "model_type": family}
    own = USED.get(family, set()) | hf_rope.fields(family) | _PARTS
    for name in sorted((raw.keys() & own) - _OUTER - {"pad_token_id"}):
        if raw[name] is not None and raw[name] != text.get(name):
            said = f"{json_fields.brief(raw[name])} stands beside text_config, where transformers does not read it"
            faults.add(f"{where}: {name}", said, "put it into text_config, or leave it out")
    outer = {"tie_word_embeddings": kind != "qwen3_5"} | {name: raw[name] for name in _OUTER if name in raw}
    return {**text, **outer, "model_type": family}


# What some families' files may say that is not computed here: field, value that is, what the fault is.
_ONLY: dict[str, tuple[tuple[str, Any, str], ...]] = {
    "modernbert": (("norm_bias", False, "biases in norms are not supported"),),
    "deberta-v2": (
        ("relative_attention", True, "only attention by distance is supported"),
        ("share_att_key", True, "projections of distances of their own are not supported"),
    ),
    "qwen3_moe": (
        ("decoder_sparse_step", 1, "layers without experts are not supported"),
        ("mlp_only_layers", [], "layers without experts are not supported"),
    ),
    "qwen3_5_text": (
        ("attention_bias", False, "biases are not supported"),
        ("attn_output_gate", True, "attention without its gate is not supported"),
    ),
    "gpt_oss": (("swiglu_alpha", 1.702, "another slope of the gate is not supported"),),
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta"),
        (
            ("position_embedding_type", "absolute", "only absolute is supported"),
            ("is_decoder", False, "a causal encoder is not supported"),
        ),
    ),
}
# What the fields of `_ONLY` mean where a file leaves them out and that is not what is computed here.
_LEFT_OUT = {"relative_attention": False, "share_att_key": False}


def refuse(raw: Raw, family: str, faults: Faults, where: str) -> None:
    """Notes what a checkpoint has and this code has not."""
    if raw.get("quantization_config") and (why := quantisation.refused(raw["quantization_config"])):
        faults.add(f"{where}: quantization_config", why, quantisation.FIX)
    same = {name for name in ("embedding_size", "pooler_hidden_size") if raw.get(name) == raw.get("hidden_size")}
    for name in sorted((raw.keys() & _PARTS) - USED.get(family, set()) - same):
        if raw[name] is True or raw[name] not in (0, 1, "", [], {}):
            what = f"is {json_fields.brief(raw[name])}, which no {family or 'model'} here has"
            faults.add(f"{where}: {name}", what, "use a checkpoint without it")
    for name, value, why in _ONLY.get(family, ()):
        found = raw.get(name, _LEFT_OUT.get(name, value))
        if found != value:
            faults.add(f"{where}: {name}", f"is {json_fields.brief(found)}: {why}", "use another checkpoint")
    if family in USED and "layer_types" in USED[family] and isinstance(raw.get("layer_types"), list):
        known = ("full_attention", "linear_attention" if family == "qwen3_5_text" else "sliding_attention")
        odd = [kind for kind in raw["layer_types"] if kind not in known]
        if odd:
            what = f"has {json_fields.brief(odd[0])}"
            faults.add(f"{where}: layer_types", what, f"use a checkpoint with {' and '.join(known)}")
