"""Layers of unequal sizes (Gemma 4), stacked: which entries of a stacked parameter each of them has.

A stack is as wide as its widest layer. What the others do not have is never read. Of a narrower head, the two halves
lie at the beginnings of the two halves of a wider one, so that rotation pairs the same features.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pref_jax.lm.config import LMConfig

Places = tuple[np.ndarray | None, ...]


class Sizes(NamedTuple):
    """Features of a head, key heads, and width of the MLP."""

    head_dim: int
    kv_heads: int
    mlp: int


def sizes(config: LMConfig, layer: int) -> Sizes:
    """Those of one layer."""
    own = config.gemma4
    if own is None:
        return Sizes(config.head_dim, config.num_kv_heads, config.intermediate_size)
    twice = 2 if own.wide_shared and layer >= config.own_keys else 1
    if config.sliding_layers and config.sliding_layers[layer]:
        return Sizes(config.head_dim, config.num_kv_heads, twice * config.intermediate_size)
    return Sizes(own.full_head_dim, own.full_kv_heads, twice * config.intermediate_size)


def largest(config: LMConfig) -> Sizes:
    """Those of the stack."""
    return Sizes(
        *(max(size) for size in zip(*(sizes(config, layer) for layer in range(config.num_layers)), strict=True))
    )


def head_places(head_dim: int, width: int) -> np.ndarray:
    """Which of `width` features a head of `head_dim` has."""
    half = np.arange(head_dim // 2)
    return np.concatenate([half, width // 2 + half])


@functools.lru_cache(maxsize=4096)
def features(config: LMConfig, name: str, layer: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Which inputs and outputs a layer has of the named linear, or, as outputs, of a norm of heads; None: all."""
    own, whole = sizes(config, layer), largest(config)
    if config.gemma4 is None or own == whole:
        return None, None
    head = head_places(own.head_dim, whole.head_dim)

    def heads(count: int) -> np.ndarray:
        return (np.arange(count)[:, None] * whole.head_dim + head[None]).reshape(-1)

    if name in ("q_norm", "k_norm"):
        return None, head
    if name in ("q_proj", "o_proj"):
        places = heads(config.num_heads)
    elif name in ("k_proj", "v_proj"):
        places = heads(own.kv_heads)
    elif name in ("gate_proj", "up_proj", "down_proj"):
        places = np.arange(own.mlp)
    else:
        return None, None
    return (places, None) if name in ("o_proj", "down_proj") else (None, places)


def places(config: LMConfig, path: str, layer: int) -> Places | None:
    """For each axis of one layer of a parameter, the entries that the layer has; None: all of them.

    Args:
      config: the transformer.
      path: such as `blocks/q_proj/kernel`.
      layer: its number.
    """
    parts = path.split("/")
    if config.gemma4 is None or parts[0] != "blocks" or len(parts) < 3:
        return None
    into, out = features(config, parts[1], layer)
    found = (into, out) if parts[2] == "kernel" else (out,)
    return found if any(axis is not None for axis in found) else None


def cut_shape(shape: tuple[int, ...], places: Places | None) -> tuple[int, ...]:
    """The shape of what a layer has of a parameter."""
    return shape if places is None else tuple(n if p is None else len(p) for n, p in zip(shape, places, strict=True))


def cut(array: np.ndarray, places: Places | None) -> np.ndarray:
    """What a layer has of a parameter."""
    for axis, own in enumerate(places or ()):
        array = array if own is None else array.take(own, axis=axis)
    return array


def within(places: Places, bounds: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[np.ndarray]]:
    """For a part of a parameter, along each axis: from where to where it is in the cut, and where that lies in it."""
    spans, targets = [], []
    for own, (low, high) in zip(places, bounds, strict=True):
        own = np.arange(high) if own is None else own
        first, last = (int(place) for place in np.searchsorted(own, (low, high)))
        spans.append((first, last))
        targets.append(own[first:last] - low)
    return spans, targets
