"""Personal heads on the adapted transformer: the shared reward's adapters, batches and steps, another head.

The head rates the tuned pooled state; contexts are encoded from the frozen transformer's features, as in VPL's code, so
that a step reads no more texts than the shared reward does.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pref_jax.baselines import head_training
from pref_jax.baselines.head_training import FAST, States
from pref_jax.baselines.heads import Head
from pref_jax.baselines.on_features import frozen_states
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.baselines.shared import SharedConfig, init_adapters
from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.contexts import context_batches
from pref_jax.lm import lora
from pref_jax.lm.pair_batches import Texts, with_texts
from pref_jax.lm.pairs import pair_states, text_states
from pref_jax.standardiser import Standardiser, standardise
from pref_jax.train.method import Trained, TrainingConfig, train
from pref_jax.train.state import LossFn, optimizer_by_group


def make_loss(config: SharedConfig, head: Head) -> LossFn:
    """`head_training.batch_loss` on the tuned states, for `pref_jax.train`."""

    def loss(params, frozen, batch, key):
        noise, dropout = jax.random.split(key)
        adapters, apply = lora.with_keys(params["adapters"], dropout), lora.adapter_fn(config.lora)
        states = pair_states(config.lm, frozen["base"], batch, adapters, apply, remat=config.remat)
        h = standardise(frozen["scale"], states.reshape(-1, states.shape[-1])).reshape(states.shape)
        return head_training.batch_loss(head, params["personal"], frozen, batch, h, noise)

    return loss


def fit_users(
    params: Any,
    frozen: Any,
    loss: LossFn,
    texts: Texts,
    pairs: Comparisons,
    training: TrainingConfig,
    config: BaselinesConfig,
    *,
    folder: Path,
    seed: int,
) -> Trained:
    """Trains with the shared reward's batches, steps and optimizer; what users own learns faster.

    Args:
      params: where to begin.
      frozen: what the loss reads beside them.
      loss: of batches as from `context_batches` with texts, and "row", the chosen responses.
      texts: the responses.
      pairs: who preferred what.
      training: of the shared reward.
      config: size of contexts, and how much faster users learn.
      folder: gets checkpoints and logs; a killed training is resumed from there.
      seed: of batches and noise.
    """
    recipe, shared = training.optimizer, texts.shared_length(pairs, training.share_prefix)
    sizes = {"context": config.context, "batch_size": training.batch_size, "num_steps": recipe.num_steps}
    batches = context_batches(pairs, **sizes, seed=seed).map(lambda batch: {**batch, "row": batch["chosen"]})
    return train(
        params=params,
        frozen=frozen,
        loss=loss,
        optimizer=optimizer_by_group(recipe, FAST, lr_mult=config.user_lr_mult),
        batches=with_texts(batches, texts.tokens, texts.length, shared=shared),
        folder=folder,
        mesh=texts.model.mesh,
        seed=seed,
        **training.loop(),
    )


def begin_head(
    head: Head, model: SharedConfig, texts: Texts, states: States, scale: Standardiser, seen: np.ndarray, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fresh parameters {"adapters", "personal"}, what `make_loss` reads beside them)."""
    frozen = {**frozen_states(states, seen), "scale": scale, "base": texts.model.params}
    key = jax.random.key(seed)
    own = head.init(key, states.features.shape[1], int(seen.sum()))
    return {"adapters": init_adapters(model, key), "personal": own}, frozen


@functools.partial(jax.jit, static_argnums=0)
def _pooled(config: SharedConfig, adapters, base, tokens, mask):
    return text_states(config.lm, base, tokens, mask, adapters, lora.adapter_fn(config.lora))


def tuned_states(config: SharedConfig, adapters: Any, texts: Texts, *, batch_size: int = 0) -> np.ndarray:
    """Pooled states float32 [N D] of all responses, each read once."""
    read = functools.partial(_pooled, config, adapters, texts.model.params)
    return texts.model.read_rows(texts.tokens, read, width=config.lm.hidden_size, batch_size=batch_size)
