"""One way to train every method: from parameters, a loss and batches to trained parameters and what they cost."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import optax
from jax.sharding import Mesh

from pref_jax.mesh import replicated
from pref_jax.train.loop import fit
from pref_jax.train.state import LossFn, OptimizerConfig, init_state, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a method trains on pairs of texts.

    Attributes:
      optimizer: AdamW and its steps.
      batch_size: pairs (or users, where a batch is of users) of a step.
      accumulate: micro-batches of a step.
      eval_batch_size: rows that are scored at a time.
      checkpoint_every: steps between checkpoints; 0 writes the last one only.
      log_every: steps between lines of the log.
      share_prefix: decoders read the beginning that a pair's texts share once, where that saves work.
    """

    optimizer: OptimizerConfig
    batch_size: int = 32
    accumulate: int = 1
    eval_batch_size: int = 128
    checkpoint_every: int = 50
    log_every: int = 10
    share_prefix: bool = True

    def loop(self) -> dict[str, int]:
        """The options of `train` that are settings."""
        return {name: getattr(self, name) for name in ("accumulate", "checkpoint_every", "log_every")}


class Trained(NamedTuple):
    """Parameters on the mesh, and facts as JSON values: "trainable_parameters", "seconds", "was_resumed"."""

    params: Any
    facts: dict[str, Any]


def was_resumed(folder: Path) -> bool:
    """Whether a training in `folder` goes on from checkpoints of a process that was killed.

    The seconds that it then reports are of the rest alone, which tables say.
    """
    return any(folder.rglob("checkpoints/*"))


def stopwatch(folder: Path) -> Callable[[], dict[str, Any]]:
    """Starts the clock of a training in `folder`; called at its end, it returns "seconds" and "was_resumed"."""
    start, again = time.perf_counter(), was_resumed(folder)
    return lambda: {"seconds": time.perf_counter() - start, "was_resumed": again}


def train(
    *,
    params: Any,
    frozen: Any,
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    batches: grain.MapDataset,
    folder: Path,
    mesh: Mesh,
    seed: int,
    accumulate: int = 1,
    checkpoint_every: int = 0,
    log_every: int = 10,
) -> Trained:
    """Trains `params` for `len(batches)` steps; a killed training is resumed from the checkpoints in `folder`.

    Args:
      params: where to begin; a copy is put on each device of the mesh.
      frozen: what the loss reads beside them.
      loss: see `pref_jax.train.state.LossFn`.
      optimizer: of the parameters.
      batches: one for each step.
      folder: gets checkpoints and logs; its name stands in them.
      mesh: the devices.
      seed: of the loss's randomness.
      accumulate: micro-batches of a step.
      checkpoint_every: steps between checkpoints; 0 writes the last one only.
      log_every: steps between lines of the log.
    """
    spent = stopwatch(folder)
    state = fit(
        name=folder.name,
        state=init_state(jax.device_put(params, replicated(mesh)), optimizer, seed),
        frozen=frozen,
        step=make_step(loss, optimizer, accumulate=accumulate),
        batches=batches,
        folder=folder,
        mesh=mesh,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        consume=True,
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Trained(state.params, {"trainable_parameters": size, **spent()})
