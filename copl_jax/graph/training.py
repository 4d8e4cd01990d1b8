"""How the graph's embeddings are trained: the paper's recipe, a fast one, and the fit that runs either.

A round is the steps between two looks at the validation pairs, one compiled program. Between rounds the host
decides whether to go on, shows progress, and writes checkpoints from which a killed fit goes on to the same bits.

Axes: P pairs (padded), U users, N responses, V nodes (users, responses, padding), D features.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key
from tqdm import tqdm

from copl_jax.graph import gcf
from copl_jax.graph.gcf import Params
from copl_jax.graph.settings import GCFConfig
from copl_jax.graph.signed_graph import REPLICATED, SHARDED, Batch, SignedGraph, batch_of
from copl_jax.graph.solved_users import ResponseTable, response_degrees
from copl_jax.graph.text_nodes import TextMap, describe, settle
from pref_jax import sharding
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.graded import GAPS, LR_MULT, Gaps, Graded, begin_gaps, grade
from pref_jax.item_values import choose_item_values
from pref_jax.likelihood import Scale
from pref_jax.train.checkpoint import Checkpoints
from pref_jax.train.state import TrainState

_NAME = "graph"
# Parameters that are the same on every device: small and few, and not of nodes.
_COPIED = ("layers", GAPS, gcf.TEXT)
History = dict[str, list[Any]]  # of ints and floats, one entry an evaluation


class GCFResult(NamedTuple):
    """What `fit` returns; NumPy arrays on the host, but for `params`.

    Attributes:
      users: float [U D], rows of length 1; what gates and unseen users' adaptation take.
      responses: float [N D], as they are read out.
      raw_users: float [U D], likewise, not scaled: what the graph's own rewards are products of.
      bias: float [N], to be added to products; 0 without `config.bias`.
      table: what new users are solved from; None but for the layer `linear` with a prior.
      history: "step", "train_loss", "validation_loss", "validation_accuracy" and "seconds" (since the fit began,
        interruptions left out), one entry an evaluation.
      best_step: steps taken when the checkpoint was written.
      best_accuracy: its validation accuracy, in [0, 1]; 0 without validation pairs.
      best_loss: its loss of the validation pairs.
      priors: the validation loss of each prior that was tried.
      params: the checkpoint, see `gcf.init`.
    """

    users: np.ndarray
    responses: np.ndarray
    raw_users: np.ndarray
    bias: np.ndarray
    table: ResponseTable | None
    history: dict[str, np.ndarray]
    best_step: int
    best_accuracy: float
    best_loss: float
    priors: dict[float, float]
    params: Params


class _Task(NamedTuple):
    """What all priors' fits share. `data`: the graph, training and validation pairs, placed; `size`: training pairs."""

    config: GCFConfig
    data: tuple[Any, ...]
    size: int
    key: Array
    made_from: str
    checkpoint_every: int


class _Run(NamedTuple):
    """What a round changes. `best` is {"params", "accuracy", "loss", "step"} of the best evaluation so far, `bad` the
    number of evaluations since."""

    params: Params
    opt_state: Any
    step: Int[Array, ""]
    best: dict[str, Any]
    bad: Int[Array, ""]


