"""The run through all layers of a transformer: one scan, in which each layer meets its weights, adapters and past.

Axes: B batch, L length, D features, S tokens of a soft prompt, Z layers, K key heads, H head features.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from pref_jax import sharding
from pref_jax.errors import Faults
from pref_jax.lm import attention, bert, deberta, decoder, delta, gemma4, int8
from pref_jax.lm.attention import AttentionFn, Mask, Rows
from pref_jax.lm.config import LMConfig

Params = Mapping[str, Any]
ApplyAdapter = Callable[[Any, Array], Array]
Kept = dict[str, Array]

# What the backward pass keeps of each block instead of computing it again: everything; nothing but the block's input;
# the results of the linears.
REMAT: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Past(NamedTuple):
    """What a model remembers of the tokens before those that it reads.

    Attributes:
      layers: a tree whose leaves lead with the axis of `config.own_keys` layers.
      attend: (one layer's slice of `layers`, the layer's number in `config.patterns`, then the arguments of
        `attention.AttentionFn` for the new tokens alone) -> what the new tokens read from all. A layer that reads
        another's keys gets that layer's slice.
    """

    layers: Any
    attend: Callable[..., Array]


def run(
    config: LMConfig,
    params: Params,
    tokens: Int32[Array, "B L"],
    mask: Mask | Rows,
    adapters: Mapping[str, Any] | None,
    apply_adapter: ApplyAdapter,
    *,
    remat: str = "none",
    unroll: int | bool = 1,
    layer: int | None = None,
    attend: AttentionFn = attention.attend,
    soft: Float[Array, "B S D"] | None = None,
    past: Past | None = None,
    keep: bool = False,
) -> tuple[Float[Array, "B L D"], Kept]:
    """States of tokens, and with `keep` what layers keep of them; arguments as of `backbone`'s functions.

    What is kept has the axis of layers with keys of their own first: `k` and `v` [Z B L K H], and where there are
    recurrences the fields of `delta.State`.
    """
    adapters = dict(adapters or {})
    depth = config.num_layers if layer is None else layer
    # Branches stand side by side in a row, so its length is no position.
    _check_call(config, adapters, 0 if isinstance(mask, Rows) else tokens.shape[1], remat, depth)
    whole, rows = frame(config, params), attention.rows(mask)
    # Ids at padding may be anything (-100, say): an id outside the table would look up NaN.
    x, contexts = whole.enter(jnp.where(rows.segment > 0, tokens, 0), rows)
    if soft is not None:
        x = jnp.concatenate([soft.astype(x.dtype), x[:, soft.shape[1] :]], axis=1)
    inputs = None if config.gemma4 is None else whole.layer_inputs(jnp.where(rows.segment > 0, tokens, 0), x)
    body = _layer(config, contexts, len(tokens), apply_adapter, attend, past, keep or depth > config.own_keys)
    if (policy := REMAT[remat]) is not None:
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    stack = _Layer(
        params["blocks"],
        adapters,
        inputs,
        jnp.arange(depth),
        jnp.asarray(config.layer_patterns[:depth], jnp.int32),
    )

    def scan(lent: Any, x: Array, first: int, last: int) -> tuple[Array, Any]:
        some = jax.tree.map(lambda leaf: leaf[first:last], stack)
        # Layers that are lent keys are lent the past of these too.
        own = None if lent is not None or past is None else past.layers
        return jax.lax.scan(functools.partial(body, lent), x, (some, own), unroll=unroll)

    x, kept = scan(None, sharding.constrain(x), 0, min(depth, config.own_keys))
    if depth > config.own_keys:
        own = config.layer_patterns[: config.own_keys]
        lenders = np.array([len(own) - 1 - own[::-1].index(kind) for kind in range(len(config.patterns))])
        earlier = None if past is None else past.layers
        x, _ = scan(jax.tree.map(lambda leaf: leaf[lenders], (kept, earlier)), x, config.own_keys, depth)
    return whole.leave(x, rows) if depth == config.num_layers else x, kept or {}


class _Layer(NamedTuple):
    """What one layer alone has: weights, adapters, `gemma4.LayerInput`, its number, and that of its pattern."""

    weights: Params
    adapters: dict[str, Any]
    inputs: Any
    number: Int32[Array, "*Z"]
    pattern: Int32[Array, "*Z"]


def _layer(
    config: LMConfig,
    contexts: tuple[Any, ...],
    batch: int,
    apply_adapter: ApplyAdapter,
    attend: AttentionFn,
    past: Past | None,
    keep: bool,
) -> Callable[..., tuple[Array, Kept | None]]:
    """The body of the scan: (what is lent, states, (layer, its past)) -> states, and what the layer keeps."""
    # Layers of two patterns run in one scan: each picks its context by number.
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)

    def step(lent: Any, x: Array, own: tuple[_Layer, Any]) -> tuple[Array, Kept | None]:
        layer, earlier = own
        context = contexts[0] if len(contexts) == 1 else jax.tree.map(lambda leaf: leaf[layer.pattern], several)
        context = context if layer.inputs is None else context._replace(layer=layer.inputs)
        new: Kept = {}
        if config.delta is not None and (keep or past is not None):
            context = context._replace(earlier=earlier, keep=new.update)
        if lent is not None:
            lent, earlier = jax.tree.map(lambda leaf: leaf[layer.pattern], lent)

        def look(q: Array, k: Array, v: Array, *rest: Array, **more: Any) -> Array:
            k, v = (k, v) if lent is None else (lent["k"], lent["v"])
            new.update(k=k, v=v)
            if past is None:
                return attend(q, k, v, *rest, **more)
            return past.attend(earlier, layer.pattern, q, k, v, *rest, **more)

        def linear(block: nnx.Module, name: str, x: Array) -> Array:
            # Tokens of all rows in one axis: on CPU, gradients of products over two leading axes take twice as long.
            y = getattr(block, name)(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
            if name not in layer.adapters:
                return y
            # What all rows share comes as one row, but adapters may be bound to each.
            x = jnp.broadcast_to(x, (batch, *x.shape[1:]))
            return y + apply_adapter(layer.adapters[name], x).astype(y.dtype)

        block = module(config, family(config).Block, int8.widened(layer.weights, x.dtype))
        x = sharding.constrain(block(x, context, linear, look, layer.number == 0))
        return x, new if lent is None and keep else None

    return step


def _check_call(config: LMConfig, adapters: dict[str, Any], length: int, remat: str, depth: int) -> None:
    faults = Faults()
    linears = family(config).linear_shapes(config)
    if unknown := sorted(set(adapters) - set(linears)):
        faults.add(f"adapters for {unknown}", "no such linear", f"use some of {list(linears)}")
    if length > config.max_positions:
        had = f"rows of {length} tokens, but this model knows {config.max_positions} positions"
        faults.add("tokens", had, "cut the texts shorter when tokenising")
    if remat not in REMAT:
        faults.add("remat", f"{remat!r} is unknown", f"use one of {', '.join(REMAT)}")
    if not 0 <= depth <= config.num_layers:
        faults.add("layer", f"is {depth}", f"use 0 to {config.num_layers}, or None for the last")
    faults.raise_if_any("Forward pass")


def family(config: LMConfig) -> ModuleType:
    """The module that defines `Frame` and `Block` of `config.family`."""
    return {"bert": bert, "deberta": deberta, "decoder": decoder, "delta": delta, "gemma4": gemma4}[config.traits.kind]


def frame(config: LMConfig, params: Params) -> Any:
    """All but the blocks."""
    return module(config, family(config).Frame, {name: leaf for name, leaf in params.items() if name != "blocks"})


def module(config: LMConfig, kind: Any, weights: Params) -> Any:
    """The NNX module of this kind holding these arrays."""
    return nnx.merge(_description(config, kind, jax.tree.leaves(weights)[0].dtype), weights)


@functools.lru_cache(maxsize=64)
def _description(config: LMConfig, kind: Any, dtype: Any) -> Any:
    """NNX's static half of a module; depends on configuration and dtype only, so it is made once."""
    return nnx.graphdef(nnx.eval_shape(lambda: kind(config, dtype=dtype, rngs=nnx.Rngs(0))))
