"""Graph collaborative filtering against dense float64 matrices, and the fit on a world with two tastes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copl_jax import gcf, graph, recipe
from copl_jax.layers import LAYERS
from pref_jax.data.preferences import Pairs
from pref_jax.errors import UserError
from pref_jax.train.mesh import make_mesh

# Compiled, because op by op the same takes several times longer.
init = jax.jit(gcf.init, static_argnums=(0, 3))
propagate = jax.jit(gcf.propagate, static_argnums=0)


def as_pairs(user, chosen, rejected) -> Pairs:
    user, chosen, rejected = (np.asarray(rows, np.int32) for rows in (user, chosen, rejected))
    return Pairs(user, chosen, rejected, np.full(len(user), -1, np.int8), np.arange(len(user)))


def build(pairs: Pairs, num_users: int, num_responses: int, dtype: Any = np.float32) -> Any:
    return graph.build(
        pairs.user, pairs.chosen, pairs.rejected, num_users=num_users, num_responses=num_responses, dtype=dtype
    )


def random_pairs(rng, count, num_users, num_responses) -> Pairs:
    chosen = rng.integers(0, num_responses, count)
    rejected = (chosen + rng.integers(1, num_responses, count)) % num_responses
    return as_pairs(rng.integers(0, num_users, count), chosen, rejected)


def dense(user, response, num_users, num_responses):
    adjacency = np.zeros((num_users, num_responses))
    adjacency[user, response] = 1
    scale = np.sqrt(np.maximum(np.outer(adjacency.sum(1), adjacency.sum(0)), 1))
    return adjacency / scale


def leaky(x):
    return np.maximum(x, 0.2 * x)


def attend(own, other, adjacency, maps):
    """GAT's message, one node after another: softmax over neighbours of LeakyReLU(q·h_i + k·h_j), times h_j."""
    mine, theirs = (rows @ maps["kernel"] + maps["bias"] for rows in (own, other))
    out = np.zeros_like(mine)
    for i, row in enumerate(adjacency):
        near = np.flatnonzero(row)
        if len(near):
            score = np.exp(leaky(mine[i] @ maps["query"] + theirs[near] @ maps["key"]))
            out[i] = (score / score.sum()) @ theirs[near]
    return out


def reference_layer(kind, own, other, signs, maps):
    """One layer for one side (users or responses) by dense matrices; formulas of `layers`."""
    positive, negative = (a @ other for a in signs)

    def linear(name, x):
        return x @ maps[name]["kernel"] + maps[name].get("bias", 0)

    if kind == "lightgcn":
        return positive
    if kind == "attention":
        messages = [attend(own, other, a, maps[name]) for a, name in zip(signs, ("positive", "negative"), strict=True)]
        return leaky(linear("self", own) + messages[0] - messages[1])
    if kind == "gcf_paper":
        out = linear("self", own) + linear("positive_plain", positive) + linear("positive_gated", positive * own)
        return leaky(out + linear("negative_plain", negative) + linear("negative_gated", negative * own))
    out = linear("self", own) + positive + linear("positive", positive * own)
    out = leaky(out - negative - linear("negative", negative * own))
    return out if kind == "gcf" else maps["gain"] * out / np.sqrt((out**2).sum(1, keepdims=True) + 1e-6)


def reference_loss(config, params, pairs, num_users, num_responses):
    """DESIGN 4.1 with dense matrices, users and responses apart; params as from `gcf.init`, float64 NumPy."""
    users, responses = np.split(params["nodes"][: num_users + num_responses], [num_users])
    signs = [dense(pairs.user, side, num_users, num_responses) for side in (pairs.chosen, pairs.rejected)]
    back = [a.T for a in signs]
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
    e_u, e_p, e_n = users[pairs.user], responses[pairs.chosen], responses[pairs.rejected]
    margin = (e_u * e_p).sum(1) - (e_u * e_n).sum(1)
    norms = (e_u**2).sum() + (e_p**2).sum() + (e_n**2).sum()
    total = np.log1p(np.exp(-margin)).mean() + config.regularisation * norms
    return total, (margin > 0).mean(), np.concatenate([users, responses])