def fit(
    config: GCFConfig,
    graph: SignedGraph,
    train: Comparisons,
    validation: Comparisons,
    key: Key[Array, ""],
    *,
    scale: Scale | None = None,
    features: Float[np.ndarray, "N F"] | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    folder: str | Path | None = None,
    checkpoint_every: int = 10,
) -> GCFResult:
    """Trains the embeddings and returns the best checkpoint's.

    The best is the one of highest validation accuracy, of lowest validation loss among equals, or by `config.select`
    that of lowest loss; the last one if there are no validation pairs. On a mesh, edges, pairs and the table's rows
    (with the optimizer's moments) are cut over all devices.

    With `config.priors` there is a fit for each, the strongest first, until two in a row are no better than the best;
    without validation pairs for the middle one alone.

    Args:
      config: model and recipe; each distinct one compiles once for each bucket of sizes.
      graph: of the training pairs.
      train: pairs to learn, rows of the graph's users and responses.
      validation: held-out pairs of the same users.
      key: randomness of initialisation, dropout and batches.
      scale: how ties, strengths and choices are read, its thresholds trained too; None: all pairs are preferences.
      features: of the responses' texts, where `config.nodes` asks for them; not read otherwise.
      dtype: of parameters and arithmetic.
      mesh: the devices; JAX's default device alone if None.
      folder: gets checkpoints, and a fit killed before goes on from the newest; None for none.
      checkpoint_every: evaluations between two checkpoints.

    Raises:
      UserError: if there are no training pairs, the folder holds another fit, or the training diverged before
        its first look at the validation pairs.
    """
    if not len(train.user):
        raise UserError("recipe.fit: there are no training pairs; check the split")
    config = settle(config, train, texts=features is not None)
    graph, text = _described(config, graph, features)
    graded = [grade(part, scale) for part in (train, validation)]
    batches = (batch_of(part, graph, own) for part, own in zip((train, validation), graded, strict=True))
    data = tuple(_place(part, mesh) for part in (graph, *batches))
    read = None if graph.features is None else (graph.features,)
    made_from = _digest(config, key, dtype, train, validation, *graded, read)
    task = _Task(config, data, len(train.user), key, made_from, checkpoint_every)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        start = _begin(config, data[0], jax.random.split(key)[0], dtype, begin_gaps(graded[0], scale))
        bias, precision = _item_bias(config, train, validation, graph, dtype)
        start = start if bias is None else start._replace(params=start.params | {gcf.BIAS: bias})
        tried: dict[float, tuple[_Run, History]] = {}
        for prior in _order(config, bool(len(validation.user))):
            where = folder if folder is None or prior is None else Path(folder) / f"prior_{prior:g}"
            own = None if prior is None else gcf.Prior(*(np.asarray(one, dtype) for one in (prior, precision)))
            tried[prior or 0.0] = _rounds(task, _place(jax.tree.map(jnp.copy, start), mesh), own, where)
            if _worse(_losses_of(tried)):
                break
        losses = _losses_of(tried)
        chosen = min(losses, key=lambda prior: losses[prior])
        run, history = tried[chosen]
        if history["step"] and not int(run.best["step"]):
            fix = "lower its learning_rate" + ("" if folder is None else f" and delete {folder}")
            raise UserError(f"recipe.fit: the graph's training diverged, no loss was finite; {fix}")
        return _result(config, graph, data[0], run, history, chosen, losses, text)


