"""The Llama family (Touvron et al. 2023, arXiv 2302.13971) in the layout of Hugging Face checkpoints.

Axes: B batch, L length, D features, V vocabulary, N query heads, K key and value heads, H head features.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from pref_jax.lm import layers
from pref_jax.lm.config import LMConfig


class Context(NamedTuple):
    """What every block needs besides its input; the same for all of them."""

    allowed: Bool[Array, "B 1 L L"]
    cos: Float[Array, "B L 1 H"]
    sin: Float[Array, "B L 1 H"]


def linear_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of every linear of a block."""
    d, wide, h = config.hidden_size, config.intermediate_size, config.head_dim
    return {
        "q_proj": (d, config.num_heads * h),
        "k_proj": (d, config.num_kv_heads * h),
        "v_proj": (d, config.num_kv_heads * h),
        "o_proj": (config.num_heads * h, d),
        "gate_proj": (d, wide),
        "up_proj": (d, wide),
        "down_proj": (wide, d),
    }


class Block(nnx.Module):
    """x + attention(norm x), then x + down(act(gate norm x) * up norm x)."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.input_norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, param_dtype=dtype, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, param_dtype=dtype, rngs=rngs)
        for name, (d, f) in linear_shapes(config).items():
            bias = config.attention_bias if name[0] in "qkvo" else config.mlp_bias
            setattr(self, name, layers.linear(d, f, bias=bias, dtype=dtype, rngs=rngs))

    def __call__(self, x: Float[Array, "B L D"], context: Context, linear: layers.LinearFn) -> Float[Array, "B L D"]:
        """One block; `linear` calls the named linear with its adapter."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        h = self.input_norm(x)
        q = layers.rotate(linear(self, "q_proj", h).reshape(heads), context.cos, context.sin)
        k = layers.rotate(linear(self, "k_proj", h).reshape(heads), context.cos, context.sin)
        v = linear(self, "v_proj", h).reshape(heads)
        x = x + linear(self, "o_proj", layers.attention(q, k, v, context.allowed))
        h = self.mlp_norm(x)
        act = layers.activation(self.config.activation)
        return x + linear(self, "down_proj", act(linear(self, "gate_proj", h)) * linear(self, "up_proj", h))


class Frame(nnx.Module):
    """All but the blocks: embedding before them, norm and next-token head after them."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.embed = layers.embed(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.final_norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, param_dtype=dtype, rngs=rngs)
        if config.lm_head and not config.tie_embeddings:
            self.lm_head = layers.linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, rngs=rngs)

    def enter(self, tokens: Int32[Array, "B L"], mask: Bool[Array, "B L"]) -> tuple[Float[Array, "B L D"], Context]:
        """Embedded tokens, and what the blocks need to know about the rows."""
        cos, sin = layers.rotary_table(self.config, layers.positions(mask))
        return self.embed(tokens), Context(layers.attend_mask(mask, causal=True), cos, sin)

    def leave(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The final norm."""
        return self.final_norm(x)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits, summed in float32 whatever the weights' dtype."""
        if self.config.tie_embeddings:
            return jnp.einsum("...d,vd->...v", hidden, self.embed.embedding[...], preferred_element_type=jnp.float32)
        return jnp.einsum("...d,dv->...v", hidden, self.lm_head.kernel[...], preferred_element_type=jnp.float32)


# Hugging Face key (without its `model.` prefix) -> (our path, whether the matrix is stored [out, in]).
WEIGHTS: dict[str, tuple[str, bool]] = {
    "embed_tokens.weight": ("embed/embedding", False),
    "norm.weight": ("final_norm/scale", False),
    "lm_head.weight": ("lm_head/kernel", True),
    "layers.{}.input_layernorm.weight": ("blocks/input_norm/scale", False),
    "layers.{}.post_attention_layernorm.weight": ("blocks/mlp_norm/scale", False),
    **{f"layers.{{}}.self_attn.{n}_proj.weight": (f"blocks/{n}_proj/kernel", True) for n in "qkvo"},
    **{f"layers.{{}}.self_attn.{n}_proj.bias": (f"blocks/{n}_proj/bias", False) for n in "qkvo"},
    **{f"layers.{{}}.mlp.{n}_proj.weight": (f"blocks/{n}_proj/kernel", True) for n in ("gate", "up", "down")},
    **{f"layers.{{}}.mlp.{n}_proj.bias": (f"blocks/{n}_proj/bias", False) for n in ("gate", "up", "down")},
}
PREFIX = "model."
UNPREFIXED = ("lm_head.",)
# Keys a llama checkpoint may hold that are of no use here: heads of other tasks, tied copies, constants.
KNOWN_UNUSED = (
    r"lm_head\.weight",
    r"score\.weight",
    r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"value_head\..*",
)
