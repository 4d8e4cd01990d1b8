"""Users solved from responses: modes, means and whole fits against dense float64 formulas and SciPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graphs import as_pairs, build, random_pairs
from scipy import optimize
from test_copl_recipe import two_tastes
from test_graded import mixed

from copl_jax.graph import edge_weights, training
from copl_jax.graph.embedding import accuracy, embed_new_users, embed_users, margins
from copl_jax.graph.settings import linear_config
from copl_jax.graph.solved_users import load_table, prior_means, response_degrees, save_table, solve_users
from pref_jax import user_modes
from pref_jax.calibrated import calibrated_loss
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.graded import FittedScale, grade, losses
from pref_jax.item_values import choose_item_values, item_values
from pref_jax.likelihood import fit_scale
from pref_jax.user_modes import solve_modes

CONFIG = linear_config(dim=6, epochs=20, patience=None, priors=(3.0, 0.5))


def objective(user, mean, rows, votes, tables, precision, scale=None):
    """What is minimised for one user, in float64."""
    margin = (tables[0][votes.chosen[rows]] - tables[0][votes.rejected[rows]]) @ user
    margin = margin + tables[1][votes.chosen[rows]] - tables[1][votes.rejected[rows]]
    if scale is None:
        value = np.logaddexp(0, -margin).sum()
    else:
        graded = type(scale[1])(*(column[rows] for column in scale[1]))
        ends = jnp.asarray(scale[0].thresholds)
        value = float(losses(jnp.asarray(margin), graded, ends, ties=scale[0].scale.ties).sum())
    return value + precision / 2 * ((user - mean) ** 2).sum()


@pytest.mark.parametrize("precision", [0.05, 4.0])
@pytest.mark.parametrize("dim", [4, 20])  # fewer than anybody's votes, and more than most people's
def test_modes_are_the_lowest_points(precision, dim):
    rng = np.random.default_rng(1)
    means, embeddings, bias = rng.normal(size=(7, dim)), 2 * rng.normal(size=(12, dim)), rng.normal(size=12)
    votes = random_pairs(rng, 60, 6, 12)  # user 6 has none
    same = as_pairs([0] * 30, [1] * 30, [2] * 30)  # separable: one vote many times
    votes = Comparisons(*(np.concatenate(part) for part in zip(votes[:3], same[:3], strict=True)))
    tables: dict[str, Any] = {"embeddings": embeddings, "bias": bias, "precision": precision}
    with jax.enable_x64(True):
        found = solve_modes(means, votes, **tables)
    single = solve_modes(*(means.astype(np.float32), votes), **{**tables, "embeddings": embeddings.astype(np.float32)})
    np.testing.assert_array_equal(found[6], means[6])
    for user in range(6):
        rows = np.flatnonzero(votes.user == user)
        arguments = (means[user], rows, votes, (embeddings, bias), precision)
        best = optimize.minimize(objective, means[user], arguments, tol=1e-12)
        np.testing.assert_allclose(found[user], best.x, atol=2e-3)
        for ours in (found[user], single[user]):
            assert objective(ours, *arguments) <= best.fun + 1e-4 * (1 + best.fun)


def test_blocks_of_every_length_give_the_same(monkeypatch):
    rng = np.random.default_rng(2)
    means, embeddings = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(9, 3)).astype(np.float32)
    user = np.repeat(np.arange(40), rng.integers(0, 20, 40))
    votes = random_pairs(rng, len(user), 1, 9)._replace(user=user)
    tables: dict[str, Any] = {"embeddings": embeddings, "bias": np.zeros(9, np.float32), "precision": 1.0}
    whole = solve_modes(means, votes, **tables)
    monkeypatch.setattr(user_modes, "_CELLS", 16)
    np.testing.assert_allclose(solve_modes(means, votes, **tables), whole, atol=1e-3)


def test_modes_of_ties_and_strengths():
    rng = np.random.default_rng(3)
    votes = mixed(rng, 50)
    scale = FittedScale(fit_scale(votes), np.sort(rng.uniform(0.2, 2, fit_scale(votes).num_thresholds)))
    embeddings, bias = rng.normal(size=(30, 3)), rng.normal(size=30)
    with jax.enable_x64(True):
        tables: dict[str, Any] = {"embeddings": embeddings, "bias": bias, "precision": 0.5}
        found = solve_modes(np.zeros((8, 3)), votes, **tables, scale=scale)
        for user in np.unique(votes.user):
            rows, graded = np.flatnonzero(votes.user == user), grade(votes, scale.scale)
            arguments = (np.zeros(3), rows, votes, (embeddings, bias), 0.5, (scale, graded))
            best = optimize.minimize(objective, np.zeros(3), arguments, tol=1e-10)
            assert objective(found[user], *arguments) <= best.fun + 1e-4 * (1 + best.fun)


@pytest.mark.parametrize("edges", ["distinct", "counted"])
def test_means_are_what_the_layers_bring(edges):
    """A seen user's embedding is the own row of the table and its mean, for all numbers of layers."""
    rng = np.random.default_rng(4)
    pairs = random_pairs(rng, 80, 6, 9)
    config = dataclasses.replace(CONFIG, edges=edges)
    made = build(pairs, 7, 10, edges=edges)
    found = training.fit(config, made, pairs, pairs, jax.random.key(0))
    assert found.table is not None
    means = prior_means(found.table, pairs, 7, None)
    np.testing.assert_allclose(found.raw_users, found.params["nodes"][:7] + means, rtol=1e-4, atol=1e-5)
    counts = np.zeros((2, 10))
    for side, response in enumerate((pairs.chosen, pairs.rejected)):
        each = (
            zip(pairs.user, response, strict=True)
            if edges == "counted"
            else set(zip(pairs.user, response, strict=True))
        )
        np.add.at(counts[side], [one for _, one in each], 1)
    np.testing.assert_allclose(response_degrees(made), counts.T, rtol=1e-6)