@pytest.mark.parametrize("layer", LAYERS)
def test_forward_loss_and_gradients(layer):
    rng = np.random.default_rng(7)
    num_users, num_responses = 9, 14
    pairs = random_pairs(rng, 40, num_users - 1, num_responses - 2)  # the last ones stay isolated
    config = gcf.GCFConfig(layer=layer, dim=6, num_layers=3, regularisation=1e-3)
    with jax.enable_x64(True):
        made = build(pairs, num_users, num_responses, np.float64)
        params = init(config, jax.random.key(0), made, jnp.float64)
        # Larger embeddings than at the start, so that the products z * e matter.
        params["nodes"] = params["nodes"] * 3
        batch = graph.batch_of(pairs, made)
        (value, parts), grads = jax.jit(jax.value_and_grad(functools.partial(gcf.loss, config), has_aux=True))(
            params, made, batch
        )
        host = jax.tree.map(np.array, params)
        expected, accuracy, nodes = reference_loss(config, host, pairs, num_users, num_responses)
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
                return reference_loss(config, moved, pairs, num_users, num_responses)[0]

            slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
            np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-6, atol=1e-9, err_msg=str(path))


@pytest.mark.parametrize("layer", LAYERS)
def test_float32_is_close_to_float64(layer):
    rng = np.random.default_rng(8)
    pairs = random_pairs(rng, 60, 12, 20)
    config = gcf.GCFConfig(layer=layer, dim=8, num_layers=4)
    made = build(pairs, 12, 20)
    params = init(config, jax.random.key(1), made)
    host = jax.tree.map(lambda x: np.array(x, np.float64), params)
    value, _ = jax.jit(gcf.loss, static_argnums=0)(config, params, made, graph.batch_of(pairs, made))
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
        keep = graph.edge_dropout(config.edge_dropout, key, made.positive)
        return keep * made.positive.edges["weight"], graph.aggregate(made.positive, nodes, keep)

    weights, sums = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(3), 4000))
    own = made.positive.edges["weight"]
    np.testing.assert_allclose(np.mean(weights, 0), own, atol=5 * 0.5 * (0.3 / 0.7) ** 0.5 / 4000**0.5)
    np.testing.assert_allclose(np.mean(sums, 0), graph.aggregate(made.positive, nodes), atol=0.05)
    kept = np.asarray(weights)[:, own > 0] > 0
    assert abs(kept.mean() - 0.7) < 0.01
    # The two directions of an edge are independent draws.
    back = made.positive.edges["reverse"]
    other = np.asarray(weights)[:, back][:, own > 0] > 0
    assert abs((kept & other).mean() - 0.49) < 0.01
    # Signs and layers differ: one layer applied twice with one key would repeat itself.
    deep = gcf.GCFConfig(dim=1, num_layers=2, edge_dropout=0.3)
    params = init(deep, jax.random.key(4), made)
    first, second = (propagate(deep, params, made, jax.random.key(i)) for i in (5, 6))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, propagate(deep, params, made, jax.random.key(5)))


def test_initial_tables_are_xavier_uniform_of_the_real_sizes():
    made = build(as_pairs([0], [1], [0]), 300, 700)
    nodes = np.asarray(init(gcf.GCFConfig(dim=16), jax.random.key(0), made)["nodes"])
    for rows, size in ((nodes[:300], 300), (nodes[300:1000], 700)):
        limit = (6 / (size + 16)) ** 0.5
        assert 0.99 * limit < np.abs(rows).max() <= limit
        assert abs(rows.mean()) < 0.05 * limit
    np.testing.assert_array_equal(nodes[1000:], 0)


def two_tastes(rng, *, num_users, pairs_each, prompts, tests_each=20):
    """Two groups that mostly disagree about two responses to a prompt. Returns group, train, validation, test."""
    group = rng.integers(0, 2, num_users)
    quality = rng.standard_normal((2, prompts, 2))

    def draw(each):
        user = np.repeat(np.arange(num_users), each)
        prompt, flip = rng.integers(0, prompts, len(user)), rng.integers(0, 2, len(user))
        first = quality[group[user], prompt, flip] > quality[group[user], prompt, 1 - flip]
        chosen = np.where(first, flip, 1 - flip)
        return user, 2 * prompt + chosen, 2 * prompt + 1 - chosen

    rows = draw(pairs_each)
    last = np.arange(len(rows[0])) % pairs_each == pairs_each - 1
    train, validation = (as_pairs(*(row[which] for row in rows)) for which in (~last, last))
    return group, train, validation, as_pairs(*draw(tests_each))


