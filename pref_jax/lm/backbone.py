"""The one door to every transformer family: plain parameters in, plain arrays out.

Axes: B batch, L length, D features, V vocabulary, S texts packed in a row, C labels. Parameters are nested dicts of
arrays; those of the blocks are stacked under `blocks` with the layer axis first and run under `lax.scan` together with
the adapters. Flax NNX describes the layers and holds no state: a call merges that description with the parameters of
the moment.

The transformer knows no users. Whatever depends on them comes in as `adapters`, attached to the linears by name.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32, Key

from pref_jax.errors import UserError
from pref_jax.lm import attention, forward, lora
from pref_jax.lm.attention import AttentionFn, Mask, Rows
from pref_jax.lm.config import LMConfig
from pref_jax.lm.forward import REMAT, ApplyAdapter, Kept, Params, Past, family

__all__ = [
    "REMAT",
    "ApplyAdapter",
    "Params",
    "family",
    "hidden_states",
    "init",
    "linear_shapes",
    "next_token_logits",
    "pool",
    "read",
    "scores",
    "shapes",
]


def init(config: LMConfig, key: Key[Array, ""], dtype: Any = jnp.float32) -> dict[str, Any]:
    """Fresh parameters: matrices ~ N(0, 0.02²), biases 0, norms 1.

    Args:
      config: the transformer.
      key: typed PRNG key.
      dtype: of every parameter.

    Returns:
      Nested dict; `blocks` leaves lead with the layer axis.
    """
    module = family(config)
    frame_key, block_key = jax.random.split(key)

    def fresh(kind: Any, key: Array) -> dict[str, Any]:
        return nnx.to_pure_dict(nnx.state(kind(config, dtype=dtype, rngs=nnx.Rngs(key)), nnx.Param))

    blocks = jax.vmap(functools.partial(fresh, module.Block))(jax.random.split(block_key, config.num_layers))
    return {**fresh(module.Frame, frame_key), "blocks": blocks}


def shapes(config: LMConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The tree of `init` as `jax.ShapeDtypeStruct`, without making any array."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0), dtype))


def linear_shapes(config: LMConfig) -> dict[str, tuple[int, int]]:
    """Name -> (in features, out features) of every linear of a block: where adapters can be attached.

    All families use the names `q_proj, k_proj, v_proj, o_proj, up_proj, down_proj`, and decoders and ModernBERT have
    `gate_proj` besides. A routed MLP has none: adapters go to the attention there.
    """
    return family(config).linear_shapes(config)


def hidden_states(
    config: LMConfig,
    params: Params,
    tokens: Int32[Array, "B L"],
    mask: Mask | Rows,
    adapters: Mapping[str, Any] | None = None,
    apply_adapter: ApplyAdapter = lora.apply,
    *,
    remat: str = "none",
    unroll: int | bool = 1,
    layer: int | None = None,
    attend: AttentionFn = attention.attend,
    soft: Float[Array, "B S D"] | None = None,
) -> Float[Array, "B L D"]:
    """The transformer's output for every token, in the parameters' dtype.

    Args:
      config: the transformer.
      params: as from `init` or `checkpoint.load`.
      tokens: ids; what stands at padding is of no matter.
      mask: bool, True at real tokens, which may be padded left or right; or int32, for several texts packed in a row:
        0 at padding, and each text's number, counted upwards from 1. Rows of padding only give finite numbers.
        Or `attention.Rows`, such as `attention.branches` makes of texts that begin alike; no position of theirs
        may lie beyond the model's.
      adapters: linear name -> pytree whose leaves lead with the layer axis.
      apply_adapter: (one layer's slice of `adapters[name]`, input of that linear [B L in]) -> what is added to its
        output [B L out].
      remat: what the backward pass keeps of each block, one of `REMAT`.
      unroll: how many layers the scan lays out at a time; True for all, which compiles longer.
      layer: None for the last layer after the final norm; k for the state after k blocks (0: the embeddings), before
        any further norm unless k is the last, as in transformers' `hidden_states[k]`. What lies above is not computed.
      attend: the attention, such as a kernel of your own.
      soft: what takes the place of the embeddings of each row's first S tokens, such as a soft prompt. `pairs.soften`
        makes room for it.

    Raises:
      UserError: if an adapter names no linear of this family, rows are longer than the model's positions, or `remat`
        or `layer` is out of range.
    """
    return forward.run(
        config,
        params,
        tokens,
        mask,
        adapters,
        apply_adapter,
        remat=remat,
        unroll=unroll,
        layer=layer,
        attend=attend,
        soft=soft,
    )[0]


def read(
    config: LMConfig,
    params: Params,
    tokens: Int32[Array, "B L"],
    mask: Mask | Rows,
    adapters: Mapping[str, Any] | None = None,
    apply_adapter: ApplyAdapter = lora.apply,
    *,
    unroll: int | bool = 1,
    attend: AttentionFn = attention.attend,
    past: Past | None = None,
) -> tuple[Float[Array, "B L D"], Kept]:
    """`hidden_states`, and what each layer has to keep of these tokens for those that will be read after them.

    Args:
      config, params, tokens, adapters, apply_adapter, unroll, attend: as in `hidden_states`.
      mask: the same; with a `past`, `attention.Rows` that say where the tokens stand in the text.
      past: what was kept of the tokens before these, and how they are looked at; None: there are none.

    Returns:
      The states, and what is kept: arrays by name, the layer axis first; `forward.run` says which.

    Raises:
      UserError: as in `hidden_states`.
    """
    return forward.run(
        config, params, tokens, mask, adapters, apply_adapter, unroll=unroll, attend=attend, past=past, keep=True
    )


def next_token_logits(config: LMConfig, params: Params, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Float32 scores of each possible next token from `hidden_states`; softmax gives probabilities.

    Raises:
      UserError: if this model has no next-token head.
    """
    if not config.lm_head:
        raise UserError(f"this {config.family} model has no next-token head; use a causal language model's checkpoint")
    return forward.frame(config, params).logits(hidden)


def scores(config: LMConfig, params: Params, pooled: Float[Array, "*batch D"]) -> Float[Array, "*batch C"]:
    """Float32 outputs of the sequence-classification head for pooled states; of a reward model, C = 1 reward.

    Raises:
      UserError: if this model has no such head.
    """
    if not config.num_labels:
        raise UserError(f"this {config.family} model has no score head; use a sequence classifier's checkpoint")
    score = params["score"]
    found = jnp.einsum("...d,dc->...c", pooled, score["kernel"], preferred_element_type=jnp.float32)
    bias = score.get("bias")
    return found if bias is None else found + bias.astype(jnp.float32).reshape((1,) * (found.ndim - 1) + (-1,))


def pool(
    config: LMConfig, hidden: Float[Array, "B L D"], mask: Mask | Rows, segments: int | None = None
) -> Float[Array, "B D"] | Float[Array, "B S D"]:
    """One float32 vector a text: its last or first real token, or their mean, as `config.pooling` says.

    Args:
      config: the transformer.
      hidden: the states of all tokens.
      mask: as in `hidden_states`.
      segments: None for one text a row; S for rows of up to S packed texts, or of S branches.

    Returns:
      [B D], or [B S D] with the text of number s at s - 1; the text of a branch is the trunk and that branch. A text
      without tokens gets zeros.
    """
    length = hidden.shape[1]
    if segments is None:
        own = ((mask.segment if isinstance(mask, Rows) else mask) > 0)[:, None]
    else:
        own = attention.texts(mask, segments)
    if config.pooling != "mean":
        # argmax finds the first True, of the reversed row the last one.
        last = length - 1 - jnp.argmax(own[:, :, ::-1], axis=2)
        place = last if config.pooling == "last" else jnp.argmax(own, axis=2)
        picked = jnp.take_along_axis(hidden, place[:, :, None], axis=1).astype(jnp.float32)
        found = jnp.where(own.any(axis=2)[:, :, None], picked, 0.0)
    else:
        total = jnp.einsum("bld,bsl->bsd", hidden.astype(jnp.float32), own.astype(jnp.float32))
        found = total / jnp.maximum(own.sum(axis=2)[:, :, None], 1)
    return found[:, 0] if segments is None else found
