"""Fits of the graph: on a world with two tastes, degenerate ones, killed ones, and on several devices."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from graphs import as_pairs, build, random_pairs

from copl_jax.graph import gcf, signed_graph, training
from copl_jax.graph.message_passing import LAYERS
from copl_jax.graph.settings import fast_config, paper_config
from pref_jax.errors import UserError
from pref_jax.mesh import make_mesh

# Compiled, because op by op the same takes several times longer.
propagate = jax.jit(gcf.propagate, static_argnums=0)


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
    config = fast_config(dim=32, num_layers=3)
    result = training.fit(config, build(train, 300, 300), train, validation, jax.random.key(0))
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
    again = training.fit(config, made, train, validation, jax.random.key(0))
    np.testing.assert_array_equal(again.users, result.users)


def test_fit_in_batches_with_patience_stops_early():
    rng = np.random.default_rng(12)
    _, train, validation, _ = two_tastes(rng, num_users=60, pairs_each=8, prompts=20, tests_each=1)
    config = paper_config(dim=8, num_layers=2, batch_size=100, epochs=60, learning_rate=3e-2, patience=3)
    result = training.fit(config, build(train, 60, 40), train, validation, jax.random.key(0))
    made = len(result.history["validation_accuracy"])
    assert made < 60
    assert result.best_step == (made - 3) * (len(train.user) // 100)  # four whole batches an epoch
    assert (result.history["train_loss"] > 0).all()


def test_fit_compiles_once_within_a_bucket():
    rng = np.random.default_rng(13)
    config = fast_config(dim=4, num_layers=1, epochs=2, evaluate_every=1)
    program: Any = training._round
    before = program._cache_size()
    for count in (100, 101, 103):
        # Every edge is of its own nodes: sizes grow with the pairs, all within one bucket.
        user = np.arange(count) % 30
        train = as_pairs(user, np.arange(count) % 53, np.arange(count) % 53 + 53)
        training.fit(
            config, build(train, 30, 106), train, random_pairs(rng, count // 10, 30, 106), jax.random.key(count)
        )
    assert program._cache_size() == before + 1


def test_degenerate_fits():
    config = fast_config(dim=4, num_layers=2, epochs=4)
    none = as_pairs([], [], [])
    one = as_pairs([0], [0], [1])
    result = training.fit(config, build(one, 1, 2), one, none, jax.random.key(0))
    assert result.best_step == 4  # nothing to choose by: the last
    assert result.best_accuracy == 0
    assert np.isfinite(result.users).all()
    assert np.isfinite(result.responses).all()
    isolated = training.fit(config, build(one, 3, 4), one, as_pairs([2], [3], [2]), jax.random.key(0))
    assert np.isfinite(isolated.users).all()
    assert all(np.isfinite(values).all() for values in isolated.history.values())
    with pytest.raises(UserError, match="no training pairs"):
        training.fit(config, build(none, 3, 4), none, one, jax.random.key(0))


def test_a_training_that_diverged_is_told(tmp_path):
    config = dataclasses.replace(fast_config(dim=4, num_layers=2, epochs=4), learning_rate=float("inf"))
    one = as_pairs([0], [0], [1])
    for validation in (one, as_pairs([], [], [])):
        with pytest.raises(UserError, match="diverged, no loss was finite; lower its learning_rate"):
            training.fit(config, build(one, 1, 2), one, validation, jax.random.key(0))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "votes",
    [
        ([0], [0], [1]),  # one user
        ([0, 1, 2], [0, 0, 0], [0, 0, 0]),  # one response, which is on both sides
        ([0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]),  # everyone contradicts himself
        ([0] * 5 + [1], [0] * 5 + [1], [1] * 5 + [0]),  # the same vote five times
        ([0, 1, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1]),  # all of one group
    ],
)
def test_degenerate_graphs_train(layer, votes):
    pairs = as_pairs(*votes)
    config = fast_config(layer=layer, dim=4, num_layers=2, epochs=8)
    # Two users and two responses more, which nobody knows.
    result = training.fit(config, build(pairs, 6, 4), pairs, pairs, jax.random.key(0))
    for values in (result.users, result.responses, *jax.tree.leaves(result.params), *result.history.values()):
        assert np.isfinite(values).all()
    lengths = np.linalg.norm(result.users, axis=1)
    assert ((abs(lengths - 1) < 1e-5) | (lengths == 0)).all()


def test_graph_without_negative_edges_trains():
    pairs = as_pairs([0, 1, 2], [0, 1, 0], [1, 0, 1])
    made = build(pairs, 3, 2)
    bare = build(as_pairs([], [], []), 3, 2)
    made = made._replace(negative=bare.negative)
    result = training.fit(fast_config(dim=4, num_layers=2, epochs=4), made, pairs, pairs, jax.random.key(0))
    assert np.isfinite(result.users).all()


def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    rng = np.random.default_rng(14)
    _, train, validation, _ = two_tastes(rng, num_users=40, pairs_each=8, prompts=20, tests_each=1)
    config = fast_config(dim=8, num_layers=2, epochs=12, evaluate_every=2)
    arguments = config, build(train, 40, 40), train, validation, jax.random.key(0)
    whole = training.fit(*arguments)
    rounds: Any = training._round
    calls = []

    def killed(*args):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(None)
        return rounds(*args)

    monkeypatch.setattr(training, "_round", killed)
    with pytest.raises(KeyboardInterrupt):
        training.fit(*arguments, folder=tmp_path, checkpoint_every=2)
    monkeypatch.setattr(training, "_round", rounds)
    resumed = training.fit(*arguments, folder=tmp_path, checkpoint_every=2)
    assert resumed.best_step == whole.best_step
    np.testing.assert_array_equal(resumed.users, whole.users)
    np.testing.assert_array_equal(resumed.responses, whole.responses)
    for name in whole.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(resumed.history[name], whole.history[name])
    assert (np.diff(resumed.history["seconds"]) > 0).all()
    # Once more: nothing is left to do.
    monkeypatch.setattr(training, "_round", None)
    np.testing.assert_array_equal(training.fit(*arguments, folder=tmp_path).users, whole.users)
    # What is there is of these pairs, this config and this key alone.
    turned = train._replace(chosen=train.rejected, rejected=train.chosen)
    faster, made = dataclasses.replace(config, learning_rate=0.02), build(turned, 40, 40)
    for other in (
        (config, made, turned, validation, jax.random.key(0)),
        (faster, *arguments[1:]),
        (*arguments[:-1], jax.random.key(1)),
    ):
        with pytest.raises(UserError, match="holds a fit to other pairs or by other settings"):
            training.fit(*other, folder=tmp_path)


@pytest.mark.parametrize("layer", ["gcf", "attention"])
def test_edges_cut_over_devices_give_the_same_embeddings(layer):
    rng = np.random.default_rng(15)
    _, train, validation, _ = two_tastes(rng, num_users=90, pairs_each=8, prompts=60, tests_each=1)
    config = fast_config(layer=layer, dim=8, num_layers=2, epochs=4)
    made = build(train, 90, 120)
    assert len(made.positive.senders) % (8 * signed_graph.GROUP_SIZE) == 0
    alone, together = (
        training.fit(config, made, train, validation, jax.random.key(0), mesh=make_mesh(devices=jax.devices()[:count]))
        for count in (1, 8)
    )
    np.testing.assert_allclose(together.users, alone.users, atol=2e-5)
    np.testing.assert_allclose(together.history["train_loss"], alone.history["train_loss"], rtol=1e-5)
    nodes = together.params["nodes"]
    assert {shard.data.shape for shard in nodes.addressable_shards} == {(len(nodes) // 8, 8)}


def test_a_fit_that_stalled_is_not_repeated(tmp_path, monkeypatch):
    """Its last checkpoint is of the last evaluation, though it ended between two checkpoints."""
    pairs = random_pairs(np.random.default_rng(17), 60, 10, 12)
    config = fast_config(dim=4, num_layers=1, epochs=40, evaluate_every=1, patience=1)
    arguments = config, build(pairs, 10, 12), pairs, pairs, jax.random.key(0)
    first = training.fit(*arguments, folder=tmp_path, checkpoint_every=30)
    assert len(first.history["step"]) < 30
    monkeypatch.setattr(training, "_round", None)
    np.testing.assert_array_equal(training.fit(*arguments, folder=tmp_path).users, first.users)
