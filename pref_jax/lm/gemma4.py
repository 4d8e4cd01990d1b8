"""Gemma 4's decoder: sliding layers and layers that see everything are of different sizes.

To a decoder's block it adds: values are normed, without a scale; the last layers read the keys and values of earlier
ones (`backbone` lends them); and each layer reads an embedding of its own of every token,

    x <- x + norm(out(act(gate x) * e_l)),  e_l = (t_l[token] sqrt(P) + norm(W_l x_0 / sqrt(D))) / sqrt(2)

with x_0 the embedded token. What leaves a layer is multiplied by a number of the layer, which is not trained.

Layers are stacked to the sizes of the widest, as `layer_sizes` says; what a layer does not have is masked.

Axes: B batch, L length, D features, Z layers, P features of a token's embedding for a layer, H head features, K key
heads, F width of the MLP.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from pref_jax import sharding
from pref_jax.lm import decoder, layer_sizes, layers
from pref_jax.lm.attention import AttentionFn, Rows
from pref_jax.lm.config import LMConfig
from pref_jax.lm.config_parts import Gemma4
from pref_jax.lm.decoder import Context


class Heads(NamedTuple):
    """What layers of one kind have of the stack's heads.

    Attributes:
      real: true at the features of a head.
      size: how many these are.
      source: for each of the stack's key heads, which of the layer's stands there.
      keys_as_values: there is no projection of values.
    """

    real: Bool[Array, "1 1 1 H"]
    size: Float[Array, ""]
    source: Int32[Array, " K"]
    keys_as_values: Bool[Array, ""]


class LayerInput(NamedTuple):
    """What one layer alone reads: a row of `embedded` for each token, and where its MLP has features."""

    embedded: Float[Array, "B L P"] | None
    mlp: Bool[Array, "1 1 F"]


def _settings(config: LMConfig) -> Gemma4:
    if config.gemma4 is None:
        raise ValueError("this family has sizes by kind of layer; LMConfig checks it")
    return config.gemma4


def _stacked(config: LMConfig) -> LMConfig:
    """The config of a decoder all of whose layers are of the stack's sizes."""
    head, kv, mlp = layer_sizes.largest(config)
    return dataclasses.replace(
        config,
        head_dim=head,
        num_kv_heads=kv,
        intermediate_size=mlp,
        gemma4=dataclasses.replace(_settings(config), full_head_dim=head, full_kv_heads=kv),
    )


def _per_layer_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    d, p = config.hidden_size, _settings(config).per_layer
    return {"per_layer_gate_proj": (d, p), "per_layer_out_proj": (p, d)} if p else {}


def linear_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of every linear of a block, of the stack's sizes."""
    return {**decoder.linear_shapes(_stacked(config)), **_per_layer_shapes(config)}


