"""Padded signed graphs against dense adjacency matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from copl_jax.graph import signed_graph as graphs
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError


def pairs(rng, count, num_users, num_responses):
    """Random user, chosen, rejected rows with some duplicates."""
    user = rng.integers(0, num_users, count).astype(np.int32)
    chosen = rng.integers(0, num_responses, count).astype(np.int32)
    rejected = ((chosen + rng.integers(1, num_responses, count)) % num_responses).astype(np.int32)
    again = rng.integers(0, count, count // 4)
    return tuple(np.concatenate([rows, rows[again]]) for rows in (user, chosen, rejected))


def build(*rows, **sizes) -> Any:
    """`graphs.build`, its result untyped: Jraph's types allow any tree for edges and nodes."""
    return graphs.build(*rows, **sizes)


def dense(user, response, num_users, num_responses):
    """Normalised adjacency [U + N, U + N] of one sign, float64, symmetric."""
    adjacency = np.zeros((num_users, num_responses))
    adjacency[user, response] = 1
    of_user, of_response = adjacency.sum(1), adjacency.sum(0)
    scale = np.sqrt(np.maximum(np.outer(of_user, of_response), 1))
    both = np.zeros((num_users + num_responses,) * 2)
    both[:num_users, num_users:] = adjacency / scale
    return both + both.T


@pytest.mark.parametrize("seed", range(3))
def test_aggregate_is_the_normalised_adjacency_matrix(seed):
    rng = np.random.default_rng(seed)
    num_users, num_responses = 13, 21
    user, chosen, rejected = pairs(rng, 40, num_users, num_responses)
    with jax.enable_x64(True):
        made = build(user, chosen, rejected, num_users=num_users, num_responses=num_responses, dtype=np.float64)
        nodes = rng.standard_normal((len(jax.tree.leaves(made.positive.nodes)[0]), 5))
        for sign, response in ((made.positive, chosen), (made.negative, rejected)):
            expected = dense(user, response, num_users, num_responses) @ nodes[: num_users + num_responses]
            got = graphs.aggregate(sign, jnp.asarray(nodes))
            np.testing.assert_allclose(got[: num_users + num_responses], expected, rtol=1e-12, atol=1e-14)
            np.testing.assert_array_equal(got[num_users + num_responses :], 0)


def test_jraphs_own_network_reads_the_same_graph():
    rng = np.random.default_rng(0)
    made = build(*pairs(rng, 30, 9, 12), num_users=9, num_responses=12)
    nodes = jnp.asarray(rng.standard_normal((len(made.positive.nodes["degree"]), 4)), jnp.float32)

    def send(edges, sent, received, globals_) -> Any:
        return sent * edges["weight"][:, None]

    def receive(nodes, sent, received, globals_) -> Any:
        return received

    network: Any = jraph.GraphNetwork(
        update_edge_fn=send,
        update_node_fn=receive,
    )
    np.testing.assert_allclose(
        network(made.positive._replace(nodes=nodes)).nodes, graphs.aggregate(made.positive, nodes), rtol=2e-6, atol=1e-6
    )
    assert int(made.positive.n_node[0]) == 9 + 12
    real = np.asarray(jraph.get_edge_padding_mask(made.positive))
    assert (made.positive.edges["weight"][~real] == 0).all()


def test_gradients_of_aggregate():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        made = build(*pairs(rng, 20, 5, 7), num_users=5, num_responses=7, dtype=np.float64).positive
        nodes = jnp.asarray(rng.standard_normal((len(made.nodes["degree"]), 3)))
        weight = jnp.asarray(rng.random(len(made.senders)))  # each direction its own: dropout needs that

        def plain(nodes, weight):
            return jax.ops.segment_sum(nodes[made.senders] * weight[:, None], made.receivers, len(nodes))

        pull = jnp.asarray(rng.standard_normal(nodes.shape))
        ours = jax.vjp(lambda nodes, weight: graphs.aggregate(made, nodes, weight=weight), nodes, weight)[1](pull)
        expected = jax.vjp(plain, nodes, weight)[1](pull)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), ours, expected)


