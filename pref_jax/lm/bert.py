"""The BERT family of encoders (Devlin et al. 2018, arXiv 1810.04805) in the layout of Hugging Face checkpoints.

Axes: B batch, L length, D features. All tokens are of type 0; there is no pooler and no next-token head.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

from pref_jax.errors import UserError
from pref_jax.lm import layers
from pref_jax.lm.config import LMConfig


class Context(NamedTuple):
    """What every block needs besides its input; the same for all of them."""

    allowed: Bool[Array, "B 1 L L"]


def linear_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    """Name -> (in, out) of every linear of a block, under the names of the llama family (BERT's MLP has no gate)."""
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


class Block(nnx.Module):
    """norm(x + attention x), then norm(x + down(act(up x)))."""

    def __init__(self, config: LMConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = _norm(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = _norm(config, dtype=dtype, rngs=rngs)
        for name, (d, f) in linear_shapes(config).items():
            bias = config.attention_bias if name[0] in "qkvo" else config.mlp_bias
            setattr(self, name, layers.linear(d, f, bias=bias, dtype=dtype, rngs=rngs))

    def __call__(self, x: Float[Array, "B L D"], context: Context, linear: layers.LinearFn) -> Float[Array, "B L D"]:
        """One block; `linear` calls the named linear with its adapter."""
        q, k, v = (linear(self, n, x).reshape(*x.shape[:2], -1, self.config.head_dim) for n in _QKV)
        x = self.attention_norm(x + linear(self, "o_proj", layers.attention(q, k, v, context.allowed)))
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

    def enter(self, tokens: Int32[Array, "B L"], mask: Bool[Array, "B L"]) -> tuple[Float[Array, "B L D"], Context]:
        """Embedded tokens, and what the blocks need to know about the rows.

        Raises:
          UserError: if rows are longer than the table of positions.
        """
        if tokens.shape[1] > self.config.max_positions:
            raise UserError(
                f"rows of {tokens.shape[1]} tokens, but this encoder knows {self.config.max_positions} positions; "
                "cut the texts shorter when tokenising"
            )
        x = self.embed(tokens) + self.positions(layers.positions(mask)) + self.types(jnp.zeros_like(tokens))
        return self.embed_norm(x), Context(layers.attend_mask(mask, causal=False))

    def leave(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Nothing: the last block ends with a norm."""
        return x


_LAYER = "encoder.layer.{}."
_LINEARS = {
    "attention.self.query": "q_proj",
    "attention.self.key": "k_proj",
    "attention.self.value": "v_proj",
    "attention.output.dense": "o_proj",
    "intermediate.dense": "up_proj",
    "output.dense": "down_proj",
}
_NORMS = {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "mlp_norm"}

# Hugging Face key (without its `bert.` prefix) -> (our path, whether the matrix is stored [out, in]).
WEIGHTS: dict[str, tuple[str, bool]] = {
    "embeddings.word_embeddings.weight": ("embed/embedding", False),
    "embeddings.position_embeddings.weight": ("positions/embedding", False),
    "embeddings.token_type_embeddings.weight": ("types/embedding", False),
    "embeddings.LayerNorm.weight": ("embed_norm/scale", False),
    "embeddings.LayerNorm.bias": ("embed_norm/bias", False),
    **{f"{_LAYER}{theirs}.weight": (f"blocks/{ours}/kernel", True) for theirs, ours in _LINEARS.items()},
    **{f"{_LAYER}{theirs}.bias": (f"blocks/{ours}/bias", False) for theirs, ours in _LINEARS.items()},
    **{f"{_LAYER}{theirs}.weight": (f"blocks/{ours}/scale", False) for theirs, ours in _NORMS.items()},
    **{f"{_LAYER}{theirs}.bias": (f"blocks/{ours}/bias", False) for theirs, ours in _NORMS.items()},
}
PREFIX = "bert."
UNPREFIXED: tuple[str, ...] = ()
# Keys a bert checkpoint may hold that are of no use here: pooler, heads of other tasks, constants.
KNOWN_UNUSED = (r"pooler\..*", r"cls\..*", r"classifier\..*", r"qa_outputs\..*", r"embeddings\.position_ids")
