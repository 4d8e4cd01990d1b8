"""Response nodes with texts: the formula, responses that nobody voted on, and users who vote on new texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copl_jax.graph import gcf, signed_graph, text_nodes, training
from copl_jax.graph.embedding import embed_new_users, margins
from copl_jax.graph.message_passing import DECAY
from copl_jax.graph.settings import fast_config, linear_config
from copl_jax.graph.solved_users import columns, from_columns, solve_users, with_texts
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError

USERS, RESPONSES, SIZE, DIM = 5, 7, 4, 3


def votes(rng, count=30, users=USERS, responses=RESPONSES):
    user, chosen = rng.integers(users, size=count), rng.integers(responses, size=count)
    return Comparisons(user, chosen, (chosen + rng.integers(1, responses, size=count)) % responses)


@pytest.mark.parametrize("nodes", ["text", "both"])
def test_loss_against_dense_matrices(nodes):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        given, features = votes(rng), rng.standard_normal((RESPONSES, SIZE)) * 3 + 1
        config = linear_config(dim=DIM, nodes=nodes)
        plain = signed_graph.build(*given[:3], num_users=USERS, num_responses=RESPONSES, dtype=np.float64)
        graph, text = text_nodes.describe(plain, features)
        x = (features - features.mean(0)) / features.std(0) / np.sqrt(SIZE)
        np.testing.assert_allclose(text_nodes.standardised(text, features), x, atol=1e-6)
        graph = graph._replace(features=np.asarray(graph.features, np.float64))
        params = gcf.init(config, jax.random.key(0), graph, jnp.float64)
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), params)
        prior = gcf.Prior(2.0, 0.5)
        batch = signed_graph.batch_of(given, graph)
        total, parts = gcf.loss(config, params, graph, batch, prior=prior)

        own, bias = (np.asarray(params[name]) for name in ("nodes", "bias"))
        rows = slice(USERS, USERS + RESPONSES)
        table = np.zeros((USERS + RESPONSES, DIM))
        table[:USERS] = own[:USERS]
        table[rows] = x @ params["text"]["map"] + (own[rows] if nodes == "both" else 0)
        value = x @ params["text"]["bias"] + (bias[rows] if nodes == "both" else 0)
        both = np.zeros((2, len(table), len(table)))
        for sign, response in enumerate((given.chosen, given.rejected)):
            adjacency = np.zeros((USERS, RESPONSES))
            adjacency[given.user, response] = 1
            degrees = np.outer(adjacency.sum(1), adjacency.sum(0))
            adjacency = np.divide(adjacency, np.sqrt(degrees), out=np.zeros_like(adjacency), where=degrees > 0)
            both[sign, :USERS, USERS:], both[sign, USERS:, :USERS] = adjacency, adjacency.T
        step = DECAY * (both[0] - both[1])
        powers = [np.linalg.matrix_power(step, k) for k in range(config.num_layers + 1)]
        nodes_out = np.sum(powers, axis=0) @ table
        user, one, two = nodes_out[given.user], nodes_out[rows][given.chosen], nodes_out[rows][given.rejected]
        margin = np.sum(user * (one - two), 1) + value[given.chosen] - value[given.rejected]
        nll = np.logaddexp(0, -margin).mean()
        squares = 2.0 * (np.sum(own**2) + np.sum(np.asarray(params["text"]["map"]) ** 2))
        squares += 0.5 * (np.sum(bias**2) + np.sum(np.asarray(params["text"]["bias"]) ** 2))
        np.testing.assert_allclose(parts["nll"], nll, rtol=1e-6)
        np.testing.assert_allclose(total, nll + squares / 2 / len(given.user), rtol=1e-6)
        # What stands for a response that is its text alone is moved by the prior only.
        gradient = jax.grad(lambda own: gcf.loss(config, own, graph, batch)[0])(params)
        moved = np.abs(np.asarray(gradient["nodes"])[rows]).max()
        assert (moved > 0) == (nodes == "both")


def world(seed, users=60, responses=300, each=12, size=8):
    """Votes by a linear taste of each user for features of responses, on few of them twice."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((responses, size)).astype(np.float32)
    taste = 2 * rng.standard_normal((users, size)) * np.array([3, 3, *[0] * (size - 2)])
    user = np.repeat(np.arange(users), each)
    pair = rng.integers(responses, size=(len(user), 2))
    pair[:, 1] = np.where(pair[:, 1] == pair[:, 0], (pair[:, 0] + 1) % responses, pair[:, 1])
    margin = np.sum(taste[user] * (features[pair[:, 0]] - features[pair[:, 1]]), 1)
    first = margin > 0
    return features, taste, Comparisons(user, np.where(first, *pair.T), np.where(first, *pair.T[::-1]))


def fitted(nodes, seed=0):
    features, taste, given = world(seed)
    chooses = np.arange(len(given.user)) % 6 == 0
    config = linear_config(dim=8, nodes=nodes, epochs=100)
    part = given.take(~chooses)
    graph = signed_graph.build(*part[:3], num_users=60, num_responses=300)
    found = training.fit(config, graph, part, given.take(chooses), jax.random.key(seed), features=features)
    assert found.table is not None
    return features, taste, part, found, found.table


