"""Graph collaborative filtering against dense float64 matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import as_pairs, build, random_pairs
from scipy import sparse

from copl_jax.graph import gcf, signed_graph, training
from copl_jax.graph.message_passing import LAYERS
from copl_jax.graph.settings import linear_config
from pref_jax.errors import UserError
from pref_jax.mesh import make_mesh

# Compiled, because op by op the same takes several times longer.
init = jax.jit(gcf.init, static_argnums=(0, 3))
propagate = jax.jit(gcf.propagate, static_argnums=0)


def dense(user, response, num_users, num_responses, edges="distinct"):
    """A sign's matrix, normalised and not; "counted" as the authors' code has it, where `coo_matrix` sums repeats."""
    adjacency = sparse.coo_matrix((np.ones(len(user)), (user, response)), (num_users, num_responses)).toarray()
    if edges == "distinct":
        adjacency = np.minimum(adjacency, 1)
    scale = np.sqrt(np.maximum(np.outer(adjacency.sum(1), adjacency.sum(0)), 1))
    return adjacency / scale, adjacency


def leaky(x):
    return np.maximum(x, 0.2 * x)


def attend(own, other, adjacency, maps):
    """GAT's message, one node after another: softmax over neighbours of LeakyReLU(q·h_i + k·h_j), times h_j.

    `adjacency` is not normalised: an edge of weight w counts as w edges."""
    mine, theirs = (rows @ maps["kernel"] + maps["bias"] for rows in (own, other))
    out = np.zeros_like(mine)
    for i, row in enumerate(adjacency):
        near = np.flatnonzero(row)
        if len(near):
            score = np.exp(leaky(mine[i] @ maps["query"] + theirs[near] @ maps["key"]))
            score *= row[near]
            out[i] = (score / score.sum()) @ theirs[near]
    return out


def reference_layer(kind, own, other, signs, maps):
    """One layer for one side (users or responses) by dense matrices; formulas of `layers`."""
    positive, negative = (a @ other for a, _ in signs)

    def linear(name, x):
        return x @ maps[name]["kernel"] + maps[name].get("bias", 0)

    if kind == "lightgcn":
        return positive
    if kind == "linear":
        return 0.4 * (positive - negative)
    if kind == "attention":
        both = zip(signs, ("positive", "negative"), strict=True)
        messages = [attend(own, other, counts, maps[name]) for (_, counts), name in both]
        return leaky(linear("self", own) + messages[0] - messages[1])
    if kind == "gcf_paper":
        out = linear("self", own) + linear("positive_plain", positive) + linear("positive_gated", positive * own)
        return leaky(out + linear("negative_plain", negative) + linear("negative_gated", negative * own))
    out = linear("self", own) + positive + linear("positive", positive * own)
    out = leaky(out - negative - linear("negative", negative * own))
    return out if kind == "gcf" else maps["gain"] * out / np.sqrt((out**2).sum(1, keepdims=True) + 1e-6)


def reference_loss(config, params, pairs, num_users, num_responses, prior=None):
    """The formulas of arXiv 2503.01658 with dense matrices, users and responses apart; params as from `gcf.init`."""
    users, responses = np.split(params["nodes"][: num_users + num_responses], [num_users])
    sides = (pairs.chosen, pairs.rejected)
    signs = [dense(pairs.user, side, num_users, num_responses, config.edges) for side in sides]
    back = [(a.T, counts.T) for a, counts in signs]
    states = [(users, responses)]
    for k in range(config.num_layers):
        maps = jax.tree.map(lambda leaf, k=k: leaf[k], params["layers"])
        users, responses = (
            reference_layer(config.layer, users, responses, signs, maps),
            reference_layer(config.layer, responses, users, back, maps),
        )
        states.append((users, responses))
    if config.layer == "lightgcn":
        users, responses = (np.mean(side, axis=0) for side in zip(*states, strict=True))
    if config.layer == "linear":
        users, responses = (np.sum(side, axis=0) for side in zip(*states, strict=True))
    e_u, e_p, e_n = users[pairs.user], responses[pairs.chosen], responses[pairs.rejected]
    margin = (e_u * e_p).sum(1) - (e_u * e_n).sum(1)
    if config.bias:
        bias = params["bias"][num_users:]
        margin = margin + bias[pairs.chosen] - bias[pairs.rejected]
    norms = (e_u**2).sum() + (e_p**2).sum() + (e_n**2).sum()
    total = np.log1p(np.exp(-margin)).mean() + config.regularisation * norms
    if prior is not None:
        squares = prior.table * (params["nodes"] ** 2).sum() + prior.bias * (params["bias"] ** 2).sum()
        total += squares / 2 / len(margin)
    return total, (margin > 0).mean(), np.concatenate([users, responses])


def check_against_dense(rng, config, pairs, num_users, num_responses, prior=None):
    """Embeddings, loss, accuracy and gradients in float64, and those of the dense formulas."""
    with jax.enable_x64(True):
        made = build(pairs, num_users, num_responses, np.float64, config.edges)
        params = init(config, jax.random.key(0), made, jnp.float64)
        # Larger embeddings than at the start, so that the products z * e matter.
        params["nodes"] = params["nodes"] * 3
        if config.bias:
            params["bias"] = jnp.asarray(rng.standard_normal(params["bias"].shape))
        batch = signed_graph.batch_of(pairs, made)
        loss = functools.partial(gcf.loss, config, prior=prior)
        (value, parts), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, made, batch)
        host = jax.tree.map(np.array, params)
        expected, accuracy, nodes = reference_loss(config, host, pairs, num_users, num_responses, prior)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        np.testing.assert_allclose(parts["accuracy"], accuracy, rtol=1e-12)
        got = propagate(config, params, made)[: num_users + num_responses]
        np.testing.assert_allclose(got, nodes, rtol=1e-9, atol=1e-12)

        for path, grad in jax.tree_util.tree_leaves_with_path(grads):
            direction = rng.standard_normal(grad.shape)

            def shifted(step, path=path, direction=direction):
                moved = jax.tree_util.tree_map_with_path(
                    lambda p, leaf: leaf + step * direction if p == path else leaf, host
                )
                return reference_loss(config, moved, pairs, num_users, num_responses, prior)[0]

            slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
            np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-6, atol=1e-9, err_msg=str(path))


@pytest.mark.parametrize("layer", LAYERS)
def test_forward_loss_and_gradients(layer):
    rng = np.random.default_rng(7)
    pairs = random_pairs(rng, 40, 8, 12)  # the last rows stay isolated
    config = gcf.GCFConfig(layer=layer, dim=6, num_layers=3, regularisation=1e-3)
    check_against_dense(rng, config, pairs, 9, 14)


@pytest.mark.parametrize("layer", LAYERS)
def test_votes_that_are_repeated_count_as_often(layer):
    rng = np.random.default_rng(17)
    pairs = random_pairs(rng, 200, 4, 6)  # four times and more for each of the edges there can be
    counts = np.unique(pairs.user * 6 + pairs.chosen, return_counts=True)[1]
    assert counts.max() > counts.min() > 1
    config = gcf.GCFConfig(layer=layer, dim=6, num_layers=3, regularisation=1e-3, edges="counted")
    check_against_dense(rng, config, pairs, 5, 7)


def test_counted_edges_without_repeats_are_distinct_to_the_bit():
    pairs = as_pairs([0, 0, 1, 2], [0, 1, 0, 3], [2, 3, 1, 0])
    made = [build(pairs, 3, 4, edges=edges) for edges in ("distinct", "counted")]
    jax.tree.map(np.testing.assert_array_equal, *made)
    with pytest.raises(UserError, match="edges is 'twice'"):
        build(pairs, 3, 4, edges="twice")


@pytest.mark.parametrize("num_layers", [0, 2])
def test_bias_and_prior(num_layers):
    rng = np.random.default_rng(18)
    pairs = random_pairs(rng, 60, 8, 12)
    config = linear_config(dim=6, num_layers=num_layers, regularisation=1e-3)
    check_against_dense(rng, config, pairs, 9, 14, gcf.Prior(3.0, 0.7))


@pytest.mark.parametrize("layer", LAYERS)
def test_float32_is_close_to_float64(layer):
    rng = np.random.default_rng(8)
    pairs = random_pairs(rng, 60, 12, 20)
    config = gcf.GCFConfig(layer=layer, dim=8, num_layers=4)
    made = build(pairs, 12, 20)
    params = init(config, jax.random.key(1), made)
    host = jax.tree.map(lambda x: np.array(x, np.float64), params)
    value, _ = jax.jit(gcf.loss, static_argnums=0)(config, params, made, signed_graph.batch_of(pairs, made))
    np.testing.assert_allclose(value, reference_loss(config, host, pairs, 12, 20)[0], rtol=2e-6)


def test_relabelled_users_and_responses_give_relabelled_embeddings():
    rng = np.random.default_rng(9)
    num_users, num_responses = 7, 11
    pairs = random_pairs(rng, 30, num_users, num_responses)
    config = gcf.GCFConfig(dim=5, num_layers=2)
    with jax.enable_x64(True):
        made = build(pairs, num_users, num_responses, np.float64)
        params = init(config, jax.random.key(2), made, jnp.float64)
        of_user, of_response = rng.permutation(num_users), rng.permutation(num_responses)
        moved = as_pairs(of_user[pairs.user], of_response[pairs.chosen], of_response[pairs.rejected])
        place = np.concatenate([of_user, of_response + num_users])
        nodes = params["nodes"].at[place].set(params["nodes"][: len(place)])
        before = propagate(config, params, made)[: len(place)]
        after = propagate(config, {**params, "nodes": nodes}, build(moved, num_users, num_responses, np.float64))
        np.testing.assert_allclose(after[place], before, rtol=1e-10, atol=1e-13)


def test_edge_dropout_keeps_the_mean_and_draws_anew():
    rng = np.random.default_rng(10)
    pairs = random_pairs(rng, 30, 6, 9)
    made = build(pairs, 6, 9)
    config = gcf.GCFConfig(dim=1, num_layers=1, edge_dropout=0.3)
    nodes = jnp.asarray(rng.standard_normal((len(made.positive.nodes["degree"]), 1)), jnp.float32)

    def once(key):
        keep = signed_graph.edge_dropout(config.edge_dropout, key, made.positive)
        return keep * made.positive.edges["weight"], signed_graph.aggregate(made.positive, nodes, keep)

    weights, sums = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(3), 4000))
    own = made.positive.edges["weight"]
    np.testing.assert_allclose(np.mean(weights, 0), own, atol=5 * 0.5 * (0.3 / 0.7) ** 0.5 / 4000**0.5)
    np.testing.assert_allclose(np.mean(sums, 0), signed_graph.aggregate(made.positive, nodes), atol=0.05)
    kept = np.asarray(weights)[:, own > 0] > 0
    assert abs(kept.mean() - 0.7) < 0.01
    # The two directions of an edge are independent draws.
    back = made.positive.edges["reverse"]
    other = np.asarray(weights)[:, back][:, own > 0] > 0
    assert abs((kept & other).mean() - 0.49) < 0.01
    deep = gcf.GCFConfig(dim=1, num_layers=2, edge_dropout=0.3)
    params = init(deep, jax.random.key(4), made)
    first, second = (propagate(deep, params, made, jax.random.key(i)) for i in (5, 6))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, propagate(deep, params, made, jax.random.key(5)))


def test_edges_are_dropped_anew_in_each_layer_and_sign(monkeypatch):
    made = build(random_pairs(np.random.default_rng(10), 30, 6, 9), 6, 9)
    deep = gcf.GCFConfig(dim=1, num_layers=3, edge_dropout=0.3)
    drawn = []

    def watched(rate, key, sign):
        jax.debug.callback(lambda bits: drawn.append(tuple(np.asarray(bits).tolist())), jax.random.key_data(key))
        return signed_graph.edge_dropout(rate, key, sign)

    monkeypatch.setattr(gcf, "edge_dropout", watched)
    jax.block_until_ready(gcf.propagate(deep, init(deep, jax.random.key(4), made), made, jax.random.key(5)))
    jax.effects_barrier()
    assert len(drawn) == len(set(drawn)) == 3 * 2


def test_initial_tables_are_xavier_uniform_of_the_real_sizes():
    made = build(as_pairs([0], [1], [0]), 300, 700)
    nodes = np.asarray(init(gcf.GCFConfig(dim=16), jax.random.key(0), made)["nodes"])
    for rows, size in ((nodes[:300], 300), (nodes[300:1000], 700)):
        limit = (6 / (size + 16)) ** 0.5
        assert 0.99 * limit < np.abs(rows).max() <= limit
        assert abs(rows.mean()) < 0.05 * limit
    np.testing.assert_array_equal(nodes[1000:], 0)


def test_no_device_holds_all_edges():
    """Each device gathers from whole embeddings, but of what it gathers for edges it holds its own part only."""
    rng = np.random.default_rng(16)
    pairs = random_pairs(rng, 4000, 50, 60)
    made = build(pairs, 50, 60)
    mesh = make_mesh()
    config = gcf.GCFConfig(dim=16, num_layers=2)
    with jax.set_mesh(mesh):
        data, batch = (training._place(part, mesh) for part in (made, signed_graph.batch_of(pairs, made)))
        params = training._place(init(config, jax.random.key(0), made), mesh)
        step = jax.jit(jax.grad(functools.partial(gcf.loss, config), has_aux=True))
        text = str(step.lower(params, data, batch, jax.random.key(1)).compile().as_text())
    edges = len(made.positive.senders)
    assert f"[{edges // signed_graph.GROUP_SIZE // 8},16]" in text
    assert f"[{edges // signed_graph.GROUP_SIZE},16]" not in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"edge_dropout": 1.0},
        {"epochs": 5, "evaluate_every": 2},
        {"epochs": 0},
        {"layer": "gin"},
        {"dim": 0},
        {"patience": 0},
        {"batch_size": 0},
        {"edges": "twice"},
        {"select": "best"},
        {"priors": (1.0,)},
        {"priors": (0.0,), "layer": "linear"},
        {"bias": True, "layer": "linear"},
    ],
)
def test_contradictory_configs(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        gcf.GCFConfig(**wrong)
