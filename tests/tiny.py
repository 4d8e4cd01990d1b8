"""Transformers small enough for every test."""

from typing import Any

from pref_jax.lm.config import LMConfig

_SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 4}
_ENCODER: dict[str, Any] = {
    "activation": "gelu",
    "mlp_bias": True,
    "tie_embeddings": False,
    "lm_head": False,
    "pooling": "mean",
}


def llama(**changes: Any) -> LMConfig:
    """A decoder whose key heads are shared by two query heads each."""
    fields: dict[str, Any] = {"family": "llama", "num_kv_heads": 2} | _SIZES | changes
    return LMConfig(**fields)


def bert(**changes: Any) -> LMConfig:
    """An encoder."""
    fields: dict[str, Any] = {"family": "bert"} | _SIZES | _ENCODER | changes
    return LMConfig(**fields)
