"""CoPL's reward model: a frozen transformer, experts chosen by the user's embedding, a linear head (arXiv 2503.01658).

One function serves two models, by `RewardConfig.routing`:

    users    CoPL: gates read user embeddings
    groups   the group oracle: expert = group of the user, with weight 1

The paper adapts linears of the transformer alone. With `RewardConfig.head_gates` the head has experts too
(`copl_jax.reward.linear_experts`), chosen in the same way: they can begin where frozen features lead in seconds, which
the adapters' few steps do not reach (`copl_jax.reward.training.begin_head`).

Axes: B batch, L length, D features of the transformer, C features of a user embedding, U users,
E experts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from copl_jax.reward import linear_experts, load_balancing, lora_experts, routing
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.routing import GateConfig
from pref_jax.errors import UserError
from pref_jax.graded import GAPS
from pref_jax.lm import backbone
from pref_jax.lm.config import LMConfig
from pref_jax.lm.pairs import apply_head, init_head, pair_states, pairwise_loss, text_states
from pref_jax.train.state import LossFn

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The model; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      lm: the transformer.
      routing: what chooses the experts, see above.
      mixture: number, size and place of the experts.
      gate: the gates' sizes and noise, for routing "users".
      remat: what the backward pass keeps of each block, one of `backbone.REMAT`.
      head_gates: gates of experts in the head, `mixture.num_experts` each; 0: the head is everyone's, as published.
    """

    lm: LMConfig
    routing: Literal["users", "groups"] = "users"
    mixture: ExpertsConfig = dataclasses.field(default_factory=ExpertsConfig)
    gate: GateConfig = dataclasses.field(default_factory=GateConfig)
    remat: str = "none"
    head_gates: int = 0

    @property
    def head_gate(self) -> GateConfig:
        """Of the head's experts, which nothing balances."""
        return dataclasses.replace(self.gate, balance="none", hidden=linear_experts.HIDDEN)

    def __post_init__(self):
        if self.head_gates < 0:
            raise UserError(f"RewardConfig.head_gates is {self.head_gates}; give a whole number from 0")
        if self.routing not in ("users", "groups"):
            raise UserError(f"RewardConfig.routing is {self.routing!r}; write 'users' or 'groups'")
        if self.routing == "users" and self.gate.top_k > self.mixture.num_experts:
            raise UserError(
                f"RewardConfig: gate.top_k={self.gate.top_k} of {self.mixture.num_experts} experts; "
                "choose at most as many as there are"
            )


def personal_head(
    config: RewardConfig,
    params: Mapping[str, Any],
    users: Float[Array, "B C"] | Int[Array, " B"] | None,
    key: Key[Array, ""] | None = None,
) -> dict[str, Array]:
    """The head of each user, {"w": [B D], "b": []}; without experts in it everyone's, {"w": [D], "b": []}."""
    head = params["head"]
    if not config.head_gates or users is None:
        return dict(head)
    own = linear_experts.deviations(config.head_gate, params["head_experts"], users, key)
    return {"w": head["w"][None] + own, "b": head["b"]}


def init(
    config: RewardConfig, key: Key[Array, ""], *, embedding_dim: int = 0, base: Mapping[str, Any] | None = None
) -> Params:
    """Fresh trainable parameters, float32: {"experts", "gates", "head": {"w": [D], "b": []}}, with `config.head_gates`
    also "head_experts" as of `linear_experts.init_own`.

    The head starts as `init_head` says, and the experts at zero effect. "gates" is empty unless routing is "users".

    Args:
      config: the model.
      key: typed PRNG key.
      embedding_dim: C, for routing "users".
      base: the frozen transformer's parameters, whose own reward head begins ours if it has one.

    Raises:
      UserError: if a target is no linear of the transformer, or `embedding_dim` is missing.
    """
    experts_key, gates_key, head_key = jax.random.split(key, 3)
    layers = config.lm.num_layers
    own: Params = {}
    if config.routing == "users":
        if embedding_dim < 1:
            raise UserError(f"reward.init: embedding_dim is {embedding_dim}; give the length of a user embedding")
        own = routing.init(
            config.gate,
            gates_key,
            config.mixture.targets,
            num_layers=layers,
            dim=embedding_dim,
            num_experts=config.mixture.num_experts,
        )
    params = {
        "experts": lora_experts.init(config.mixture, experts_key, backbone.linear_shapes(config.lm), layers),
        "gates": own,
        "head": init_head(config.lm, base, head_key),
    }
    if config.head_gates:
        sizes = {"num_gates": config.head_gates, "num_experts": config.mixture.num_experts}
        sizes |= {"dim": config.lm.hidden_size, "embedding_dim": embedding_dim if own else 0}
        params["head_experts"] = linear_experts.init_own(config.head_gate, jax.random.fold_in(gates_key, 1), **sizes)
    return params


def route(
    config: RewardConfig,
    params: Mapping[str, Any],
    users: Float[Array, "B C"] | Int[Array, " B"] | None,
    key: Key[Array, ""] | None = None,
) -> routing.Gates:
    """The gates' decisions for each example: from embeddings or group numbers, as `config.routing` says.

    Raises:
      UserError: if `users` is not what the routing needs.
    """
    floating = users is not None and jnp.issubdtype(users.dtype, jnp.floating)
    if users is None or floating != (config.routing == "users"):
        needs = "embeddings, float [B, C]" if config.routing == "users" else "group numbers, int [B]"
        raise UserError(f"reward: routing {config.routing!r} needs {needs}; got {getattr(users, 'dtype', None)}")
    if config.routing == "users":
        return routing.route(config.gate, params["gates"], users, key)
    layers, number = config.lm.num_layers, config.mixture.num_experts
    return routing.one_hot_routing(users, config.mixture.targets, num_layers=layers, num_experts=number)


