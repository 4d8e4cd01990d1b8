"""From votes to embeddings: of seen users and all responses by the graph's training, of new users without any."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from copl_jax.graph import edge_weights, training
from copl_jax.graph.cold_start import cold_start, reembed_seen_users
from copl_jax.graph.settings import GCFConfig
from copl_jax.graph.solved_users import ResponseTable, solve_users
from copl_jax.graph.text_nodes import settle
from copl_jax.graph.training import GCFResult, normalised
from pref_jax.comparisons import Comparisons
from pref_jax.graded import FittedScale, find_scale, fit_thresholds
from pref_jax.train.method import stopwatch


class Embedded(NamedTuple):
    """Embeddings by the graph.

    Attributes:
      users: float32 [U C], rows of length 1, for gates; those of unseen users mean nothing.
      raw_users: float32 [U C], what the graph itself scores with: `users`, or with a table not scaled.
      responses: float32 [N C], as they are read out.
      bias: float32 [N], added to products of users and responses.
      table: what new users are solved from; None where they are embedded by two hops.
      scale: how votes are read, its thresholds for margins of `raw_users`.
      facts: JSON values: validation accuracy of both kinds of user embeddings, history, seconds, config, scale.
    """

    users: Float[np.ndarray, "U C"]
    raw_users: Float[np.ndarray, "U C"]
    responses: Float[np.ndarray, "N C"]
    bias: Float[np.ndarray, " N"]
    table: ResponseTable | None
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
    features: Callable[[], Float[np.ndarray, "N F"]] | None = None,
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
      reembed: seen users are embedded from their own votes, as unseen users are (`embed_new_users`).
      features: gives those of the responses' texts; called where `config.nodes` asks for them.

    Raises:
      UserError: see `training.fit`.
    """
    spent = stopwatch(folder)
    config = settle(config, train, texts=features is not None)
    rows = None if features is None or config.nodes == "table" else features()
    scale = find_scale(train, config.strengths)
    sizes = {"num_users": len(seen), "num_responses": num_responses}
    graph = edge_weights.build(train, scale, edges=config.edges, **sizes)
    several = mesh if mesh is not None and mesh.size > 1 else None
    key, checkpoints = jax.random.key(seed), folder / "checkpoints"
    found = training.fit(
        config, graph, train, validation, key, scale=scale, features=rows, mesh=several, folder=checkpoints
    )
    own = found.users if found.table is None else found.raw_users
    # Training's thresholds are for users' embeddings before they were scaled to length 1.
    fitted = fit_thresholds(margins(own, found.responses, train, found.bias), train, scale)
    fresh = _reembedded(found, seen, train, fitted)
    raw = fresh if reembed else own
    facts = {
        "validation_accuracy": found.best_accuracy,
        "validation_accuracy_refreshed": accuracy(fresh, found.responses, validation, found.bias),
        "best_step": found.best_step,
        "history": {name: _finite(values) for name, values in found.history.items()},
        "priors": {f"{prior:g}": loss for prior, loss in found.priors.items()},
        **spent(),
        "config": dataclasses.asdict(config),
        "scale": fitted.about(),
    }
    users = raw if found.table is None else normalised(raw)
    return Embedded(users, raw, found.responses, found.bias, found.table, fitted, facts)


def _reembedded(found: GCFResult, seen: np.ndarray, train: Comparisons, scale: FittedScale) -> Float[np.ndarray, "U C"]:
    """Seen users embedded from their own votes: of length 1 by two hops, not scaled by a table."""
    if found.table is None:
        return reembed_seen_users(
            users=found.users, responses=found.responses, seen=seen, train_pairs=train, scale=scale
        )
    fresh = found.raw_users.copy()
    fresh[seen] = solve_users(found.table, train, np.flatnonzero(seen), scale=scale)
    return fresh


class NewUsers(NamedTuple):
    """What `embed_new_users` returns.

    Attributes:
      users: float [M C], for gates.
      no_votes: bool [M], who has none, and so the mean of the seen users.
      neighbours: int [M], how many seen users chose the same; None where they are not asked.
    """

    users: Float[np.ndarray, "M C"]
    no_votes: Bool[np.ndarray, " M"]
    neighbours: Any


def embed_new_users(
    *,
    users: Float[np.ndarray, "U C"],
    responses: Float[np.ndarray, "N C"],
    table: ResponseTable | None,
    seen: Bool[np.ndarray, " U"],
    train_pairs: Comparisons,
    context: Comparisons,
    unseen: Int[np.ndarray, " M"],
    scale: FittedScale | None = None,
) -> NewUsers:
    """Embeds users whom the graph does not know from their own votes, without training.

    With a table they are solved from it and have length 1 (`solve_users`), without one they are made of seen users who
    chose the same (`cold_start`). Arguments as there.

    Raises:
      UserError: see `cold_start`.
    """
    no_votes = ~np.isin(unseen, context.user)
    if table is None:
        found = cold_start(
            users=users,
            responses=responses,
            seen=seen,
            train_pairs=train_pairs,
            context=context,
            unseen=unseen,
            scale=scale,
        )
        return NewUsers(found.embeddings, no_votes, found.num_neighbours)
    solved = normalised(solve_users(table, context, unseen, scale=scale))
    solved[~solved.any(axis=1)] = users[seen].mean(axis=0)
    return NewUsers(solved, no_votes, None)


def margins(users: np.ndarray, responses: np.ndarray, pairs: Comparisons, bias: np.ndarray | None = None) -> np.ndarray:
    """By how much each pair's chosen response is worth more to its user than the rejected one."""
    found = np.sum(users[pairs.user] * (responses[pairs.chosen] - responses[pairs.rejected]), axis=-1)
    return found if bias is None else found + bias[pairs.chosen] - bias[pairs.rejected]


def accuracy(users: np.ndarray, responses: np.ndarray, pairs: Comparisons, bias: np.ndarray | None = None) -> float:
    """Share of the decided pairs whose chosen response is worth more to its user; 0 without such pairs."""
    pairs = pairs if pairs.tie is None else pairs.take(~pairs.tie)
    return float(np.mean(margins(users, responses, pairs, bias) > 0)) if len(pairs.user) else 0.0


def _finite(values: np.ndarray) -> list[float | int | None]:
    """Numbers as JSON has them, which knows no NaN: None after a training diverged."""
    return [value if np.isfinite(value) else None for value in values.tolist()]
