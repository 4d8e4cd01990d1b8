"""What a decoder keeps of the tokens it has read, so that the next token of each row is read alone.

A prompt is kept once, however many rows go on from it; each row has room for its own tokens besides. The room is of a
fixed size, so that one program reads every token.

Axes: P prompts, B rows (those that go on from one prompt stand one after another), S tokens of a prompt, T room for
tokens behind it, Z layers with keys of their own, K key heads, H head features, D features of a state, M patterns.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from pref_jax import sharding
from pref_jax.errors import UserError
from pref_jax.lm import attention, backbone, lora
from pref_jax.lm.attention import Part, Rows
from pref_jax.lm.config import LMConfig
from pref_jax.lm.forward import ApplyAdapter, Params, Past

_HEADS = PartitionSpec(None, sharding.BATCH, "tensor")


class KeyValues(NamedTuple):
    """Of all layers, heads before tokens: that is how attention reads them."""

    k: Float[Array, "Z R K S H"]
    v: Float[Array, "Z R K S H"]


class Cache(NamedTuple):
    """What is kept of prompts and of what follows them.

    Attributes:
      prompt: of each prompt.
      where: where the prompts' tokens stand [P S].
      own: of each row's own tokens, in order; the rest is room.
      count: how many own tokens there are, as many in each row.
      states: of layers that are recurrences, by the names of `delta.State`'s fields [Z B ...]; empty without such.
    """

    prompt: KeyValues
    where: Rows
    own: KeyValues
    count: Int32[Array, ""]
    states: dict[str, Array]


def check(config: LMConfig) -> None:
    """Looks whether a model can go on from a text.

    Raises:
      UserError: if its tokens see those behind them, or it has no next-token head.
    """
    if not config.traits.causal:
        why = "reads texts both ways" if config.bidirectional else "is an encoder"
        raise UserError(f"this {config.family} model {why} and writes none; sample from a causal language model")
    if not config.lm_head:
        raise UserError(f"this {config.family} model has no next-token head; sample from a causal language model")


def start(
    config: LMConfig,
    params: Params,
    tokens: Int32[Array, "P S"],
    mask: Bool[Array, "P S"],
    adapters: Mapping[str, Any] | None = None,
    apply_adapter: ApplyAdapter = lora.apply,
    *,
    rows: int,
    room: int,
) -> tuple[Float[Array, "P D"], Cache]:
    """Reads prompts.

    Args:
      config, params, adapters, apply_adapter: as of `backbone.hidden_states`; adapters are the same for all rows.
      tokens: ids of the prompts.
      mask: true at tokens, which may be padded left, right, or both.
      rows: how many rows go on from each prompt.
      room: T.

    Returns:
      The state of each prompt's last token, and the cache, of B = `rows` P rows.

    Raises:
      UserError: as `check`.
    """
    check(config)
    # All padding goes to the left, so that every prompt ends in the last column.
    order = jnp.argsort(mask, axis=1, stable=True)
    tokens, mask = (jnp.take_along_axis(t, order, axis=1) for t in (tokens, mask))
    where = attention.rows(mask)
    # By where tokens stand: the bucket of a prompt may be longer than the model's positions.
    hidden, kept = backbone.read(config, params, tokens, where, adapters, apply_adapter)
    prompt = KeyValues(*(_pinned(kept[name].transpose(0, 1, 3, 2, 4)) for name in KeyValues._fields))
    z, p, k, _, h = prompt.k.shape
    empty = _pinned(jnp.zeros((z, rows * p, k, room, h), prompt.k.dtype))
    states = {name: jnp.repeat(leaf, rows, axis=1) for name, leaf in kept.items() if name not in KeyValues._fields}
    return hidden[:, -1], Cache(prompt, where, KeyValues(empty, empty), jnp.int32(0), states)


def step(
    config: LMConfig,
    params: Params,
    tokens: Int32[Array, " B"],
    cache: Cache,
    adapters: Mapping[str, Any] | None = None,
    apply_adapter: ApplyAdapter = lora.apply,
    *,
    unroll: int | bool = 1,
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads the next token of every row; there must be room for it.

    Returns:
      Its state, and the cache with it.
    """
    place = cache.where.position[:, -1] + 1 + cache.count
    rows = len(tokens) // len(place)
    here = Rows(jnp.ones((len(tokens), 1), jnp.int32), jnp.repeat(place, rows)[:, None])
    past = Past({"prompt": cache.prompt, "own": cache.own, **cache.states}, _attend(config, cache, here))
    hidden, kept = backbone.read(
        config, params, tokens[:, None], here, adapters, apply_adapter, past=past, unroll=unroll
    )
    own = KeyValues(*(_put(getattr(cache.own, name), kept[name], cache.count) for name in KeyValues._fields))
    states = {name: kept[name] for name in cache.states}
    return hidden[:, 0], cache._replace(own=own, count=cache.count + 1, states=states)


def _put(own: Array, new: Array, count: Array) -> Array:
    """`own` [Z B K T H] with the new tokens [Z B 1 K H] in their place."""
    return jax.lax.dynamic_update_slice_in_dim(own, _pinned(new.transpose(0, 1, 3, 2, 4)), count, axis=3)


def _attend(config: LMConfig, cache: Cache, here: Rows) -> Callable[..., Array]:
    """How the next token of each row looks at its prompt, at the row's own tokens and at itself."""
    prompts, room = len(cache.where.position), cache.own.k.shape[3]
    together = Rows(here.segment.reshape(prompts, -1), here.position.reshape(prompts, -1))
    slot = jnp.arange(room, dtype=jnp.int32)[None]
    begin = jnp.repeat(cache.where.position[:, -1:] + 1, together.segment.shape[1], axis=0)
    there = jnp.broadcast_to((slot < cache.count).astype(jnp.int32), (len(here.segment), room))
    own = Rows(there, begin + slot)

    def seen(queries: Rows, keys: Rows) -> Bool[Array, "M R 1 Q S"]:
        each = [attention.visible(queries, causal=True, window=kind.window, keys=keys) for kind in config.patterns]
        return jnp.stack(each)

    of_prompt, of_own = seen(together, cache.where), seen(here, own)

    def attend(layer: Any, kind: Array, q: Array, k: Array, v: Array, allowed: Array, **more: Any) -> Array:
        new = Part(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), allowed)
        prompt, own = layer["prompt"], layer["own"]
        parts = [Part(prompt.k, prompt.v, of_prompt[kind]), Part(own.k, own.v, of_own[kind]), new]
        return attention.over_parts(q, parts, **more)

    return attend


def _pinned(x: Array) -> Array:
    """Keys or values [Z B K ...] with batch and heads where the mesh has them."""
    return sharding.constrain(x, _HEADS)
