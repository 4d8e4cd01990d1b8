"""A decoder of random weights whose tokenizer has read the synthetic world: a base that is made and read at once."""

from pathlib import Path
from typing import Any

import jax

from pref_jax.data.sources.synthetic import world
from pref_jax.data.text.tokenization import train_tokenizer
from pref_jax.lm import backbone, checkpoint
from pref_jax.lm.config import LMConfig


def write_decoder(folder: Path, length: int = 64) -> Path:
    """Writes a reward model's base in Hugging Face layout.

    Args:
      folder: where.
      length: positions, hence tokens of the longest text.
    """
    text = world.pretraining_text(dialogues=64, glossaries=8, marker_noise=0.0, seed=0)
    tokenizer = train_tokenizer([" ".join(turns) for turns in text], vocab_size=512)
    sizes: Any = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    ids: Any = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    lm = LMConfig(family="llama", vocab_size=len(tokenizer), max_positions=length, lm_head=False, **sizes, **ids)
    checkpoint.save(folder, lm, jax.jit(backbone.init, static_argnums=0)(lm, jax.random.key(0)))
    tokenizer.save_pretrained(folder)
    return folder
