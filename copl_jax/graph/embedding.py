"""From votes to embeddings of seen users and of all responses: graph, training, and what validation says of it."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from copl_jax.graph import edge_weights, training
from copl_jax.graph.cold_start import reembed_seen_users
from copl_jax.graph.settings import GCFConfig
from pref_jax.comparisons import Comparisons
from pref_jax.graded import FittedScale, find_scale, fit_thresholds
from pref_jax.train.method import stopwatch


class Embedded(NamedTuple):
    """Embeddings by the graph.

    Attributes:
      users: float32 [U C], rows of length 1; those of unseen users mean nothing.
      responses: float32 [N C], as they come out of the last layer.
      scale: how votes are read, its thresholds for margins of `users` and `responses`.
      facts: JSON values: validation accuracy of both kinds of user embeddings, history, seconds, config, scale.
    """

    users: Float[np.ndarray, "U C"]
    responses: Float[np.ndarray, "N C"]
    scale: FittedScale
    facts: dict[str, Any]


def embed_users(
    config: GCFConfig,
    train: Comparisons,
    validation: Comparisons,
    *,
    seen: Bool[np.ndarray, " U"],
    num_responses: int,
    seed: int,
    folder: Path,
    mesh: Mesh | None = None,
    reembed: bool = False,
) -> Embedded:
    """Trains the graph of `train`, stopped by `validation`; a killed training is resumed from `folder`.

    Args:
      config: model and recipe.
      train: votes of seen users, with ties where they are to be used.
      validation: held-out votes of the same users.
      seen: which users these are.
      num_responses: N.
      seed: of initialisation, dropout and batches.
      folder: gets `checkpoints/`.
      mesh: the devices; None or one device: JAX's default device.
      reembed: seen users are embedded from their own votes, as unseen users are (`reembed_seen_users`).

    Raises:
      UserError: see `training.fit`.
    """
    spent = stopwatch(folder)
    scale = find_scale(train, config.strengths)
    graph = edge_weights.build(train, scale, num_users=len(seen), num_responses=num_responses)
    several = mesh if mesh is not None and mesh.size > 1 else None
    key, checkpoints = jax.random.key(seed), folder / "checkpoints"
    found = training.fit(config, graph, train, validation, key, scale=scale, mesh=several, folder=checkpoints)
    # Training's thresholds are for users' embeddings before they were scaled to length 1.
    fitted = fit_thresholds(margins(found.users, found.responses, train), train, scale)
    fresh = reembed_seen_users(users=found.users, responses=found.responses, seen=seen, train_pairs=train, scale=fitted)
    facts = {
        "validation_accuracy": found.best_accuracy,
        "validation_accuracy_refreshed": accuracy(fresh, found.responses, validation),
        "best_step": found.best_step,
        "history": {name: _finite(values) for name, values in found.history.items()},
        **spent(),
        "config": dataclasses.asdict(config),
        "scale": fitted.about(),
    }
    return Embedded(fresh if reembed else found.users, found.responses, fitted, facts)


def margins(users: np.ndarray, responses: np.ndarray, pairs: Comparisons) -> np.ndarray:
    """How much nearer each pair's chosen response lies to its user than the rejected one."""
    return np.sum(users[pairs.user] * (responses[pairs.chosen] - responses[pairs.rejected]), axis=-1)


def accuracy(users: np.ndarray, responses: np.ndarray, pairs: Comparisons) -> float:
    """Share of the decided pairs whose chosen response lies nearer to its user; 0 without such pairs."""
    pairs = pairs if pairs.tie is None else pairs.take(~pairs.tie)
    return float(np.mean(margins(users, responses, pairs) > 0)) if len(pairs.user) else 0.0


def _finite(values: np.ndarray) -> list[float | int | None]:
    """Numbers as JSON has them, which knows no NaN: None after a training diverged."""
    return [value if np.isfinite(value) else None for value in values.tolist()]
