"""What all families are built from: linears, norms, rotation, activations.

Axes: B batch, L length, N heads, H head features, D features.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from pref_jax.lm.config_parts import Pattern, RopeScaling

# (block, name of one of its linears, input) -> output, with whatever adapter is attached to that name.
LinearFn = Callable[[nnx.Module, str, Array], Array]

# Normal with deviation 0.02, as most families were trained.
KERNEL_INIT = nnx.initializers.normal(0.02)


def linear(d: int, f: int, *, bias: bool, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear with the families' initial values."""
    return nnx.Linear(d, f, use_bias=bias, param_dtype=dtype, kernel_init=KERNEL_INIT, rngs=rngs)


def embed(n: int, d: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Embed:
    """An embedding table with the families' initial values."""
    return nnx.Embed(n, d, param_dtype=dtype, embedding_init=KERNEL_INIT, rngs=rngs)


def root_mean_square_normed(x: Float[Array, "*batch D"], eps: float, size: Any = None) -> Float[Array, "*batch D"]:
    """x / sqrt(mean x² + eps) in float32; given a `size`, the mean is over so many features, all others being 0."""
    wide = x.astype(jnp.float32)
    square = wide * wide
    mean = jnp.mean(square, axis=-1, keepdims=True) if size is None else square.sum(axis=-1, keepdims=True) / size
    return wide * jax.lax.rsqrt(mean + eps)


class RMSNorm(nnx.Module):
    """x / sqrt(mean x² + eps) * scale over the last axis, in float32 (Zhang and Sennrich 2019, arXiv 1910.07467).

    With `offset` the factor is 1 + scale, as in Gemma, whose scales lie around 0: nnx.RMSNorm has no such form, and
    adding 1 while loading would round small scales away in bfloat16.
    """

    def __init__(self, size: int, *, eps: float, offset: bool, dtype: Any):
        self.eps, self.offset = eps, offset
        self.scale = nnx.Param(jnp.full((size,), 0.0 if offset else 1.0, dtype))

    def __call__(self, x: Float[Array, "*batch D"], size: Any = None) -> Float[Array, "*batch D"]:
        """The normed `x`, in its own dtype; `size` as in `root_mean_square_normed`."""
        normed = root_mean_square_normed(x, self.eps, size)
        scale = self.scale[...].astype(jnp.float32) + (1.0 if self.offset else 0.0)
        return (normed * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def rotary_frequencies(head_dim: int, pattern: Pattern) -> np.ndarray:
    """Float32 [H/2] angular frequencies, theta^(-2i/H), stretched as `pattern.scaling` says; 0 without a theta."""
    if pattern.theta is None:
        return np.zeros(head_dim // 2, np.float32)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    frequencies = 1.0 / np.float32(pattern.theta) ** exponents
    scaling = pattern.scaling
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    if scaling.kind == "proportional":
        turning = np.arange(head_dim // 2) < int(scaling.share * head_dim // 2)
        return np.where(turning, frequencies / np.float32(scaling.factor), np.float32(0))
    if scaling.kind == "longrope":
        return frequencies / np.asarray(scaling.short_factor, np.float32)
    if scaling.kind == "llama3":
        turns = scaling.original_max_positions * frequencies / (2 * math.pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    else:
        keep = _yarn_keeps(head_dim, pattern.theta, scaling)
    keep = np.clip(keep, 0.0, 1.0)
    return (frequencies * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def _yarn_keeps(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """[H/2] how much of each frequency stays, before it is clipped to 0 and 1: linear in the frequency's number between
    those that turn `beta_fast` and `beta_slow` times in the trained length (arXiv 2309.00071, section 3.2).
    """

    def number(turns: float) -> float:
        """Of the frequency that makes so many turns."""
        return head_dim * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = number(scaling.beta_fast), number(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    return 1 - (np.arange(head_dim // 2) - first) / (last - first or 0.001)


def rotary_table(
    head_dim: int, pattern: Pattern, position: Int32[Array, "B L"], width: int | None = None
) -> tuple[Float[Array, "B L 1 H"], Float[Array, "B L 1 H"]]:
    """Float32 cosines and signed sines of each position's angles, for `rotate`; one row serves all heads.

    Given a `width`, each half of a head is followed by features that do not turn, up to so many in all.
    """
    frequencies = rotary_frequencies(head_dim, pattern)
    if width is not None:
        frequencies = np.pad(frequencies, (0, (width - head_dim) // 2))
    factor = 1.0 if pattern.scaling is None else pattern.scaling.attention_factor
    angles = position[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = factor * jnp.cos(angles), factor * jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x: Float[Array, "B L N H"], cos: Float[Array, "B L 1 R"], sin: Float[Array, "B L 1 R"]) -> Array:
    """Turns the pair (x_i, x_{i + R/2}) by its angle (the half-split layout of Hugging Face); keeps x's dtype.

    Features beyond the first R stay as they are.
    """
    x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    half = x.shape[-1] // 2
    swapped = jnp.concatenate([x[..., half:], x[..., :half]], axis=-1)
    turned = (x * cos + swapped * sin).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def query_growth(pattern: Pattern, position: Int32[Array, "B L"]) -> Float[Array, "B L 1 1"] | None:
    """What queries are multiplied by at each position, see `RopeScaling.query_beta`; None where there is no such."""
    scaling = pattern.scaling
    if scaling is None or not scaling.query_beta:
        return None
    periods = jnp.floor(position[:, :, None, None] / scaling.original_max_positions)
    return 1 + scaling.query_beta * jnp.log1p(periods)


def softcap(x: Float[Array, "*batch"], cap: float | None) -> Float[Array, "*batch"]:
    """c tanh(x / c): about x where x is small, never beyond c; `x` itself without a cap (Gemma 2, section 2.2)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


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
        "tanh": jnp.tanh,
    }
    return table[name]


def _exact_gelu(x: Array) -> Array:
    """x Phi(x) through erf: `jax.nn.gelu(approximate=False)` takes erfc, which costs more on CPU (measured)."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * np.asarray(math.sqrt(0.5), x.dtype)))
