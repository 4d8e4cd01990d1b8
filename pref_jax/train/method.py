"""One way to train every method: from parameters, a loss and batches to trained parameters and what they cost."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from pref_jax.comparisons import Comparisons
from pref_jax.graded import GAPS, LR_MULT, FittedScale, Graded, begin_gaps, ends_of, find_scale, grade
from pref_jax.likelihood import Scale
from pref_jax.mesh import replicated
from pref_jax.train.loop import fit
from pref_jax.train.state import LossFn, OptimizerConfig, init_state, make_step, optimizer, optimizer_by_group


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
      ties: what learns from ties reads them; False leaves them out.
      strengths: what those of preferences are for: levels, weight, margin, ignore (`pref_jax.likelihood.StrengthUse`).
    """

    optimizer: OptimizerConfig
    batch_size: int = 32
    accumulate: int = 1
    eval_batch_size: int = 128
    checkpoint_every: int = 50
    log_every: int = 10
    share_prefix: bool = True
    ties: bool = True
    strengths: str = "levels"

    def loop(self) -> dict[str, int]:
        """The options of `train` that are settings."""
        return {name: getattr(self, name) for name in ("accumulate", "checkpoint_every", "log_every")}


class Trained(NamedTuple):
    """Parameters on the mesh, and facts as JSON values: "trainable_parameters", "seconds", "was_resumed"."""

    params: Any
    facts: dict[str, Any]


class Learned(NamedTuple):
    """Votes as a training on pairs of texts reads them.

    Attributes:
      graded: what they say beyond preferences; None if nothing.
      params: begin their trainable thresholds, {"gaps": ..}; {} without any.
      optimizer: of all parameters, thresholds in a group of their own.
      scale: how the votes are read.
    """

    graded: Graded | None
    params: dict[str, Any]
    optimizer: optax.GradientTransformation
    scale: Scale

    def finish(self, trained: Trained) -> Trained:
        """Thresholds out of the parameters and into the facts, as "scale"."""
        if not self.params:
            return trained
        gaps = trained.params[GAPS]
        rest = {name: part for name, part in trained.params.items() if name != GAPS}
        scale = FittedScale(self.scale, np.asarray(ends_of(gaps), np.float64)).about()
        return Trained(rest, {**trained.facts, "scale": scale})


def open_votes(pairs: Comparisons, config: TrainingConfig) -> Learned:
    """The votes of a training; plain preferences make nothing new.

    Raises:
      UserError: for an unknown use of strengths.
    """
    scale = find_scale(pairs, config.strengths)
    graded = grade(pairs, scale)
    gaps = begin_gaps(graded, scale)
    if not gaps:
        return Learned(graded, {}, optimizer(config.optimizer), scale)
    return Learned(graded, {GAPS: gaps}, optimizer_by_group(config.optimizer, (GAPS,), lr_mult=LR_MULT), scale)


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
