"""User embeddings from the signed graph: CoPL's graph collaborative filtering (arXiv 2503.01658; DESIGN 4.1).

An embedding table of all nodes is passed through a few layers of signed message passing and trained so that a user's
embedding lies nearer to chosen than to rejected responses. `fit` is one compiled program, best checkpoint included.

Axes: P pairs (padded), U users, N responses, V nodes (users, responses, padding), S directed edges, D features,
K layers.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from copl_jax.graph import Batch, SignedGraph, aggregate, batch_of
from pref_jax.data.preferences import Pairs
from pref_jax.errors import UserError

Params = dict[str, Any]
_HISTORY = ("train_loss", "validation_loss", "validation_accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GCFConfig:
    """Model and recipe; the defaults are the paper's. `fast` gives the recipe to use.

    Attributes:
      variant: message function, "official" (the reference code's) or "paper" (see `layer`).
      dim: D.
      num_layers: K.
      edge_dropout: probability that an edge is left out, drawn anew for each sign, direction, layer and step.
      regularisation: factor of the squared norms of the scored embeddings, summed over the batch.
      learning_rate: AdamW's peak; linear warm-up, then cosine to 0.
      weight_decay: AdamW's, decoupled.
      warmup: fraction of the steps.
      batch_size: pairs a step; None for all of them. What does not fill a batch waits for the next shuffle.
      epochs: passes over the pairs; with batch_size None an epoch is one step.
      evaluate_every: epochs between two looks at the validation pairs; divides `epochs`.
      patience: evaluations without a better one after which training ends; None: never.
    """

    variant: Literal["official", "paper"] = "official"
    dim: int = 512
    num_layers: int = 4
    edge_dropout: float = 0.1
    regularisation: float = 1e-6
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    warmup: float = 0.1
    batch_size: int | None = 1024
    epochs: int = 100
    evaluate_every: int = 1
    patience: int | None = None

    def __post_init__(self):
        """Raises UserError if fields contradict each other."""
        if self.variant not in ("official", "paper"):
            raise UserError(f"GCFConfig.variant is {self.variant!r}; write 'official' or 'paper'")
        if not 0 <= self.edge_dropout < 1:
            raise UserError(f"GCFConfig.edge_dropout is {self.edge_dropout}; it must lie in [0, 1)")
        if self.epochs < 1 or self.evaluate_every < 1 or self.epochs % self.evaluate_every:
            raise UserError(
                f"GCFConfig.epochs is {self.epochs} and evaluate_every {self.evaluate_every}; "
                "give positive numbers of which the second divides the first"
            )


def reference(**changes: Any) -> GCFConfig:
    """The paper's recipe: AdamW 1e-4, batches of 1 024 pairs, 100 epochs. `changes` replace fields."""
    return dataclasses.replace(GCFConfig(), **changes)


def fast(**changes: Any) -> GCFConfig:
    """A few dozen full-batch steps of AdamW at 1e-2, of no less accuracy than `reference`. `changes` replace fields."""
    return dataclasses.replace(GCFConfig(learning_rate=1e-2, batch_size=None, epochs=40, evaluate_every=2), **changes)


class GCFResult(NamedTuple):
    """What `fit` returns; NumPy arrays on the host, but for `params`.

    Attributes:
      users: float [U, D], rows of length 1; what gates and unseen users' adaptation take.
      responses: float [N, D], as they come out of the last layer.
      history: "train_loss", "validation_loss", "validation_accuracy", float [evaluations made].
      best_step: steps taken when the checkpoint was written.
      best_accuracy: its validation accuracy, in [0, 1]; 0 without validation pairs.
      params: the checkpoint, see `init`.
    """

    users: np.ndarray
    responses: np.ndarray
    history: dict[str, np.ndarray]
    best_step: int
    best_accuracy: float
    params: Params


def init(config: GCFConfig, key: Key[Array, ""], graph: SignedGraph, dtype: Any = jnp.float32) -> Params:
    """Fresh parameters.

    Returns:
      {"nodes": [V, D], "layers": {map: {"kernel": [K, D, D], "bias": [K, D]}}}. The users' and the responses' rows are
      Xavier-uniform as two tables, padding is 0. Linear maps start uniform within 1/sqrt(D), PyTorch's default; the
      maps are self, positive, negative (official) or, without biases, self and {positive, negative}_{plain, gated}.
      The plain ones have +1 or -1 times the identity added, which the official variant has built in: a user starts as
      what was chosen minus what was rejected, without which the fast recipe needs twice the steps.
    """
    keys = jax.random.split(key, 3)
    num_nodes = len(jax.tree.leaves(graph.positive.nodes)[0])
    row = jnp.arange(num_nodes)
    end_of_responses = graph.num_users + graph.num_responses
    table_rows = jnp.where(row < graph.num_users, graph.num_users, graph.num_responses)
    limit = jnp.where(row < end_of_responses, jnp.sqrt(6 / (table_rows + config.dim)), 0).astype(dtype)
    nodes = limit[:, None] * jax.random.uniform(keys[0], (num_nodes, config.dim), dtype, -1, 1)
    official = config.variant == "official"
    plain = ("self", "positive_plain", "positive_gated", "negative_plain", "negative_gated")
    names = ("self", "positive", "negative") if official else plain
    bound = config.dim**-0.5
    kernels = jax.random.uniform(keys[1], (len(names), config.num_layers, config.dim, config.dim), dtype, -bound, bound)
    layers = {name: {"kernel": kernel} for name, kernel in zip(names, kernels, strict=True)}
    if official:
        biases = jax.random.uniform(keys[2], (len(names), config.num_layers, config.dim), dtype, -bound, bound)
        for name, bias in zip(names, biases, strict=True):
            layers[name]["bias"] = bias
    else:
        for name, sign in (("positive_plain", 1), ("negative_plain", -1)):
            layers[name]["kernel"] += sign * jnp.eye(config.dim, dtype=dtype)[None]
    return {"nodes": nodes, "layers": layers}


def propagate(
    config: GCFConfig, params: Params, graph: SignedGraph, key: Key[Array, ""] | None = None
) -> Float[Array, "V D"]:
    """Embeddings of all nodes after the last layer, not normalised. A `key` turns edge dropout on (training)."""
    keys = None if key is None else jax.random.split(key, (config.num_layers, 2))

    def step(nodes, maps_and_keys):
        maps, layer_keys = maps_and_keys
        return layer(config, maps, nodes, graph, layer_keys), None

    return jax.lax.scan(step, params["nodes"], (params["layers"], keys))[0]


def layer(
    config: GCFConfig,
    maps: Params,
    nodes: Float[Array, "V D"],
    graph: SignedGraph,
    keys: Key[Array, " 2"] | None = None,
) -> Float[Array, "V D"]:
    """One layer of signed message passing; z± is what `graph.aggregate` sums for each sign.

    Official: e' = LeakyReLU_0.2(W_self e + [z+ + W_p (z+ * e)] - [z- + W_n (z- * e)]), linear maps with bias.
    Paper (CoPL, section on message passing): m± = W1± z± + W2± (z± * e), e' = LeakyReLU_0.2(W_self e + m+ + m-).
    """
    z = [
        aggregate(sign, nodes, None if keys is None else dropped_weights(config, keys[i], sign))
        for i, sign in enumerate((graph.positive, graph.negative))
    ]
    out = _linear(maps["self"], nodes)
    if config.variant == "official":
        out = out + z[0] + _linear(maps["positive"], z[0] * nodes)
        out = out - z[1] - _linear(maps["negative"], z[1] * nodes)
    else:
        for summed, name in zip(z, ("positive", "negative"), strict=True):
            out = out + _linear(maps[f"{name}_plain"], summed) + _linear(maps[f"{name}_gated"], summed * nodes)
    return jnp.where(out > 0, out, 0.2 * out)


def loss(
    config: GCFConfig, params: Params, graph: SignedGraph, batch: Batch, key: Key[Array, ""] | None = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Bradley-Terry loss of a batch, and its parts (DESIGN 4.1).

    mean of -log sigmoid(e_u·e_p - e_u·e_n) + regularisation * sum of (|e_u|² + |e_p|² + |e_n|²), over real pairs;
    0 if there is none. Embeddings are propagated ones, not normalised.

    Returns:
      The loss, and {"nll", "accuracy"}, means over real pairs; a tie counts as wrong.
    """
    nodes = propagate(config, params, graph, key)
    users, chosen, rejected = nodes[batch.user], nodes[batch.chosen], nodes[batch.rejected]
    margin = jnp.sum(users * (chosen - rejected), axis=-1)
    real = batch.real.astype(margin.dtype)
    count = jnp.maximum(jnp.sum(real), 1)
    nll = -jnp.sum(real * jax.nn.log_sigmoid(margin)) / count
    norms = jnp.sum(users**2, axis=-1) + jnp.sum(chosen**2, axis=-1) + jnp.sum(rejected**2, axis=-1)
    total = nll + config.regularisation * jnp.sum(real * norms)
    return total, {"nll": nll, "accuracy": jnp.sum(real * (margin > 0)) / count}


def fit(
    config: GCFConfig,
    graph: SignedGraph,
    train: Pairs,
    validation: Pairs,
    key: Key[Array, ""],
    dtype: Any = jnp.float32,
) -> GCFResult:
    """Trains the embeddings in one compiled program and returns the best checkpoint's.

    The checkpoint is the one of best validation accuracy, of lowest validation loss among equals; the last one if
    there are no validation pairs.

    Args:
      config: model and recipe; each distinct one compiles once for each bucket of sizes.
      graph: of the training pairs.
      train: pairs to learn, rows of the graph's users and responses.
      validation: held-out pairs of the same users.
      key: randomness of initialisation, dropout and batches.
      dtype: of parameters and arithmetic.

    Raises:
      UserError: if there are no training pairs.
    """
    if not len(train.user):
        raise UserError("gcf.fit: there are no training pairs; check the split")
    best, nodes, history, evaluations = _train(
        config, graph, batch_of(train, graph), batch_of(validation, graph), key, dtype
    )
    num_users, num_responses = int(graph.num_users), int(graph.num_responses)
    nodes = np.asarray(nodes)
    return GCFResult(
        users=normalised(nodes[:num_users]),
        responses=nodes[num_users : num_users + num_responses],
        history={name: np.asarray(values)[: int(evaluations)] for name, values in history.items()},
        best_step=int(best["step"]),
        best_accuracy=float(best["accuracy"]),
        params=best["params"],
    )


def normalised(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


class _State(NamedTuple):
    """What a step changes; `nll` sums the steps' losses since the last evaluation."""

    params: Params
    opt_state: Any
    step: Int[Array, ""]
    nll: Float[Array, ""]


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _train(config: GCFConfig, graph: SignedGraph, train: Batch, validation: Batch, key, dtype):
    """The whole fit: evaluations in an outer loop, steps in an inner one. Returns best, its nodes, history, count."""
    start_key, run_key = jax.random.split(key)
    params = init(config, start_key, graph, dtype)
    epoch, opt_state, steps_per_epoch = _training(config, graph, train, params, run_key)
    num_evaluations = config.epochs // config.evaluate_every

    def evaluate(carry):
        i, state, best, history, bad = carry
        state = jax.lax.fori_loop(0, config.evaluate_every, epoch, state._replace(nll=jnp.zeros((), dtype)))
        parts = loss(config, state.params, graph, validation)[1]
        now = {"params": state.params, "accuracy": parts["accuracy"], "loss": parts["nll"], "step": state.step}
        better = _better(now, best, jnp.any(validation.real))
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), now, best)
        values = (state.nll / (steps_per_epoch * config.evaluate_every), parts["nll"], parts["accuracy"])
        history = {name: history[name].at[i].set(value) for name, value in zip(_HISTORY, values, strict=True)}
        return i + 1, state, best, history, jnp.where(better, 0, bad + 1)

    def unfinished(carry):
        patient = True if config.patience is None else carry[-1] < config.patience
        return (carry[0] < num_evaluations) & patient

    zero = jnp.zeros((), jnp.int32)
    best = {"params": params, "accuracy": jnp.array(-1, dtype), "loss": jnp.array(0, dtype), "step": zero}
    history = {name: jnp.zeros(num_evaluations, dtype) for name in _HISTORY}
    state = _State(params=params, opt_state=opt_state, step=zero, nll=jnp.zeros((), dtype))
    evaluations, _, best, history, _ = jax.lax.while_loop(unfinished, evaluate, (zero, state, best, history, zero))
    return best, propagate(config, best["params"], graph), history, evaluations


