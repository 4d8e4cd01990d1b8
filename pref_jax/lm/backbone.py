"""The one door to every transformer family: plain parameters in, plain arrays out.

Axes: B batch, L length, D features, V vocabulary. Parameters are nested dicts of arrays; those of the blocks are
stacked under `blocks` with the layer axis first and run under `lax.scan` together with the adapters. Flax NNX
describes the layers and holds no state: a call merges that description with the parameters of the moment.

The transformer knows no users. Whatever depends on them comes in as `adapters`, attached to the linears by name.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, Key

from pref_jax.errors import UserError
from pref_jax.lm import bert, llama, lora, sharding
from pref_jax.lm.config import LMConfig

Params = Mapping[str, Any]
ApplyAdapter = Callable[[Any, Array], Array]


def family(config: LMConfig) -> ModuleType:
    """The module that defines `Frame`, `Block` and the weight table of `config.family`."""
    return {"llama": llama, "bert": bert}[config.family]


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

    Both families use the names `q_proj, k_proj, v_proj, o_proj, up_proj, down_proj`; `llama` has `gate_proj` too.
    """
    return family(config).linear_shapes(config)


def hidden_states(
    config: LMConfig,
    params: Params,
    tokens: Int32[Array, "B L"],
    mask: Bool[Array, "B L"],
    adapters: Mapping[str, Any] | None = None,
    apply_adapter: ApplyAdapter = lora.apply,
    remat: bool = False,
    unroll: int | bool = 1,
) -> Float[Array, "B L D"]:
    """The transformer's output for every token, after the final norm, in the parameters' dtype.

    Args:
      config: the transformer.
      params: as from `init` or `checkpoint.load`.
      tokens: ids; what stands at padding is of no matter.
      mask: True at real tokens, which may be padded left or right. Rows of padding only give finite numbers.
      adapters: linear name -> pytree whose leaves lead with the layer axis.
      apply_adapter: (one layer's slice of `adapters[name]`, input of that linear [B L in]) -> what is added to its
        output [B L out].
      remat: recompute each block in the backward pass instead of keeping its inner activations.
      unroll: how many layers the scan lays out at a time; True for all, which compiles longer.

    Raises:
      UserError: if an adapter names no linear of this family, or an encoder's rows are too long.
    """
    module = family(config)
    adapters = dict(adapters or {})
    if unknown := sorted(set(adapters) - set(linear_shapes(config))):
        raise UserError(f"adapters for {unknown}: no such linear; use some of {list(linear_shapes(config))}")
    frame = _module(config, module.Frame, {name: leaf for name, leaf in params.items() if name != "blocks"})
    # Ids at padding may be anything (-100, say): an id outside the table would look up NaN.
    x, context = frame.enter(jnp.where(mask, tokens, 0), mask)

    def step(x: Array, layer: tuple[Params, dict[str, Any]]) -> tuple[Array, None]:
        weights, own = layer

        def linear(block: nnx.Module, name: str, x: Array) -> Array:
            # Tokens of all rows in one axis: on CPU, gradients of products over two leading axes take twice as long.
            y = getattr(block, name)(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
            return y + apply_adapter(own[name], x).astype(y.dtype) if name in own else y

        return sharding.constrain(_module(config, module.Block, weights)(x, context, linear)), None

    body = jax.checkpoint(step, prevent_cse=False) if remat else step
    x, _ = jax.lax.scan(body, sharding.constrain(x), (params["blocks"], adapters), unroll=unroll)
    return frame.leave(x)


def next_token_logits(config: LMConfig, params: Params, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Float32 scores of each possible next token from `hidden_states`; softmax gives probabilities.

    Raises:
      UserError: if this model has no next-token head.
    """
    if not config.lm_head:
        raise UserError(f"this {config.family} model has no next-token head; use a causal language model's checkpoint")
    module = family(config)
    return _module(config, module.Frame, {k: v for k, v in params.items() if k != "blocks"}).logits(hidden)


def pool(config: LMConfig, hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """One float32 vector a row: its last real token, or the mean of its real tokens, as `config.pooling` says.

    A row of padding only gives zeros.
    """
    if config.pooling == "last":
        # argmax finds the first True of the reversed row, which is the last of the row.
        last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        picked = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
        return jnp.where(mask.any(axis=1, keepdims=True), picked, 0.0)
    total = jnp.einsum("bld,bl->bd", hidden.astype(jnp.float32), mask.astype(jnp.float32))
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def _module(config: LMConfig, kind: Any, weights: Params) -> Any:
    """The NNX module of this kind holding these arrays."""
    return nnx.merge(_description(config, kind, jax.tree.leaves(weights)[0].dtype), weights)


@functools.lru_cache(maxsize=64)
def _description(config: LMConfig, kind: Any, dtype: Any) -> Any:
    """NNX's static half of a module; depends on configuration and dtype only, so it is made once."""
    return nnx.graphdef(nnx.eval_shape(lambda: kind(config, dtype=dtype, rngs=nnx.Rngs(0))))
