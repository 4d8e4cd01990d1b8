"""User embeddings from the signed graph: CoPL's graph collaborative filtering (arXiv 2503.01658).

An embedding table of all nodes is passed through a few layers of signed message passing (`layers`) and trained
(`recipe`) so that a user's embedding lies nearer to chosen than to rejected responses.

Axes: P pairs (padded), U users, N responses, V nodes (users, responses, padding), S directed edges, D features,
K layers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from copl_jax.graph.message_passing import LAYERS
from copl_jax.graph.settings import GCFConfig
from copl_jax.graph.signed_graph import SHARDED, Batch, SignedGraph, edge_dropout
from pref_jax import sharding
from pref_jax.calibrated import calibrated_loss
from pref_jax.graded import GAPS, Gaps, losses_by_gaps

Params = dict[str, Any]
# The parameter of `GCFConfig.bias`, of all nodes, read for responses alone.
BIAS = "bias"
# Those of `GCFConfig.nodes`: {"map": [F D], "bias": [F]}, of features of texts.
TEXT = "text"


class Prior(NamedTuple):
    """Precisions of the Gaussian priors of the table's entries and of the bias, as scalars."""

    table: Any
    bias: Any


def init(
    config: GCFConfig, key: Key[Array, ""], graph: SignedGraph, dtype: Any = jnp.float32, gaps: Gaps | None = None
) -> Params:
    """Fresh parameters.

    Returns:
      {"nodes": [V D], "layers": as from `layers.Layer.init`}, with gaps "gaps", with `config.bias` "bias": [V], and
      with features of the graph's nodes "text": {"map": [F D], "bias": [F]}, the map begun like the table. The
      users' and the responses' rows are Xavier-uniform as two tables, or normal if the layer has a scale; padding is 0,
      as is the bias.
    """
    nodes_key, layers_key = jax.random.split(key)
    num_nodes = len(jax.tree.leaves(graph.positive.nodes)[0])
    row = jnp.arange(num_nodes)
    end_of_responses = graph.num_users + graph.num_responses
    table_rows = jnp.where(row < graph.num_users, graph.num_users, graph.num_responses)
    layer, real = LAYERS[config.layer], row < end_of_responses
    limit = jnp.where(real, layer.scale or jnp.sqrt(6 / (table_rows + config.dim)), 0).astype(dtype)
    if layer.scale is None:
        nodes = limit[:, None] * jax.random.uniform(nodes_key, (num_nodes, config.dim), dtype, -1, 1)
    else:
        nodes = limit[:, None] * jax.random.normal(nodes_key, (num_nodes, config.dim), dtype)
    layers = layer.init(layers_key, config.num_layers, config.dim, dtype)
    own = {GAPS: {name: jnp.asarray(gap, dtype) for name, gap in gaps.items()}} if gaps else {}
    own |= {BIAS: jnp.zeros((num_nodes,), dtype)} if config.bias else {}
    if graph.features is not None:
        size = graph.features.shape[1]
        text_map = 0.1 * jax.random.normal(jax.random.fold_in(nodes_key, 1), (size, config.dim), dtype)
        own |= {TEXT: {"map": text_map, "bias": jnp.zeros((size,), dtype)}}
    return {"nodes": nodes, "layers": layers, **own}


def node_table(config: GCFConfig, params: Params, graph: SignedGraph) -> Float[Array, "V D"]:
    """The rows that the first layer gets, see `GCFConfig.nodes`."""
    if graph.features is None:
        return params["nodes"]
    return _own(config, params["nodes"], graph) + graph.features @ params[TEXT]["map"]


def biases(config: GCFConfig, params: Params, graph: SignedGraph) -> Float[Array, " V"]:
    """What is added to the products of each response with users."""
    if graph.features is None:
        return params[BIAS]
    return _own(config, params[BIAS], graph) + graph.features @ params[TEXT]["bias"]