def _training(config: GCFConfig, graph: SignedGraph, train: Batch, params: Params, key):
    """The function that runs one epoch, (epoch number, state) -> state; the optimizer's first state; steps an epoch."""
    optimizer = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(config.weight_decay))
    size, full = len(train.user), config.batch_size is None
    batch_size = min(config.batch_size or size, size)
    steps_per_epoch = 1 if full else jnp.maximum(jnp.sum(train.real) // batch_size, 1)

    def step(batch: Batch, state: _State) -> _State:
        gradient = jax.grad(functools.partial(loss, config), has_aux=True)
        grads, parts = gradient(state.params, graph, batch, jax.random.fold_in(key, 2 * state.step))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate = _learning_rate(config, state.step, steps_per_epoch * config.epochs)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)
        return _State(params=params, opt_state=opt_state, step=state.step + 1, nll=state.nll + parts["nll"])

    def epoch(_, state: _State) -> _State:
        if full:
            return step(train, state)
        draws = jax.random.uniform(jax.random.fold_in(key, 2 * state.step + 1), (size,))
        order = jnp.argsort(jnp.where(train.real, draws, 2.0))  # padding goes last, where no batch reaches

        def one(i, state):
            rows = jax.lax.dynamic_slice_in_dim(order, i * batch_size, batch_size)
            return step(jax.tree.map(lambda column: jnp.asarray(column)[rows], train), state)

        return jax.lax.fori_loop(0, steps_per_epoch, one, state)

    return epoch, optimizer.init(params), steps_per_epoch


