"""The signed bipartite graph of users and responses, as padded Jraph graphs.

Users come first among the nodes, then responses, then padding. Each sign has its own `GraphsTuple` with every edge in
both directions, so that one aggregation serves users and responses alike. Edges are sorted by receiver, and each
receiver's incoming edges are filled up to a multiple of `GROUP_SIZE` with self-loops of weight 0: XLA then adds
`GROUP_SIZE`
gathered rows in one pass and scatters a quarter as often, which halves the time of a product on CPU. To Jraph it is a
graph like any other.

Axes: P pairs, U users, N responses, V nodes (users, responses and padding), S directed edges, D features.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Float64, Int, Int32, Key

from pref_jax import sharding
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.graded import Graded
from pref_jax.mesh import AXES
from pref_jax.ragged import expand, starts

GROUP_SIZE = 4
# Groups of FAN_IN edges that are summed at a time: their sums, some megabytes, stay in the cache until they are added.
BLOCK = 32768
# What the weights of one edge's votes come to.
MERGE: dict[str, np.ufunc] = {"distinct": np.maximum, "counted": np.add}
# How rows (of edges, or of nodes) lie on a mesh: cut over all its devices, or a whole copy on each.
SHARDED, REPLICATED = PartitionSpec(AXES), PartitionSpec()


class SignedGraph(NamedTuple):
    """A graph for each sign over the same V nodes; made by `build`.

    Attributes:
      positive: who chose what. `nodes` {"degree": int32 [V]}, `edges` {"weight": float [S], "reverse": int32 [S], the
        index of the same edge in the other direction}, `senders`, `receivers` int32 [S], `n_node` = [U + N, padding].
        Where `build` was given weights, edges also have "log_weight": float [S], theirs before normalisation.
      negative: who rejected what, likewise.
      num_users: int32 [], U.
      num_responses: int32 [], N.
      features: float [V F] of the responses' texts, 0 for other nodes; None where nodes have none.
    """

    positive: jraph.GraphsTuple
    negative: jraph.GraphsTuple
    num_users: Int32[np.ndarray, ""] | Int[Array, ""]
    num_responses: Int32[np.ndarray, ""] | Int[Array, ""]
    features: Float[np.ndarray, "V F"] | Float[Array, "V F"] | None = None


class Batch(NamedTuple):
    """Pairs as rows of the node table; `real` [P] is False where a pair is padding, `graded` None of plain votes."""

    user: Int[Array | np.ndarray, " P"]
    chosen: Int[Array | np.ndarray, " P"]
    rejected: Int[Array | np.ndarray, " P"]
    real: Bool[Array | np.ndarray, " P"]
    graded: Graded | None = None


def bucket(size: int, *, smallest: int = 32) -> int:
    """Rounds `size` up to one of eight sizes per power of two (at most 12.5 % more), never under `smallest`.

    What is padded to buckets compiles once for all sizes within a bucket.
    """
    size = max(int(size), smallest)  # NumPy integers have no bit_length
    step = max(1, 2 ** (size.bit_length() - 4))
    return -(-size // step) * step


def unique_edges(
    user: Int[np.ndarray, " P"], response: Int[np.ndarray, " P"], num_responses: int
) -> tuple[Int32[np.ndarray, " Q"], Int32[np.ndarray, " Q"]]:
    """The distinct (user, response) edges, ordered by user, then response: A is 0/1, repeated votes count once."""
    code = np.unique(user.astype(np.int64) * num_responses + response)
    return (code // max(num_responses, 1)).astype(np.int32), (code % max(num_responses, 1)).astype(np.int32)


def merged_weights(
    user: Int[np.ndarray, " P"],
    response: Int[np.ndarray, " P"],
    weight: Float[np.ndarray, " P"] | None,
    num_responses: int,
    edges: str,
) -> Float64[np.ndarray, " Q"]:
    """What the weights (None: all are 1) of each of `unique_edges` come to, see `build`."""
    code, edge = np.unique(user.astype(np.int64) * num_responses + response, return_inverse=True)
    found = np.zeros(len(code))
    MERGE[edges].at(found, edge, 1.0 if weight is None else weight)
    return found


def build(
    user: Int[np.ndarray, " P"],
    chosen: Int[np.ndarray, " P"],
    rejected: Int[np.ndarray, " P"],
    *,
    num_users: int,
    num_responses: int,
    weight: Float[np.ndarray, "P 2"] | None = None,
    edges: str = "distinct",
    dtype: type[np.floating] = np.float32,
) -> SignedGraph:
    """Builds the graph of the pairs on the host (CoPL, arXiv 2503.01658, section on graph construction).

    A pair gives a positive edge user-chosen and a negative edge user-rejected; one response may be both for one user.
    Each sign is normalised on its own, a_ur = w_ur / sqrt(deg(u) deg(r)) over distinct edges, deg being the sum of a
    node's w; an isolated node simply has no edge. Sizes are padded to buckets, the same for both signs.

    Args:
      user: row of the user of each pair, in 0 .. num_users - 1.
      chosen: row of the response preferred, in 0 .. num_responses - 1.
      rejected: row of the other response.
      num_users: U, isolated ones included.
      num_responses: N, isolated ones included.
      weight: of each pair's positive and negative edge, above 0. None: all are 1.
      edges: what w is where several of a user's pairs make one edge: "distinct" the largest of their weights,
        "counted" the sum, so that a response chosen three times has w = 3, as in the authors' code.
      dtype: of the weights.

    Raises:
      UserError: if the arrays differ in length, an index is out of range, a weight is not above 0, or `edges` is
        unknown.
    """
    _check(user, chosen, rejected, num_users=num_users, num_responses=num_responses)
    if weight is not None and (np.shape(weight) != (len(user), 2) or not np.all((weight > 0) & (weight < np.inf))):
        raise UserError(f"graph: weights of shape {np.shape(weight)}; give two finite numbers above 0 for every pair")
    if edges not in MERGE:
        raise UserError(f"graph: edges is {edges!r}; write one of {', '.join(MERGE)}")
    num_nodes = num_users + num_responses
    signs = []
    for side, response in enumerate((chosen, rejected)):
        ends = unique_edges(user, response, num_responses)
        own = None
        if weight is not None or (edges == "counted" and len(ends[0]) < len(user)):
            own = merged_weights(user, response, None if weight is None else weight[:, side], num_responses, edges)
        signs.append(_directed(*ends, own, num_users, num_nodes, dtype))
    n_node = bucket(num_users + num_responses + 1)
    # From 64 groups of edges on, buckets are multiples of 8 groups and more: that many devices can share them.
    n_edge = bucket(max(int(graph.n_edge[0]) for graph in signs), smallest=64 * GROUP_SIZE)
    positive, negative = (_pad(graph, n_node, n_edge) for graph in signs)
    return SignedGraph(
        positive=positive,
        negative=negative,
        num_users=np.asarray(num_users, np.int32),
        num_responses=np.asarray(num_responses, np.int32),
    )


def batch_of(pairs: Comparisons, graph: SignedGraph, graded: Graded | None = None) -> Batch:
    """The pairs as node rows, padded to a bucket; padding pairs name node 0 and count nothing."""
    size = bucket(len(pairs.user))

    def pad(rows):
        return np.pad(rows, (0, size - len(rows)))

    def fill(rows, shift=0):
        return pad(np.asarray(rows, np.int32) + np.int32(shift))

    shift = int(graph.num_users)
    return Batch(
        user=fill(pairs.user),
        chosen=fill(pairs.chosen, shift),
        rejected=fill(pairs.rejected, shift),
        real=np.arange(size) < len(pairs.user),
        graded=None if graded is None else Graded(*map(pad, graded)),
    )


def shapes(votes: int, num_users: int, num_responses: int) -> tuple[SignedGraph, Batch]:
    """The shapes of `build` and `batch_of` for so many votes, spread at random, in place of arrays; for plans.

    A graph of more votes than can be drawn in a moment is an enlarged one of fewer, with as many votes for each node.
    """
    scale = max(1, votes // 100_000)
    users, responses = (max(2, size // scale) for size in (num_users, num_responses))
    rng = np.random.default_rng(0)
    first = rng.integers(0, responses, votes // scale)
    other = (first + rng.integers(1, responses, len(first))) % responses
    small = build(rng.integers(0, users, len(first)), first, other, num_users=users, num_responses=responses)
    edges = max(int(graph.n_edge[0]) for graph in (small.positive, small.negative))
    drawn: Any = small.positive
    lengths = {
        len(drawn.senders): bucket(edges * scale, smallest=64 * GROUP_SIZE),
        len(drawn.nodes["degree"]): bucket(num_users + num_responses + 1),
    }

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        sizes = np.shape(leaf)
        return jax.ShapeDtypeStruct((lengths.get(sizes[0], sizes[0]), *sizes[1:]) if sizes else (), leaf.dtype)

    return jax.tree.map(shape, small), batch_shapes(votes)


def batch_shapes(votes: int) -> Batch:
    """The shapes of `batch_of` for so many votes."""
    pairs: Any = jax.ShapeDtypeStruct((bucket(votes),), jnp.int32)
    real: Any = jax.ShapeDtypeStruct(pairs.shape, jnp.bool_)
    return Batch(pairs, pairs, pairs, real)


def aggregate(
    graph: jraph.GraphsTuple,
    nodes: Float[Array, "V D"],
    keep: Float[Array, " S"] | None = None,
    *,
    weight: Float[Array, " S"] | None = None,
) -> Float[Array, "V D"]:
    """Sums what each node receives: A e for users and Aᵀ e for responses at once.

    The gradient with respect to `nodes` is again such a sum along the reversed edges, so that it too runs over sorted
    receivers; autodiff alone would scatter to unsorted senders.

    On a mesh set by `jax.set_mesh` edges and the rows of the sum are cut over all devices: each device gathers from
    a whole copy of the embeddings, sums its own edges, and the devices' sums are added up.

    Args:
      graph: one sign of a `SignedGraph`.
      nodes: embeddings.
      keep: factor of each directed edge, such as `edge_dropout`'s; the two directions of an edge may differ.
      weight: of each directed edge, in place of the graph's own.

    Returns:
      For each node the sum of its senders' embeddings times the edges' weights; 0 without edges.
    """
    edges: Any = graph.edges  # Jraph's own types allow any tree here
    weight = jnp.asarray(edges["weight"] if weight is None else weight, nodes.dtype)
    weight = weight if keep is None else weight * keep.astype(nodes.dtype)
    return _aggregate(nodes, weight, graph.senders, graph.receivers, edges["reverse"])


def edge_dropout(rate: float, key: Key[Array, ""], sign: jraph.GraphsTuple) -> Float[Array, " S"]:
    """Factors for `aggregate`: 0 with probability `rate`, else 1 / (1 - rate), drawn again for each directed edge."""
    keep = 1 - rate
    edges: Any = sign.edges
    return jax.random.bernoulli(key, keep, edges["reverse"].shape).astype(jnp.float32) / keep


@jax.custom_vjp
def _aggregate(nodes, weight, senders, receivers, reverse):
    del reverse
    nodes, weight = sharding.constrain(nodes, REPLICATED), sharding.constrain(weight, SHARDED)
    from_, by, to = senders.reshape(-1, GROUP_SIZE), weight.reshape(-1, GROUP_SIZE), receivers[::GROUP_SIZE]
    # Sizes are a few times a power of two (`bucket`), so that blocks of a power of two leave no rest.
    block = len(to) if sharding.on_a_mesh() else math.gcd(len(to), BLOCK)

    def add(i, total):
        # In a loop of its own `nodes` lies in memory; else XLA on CPU computes it again at each gather, as here where
        # it is a sum of products that autodiff left: three rows to fetch for an edge, not one.
        from_here, by_here, to_here = (jax.lax.dynamic_slice_in_dim(rows, i * block, block) for rows in (from_, by, to))
        # A plain sum of FAN_IN gathers fuses; one gather of [block, FAN_IN, D] with a contraction does not.
        parts = nodes[from_here[:, 0]] * by_here[:, :1]
        for j in range(1, GROUP_SIZE):
            parts = parts + nodes[from_here[:, j]] * by_here[:, j : j + 1]
        return total.at[to_here].add(parts, indices_are_sorted=True)

    return sharding.constrain(jax.lax.fori_loop(0, len(to) // block, add, jnp.zeros_like(nodes)), SHARDED)


def _aggregate_forward(nodes, weight, senders, receivers, reverse):
    return _aggregate(nodes, weight, senders, receivers, reverse), (nodes, weight, senders, receivers, reverse)


def _aggregate_backward(saved, cotangent):
    nodes, weight, senders, receivers, reverse = saved
    to_nodes = _aggregate(cotangent, weight[reverse], senders, receivers, reverse)
    to_weight = jnp.sum(cotangent[receivers] * nodes[senders], axis=-1)  # removed by XLA where nobody asks for it
    return to_nodes, to_weight, None, None, None


_aggregate.defvjp(_aggregate_forward, _aggregate_backward)


def _directed(user, response, own: np.ndarray | None, num_users: int, num_nodes: int, dtype) -> jraph.GraphsTuple:
    """One sign's distinct edges in both directions, sorted by receiver and filled up to multiples of `GROUP_SIZE`.

    `own` are the edges' weights, None if all are 1.
    """
    num_edges = len(user)
    ends = np.concatenate([user, response + num_users])
    tails = np.concatenate([response + num_users, user])
    order = np.lexsort((tails, ends))
    degree = np.bincount(ends, minlength=num_nodes)
    width = -(-degree // GROUP_SIZE) * GROUP_SIZE
    slot_of_sorted = expand(starts(width), degree)
    slot = np.empty(2 * num_edges, np.int64)
    slot[order] = slot_of_sorted

    receivers = np.repeat(np.arange(num_nodes, dtype=np.int32), width)
    senders = receivers.copy()
    senders[slot] = tails
    both = np.ones(2 * num_edges) if own is None else np.tile(own, 2)
    total = np.bincount(ends, weights=both, minlength=num_nodes)
    weight = np.zeros(len(receivers), dtype)
    weight[slot] = both / np.sqrt(total[ends] * total[tails])
    reverse = np.arange(len(receivers), dtype=np.int32)
    reverse[slot] = np.roll(slot, num_edges)
    edges = {"weight": weight, "reverse": reverse}
    if own is not None:
        edges["log_weight"] = np.zeros(len(receivers), dtype)
        edges["log_weight"][slot] = np.log(both)
    fields: dict[str, Any] = {
        "nodes": {"degree": degree.astype(np.int32)},
        "edges": edges,
        "senders": senders,
        "receivers": receivers,
        "globals": None,
        "n_node": np.array([num_nodes], np.int32),
        "n_edge": np.array([len(receivers)], np.int32),
    }
    return jraph.GraphsTuple(**fields)


def _pad(graph: jraph.GraphsTuple, n_node: int, n_edge: int) -> jraph.GraphsTuple:
    num_edges = int(graph.n_edge[0])
    graph = jraph.pad_with_graphs(graph, n_node=n_node, n_edge=n_edge)
    edges: Any = graph.edges
    edges["reverse"][num_edges:] = np.arange(num_edges, n_edge)  # a padding edge is a self-loop, its own reverse
    return graph._replace(senders=_int32(graph.senders), receivers=_int32(graph.receivers))


def _int32(rows) -> np.ndarray:
    return np.asarray(rows, np.int32)  # Jraph's padding widens them


def _check(user, chosen, rejected, *, num_users: int, num_responses: int) -> None:
    if not len(user) == len(chosen) == len(rejected):
        raise UserError(
            f"graph: {len(user)} users, {len(chosen)} chosen and {len(rejected)} rejected rows; "
            "give one of each for every pair"
        )
    for name, rows, bound in (
        ("user", user, num_users),
        ("chosen", chosen, num_responses),
        ("rejected", rejected, num_responses),
    ):
        if len(rows) and not 0 <= rows.min() <= rows.max() < bound:
            raise UserError(
                f"graph: {name} rows run from {rows.min()} to {rows.max()}, but must lie in 0 .. {bound - 1}; "
                f"check the table or num_{'users' if name == 'user' else 'responses'}"
            )
