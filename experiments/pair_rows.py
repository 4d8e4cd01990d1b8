"""Pairs of texts as batches of token rows: a row for each response, or one for both where that is less work.

Axis letters: B batch, L length, P pairs.
"""

import functools

import grain
import numpy as np

from experiments.stages import say
from pref_jax.data.batches import pair_batches
from pref_jax.data.preferences import Pairs
from pref_jax.data.shared_prefix import shared_lengths, shared_rows
from pref_jax.data.token_table import TokenTable
from pref_jax.lm.backbone import linear_shapes
from pref_jax.lm.config import LMConfig


def text_batches(
    pairs: Pairs, tokens: TokenTable, length: int, *, shared: int | None = None, **how: int
) -> grain.MapDataset:
    """`pair_batches` with the responses' rows replaced by their tokens, as `reward.make_loss` takes them.

    Args:
      pairs: who preferred what.
      tokens: the responses.
      length: L of rows that hold one response.
      shared: L of rows that both responses of a pair share; None for rows of one response.
      **how: as for `pair_batches`.
    """
    look_up = (
        functools.partial(_apart, tokens, length) if shared is None else functools.partial(_together, tokens, shared)
    )
    return pair_batches(pairs, **how).map(look_up)


def _apart(tokens: TokenTable, length: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    chosen, chosen_mask = tokens.take(batch["chosen"], length)
    rejected, rejected_mask = tokens.take(batch["rejected"], length)
    return {
        "user": batch["user"],
        "chosen": chosen,
        "chosen_mask": chosen_mask,
        "rejected": rejected,
        "rejected_mask": rejected_mask,
    }


def _together(tokens: TokenTable, length: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids, parts = shared_rows(tokens, batch["chosen"], batch["rejected"], length)
    return {"user": batch["user"], "tokens": ids, "parts": parts}


def shared_length(lm: LMConfig, pairs: Pairs, tokens: TokenTable, length: int) -> int | None:
    """Tokens of a row that both responses of a pair share; None where rows of one response, of `length`, are better.

    For an encoder they always are, as it reads a prompt otherwise under each answer; for a decoder they are where
    pairs have so little in common that one long row asks for more work than two short ones.
    """
    if not lm.traits.causal:
        return None
    shared = int(shared_lengths(tokens, pairs.chosen, pairs.rejected).max(initial=1))
    if _work(lm, shared) >= 2 * _work(lm, length):
        say(f"  a row for each response: {2 * length} tokens a pair are less work than {shared} in one row")
        return None
    say(f"  one row for both responses of a pair: {shared} tokens in place of {2 * length}")
    return shared


def _work(lm: LMConfig, length: int) -> int:
    """Multiplications of a block for one row: linears, and attention, which looks at all of the row."""
    linears = sum(d * f for d, f in linear_shapes(lm).values())
    return length * (linears + 2 * length * lm.num_heads * lm.head_dim)
