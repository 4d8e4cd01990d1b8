"""What both families are built from: masks, positions, rotation, attention, activations.

Axes: B batch, L length (queries), S length (keys), N query heads, K key and value heads, H head features, D features.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32

from pref_jax.lm.config import LMConfig

# (block, name of one of its linears, input) -> output, with whatever adapter is attached to that name.
LinearFn = Callable[[nnx.Module, str, Array], Array]

# Normal with deviation 0.02, as both families were trained.
KERNEL_INIT = nnx.initializers.normal(0.02)


def linear(d: int, f: int, *, bias: bool, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear with the families' initial values."""
    return nnx.Linear(d, f, use_bias=bias, param_dtype=dtype, kernel_init=KERNEL_INIT, rngs=rngs)


def embed(n: int, d: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Embed:
    """An embedding table with the families' initial values."""
    return nnx.Embed(n, d, param_dtype=dtype, embedding_init=KERNEL_INIT, rngs=rngs)


def positions(mask: Bool[Array, "B L"]) -> Int32[Array, "B L"]:
    """0, 1, 2, ... over the real tokens of each row, wherever the padding is; padding before them gets 0."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def attend_mask(mask: Bool[Array, "B L"], *, causal: bool) -> Bool[Array, "B 1 L L"]:
    """True where a query (third axis) may look at a key (last axis): never at padding, nor ahead if `causal`."""
    length = mask.shape[1]
    allowed = jnp.broadcast_to(mask[:, None, None, :], (mask.shape[0], 1, length, length))
    return allowed & jnp.tril(jnp.ones((1, 1, length, length), bool)) if causal else allowed


def attention(
    q: Float[Array, "B L N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], allowed: Bool[Array, "B 1 L S"]
) -> Float[Array, "B L D"]:
    """softmax(q kᵀ / sqrt(H)) v with the softmax in float32; heads are joined again on the way out (D = N H).

    N / K query heads share each key head. A query that may look nowhere gets the plain mean of all values: defined,
    finite, and of no matter.
    """
    b, length, n, h = q.shape
    groups = n // k.shape[2]
    # Heads first (G query heads to a key head), so that every product is over plain matrices: on CPU, products that
    # leave the heads in the middle cost five times as much.
    q = (q * h**-0.5).reshape(b, length, -1, groups, h).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bkglh,bksh->bkgls", q, k, preferred_element_type=jnp.float32)
    scores = scores + jnp.where(allowed, 0.0, -1e30)[:, :, None]
    # Normalising after the product with v divides H numbers a query instead of S, and halves the backward pass
    # against jax.nn.dot_product_attention on CPU. The shift cancels out, so no gradient goes through it.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("bkgls,bksh->bkglh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    mixed = (mixed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, length, n * h)


def rotary_frequencies(config: LMConfig) -> np.ndarray:
    """Float32 [H/2] angular frequencies, theta^(-2i/H), stretched as `config.rope_scaling` says."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = 1.0 / np.float32(config.rope_theta) ** exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (frequencies * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def rotary_table(config: LMConfig, where: Int[Array, "B L"]) -> tuple[Float[Array, "B L 1 H"], Float[Array, "B L 1 H"]]:
    """Float32 cosines and signed sines of each position's angles, for `rotate`; one row serves all heads."""
    angles = where[:, :, None, None].astype(jnp.float32) * rotary_frequencies(config)[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x: Float[Array, "B L N H"], cos: Float[Array, "B L 1 H"], sin: Float[Array, "B L 1 H"]) -> Array:
    """Turns the pair (x_i, x_{i + H/2}) by its angle (the half-split layout of Hugging Face); keeps x's dtype."""
    half = x.shape[-1] // 2
    swapped = jnp.concatenate([x[..., half:], x[..., :half]], axis=-1)
    return (x * cos + swapped * sin).astype(x.dtype)


def activation(name: str) -> Callable[[Array], Array]:
    """The function behind a Hugging Face activation name; `gelu` is the exact one.

    Raises:
      KeyError: for a name outside `config.ACTIVATIONS`.
    """
    tanh_gelu = jax.nn.gelu
    table = {
        "silu": jax.nn.silu,
        "gelu": _exact_gelu,
        "gelu_new": tanh_gelu,
        "gelu_pytorch_tanh": tanh_gelu,
        "relu": jax.nn.relu,
    }
    return table[name]


def _exact_gelu(x: Array) -> Array:
    """x Phi(x) through erf: `jax.nn.gelu(approximate=False)` takes erfc, which costs more on CPU (measured)."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * np.asarray(math.sqrt(0.5), x.dtype)))
