"""Two people of opposite taste, a reward that learned it from their votes, and a policy small enough to train here.

Answers are words of two kinds and of none; one person likes those of the first kind and dislikes the second, the other
the other way round.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import tiny

import lore_jax
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.data.text.tokenization import train_tokenizer
from pref_jax.lm import backbone, checkpoint

LIKED = {"ada": "tea milk honey lemon", "bo": "coffee sugar cream foam"}
OTHERS = "warm cold now later cup bowl often never"
WORDS = [*LIKED["ada"].split(), *LIKED["bo"].split(), *OTHERS.split()]
PROMPTS = ("breakfast", "lunch", "dinner", "supper")
FIT = LoReConfig.quick(ranks=(2,), components=(), variances=(3.0,), shared_variances=(1.0,), steps=60)


def taste(user: str, answer: str) -> float:
    """Liked words less disliked ones, in an answer."""
    other = next(name for name in LIKED if name != user)
    words = answer.split()
    return float(
        sum(word in LIKED[user].split() for word in words) - sum(word in LIKED[other].split() for word in words)
    )


def base(folder: Path) -> Path:
    """A transformer of random weights that reads these words."""
    tokenizer = train_tokenizer([" ".join([*PROMPTS, *WORDS])] * 4, vocab_size=512)
    sizes: Any = {"vocab_size": len(tokenizer), "hidden_size": 48, "num_layers": 1, "max_positions": 64}
    sizes |= {"num_labels": 1, "lm_head": False, "pooling": "mean"}
    lm = tiny.llama(**sizes, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    checkpoint.save(folder, lm, jax.jit(backbone.init, static_argnums=0)(lm, jax.random.key(0)))
    tokenizer.save_pretrained(folder)
    return folder


def answer(rng: np.random.Generator, most: int = 6) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))


def votes(each: int = 80, seed: int = 0, copies: int = 3) -> list[dict[str, str]]:
    """Votes of ada, bo and a few like each of them, without error."""
    rng, rows = np.random.default_rng(seed), []
    for user in LIKED:
        for name in [user, *(f"{user}-{copy}" for copy in range(copies))]:
            while sum(row["user"] == name for row in rows) < each:
                one, two = answer(rng), answer(rng)
                gain = taste(user, one) - taste(user, two)
                if gain:
                    chosen, rejected = (one, two) if gain > 0 else (two, one)
                    prompt = str(rng.choice(PROMPTS))
                    rows.append({"user": name, "prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def reward(folder: Path, **options: Any) -> lore_jax.LoRe:
    """A LoRe that learned from `votes`."""
    return lore_jax.fit(votes(), base=str(base(folder)), config=FIT, max_length=48, pooling="mean", **options)


def policy(seed: int = 0) -> tuple[Any, Any]:
    """A causal language model of random weights on a vocabulary of whole words, and its tokenizer; needs torch."""
    import tokenizers
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<unk>", *PROMPTS, *WORDS]
    whole = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(names)}, unk_token="<unk>")
    )
    whole.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    sizes: Any = {"vocab_size": len(names), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    return model, tokenizer
