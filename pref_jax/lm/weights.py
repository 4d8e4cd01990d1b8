"""Their key -> ours: one table for each layout of Hugging Face checkpoints.

`{}` stands for the number of a layer, a second one for that of a part of a routed MLP; ours are stacked under `blocks`
with the axis of layers first and that of parts next. Kernels are mostly stored transposed there, [out, in]. Rows that a
model does not have (a bias, an untied head) are passed over.
"""

import re
from typing import Literal, NamedTuple

from pref_jax.lm import heads
from pref_jax.lm.config import LMConfig


class Row(NamedTuple):
    """Where a tensor of theirs goes.

    Attributes:
      paths: our parameter; several, if theirs is several of ours one after another along its first axis.
      transpose: theirs is [out, in], ours [in, out].
      layers: which ones have such a tensor; elsewhere ours holds ones, which nothing reads. `later`: all but the first,
        `delta` and `attention`: those with a delta net, and the others; `keys`: those with keys of their own, `values`:
        those of them that project values too.
    """

    paths: tuple[str, ...]
    transpose: bool = False
    layers: Literal["all", "later", "delta", "attention", "keys", "values"] = "all"

    def at(self, config: LMConfig, layer: int) -> bool:
        """Whether this layer has such a tensor."""
        if self.layers in ("delta", "attention"):
            return config.still_layers[layer] == (self.layers == "delta")
        if self.layers in ("keys", "values"):
            own = config.gemma4
            slides = bool(config.sliding_layers and config.sliding_layers[layer])
            values = self.layers == "keys" or slides or own is None or not own.keys_as_values
            return layer < config.own_keys and values
        return layer > 0 or self.layers == "all"


class Layout(NamedTuple):
    """How the checkpoints of some families are written.

    Attributes:
      table: key without prefix -> row.
      prefix: what we write before the keys of the trunk.
      heads: keys that never have a prefix.
      unused: regular expressions of keys that may be there and are of no use here.
    """

    table: dict[str, Row]
    prefix: str
    heads: tuple[str, ...]
    unused: tuple[str, ...]


def _linear(theirs: str, *ours: str) -> dict[str, Row]:
    return {
        f"{theirs}.weight": Row(tuple(f"blocks/{name}/kernel" for name in ours), transpose=True),
        f"{theirs}.bias": Row(tuple(f"blocks/{name}/bias" for name in ours)),
    }


def _scale(theirs: str, ours: str) -> dict[str, Row]:
    return {f"{theirs}.weight": Row((f"blocks/{ours}/scale",))}


# What may stand before a key.
PREFIXES = r"((language_model|model|bert|roberta|deberta)\.)+"
_LAYER = "layers.{}."
_BASE = {
    "embed_tokens.weight": Row(("embed/embedding",)),
    "norm.weight": Row(("final_norm/scale",)),
    "lm_head.weight": Row(("lm_head/kernel",), transpose=True),
    "score.weight": Row(("score/kernel",), transpose=True),
    **_scale(_LAYER + "input_layernorm", "input_norm"),
    **_linear(_LAYER + "self_attn.o_proj", "o_proj"),
    **_scale(_LAYER + "self_attn.q_norm", "q_norm"),
    **_scale(_LAYER + "self_attn.k_norm", "k_norm"),
    **_linear(_LAYER + "mlp.down_proj", "down_proj"),
}
_COMMON = {
    **_BASE,
    **_linear(_LAYER + "self_attn.q_proj", "q_proj"),
    **_linear(_LAYER + "self_attn.k_proj", "k_proj"),
    **_linear(_LAYER + "self_attn.v_proj", "v_proj"),
    **_linear(_LAYER + "mlp.gate_proj", "gate_proj"),
    **_linear(_LAYER + "mlp.up_proj", "up_proj"),
}
_DECODER_UNUSED = (
    r"lm_head\.weight",
    heads.PATTERN,
    r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"vision_tower\..*",
    r"multi_modal_projector\..*",
)
_HEADS = ("lm_head.", "score.")
_POST_NORMS = {
    **_scale(_LAYER + "post_attention_layernorm", "attention_out_norm"),
    **_scale(_LAYER + "post_feedforward_layernorm", "mlp_out_norm"),
}

