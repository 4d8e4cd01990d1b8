"""A mixture of LoRA experts, one shared and K of E chosen for each example, beside a frozen linear (arXiv 2503.01658).

    y = W0 x + s B_s A_s x + sum over the chosen k of g_k s B_k A_k x

Only the chosen experts of each example are gathered. Shared and chosen stand side by side along the rank, so that an
example costs two products of rank (1 + K) R, however many experts there are.

Axes: B batch, L length, D features in, F features out, E experts, K chosen ones, R rank, Z layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from copl_jax.reward.routing import Gates
from pref_jax.errors import UserError
from pref_jax.lm import lora

Params = dict[str, Any]
Adapters = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """How many experts, how large, and where.

    Attributes:
      num_experts: E, beside the shared one.
      rank: R of each expert.
      alpha: the products are scaled by s = alpha / R; None stands for 2R.
      dropout: probability that an input feature of the experts is left out in training.
      targets: the adapted linears, names of `backbone.linear_shapes`.
    """

    num_experts: int = 8
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self):
        if self.num_experts < 1 or self.rank < 1 or not 0 <= self.dropout < 1 or not self.targets:
            raise UserError(
                f"{self}: num_experts and rank are at least 1, dropout in [0, 1), and targets name some linear"
            )

    @property
    def scale(self) -> float:
        """s = alpha / R."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank


def init(config: ExpertsConfig, key: Key[Array, ""], shapes: Mapping[str, tuple[int, int]], num_layers: int) -> Params:
    """Fresh float32 experts that change nothing yet: A ~ N(0, 1/D), B = 0.

    Args:
      config: see there.
      key: typed PRNG key.
      shapes: (D, F) of all linears, as from `backbone.linear_shapes`.
      num_layers: Z.

    Returns:
      {target: {"shared": {"a": [Z D R], "b": [Z R F]}, "experts": {"a": [Z E D R], "b": [Z E R F]}}}.

    Raises:
      UserError: if a target is no linear of the model.
    """
    if unknown := sorted(set(config.targets) - set(shapes)):
        raise UserError(f"experts: no linears named {unknown}; targets can be {sorted(shapes)}")
    wanted = {target: shapes[target] for target in config.targets}
    shared_key, experts_key = jax.random.split(key)
    params: Params = {target: {"shared": own} for target, own in _lora(shared_key, wanted, num_layers, config).items()}
    for target, own in _lora(experts_key, wanted, num_layers * config.num_experts, config).items():
        params[target]["experts"] = {
            name: leaf.reshape(num_layers, config.num_experts, *leaf.shape[1:]) for name, leaf in own.items()
        }
    return params


def make_adapters(params: Mapping[str, Any], gates: Gates, key: Key[Array, ""] | None = None) -> Adapters:
    """Adapters of one batch, to be handed to `backbone.hidden_states` beside `applied(config)`.

    Args:
      params: as from `init`.
      gates: decisions for each row of the batch.
      key: given in training, for the dropout; each target and layer draws its own.

    Returns:
      {target: pytree with leading axis Z}: the experts, "choice" and "weight" [Z B K], "key" [Z] if there is one.
    """
    adapters: Adapters = lora.with_keys(params, key)
    for target, own in adapters.items():
        own |= {"choice": gates[target].choice, "weight": gates[target].weight}
    return adapters


def apply(
    adapter: Mapping[str, Any], x: Float[Array, "B L D"], *, scale: float, dropout: float = 0.0
) -> Float[Array, "B L F"]:
    """s B_s A_s x + sum of g_k s B_k A_k x for one layer's slice of `bind`'s adapters, in the dtype of x.

    Dropout acts on x, with one mask for the shared and the chosen experts, if the adapter holds a key.
    """
    x = lora.drop(adapter, x, dropout)
    own = jax.tree.map(lambda leaf: leaf.astype(x.dtype), _side_by_side(adapter, scale))
    return jnp.einsum("blr,brf->blf", jnp.einsum("bld,bdr->blr", x, own["a"]), own["b"])


def to_single_lora(params: Mapping[str, Any], gates: Gates, *, scale: float) -> lora.Adapters:
    """One user's mixture as plain LoRA of rank (1 + K) R, with scale and weights in it, for `lora.apply`.

    Args:
      params: as from `init`.
      gates: that user's decisions, B = 1.
      scale: s.

    Returns:
      {target: {"a": [Z D (1+K)R], "b": [Z (1+K)R F]}}.

    Raises:
      UserError: if the gates decide for several users.
    """
    rows = {gate.choice.shape[1] for gate in gates.values()}
    if rows - {1}:
        raise UserError(f"experts.fold: gates for {max(rows)} rows; fold the experts of one user at a time")
    folded: lora.Adapters = {}
    for target, own in make_adapters(params, gates).items():
        both = jax.vmap(functools.partial(_side_by_side, scale=scale))(own)
        folded[target] = {name: leaf[:, 0] for name, leaf in both.items()}
    return folded


def merge(base: Mapping[str, Any], params: Mapping[str, Any], gates: Gates, *, scale: float) -> Params:
    """The transformer of one user: its kernels hold W + s A_s B_s + sum of g_k s A_k B_k, and it needs no adapters.

    Args:
      base: the frozen transformer's parameters; left as they are.
      params: as from `init`.
      gates: that user's decisions, B = 1.
      scale: s.

    Raises:
      UserError: as `fold`.
    """
    return lora.merge(base, to_single_lora(params, gates, scale=scale))


def _side_by_side(adapter: Mapping[str, Any], scale: float) -> dict[str, Array]:
    """Each example's LoRA of rank (1 + K) R, scale and weights in it: {"a": [B D (1+K)R], "b": [B (1+K)R F]}."""
    shared, weight = adapter["shared"], adapter["weight"]
    batch = len(weight)
    chosen = jax.tree.map(lambda leaf: leaf[adapter["choice"]], adapter["experts"])
    a = jnp.moveaxis(chosen["a"], 1, 2).reshape(batch, chosen["a"].shape[2], -1)
    b = (weight[:, :, None, None] * chosen["b"]).reshape(batch, -1, chosen["b"].shape[3])
    tiled = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (batch, *leaf.shape)), shared)
    return {"a": jnp.concatenate([tiled["a"], a], axis=2), "b": scale * jnp.concatenate([tiled["b"], b], axis=1)}


def adapter_fn(config: ExpertsConfig) -> Callable[[Any, Array], Array]:
    """`apply` with the config's scale and dropout, to be passed as `apply_adapter`."""
    return functools.partial(apply, scale=config.scale, dropout=config.dropout)


def _lora(key: Array, shapes: Mapping[str, tuple[int, int]], count: int, config: ExpertsConfig) -> Params:
    return {target: dict(own) for target, own in lora.init(key, shapes, count, config.rank).items()}
