"""Trains and scores CoPL's reward model, and the group oracle that differs from it by its routing alone.

Axis letters: B rows, L length, P pairs, U users, N responses, C features of a user embedding.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from copl_jax.reward import load_balancing, reward_model, routing
from copl_jax.reward.linear_experts import LinearExperts, fit_linear
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from pref_jax.comparisons import Comparisons, Votes
from pref_jax.lm.config import LMConfig
from pref_jax.lm.pair_batches import Texts, pair_margins, text_batches
from pref_jax.mesh import replicated
from pref_jax.standardiser import fit_standardiser, standardise
from pref_jax.train.method import Trained, TrainingConfig, open_votes, stopwatch, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """A reward model without its transformer: experts, gates, how it is trained.

    Attributes:
      training: steps, batches, learning rate.
      experts: number, size and place.
      gate: the gates' sizes and noise.
      remat: what the backward pass keeps of each block.
      head: experts in the head, begun on frozen features; None: one head for everyone, as published.
    """

    training: TrainingConfig
    experts: ExpertsConfig = dataclasses.field(default_factory=ExpertsConfig)
    gate: GateConfig = dataclasses.field(default_factory=GateConfig)
    remat: str = "none"
    head: LinearExperts | None = None

    def model(self, lm: LMConfig, *, num_groups: int = 0) -> RewardConfig:
        """The model on a transformer; with `num_groups` that of the oracle, an expert for each group."""
        own: dict[str, Any] = {"lm": lm, "gate": self.gate, "remat": self.remat}
        gates = self.head.num_gates if self.head is not None else 0
        if not num_groups:
            return RewardConfig(mixture=self.experts, head_gates=gates, **own)
        experts = dataclasses.replace(self.experts, num_experts=num_groups)
        return RewardConfig(routing="groups", mixture=experts, head_gates=min(gates, 1), **own)


class HeadStart(NamedTuple):
    """What the head's experts begin from.

    Attributes:
      recipe: how they are fitted to frozen features.
      features: gives the responses' states as the frozen transformer pools them.
      train: who preferred what.
      validation: votes that the user embeddings do not know, to choose the recipe's prior by.
    """

    recipe: LinearExperts
    features: Callable[[], Float[np.ndarray, "N D"]]
    train: Comparisons
    validation: Comparisons


def fit_reward(
    config: RewardConfig,
    texts: Texts,
    pairs: Comparisons,
    table: np.ndarray,
    training: TrainingConfig,
    *,
    folder: Path,
    seed: int,
    start: HeadStart | None = None,
) -> Trained:
    """Trains experts, gates and head; a killed training is resumed from `folder`.

    Args:
      config: the model.
      texts: the responses.
      pairs: who preferred what, with ties where they are to be used.
      table: user embeddings float32 [U C] (routing "users") or group numbers int32 [U] ("groups").
      training: steps, batches, learning rate.
      folder: gets checkpoints and logs.
      seed: of parameters, batches, noise and dropout.
      start: of what a head with experts (`config.head_gates`) begins, see `begin_head`.
    """
    # From here on, as the head leaves checkpoints in the folder too.
    spent = stopwatch(folder)
    base, mesh = texts.model.params, texts.model.mesh
    dim = table.shape[1] if config.routing == "users" else 0
    params = reward_model.init(config, jax.random.key(seed), embedding_dim=dim, base=base)
    # Features of another layer are no start for a head on the last.
    if start is not None and texts.model.layer is None:
        params |= begin_head(config, start, table, folder=folder / "head", seed=seed)
    steps = training.optimizer.num_steps
    shared = texts.shared_length(pairs, training.share_prefix)
    votes = open_votes(pairs, training)
    sizes = {"batch_size": training.batch_size, "num_steps": steps, "seed": seed, "graded": votes.graded}
    trained = train(
        params=params | votes.params,
        frozen={"base": base, config.routing: jax.device_put(table, replicated(mesh))},
        loss=reward_model.make_loss(config),
        optimizer=load_balancing.optimizer(config.gate, votes.optimizer, num_steps=steps),
        batches=text_batches(pairs, texts.tokens, texts.length, shared=shared, **sizes),
        folder=folder,
        mesh=mesh,
        seed=seed,
        **training.loop(),
    )
    return votes.finish(trained._replace(facts={**trained.facts, **spent()}))


def begin_head(config: RewardConfig, start: HeadStart, table: np.ndarray, *, folder: Path, seed: int) -> dict[str, Any]:
    """The head and its experts as CoPL on frozen features: {"head", "head_experts"} of `reward_model.init`.

    With adapters that change nothing yet, rewards begin as those of `linear_experts`, up to one number for everyone
    per user, which changes no comparison.

    Args:
      config: the model, with `head_gates`.
      start: the recipe and what it learns from; sizes are the model's.
      table: user embeddings float32 [U C] or group numbers int32 [U].
      folder: gets checkpoints.
      seed: of parameters, batches and noise.
    """
    features = np.asarray(start.features(), np.float32)
    rows = np.unique(np.concatenate([side for votes in (start.train, start.validation) for side in votes[1:3]]))
    scale = fit_standardiser(features[rows])
    sizes = {"num_gates": config.head_gates, "num_experts": config.mixture.num_experts, "gate": config.head_gate}
    own = dataclasses.replace(start.recipe, **sizes)
    known = np.asarray(standardise(scale, jnp.asarray(features)))
    found = fit_linear(own, known, table, start.train, start.validation, folder=folder, seed=seed).params
    # Of raw features: w·(h - m)/s = (w/s)·h - w·(m/s).
    raw = found["shared"] / scale.scale
    experts = {**found["own"], "experts": found["own"]["experts"] / scale.scale[None, None]}
    return {"head": {"w": raw, "b": -raw @ scale.mean}, "head_experts": experts}


@functools.partial(jax.jit, static_argnums=0)
def table_rewards(config: RewardConfig, params, base, table, tokens, mask, row):
    """`reward_model.rewards` of texts [B L] for the users in rows [B] of a table."""
    return reward_model.rewards(config, params, base, tokens, mask, table[row])


def reader(config: RewardConfig, texts_params: Any, params: Any, table: Any) -> Any:
    """Rewards of texts for the users in rows of `table`, as `TextModel.read_rows` reads them."""
    return functools.partial(table_rewards, config, params, texts_params, jnp.asarray(table))


def score_pairs(
    config: RewardConfig, params: Any, texts: Texts, pairs: Votes, table: np.ndarray, *, batch_size: int = 0
) -> np.ndarray:
    """Reward margins float32 [P]; a response is read once for each user (or group) that it is scored for."""
    if config.routing == "groups":
        pairs, table = Comparisons(table[pairs.user], pairs.chosen, pairs.rejected), np.arange(table.max() + 1)
    read = reader(config, texts.model.params, params, table.astype(np.float32 if table.ndim > 1 else np.int32))
    return pair_margins(texts, pairs, read, route=pairs.user, batch_size=batch_size)


def gate_facts(
    config: RewardConfig, params: Any, table: np.ndarray, seen: np.ndarray, groups: Sequence[str | None]
) -> dict[str, Any]:
    """How the trained gates send users, after training and without its noise; JSON values.

    Args:
      config: the model's.
      params: trained.
      table: user embeddings float [U C], or group numbers int32 [U].
      seen: bool [U].
      groups: U names or None.

    Returns:
      "expert_usage": {group: [gates][experts]}, fractions of the group's users' choices; "gates": their names;
      "gate_entropy": mean over users and gates, in nats; "num_gates"; "dead_experts_by_gate" and their sum
      "dead_experts": experts that no seen user is sent to.
    """
    decisions = reward_model.route(config, params, jnp.asarray(table))
    assert decisions is not None, "there are gates: routing is by users"
    names = np.array(["everyone" if name is None else name for name in groups])
    choices = np.concatenate([np.asarray(gate.choice) for gate in decisions.values()])
    sent = np.eye(config.mixture.num_experts)[choices].mean(axis=2)
    dead = (sent[:, seen].sum(axis=1) == 0).sum(axis=1)
    return {
        "expert_usage": {str(name): sent[:, names == name].mean(axis=1).tolist() for name in sorted(set(names))},
        "gates": [f"{target} {layer}" for target in decisions for layer in range(config.lm.num_layers)],
        "gate_entropy": float(routing.entropy(decisions)),
        "num_gates": len(dead),
        "dead_experts": int(dead.sum()),
        "dead_experts_by_gate": dead.tolist(),
    }
