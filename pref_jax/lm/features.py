"""Frozen features: one vector for every response, each distinct response read once.

Axis letters: N responses, B batch (rows), L length, D features, S texts packed in a row, M batches.
"""

import contextlib
import errno
import functools
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32
from tqdm import tqdm

from pref_jax.data.text.token_table import Packing, TokenTable, bucket_length, pack
from pref_jax.errors import UserError
from pref_jax.files import read_json, reserve, write_json
from pref_jax.lm import backbone
from pref_jax.lm.config import LMConfig


class Plan(NamedTuple):
    """Which rows are read together.

    Attributes:
      rows: int64 [M B] for each batch, numbers of sequences, or of packed rows; -1 fills up the last batch.
      packing: how sequences share rows; None: one in each.
      limit: the most tokens of a row.
    """

    rows: Int[np.ndarray, "M B"]
    packing: Packing | None
    limit: int


def make_plan(tokens: TokenTable, *, batch_size: int, limit: int, packing: bool = False) -> Plan:
    """The longest texts come first: what does not fit into memory fails at once.

    Args:
      tokens: N texts.
      batch_size: B, rows of a batch.
      limit: the most tokens of a row that the model reads.
      packing: put several short texts into one row. All rows are then as long as the longest text, and all batches
        have one shape; otherwise texts of like length are read together and padded to the longest of them.

    Raises:
      UserError: if a text is longer than `limit`.
    """
    lengths = tokens.lengths
    widest = bucket_length(int(lengths.max(initial=0)), limit=limit)
    packed = pack(lengths, widest) if packing else None
    order = np.argsort(-lengths, kind="stable") if packed is None else np.arange(len(packed.sequences))
    filled = np.pad(order, (0, -len(order) % batch_size), constant_values=-1)
    return Plan(filled.reshape(-1, batch_size), packed, limit)


class Batch(NamedTuple):
    """One batch of a plan.

    Attributes:
      sequences: the table's sequence at each place of the result, -1 where there is none: [B], or [B S] if packed.
      ids: int32 [B L] tokens.
      mask: bool [B L], or int32 segments if packed.
    """

    sequences: Int[np.ndarray, "B"] | Int[np.ndarray, "B S"]
    ids: Int32[np.ndarray, "B L"]
    mask: Bool[np.ndarray, "B L"] | Int32[np.ndarray, "B L"]


def read(tokens: TokenTable, plan: Plan, number: int) -> Batch:
    """Batch `number` of a plan."""
    rows = plan.rows[number]
    if plan.packing is not None:
        sequences = np.where(rows[:, None] < 0, -1, plan.packing.sequences[rows])
        return Batch(sequences, *tokens.packed(plan.packing, rows))
    longest = int((tokens.offsets[rows + 1] - tokens.offsets[rows])[rows >= 0].max(initial=0))
    ids, mask = tokens.take(np.maximum(rows, 0), bucket_length(longest, limit=plan.limit))
    return Batch(rows, ids, mask & (rows >= 0)[:, None])


@functools.partial(jax.jit, static_argnames=("config", "layer", "segments"))
def pooled(
    config: LMConfig,
    params: Any,
    tokens: Int32[Array, "B L"],
    mask: Bool[Array, "B L"] | Int32[Array, "B L"],
    *,
    layer: int | None = None,
    segments: int | None = None,
) -> Float32[Array, "B D"] | Float32[Array, "B S D"]:
    """The pooled state of each text (last token, or mean, as `config.pooling` says).

    Args:
      config: the transformer.
      params: as from `backbone.init` or `checkpoint.load`.
      tokens: ids.
      mask: True at real tokens; for packed rows, the number of each token's text, from 1, and 0 at padding.
      layer: None for the last one and the final norm; k for the state after k blocks.
      segments: S for packed rows, None for one text a row.
    """
    hidden = backbone.hidden_states(config, params, tokens, mask, layer=layer)
    return backbone.pool(config, hidden, mask, segments)


