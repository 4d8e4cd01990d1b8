"""Joint fits in small worlds of known tastes: near the oracle with personal signal, no loss without; edges; mistakes.

The worlds: Gaussian features with a few attribute directions, users who judge by the attributes' levels.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from lore_jax.comparisons import make_table
from lore_jax.fitting import bradley_terry, candidates, model_selection, priors, published
from lore_jax.fitting.bradley_terry import LoReConfig
from lore_jax.fitting.lbfgs import minimise, minimise_along
from lore_jax.fitting.priors import FitProblem
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.standardiser import standardise


class World(NamedTuple):
    features: np.ndarray
    train: Comparisons
    validation: Comparisons
    context: Comparisons
    test: Comparisons
    test_unseen: Comparisons
    group: np.ndarray
    group_unseen: np.ndarray


def make_world(
    taste_of, *, seed, users, votes, held=1, unseen=60, context=8, test=40, pool=300, dim=32, flip=0.0
) -> World:
    """`taste_of(rng, users)` -> (weights over four attributes, group). Levels 1 .. 5; ties and flips at random."""
    rng = np.random.default_rng(seed)
    attributes = np.linalg.qr(rng.normal(size=(dim, 4)))[0]
    features = rng.normal(size=(2 * (pool + 1000), dim)).astype(np.float32)
    levels = np.clip(np.floor((features @ attributes + 1.25) / 0.5), 0, 4)
    pairs = np.arange(len(features)).reshape(-1, 2)
    taste, group = taste_of(rng, users + unseen)

    def draw(who, count, among):
        user = np.repeat(who, count)
        picked = among[np.concatenate([rng.choice(len(among), count, replace=False) for _ in who])]
        score = np.einsum("pak,pk->pa", levels[picked], taste[user])
        first = score[:, 0] - score[:, 1] + 1e-6 * rng.normal(size=len(user)) > 0
        first ^= rng.random(len(user)) < flip
        a, b = picked.T
        return Comparisons(user - who[0], np.where(first, a, b), np.where(first, b, a))

    old, new = np.arange(users), np.arange(users, users + unseen)
    everything = draw(old, votes, pairs[:pool])
    late = np.arange(users * votes) % votes >= votes - held
    return World(
        features,
        everything.take(~late),
        everything.take(late),
        draw(new, context, pairs[:pool]),
        draw(old, test, pairs[pool:]),
        draw(new, test, pairs[pool:]),
        group[:users],
        group[users:],
    )


def camps(count):
    """Each user cares for one of `count` attributes."""

    def taste_of(rng, users):
        group = rng.integers(0, count, users)
        return np.eye(4)[group], group

    return taste_of


def opposite(rng, users):
    """Two camps that want the contrary of each other."""
    group = rng.integers(0, 2, users)
    return np.where(group == 0, 1, -1)[:, None] * np.eye(4)[:1], group


def dirichlet(rng, users):
    """Tastes from Dirichlet(0.1)."""
    taste = rng.dirichlet([0.1] * 4, users)
    return taste, taste.argmax(1)


def alike(rng, users):
    """Everyone has one taste."""
    return np.tile([0.4, 0.3, 0.2, 0.1], (users, 1)), np.zeros(users, int)


def test_spectral_directions_find_the_disagreement():
    world = make_world(opposite, seed=4, users=200, votes=8)
    table = make_table(world.train, None, 200, len(world.features))
    phi = jnp.asarray(world.features)
    found = priors.spectral_directions(phi, table, table.train, jnp.zeros(table.train.shape), 2, jax.random.key(0))
    rng = np.random.default_rng(4)
    attribute = np.linalg.qr(rng.normal(size=(32, 4)))[0][:, 0]
    np.testing.assert_allclose(found.T @ found, np.eye(2), atol=1e-4)
    assert abs(attribute @ np.asarray(found[:, 0])) > 0.8


QUICK = bradley_terry.LoReConfig(
    shared_variances=(0.1, 3.0, 30.0),
    variances=(1.0, 20.0),
    ranks=(1, 3),
    components=(2, 4),
    line_search="bisection",  # which compiles in a fifth of the time; that both agree is tested below
)


# What the quick search compiles, one program per kind.
HEAVY = [
    *("shared_program", "_gaussian_program", "infer_program", "_mixture_program", "infer_program"),
    "spectral_directions",
]


def accuracies(world, result):
    """(seen, unseen) accuracy of a fit."""
    if result.kind == "group":
        unseen = jax.nn.one_hot(jnp.asarray(world.group_unseen), result.basis.shape[1])
    else:
        unseen = model_selection.adapt(result, world.features, world.context, len(world.group_unseen))
    seen = model_selection.predict(result, world.features, result.weights, world.test)
    new = model_selection.predict(result, world.features, unseen, world.test_unseen)
    return float(np.mean(np.asarray(seen) > 0)), float(np.mean(np.asarray(new) > 0))


@pytest.mark.parametrize(("taste_of", "seed"), [(camps(2), 0), (camps(4), 1), (opposite, 2), (dirichlet, 3)])
def test_personal_worlds_come_near_the_oracle(taste_of, seed):
    world = make_world(taste_of, seed=seed, users=200, votes=14)
    result = model_selection.fit(world.features, world.train, world.validation, 200, config=QUICK)
    oracle = bradley_terry.per_group(world.features, world.train, world.validation, world.group, config=QUICK)
    common = bradley_terry.shared(world.features, world.train, world.validation, 200, config=QUICK)
    (seen, unseen), (best, best_unseen), (one, _) = (accuracies(world, r) for r in (result, oracle, common))
    assert result.kind in {"gaussian", "mixture", "simplex", "clusters"}
    assert seen > best - 0.04
    assert unseen > best_unseen - 0.09
    assert seen > one + 0.08


@pytest.mark.parametrize("users", [200, 40])
def test_without_personal_signal_nothing_is_lost(users):
    world = make_world(alike, seed=5, users=users, votes=14, held=3, flip=0.4)
    result = model_selection.fit(world.features, world.train, world.validation, users, config=QUICK)
    common = bradley_terry.shared(world.features, world.train, world.validation, users, config=QUICK)
    (seen, unseen), (one, one_unseen) = accuracies(world, result), accuracies(world, common)
    assert seen > one - 0.02
    assert unseen > one_unseen - 0.02
    assert [c["kind"] for c in result.candidates].count("shared") == 3
    assert result.chosen in result.candidates


def test_every_kind_of_personal_fit_serves_unseen_users():
    world = make_world(camps(2), seed=6, users=200, votes=14)
    kinds = (
        ({"gaussian"}, {"components": (), "clusters": 0}),
        ({"mixture", "simplex"}, {"ranks": (), "clusters": 0}),
        ({"clusters"}, {"components": ()}),
    )
    for kind, only in kinds:
        config = bradley_terry.LoReConfig(
            **{**QUICK.__dict__, "min_gain_se": -1e9, "shared_variances": (0.001,), **only}
        )
        result = model_selection.fit(world.features, world.train, world.validation, 200, config=config)
        assert result.kind in kind
        assert result.basis.shape == (32, len(result.mean))
        assert result.precision.shape == (len(result.mean),) * 2
        seen, unseen = accuracies(world, result)
        assert seen > 0.7
        assert unseen > 0.7
        none = model_selection.adapt(result, world.features, world.context.take(slice(0)), 3)
        np.testing.assert_allclose(none, np.tile(result.mean, (3, 1)), atol=1e-6)


def test_both_line_searches_find_the_same_minimum():
    world = make_world(camps(2), seed=8, users=40, votes=14)
    table, _, phi, *_ = bradley_terry.prepare(world.features, world.train, world.validation, 40, LoReConfig())
    task = FitProblem(phi, table, table.train, jnp.asarray([100.0, 10.0]), jnp.ones(3, bool))
    rng = np.random.default_rng(0)
    start = {
        "shared": jnp.zeros(32),
        "delta": jnp.asarray(rng.normal(size=(32, 3)), jnp.float32),
        "logits": jnp.ones(3),
    }
    objective = partial(priors.mixture_objective, task)
    first = float(objective(start))
    values = {}
    for name in ("zoom", "bisection"):
        found, value, history = minimise(objective, start, steps=200, tolerance=1e-5, line_search=name)
        history, values[name] = np.asarray(history), float(value)
        assert value == pytest.approx(float(objective(found)), rel=1e-6)
        assert history[-1] == value < history[0] < first
        assert (np.diff(history) <= 0).all()
    assert values["bisection"] == pytest.approx(values["zoom"], rel=1e-4)


def test_bisection_stops_at_once_at_a_minimum_and_keeps_to_its_steps():
    def bowl(x):
        return jnp.sum(jnp.arange(1.0, 6) * (x - 1) ** 2)

    for start, steps in ((jnp.ones(5), 7), (jnp.zeros(5), 2), (jnp.zeros(5), 50)):
        point, value, history = minimise(bowl, start, steps=steps, tolerance=1e-6, line_search="bisection")
        assert history.shape == (steps,)
        assert history[-1] == value == pytest.approx(float(bowl(point)), abs=1e-7)
        assert np.isfinite(point).all()
    np.testing.assert_allclose(point, 1, atol=1e-4)


def test_a_path_is_that_of_as_many_steps():
    """Each stop gives what `minimise` gives when it may take no more steps; where it has ended, nothing moves."""

    def bowl(x):
        return jnp.sum(jnp.arange(1.0, 6) * (x - 1) ** 4 + (x - 1) ** 2)

    stops = [1, 3, 3, 60, 80]
    points, history = minimise_along(
        bowl, 3 * jnp.ones(5), jnp.asarray(stops), lambda x: 2 * x, steps=80, tolerance=1e-4
    )
    for stop, point in zip(stops, points, strict=True):
        alone = minimise(bowl, 3 * jnp.ones(5), steps=stop, tolerance=1e-4, line_search="bisection")
        np.testing.assert_array_equal(point, 2 * alone[0])
        np.testing.assert_array_equal(history[:stop], alone[2])
    np.testing.assert_array_equal(points[3], points[4])
    assert np.abs(points[0] - points[1]).max() > 0.01


def test_the_quick_search_is_the_default_and_compiles_all_its_programs_ahead(caplog):
    world = make_world(camps(2), seed=9, users=30, votes=14)
    before: bool = getattr(jax.config, "jax_log_compiles")  # noqa: B009
    jax.config.update("jax_log_compiles", True)  # in all threads, which the context manager does not reach
    try:
        found = model_selection.fit(world.features, world.train, world.validation, 30)
    finally:
        jax.config.update("jax_log_compiles", before)
    finished = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    programs = [line.split("jit(")[1].split(")")[0] for line in finished]
    heavy = [name for name in programs if name in HEAVY]
    assert sorted(heavy) == sorted(HEAVY), "each once, those of `compile_ahead` are found again"
    assert {row["kind"] for row in found.candidates} == {"shared", "gaussian", "mixture"}


def test_reference_recipe_runs_and_learns():
    world = make_world(opposite, seed=7, users=60, votes=20)
    result = published.fit_published(world.features, world.train, 60, rank=3, seed=0, steps=300)
    again = published.fit_published(world.features, world.train, 60, rank=3, seed=0, steps=300)
    np.testing.assert_array_equal(result.weights, again.weights)
    assert result.history[-1] < 0.5 * result.history[0]
    np.testing.assert_allclose(result.weights.sum(1), 1, atol=1e-5)
    seen, unseen = accuracies(world, result)
    assert seen > 0.6
    assert unseen > 0.6


def test_mistakes_are_told():
    features = np.zeros((4, 2), np.float32)
    votes = Comparisons(*np.array([[0], [1], [2]]))
    with pytest.raises(UserError, match="chosen of row 0 is 9"):
        bradley_terry.shared(features, Comparisons(*np.array([[0], [9], [2]])), votes, 1)
    with pytest.raises(UserError, match="user of row 0 is 1"):
        bradley_terry.shared(features, votes, Comparisons(*np.array([[1], [1], [2]])), 1)


def test_without_a_vote_or_a_second_user_to_choose_by_it_is_the_shared_reward(capsys):
    rng = np.random.default_rng(0)
    features, none = rng.normal(size=(12, 3)).astype(np.float32), Comparisons(*np.zeros((3, 0), int))
    votes = Comparisons(np.zeros(6, int), np.arange(6), np.arange(6) + 6)
    one = Comparisons(*np.array([[0], [3], [8]]))
    for validation, told in ((none, "no vote is held out (prior variance 1)"), (one, "there is one user")):
        config = bradley_terry.LoReConfig(refit=False)
        found = model_selection.fit(features, votes, validation, 2, config=config)
        expected = bradley_terry.shared(features, votes, validation, 2, config=config)
        assert found.kind == "shared"
        np.testing.assert_array_equal(found.basis, expected.basis)
        assert told in capsys.readouterr().err
    # The optimum of the penalised likelihood of variance 1, in float64.
    z = np.asarray(standardise(found.standardiser, jnp.asarray(features)), np.float64)
    z = z[votes.chosen] - z[votes.rejected]
    best = optimize.minimize(lambda w: np.logaddexp(0, -z @ w).sum() + 1.5 * w @ w, np.zeros(3), tol=1e-12).x
    lone = bradley_terry.shared(features, votes, none, 2)
    np.testing.assert_allclose(np.asarray(lone.basis)[:, 0], best, atol=2e-4)
    assert lone.chosen["log_loss"] is None


def test_features_that_say_nothing_give_a_finite_fit():
    # The same shapes as the world of 40 users above, so nothing compiles again.
    world = make_world(alike, seed=5, users=40, votes=14, held=3, flip=0.4)
    result = model_selection.fit(np.ones_like(world.features), world.train, world.validation, 40, config=QUICK)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result[1:7]))


def test_more_users_of_one_bucket_compile_nothing():
    world = make_world(alike, seed=5, users=40, votes=14, held=3, flip=0.4)
    programs: tuple[Any, ...] = (
        candidates._gaussian_program,
        candidates._mixture_program,
        candidates._simplex_program,
        candidates._clusters_program,
        bradley_terry.shared_program,
        candidates.infer_program,
    )
    sizes = []
    for users in (40, 47):
        model_selection.fit(world.features, world.train, world.validation, users, config=QUICK)
        sizes.append([program._cache_size() for program in programs])
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("quick", [True, False])
def test_opposite_tastes_that_cancel_out_are_found(quick):
    """Half of the users prefer the opposite of the other half on the same pairs: the shared direction is exactly 0."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 6)).astype(np.float32)
    first, second = rng.integers(0, 30, 24), rng.integers(30, 60, 24)
    user = np.repeat(np.arange(8), 24)
    left, right = np.tile(first, 8), np.tile(second, 8)
    likes_left = (features[left, 0] > features[right, 0]) == (user % 2 == 0)
    votes = Comparisons(user, np.where(likes_left, left, right), np.where(likes_left, right, left))
    held = np.tile(np.arange(24) >= 20, 8)
    config = LoReConfig.quick() if quick else LoReConfig(ranks=(1,), components=(2,), variances=(3.0,), clusters=2)
    found = model_selection.fit(features, votes.take(~held), votes.take(held), 8, config=config)
    assert found.kind != "shared"
    assert (np.asarray(model_selection.predict(found, features, found.weights, votes)) > 0).mean() > 0.9