def _own(config: GCFConfig, rows: Float[Array, "V ..."], graph: SignedGraph) -> Float[Array, "V ..."]:
    """The nodes' own rows: none of responses that are texts alone."""
    if config.nodes == "both":
        return rows
    of_user = jnp.arange(len(rows)) < graph.num_users
    return jnp.where(of_user.reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0)


def propagate(
    config: GCFConfig, params: Params, graph: SignedGraph, key: Key[Array, ""] | None = None
) -> Float[Array, "V D"]:
    """Embeddings of all nodes after the last layer, not normalised. A `key` turns edge dropout on (training)."""
    layer, table = LAYERS[config.layer], node_table(config, params, graph)
    keys = None if key is None or not config.edge_dropout else jax.random.split(key, (config.num_layers, 2))
    signs = (graph.positive, graph.negative)

    def step(carry, own):
        nodes, total = carry
        maps, layer_keys = own
        keeps = (None, None)
        if layer_keys is not None:
            keeps = [edge_dropout(config.edge_dropout, layer_keys[i], sign) for i, sign in enumerate(signs)]
        nodes = sharding.constrain(layer.apply(maps, nodes, graph, keeps), SHARDED)
        return (nodes, None if total is None else total + nodes), None

    readout = config.readout or layer.readout
    first = (table, None if readout == "last" else table)
    nodes, total = jax.lax.scan(step, first, (params["layers"], keys), length=config.num_layers)[0]
    if total is None:
        return nodes
    return total / (config.num_layers + 1) if readout == "mean" else total


def loss(
    config: GCFConfig,
    params: Params,
    graph: SignedGraph,
    batch: Batch,
    key: Key[Array, ""] | None = None,
    *,
    prior: Prior | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Bradley-Terry loss of a batch, and its parts.

    mean of -log sigmoid(e_u·e_p - e_u·e_n) + regularisation * sum of (|e_u|² + |e_p|² + |e_n|²), over real pairs;
    0 if there is none. Embeddings are propagated ones, not normalised. Where the batch has `graded`, the first term is
    the mean of `pref_jax.graded.losses`. With a bias b, b_p - b_n is added to the difference of the products. A prior
    adds (prior.table |T|² + prior.bias |b|²) / 2 for the table T, each node once, over the number of pairs; the map of
    texts stands with the table and their bias with the bias.

    Returns:
      The loss, and {"nll", "accuracy", "calibrated"}, means over real pairs, the latter two over decided ones; equal
      rewards count as wrong. "calibrated" is `pref_jax.calibrated.calibrated_loss`.
    """
    nodes = propagate(config, params, graph, key)
    users, chosen, rejected = nodes[batch.user], nodes[batch.chosen], nodes[batch.rejected]
    margin = jnp.sum(users * (chosen - rejected), axis=-1)
    if BIAS in params:
        bias = biases(config, params, graph)
        margin += bias[batch.chosen] - bias[batch.rejected]
    real = batch.real.astype(margin.dtype)
    count = jnp.maximum(jnp.sum(real), 1)
    asked, among = real, count
    if batch.graded is None:
        nll = -jnp.sum(real * jax.nn.log_sigmoid(margin)) / count
    else:
        nll = jnp.sum(real * losses_by_gaps(margin, batch.graded, params.get(GAPS, {}))) / count
        asked = real * batch.graded.decided
        among = jnp.maximum(jnp.sum(asked), 1)
    norms = jnp.sum(users**2, axis=-1) + jnp.sum(chosen**2, axis=-1) + jnp.sum(rejected**2, axis=-1)
    total = nll + config.regularisation * jnp.sum(real * norms)
    if prior is not None:
        text = params.get(TEXT, {"map": 0.0, "bias": 0.0})
        squares = prior.table * (jnp.sum(params["nodes"] ** 2) + jnp.sum(text["map"] ** 2))
        squares += prior.bias * (jnp.sum(params[BIAS] ** 2) + jnp.sum(text["bias"] ** 2)) if BIAS in params else 0
        total += squares / (2 * count)
    accuracy = jnp.sum(asked * (margin > 0)) / among
    return total, {"nll": nll, "accuracy": accuracy, "calibrated": calibrated_loss(margin, asked)}
