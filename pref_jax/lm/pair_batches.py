"""Pairs of texts as batches of token rows: a row for each response, or one for both where that is less work.

Axis letters: B batch, L length, P pairs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int

from pref_jax.comparisons import Comparisons, Votes
from pref_jax.data.loaders.batches import pair_batches
from pref_jax.data.loaders.episodes import episode_batches
from pref_jax.data.text.shared_prefix import shared_lengths, shared_rows
from pref_jax.data.text.token_table import TokenTable
from pref_jax.lm.backbone import linear_shapes
from pref_jax.lm.config import LMConfig
from pref_jax.lm.text_model import TextModel
from pref_jax.progress import log

STEP = 8
# Rows of responses, chosen and rejected [B] -> the texts of B pairs, as `pref_jax.lm.pairs.pair_states` takes them.
LookUp = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


class Texts(NamedTuple):
    """The responses of a data set as a model reads them.

    Attributes:
      model: the transformer.
      tokens: all responses under their prompts.
    """

    model: TextModel
    tokens: TokenTable

    @property
    def length(self) -> int:
        """Of the longest text, rounded up: training batches all have this one length, so one step compiles."""
        return rounded(int(self.tokens.lengths.max(initial=1)), self.model.config)

    def shared_length(self, pairs: Comparisons, share_prefix: bool) -> int | None:
        """`shared_length` of these pairs; None unless `share_prefix`."""
        return shared_length(self.model.config, pairs, self.tokens, self.length) if share_prefix else None


def open_texts(model: TextModel, responses: pa.Table) -> Texts:
    """Tokenizes a table of responses; says how many texts were cut."""
    tokens = model.tokenize(responses)
    if tokens.truncated:
        log(f"  {tokens.truncated} of {len(tokens.lengths)} texts cut to their last {model.max_length} tokens")
    return Texts(model, tokens)


def pair_margins(
    texts: Texts,
    pairs: Votes,
    read: Callable[..., jax.Array],
    *,
    route: Int[np.ndarray, " P"] | None = None,
    **how: int,
) -> Float32[np.ndarray, " P"]:
    """Reward of the chosen less that of the rejected response of each pair; a response is read once for each route.

    Args:
      texts: the responses.
      pairs: what to score.
      read: gives rewards [B], as for `TextModel.read_rows`.
      route: of each pair, from 0: what its rewards depend on beside the texts.
      **how: `batch_size` and `room`, as for `TextModel.read_rows`.
    """
    count = len(texts.tokens.lengths)
    sides = np.concatenate([pairs.chosen, pairs.rejected]).astype(np.int64)
    codes = sides if route is None else sides + np.tile(route.astype(np.int64), 2) * count
    distinct, where = np.unique(codes, return_inverse=True)
    own = None if route is None else (distinct // count).astype(np.int32)
    rewards = texts.model.read_rows(texts.tokens, read, rows=distinct % count, route=own, **how)
    chosen, rejected = rewards[where, 0].reshape(2, -1)
    return chosen - rejected


def text_batches(
    pairs: Comparisons, tokens: TokenTable, length: int, *, shared: int | None = None, **how: Any
) -> grain.MapDataset:
    """`pair_batches` with the responses' rows replaced by their tokens, as `reward.make_loss` takes them.

    Args:
      pairs: who preferred what.
      tokens: the responses.
      length: L of rows that hold one response.
      shared: L of rows that both responses of a pair share; None for rows of one response.
      **how: as for `pair_batches`.
    """
    return with_texts(pair_batches(pairs, **how), tokens, length, shared=shared)


def with_texts(batches: grain.MapDataset, tokens: TokenTable, length: int, *, shared: int | None) -> grain.MapDataset:
    """Batches with rows of responses, `chosen` and `rejected` [B], replaced by tokens; what else they hold stays."""
    texts = _texts(tokens, length, shared)

    def look_up(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rest = {name: leaf for name, leaf in batch.items() if name not in ("chosen", "rejected")}
        return {**rest, **texts(batch["chosen"], batch["rejected"])}

    return batches.map(look_up)


def text_episodes(
    pairs: Comparisons, tokens: TokenTable, length: int, *, shared: int | None = None, **how: int
) -> grain.MapDataset:
    """`episode_batches` with the responses' rows replaced by their tokens, as `deep.make_loss` takes them.

    Arguments as for `text_batches`, `how` as for `episode_batches`.
    """
    texts = _texts(tokens, length, shared)

    def look_up(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shape = batch["mask"].shape
        rows = texts(batch["chosen"].reshape(-1), batch["rejected"].reshape(-1))
        found = {name: row.reshape(*shape, -1) for name, row in rows.items()}
        return {"mask": batch["mask"], "support": batch["support"], **found}

    return episode_batches(pairs, **how).map(look_up)


def _texts(tokens: TokenTable, length: int, shared: int | None) -> LookUp:
    def apart(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, np.ndarray]:
        rows = {"chosen": tokens.take(chosen, length), "rejected": tokens.take(rejected, length)}
        return {name: ids for name, (ids, _) in rows.items()} | {f"{name}_mask": m for name, (_, m) in rows.items()}

    def together(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, np.ndarray]:
        ids, parts = shared_rows(tokens, chosen, rejected, shared or length)
        return {"tokens": ids, "parts": parts}

    return apart if shared is None else together


def rounded(length: int, lm: LMConfig) -> int:
    """`length` up to a multiple of `STEP`, at most what the model reads.

    Seeds and data sets of like texts then have batches of one shape, and a program compiled for one serves all.
    """
    return max(length, min(-(-length // STEP) * STEP, lm.max_positions))


def shared_length(lm: LMConfig, pairs: Comparisons, tokens: TokenTable, length: int) -> int | None:
    """Tokens of a row that both responses of a pair share, `rounded`; None where a row for each is better.

    For an encoder they always are, as it reads a prompt otherwise under each answer, and so they are for a model with
    states that go on from token to token; for a decoder they are where
    pairs have so little in common that one long row asks for more work than two short ones.
    """
    if not lm.shares_prefix:
        return None
    shared = int(shared_lengths(tokens, pairs.chosen, pairs.rejected).max(initial=1))
    if _work(lm, shared) >= 2 * _work(lm, length):
        log(f"  a row for each response: {2 * length} tokens a pair are less work than {shared} in one row")
        return None
    log(f"  one row for both responses of a pair: {shared} tokens in place of {2 * length}")
    return rounded(shared, lm)


def _work(lm: LMConfig, length: int) -> int:
    """Multiplications of a block for one row: linears, and attention, which looks at all of the row."""
    linears = sum(d * f for d, f in linear_shapes(lm).values())
    return length * (linears + 2 * length * lm.num_heads * lm.head_dim)
