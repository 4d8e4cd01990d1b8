"""Low-rank adapters as plain pytrees: y = W x + (alpha / R) B A x (Hu et al. 2021, arXiv 2106.09685, section 4.1).

Axes: Z layers, D features in, F features out, R rank. An adapter tree is `{target: {"a": [Z D R], "b": [Z R F]}}`;
`backbone.hidden_states` scans it together with the blocks and hands one layer's slice to `apply`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from pref_jax.errors import UserError
from pref_jax.lm import int8

Adapters = dict[str, dict[str, Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Size and place of plain adapters.

    Attributes:
      rank: R.
      alpha: the products are scaled by alpha / R; None stands for 2R.
      dropout: probability that an input feature of the adapters is left out in training.
      targets: the adapted linears, names of `backbone.linear_shapes`.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self):
        if self.rank < 1 or not 0 <= self.dropout < 1 or not self.targets:
            raise UserError(f"{self}: rank is at least 1, dropout in [0, 1), and targets name some linear")

    @property
    def scale(self) -> float:
        """alpha / R."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank

    def wanted(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """The targets' (D, F) out of those of all linears.

        Raises:
          UserError: if a target is no linear of the model.
        """
        if unknown := sorted(set(self.targets) - set(shapes)):
            raise UserError(f"adapters: no linears named {unknown}; targets can be {sorted(shapes)}")
        return {target: shapes[target] for target in self.targets}


def init(key: Key[Array, ""], shapes: Mapping[str, tuple[int, int]], num_layers: int, rank: int) -> Adapters:
    """Fresh float32 adapters that change nothing yet: `a` ~ N(0, 1/D), `b` = 0.

    Args:
      key: typed PRNG key.
      shapes: target name -> (D, F), the wanted subset of `backbone.linear_shapes(config)`.
      num_layers: Z.
      rank: R.
    """
    adapters: Adapters = {}
    for key_, (target, (d, f)) in zip(jax.random.split(key, max(len(shapes), 1)), shapes.items(), strict=False):
        a = jax.random.normal(key_, (num_layers, d, rank)) / jnp.sqrt(jnp.float32(d))
        adapters[target] = {"a": a, "b": jnp.zeros((num_layers, rank, f))}
    return adapters


def with_keys(adapters: Mapping[str, Mapping[str, Any]], key: Key[Array, ""] | None) -> dict[str, dict[str, Any]]:
    """The adapters with a dropout key "key" [Z] for each target and layer; without a `key` as they are."""
    if key is None:
        return {target: dict(own) for target, own in adapters.items()}
    keys = jax.random.split(key, max(len(adapters), 1))
    layers = {target: len(jax.tree.leaves(own)[0]) for target, own in adapters.items()}
    return {
        target: {**own, "key": jax.random.split(keys[i], layers[target])}
        for i, (target, own) in enumerate(sorted(adapters.items()))
    }


def drop(adapter: Mapping[str, Any], x: Float[Array, "*batch D"], dropout: float) -> Float[Array, "*batch D"]:
    """Dropout of the adapters' input, if the adapter holds a key."""
    if "key" not in adapter or not dropout:
        return x
    keep = 1 - dropout
    x = jnp.where(jax.random.bernoulli(adapter["key"], keep, x.shape), x / keep, 0).astype(x.dtype)
    # Kept apart from its readers: fused with the products of gathered experts it cost a sixth of a step (CPU).
    return jax.lax.optimization_barrier(x)


def apply(
    adapter: Mapping[str, Array], x: Float[Array, "*batch D"], *, scale: float = 1.0, dropout: float = 0.0
) -> Float[Array, "*batch F"]:
    """scale * (x A) B for one layer's slice `{"a": [D R], "b": [R F]}`, in the dtype of x.

    `scale` is alpha / R; bind it with `adapter_fn(config)`. It is no leaf, so that no optimiser trains it. Dropout
    acts on x if the adapter holds a key, as from `with_keys`.
    """
    x = drop(adapter, x, dropout)
    # The scale goes on the thin side: R numbers a token instead of F.
    return ((x @ adapter["a"].astype(x.dtype)) * scale) @ adapter["b"].astype(x.dtype)


def adapter_fn(config: LoRAConfig) -> Callable[[Any, Array], Array]:
    """`apply` with the config's scale and dropout, to be passed as `apply_adapter`."""
    return functools.partial(apply, scale=config.scale, dropout=config.dropout)


def merge(params: Mapping[str, Any], adapters: Mapping[str, Mapping[str, Array]], *, scale: float = 1.0) -> dict:
    """Parameters whose kernels hold W + scale * A B, so that the adapters are no longer needed.

    The product is summed in float32 and cast back to the kernel's dtype. `params` itself is left as it was.

    Raises:
      KeyError: if an adapter names a linear that the blocks do not have.
      UserError: if the kernels are held in bytes (`pref_jax.lm.int8`), which would round the product away.
    """
    blocks = dict(params["blocks"])
    int8.need_floats(blocks, "adapters cannot be merged in")
    for target, adapter in adapters.items():
        kernel = blocks[target]["kernel"]
        update = scale * jnp.einsum("zdr,zrf->zdf", adapter["a"], adapter["b"])
        blocks[target] = {**blocks[target], "kernel": (kernel.astype(jnp.float32) + update).astype(kernel.dtype)}
    return {**params, "blocks": blocks}
