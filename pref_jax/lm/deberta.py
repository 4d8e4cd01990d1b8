"""DeBERTa v2 and v3 (He et al. 2020 and 2021, arXiv 2006.03654, 2111.09543): BERT whose attention knows distances.

A query's score of a key is (q k + q r + k s) / sqrt(3 H), where r and s are the key and query vectors of the distance
between the two tokens; the projections are those of the tokens.

Axes: B batch, L length, N heads, H head features, D features, S vectors of distances.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from pref_jax.lm import attention, bert, layers
from pref_jax.lm.attention import AttentionFn, Rows
from pref_jax.lm.config import LMConfig
from pref_jax.lm.config_parts import Disentangled

linear_shapes = bert.linear_shapes


class Context(NamedTuple):
    """What every layer needs besides its input."""

    allowed: Bool[Array, "B 1 L L"]
    place: Int32[Array, "B L L"]
    distances: Float[Array, "1 S D"]


def _settings(config: LMConfig) -> Disentangled:
    if config.disentangled is None:
        raise ValueError("a DeBERTa has distances; LMConfig checks it")
    return config.disentangled


def places(settings: Disentangled, reach: int) -> np.ndarray:
    """int32 [2 reach - 1] the row of the table of distances for each distance from -(reach - 1) to reach - 1."""
    distance = np.arange(1 - reach, reach)
    if settings.buckets:
        mid = settings.buckets // 2
        far = np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(mid)
        whole = np.log(np.float32((settings.max_distance - 1) / mid))
        logs = np.ceil(np.log(far) / whole * np.float32(mid - 1)) + mid
        distance = np.where(np.abs(distance) <= mid, distance, np.sign(distance) * logs)
    return np.clip(distance + settings.span, 0, 2 * settings.span - 1).astype(np.int32)


class Block(bert.Block):
    """BERT's, with scores of distances."""

    def _mixed(self, x: Array, context: Context, linear: layers.LinearFn, attend: AttentionFn) -> Array:
        def split(x: Array) -> Array:
            return x.reshape(*x.shape[:2], -1, self.config.head_dim)

        settings = _settings(self.config)
        q, k, v = (split(linear(self, name, x)) for name in bert.QKV)
        scale = 1 / math.sqrt(self.config.head_dim * (1 + len(settings.scores)))
        bias: Any = 0.0
        for kind, name, own in (("c2p", "k_proj", q), ("p2c", "q_proj", k)):
            if kind in settings.scores:
                vectors = jnp.broadcast_to(split(linear(self, name, context.distances)), (len(x), *self._table()))
                found = jnp.einsum("blnh,bsnh->bnls", own, vectors, preferred_element_type=jnp.float32)
                place = context.place if kind == "c2p" else context.place.swapaxes(1, 2)
                found = jnp.take_along_axis(found, place[:, None], axis=3)
                bias = bias + scale * (found if kind == "c2p" else found.swapaxes(2, 3))
        more = {"bias": bias}
        return attend(q, k, v, context.allowed, scale=scale, **more)

    def _table(self) -> tuple[int, int, int]:
        return 2 * _settings(self.config).span, self.config.num_heads, self.config.head_dim


class Frame(bert.Frame):
    """BERT's, with the table of distances."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        settings = _settings(config)
        self.distances = layers.embed(2 * settings.span, config.hidden_size, dtype=dtype, rngs=rngs)
        if settings.normed:
            self.distance_norm = bert.norm(config, dtype=dtype, rngs=rngs)

    def enter(self, tokens: Int32[Array, "B L"], rows: Rows) -> tuple[Float[Array, "B L D"], tuple[Context, ...]]:
        """Embedded tokens, and what all layers need to know about the rows."""
        settings = _settings(self.config)
        length = tokens.shape[1]
        distance = rows.position[:, :, None] - rows.position[:, None, :]
        place = jnp.asarray(places(settings, length))[distance + length - 1]
        table = self.distances.embedding[...]
        table = self.distance_norm(table) if settings.normed else table
        context = Context(attention.visible(rows, causal=False), place, table[None])
        return self.embedded(tokens, rows), (context,)
