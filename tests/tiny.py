"""Transformers small enough for every test."""

from pathlib import Path
from typing import Any

import jax

from pref_jax.data.sources.synthetic import world
from pref_jax.data.text.tokenization import train_tokenizer
from pref_jax.lm import backbone, checkpoint
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


def reward_model(folder: Path) -> Path:
    """Writes a reward model of random weights that has read the world's words, in Hugging Face layout."""
    return _decoder(folder, num_labels=1, lm_head=False)


def chat_model(folder: Path, **changes: Any) -> Path:
    """The same with a next-token head: its answers are words at random."""
    return _decoder(folder, **changes)


def _decoder(folder: Path, **changes: Any) -> Path:
    text = world.pretraining_text(dialogues=64, glossaries=8, marker_noise=0.0, seed=0)
    tokenizer = train_tokenizer([" ".join(turns) for turns in text], vocab_size=512)
    sizes: Any = {"vocab_size": len(tokenizer), "max_positions": 64, **changes}
    lm = llama(**sizes, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    checkpoint.save(folder, lm, jax.jit(backbone.init, static_argnums=0)(lm, jax.random.key(0)))
    tokenizer.save_pretrained(folder)
    return folder
