"""Layers of signed message passing: how each node takes in the embeddings of its neighbours.

With A± the normalised adjacency of each sign and z± = A± e (`graph.aggregate`), a layer maps e [V D] to e' [V D]:

    gcf        e' = LeakyReLU(W_self e + [z+ + W_p (z+ * e)] - [z- + W_n (z- * e)])     CoPL's reference code
    gcf_paper  e' = LeakyReLU(W_self e + W1+ z+ + W2+ (z+ * e) + W1- z- + W2- (z- * e))  CoPL (arXiv 2503.01658)
    lightgcn   e' = z+, and the mean of all layers is read out                           LightGCN (arXiv 2002.02126)
    attention  e' = LeakyReLU(W_self e + m+ - m-), m± weighs neighbours by a softmax     GAT (arXiv 1710.10903), by sign
               (where edges have weights, these multiply the exponentials)
    normed     e' = g y / |y| with y the `gcf` layer's, begun near y = e / 2 + z+ - z-   ours
    linear     e' = d (z+ - z-) with d = 0.4, the sum of table and layers is read out    ours

Linear maps have biases but for `gcf_paper`'s. LeakyReLU has slope 0.2.

What `normed` is for: noisy votes. Without a norm, nodes with many agreeing neighbours outgrow the others within four
layers, and training fits single votes by length; with unit rows it has directions alone to fit by, and at the start,
being near the identity, already sums up neighbourhoods instead of mixing them at random.

What `linear` is for: votes of people, many or few. A Gaussian prior of the table T (`GCFConfig.priors`) is one of the
embeddings (1 + A + A² ..) T too, with A = d (A+ - A-), under which nodes of like votes are alike. A node's own row of T
reaches its embedding directly: many votes override the neighbours, and by the prior few do not. The other layers have
no such path, as whatever a node is passes through all mixtures.

Axes: V nodes, S directed edges, D features, K layers.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float, Key

from copl_jax.graph.signed_graph import SignedGraph, aggregate

Maps = dict[str, Any]
# Of the layer `linear`: what comes from one step further away counts so much.
DECAY = 0.4
# For each sign: None, or float [S], 0 where an edge is left out and 1 / (1 - rate) where it stays.
Keeps = Sequence[Float[Array, " S"] | None]


class Layer(NamedTuple):
    """One kind of layer.

    Attributes:
      init: (key, K, D, dtype) -> parameters of all layers, leaves leading with K.
      apply: (one layer's parameters, embeddings [V D], graph, keeps) -> embeddings [V D].
      readout: whether a node's embedding is what the last layer gives, or the mean or sum of the table and all layers.
      scale: standard deviation of the table's normal entries in the beginning; None: Xavier-uniform.
    """

    init: Callable[[Key[Array, ""], int, int, Any], Maps]
    apply: Callable[[Maps, Float[Array, "V D"], SignedGraph, Keeps], Float[Array, "V D"]]
    readout: Literal["last", "mean", "sum"] = "last"
    scale: float | None = None


def _uniform(key: Array, names: Sequence[str], num_layers: int, dim: int, dtype: Any, *, bias: bool = True) -> Maps:
    """Linear maps uniform within 1/sqrt(D), PyTorch's default: {name: {"kernel": [K D D], "bias": [K D]}}."""
    kernel_key, bias_key = jax.random.split(key)
    bound = dim**-0.5
    kernels = jax.random.uniform(kernel_key, (len(names), num_layers, dim, dim), dtype, -bound, bound)
    biases = jax.random.uniform(bias_key, (len(names), num_layers, dim), dtype, -bound, bound)
    return {name: {"kernel": kernels[i]} | ({"bias": biases[i]} if bias else {}) for i, name in enumerate(names)}


def _add_identity(maps: Maps, name: str, factor: float) -> None:
    kernel = maps[name]["kernel"]
    maps[name]["kernel"] = kernel + factor * jnp.eye(kernel.shape[-1], dtype=kernel.dtype)[None]


def _mix(maps: Maps, parts: dict[str, Float[Array, "V D"]]) -> Float[Array, "V D"]:
    """The sum of each part through its own linear map."""
    out = functools.reduce(operator.add, [part @ maps[name]["kernel"] for name, part in parts.items()])
    biases = [maps[name]["bias"] for name in parts if "bias" in maps[name]]
    return functools.reduce(lambda total, bias: total + bias[None, :], biases, out)


def _leaky(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(x > 0, x, 0.2 * x)


def _sums(nodes: Array, graph: SignedGraph, keeps: Keeps) -> list[Float[Array, "V D"]]:
    """z+ and z-."""
    return [aggregate(sign, nodes, keep) for sign, keep in zip((graph.positive, graph.negative), keeps, strict=True)]


def _init_gcf(key: Array, num_layers: int, dim: int, dtype: Any) -> Maps:
    return _uniform(key, ("self", "positive", "negative"), num_layers, dim, dtype)


def _before_activation(maps: Maps, nodes: Array, graph: SignedGraph, keeps: Keeps) -> Float[Array, "V D"]:
    positive, negative = _sums(nodes, graph, keeps)
    # The negative map's sign goes on its input, a thin product, so that one sum serves all three.
    minus = {name: -leaf for name, leaf in maps["negative"].items()}
    mixed = _mix(
        {**maps, "negative": minus}, {"self": nodes, "positive": positive * nodes, "negative": negative * nodes}
    )
    return mixed + positive - negative


def _gcf(maps: Maps, nodes: Array, graph: SignedGraph, keeps: Keeps) -> Float[Array, "V D"]:
    return _leaky(_before_activation(maps, nodes, graph, keeps))


def _init_gcf_paper(key: Array, num_layers: int, dim: int, dtype: Any) -> Maps:
    """The plain maps have +1 and -1 times the identity added, which the reference code's layer has built in: a user
    starts as what was chosen minus what was rejected, without which the fast recipe needs twice the steps."""
    names = ("self", "positive_plain", "positive_gated", "negative_plain", "negative_gated")
    maps = _uniform(key, names, num_layers, dim, dtype, bias=False)
    _add_identity(maps, "positive_plain", 1.0)
    _add_identity(maps, "negative_plain", -1.0)
    return maps


def _gcf_paper(maps: Maps, nodes: Array, graph: SignedGraph, keeps: Keeps) -> Float[Array, "V D"]:
    positive, negative = _sums(nodes, graph, keeps)
    parts = {
        "self": nodes,
        "positive_plain": positive,
        "positive_gated": positive * nodes,
        "negative_plain": negative,
        "negative_gated": negative * nodes,
    }
    return _leaky(_mix(maps, parts))


def _lightgcn(maps: Maps, nodes: Array, graph: SignedGraph, keeps: Keeps) -> Float[Array, "V D"]:
    del maps
    return aggregate(graph.positive, nodes, keeps[0])


def _init_attention(key: Array, num_layers: int, dim: int, dtype: Any) -> Maps:
    """Messages start near the embeddings themselves, attention near the mean."""
    maps_key, *keys = jax.random.split(key, 5)
    maps = _uniform(maps_key, ("self", "positive", "negative"), num_layers, dim, dtype)
    for sign, (query_key, key_key) in (("positive", keys[:2]), ("negative", keys[2:])):
        _add_identity(maps, sign, 1.0)
        for name, own in (("query", query_key), ("key", key_key)):
            maps[sign][name] = jax.random.normal(own, (num_layers, dim), dtype) * dim**-0.5
    return maps


def _attention(maps: Maps, nodes: Array, graph: SignedGraph, keeps: Keeps) -> Float[Array, "V D"]:
    """m±_i = sum over j of softmax_j(LeakyReLU(q·h_i + k·h_j)) h_j with h = W± e, over the neighbours of each sign."""
    out = _mix(maps, {"self": nodes})
    for name, sign, keep, factor in zip(
        ("positive", "negative"), (graph.positive, graph.negative), keeps, (1, -1), strict=True
    ):
        message = _mix(maps, {name: nodes})
        score = _leaky((message @ maps[name]["query"])[sign.receivers] + (message @ maps[name]["key"])[sign.senders])
        edges: Any = sign.edges
        if "log_weight" in edges:
            score += edges["log_weight"]
        real = jnp.asarray(edges["weight"]) > 0
        score = jnp.where(real, score, jnp.finfo(score.dtype).min / 2)  # finite: a node may have padding edges only
        receivers: Any = sign.receivers
        weight: Any = jraph.segment_softmax(score, receivers, len(nodes), indices_are_sorted=True)
        weight = jnp.where(real, weight, 0)
        out = out + factor * aggregate(sign, message, keep, weight=weight)
    return _leaky(out)


def _init_normed(key: Array, num_layers: int, dim: int, dtype: Any) -> Maps:
    maps = jax.tree.map(lambda leaf: 0.1 * leaf, _init_gcf(key, num_layers, dim, dtype))
    _add_identity(maps, "self", 0.5)
    return maps | {"gain": jnp.ones((num_layers,), dtype)}


def _normed(maps: Maps, nodes: Array, graph: SignedGraph, keeps: Keeps) -> Float[Array, "V D"]:
    out = _gcf(maps, nodes, graph, keeps)
    # The small constant keeps the gradient of rows of zeros finite.
    return maps["gain"] * out * jax.lax.rsqrt(jnp.sum(out**2, axis=-1, keepdims=True) + 1e-6)


def _linear(maps: Maps, nodes: Array, graph: SignedGraph, keeps: Keeps) -> Float[Array, "V D"]:
    del maps
    positive, negative = _sums(nodes, graph, keeps)
    return DECAY * (positive - negative)


LAYERS: dict[str, Layer] = {
    "gcf": Layer(_init_gcf, _gcf),
    "gcf_paper": Layer(_init_gcf_paper, _gcf_paper),
    "lightgcn": Layer(lambda *_: {}, _lightgcn, readout="mean"),
    "attention": Layer(_init_attention, _attention),
    "normed": Layer(_init_normed, _normed),
    "linear": Layer(lambda *_: {}, _linear, readout="sum", scale=0.1),
}
