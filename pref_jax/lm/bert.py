"""BERT (Devlin et al. 2018, arXiv 1810.04805), RoBERTa (1907.11692) and XLM-R (1911.02116).

Axes: B batch, L length, D features. There is no next-token head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from pref_jax.lm import attention, layers
from pref_jax.lm.attention import AttentionFn, Rows
from pref_jax.lm.config import LMConfig
from pref_jax.lm.dense_head import DenseHead


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


def norm(config: LMConfig, *, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A norm over all features, with the families' epsilon."""
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
        self.attention_norm = norm(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = norm(config, dtype=dtype, rngs=rngs)
        for name, (d, f) in linear_shapes(config).items():
            bias = bool(config.attention_bias) if name[0] in "qkvo" else config.mlp_bias
            setattr(self, name, layers.linear(d, f, bias=bias, dtype=dtype, rngs=rngs))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Any,
        linear: layers.LinearFn,
        attend: AttentionFn,
        first: Bool[Array, ""],
    ) -> Float[Array, "B L D"]:
        """One block; `linear` calls the named linear with its adapter, `first` is of no matter here."""
        x = self.attention_norm(x + linear(self, "o_proj", self._mixed(x, context, linear, attend)))
        act = layers.activation(self.config.activation)
        return self.mlp_norm(x + linear(self, "down_proj", act(linear(self, "up_proj", x))))

    def _mixed(self, x: Array, context: Any, linear: layers.LinearFn, attend: AttentionFn) -> Array:
        q, k, v = (linear(self, n, x).reshape(*x.shape[:2], -1, self.config.head_dim) for n in QKV)
        return attend(q, k, v, context.allowed, scale=self.config.query_scale)


QKV = ("q_proj", "k_proj", "v_proj")


class Frame(nnx.Module):
    """All but the blocks: the embedding tables and their norm, and the head."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        self.embed = layers.embed(config.vocab_size, d, dtype=dtype, rngs=rngs)
        if config.absolute_positions:
            rows = config.max_positions + config.position_offset
            self.positions = layers.embed(rows, d, dtype=dtype, rngs=rngs)
        if config.type_vocab_size:
            self.types = layers.embed(config.type_vocab_size, d, dtype=dtype, rngs=rngs)
        self.embed_norm = norm(config, dtype=dtype, rngs=rngs)
        if config.dense_head:
            self.score = layers.linear(d, config.num_labels, bias=True, dtype=dtype, rngs=rngs)
            self.head = DenseHead(config, norm=None, dtype=dtype, rngs=rngs)

    def embedded(self, tokens: Int32[Array, "B L"], rows: Rows) -> Float[Array, "B L D"]:
        """The normed sum of the tables' rows."""
        x = self.embed(tokens)
        if self.config.absolute_positions:
            x = x + self.positions(rows.position + self.config.position_offset)
        if self.config.type_vocab_size:
            x = x + self.types(token_types(tokens, rows, self.config.type_separator))
        return self.embed_norm(x)

    def enter(self, tokens: Int32[Array, "B L"], rows: Rows) -> tuple[Float[Array, "B L D"], tuple[Context, ...]]:
        """Embedded tokens, and what all layers need to know about the rows."""
        return self.embedded(tokens, rows), (Context(attention.visible(rows, causal=False)),)

    def leave(self, x: Float[Array, "B L D"], rows: Rows) -> Float[Array, "B L D"]:
        """The dense layer of the head; without one `x` itself, for the last block ends with a norm."""
        return self.head(x, rows) if self.config.dense_head and self.config.reads_score else x
