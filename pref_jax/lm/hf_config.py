"""Between `LMConfig` and Hugging Face's `config.json`, as transformers 4 and 5 write it.

What a file leaves out takes the default of its family's class in transformers: `hf_defaults`. Which fields a family
reads is told by `hf_fields`.
"""

from collections.abc import Mapping
from typing import Any

from pref_jax import json_fields
from pref_jax.errors import Faults
from pref_jax.lm import families, hf_fields, hf_gemma4, hf_rope
from pref_jax.lm.config import LMConfig
from pref_jax.lm.config_parts import DeltaNet, Disentangled, Experts, Multipliers
from pref_jax.lm.families import TRAITS
from pref_jax.lm.hf_defaults import DEFAULTS, NULLS
from pref_jax.lm.hf_fields import DELTA, MULTIPLIERS, SIZES, USED
from pref_jax.lm.hf_write import architecture, write

__all__ = ["architecture", "read", "write"]

Raw = Mapping[str, Any]

# Kinds of families with rotary positions.
_ROTARY = ("decoder", "delta", "gemma4")


def read(raw: Any, *, where: str = "config.json") -> LMConfig:
    """Reads the dictionary of a `config.json`.

    Of a model with pictures (`gemma3`, `mistral3`, `qwen3_5`), the part that reads text is taken.

    Raises:
      UserError: with every field that is missing, of a wrong type, or that this code cannot honour.
    """
    faults = Faults()
    raw = hf_fields.text_part(json_fields.record(raw, where), faults, where)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in TRAITS:
        near = families.nearest(family)
        what = f"{json_fields.brief(family)} is not supported" + (f"; nearest to it is {near}" if near else "")
        faults.add(f"{where}: model_type", what, f"use one of {', '.join(TRAITS)}")
        family = ""
    said = {key: value for key, value in raw.items() if value is not None}
    whole = {**DEFAULTS.get(family, {}), **said}
    whole |= {name: None for name in NULLS if name in raw and raw[name] is None}
    for name in SIZES.values():
        if not json_fields.is_whole(whole.get(name)):
            faults.add(f"{where}: {name}", f"is {json_fields.brief(whole.get(name))}", "give a whole number")
    known = {name: whole[name] for name in whole.keys() & USED.get(family, set())} | {"model_type": family}
    own = hf_gemma4.KINDS if family == "gemma4_text" else {}
    json_fields.check(known, hf_fields.KINDS | own, faults, where)
    hf_fields.refuse(said, family, faults, where)
    if own and not len(faults):
        hf_gemma4.refuse(known, faults, where)
    turned = family and TRAITS[family].kind in _ROTARY and json_fields.is_whole(whole.get("max_position_embeddings"))
    rope = hf_rope.read({**DEFAULTS[family], **said, **known}, faults, where) if turned else {}
    faults.raise_if_any("Transformer configuration")
    fields = _rotary(known) if TRAITS[family].kind in _ROTARY else _bert(known)
    eos = known.get("eos_token_id")
    return LMConfig(
        **{
            "family": family,
            **{ours: known[theirs] for ours, theirs in SIZES.items()},
            **fields,
            **rope,
            "bos_token_id": known.get("bos_token_id"),
            "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
            "pad_token_id": known.get("pad_token_id"),
        }
    )


def _labels(raw: Raw) -> int:
    """Outputs of the head that `architectures` announces."""
    # As there, a number of labels takes precedence over their names, and without either there are two.
    labels = raw.get("num_labels") or len(raw.get("id2label") or (0, 1))
    return labels if "SequenceClassification" in " ".join(raw.get("architectures") or []) else 0


def _rotary(raw: Raw) -> dict[str, Any]:
    """The fields of decoders and ModernBERT, rotary positions apart."""
    family, labels = raw["model_type"], _labels(raw)
    architectures = " ".join(raw.get("architectures") or [])
    window = raw.get("sliding_window")
    both_ways = raw.get("use_bidirectional_attention") in (True, "all")
    fields = {
        "num_kv_heads": raw.get("num_key_value_heads") or 0,
        "head_dim": raw.get("head_dim") or 0,
        "norm_eps": float(raw["norm_eps" if family == "modernbert" else "rms_norm_eps"]),
        "query_scalar": raw.get("query_pre_attn_scalar"),
        "attention_softcap": _number(raw, "attn_logit_softcapping"),
        "logit_softcap": _number(raw, "final_logit_softcapping"),
        "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "lm_head": "CausalLM" in architectures or "ConditionalGeneration" in architectures,
        "num_labels": labels,
        "activation": _activation(raw),
        "attention_bias": raw.get("attention_bias", False) or (TRAITS[family].attention_bias and family != "gpt_oss"),
        "mlp_bias": raw.get("mlp_bias", False),
        "sliding_layers": _sliding(raw),
        "still_layers": _still(raw),
        # Looking both ways, their number counts the tokens in sight on both sides together.
        "window": window // 2 + 1 if both_ways and window else window,
        "bidirectional": both_ways,
        "pooling": "mean" if both_ways and not labels else "last",
        **_experts(raw),
    }
    if family == "qwen3_5_text":
        fields["delta"] = DeltaNet(**{ours: raw[theirs] for ours, theirs in DELTA.items()})
    if family == "gemma4_text":
        fields |= hf_gemma4.read(raw)
    if family == "granite":
        own = {ours: float(raw[theirs]) for ours, theirs in MULTIPLIERS.items()}
        fields["multipliers"] = Multipliers(**own)
    return fields | _modernbert(raw) if family == "modernbert" else fields


