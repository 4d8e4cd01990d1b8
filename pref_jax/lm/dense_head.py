"""The dense layer that encoders' classification heads have before their last linear.

BERT and DeBERTa call it the pooler, RoBERTa `classifier.dense`, ModernBERT `head`. It is computed for every token, at a
tenth of a block's cost: what is pooled behind it is then what the checkpoint's own `score` reads.

Axes: B batch, L length, D features.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pref_jax.lm import layers
from pref_jax.lm.attention import Rows
from pref_jax.lm.config import LMConfig


class DenseHead(nnx.Module):
    """act(dense x), and a norm of it in ModernBERT.

    Where the head reads the mean of a text, every token of the text gets that of the mean, so that the mean of them is
    the same.
    """

    def __init__(self, config: LMConfig, *, norm: nnx.Module | None, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        self.dense = layers.linear(d, d, bias=config.head_bias, dtype=dtype, rngs=rngs)
        if norm is not None:
            self.norm = norm

    def __call__(self, x: Float[Array, "B L D"], rows: Rows) -> Float[Array, "B L D"]:
        """What `score` reads, at each token that it may be read at."""
        if self.config.head_pooling == "mean":
            segment = rows.segment
            same = ((segment[:, :, None] == segment[:, None, :]) & (segment > 0)[:, None, :]).astype(jnp.float32)
            share = same / jnp.maximum(same.sum(axis=-1, keepdims=True), 1)
            x = jnp.einsum("blm,bmd->bld", share, x.astype(jnp.float32)).astype(x.dtype)
        x = layers.activation(self.config.head_activation)(self.dense(x))
        return self.norm(x) if hasattr(self, "norm") else x