def cold(taste, users, seed=9, count=40):
    """Pairs of responses that the graph does not know, and who likes which better."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2 * count, taste.shape[1])).astype(np.float32)
    user = np.repeat(users, count)
    pair = np.tile(np.arange(2 * count).reshape(2, -1).T, (len(users), 1))
    first = np.sum(taste[user] * (features[pair[:, 0]] - features[pair[:, 1]]), 1) > 0
    return features, Comparisons(user, np.where(first, *pair.T), np.where(first, *pair.T[::-1]))


@pytest.mark.parametrize("nodes", ["text", "both"])
def test_texts_rank_responses_nobody_voted_on(nodes):
    _, taste, _, found, known = fitted(nodes)
    features, pairs = cold(taste, np.arange(60))
    table = with_texts(known, features)
    moved = pairs._replace(chosen=pairs.chosen + 300, rejected=pairs.rejected + 300)
    right = np.mean(margins(found.raw_users, table.embeddings, moved, table.bias) > 0)
    assert right > 0.8
    # The table's first rows are as they were, and a saved table is the same to the bit.
    assert table.embeddings[:300].tobytes() == found.responses.tobytes()
    again = from_columns(table.embeddings, columns(table), {"prior": table.prior, "edges": table.edges})
    assert all(np.array_equal(a, b) for a, b in zip(table[:4], again[:4], strict=True))
    assert again.text is not None
    assert table.text is not None
    assert again.text.map.tobytes() == table.text.map.tobytes()


def test_a_new_user_is_embedded_from_votes_on_new_texts():
    _, _, part, found, known = fitted("both")
    taste = 2 * np.random.default_rng(4).standard_normal((20, 8)) * np.array([3, 3, *[0] * 6])
    features, pairs = cold(taste, np.arange(20))
    table = with_texts(known, features)
    moved = pairs._replace(chosen=pairs.chosen + 300, rejected=pairs.rejected + 300)
    late = np.arange(len(pairs.user)) % 40 >= 20
    users = solve_users(table, moved.take(~late), np.arange(20))
    personal = np.mean(margins(users, table.embeddings, moved.take(late), table.bias) > 0)
    shared = np.mean(margins(0 * users, table.embeddings, moved.take(late), table.bias) > 0)
    assert personal > shared + 0.15
    gates = embed_new_users(
        users=found.users,
        responses=table.embeddings,
        table=table,
        seen=np.ones(60, bool),
        train_pairs=part,
        context=moved.take(~late),
        unseen=np.arange(20),
    )
    np.testing.assert_allclose(np.linalg.norm(gates.users, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("nodes", ["text", "both", "table"])
def test_what_is_not_left_open_stays(nodes):
    _, _, given = world(0)
    config = linear_config(nodes=nodes)
    assert text_nodes.settle(config, given, texts=True) == config


def test_nodes_are_read_where_people_hardly_share_responses():
    """By counts of distinct voters; what is chosen and what is rejected are responses alike."""

    def settled(voters, *, texts=True, changes=None):
        # Each pair of responses by so many users, each of whom votes twice on it.
        user = np.tile(np.repeat(np.arange(voters), 2), 5)
        first = np.repeat(np.arange(5) * 2, 2 * voters) + 7  # rows below 7 have no vote
        votes = Comparisons(user, first, first + 1)
        return text_nodes.settle(changes or linear_config(), votes, texts=texts).nodes

    assert [settled(voters) for voters in (1, 3, 4, 9)] == ["both", "both", "table", "table"]
    assert settled(1, texts=False) == "table"
    assert settled(1, changes=fast_config(nodes="auto")) == "table"


@pytest.mark.parametrize("shared", [False, True])
def test_open_nodes_train_as_what_they_are_settled_to(shared):
    features, _, given = world(0)
    # Few enough votes that a response has hardly two.
    votes = given if shared else given.take(np.arange(len(given.user)) % 12 == 0)
    graph = signed_graph.build(*votes[:3], num_users=60, num_responses=300)

    def run(nodes):
        config = linear_config(dim=4, epochs=10, priors=(2.0,), nodes=nodes)
        return training.fit(config, graph, votes, votes, jax.random.key(0), features=features)

    found, same = run("auto"), run("table" if shared else "both")
    assert found.table is not None
    assert (found.table.text is None) == shared
    np.testing.assert_array_equal(found.responses, same.responses)


def test_what_cannot_be():
    features, _, given = world(0)
    graph = signed_graph.build(*given[:3], num_users=60, num_responses=300)
    with pytest.raises(UserError, match="rows of features given: none"):
        training.fit(linear_config(nodes="text"), graph, given, given, jax.random.key(0))
    with pytest.raises(UserError, match="rows of features given: 299"):
        training.fit(linear_config(nodes="both"), graph, given, given, jax.random.key(0), features=features[1:])
    with pytest.raises(UserError, match="needs priors"):
        fast_config(nodes="text")
    with pytest.raises(UserError, match="nodes is 'words'"):
        linear_config(nodes="words")
