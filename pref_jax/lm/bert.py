"""The BERT family of encoders (Devlin et al. 2018, arXiv 1810.04805) in the layout of Hugging Face checkpoints.

Axes: B batch, L length, D features. There is no pooler and no next-token head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from pref_jax.lm import attention, layers
from pref_jax.lm.attention import AttentionFn, Rows
from pref_jax.lm.config import LMConfig


class Context(NamedTuple):
    """What every layer needs besides its input."""

    allowed: Bool[Array, "B 1 L L"]


def linear_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of every linear of a block, under the names of the other families (BERT's MLP has no gate)."""
    d, wide, heads = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    return {
        "q_proj": (d, heads),
        "k_proj": (d, heads),
        "v_proj": (d, heads),
        "o_proj": (heads, d),
        "up_proj": (d, wide),
        "down_proj": (wide, d),
    }


def _norm(config: LMConfig, *, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.hidden_size, epsilon=config.norm_eps, param_dtype=dtype, rngs=rngs)


def token_types(tokens: Int32[Array, "B L"], rows: Rows, separator: int | None) -> Int32[Array, "B L"]:
    """0 in the first text of a pair, 1 in the second: behind the first separator, as BERT's tokenizers tell them."""
    if separator is None:
        return jnp.zeros_like(tokens)
    ends = ((tokens == separator) & (rows.segment > 0)).astype(jnp.int32)
    before = jnp.cumsum(ends, axis=1) - ends
    # Of other texts packed into the same row, before this one.
    foreign = jax.lax.cummax(jnp.where((rows.position == 0) & (rows.segment > 0), before, 0), axis=1)
    return (before > foreign).astype(tokens.dtype)


class Block(nnx.Module):
    """norm(x + attention x), then norm(x + down(act(up x)))."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = _norm(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = _norm(config, dtype=dtype, rngs=rngs)
        for name, (d, f) in linear_shapes(config).items():
            bias = bool(config.attention_bias) if name[0] in "qkvo" else config.mlp_bias
            setattr(self, name, layers.linear(d, f, bias=bias, dtype=dtype, rngs=rngs))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Context,
        linear: layers.LinearFn,
        attend: AttentionFn,
        first: Bool[Array, ""],
    ) -> Float[Array, "B L D"]:
        """One block; `linear` calls the named linear with its adapter, `first` is of no matter here."""
        q, k, v = (linear(self, n, x).reshape(*x.shape[:2], -1, self.config.head_dim) for n in _QKV)
        mixed = attend(q, k, v, context.allowed, scale=self.config.query_scale)
        x = self.attention_norm(x + linear(self, "o_proj", mixed))
        act = layers.activation(self.config.activation)
        return self.mlp_norm(x + linear(self, "down_proj", act(linear(self, "up_proj", x))))


_QKV = ("q_proj", "k_proj", "v_proj")


class Frame(nnx.Module):
    """All but the blocks: the three embedding tables and their norm."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.embed = layers.embed(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.positions = layers.embed(config.max_positions, config.hidden_size, dtype=dtype, rngs=rngs)
        self.types = layers.embed(config.type_vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.embed_norm = _norm(config, dtype=dtype, rngs=rngs)

    def enter(self, tokens: Int32[Array, "B L"], rows: Rows) -> tuple[Float[Array, "B L D"], tuple[Context, ...]]:
        """Embedded tokens, and what all layers need to know about the rows."""
        types = token_types(tokens, rows, self.config.type_separator)
        x = self.embed(tokens) + self.positions(rows.position) + self.types(types)
        return self.embed_norm(x), (Context(attention.visible(rows, causal=False)),)

    def leave(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Nothing: the last block ends with a norm."""
        return x
