"""Transformers with rotary positions and a gated MLP: all decoders, and ModernBERT, as their configs tell.

Llama (arXiv 2302.13971), Mistral (2310.06825), Qwen 2.5 and 3 (2412.15115, 2505.09388), Gemma 1, 2 and 3 (2403.08295,
2408.00118, 2503.19786), OLMo 2 (2501.00656) and 3, Phi 3 and 4 (2404.14219), Granite, SmolLM3, gpt-oss (2508.10925),
and ModernBERT (2412.13663), which is the same block looking both ways.

Axes: B batch, L length, D features, V vocabulary, N query heads, K key and value heads, H head features.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from pref_jax.lm import attention, layers, routed
from pref_jax.lm.attention import AttentionFn, Rows
from pref_jax.lm.config import LMConfig
from pref_jax.lm.dense_head import DenseHead


class Context(NamedTuple):
    """What every layer of one pattern needs besides its input."""

    allowed: Bool[Array, "B 1 L L"]
    cos: Float[Array, "B L 1 R"]
    sin: Float[Array, "B L 1 R"]
    growth: Float[Array, "B L 1 1"] | None
    recurrence: Any = None  # of Qwen 3.5, see `delta`
    heads: Any = None  # of Gemma 4, see `gemma4`
    layer: Any = None  # the same, of this layer alone
    earlier: Any = None  # what this layer kept of earlier tokens, where that is more than keys and values
    keep: Any = None  # takes, by name, what it keeps of these


def linear_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of every linear of a block; the parts of a routed MLP are none of them."""
    d, wide, h = config.hidden_size, config.intermediate_size, config.head_dim
    mlp = {"gate_proj": (d, wide), "up_proj": (d, wide), "down_proj": (wide, d)}
    return {
        "q_proj": (d, config.num_heads * h),
        "k_proj": (d, config.num_kv_heads * h),
        "v_proj": (d, config.num_kv_heads * h),
        "o_proj": (config.num_heads * h, d),
        **({} if config.experts else mlp),
    }


def norm(config: LMConfig, size: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm | layers.RMSNorm:
    """A norm of `size` features, of the family's kind."""
    if config.family == "modernbert":
        return nnx.LayerNorm(size, epsilon=config.norm_eps, use_bias=False, param_dtype=dtype, rngs=rngs)
    return layers.RMSNorm(size, eps=config.norm_eps, offset=config.traits.norm_offset, dtype=dtype)


def _norm_sizes(config: LMConfig) -> dict[str, int]:
    """Name -> width of every norm of a block."""
    d, h, own = config.hidden_size, config.head_dim, config.traits
    norms = {"input_norm": d, "mlp_norm": d} if own.pre_norms else {}
    norms |= {"attention_out_norm": d, "mlp_out_norm": d} if own.post_norms else {}
    each = {"": (0, 0), "head": (1, 1), "whole": (config.num_heads, config.num_kv_heads)}[own.qk_norm]
    return norms | ({"q_norm": each[0] * h, "k_norm": each[1] * h} if own.qk_norm else {})


class Block(nnx.Module):
    """x + attention(norm x), then x + down(act(gate norm x) * up norm x).

    Some families norm both summands again, or those alone; some multiply them by a number.
    """

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        for name, size in _norm_sizes(config).items():
            setattr(self, name, norm(config, size, dtype=dtype, rngs=rngs))
        biased = {"q_proj", "k_proj", "v_proj"} if config.attention_bias else set()
        biased |= {"o_proj"} if config.attention_bias and config.traits.output_bias else set()
        biased |= {"gate_proj", "up_proj", "down_proj"} if config.mlp_bias else set()
        for name, (d, f) in linear_shapes(config).items():
            setattr(self, name, layers.linear(d, f, bias=name in biased, dtype=dtype, rngs=rngs))
        if config.experts:
            self.experts = routed.RoutedMLP(config, config.experts, dtype=dtype, rngs=rngs)
        if config.traits.sinks:
            self.sinks = nnx.Param(jnp.zeros((config.num_heads,), dtype))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Context,
        linear: layers.LinearFn,
        attend: AttentionFn,
        first: Bool[Array, ""],
    ) -> Float[Array, "B L D"]:
        """One block; `linear` calls the named linear with its adapter, `first` is true in the lowest block."""
        h = self._maybe("input_norm", x)
        if self.config.family == "modernbert":  # its embeddings come out normed already
            h = jnp.where(first, x, h)
        x = x + self._summand("attention_out_norm", self._attention(h, context, linear, attend))
        return x + self._summand("mlp_out_norm", self._mlp(self._maybe("mlp_norm", x), linear))

    def _mlp(self, h: Array, linear: layers.LinearFn) -> Array:
        if self.config.experts:
            return self.experts(h)
        act = layers.activation(self.config.activation)
        return linear(self, "down_proj", act(linear(self, "gate_proj", h)) * linear(self, "up_proj", h))

    def _attention(self, h: Array, context: Context, linear: layers.LinearFn, attend: AttentionFn) -> Array:
        q, k, v = (linear(self, name, h) for name in ("q_proj", "k_proj", "v_proj"))
        heads = (*h.shape[:2], -1, self.config.head_dim)
        whole = self.config.traits.qk_norm == "whole"
        if whole:
            q, k = self._maybe("q_norm", q), self._maybe("k_norm", k)
        q, k, v = (t.reshape(heads) for t in (q, k, v))
        if not whole:
            q, k = self._maybe("q_norm", q), self._maybe("k_norm", k)
        q, k = (layers.rotate(t, context.cos, context.sin) for t in (q, k))
        if context.growth is not None:
            q = (q * context.growth).astype(q.dtype)
        scale, cap = self.config.query_scale, self.config.attention_softcap
        more = {"sinks": self.sinks[...]} if self.config.traits.sinks else {}
        return linear(self, "o_proj", attend(q, k, v, context.allowed, scale=scale, softcap=cap, **more))

    def _summand(self, norm: str, x: Array) -> Array:
        """What is added to the residual, of `x`."""
        factor = self.config.multipliers.residual
        x = self._maybe(norm, x)
        return x if factor == 1 else x * factor

    def _maybe(self, norm: str, x: Array) -> Array:
        """`x` through the named norm, in families that have it."""
        return getattr(self, norm)(x) if hasattr(self, norm) else x


