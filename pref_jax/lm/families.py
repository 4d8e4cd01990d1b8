"""The families of transformers that are read, and what all models of a family have in common."""

import difflib
from typing import Any, Literal, NamedTuple

Family = Literal[
    "llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "qwen3_moe", "qwen3_5_text",
    "gemma", "gemma2", "gemma3_text", "gemma4_text", "smollm3", "olmo2", "olmo3", "phi3", "granite", "gpt_oss",
    "bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert",
]  # fmt: skip
_STEMS = {
    "qwen3_moe": "Qwen3Moe", "qwen3_5_text": "Qwen3_5", "gemma3_text": "Gemma3", "gemma4_text": "Gemma4",
    "smollm3": "SmolLM3", "gpt_oss": "GptOss",
    "xlm-roberta": "XLMRoberta", "deberta-v2": "DebertaV2", "modernbert": "ModernBert",
}  # fmt: skip
# Families that are known under another name, or that people are likely to take for one that is here.
_NEAREST = {"phi": "phi3", "phi4": "phi3", "olmo": "olmo2", "distilbert": "bert", "electra": "bert"}
_NEAREST |= {"deberta": "deberta-v2", "mixtral": "qwen3_moe", "granitemoe": "granite", "camembert": "roberta"}
_NEAREST |= {"cohere": "llama", "gemma3n": "gemma3_text", "gemma4": "gemma4_text", "qwen3_next": "qwen3_5_text"}


class Traits(NamedTuple):
    """What all models of a family have in common.

    Attributes:
      kind: the module that computes it.
      causal: a token sees only those before it, where `LMConfig.bidirectional` does not say otherwise.
      norm_offset: norms multiply by 1 + w instead of w.
      pre_norms: attention and MLP are fed normed states.
      post_norms: what comes out of attention and MLP is normed before it is added to the residual.
      qk_norm: queries and keys are normed, each `head` or the `whole` width at once.
      scaled_embeddings: embedded tokens are multiplied by sqrt(hidden_size).
      attention_bias: whether q, k and v have biases where the model does not say.
      output_bias: whether o_proj has a bias wherever q, k and v have one.
      padded_positions: positions count from the padding token's number + 1, as fairseq's do.
      sinks: each head attends to a learnt score beside the keys, which takes weight and gives nothing.
    """

    kind: Literal["decoder", "delta", "gemma4", "bert", "deberta"] = "decoder"
    causal: bool = True
    norm_offset: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    qk_norm: Literal["", "head", "whole"] = ""
    scaled_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = True
    padded_positions: bool = False
    sinks: bool = False


_GEMMA = Traits(norm_offset=True, scaled_embeddings=True)
_OLMO = Traits(pre_norms=False, post_norms=True, qk_norm="whole")
_BERT = Traits(kind="bert", causal=False, attention_bias=True)
TRAITS: dict[str, Traits] = {
    "llama": Traits(),
    "mistral": Traits(),
    "ministral": Traits(),
    "ministral3": Traits(),
    "qwen2": Traits(attention_bias=True, output_bias=False),
    "qwen3": Traits(qk_norm="head"),
    "qwen3_moe": Traits(qk_norm="head"),
    "qwen3_5_text": Traits(kind="delta", norm_offset=True, qk_norm="head"),
    "gemma": _GEMMA,
    "gemma2": _GEMMA._replace(post_norms=True),
    "gemma3_text": _GEMMA._replace(post_norms=True, qk_norm="head"),
    "gemma4_text": Traits(kind="gemma4", post_norms=True, qk_norm="head", scaled_embeddings=True),
    "smollm3": Traits(),
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "phi3": Traits(),
    "granite": Traits(),
    "gpt_oss": Traits(attention_bias=True, sinks=True),
    "bert": _BERT,
    "roberta": _BERT._replace(padded_positions=True),
    "xlm-roberta": _BERT._replace(padded_positions=True),
    "deberta-v2": _BERT._replace(kind="deberta"),
    "modernbert": Traits(causal=False),
}


# Families without a sequence classifier in transformers.
UNCLASSIFIED = ("granite", "gemma4_text")


def stem(family: str) -> str:
    """How transformers' classes of a family begin."""
    return _STEMS.get(family, family.capitalize())


def nearest(family: Any) -> str:
    """The family here that is nearest to one that is not, by its name; "" where none is near."""
    if not isinstance(family, str):
        return ""
    name = family.lower().removesuffix("_text").replace("-", "_")
    known = {one.replace("-", "_"): one for one in TRAITS}
    if found := next((_NEAREST[one] for one in (name, name.split("_")[0]) if one in _NEAREST), None):
        return found
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    begins = [one for one in known if one.rstrip("0123456789") == name.split("_")[0].rstrip("0123456789")]
    return known[close[0]] if close else known[begins[-1]] if begins else ""