def rewards(
    config: RewardConfig,
    params: Mapping[str, Any],
    base: Mapping[str, Any],
    tokens: Int32[Array, "B L"],
    mask: Bool[Array, "B L"],
    users: Float[Array, "B C"] | Int[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Float32 reward of each text for its user, without the noise and dropout of training.

    Args:
      config: the model.
      params: trainable parameters, see `init`.
      base: the frozen transformer's.
      tokens: one text a row.
      mask: True at real tokens.
      users: each row's user embedding (routing "users"), or group number ("groups").
    """
    adapters = lora_experts.make_adapters(params["experts"], route(config, params, users))
    apply = lora_experts.adapter_fn(config.mixture)
    states = text_states(config.lm, base, tokens, mask, adapters, apply, remat=config.remat)
    return _score(personal_head(config, params, users), states)


def pair_rewards(
    config: RewardConfig,
    params: Mapping[str, Any],
    base: Mapping[str, Any],
    batch: Mapping[str, Array],
    users: Float[Array, "B C"] | Int[Array, " B"] | None = None,
) -> Float[Array, "B 2"]:
    """Float32 rewards of the chosen and of the rejected text of each pair, without the noise and dropout of training.

    Args:
      config: the model.
      params: trainable parameters, see `init`.
      base: the frozen transformer's.
      batch: as `make_loss` takes it; its "user" is not read.
      users: as for `rewards`, one row a pair.

    Raises:
      UserError: if the transformer is an encoder and the texts of a pair share a row.
    """
    head = personal_head(config, params, users)
    return _pair_rewards(config, params, base, batch, route(config, params, users), head, None)


def make_loss(config: RewardConfig) -> LossFn:
    """The Bradley-Terry loss mean of -log sigmoid(r_chosen - r_rejected), for `pref_jax.train`.

    With routing "users" it holds what `config.gate.balance` adds to it, and the optimizer must be
    `balance.optimizer(config.gate, ...)`.

    Of the returned `loss(params, frozen, batch, key)`:

      params: trainable, see `init`; with "gaps" where votes have thresholds.
      frozen: {"base": transformer, "users": float [U C]} for routing "users", or "groups": int32 [U] in place of
        "users" for routing "groups".
      batch: {"user": int32 [B], "chosen": int32 [B L], "chosen_mask": bool [B L], "rejected", "rejected_mask"}; or,
        for decoders, {"user", "tokens": int32 [B L], "parts": int32 [B L]} with rows that both texts of a pair share,
        as from `pref_jax.data.text.shared_prefix`. Without a key both give the same; dropout strikes what is shared
        once. Votes that are not all plain preferences bring the fields of `pref_jax.graded.Graded`.
      key: for gate noise and dropout; None for none of either.

    Its metrics are float scalars: "accuracy", "margin" (mean reward difference), "gate_entropy"
    (nats), "gate_weight" (mean over the chosen), "usage_E" for each expert E (fraction, mean over gates),
    "dead_experts" (those of all gates that nobody in the batch is sent to), and with balancing "balance_loss" (what it
    adds to the loss).
    """

    def loss(params, frozen, batch, key):
        noise_key, dropout_key = (None, None) if key is None else jax.random.split(key)
        users = frozen[config.routing][batch["user"]]
        decisions = route(config, params, users, noise_key)
        head = personal_head(config, params, users, None if noise_key is None else jax.random.fold_in(noise_key, 1))
        scores = _pair_rewards(config, params, frozen["base"], batch, decisions, head, dropout_key)
        total, metrics = pairwise_loss(scores, batch, params.get(GAPS))
        metrics |= _metrics(decisions)
        if config.routing == "users" and config.gate.balance != "none":
            metrics["balance_loss"] = load_balancing.auxiliary_loss(config.gate, params["gates"], decisions)
            total += metrics["balance_loss"]
        return total, metrics

    return loss


def _metrics(decisions: routing.Gates) -> dict[str, Array]:
    usage = routing.usage(decisions)
    return {
        "gate_entropy": routing.entropy(decisions),
        "gate_weight": jnp.mean(jnp.stack([gate.weight for gate in decisions.values()])),
        "dead_experts": jnp.sum(usage == 0).astype(jnp.float32),
        **{f"usage_{e}": share for e, share in enumerate(jnp.mean(usage, axis=0))},
    }


def _pair_rewards(config, params, base, batch, decisions, head, dropout_key) -> Float[Array, "B 2"]:
    """Rewards of chosen and rejected, from rows of one text each or from rows that they share."""
    if "parts" not in batch:
        decisions = routing.repeat(decisions, 2)
    adapters = lora_experts.make_adapters(params["experts"], decisions, dropout_key)
    apply = lora_experts.adapter_fn(config.mixture)
    states = pair_states(config.lm, base, batch, adapters, apply, remat=config.remat)
    return _score(head, states)


def _score(head: Mapping[str, Array], states: Float[Array, "B *texts D"]) -> Float[Array, "B *texts"]:
    """The reward of each state by everyone's head, or by that of its row's user."""
    if head["w"].ndim == 1:
        return apply_head(head, states)
    return jnp.einsum("b...d,bd->b...", states, head["w"]) + head["b"]