def test_unseen_users_are_solved_as_seen_ones_and_know_their_tastes():
    rng = np.random.default_rng(5)
    _, train, validation, test = two_tastes(rng, num_users=240, pairs_each=9, prompts=60)
    learn, choose = (part.take(part.user < 200) for part in (train, validation))
    config = linear_config(dim=16)
    found = training.fit(config, build(learn, 200, 120), learn, choose, jax.random.key(0))
    assert found.table is not None
    users = solve_users(found.table, train, np.arange(240))
    assert (users != 0).any(axis=1).all()
    scores = [
        accuracy(users, found.responses, test.take(rows), found.bias) for rows in (test.user < 200, test.user >= 200)
    ]
    assert min(scores) > 0.9
    # Those not asked for are not read, and rows come in the order asked for.
    np.testing.assert_allclose(
        solve_users(found.table, train, np.array([230, 3])), users[[230, 3]], rtol=1e-4, atol=1e-5
    )
    none = solve_users(found.table, train.take(slice(0)), np.array([5, 1]))
    np.testing.assert_array_equal(none, np.zeros_like(none))


def test_new_users_have_length_one_and_without_votes_are_the_mean(tmp_path):
    rng = np.random.default_rng(6)
    pairs = random_pairs(rng, 120, 10, 12)
    seen = np.arange(13) < 10
    found = embed_users(CONFIG, pairs, pairs, seen=seen, num_responses=12, seed=0, folder=tmp_path, reembed=True)
    assert found.table is not None
    np.testing.assert_allclose(np.linalg.norm(found.users[:10], axis=1), 1, rtol=1e-5)
    solved = solve_users(found.table, pairs, np.arange(10))
    np.testing.assert_allclose(found.raw_users[:10], solved, atol=1e-5)
    assert found.facts["validation_accuracy_refreshed"] == accuracy(solved, found.responses, pairs, found.bias)
    assert set(found.facts["priors"]) == {"3", "0.5"}
    (tmp_path / "table").mkdir()
    save_table(tmp_path / "table", found.table)
    again = load_table(tmp_path / "table")
    assert again is not None
    jax.tree.map(np.testing.assert_array_equal, again._replace(edges=0), found.table._replace(edges=0))
    context = as_pairs([10, 10, 12], [1, 2, 3], [4, 5, 6])
    new = embed_new_users(
        users=found.users,
        responses=found.responses,
        table=again,
        seen=seen,
        train_pairs=pairs,
        context=context,
        unseen=np.array([12, 11, 10]),
    )
    assert new.neighbours is None
    np.testing.assert_array_equal(new.no_votes, [False, True, False])
    np.testing.assert_allclose(new.users[1], found.users[:10].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(new.users[[0, 2]], axis=1), 1, rtol=1e-5)


