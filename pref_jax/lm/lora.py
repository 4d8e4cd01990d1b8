"""Low-rank adapters as plain pytrees: y = W x + (alpha / R) B A x (Hu et al. 2021, arXiv 2106.09685, section 4.1).

Axes: Z layers, D features in, F features out, R rank. An adapter tree is `{target: {"a": [Z D R], "b": [Z R F]}}`;
`backbone.hidden_states` scans it together with the blocks and hands one layer's slice to `apply`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Adapters = dict[str, dict[str, Array]]


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


def apply(adapter: Mapping[str, Array], x: Float[Array, "*batch D"], *, scale: float = 1.0) -> Float[Array, "*batch F"]:
    """scale * (x A) B for one layer's slice `{"a": [D R], "b": [R F]}`.

    `scale` is alpha / R; bind it with `scaled(alpha, rank)`. It is no leaf, so that no optimiser trains it.
    """
    # The scale goes on the thin side: R numbers a token instead of F.
    return ((x @ adapter["a"]) * scale) @ adapter["b"]


def scaled(*, alpha: float, rank: int) -> Callable[[Any, Array], Array]:
    """`apply` with scale = alpha / rank, to be passed as `apply_adapter`."""
    return functools.partial(apply, scale=alpha / rank)


def merge(params: Mapping[str, Any], adapters: Mapping[str, Mapping[str, Array]], *, scale: float = 1.0) -> dict:
    """Parameters whose kernels hold W + scale * A B, so that the adapters are no longer needed.

    The product is summed in float32 and cast back to the kernel's dtype. `params` itself is left as it was.

    Raises:
      KeyError: if an adapter names a linear that the blocks do not have.
    """
    blocks = dict(params["blocks"])
    for target, adapter in adapters.items():
        kernel = blocks[target]["kernel"]
        update = scale * jnp.einsum("zdr,zrf->zdf", adapter["a"], adapter["b"])
        blocks[target] = {**blocks[target], "kernel": (kernel.astype(jnp.float32) + update).astype(kernel.dtype)}
    return {**params, "blocks": blocks}
