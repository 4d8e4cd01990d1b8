"""What a transformer looks like, in one frozen record, read from and written to Hugging Face's `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pref_jax.errors import Faults

Family = Literal["llama", "bert"]
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    `linear` divides all frequencies by `factor`; `llama3` divides only those whose wavelength exceeds
    `original_max_positions / low_freq_factor`, keeps those under `original_max_positions / high_freq_factor`, and
    blends between (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Sizes and choices of one transformer. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      family: `llama` (RMSNorm, rotary positions, grouped queries, gated MLP, causal) or `bert` (learned positions,
        LayerNorm after each residual sum, plain MLP, attends both ways).
      vocab_size: number of token ids.
      hidden_size: D.
      intermediate_size: width of the MLP.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; 0 stands for `num_heads`.
      head_dim: width of a head; 0 stands for `hidden_size // num_heads`.
      max_positions: trained length; a hard limit for `bert`, whose positions are a table.
      norm_eps: epsilon of the norms.
      rope_theta: base wavelength of the rotary positions (`llama`).
      rope_scaling: stretching of the rotary positions, if any (`llama`).
      tie_embeddings: the next-token head is the embedding table transposed.
      lm_head: there is a next-token head; False for bare trunks, encoders and sequence classifiers.
      activation: one of `ACTIVATIONS`.
      attention_bias: biases on the four attention linears.
      mlp_bias: biases on the linears of the MLP.
      type_vocab_size: token types (`bert`; all tokens take type 0).
      pooling: what stands for a whole text: its `last` token or the `mean` of its tokens.
      bos_token_id: carried along for `config.json`, of no effect here.
      eos_token_id: the same.
      pad_token_id: the same.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    max_positions: int = 2048
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = True
    lm_head: bool = True
    activation: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    type_vocab_size: int = 2
    pooling: Literal["last", "mean"] = "last"
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // max(self.num_heads, 1))
        faults = Faults()
        for name in (*_SIZES, "num_kv_heads", "head_dim", "max_positions"):
            if getattr(self, name) < 1:
                faults.add(name, f"is {getattr(self, name)}", "give a positive whole number")
        if self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads:
            faults.add("num_kv_heads", f"{self.num_kv_heads} does not divide {self.num_heads} heads", "use a divisor")
        if self.activation not in ACTIVATIONS:
            faults.add("activation", f"{self.activation!r} is unknown", f"use one of {', '.join(ACTIVATIONS)}")
        if self.family == "llama" and self.head_dim % 2:
            faults.add("head_dim", f"{self.head_dim} is odd, rotary positions turn pairs", "use an even head_dim")
        if self.family == "bert" and self.num_kv_heads != self.num_heads:
            faults.add("num_kv_heads", "the bert family has no grouped queries", "leave it out")
        faults.raise_if_any("Transformer configuration")

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], *, where: str = "config.json") -> "LMConfig":
        """Reads the dictionary of a Hugging Face `config.json`, of transformers 4 or 5.

        Raises:
          UserError: with every field that is missing or that this code cannot honour.
        """
        faults = Faults()
        family = raw.get("model_type")
        if family not in ("llama", "bert"):
            faults.add(f"{where}: model_type", f"{family!r} is not supported", "use a llama or a bert checkpoint")
        for name in (*_SIZES.values(), "max_position_embeddings"):
            if not isinstance(raw.get(name), int):
                faults.add(f"{where}: {name}", f"is {raw.get(name)!r}", "give a whole number")
        if raw.get("quantization_config"):
            faults.add(f"{where}: quantization_config", "the weights are quantised", "use the unquantised checkpoint")
        own = _bert_fields(raw, faults, where) if family == "bert" else _llama_fields(raw, faults, where)
        faults.raise_if_any("Transformer configuration")
        sizes = {ours: raw[theirs] for ours, theirs in _SIZES.items()}
        eos = raw.get("eos_token_id")
        tokens = {
            "bos_token_id": raw.get("bos_token_id"),
            "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
            "pad_token_id": raw.get("pad_token_id"),
        }
        return cls(family=raw["model_type"], max_positions=raw["max_position_embeddings"], **sizes, **own, **tokens)

    def to_hf(self) -> dict[str, Any]:
        """The dictionary that transformers (4 or 5) reads back as the same model."""
        eos = self.eos_token_id
        common = {
            "architectures": [self._architecture()],
            "model_type": self.family,
            **{theirs: getattr(self, ours) for ours, theirs in _SIZES.items()},
            "max_position_embeddings": self.max_positions,
            "hidden_act": self.activation,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "pad_token_id": self.pad_token_id,
        }
        if self.family == "bert":
            return common | {"layer_norm_eps": self.norm_eps, "type_vocab_size": self.type_vocab_size}
        rope = {"rope_type": "default"} if self.rope_scaling is None else _rope_to_hf(self.rope_scaling)
        return common | {
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.rope_scaling is None else rope,
            "rope_parameters": {"rope_theta": self.rope_theta, **rope},
        }

    def _architecture(self) -> str:
        if self.family == "bert":
            return "BertModel"
        return "LlamaForCausalLM" if self.lm_head else "LlamaModel"


def _llama_fields(raw: Mapping[str, Any], faults: Faults, where: str) -> dict[str, Any]:
    """The fields only `llama` has; notes what it cannot honour."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if raw.get("partial_rotary_factor", rope.get("partial_rotary_factor")) not in (None, 1, 1.0):
        faults.add(f"{where}: partial_rotary_factor", "only part of a head is rotated", "use another checkpoint")
    architectures = raw.get("architectures") or ["LlamaForCausalLM"]
    return {
        "num_kv_heads": raw.get("num_key_value_heads") or 0,
        "head_dim": raw.get("head_dim") or 0,
        "norm_eps": float(raw.get("rms_norm_eps", 1e-6)),
        "rope_theta": float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
        "rope_scaling": _rope_from_hf(raw, rope, faults, where),
        "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "lm_head": any("CausalLM" in name for name in architectures),
        "activation": raw.get("hidden_act", "silu"),
        "attention_bias": bool(raw.get("attention_bias", False)),
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "pooling": "last",
    }


def _bert_fields(raw: Mapping[str, Any], faults: Faults, where: str) -> dict[str, Any]:
    """The fields only `bert` has; notes what it cannot honour."""
    if raw.get("position_embedding_type", "absolute") != "absolute":
        faults.add(f"{where}: position_embedding_type", "only absolute is supported", "use another checkpoint")
    if raw.get("is_decoder"):
        faults.add(f"{where}: is_decoder", "a causal bert is not supported", "use an encoder checkpoint")
    return {
        "norm_eps": float(raw.get("layer_norm_eps", 1e-12)),
        "type_vocab_size": raw.get("type_vocab_size", 2),
        "activation": raw.get("hidden_act", "gelu"),
        "attention_bias": True,
        "mlp_bias": True,
        "tie_embeddings": False,
        "lm_head": False,
        "pooling": "mean",
    }


def _rope_from_hf(raw: Mapping[str, Any], rope: Mapping[str, Any], faults: Faults, where: str) -> RopeScaling | None:
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


def _rope_to_hf(rope: RopeScaling) -> dict[str, Any]:
    if rope.kind == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    return {
        "rope_type": rope.kind,
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_positions,
    }