def _modernbert(raw: Raw) -> dict[str, Any]:
    head = "first" if raw["classifier_pooling"] == "cls" else "mean"
    return {
        # Their local_attention counts the tokens in sight on both sides together.
        "window": raw["local_attention"] // 2 + 1,
        "lm_head": False,
        "tie_embeddings": False,
        "head_pooling": head,
        "head_bias": raw["classifier_bias"],
        "head_activation": raw["classifier_activation"],
        "pooling": head if _labels(raw) else "mean",
    }


def _experts(raw: Raw) -> dict[str, Any]:
    """The fields of a routed MLP."""
    if "num_experts_per_tok" not in USED[raw["model_type"]]:
        return {}
    count, each = raw.get("num_local_experts") or raw["num_experts"], raw["num_experts_per_tok"]
    if raw["model_type"] == "gpt_oss":
        count = raw.get("num_experts") or count
        return {"experts": Experts(count=count, per_token=each, scores="chosen", clamp=float(raw["swiglu_limit"]))}
    scores = "normalised" if raw["norm_topk_prob"] else "all"
    return {
        "experts": Experts(count=count, per_token=each, scores=scores),
        "intermediate_size": raw["moe_intermediate_size"],
    }


def _bert(raw: Raw) -> dict[str, Any]:
    """The fields of encoders with a table of positions."""
    labels, deberta = _labels(raw), raw["model_type"] == "deberta-v2"
    offset = (raw.get("pad_token_id") or 0) + 1 if TRAITS[raw["model_type"]].padded_positions else 0
    fields = {
        "max_positions": raw["max_position_embeddings"] - offset,
        "norm_eps": float(raw["layer_norm_eps"]),
        "type_vocab_size": raw["type_vocab_size"],
        "activation": raw["hidden_act"],
        "mlp_bias": True,
        "tie_embeddings": False,
        "lm_head": False,
        "num_labels": labels,
        "head_activation": raw["pooler_hidden_act"] if deberta else "tanh",
        "pooling": "first" if labels else "mean",
    }
    if not deberta:
        return fields
    scores = raw.get("pos_att_type") or []
    names = scores if isinstance(scores, list) else [name.strip() for name in scores.lower().split("|")]
    distances = Disentangled(
        max_distance=raw["max_relative_positions"] if raw["max_relative_positions"] > 0 else fields["max_positions"],
        buckets=max(raw["position_buckets"], 0),
        scores=tuple(name for name in ("c2p", "p2c") if name in names),
        normed="layer_norm" in raw["norm_rel_ebd"].lower(),
    )
    return fields | {
        "disentangled": distances,
        "absolute_positions": raw["position_biased_input"],
        "head_dim": raw.get("attention_head_size") or 0,
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
    used = USED[family]
    if family != "modernbert" and "sliding_window" not in used:
        return ()
    if family == "gemma4_text":
        return hf_gemma4.slides(raw)
    if "layer_types" not in used:  # all layers or none
        slide = raw.get("sliding_window") is not None and raw.get("use_sliding_window", True)
        return (slide,) * layers
    if family in ("qwen2", "qwen3") and not (raw["use_sliding_window"] and raw["sliding_window"]):
        return ()
    if raw.get("layer_types"):
        return tuple(kind == "sliding_attention" for kind in raw["layer_types"])
    if family in ("qwen2", "qwen3"):
        return tuple(layer >= raw["max_window_layers"] for layer in range(layers))
    if family == "modernbert":
        return tuple(bool(layer % raw["global_attn_every_n_layers"]) for layer in range(layers))
    if family == "ministral":
        return (raw.get("sliding_window") is not None,) * layers
    if family == "smollm3":
        slide = bool(raw["use_sliding_window"]) and raw.get("sliding_window") is not None
        return tuple(slide and still for still in _still(raw))
    every = {"gemma2": 2, "gpt_oss": 2, "olmo3": 4}.get(family) or raw["sliding_window_pattern"]
    return tuple(bool((layer + 1) % every) for layer in range(layers))


def _still(raw: Raw) -> tuple[bool, ...]:
    """Which layers are not told positions."""
    layers = range(raw["num_hidden_layers"])
    if raw["model_type"] == "qwen3_5_text":
        kinds = raw.get("layer_types")
        every = raw["full_attention_interval"]
        return tuple(kinds[layer] == "linear_attention" if kinds else bool((layer + 1) % every) for layer in layers)
    if raw["model_type"] != "smollm3":
        return ()
    if raw.get("no_rope_layers"):
        return tuple(not turns for turns in raw["no_rope_layers"][: len(layers)])
    return tuple((layer + 1) % raw["no_rope_layer_interval"] == 0 for layer in layers)
