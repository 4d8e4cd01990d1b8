"""Frozen features: one vector for every response, each distinct response read once.

Axis letters: N responses, B batch, L length, D features.
"""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32
from tqdm import tqdm

from pref_jax.data.tokens import TokenTable
from pref_jax.lm import backbone
from pref_jax.lm.config import LMConfig

_STEP = 32  # lengths are rounded up to a multiple of it: few shapes to compile, little padding


@functools.partial(jax.jit, static_argnums=0)
def pooled(
    config: LMConfig, params: Any, tokens: Int32[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float32[Array, "B D"]:
    """The pooled final state of each text (last token, or mean, as `config.pooling` says)."""
    return backbone.pool(config, backbone.hidden_states(config, params, tokens, mask), mask)


def embed(
    config: LMConfig, params: Any, tokens: TokenTable, *, batch_size: int = 64, name: str = "embed"
) -> Float32[np.ndarray, "N D"]:
    """Features of all sequences of a table, in its order; texts of like length are read together."""
    lengths = tokens.lengths
    order = np.argsort(lengths, kind="stable")
    features = np.zeros((len(lengths), config.hidden_size), np.float32)
    with tqdm(desc=name, total=int(lengths.sum()), unit="token", unit_scale=True, disable=None) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            padded = np.pad(rows, (0, batch_size - len(rows)), mode="edge")
            longest = int(lengths[rows].max(initial=1))
            ids, mask = tokens.take(padded, -(-longest // _STEP) * _STEP)
            features[rows] = np.asarray(pooled(config, params, ids, mask))[: len(rows)]
            bar.update(int(lengths[rows].sum()))
    return features
