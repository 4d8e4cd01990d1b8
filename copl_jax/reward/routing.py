"""Which expert serves which user: a small MLP on the user's embedding for every adapted linear (arXiv 2503.01658).

g = softmax((MLP(e_u) + eps) / tau); the K experts of the highest g are chosen, and the output of each is scaled by its
g_k, through which the gate learns. Gates know embeddings only; `fixed` stands in where the expert is given (a group's
own, for the oracle).

Axes: B batch, D features of a user embedding, H hidden features, E experts, K chosen ones, Z layers of the transformer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key

from pref_jax.errors import UserError

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Sizes and temperature of the gates, and how users are spread over experts.

    Attributes:
      hidden: H.
      noise: standard deviation of eps, added to the logits in training.
      temperature: tau.
      top_k: K, experts of each user beside the shared one. Their weights are the softmax's, not scaled to sum to 1.
      balance: what keeps experts from dying, see `copl_jax.reward.load_balancing`: nothing, a "loss", or a "bias" of
      the logits.
      balance_weight: of that loss.
      balance_rate: how far that bias moves in the first step, in units of the logits.
    """

    hidden: int = 256
    noise: float = 0.1
    temperature: float = 1.0
    top_k: int = 1
    balance: Literal["none", "loss", "bias"] = "none"
    balance_weight: float = 0.3
    balance_rate: float = 0.5

    def __post_init__(self):
        if self.hidden < 1 or self.noise < 0 or not self.temperature > 0 or self.top_k < 1:
            raise UserError(f"{self}: hidden is at least 1, noise at least 0, temperature above 0, top_k at least 1")
        if self.balance not in ("none", "loss", "bias"):
            raise UserError(f"GateConfig.balance is {self.balance!r}; write 'none', 'loss' or 'bias'")
        if self.balance_weight < 0 or self.balance_rate < 0:
            raise UserError(f"{self}: balance_weight and balance_rate are at least 0")


class Gate(NamedTuple):
    """The decisions of one target's gates, one a layer.

    Attributes:
      choice: int32 [Z B K], the experts of each example, the preferred one first.
      weight: float [Z B K], their probabilities.
      probabilities: float [Z B E], of all experts.
    """

    choice: Int32[Array, "Z B K"]
    weight: Float[Array, "Z B K"]
    probabilities: Float[Array, "Z B E"]


Gates = dict[str, Gate]


def init(
    config: GateConfig, key: Key[Array, ""], targets: Sequence[str], *, num_layers: int, dim: int, num_experts: int
) -> Params:
    """Fresh float32 gates: {target: {"hidden": {"kernel": [Z D H], "bias": [Z H]}, "out": {"kernel": [Z H E], ...}}}.

    With `config.balance` "bias" each target also has "balance": [Z E], zeros at first.

    User embeddings have length 1, so the first kernel has variance 1, not 1/D: otherwise all logits would start far
    below the noise and users would be sent about at random. Each expert's last column sums to 0 over H: what all users
    have in common cancels, so no expert starts out of everyone's reach.
    """
    params: Params = {}
    for key_, target in zip(jax.random.split(key, max(len(targets), 1)), targets, strict=False):
        hidden_key, out_key = jax.random.split(key_)
        last = jax.random.normal(out_key, (num_layers, config.hidden, num_experts)) * (2 / config.hidden) ** 0.5
        params[target] = {
            "hidden": {
                "kernel": jax.random.normal(hidden_key, (num_layers, dim, config.hidden)),
                "bias": jnp.zeros((num_layers, config.hidden)),
            },
            "out": {
                "kernel": last - jnp.mean(last, axis=1, keepdims=True),
                "bias": jnp.zeros((num_layers, num_experts)),
            },
        }
        if config.balance == "bias":
            params[target]["balance"] = jnp.zeros((num_layers, num_experts))
    return params


def route(
    config: GateConfig,
    params: Mapping[str, Any],
    embeddings: Float[Array, "B D"],
    key: Key[Array, ""] | None = None,
) -> Gates:
    """The gates' decisions for each example's user; a `key` adds the noise of training."""
    keys = jax.random.split(key, max(len(params), 1)) if key is not None else [None] * len(params)
    return {
        target: _route(config, own, embeddings, key_)
        for key_, (target, own) in zip(keys, sorted(params.items()), strict=False)
    }


def one_hot_routing(choice: Int[Array, " B"], targets: Sequence[str], *, num_layers: int, num_experts: int) -> Gates:
    """Gates that send each example to the given expert, in all targets and layers, with weight 1."""
    choice = jnp.broadcast_to(choice.astype(jnp.int32)[None, :, None], (num_layers, len(choice), 1))
    probabilities = jax.nn.one_hot(choice[..., 0], num_experts)
    gate = Gate(choice=choice, weight=jnp.ones_like(choice, probabilities.dtype), probabilities=probabilities)
    return dict.fromkeys(targets, gate)


def repeat(gates: Gates, times: int) -> Gates:
    """The decisions of B examples for B·times rows, each example's rows following one another."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=1), gates)


def expert_load(gate: Gate) -> Float[Array, "Z E"]:
    """Fraction of the batch's choices (K an example) that falls on each expert; rows sum to 1. It has no gradient."""
    return jnp.mean(jax.nn.one_hot(gate.choice, gate.probabilities.shape[-1]), axis=(1, 2))


def usage(gates: Gates) -> Float[Array, "G E"]:
    """`load` of all G gates, targets x layers."""
    return jnp.concatenate([expert_load(gate) for gate in gates.values()])


def entropy(gates: Gates) -> Float[Array, ""]:
    """Mean entropy of the gates' probabilities in nats: 0 decided, log E undecided."""
    probabilities = jnp.concatenate([gate.probabilities for gate in gates.values()])
    return -jnp.mean(jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities), axis=-1))


def _route(config: GateConfig, params: Mapping[str, Any], embeddings: Array, key: Array | None) -> Gate:
    hidden = jnp.einsum("bd,zdh->zbh", embeddings, params["hidden"]["kernel"]) + params["hidden"]["bias"][:, None, :]
    logits = (
        jnp.einsum("zbh,zhe->zbe", jax.nn.relu(hidden), params["out"]["kernel"]) + params["out"]["bias"][:, None, :]
    )
    if key is not None:
        logits = logits + config.noise * jax.random.normal(key, logits.shape, logits.dtype)
    if "balance" in params:
        # In the weights too: an expert chosen against its probability would have no weight, and so learn nothing.
        logits = logits + jax.lax.stop_gradient(params["balance"])[:, None, :]
    probabilities = jax.nn.softmax(logits / config.temperature, axis=-1)
    choice = jax.lax.top_k(jax.lax.stop_gradient(logits), config.top_k)[1]
    weight = jnp.take_along_axis(probabilities, choice, axis=-1)
    return Gate(choice=choice, weight=weight, probabilities=probabilities)