class Frame(nnx.Module):
    """All but the blocks: embedding before them, norm and heads after them."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        self.embed = layers.embed(config.vocab_size, d, dtype=dtype, rngs=rngs)
        if config.family == "modernbert":
            self.embed_norm = norm(config, d, dtype=dtype, rngs=rngs)
        self.final_norm = norm(config, d, dtype=dtype, rngs=rngs)
        if config.lm_head and not config.tie_embeddings:
            self.lm_head = layers.linear(d, config.vocab_size, bias=False, dtype=dtype, rngs=rngs)
        if config.num_labels:
            self.score = layers.linear(d, config.num_labels, bias=config.dense_head, dtype=dtype, rngs=rngs)
        if config.dense_head:
            self.head = DenseHead(config, norm=norm(config, d, dtype=dtype, rngs=rngs), dtype=dtype, rngs=rngs)

    def enter(self, tokens: Int32[Array, "B L"], rows: Rows) -> tuple[Float[Array, "B L D"], tuple[Context, ...]]:
        """Embedded tokens, and for each of the config's patterns what its layers need to know about the rows."""
        x = self.embed(tokens)
        if self.config.traits.scaled_embeddings:
            x = x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)
        if self.config.multipliers.embedding != 1:
            x = x * self.config.multipliers.embedding
        if self.config.family == "modernbert":
            x = self.embed_norm(x)
        causal = self.config.traits.causal
        return x, tuple(
            Context(
                attention.visible(rows, causal=causal, window=pattern.window),
                *layers.rotary_table(self.config.rotated, pattern, rows.position),
                layers.query_growth(pattern, rows.position),
            )
            for pattern in self.config.patterns
        )

    def leave(self, x: Float[Array, "B L D"], rows: Rows) -> Float[Array, "B L D"]:
        """The final norm, and the dense layer of an encoder's head."""
        x = self.final_norm(x)
        return self.head(x, rows) if self.config.dense_head and self.config.reads_score else x

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits, summed in float32 whatever the weights' dtype."""
        if self.config.tie_embeddings:
            table = self.embed.embedding[...]
            found = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
        else:
            kernel = self.lm_head.kernel[...]
            found = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)
        return layers.softcap(found / self.config.multipliers.logits, self.config.logit_softcap)