def test_weights_normalise_each_sign_on_its_own():
    # User 0 chose 0 twice (one edge) and 1; user 1 chose 0. Response 1 is chosen and rejected by user 0.
    made = build(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0]), np.array([1, 2, 2, 1]), num_users=3, num_responses=4)
    degree = made.positive.nodes["degree"][:7]
    np.testing.assert_array_equal(degree, [2, 1, 0, 2, 1, 0, 0])
    np.testing.assert_array_equal(made.negative.nodes["degree"][:7], [2, 1, 0, 0, 2, 1, 0])
    weight = made.positive.edges["weight"]
    np.testing.assert_allclose(np.sort(weight[weight > 0]), np.repeat([0.5, 2**-0.5], [2, 4]), rtol=1e-6)
    twice = np.arange(len(weight))[made.positive.edges["reverse"]]
    np.testing.assert_array_equal(made.positive.senders[twice][weight > 0], made.positive.receivers[weight > 0])


@pytest.mark.parametrize(("num_users", "num_responses"), [(0, 0), (1, 0), (0, 3), (4, 5)])
def test_no_edges(num_users, num_responses):
    none = np.zeros(0, np.int32)
    made = build(none, none, none, num_users=num_users, num_responses=num_responses)
    nodes = jnp.ones((len(made.positive.nodes["degree"]), 2))
    np.testing.assert_array_equal(graphs.aggregate(made.positive, nodes), 0)


def test_one_user_and_one_pair():
    made = build(np.array([0]), np.array([1]), np.array([0]), num_users=1, num_responses=2)
    nodes = jnp.zeros((len(made.positive.nodes["degree"]), 1)).at[:3, 0].set(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(graphs.aggregate(made.positive, nodes)[:3, 0], [3, 0, 1])
    np.testing.assert_allclose(graphs.aggregate(made.negative, nodes)[:3, 0], [2, 1, 0])


def test_buckets_are_few_tight_and_whole():
    sizes = np.arange(1, 5000)
    padded = np.array([graphs.bucket(int(size)) for size in sizes])
    assert (padded >= sizes).all()
    assert (padded[sizes >= 32] <= 1.125 * sizes[sizes >= 32] + 1).all()
    assert len(np.unique(padded)) < 70
    assert (padded % graphs.GROUP_SIZE == 0).all()
    np.testing.assert_array_equal([graphs.bucket(int(size)) for size in padded], padded)


@pytest.mark.parametrize(
    ("votes", "users", "responses"), [(1, 2, 2), (5000, 300, 700), (400_000, 20_000, 60_000), (300_000, 300_000, 9000)]
)
def test_shapes_are_those_of_a_graph_that_is_built(votes, users, responses):
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, responses, votes)
    pairs = Comparisons(rng.integers(0, users, votes), chosen, (chosen + rng.integers(1, responses, votes)) % responses)
    graph = graphs.build(pairs.user, pairs.chosen, pairs.rejected, num_users=users, num_responses=responses)
    made, found = (graph, graphs.batch_of(pairs, graph)), graphs.shapes(votes, users, responses)
    assert jax.tree.structure(found) == jax.tree.structure(made)
    for shape, leaf in zip(jax.tree.leaves(found), jax.tree.leaves(made), strict=True):
        assert (shape.shape, shape.dtype) == (np.shape(leaf), leaf.dtype)


def test_nothing_recompiles_while_the_graph_grows_within_a_bucket():
    rng = np.random.default_rng(5)
    traces = []

    @jax.jit
    def total(made, nodes):
        traces.append(1)
        return graphs.aggregate(made.positive, nodes).sum()

    rows, shapes = pairs(rng, 100, 29, 50), set()
    for count in range(90, 110):
        made = build(*(row[:count] for row in rows), num_users=20 + count // 10, num_responses=count - 40)
        nodes = jnp.ones((len(made.positive.nodes["degree"]), 2))
        shapes.add((len(nodes), len(made.positive.senders), len(made.negative.senders)))
        total(made, nodes)
    assert len(traces) == len(shapes) <= 6  # of 20 graphs


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (([0, 3], [0, 1], [1, 0]), "user rows run from 0 to 3.*0 .. 2"),
        (([0, 1], [0, 2], [1, 0]), "chosen rows"),
        (([0, 1], [0, 1], [-1, 0]), "rejected rows"),
        (([0], [0, 1], [1, 0]), "1 users, 2 chosen"),
    ],
)
def test_bad_rows_are_told(rows, words):
    user, chosen, rejected = (np.array(row, np.int32) for row in rows)
    with pytest.raises((UserError, TypeError), match=words if len(rows[0]) == 2 else None):
        build(user, chosen, rejected, num_users=3, num_responses=2)
