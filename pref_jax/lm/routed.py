"""An MLP of many parts, of which a router picks a few for each token.

Qwen 3 MoE (arXiv 2505.09388) and gpt-oss (2508.10925).

Tokens are sorted by part, so that each part is one matrix product over its own tokens; none is dropped.

Axes: T tokens, D features, F width of a part, E parts, K parts of a token.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from pref_jax.lm import layers
from pref_jax.lm.config import LMConfig
from pref_jax.lm.config_parts import Experts

# The slope of gpt-oss's gate.
_ALPHA = 1.702


def route(logits: Float[Array, "T E"], experts: Experts) -> tuple[Float[Array, "T K"], Int32[Array, "T K"]]:
    """The weights and numbers of each token's parts, by the router's scores."""
    if experts.scores == "chosen":
        best, chosen = jax.lax.top_k(logits, experts.per_token)
        return jax.nn.softmax(best, axis=-1), chosen
    best, chosen = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), experts.per_token)
    best = best / best.sum(axis=-1, keepdims=True) if experts.scores == "normalised" else best
    return best.astype(logits.dtype), chosen


class RoutedMLP(nnx.Module):
    """The sum over a token's parts of weight * down(act(gate x) * up x)."""

    def __init__(self, config: LMConfig, experts: Experts, *, dtype: Any, rngs: nnx.Rngs):
        self.config, self.experts = config, experts
        d, f = config.hidden_size, config.intermediate_size
        # In gpt-oss gate and up take turns along one axis, and everything has a bias.
        whole = experts.clamp is not None
        self.router = layers.linear(d, experts.count, bias=whole, dtype=dtype, rngs=rngs)
        shapes = {"gate_up": (d, 2 * f), "down": (f, d)} if whole else {"gate": (d, f), "up": (d, f), "down": (f, d)}
        for name, (into, out) in shapes.items():
            kernel = layers.KERNEL_INIT(rngs.params(), (experts.count, into, out), dtype)
            setattr(self, name, nnx.Param(kernel))
            if whole:
                setattr(self, f"{name}_bias", nnx.Param(jnp.zeros((experts.count, out), dtype)))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """What is added to the residual."""
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = route(self.router(flat), self.experts)
        numbers = chosen.reshape(-1)
        order = jnp.argsort(numbers)
        token, numbers = order // self.experts.per_token, numbers[order]
        sizes = jnp.bincount(numbers, length=self.experts.count)

        def part(name: str, h: Array) -> Array:
            out = jax.lax.ragged_dot(h, getattr(self, name)[...], sizes)
            bias = getattr(self, f"{name}_bias", None)
            return out if bias is None else out + bias[...][numbers]

        out = part("down", self._gated(part, flat[token])) * weights.reshape(-1)[order][:, None]
        return jnp.zeros_like(flat).at[token].add(out.astype(flat.dtype)).reshape(x.shape)

    def _gated(self, part: Any, h: Array) -> Array:
        clamp = self.experts.clamp
        if clamp is None:
            return layers.activation(self.config.activation)(part("gate", h)) * part("up", h)
        both = part("gate_up", h)
        gate, up = jnp.minimum(both[:, ::2], clamp), jnp.clip(both[:, 1::2], -clamp, clamp)
        return (up + 1) * gate * jax.nn.sigmoid(gate * _ALPHA)
