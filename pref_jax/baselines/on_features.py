"""Personal heads on frozen features: choose by held-out votes, train on all, score; on CPU in seconds.

Of each method's candidates the one with the lowest loss on the held-out votes is trained again on all votes of the seen
users. Unseen users' votes are read for their context alone.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from pref_jax.baselines import head_training
from pref_jax.baselines.head_training import FAST, HEADS, States
from pref_jax.baselines.heads import Head, Params
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.contexts import context_batches
from pref_jax.data.schema import prompt_ids
from pref_jax.mesh import make_mesh
from pref_jax.standardiser import Standardiser, fit_standardiser, standardise
from pref_jax.train.method import stopwatch, train
from pref_jax.train.state import OptimizerConfig, optimizer_by_group


class Fitted(NamedTuple):
    """The chosen candidate: its head, its trained parameters, and facts as JSON values."""

    head: Head
    params: Params
    facts: dict[str, Any]


class Task(NamedTuple):
    """What a head is fitted to.

    Attributes:
      states: of all texts.
      votes: of the seen users.
      held: bool [P], which of these are on prompts by which candidates are compared.
      seen: bool [U].
      seed: of parameters, batches and noise.
    """

    states: States
    votes: Comparisons
    held: np.ndarray
    seen: np.ndarray
    seed: int


def open_states(
    features: np.ndarray, prompt_features: np.ndarray, prompts: pa.ChunkedArray, votes: Comparisons
) -> tuple[States, Standardiser]:
    """States of all texts, standardised by those of the responses that were voted on.

    Args:
      features: float32 [N D] of the responses.
      prompt_features: float32 [M D] of every prompt alone, in the order of `prompt_ids`' numbers.
      prompts: each response's prompt.
      votes: of the seen users.
    """
    scale = fit_standardiser(features[np.unique(np.concatenate([votes.chosen, votes.rejected]))])
    rated, asked = (standardise(scale, jnp.asarray(x)) for x in (features, prompt_features))
    prompt = jnp.asarray(np.unique(prompt_ids(prompts), return_inverse=True)[1], jnp.int32)
    return States(rated, rated, asked, prompt), scale


def frozen_states(states: States, seen: np.ndarray) -> dict[str, Any]:
    """What `head_training.batch_loss` reads beside the parameters."""
    own = {"features": states.features, "prompts": states.prompts, "prompt": states.prompt}
    return own | {"number": jnp.asarray(head_training.seen_rows(seen))}


def fit_head(
    head: Head, steps: int, config: BaselinesConfig, task: Task, votes: Comparisons, *, folder: Path
) -> tuple[Params, dict[str, Any]]:
    """One candidate's parameters from these votes, and facts; a killed training is resumed from `folder`."""
    recipe = OptimizerConfig(
        lr=config.lr, num_steps=steps, weight_decay=config.weight_decay, warmup_fraction=0.05, clip=1.0
    )
    sizes = {"context": config.context, "batch_size": config.batch_size, "num_steps": steps}
    return train(
        params=head.init(jax.random.key(task.seed), task.states.features.shape[1], int(task.seen.sum())),
        frozen=frozen_states(task.states, task.seen),
        loss=head_training.feature_loss(head),
        optimizer=optimizer_by_group(recipe, FAST, lr_mult=config.user_lr_mult),
        batches=context_batches(votes, **sizes, seed=task.seed),
        folder=folder,
        mesh=make_mesh(devices=jax.devices()[:1]),
        seed=task.seed,
        checkpoint_every=100,
    )


def candidates(config: BaselinesConfig, method: str) -> list[tuple[Head, int]]:
    """The heads and numbers of steps that a method chooses from."""
    return list(itertools.product(HEADS[method](config), config.steps))


def choose_and_fit(method: str, config: BaselinesConfig, task: Task, *, folder: Path) -> Fitted:
    """Compares a method's candidates on the held-out votes, then trains the best on all; `folder` gets checkpoints.

    Without held-out votes the first candidate is taken, as the fact "fallback" says.
    """
    spent, tried = stopwatch(folder), candidates(config, method)
    losses = [0.0]
    if len(tried) > 1 and task.held.any():
        losses = [
            _held_out_loss(head, steps, config, task, folder / f"candidate_{number}")
            for number, (head, steps) in enumerate(tried)
        ]
    best = int(np.argmin(np.nan_to_num(losses, nan=np.inf)))
    params, facts = fit_head(*tried[best], config, task, task.votes, folder=folder)
    told = {
        "chosen": best,
        "candidates": [f"{candidate}, {count} steps" for candidate, count in tried],
        "held_out_losses": losses if len(losses) > 1 else None,
    }
    if 1 < len(tried) != len(losses):
        told["fallback"] = f"no vote is held out to choose by: the first candidate, {told['candidates'][0]}"
    return Fitted(tried[best][0], params, {**told, **facts, **spent()})


def _held_out_loss(head: Head, steps: int, config: BaselinesConfig, task: Task, folder: Path) -> float:
    """Mean loss on the held-out votes of users who are known by the other votes."""
    learn, held = task.votes.take(~task.held), task.votes.take(task.held)
    params, _ = fit_head(head, steps, config, task, learn, folder=folder)
    users = head_training.user_representations(
        head, params, task.states, learn, task.seen, context=config.context, seed=task.seed, unseen=False
    )
    margins = head_training.pair_margins(head, params, task.states, users, held)
    return float(jnp.mean(head.loss(jnp.asarray(margins))))