_MLP_NORM = _scale(_LAYER + "post_attention_layernorm", "mlp_norm")
LLAMA = Layout({**_COMMON, **_MLP_NORM}, "model.", _HEADS, _DECODER_UNUSED)
GEMMA2 = LLAMA._replace(table={**_COMMON, **_POST_NORMS, **_scale(_LAYER + "pre_feedforward_layernorm", "mlp_norm")})
_OWN_KEYS: dict[str, Literal["keys", "values"]] = {"k_proj": "keys", "k_norm": "keys", "v_proj": "values"}
GEMMA4 = GEMMA2._replace(
    table={
        key: row._replace(layers=_OWN_KEYS.get(key.split(".")[-2], "all")) if ".self_attn." in key else row
        for key, row in GEMMA2.table.items()
    }
    | {
        **_linear(_LAYER + "per_layer_input_gate", "per_layer_gate_proj"),
        **_linear(_LAYER + "per_layer_projection", "per_layer_out_proj"),
        **_scale(_LAYER + "post_per_layer_input_norm", "per_layer_norm"),
        _LAYER + "layer_scalar": Row(("blocks/layer_scale",)),
        "embed_tokens_per_layer.weight": Row(("per_layer_embed/embedding",)),
        "per_layer_model_projection.weight": Row(("per_layer_proj/kernel",), transpose=True),
        "per_layer_projection_norm.weight": Row(("per_layer_norm/scale",)),
    },
    unused=(*_DECODER_UNUSED, r"(audio_tower|embed_vision|embed_audio)\..*"),
)
OLMO2 = LLAMA._replace(table={**_COMMON, **_POST_NORMS})
PHI3 = LLAMA._replace(
    table={
        **_BASE,
        **_MLP_NORM,
        **_linear(_LAYER + "self_attn.qkv_proj", "q_proj", "k_proj", "v_proj"),
        **_linear(_LAYER + "mlp.gate_up_proj", "gate_proj", "up_proj"),
    }
)
_EXPERT = _LAYER + "mlp.experts.{}."
QWEN_MOE = LLAMA._replace(
    table={
        **LLAMA.table,
        _LAYER + "mlp.gate.weight": Row(("blocks/experts/router/kernel",), transpose=True),
        **{
            f"{_EXPERT}{name}_proj.weight": Row((f"blocks/experts/{name}",), transpose=True)
            for name in ("gate", "up", "down")
        },
    }
)
_DELTA = _LAYER + "linear_attn."
_QWEN35 = {
    **_linear(_DELTA + "in_proj_qkv", "delta_qkv_proj"),
    **_linear(_DELTA + "in_proj_z", "delta_z_proj"),
    **_linear(_DELTA + "out_proj", "delta_out_proj"),
    **_linear(_DELTA + "in_proj_a", "delta_a"),
    **_linear(_DELTA + "in_proj_b", "delta_b"),
    **_scale(_DELTA + "norm", "delta_norm"),
    _DELTA + "conv1d.weight": Row(("blocks/delta_conv",)),
    _DELTA + "dt_bias": Row(("blocks/delta_bias",)),
    _DELTA + "A_log": Row(("blocks/delta_decay",)),
}
QWEN35 = LLAMA._replace(
    table={key: row._replace(layers="attention") if ".self_attn." in key else row for key, row in LLAMA.table.items()}
    | {key: row._replace(layers="delta") for key, row in _QWEN35.items()},
    unused=(*_DECODER_UNUSED, r"visual\..*", r"mtp\..*"),
)
_ROUTED = _LAYER + "mlp.experts."
GPT_OSS = LLAMA._replace(
    table={
        **LLAMA.table,
        _LAYER + "self_attn.sinks": Row(("blocks/sinks",)),
        _LAYER + "mlp.router.weight": Row(("blocks/experts/router/kernel",), transpose=True),
        _LAYER + "mlp.router.bias": Row(("blocks/experts/router/bias",)),
        **{f"{_ROUTED}{name}_proj": Row((f"blocks/experts/{name}",)) for name in ("gate_up", "down")},
        **{f"{_ROUTED}{name}_proj_bias": Row((f"blocks/experts/{name}_bias",)) for name in ("gate_up", "down")},
    }
)

_BERT_LAYER = "encoder.layer.{}."


def _head(family: str) -> dict[str, Row]:
    """The rows of an encoder's head."""
    dense, score = heads.ENCODERS[family]
    return {
        f"{dense}.weight": Row(("head/dense/kernel",), transpose=True),
        f"{dense}.bias": Row(("head/dense/bias",)),
        f"{score}.weight": Row(("score/kernel",), transpose=True),
        f"{score}.bias": Row(("score/bias",)),
    }