def accuracy(result, pairs) -> float:
    scores = [np.sum(result.users[pairs.user] * result.responses[side], 1) for side in (pairs.chosen, pairs.rejected)]
    return float(np.mean(scores[0] > scores[1]))


def test_fit_learns_two_tastes():
    rng = np.random.default_rng(11)
    _, train, validation, test = two_tastes(rng, num_users=300, pairs_each=8, prompts=150)
    config = recipe.fast(dim=32, num_layers=3)
    result = recipe.fit(config, build(train, 300, 300), train, validation, jax.random.key(0))
    assert accuracy(result, test) > 0.9
    np.testing.assert_allclose(np.linalg.norm(result.users, axis=1), 1, rtol=1e-5)
    assert result.users.shape == (300, 32)
    assert result.responses.shape == (300, 32)
    history = result.history["validation_accuracy"]
    assert result.best_accuracy == history.max()
    assert len(history) <= config.epochs // config.evaluate_every
    np.testing.assert_array_equal(result.history["step"], config.evaluate_every * np.arange(1, len(history) + 1))
    assert history[result.best_step // config.evaluate_every - 1] == history.max()
    # The checkpoint's parameters give the exported embeddings.
    made = build(train, 300, 300)
    nodes = propagate(config, result.params, made)
    np.testing.assert_allclose(nodes[300:600], result.responses, rtol=1e-4, atol=1e-5)
    again = recipe.fit(config, made, train, validation, jax.random.key(0))
    np.testing.assert_array_equal(again.users, result.users)


def test_fit_in_batches_with_patience_stops_early():
    rng = np.random.default_rng(12)
    _, train, validation, _ = two_tastes(rng, num_users=60, pairs_each=8, prompts=20, tests_each=1)
    config = recipe.reference(dim=8, num_layers=2, batch_size=100, epochs=60, learning_rate=3e-2, patience=3)
    result = recipe.fit(config, build(train, 60, 40), train, validation, jax.random.key(0))
    made = len(result.history["validation_accuracy"])
    assert made < 60
    assert result.best_step == (made - 3) * (len(train.user) // 100)  # four whole batches an epoch
    assert (result.history["train_loss"] > 0).all()


def test_fit_compiles_once_within_a_bucket():
    rng = np.random.default_rng(13)
    config = recipe.fast(dim=4, num_layers=1, epochs=2, evaluate_every=1)
    program: Any = recipe._round
    before = program._cache_size()
    for count in (100, 101, 103):
        # Every edge is of its own nodes: sizes grow with the pairs, all within one bucket.
        user = np.arange(count) % 30
        train = as_pairs(user, np.arange(count) % 53, np.arange(count) % 53 + 53)
        recipe.fit(config, build(train, 30, 106), train, random_pairs(rng, count // 10, 30, 106), jax.random.key(count))
    assert program._cache_size() == before + 1


def test_degenerate_fits():
    config = recipe.fast(dim=4, num_layers=2, epochs=4)
    none = as_pairs([], [], [])
    one = as_pairs([0], [0], [1])
    result = recipe.fit(config, build(one, 1, 2), one, none, jax.random.key(0))
    assert result.best_step == 4  # nothing to choose by: the last
    assert result.best_accuracy == 0
    assert np.isfinite(result.users).all()
    assert np.isfinite(result.responses).all()
    isolated = recipe.fit(config, build(one, 3, 4), one, as_pairs([2], [3], [2]), jax.random.key(0))
    assert np.isfinite(isolated.users).all()
    assert all(np.isfinite(values).all() for values in isolated.history.values())
    with pytest.raises(UserError, match="no training pairs"):
        recipe.fit(config, build(none, 3, 4), none, one, jax.random.key(0))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "votes",
    [
        ([0], [0], [1]),  # one user
        ([0, 1, 2], [0, 0, 0], [0, 0, 0]),  # one response, which is on both sides
        ([0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]),  # everybody contradicts himself
        ([0] * 5 + [1], [0] * 5 + [1], [1] * 5 + [0]),  # the same vote five times
        ([0, 1, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1]),  # all of one group
    ],
)
def test_degenerate_graphs_train(layer, votes):
    pairs = as_pairs(*votes)
    config = recipe.fast(layer=layer, dim=4, num_layers=2, epochs=8)
    # Two users and two responses more, which nobody knows.
    result = recipe.fit(config, build(pairs, 6, 4), pairs, pairs, jax.random.key(0))
    for values in (result.users, result.responses, *jax.tree.leaves(result.params), *result.history.values()):
        assert np.isfinite(values).all()
    lengths = np.linalg.norm(result.users, axis=1)
    assert ((abs(lengths - 1) < 1e-5) | (lengths == 0)).all()


def test_graph_without_negative_edges_trains():
    pairs = as_pairs([0, 1, 2], [0, 1, 0], [1, 0, 1])
    made = build(pairs, 3, 2)
    bare = build(as_pairs([], [], []), 3, 2)
    made = made._replace(negative=bare.negative)
    result = recipe.fit(recipe.fast(dim=4, num_layers=2, epochs=4), made, pairs, pairs, jax.random.key(0))
    assert np.isfinite(result.users).all()


def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    rng = np.random.default_rng(14)
    _, train, validation, _ = two_tastes(rng, num_users=40, pairs_each=8, prompts=20, tests_each=1)
    config = recipe.fast(dim=8, num_layers=2, epochs=12, evaluate_every=2)
    arguments = config, build(train, 40, 40), train, validation, jax.random.key(0)
    whole = recipe.fit(*arguments)
    rounds: Any = recipe._round
    calls = []

    def killed(*args):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(None)
        return rounds(*args)

    monkeypatch.setattr(recipe, "_round", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.fit(*arguments, folder=tmp_path, checkpoint_every=2)
    monkeypatch.setattr(recipe, "_round", rounds)
    resumed = recipe.fit(*arguments, folder=tmp_path, checkpoint_every=2)
    assert resumed.best_step == whole.best_step
    np.testing.assert_array_equal(resumed.users, whole.users)
    np.testing.assert_array_equal(resumed.responses, whole.responses)
    for name in whole.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(resumed.history[name], whole.history[name])
    assert (np.diff(resumed.history["seconds"]) > 0).all()
    # Once more: nothing is left to do.
    monkeypatch.setattr(recipe, "_round", None)
    np.testing.assert_array_equal(recipe.fit(*arguments, folder=tmp_path).users, whole.users)


@pytest.mark.parametrize("layer", ["gcf", "attention"])
def test_edges_cut_over_devices_give_the_same_embeddings(layer):
    rng = np.random.default_rng(15)
    _, train, validation, _ = two_tastes(rng, num_users=90, pairs_each=8, prompts=60, tests_each=1)
    config = recipe.fast(layer=layer, dim=8, num_layers=2, epochs=4)
    made = build(train, 90, 120)
    assert len(made.positive.senders) % (8 * graph.FAN_IN) == 0
    alone, together = (
        recipe.fit(config, made, train, validation, jax.random.key(0), mesh=make_mesh(devices=jax.devices()[:count]))
        for count in (1, 8)
    )
    np.testing.assert_allclose(together.users, alone.users, atol=2e-5)
    np.testing.assert_allclose(together.history["train_loss"], alone.history["train_loss"], rtol=1e-5)
    nodes = together.params["nodes"]
    assert {shard.data.shape for shard in nodes.addressable_shards} == {(len(nodes) // 8, 8)}


def test_no_device_holds_all_edges():
    """Each device gathers from whole embeddings, but of what it gathers for edges it holds its own part only."""
    rng = np.random.default_rng(16)
    pairs = random_pairs(rng, 4000, 50, 60)
    made = build(pairs, 50, 60)
    mesh = make_mesh()
    config = gcf.GCFConfig(dim=16, num_layers=2)
    with jax.set_mesh(mesh):
        data, batch = (recipe._place(part, mesh) for part in (made, graph.batch_of(pairs, made)))
        params = recipe._place(init(config, jax.random.key(0), made), mesh)
        step = jax.jit(jax.grad(functools.partial(gcf.loss, config), has_aux=True))
        text = str(step.lower(params, data, batch, jax.random.key(1)).compile().as_text())
    edges = len(made.positive.senders)
    assert f"[{edges // graph.FAN_IN // 8},16]" in text
    assert f"[{edges // graph.FAN_IN},16]" not in text


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
    ],
)
def test_contradictory_configs(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        gcf.GCFConfig(**wrong)