def _better(now, best, any_validation):
    tie = (now["accuracy"] == best["accuracy"]) & (now["loss"] < best["loss"])
    return (now["accuracy"] > best["accuracy"]) | tie | ~any_validation


def _learning_rate(config: GCFConfig, count, num_steps):
    """Linear warm-up from 0, then cosine to 0, by a number of steps known only at run time."""
    warmup = jnp.maximum(config.warmup * num_steps, 1)
    done = jnp.clip((count + 1 - warmup) / jnp.maximum(num_steps - warmup, 1), 0, 1)
    return config.learning_rate * jnp.minimum((count + 1) / warmup, 0.5 * (1 + jnp.cos(jnp.pi * done)))


def dropped_weights(config: GCFConfig, key: Key[Array, ""], sign: jraph.GraphsTuple) -> Float[Array, " S"]:
    """The directed edges' weights after dropout; each direction of an edge is drawn by itself, the mean is kept."""
    edges: Any = sign.edges
    weight = jnp.asarray(edges["weight"])
    keep = 1 - config.edge_dropout
    return jnp.where(jax.random.bernoulli(key, keep, weight.shape), weight / keep, 0)


def _linear(maps: Params, x):
    out = x @ maps["kernel"]
    return out + maps["bias"][None, :] if "bias" in maps else out