def _bert(layer: str, q: str, k: str, v: str) -> dict[str, Row]:
    """Tables and blocks of BERT and what is made like it."""
    table = {
        "embeddings.word_embeddings.weight": Row(("embed/embedding",)),
        "embeddings.position_embeddings.weight": Row(("positions/embedding",)),
        "embeddings.token_type_embeddings.weight": Row(("types/embedding",)),
        **_linear(f"{layer}attention.self.{q}", "q_proj"),
        **_linear(f"{layer}attention.self.{k}", "k_proj"),
        **_linear(f"{layer}attention.self.{v}", "v_proj"),
        **_linear(layer + "attention.output.dense", "o_proj"),
        **_linear(layer + "intermediate.dense", "up_proj"),
        **_linear(layer + "output.dense", "down_proj"),
    }
    norms = {"embeddings.LayerNorm": "embed_norm"}
    norms |= {
        f"{layer}attention.output.LayerNorm": "blocks/attention_norm",
        f"{layer}output.LayerNorm": "blocks/mlp_norm",
    }
    for theirs, ours in norms.items():
        table |= {f"{theirs}.weight": Row((f"{ours}/scale",)), f"{theirs}.bias": Row((f"{ours}/bias",))}
    return table


_BERT_UNUSED = (r"(pooler|classifier|lm_head|cls|lm_predictions|mask_predictions|qa_outputs)\..*",)
_BERT_UNUSED += (r"embeddings\.position_ids",)
BERT = Layout({**_bert(_BERT_LAYER, "query", "key", "value"), **_head("bert")}, "bert.", ("classifier.",), _BERT_UNUSED)
ROBERTA = BERT._replace(table={**_bert(_BERT_LAYER, "query", "key", "value"), **_head("roberta")}, prefix="roberta.")
DEBERTA = Layout(
    {
        **_bert(_BERT_LAYER, "query_proj", "key_proj", "value_proj"),
        "encoder.rel_embeddings.weight": Row(("distances/embedding",)),
        "encoder.LayerNorm.weight": Row(("distance_norm/scale",)),
        "encoder.LayerNorm.bias": Row(("distance_norm/bias",)),
        **_head("deberta-v2"),
    },
    "deberta.",
    ("classifier.", "pooler."),
    (*_BERT_UNUSED, r"embeddings\.position_embeddings\.weight"),
)

MODERNBERT = Layout(
    {
        "embeddings.tok_embeddings.weight": Row(("embed/embedding",)),
        "embeddings.norm.weight": Row(("embed_norm/scale",)),
        "final_norm.weight": Row(("final_norm/scale",)),
        _LAYER + "attn_norm.weight": Row(("blocks/input_norm/scale",), layers="later"),
        **_scale(_LAYER + "mlp_norm", "mlp_norm"),
        **_linear(_LAYER + "attn.Wqkv", "q_proj", "k_proj", "v_proj"),
        **_linear(_LAYER + "attn.Wo", "o_proj"),
        **_linear(_LAYER + "mlp.Wi", "gate_proj", "up_proj"),
        **_linear(_LAYER + "mlp.Wo", "down_proj"),
        "head.norm.weight": Row(("head/norm/scale",)),
        **_head("modernbert"),
    },
    "model.",
    ("head.", "classifier."),
    (r"head\..*", r"decoder\..*", r"classifier\..*"),
)

_LAYOUTS = {"bert": BERT, "roberta": ROBERTA, "xlm-roberta": ROBERTA, "deberta-v2": DEBERTA, "modernbert": MODERNBERT}
_LAYOUTS |= {"gemma2": GEMMA2, "gemma3_text": GEMMA2, "olmo2": OLMO2, "olmo3": OLMO2, "phi3": PHI3}
_LAYOUTS |= {"qwen3_moe": QWEN_MOE, "gpt_oss": GPT_OSS, "qwen3_5_text": QWEN35, "gemma4_text": GEMMA4}


def layout(config: LMConfig) -> Layout:
    """How checkpoints of this model's family are written."""
    found = _LAYOUTS.get(config.family, LLAMA)
    # What embeds texts is written without a prefix, as transformers' own trunks are.
    embeds = config.family in heads.ENCODERS or config.bidirectional
    return found if config.num_labels or config.lm_head or not embeds else found._replace(prefix="")


def plain(key: str) -> str:
    """The key as the tables spell it: no prefix, and today's names for the norms of 2018."""
    key = re.sub(f"^{PREFIXES}", "", key)
    return re.sub(r"(LayerNorm)\.(gamma|beta)$", lambda m: f"{m[1]}.{'weight' if m[2] == 'gamma' else 'bias'}", key)


def full(layout: Layout, key: str) -> str:
    """The key as it is written into a file."""
    return key if key.startswith(layout.heads) else layout.prefix + key
