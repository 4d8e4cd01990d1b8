"""Their key -> ours: one table for each layout of Hugging Face checkpoints.

`{}` stands for the number of a layer; ours are stacked under `blocks` with the layer axis first. Kernels are stored
transposed there, [out, in]. Rows that a model does not have (a bias, an untied head) are passed over.
"""

import re
from typing import NamedTuple

from pref_jax.lm import heads
from pref_jax.lm.config import LMConfig


class Row(NamedTuple):
    """Where a tensor of theirs goes.

    Attributes:
      paths: our parameter; several, if theirs is several of ours one after another along its first axis.
      transpose: theirs is [out, in], ours [in, out].
      first_layer: layers before this one have no such tensor; ours keeps what `backbone.init` gives there.
    """

    paths: tuple[str, ...]
    transpose: bool = False
    first_layer: int = 0


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
PREFIXES = r"((language_model|model|bert)\.)+"
_LAYER = "layers.{}."
_COMMON = {
    "embed_tokens.weight": Row(("embed/embedding",)),
    "norm.weight": Row(("final_norm/scale",)),
    "lm_head.weight": Row(("lm_head/kernel",), transpose=True),
    "score.weight": Row(("score/kernel",), transpose=True),
    **_scale(_LAYER + "input_layernorm", "input_norm"),
    **_linear(_LAYER + "self_attn.q_proj", "q_proj"),
    **_linear(_LAYER + "self_attn.k_proj", "k_proj"),
    **_linear(_LAYER + "self_attn.v_proj", "v_proj"),
    **_linear(_LAYER + "self_attn.o_proj", "o_proj"),
    **_scale(_LAYER + "self_attn.q_norm", "q_norm"),
    **_scale(_LAYER + "self_attn.k_norm", "k_norm"),
    **_linear(_LAYER + "mlp.gate_proj", "gate_proj"),
    **_linear(_LAYER + "mlp.up_proj", "up_proj"),
    **_linear(_LAYER + "mlp.down_proj", "down_proj"),
}
_DECODER_UNUSED = (
    r"lm_head\.weight",
    heads.PATTERN,
    r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"vision_tower\..*",
    r"multi_modal_projector\..*",
)
_HEADS = ("lm_head.", "score.")

LLAMA = Layout(
    {**_COMMON, **_scale(_LAYER + "post_attention_layernorm", "mlp_norm")}, "model.", _HEADS, _DECODER_UNUSED
)
GEMMA2 = Layout(
    {
        **_COMMON,
        **_scale(_LAYER + "post_attention_layernorm", "attention_out_norm"),
        **_scale(_LAYER + "pre_feedforward_layernorm", "mlp_norm"),
        **_scale(_LAYER + "post_feedforward_layernorm", "mlp_out_norm"),
    },
    "model.",
    _HEADS,
    _DECODER_UNUSED,
)

_BERT_LAYER = "encoder.layer.{}."
BERT = Layout(
    {
        "embeddings.word_embeddings.weight": Row(("embed/embedding",)),
        "embeddings.position_embeddings.weight": Row(("positions/embedding",)),
        "embeddings.token_type_embeddings.weight": Row(("types/embedding",)),
        "embeddings.LayerNorm.weight": Row(("embed_norm/scale",)),
        "embeddings.LayerNorm.bias": Row(("embed_norm/bias",)),
        **_linear(_BERT_LAYER + "attention.self.query", "q_proj"),
        **_linear(_BERT_LAYER + "attention.self.key", "k_proj"),
        **_linear(_BERT_LAYER + "attention.self.value", "v_proj"),
        **_linear(_BERT_LAYER + "attention.output.dense", "o_proj"),
        **_linear(_BERT_LAYER + "intermediate.dense", "up_proj"),
        **_linear(_BERT_LAYER + "output.dense", "down_proj"),
        _BERT_LAYER + "attention.output.LayerNorm.weight": Row(("blocks/attention_norm/scale",)),
        _BERT_LAYER + "attention.output.LayerNorm.bias": Row(("blocks/attention_norm/bias",)),
        _BERT_LAYER + "output.LayerNorm.weight": Row(("blocks/mlp_norm/scale",)),
        _BERT_LAYER + "output.LayerNorm.bias": Row(("blocks/mlp_norm/bias",)),
    },
    "",
    (),
    (r"pooler\..*", r"cls\..*", r"classifier\..*", r"qa_outputs\..*", r"embeddings\.position_ids"),
)

MODERNBERT = Layout(
    {
        "embeddings.tok_embeddings.weight": Row(("embed/embedding",)),
        "embeddings.norm.weight": Row(("embed_norm/scale",)),
        "final_norm.weight": Row(("final_norm/scale",)),
        _LAYER + "attn_norm.weight": Row(("blocks/input_norm/scale",), first_layer=1),
        **_scale(_LAYER + "mlp_norm", "mlp_norm"),
        **_linear(_LAYER + "attn.Wqkv", "q_proj", "k_proj", "v_proj"),
        **_linear(_LAYER + "attn.Wo", "o_proj"),
        **_linear(_LAYER + "mlp.Wi", "gate_proj", "up_proj"),
        **_linear(_LAYER + "mlp.Wo", "down_proj"),
    },
    "",
    (),
    (r"head\..*", r"decoder\..*", r"classifier\..*"),
)

_LAYOUTS = {"bert": BERT, "modernbert": MODERNBERT, "gemma2": GEMMA2, "gemma3_text": GEMMA2}


def layout(config: LMConfig) -> Layout:
    """How checkpoints of this model's family are written."""
    return _LAYOUTS.get(config.family, LLAMA)


def plain(key: str) -> str:
    """The key as the tables spell it: no prefix, and today's names for the norms of 2018."""
    key = re.sub(f"^{PREFIXES}", "", key)
    return re.sub(r"(LayerNorm)\.(gamma|beta)$", lambda m: f"{m[1]}.{'weight' if m[2] == 'gamma' else 'bias'}", key)


def full(layout: Layout, key: str) -> str:
    """The key as it is written into a file."""
    return key if key.startswith(layout.heads) else layout.prefix + key
