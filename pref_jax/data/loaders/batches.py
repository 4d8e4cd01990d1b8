"""Shuffled batches with random access: batch i follows from the seed and i alone, so a run resumes at any step.

Axis letters: B batch, P pairs, m columns, n of them that are drawn.
"""

import grain
import numpy as np
from jaxtyping import Bool, Int64

from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.graded import Graded


class _ShuffledRows:
    """A grain source whose item i is the int64 [B] row numbers of batch i."""

    def __init__(self, num_rows: int, batch_size: int, num_steps: int, seed: int):
        self._num_rows, self._batch_size, self._num_steps, self._seed = num_rows, batch_size, num_steps, seed
        self._per_epoch = max(1, num_rows // batch_size)
        self._latest: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, place = divmod(int(index), self._per_epoch)
        return self._epoch(epoch)[place * self._batch_size : (place + 1) * self._batch_size].copy()

    def _epoch(self, epoch: int) -> np.ndarray:
        # One epoch is remembered. Reader threads may both make it again at a border: they make the same one.
        latest = self._latest
        if latest is None or latest[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            rounds = -(-self._batch_size // self._num_rows) if self._num_rows < self._batch_size else 1
            latest = epoch, np.concatenate([rng.permutation(self._num_rows) for _ in range(rounds)])
            self._latest = latest
        return latest[1]


def index_batches(num_rows: int, batch_size: int, num_steps: int, seed: int) -> grain.MapDataset:
    """Row numbers for `num_steps` batches, shuffled again each epoch.

    An epoch visits each row at most once; the remainder that fills no batch is dropped, another one each epoch. With
    fewer rows than B, a batch is filled by whole shuffles one after another, cut to B: each row stands in it
    floor(B / rows) or ceil(B / rows) times.

    Args:
      num_rows: rows to draw from.
      batch_size: B.
      num_steps: number of batches; the data set's length.
      seed: from 0. Batch i depends on nothing but `num_rows`, `batch_size`, `seed` and i.

    Returns:
      A `grain.MapDataset` of int64 [B]. Its `.map(f)` turns row numbers into whatever the step needs.

    Raises:
      UserError: if there are no rows, or a size or the seed is out of range.
    """
    if num_rows < 1:
        raise UserError("batches: there are no rows to draw from; check the split and the filters that made it")
    if batch_size < 1 or num_steps < 1 or seed < 0:
        raise UserError(
            f"batches: batch_size={batch_size} num_steps={num_steps} seed={seed}: "
            "sizes start at 1 and the seed at 0; fix the config"
        )
    return grain.MapDataset.source(_ShuffledRows(num_rows, batch_size, num_steps, seed))


def pair_batches(
    pairs: Comparisons, *, batch_size: int, num_steps: int, seed: int, graded: Graded | None = None
) -> grain.MapDataset:
    """Batches of comparisons, by the rule of `index_batches`.

    Returns:
      A `grain.MapDataset` of `num_steps` dicts with `user`, `chosen`, `rejected`, each int32 [B], and with `graded` of
      the same comparisons its fields, int32 or float32 [B].

    Raises:
      UserError: if there are no pairs, or a size or the seed is out of range.
    """
    rows = index_batches(len(pairs.user), batch_size, num_steps, seed)
    columns = {"user": pairs.user, "chosen": pairs.chosen, "rejected": pairs.rejected}
    own = {} if graded is None else graded._asdict()

    def take(index: Int64[np.ndarray, "B"]) -> dict[str, np.ndarray]:
        rows = {name: np.asarray(column[index], np.int32) for name, column in columns.items()}
        return rows | {name: column[index] for name, column in own.items()}

    return rows.map(take)


def sample_columns(
    there: Bool[np.ndarray, "B m"], most: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, "B n"], Bool[np.ndarray, "B n"]]:
    """For each row up to `most` of the columns that are `there`, in random order, and which are real; padding last."""
    drawn = np.argsort(np.where(there, rng.random(there.shape), 2.0), axis=1)[:, :most]
    return drawn, np.take_along_axis(there, drawn, axis=1)
