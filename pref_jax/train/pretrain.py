"""Next-token pretraining of a small decoder, so that experiments can start from a language model without a download.

Axis letters: B batch, L length, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from pref_jax.data.loaders.batches import index_batches
from pref_jax.data.text.tokenization import TokenTable, tokenize_dialogues, train_tokenizer
from pref_jax.lm import backbone, checkpoint
from pref_jax.lm.config import LMConfig
from pref_jax.train.loop import fit
from pref_jax.train.state import LossFn, OptimizerConfig, init_state, make_step, optimizer


def next_token_loss(
    config: LMConfig, params: Any, tokens: Int32[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, ""]:
    """Mean cross-entropy in nats of every real token given those before it; padding counts for nothing."""
    # These decoders have few layers; scanned over, their backward pass spends a sixth of its time on stacked buffers.
    hidden = backbone.hidden_states(config, params, tokens, mask, unroll=True)
    # The last state predicts nothing. Dropping it here spares copies of all logits, in both directions.
    logits = backbone.next_token_logits(config, params, hidden[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    real = mask[:, 1:].astype(losses.dtype)
    return jnp.sum(losses * real) / jnp.maximum(jnp.sum(real), 1)


def make_loss(config: LMConfig) -> LossFn:
    """`next_token_loss` for `pref_jax.train`; the batch is {"tokens": int32 [B L], "mask": bool [B L]}."""

    def loss(params, frozen, batch, key):
        del frozen, key
        return next_token_loss(config, params, batch["tokens"], batch["mask"]), {}

    return loss


def batches(tokens: TokenTable, *, batch_size: int, num_steps: int, seed: int) -> grain.MapDataset:
    """Batches of whole documents, padded to the longest of the table, so that one program serves all steps."""
    length = int(tokens.lengths.max(initial=2))

    def look_up(rows: np.ndarray) -> dict[str, np.ndarray]:
        ids, mask = tokens.take(rows, length)
        return {"tokens": ids, "mask": mask}

    return index_batches(len(tokens.lengths), batch_size, num_steps, seed).map(look_up)


def pretrain(
    config: LMConfig,
    tokens: TokenTable,
    *,
    recipe: OptimizerConfig,
    batch_size: int,
    seed: int,
    folder: str | Path,
    mesh: Mesh | None = None,
    checkpoint_every: int = 0,
) -> dict[str, Any]:
    """Trains a fresh decoder on documents and returns its parameters (float32); resumes from `folder` when repeated.

    Raises:
      UserError: as `loop.fit`.
    """
    transform = optimizer(recipe)
    state = fit(
        name="pretrain",
        state=init_state(backbone.init(config, jax.random.key(seed)), transform, seed),
        frozen=None,
        step=make_step(make_loss(config), transform),
        batches=batches(tokens, batch_size=batch_size, num_steps=recipe.num_steps, seed=seed),
        folder=folder,
        mesh=mesh,
        checkpoint_every=checkpoint_every,
        consume=True,
    )
    return state.params


def make_decoder(
    folder: str | Path,
    dialogues: Sequence[Sequence[str]],
    config: LMConfig,
    *,
    recipe: OptimizerConfig,
    batch_size: int,
    max_length: int,
    checkpoints: str | Path,
    checkpoint_every: int = 0,
    seed: int = 0,
) -> dict[str, int]:
    """Trains a tokenizer and a decoder on dialogues and writes both in Hugging Face layout.

    Args:
      folder: gets the files.
      dialogues: turns, the user's first.
      config: the decoder; its vocabulary and special tokens become the tokenizer's.
      recipe: optimizer and steps.
      batch_size: dialogues of a step.
      max_length: tokens of a dialogue; longer ones are cut.
      checkpoints: the training's folder, from which a killed or finished one goes on.
      checkpoint_every: steps between checkpoints.
      seed: of parameters and batches.

    Returns:
      Numbers of "documents" and "tokens".

    Raises:
      UserError: as `loop.fit`.
    """
    tokenizer = train_tokenizer([" ".join(turns) for turns in dialogues], vocab_size=config.vocab_size)
    tokens = tokenize_dialogues(tokenizer, dialogues, max_length=max_length)
    # A small text may not fill the vocabulary asked for.
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = dataclasses.replace(config, vocab_size=len(tokenizer), **ids)
    options: Any = {"batch_size": batch_size, "seed": seed, "checkpoint_every": checkpoint_every}
    checkpoint.save(folder, config, pretrain(config, tokens, recipe=recipe, folder=checkpoints, **options))
    tokenizer.save_pretrained(folder)
    return {"documents": len(dialogues), "tokens": int(tokens.lengths.sum())}
