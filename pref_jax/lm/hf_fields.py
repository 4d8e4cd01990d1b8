"""Which fields of a `config.json` each family reads, as its class in transformers 5 does.

All others are known to change nothing, or refused by name, or told (`unread`).
"""

import re
from collections.abc import Mapping
from typing import Any

from pref_jax import json_fields
from pref_jax.errors import Faults
from pref_jax.json_fields import AMOUNT, COUNT, FLAG, RECORD, TOKEN, TOKENS, WHOLE, WORD, WORDS, Kind
from pref_jax.lm import hf_rope, quantisation

Raw = Mapping[str, Any]

KINDS: dict[str, Kind] = {
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window", "max_window_layers", "num_labels"), WHOLE),
    **dict.fromkeys(("sliding_window_pattern", "local_attention", "global_attn_every_n_layers"), COUNT),
    "type_vocab_size": COUNT,
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_eps", "query_pre_attn_scalar"), AMOUNT),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), AMOUNT),
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window", "norm_bias"), FLAG),
    **dict.fromkeys(("hidden_act", "hidden_activation"), WORD),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), TOKEN),
    **dict.fromkeys(("architectures", "layer_types"), WORDS),
    "eos_token_id": TOKENS,
    "id2label": RECORD,
}
_HEADS = {"architectures", "id2label", "num_labels", "bos_token_id", "eos_token_id", "pad_token_id"}
_SIZES = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
_ALL = {*_SIZES, "max_position_embeddings", *_HEADS, "tie_word_embeddings"}
_GROUPED = _ALL | {"num_key_value_heads", "head_dim", "rms_norm_eps"}
_WINDOWS = {"sliding_window", "layer_types"}
_SOFTCAPS = {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"}
_QWEN_USED = _GROUPED | _WINDOWS | {"hidden_act", "use_sliding_window", "max_window_layers"}
_GEMMA2_USED = _GROUPED | _WINDOWS | _SOFTCAPS | {"hidden_activation", "attention_bias"}
USED: dict[str, set[str]] = {
    "llama": _GROUPED | {"hidden_act", "attention_bias", "mlp_bias"},
    "mistral": _GROUPED | {"hidden_act", "sliding_window"},
    "qwen2": _QWEN_USED,
    "qwen3": _QWEN_USED | {"attention_bias"},
    "gemma": _GROUPED | {"hidden_act", "attention_bias"},
    "gemma2": _GEMMA2_USED,
    "gemma3_text": _GEMMA2_USED | {"sliding_window_pattern"},
    "bert": _ALL | {"hidden_act", "layer_norm_eps", "type_vocab_size"},
    "modernbert": _ALL
    | {"hidden_activation", "norm_eps", "attention_bias", "mlp_bias", "norm_bias", "layer_types"}
    | {"local_attention", "global_attn_every_n_layers"},
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
}
# Fields without effect on states and rewards: of training, of generation, of other heads, of whoever wrote the file.
_NO_EFFECT = re.compile(
    r"_.*|.*dropout.*|.*_pdrop|output_.*|return_dict.*|use_(cache|return_dict|bfloat16)|(torch_)?dtype|torchscript|"
    r"transformers_version|auto_map|init(ializer)?_.*|classifier_.*|decoder_bias|sparse_pred.*|reference_compile|"
    r"deterministic_.*|(cls|sep|unk|mask)_token_id|label2id|problem_type|pretraining_tp|sentence_transformers|"
    r"reward_offset|summary_.*|finetuning_task|task_specific_params|chunk_size_feed_forward|gradient_checkpointing|"
    r"(attn|experts|cache)_implementation|mm_.*|(boi|eoi|image|video)_.*|vision_config|text_config|model_type|"
    r"name_or_path|tie_encoder_decoder|is_decoder|pruned_heads|directionality|pooler_.*|unsloth_.*|hidden_act(ivation)?|"
    r"(max|min)_(new_)?(length|tokens)|temperature|top_[kp]|typical_p|num_beams?.*|do_sample|repetition_penalty|"
    r"early_stopping|length_penalty|no_repeat_ngram_size|bad_words_ids|prefix|.*rope_interleaved"
)


def unread(raw: Any) -> list[str]:
    """Fields that say something which neither transformers' class of this family reads nor we."""
    raw = text_part(raw, Faults(), "")
    family = raw["model_type"]
    known = USED[family] | hf_rope.fields(family)
    # Every encoder of before transformers 5 has it, and none reads another value.
    rest = {name: value for name, value in raw.items() if (name, value) != ("position_embedding_type", "absolute")}
    return sorted(
        name for name, value in rest.items() if value and name not in known and not _NO_EFFECT.fullmatch(name)
    )


def text_part(raw: Raw, faults: Faults, where: str) -> Raw:
    """What concerns reading text, of a model with pictures; any other as it is."""
    text = raw.get("text_config")
    if raw.get("model_type") != "gemma3" or text is None:
        return raw
    text = json_fields.record(text, f"{where}: text_config")
    own = USED["gemma3_text"] | hf_rope.fields("gemma3_text") | _PARTS
    for name in sorted((raw.keys() & own) - _OUTER - {"pad_token_id"}):
        if raw[name] is not None and raw[name] != text.get(name):
            said = f"{json_fields.brief(raw[name])} stands beside text_config, where transformers does not read it"
            faults.add(f"{where}: {name}", said, "put it into text_config, or leave it out")
    outer = {"tie_word_embeddings": True} | {name: raw[name] for name in _OUTER if name in raw}
    return {**text, **outer, "model_type": "gemma3_text"}


def refuse(raw: Raw, family: str, faults: Faults, where: str) -> None:
    """Notes what a checkpoint has and this code has not."""
    if raw.get("quantization_config") and (why := quantisation.refused(raw["quantization_config"])):
        faults.add(f"{where}: quantization_config", why, quantisation.FIX)
    for name in sorted((raw.keys() & _PARTS) - USED.get(family, set())):
        if raw[name] is True or raw[name] not in (0, 1, "", [], {}):
            what = f"is {json_fields.brief(raw[name])}, which no {family or 'model'} here has"
            faults.add(f"{where}: {name}", what, "use a checkpoint without it")
    if family == "bert" and raw.get("position_embedding_type", "absolute") != "absolute":
        faults.add(f"{where}: position_embedding_type", "only absolute is supported", "use another checkpoint")
    if family == "bert" and raw.get("is_decoder"):
        faults.add(f"{where}: is_decoder", "a causal bert is not supported", "use an encoder checkpoint")
    if family == "modernbert" and raw.get("norm_bias"):
        faults.add(f"{where}: norm_bias", "biases in norms are not supported", "use another checkpoint")
    if family in USED and "layer_types" in USED[family] and isinstance(raw.get("layer_types"), list):
        odd = [kind for kind in raw["layer_types"] if kind not in ("full_attention", "sliding_attention")]
        if odd:
            what = f"has {json_fields.brief(odd[0])}"
            faults.add(f"{where}: layer_types", what, "use a checkpoint with full_attention and sliding_attention")
