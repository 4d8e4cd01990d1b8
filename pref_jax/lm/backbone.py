"""The one door to every transformer family: plain parameters in, plain arrays out.

Axes: B batch, L length, D features, V vocabulary, S texts packed in a row, C labels. Parameters are nested dicts of
arrays; those of the blocks are stacked under `blocks` with the layer axis first and run under `lax.scan` together with
the adapters. Flax NNX describes the layers and holds no state: a call merges that description with the parameters of
the moment.

The transformer knows no users. Whatever depends on them comes in as `adapters`, attached to the linears by name.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, Key

from pref_jax import sharding
from pref_jax.errors import Faults, UserError
from pref_jax.lm import attention, bert, deberta, decoder, delta, gemma4, lora
from pref_jax.lm.attention import AttentionFn, Mask, Rows
from pref_jax.lm.config import LMConfig

Params = Mapping[str, Any]
ApplyAdapter = Callable[[Any, Array], Array]

# What the backward pass keeps of each block instead of computing it again: everything; nothing but the block's input;
# the results of the linears.
REMAT: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def family(config: LMConfig) -> ModuleType:
    """The module that defines `Frame` and `Block` of `config.family`."""
    return {"bert": bert, "deberta": deberta, "decoder": decoder, "delta": delta, "gemma4": gemma4}[config.traits.kind]


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
    adapters = dict(adapters or {})
    depth = config.num_layers if layer is None else layer
    # Branches stand side by side in a row, so its length is no position.
    _check_call(config, adapters, 0 if isinstance(mask, Rows) else tokens.shape[1], remat, depth)
    frame, rows = _frame(config, params), attention.rows(mask)
    # Ids at padding may be anything (-100, say): an id outside the table would look up NaN.
    x, contexts = frame.enter(jnp.where(rows.segment > 0, tokens, 0), rows)
    if soft is not None:
        x = jnp.concatenate([soft.astype(x.dtype), x[:, soft.shape[1] :]], axis=1)
    inputs = None if config.gemma4 is None else frame.layer_inputs(jnp.where(rows.segment > 0, tokens, 0), x)
    # Layers of two patterns run in one scan: each picks its context by number.
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)
    number = jnp.arange(depth)
    pattern = jnp.asarray(config.layer_patterns[:depth], jnp.int32)

    def step(lent: Any, x: Array, own: tuple[Params, dict[str, Any], Any, Array, Array]) -> tuple[Array, Any]:
        weights, adapter, inputs, number, pattern = own
        context = contexts[0] if len(contexts) == 1 else jax.tree.map(lambda leaf: leaf[pattern], several)
        context = context if inputs is None else context._replace(layer=inputs)
        keys = []

        def look(q: Array, k: Array, v: Array, *rest: Array, **more: Any) -> Array:
            k, v = (k, v) if lent is None else (leaf[pattern] for leaf in lent)
            keys.append((k, v))
            return attend(q, k, v, *rest, **more)

        def linear(block: nnx.Module, name: str, x: Array) -> Array:
            # Tokens of all rows in one axis: on CPU, gradients of products over two leading axes take twice as long.
            y = getattr(block, name)(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
            if name not in adapter:
                return y
            # What all rows share comes as one row, but adapters may be bound to each.
            x = jnp.broadcast_to(x, (len(tokens), *x.shape[1:]))
            return y + apply_adapter(adapter[name], x).astype(y.dtype)

        block = _module(config, family(config).Block, weights)
        x = sharding.constrain(block(x, context, linear, look, number == 0))
        return x, keys[0] if lent is None and depth > config.own_keys else None

    policy = REMAT[remat]
    body = step if policy is None else jax.checkpoint(step, prevent_cse=False, policy=policy)
    whole = (params["blocks"], adapters, inputs, number, pattern)

    def run(lent: Any, x: Array, first: int, last: int) -> tuple[Array, Any]:
        some = jax.tree.map(lambda leaf: leaf[first:last], whole)
        return jax.lax.scan(functools.partial(body, lent), x, some, unroll=unroll)

    x, kept = run(None, sharding.constrain(x), 0, min(depth, config.own_keys))
    if depth > config.own_keys:
        own = config.layer_patterns[: config.own_keys]
        lenders = np.array([len(own) - 1 - own[::-1].index(kind) for kind in range(len(config.patterns))])
        x, _ = run(jax.tree.map(lambda leaf: leaf[lenders], kept), x, config.own_keys, depth)
    return frame.leave(x, rows) if depth == config.num_layers else x


def _check_call(config: LMConfig, adapters: dict[str, Any], length: int, remat: str, depth: int) -> None:
    faults = Faults()
    if unknown := sorted(set(adapters) - set(linear_shapes(config))):
        faults.add(f"adapters for {unknown}", "no such linear", f"use some of {list(linear_shapes(config))}")
    if length > config.max_positions:
        had = f"rows of {length} tokens, but this model knows {config.max_positions} positions"
        faults.add("tokens", had, "cut the texts shorter when tokenising")
    if remat not in REMAT:
        faults.add("remat", f"{remat!r} is unknown", f"use one of {', '.join(REMAT)}")
    if not 0 <= depth <= config.num_layers:
        faults.add("layer", f"is {depth}", f"use 0 to {config.num_layers}, or None for the last")
    faults.raise_if_any("Forward pass")


def next_token_logits(config: LMConfig, params: Params, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Float32 scores of each possible next token from `hidden_states`; softmax gives probabilities.

    Raises:
      UserError: if this model has no next-token head.
    """
    if not config.lm_head:
        raise UserError(f"this {config.family} model has no next-token head; use a causal language model's checkpoint")
    return _frame(config, params).logits(hidden)


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


def _frame(config: LMConfig, params: Params) -> Any:
    """All but the blocks."""
    return _module(config, family(config).Frame, {name: leaf for name, leaf in params.items() if name != "blocks"})


def _module(config: LMConfig, kind: Any, weights: Params) -> Any:
    """The NNX module of this kind holding these arrays."""
    return nnx.merge(_description(config, kind, jax.tree.leaves(weights)[0].dtype), weights)


@functools.lru_cache(maxsize=64)
def _description(config: LMConfig, kind: Any, dtype: Any) -> Any:
    """NNX's static half of a module; depends on configuration and dtype only, so it is made once."""
    return nnx.graphdef(nnx.eval_shape(lambda: kind(config, dtype=dtype, rngs=nnx.Rngs(0))))