def lower_round(
    config: GCFConfig, graph: SignedGraph, train: Batch, validation: Batch, mesh: jax.sharding.Mesh
) -> jax.stages.Lowered:
    """The program of a round of `fit`, for devices that need not be there.

    Args:
      config: model and recipe; `nodes` is "table".
      graph, train, validation: arrays, or their shapes, as from `signed_graph.shapes`.
      mesh: the devices, such as those of a topology.
    """
    key, dtype = jax.random.key(0), jnp.float32

    def placed(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        kind = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        return jax.ShapeDtypeStruct(jnp.shape(leaf), kind, sharding=_lies(path, leaf, mesh))

    data = tuple(jax.tree_util.tree_map_with_path(placed, part) for part in (graph, train, validation))
    run = jax.eval_shape(functools.partial(_begin, config, dtype=dtype, gaps={}), graph, key)
    run = jax.tree_util.tree_map_with_path(placed, run)
    prior = gcf.Prior(np.ones((), dtype), np.ones((), dtype)) if config.priors else None
    with jax.set_mesh(mesh):
        return _round.lower(config, *data, run, key, np.int32(1), prior)


def _described(
    config: GCFConfig, graph: SignedGraph, features: np.ndarray | None
) -> tuple[SignedGraph, TextMap | None]:
    """The graph with features of its responses, if the config asks for them."""
    if config.nodes == "table":
        return graph, None
    if features is None or len(features) != int(graph.num_responses):
        found = "none" if features is None else len(features)
        raise UserError(
            f"graph: nodes are {config.nodes!r}, which takes features of all {int(graph.num_responses)} responses, and "
            f"rows of features given: {found}; give one for each, or nodes='table'"
        )
    return describe(graph, features)


def _result(
    config: GCFConfig,
    graph: SignedGraph,
    placed: SignedGraph,
    run: _Run,
    history: History,
    prior: float,
    losses: Any,
    text: TextMap | None,
) -> GCFResult:
    """The best checkpoint's tables on the host."""
    users, responses = int(graph.num_users), int(graph.num_responses)
    params, rows = run.best["params"], slice(users, users + responses)
    nodes = np.asarray(_propagate(config, params, placed))
    bias = np.asarray(gcf.biases(config, params, placed))[rows] if config.bias else np.zeros(responses, nodes.dtype)
    if text is not None:
        text = text._replace(**{name: np.asarray(leaf) for name, leaf in params[gcf.TEXT].items()})
    table = None
    if prior:
        # What a response passes on: the sum over all layers but the last.
        before = dataclasses.replace(config, num_layers=max(config.num_layers - 1, 0))
        messages = np.asarray(_propagate(before, params, placed))[rows] if config.num_layers else 0 * nodes[rows]
        table = ResponseTable(nodes[rows], bias, messages, response_degrees(graph), prior, config.edges, text)
    return GCFResult(
        users=normalised(nodes[:users]),
        responses=nodes[rows],
        raw_users=nodes[:users],
        bias=bias,
        table=table,
        history={name: np.asarray(values) for name, values in history.items()},
        best_step=int(run.best["step"]),
        best_accuracy=float(run.best["accuracy"]),
        best_loss=float(run.best["loss"]),
        priors=losses if prior else {},
        params=params,
    )


def _item_bias(
    config: GCFConfig, train: Comparisons, validation: Comparisons, graph: SignedGraph, dtype: Any
) -> tuple[np.ndarray | None, float]:
    """The bias [V] to begin with, and the precision of its prior, which validation votes choose."""
    if not config.bias:
        return None, 0.0
    values, precision = choose_item_values(train, validation, int(graph.num_responses))
    degrees: Any = graph.positive.nodes
    bias = np.zeros(len(degrees["degree"]), dtype)
    bias[int(graph.num_users) :][: len(values)] = values
    return bias, precision


def _order(config: GCFConfig, validated: bool) -> list[float | None]:
    """Priors in the order in which they are tried; None: without one."""
    priors = sorted(config.priors, reverse=True)
    return (list(priors) if validated else [priors[len(priors) // 2]]) if priors else [None]


def _losses_of(tried: dict[float, tuple[_Run, History]]) -> dict[float, float]:
    """The validation loss of each prior's best evaluation; infinite where none was finite."""
    return {
        prior: float(run.best["loss"]) if int(run.best["step"]) else float("inf") for prior, (run, _) in tried.items()
    }


def _worse(losses: dict[float, float]) -> bool:
    """Whether the last two priors were no better than the best before them."""
    found = list(losses.values())
    return len(found) > 2 and min(found[-2:]) >= min(found[:-2])


def normalised(rows: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M D"]:
    """Rows scaled to length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _rounds(task: _Task, run: _Run, prior: gcf.Prior | None, folder: str | Path | None) -> tuple[_Run, History]:
    """All rounds that are left, from the newest checkpoint if there is one."""
    config, data, key = task.config, task.data, jax.random.split(task.key)[1]
    batch_size = task.size if config.batch_size is None else min(config.batch_size, task.size)
    steps_per_epoch = np.int32(max(1, task.size // batch_size))
    if prior is not None:  # a batch bears its share of it
        prior = gcf.Prior(*(one * np.asarray(batch_size / task.size, one.dtype) for one in prior))
    total = config.epochs // config.evaluate_every
    history: History = {
        name: [] for name in ("step", "train_loss", "validation_loss", "validation_accuracy", "seconds")
    }
    checkpoints = None if folder is None else Checkpoints(folder)
    try:
        if checkpoints is not None:
            run, history = _restored(checkpoints, run, history, key, task.made_from, folder)
        start = time.perf_counter() - (history["seconds"][-1] if history["seconds"] else 0.0)
        first = len(history["step"])
        bar = tqdm(range(first, total), desc=_NAME, initial=first, total=total, disable=None)
        for done in bar:
            if _stalled(config, run):
                break
            run, scores = _round(config, *data, run, key, steps_per_epoch, prior)
            for name, value in jax.device_get(scores).items():
                history[name].append(value.item())
            history["seconds"].append(time.perf_counter() - start)
            bar.set_postfix(accuracy=f"{history['validation_accuracy'][-1]:.3f}")
            last = done + 1 == total or _stalled(config, run)
            if checkpoints is not None and (last or (done + 1) % task.checkpoint_every == 0):
                # A copy: it is written in the background while the lists grow on.
                metadata = {"name": _NAME, "made_from": task.made_from, "history": copy.deepcopy(history)}
                checkpoints.save(_state(run, done + 1, key), metadata)
    finally:
        if checkpoints is not None:
            checkpoints.close()
    return run, history


def _stalled(config: GCFConfig, run: _Run) -> bool:
    """Whether the last `patience` evaluations brought nothing better."""
    return config.patience is not None and int(run.bad) >= config.patience


def _state(run: _Run, rounds: int, key: Array) -> TrainState:
    """A run as `Checkpoints` takes it."""
    rest = {"optimizer": run.opt_state, "step": run.step, "best": run.best, "bad": run.bad}
    return TrainState(step=jnp.asarray(rounds, jnp.int32), params=run.params, opt_state=rest, key=key)


def _digest(config: GCFConfig, key: Array, dtype: Any, *pairs: Comparisons | Graded | tuple[Any, ...] | None) -> str:
    """What a fit is made from, in short."""
    found = hashlib.sha256(repr((config, np.asarray(jax.random.key_data(key)).tolist(), jnp.dtype(dtype))).encode())
    for part in pairs:
        if isinstance(part, Comparisons):
            part = tuple(np.asarray(column, np.int64) for column in (part.user, part.chosen, part.rejected))
        for column in part or ():
            found.update(column.tobytes())
    return found.hexdigest()[:16]


def _restored(
    checkpoints: Checkpoints, run: _Run, history: History, key: Array, made_from: str, folder: str | Path | None
) -> tuple[_Run, History]:
    """The newest checkpoint's run, if there is one.

    Raises:
      UserError: if it is of a fit to other pairs, by another config or from another key.
    """
    found = checkpoints.restore(_state(run, 0, key))
    if found is None:
        return run, history
    state, metadata = found
    if metadata.get("made_from") != made_from:
        raise UserError(f"{folder}: holds a fit to other pairs or by other settings; delete it, or give another folder")
    rest = state.opt_state
    return _Run(state.params, rest["optimizer"], rest["step"], rest["best"], rest["bad"]), metadata["history"]


def _spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
    """Leading axes (edges, pairs, nodes) are cut over all devices; other parameters, small and few, are copied."""
    name = jax.tree_util.keystr(path)
    return SHARDED if jnp.ndim(leaf) > 0 and not any(own in name for own in _COPIED) else REPLICATED


def _lies(path: tuple[Any, ...], leaf: Any, mesh: Mesh) -> NamedSharding:
    """`_spec` on a mesh, where its devices divide the leaf."""
    return NamedSharding(mesh, sharding.fitting(_spec(path, leaf), jnp.shape(leaf), mesh))


def _place(tree: Any, mesh: Mesh | None) -> Any:
    """Puts arrays on the mesh, cut where its devices divide them."""
    if mesh is None:
        return jax.device_put(tree)

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        return jax.device_put(leaf, _lies(path, leaf, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def _pinned(tree: Any) -> Any:
    """Inside a compiled program: results lie where `_place` put their like, so that nothing is compiled twice."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: sharding.constrain(leaf, _spec(path, leaf)), tree)


@functools.partial(jax.jit, static_argnames="config")
def _propagate(config: GCFConfig, params: Params, graph: SignedGraph) -> Array:
    return gcf.propagate(config, params, graph)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _begin(config: GCFConfig, graph: SignedGraph, key: Array, dtype: Any, gaps: Gaps) -> _Run:
    params = gcf.init(config, key, graph, dtype, gaps)
    zero = jnp.zeros((), jnp.int32)
    worst = {"accuracy": jnp.array(-1, dtype), "loss": jnp.array(0, dtype), "step": zero}
    return _Run(params, _optimizer(config).init(params), zero, {"params": params, **worst}, zero)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="run")
def _round(
    config: GCFConfig,
    graph: SignedGraph,
    train: Batch,
    validation: Batch,
    run: _Run,
    key: Array,
    steps_per_epoch: Array,
    prior: gcf.Prior | None,
) -> tuple[_Run, dict[str, Array]]:
    """`evaluate_every` epochs, then a look at the validation pairs."""

    def step(batch: Batch, carry: tuple[Params, Any, Array, Array]) -> tuple[Params, Any, Array, Array]:
        params, opt_state, count, nll = carry
        gradient = jax.grad(functools.partial(gcf.loss, config, prior=prior), has_aux=True)
        grads, parts = gradient(params, graph, batch, jax.random.fold_in(key, 2 * count))
        updates: Any
        updates, opt_state = _optimizer(config).update(grads, opt_state, params)
        if GAPS in updates:
            updates[GAPS] = jax.tree.map(lambda u: LR_MULT * u, updates[GAPS])
        if gcf.TEXT in updates:
            # All F rows of the map move an embedding together, as far as one row of the table by this.
            shrink = updates[gcf.TEXT]["bias"].size ** -0.5
            updates[gcf.TEXT] = jax.tree.map(lambda u: shrink * u, updates[gcf.TEXT])
        rate = _learning_rate(config, count, steps_per_epoch * config.epochs)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)
        return params, opt_state, count + 1, nll + parts["nll"]

    def epoch(_, carry):
        if config.batch_size is None:
            return step(train, carry)
        size = min(config.batch_size, len(train.user))
        draws = jax.random.uniform(jax.random.fold_in(key, 2 * carry[2] + 1), (len(train.user),))
        order = jnp.argsort(jnp.where(train.real, draws, 2.0))  # padding goes last, where no whole batch reaches

        def one(i, carry):
            rows = jax.lax.dynamic_slice_in_dim(order, i * size, size)
            return step(jax.tree.map(lambda column: jnp.asarray(column)[rows], train), carry)

        return jax.lax.fori_loop(0, steps_per_epoch, one, carry)

    zero = jnp.zeros((), run.best["loss"].dtype)
    carry = (run.params, run.opt_state, run.step, zero)
    params, opt_state, count, nll = jax.lax.fori_loop(0, config.evaluate_every, epoch, carry)
    parts = gcf.loss(config, params, graph, validation)[1]
    loss = parts["calibrated" if config.select == "loss" else "nll"]
    now = {"params": params, "accuracy": parts["accuracy"], "loss": loss, "step": count}
    sane = jnp.isfinite(nll) & jnp.isfinite(loss)  # what has diverged is never the best
    better = sane & _better(config, now, run.best, jnp.any(validation.real))
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), now, run.best)
    scores = {
        "step": count,
        "train_loss": nll / (steps_per_epoch * config.evaluate_every),
        "validation_loss": loss,
        "validation_accuracy": parts["accuracy"],
    }
    return _pinned(_Run(params, opt_state, count, best, jnp.where(better, 0, run.bad + 1))), scores


def _better(config: GCFConfig, now: dict[str, Any], best: dict[str, Any], any_validation: Array) -> Array:
    less = now["loss"] < best["loss"]
    if config.select == "loss":
        return less | (best["step"] == 0) | ~any_validation
    return (now["accuracy"] > best["accuracy"]) | ((now["accuracy"] == best["accuracy"]) & less) | ~any_validation


def _optimizer(config: GCFConfig) -> optax.GradientTransformation:
    """AdamW but for the learning rate, which depends on a number of steps known at run time only."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(config.weight_decay))


def _learning_rate(config: GCFConfig, count: Array, num_steps: Array) -> Float[Array, ""]:
    """Linear warm-up from 0, then cosine to 0."""
    warmup = jnp.maximum(config.warmup * num_steps, 1)
    done = jnp.clip((count + 1 - warmup) / jnp.maximum(num_steps - warmup, 1), 0, 1)
    return config.learning_rate * jnp.minimum((count + 1) / warmup, 0.5 * (1 + jnp.cos(jnp.pi * done)))