def test_every_prior_is_tried_and_the_lowest_loss_chosen(tmp_path):
    rng = np.random.default_rng(7)
    _, train, validation, _ = two_tastes(rng, num_users=60, pairs_each=8, prompts=20, tests_each=1)
    config = linear_config(dim=8, epochs=40, priors=(0.3, 300.0, 3.0, 1000.0))
    arguments = config, build(train, 60, 40), train, validation, jax.random.key(0)
    found = training.fit(*arguments, folder=tmp_path)
    assert list(found.priors) == [1000.0, 300.0, 3.0, 0.3]
    assert found.table is not None
    assert found.table.prior == min(found.priors, key=lambda prior: found.priors[prior])
    assert found.best_loss == found.priors[found.table.prior] == found.history["validation_loss"].min()
    alone = training.fit(dataclasses.replace(config, priors=(found.table.prior,)), *arguments[1:])
    np.testing.assert_array_equal(alone.raw_users, found.raw_users)
    again = training.fit(*arguments, folder=tmp_path)  # from its checkpoints
    np.testing.assert_array_equal(again.raw_users, found.raw_users)
    # Nothing to choose by: the middle one.
    blind = training.fit(*arguments[:3], validation.take(slice(0)), jax.random.key(0))
    assert blind.table is not None
    assert blind.table.prior == 3.0


def test_no_more_priors_are_tried_once_two_are_no_better(monkeypatch):
    rng = np.random.default_rng(8)
    pairs = random_pairs(rng, 100, 12, 10)
    noise = random_pairs(rng, 100, 12, 10)  # nothing to learn: weaker priors only fit more of it
    config = linear_config(dim=4, epochs=40, priors=(1e-3, 1e-2, 0.1, 1.0, 1e3))
    found = training.fit(config, build(pairs, 12, 10), pairs, noise, jax.random.key(0))
    losses = list(found.priors.values())
    assert len(losses) < 5
    assert min(losses[-2:]) >= min(losses[:-2])


def test_batches_bear_their_share_of_the_prior():
    rng = np.random.default_rng(9)
    pairs = random_pairs(rng, 64, 10, 12)
    made = build(pairs, 10, 12)
    config = linear_config(dim=4, priors=(5.0,), batch_size=16, epochs=400, learning_rate=5e-3, patience=None)
    by_batch, whole = (
        training.fit(dataclasses.replace(config, batch_size=size, epochs=epochs), made, pairs, pairs, jax.random.key(0))
        for size, epochs in ((16, 400), (None, 1600))
    )
    lengths = [np.linalg.norm(found.raw_users) for found in (by_batch, whole)]
    np.testing.assert_allclose(*lengths, rtol=0.1)


def test_item_values_are_those_of_scipy():
    rng = np.random.default_rng(10)
    pairs = random_pairs(rng, 80, 5, 9)
    found = item_values(pairs, 11, precision=0.7)

    def value(b):
        return np.logaddexp(0, b[pairs.rejected] - b[pairs.chosen]).sum() + 0.35 * (b**2).sum()

    best = optimize.minimize(value, np.zeros(11), tol=1e-12)
    np.testing.assert_allclose(found, best.x, atol=1e-4)
    np.testing.assert_array_equal(found[9:], 0)
    tie = np.arange(80) < 40
    np.testing.assert_allclose(
        item_values(pairs._replace(tie=tie), 11, precision=1.0), item_values(pairs.take(~tie), 11, precision=1.0)
    )
    values, precision = choose_item_values(pairs, pairs, 11, precisions=(0.1, 1.0, 10.0))
    assert precision == 0.1  # the votes themselves are explained best by the weakest prior
    np.testing.assert_array_equal(values, item_values(pairs, 11, precision=0.1))
    assert choose_item_values(pairs, pairs.take(slice(0)), 11)[1] == 1.0


def test_the_calibrated_loss_is_the_least_over_scales():
    rng = np.random.default_rng(11)
    margin, weight = rng.normal(0.5, 2, 50).astype(np.float32), (rng.random(50) < 0.7).astype(np.float32)

    def loss(scale):
        return (weight * np.logaddexp(0, -scale * margin)).sum() / weight.sum()

    found: Any = optimize.minimize_scalar(loss, bounds=(0.03, 8), method="bounded")
    best = found.fun
    for factor in (1, 0.3, 3):  # whatever the size of margins
        np.testing.assert_allclose(calibrated_loss(jnp.asarray(factor * margin), jnp.asarray(weight)), best, rtol=2e-3)
    assert calibrated_loss(jnp.asarray(margin), 0 * jnp.asarray(weight)) == 0


def test_margins_count_the_bias():
    users, responses, bias = np.ones((1, 2)), np.eye(2), np.array([0.5, 2.0])
    pairs = as_pairs([0], [0], [1])
    np.testing.assert_allclose(margins(users, responses, pairs), [0.0])
    np.testing.assert_allclose(margins(users, responses, pairs, bias), [-1.5])
    with pytest.raises(UserError, match="priors"):
        linear_config(bias=True, priors=())
    made = edge_weights.build(pairs, fit_scale(pairs), num_users=1, num_responses=2, edges="counted")
    np.testing.assert_array_equal(response_degrees(made), [[1, 0], [0, 1]])