def embed(
    config: LMConfig,
    params: Any,
    tokens: TokenTable,
    folder: str | Path,
    *,
    batch_size: int = 64,
    layer: int | None = None,
    packing: bool = False,
    put: Callable[[Any], Any] = jax.device_put,
    source: Any = None,
    save_every: float = 5.0,
    name: str = "embed",
) -> tuple[Float32[np.ndarray, "N D"], float]:
    """Writes features of all sequences of a table, in its order, to `folder/features.npy`.

    Killed and called again, it goes on after the last batches that were saved and ends in the same bytes. What
    another source, table, model or option has left in the folder is rewritten.

    Args:
      config: the transformer; its `pooling` says what stands for a text.
      params: its parameters, already in their place.
      tokens: N sequences.
      folder: gets `features.npy`, and `progress.json`: what made it and how far it got.
      batch_size: rows of a batch; a multiple of the parts that `put` cuts a batch into.
      layer: None or k as for `pooled`.
      packing: put several short texts into one row.
      put: takes tokens and mask [B L] to the device(s).
      source: what the parameters came from, a JSON value: it tells old work from other people's.
      save_every: seconds between savings.
      name: stands before the progress bar.

    Returns:
      The features, memory-mapped and read-only, and the seconds that they took.

    Raises:
      UserError: if a text is longer than the model's positions, or `layer` is out of range.
    """
    if layer is not None and not 0 <= layer <= config.num_layers:
        raise UserError(f"layer {layer} of a model of {config.num_layers} blocks; give 0 to {config.num_layers}")
    plan = make_plan(tokens, batch_size=batch_size, limit=config.max_positions, packing=packing)
    segments = None if plan.packing is None else plan.packing.sequences.shape[1]
    digests = [hashlib.sha256(column.data).hexdigest() for column in (tokens.flat, tokens.offsets)]
    options = {"batch_size": batch_size, "layer": layer, "packing": packing}
    made_by = {"source": source, "model": repr(config), "tokens": digests, **options}
    shape, total = (len(tokens.lengths), config.hidden_size), {"desc": name, "total": len(tokens.flat)}
    with (
        contextlib.closing(_Work(Path(folder), shape, made_by, save_every)) as work,
        tqdm(**total, initial=work.tokens, unit="token", unit_scale=True, disable=None) as bar,
    ):
        late: tuple[Batch, Array] | None = None
        for number in range(work.batches, len(plan.rows)):
            batch = read(tokens, plan, number)
            ids, mask = put((batch.ids, batch.mask))
            found = pooled(config, params, ids, mask, layer=layer, segments=segments)
            # The device computes this batch while the host fetches and writes the one before.
            if late is not None:
                bar.update(work.write(*late))
            late = batch, found
        if late is not None:
            bar.update(work.write(*late))
        return work.finish()


class _Work:
    """Features half done: an array on disk, and how far it got."""

    def __init__(self, folder: Path, shape: tuple[int, int], made_by: dict[str, Any], save_every: float):
        self._array, self._progress = folder / "features.npy", folder / "progress.json"
        self._made_by, self._save_every = made_by, save_every
        self.batches, self.tokens, self._seconds = 0, 0, 0.0
        features = self._left_over(shape)
        if features is None:
            self._progress.unlink(missing_ok=True)
            features = np.lib.format.open_memmap(self._array, "w+", np.float32, shape)
            reserve(self._array)
        self._first, self._stride = features.offset, features.strides[0]
        # Not through the mapping: where the disk is full all the same, that would end the process by a signal.
        self._file = self._array.open("r+b", buffering=0)
        self._began = self._saved = time.perf_counter()

    def _left_over(self, shape: tuple[int, int]) -> np.memmap | None:
        """The array that the same work has left here, if it has; sets how far it got."""
        try:
            progress = read_json(self._progress)
            # Opened for writing, a file cut short would be filled up with zeros and not refused.
            features = np.load(self._array, mmap_mode="r", allow_pickle=False)
        except (UserError, OSError, ValueError):
            return None
        if progress.get("made_by") != self._made_by or features.shape != shape or features.dtype != np.float32:
            return None
        self.batches, self.tokens, self._seconds = (progress[key] for key in ("batches", "tokens", "seconds"))
        return features

    def write(self, batch: Batch, found: Array) -> int:
        """Writes a batch, waiting for its result; returns its number of tokens."""
        there = batch.sequences >= 0
        for row, state in zip(batch.sequences[there], np.asarray(found, np.float32)[there], strict=True):
            # What does not fit is cut and not an error.
            if os.pwrite(self._file.fileno(), state.tobytes(), self._first + int(row) * self._stride) < state.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._array))
        count = int((batch.mask > 0).sum())
        self.batches, self.tokens = self.batches + 1, self.tokens + count
        if time.perf_counter() - self._saved >= self._save_every:
            self._save()
        return count

    def _save(self) -> None:
        # First the features, then that they are there.
        os.fsync(self._file.fileno())
        now = time.perf_counter()
        self._seconds, self._began, self._saved = self._seconds + now - self._began, now, now
        done = {"batches": self.batches, "tokens": self.tokens, "seconds": self._seconds}
        write_json(self._progress, {"made_by": self._made_by, **done})

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def finish(self) -> tuple[np.memmap, float]:
        """Features, read-only, and seconds."""
        self._save()
        return np.load(self._array, mmap_mode="r", allow_pickle=False), self._seconds