class Block(decoder.Block):
    """A decoder's block, of the stack's sizes, then what the layer's own embedding of the token adds."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(_stacked(config), dtype=dtype, rngs=rngs)
        for name, (d, f) in _per_layer_shapes(config).items():
            setattr(self, name, layers.linear(d, f, bias=False, dtype=dtype, rngs=rngs))
        if _settings(config).per_layer:
            self.per_layer_norm = decoder.norm(config, config.hidden_size, dtype=dtype, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.ones((1,), dtype))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Context,
        linear: layers.LinearFn,
        attend: AttentionFn,
        first: Bool[Array, ""],
    ) -> Float[Array, "B L D"]:
        """One block; arguments as a decoder's."""
        own: LayerInput = context.layer

        def cut(block: nnx.Module, name: str, x: Array) -> Array:
            return linear(block, name, jnp.where(own.mlp, x, 0) if name == "down_proj" else x)

        x = super().__call__(x, context, cut, attend, first)
        if own.embedded is not None:
            gate = layers.activation(self.config.activation)(linear(self, "per_layer_gate_proj", x))
            x = x + self.per_layer_norm(linear(self, "per_layer_out_proj", gate * own.embedded))
        # A buffer in the reference, so no gradient goes there.
        return x * jax.lax.stop_gradient(self.layer_scale[...]).reshape(1, 1, 1)

    def _attention(self, h: Array, context: Context, linear: layers.LinearFn, attend: AttentionFn) -> Array:
        own: Heads = context.heads
        shape = (*h.shape[:2], -1, self.config.head_dim)
        q, k, v = (
            jnp.where(own.real, linear(self, name, h).reshape(shape), 0) for name in ("q_proj", "k_proj", "v_proj")
        )
        v = jnp.where(own.keys_as_values, k, v)
        q, k = (getattr(self, name)(t, own.size) for name, t in (("q_norm", q), ("k_norm", k)))
        q, k = (layers.rotate(t, context.cos, context.sin) for t in (q, k))
        v = layers.root_mean_square_normed(v, self.config.norm_eps, own.size).astype(v.dtype)
        k, v = (jnp.take(t, own.source, axis=2) for t in (k, v))
        return linear(self, "o_proj", attend(q, k, v, context.allowed, scale=self.config.query_scale))


class Frame(decoder.Frame):
    """A decoder's, and the tables of the layers' own embeddings."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        p = _settings(config).per_layer
        if p:
            wide = config.num_layers * p
            self.per_layer_embed = layers.embed(config.vocab_size, wide, dtype=dtype, rngs=rngs)
            self.per_layer_proj = layers.linear(config.hidden_size, wide, bias=False, dtype=dtype, rngs=rngs)
            self.per_layer_norm = decoder.norm(config, p, dtype=dtype, rngs=rngs)

    def enter(self, tokens: Int32[Array, "B L"], rows: Rows) -> tuple[Float[Array, "B L D"], tuple[Context, ...]]:
        """Embedded tokens, and for each kind of layer its heads and what it needs to know about the rows."""
        x, contexts = super().enter(tokens, rows)
        config, width = self.config, layer_sizes.largest(self.config)
        found = []
        for number, (pattern, context) in enumerate(zip(config.patterns, contexts, strict=True)):
            own = layer_sizes.sizes(config, config.layer_patterns.index(number))
            real = np.isin(np.arange(width.head_dim), layer_sizes.head_places(own.head_dim, width.head_dim))
            heads = Heads(
                real=jnp.asarray(real)[None, None, None],
                size=jnp.asarray(own.head_dim, jnp.float32),
                source=jnp.arange(width.kv_heads, dtype=jnp.int32) // (width.kv_heads // own.kv_heads),
                keys_as_values=jnp.asarray(_settings(config).keys_as_values and pattern.window is None),
            )
            cos, sin = layers.rotary_table(own.head_dim, pattern, rows.position, width.head_dim)
            found.append(context._replace(cos=cos, sin=sin, heads=heads))
        return x, tuple(found)

    def layer_inputs(self, tokens: Int32[Array, "B L"], x: Float[Array, "B L D"]) -> LayerInput:
        """What each layer alone reads of these tokens, embedded as `x`, with the axis of layers first."""
        config, p = self.config, _settings(self.config).per_layer
        widths = [layer_sizes.sizes(config, layer).mlp for layer in range(config.num_layers)]
        mlp = np.arange(max(widths))[None] < np.array(widths)[:, None]
        embedded = None
        if p:
            shape = (*tokens.shape, config.num_layers, p)
            projected = (self.per_layer_proj(x) * config.hidden_size**-0.5).reshape(shape)
            looked_up = (self.per_layer_embed(tokens) * jnp.asarray(p**0.5, x.dtype)).reshape(shape)
            embedded = (self.per_layer_norm(projected) + looked_up) * 2.0**-0.5
            embedded = jnp.moveaxis(sharding.constrain(embedded), 2, 0)
        return LayerInput(embedded, jnp.asarray(mlp)[:, None, None])
