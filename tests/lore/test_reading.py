"""Fits of votes with ties, strengths, rankings and ratings: objectives, thresholds, folders, what they are worth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixed_votes import Crowd
from scipy.optimize import minimize

import lore_jax
import pref_jax
from lore_jax.fitting import bradley_terry, kept_rows, model_selection, priors
from lore_jax.fitting.bradley_terry import LoReConfig
from lore_jax.fitting.reading import PULL, Reading, parse, plain
from lore_jax.ratings import PRECISION, Raters, fit_raters, standardise_ratings
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.errors import UserError
from pref_jax.likelihood import Scale

DIM, RESPONSES = 6, 60
SMALL = LoReConfig.quick(
    ranks=(2,), components=(), variances=(3.0,), shared_variances=(1.0, 10.0), steps=40, min_gain_se=-9.0
)


def world(seed, *, ties, users=40, each=30, responses=RESPONSES):
    """Features, votes of people whose tastes have two directions in common, and the tastes [U D]."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(responses, DIM)).astype(np.float32)
    tastes = rng.normal(size=DIM) * 0.4 + rng.normal(size=(users, 2)) @ rng.normal(size=(2, DIM)) * 0.7
    user = np.repeat(np.arange(users), each)
    one = rng.integers(0, responses, len(user))
    other = (one + rng.integers(1, responses, len(user))) % responses
    margin = np.sum((features[one] - features[other]) * tastes[user], 1) + rng.logistic(size=len(user))
    size = np.abs(margin)
    tie, first = size < np.quantile(size, ties), margin > 0
    strength = np.where(tie, np.nan, 1 + (size > np.quantile(size, 0.7))).astype(np.float32)
    votes = Comparisons(user, np.where(first, one, other), np.where(first, other, one), tie=tie, strength=strength)
    return features, votes, tastes


def agreement(found, features, tastes, seed=0):
    """How often the fit orders two responses as the tastes do."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, len(features), (2, 6000))
    user = rng.integers(0, len(tastes), 6000)
    margins = np.asarray(model_selection.predict(found, features, found.weights, Comparisons(user, one, other)))
    return np.mean((margins > 0) == (np.sum((features[one] - features[other]) * tastes[user], 1) > 0))


def fitted(config, features, votes, **options):
    held = np.arange(len(votes.user)) % 5 == 0
    users = int(votes.user.max()) + 1
    return model_selection.fit(features, votes.take(~held), votes.take(held), users, config=config, **options)


def thresholds_of(gaps):
    return np.cumsum(np.logaddexp(0, gaps) + 1e-4)


def test_shared_direction_and_scales_reach_scipys_optimum():
    crowd, strength = Crowd(seed=5), 2.0
    crowd.rewards[:3] /= 1e3
    features, table = jnp.asarray(crowd.rewards, jnp.float32), crowd.table
    scales = {"gaps": jnp.zeros(3), "log_scale": jnp.zeros(())}
    options = {"line_search": "zoom"}
    direction, _, _, found = bradley_terry.shared_program(features, table, table.train, strength, scales, **options)
    size = crowd.rewards.shape[1]

    def value(x):
        w, gaps, log_scale = x[:size], x[size:-1], x[-1]
        rated = len(crowd.ratings.user) * (0.5 * np.log(2 * np.pi / PRECISION) - log_scale)
        lost = PULL * (gaps @ gaps + log_scale**2) + 0.5 * strength * w @ w + rated
        margin = crowd.rewards @ w
        ends = thresholds_of(gaps)
        return lost + sum(
            crowd.losses(u, lambda c, r: margin[c] - margin[r], ends, log_scale) for u in range(len(table.train))
        )

    x = np.concatenate([direction, found["gaps"], found["log_scale"][None]]).astype(float)
    best = minimize(value, x, method="BFGS", options={"gtol": 1e-5})
    assert value(x) - best.fun < 1e-4
    np.testing.assert_allclose(x, best.x, atol=5e-3)


def test_gaussian_evidence_equals_numpy():
    crowd = Crowd(seed=6)
    crowd.rewards[:3] /= 1e3
    rng = np.random.default_rng(7)
    shared, spread, gaps, log_scale = rng.normal(size=3), rng.normal(size=(3, 2)), rng.normal(size=3), -0.2
    basis, prior_mean = np.concatenate([shared[:, None], spread], 1), np.eye(3)[0]
    precision, ends = np.diag([priors.PINNED_PRECISION, 1, 1]), thresholds_of(gaps)
    z = crowd.rewards @ basis
    total = 0.5 * (2 * shared @ shared + 3 * np.sum(spread**2)) + PULL * (gaps @ gaps + log_scale**2)
    total += len(crowd.ratings.user) * (0.5 * np.log(2 * np.pi / PRECISION) - log_scale)
    for u in range(int(crowd.votes.user.max()) + 1):

        def energy(w, u=u):
            lost = crowd.losses(u, lambda c, r: (z[c] - z[r]) @ w, ends, log_scale)
            return lost + 0.5 * (w - prior_mean) @ precision @ (w - prior_mean)

        # In coordinates of the prior's spread, in which differences of one step are good in all directions.
        unit = np.diag(1 / np.sqrt(np.diag(precision)))

        def moved(x, energy=energy, unit=unit):
            return energy(prior_mean + unit @ x)

        best = minimize(moved, np.zeros(3), method="BFGS", options={"gtol": 1e-7}).x
        step = np.eye(3) * 1e-3
        bend = np.array(
            [
                [moved(best + a + b) - moved(best + a - b) - moved(best - a + b) + moved(best - a - b) for b in step]
                for a in step
            ]
        )
        total += moved(best) + 0.5 * np.linalg.slogdet(bend / 4e-6)[1]
    with jax.enable_x64(True):
        strengths, used = jnp.asarray([2.0, 3.0]), jnp.ones(2, bool)
        task = priors.FitProblem(jnp.asarray(crowd.rewards), crowd.table, crowd.table.train, strengths, used)
        params = {"shared": shared, "spread": spread, "gaps": gaps, "log_scale": np.float64(log_scale)}
        params = {name: jnp.asarray(x) for name, x in params.items()}
        value, slope = jax.jit(jax.value_and_grad(lambda params: priors.gaussian_objective(task, params)))(params)
        np.testing.assert_allclose(value, total, rtol=1e-5)
        lean = {name: rng.normal(size=x.shape) for name, x in params.items()}
        ends = [
            float(priors.gaussian_objective(task, {name: x + step * lean[name] for name, x in params.items()}))
            for step in (1e-5, -1e-5)
        ]
    expected = sum(np.sum(np.asarray(slope[name]) * lean[name]) for name in params)
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, expected, rtol=1e-5)


def test_ties_that_are_used_beat_ties_that_are_dropped():
    gains = []
    for seed in range(2):
        features, votes, tastes = world(seed, ties=0.4)
        with_ties, without = (
            agreement(fitted(dataclasses.replace(SMALL, **change), features, votes), features, tastes)
            for change in ({}, {"ties": False, "strengths": "ignore"})
        )
        gains.append(with_ties - without)
    assert min(gains) > 0.005, gains


def test_plain_votes_are_fitted_as_ever_whatever_columns_they_have():
    features, votes, _ = world(3, ties=0.0)
    pairs = Comparisons(*votes[:3])
    said = pairs._replace(tie=np.zeros(len(votes.user), bool), strength=np.ones(len(votes.user), np.float32))
    one, other = fitted(SMALL, features, pairs), fitted(SMALL, features, said)
    assert one.reading == Reading()
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.basis, other.basis)


def ratings_of(features, tastes, count, seed=0):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, len(tastes), count)
    response = rng.integers(0, len(features), count)
    utility = np.sum(features[response] * tastes[user], 1) + rng.gumbel(size=count)
    return Ratings(user, response, (3 + user % 4 + (1 + user % 3) * utility).astype(np.float32))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A model of ties, strengths, rankings and ratings, saved and loaded, and the model as fitted."""
    features, votes, tastes = world(8, ties=0.3)
    rng = np.random.default_rng(1)
    best = rng.permuted(np.tile(np.arange(RESPONSES), (40, 1)), axis=1)[:, :3]
    ranked = Comparisons(
        np.repeat(np.arange(40), 2),
        np.repeat(best[:, 0], 2),
        best[:, 1:].reshape(-1),
        choice=np.repeat(np.arange(40), 2),
    )
    both = pref_jax.comparisons.concatenate([votes, ranked])
    model = lore_jax.fit(features, both, config=SMALL, ratings=ratings_of(features, tastes, 160))
    folder = tmp_path_factory.mktemp("lore") / "model"
    model.save(folder)
    return features, model, pref_jax.load(folder), folder


MORE = {
    "tie": np.array([False, True, False, False, False]),
    "strength": np.array([2, np.nan, 1, np.nan, np.nan], np.float32),
    "choice": np.array([-1, -1, -1, 3, 3]),
}


def test_all_kinds_survive_folders_to_the_bit(everything):
    features, model, loaded, _ = everything
    assert set(model._columns) == {"bound", "rating", kept_rows.CHOICE}
    votes = {**MORE, "chosen": features[:5], "rejected": features[5:10]}
    rated = {"rated": features[10:13], "rating": np.array([2.0, 5.0, 4.0])}
    for user in ("7", "new"):
        assert model.add_votes(user, {**votes, **rated}) == loaded.add_votes(user, {**votes, **rated})
        assert model.score(user, None, features).tobytes() == loaded.score(user, None, features).tobytes()
    np.testing.assert_array_equal(model._covariances(np.array([7])), loaded._covariances(np.array([7])))
    assert model.probabilities([0.3]).tobytes() == loaded.probabilities([0.3]).tobytes()
    assert parse(plain(model._reading))._replace(scales={}) == model._reading._replace(scales={})


def test_votes_added_bit_by_bit_are_those_of_all_at_once(everything):
    features, model, loaded, _ = everything
    votes = {**MORE, "chosen": features[20:25], "rejected": features[25:30]}
    rated = {"rated": features[30:33], "rating": np.array([1.0, 5.0, 4.0])}
    whole = model.add_votes("whole", {**votes, **rated})
    for start, stop in ((0, 2), (2, 5)):
        loaded.add_votes("parts", {name: column[start:stop] for name, column in votes.items()})
    parts = loaded.add_votes("parts", rated)
    assert parts.votes == whole.votes == 8
    assert model.score("whole", None, features).tobytes() == loaded.score("parts", None, features).tobytes()
    loaded.remove_user("parts")
    assert not loaded.knows("parts")


def test_probabilities_are_those_of_win_tie_and_loss():
    reading = Reading(Scale(ties=True), {"gaps": jnp.asarray([0.3])})
    found, end = reading.probabilities(np.array([-3.0, 0.0, 1.0])), thresholds_of(np.array([0.3]))[0]
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found[:, 0], 1 / (1 + np.exp(end - np.array([-3.0, 0.0, 1.0]))), rtol=1e-5)
    assert Reading().probabilities(np.zeros(1)).tolist() == [[0.5, 0.0, 0.5]]


def test_votes_that_a_fit_cannot_read_are_refused():
    features, votes, _ = world(9, ties=0.0, users=10)
    model = lore_jax.fit(features, Comparisons(*votes[:3]), config=SMALL)
    one = {"chosen": features[:1], "rejected": features[1:2]}
    with pytest.raises(UserError, match="all are ties or ratings, of which this model's fit had none"):
        model.add_votes("ada", {**one, "tie": np.array([True])})
    with pytest.raises(UserError, match="unknown colour"):
        model.add_votes("ada", {**one, "colour": np.zeros(1)})
    model.add_votes("ada", {name: np.repeat(x, 2, 0) for name, x in one.items()} | {"choice": np.zeros(2, int)})
    assert model._columns == (kept_rows.CHOICE,)


def test_raters_are_shrunk_to_what_raters_are_like():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, 400)
    user = np.repeat(np.arange(400), counts)
    offset, spread = rng.normal(5, 2, 400), np.exp(rng.normal(0.3, 0.5, 400))
    rating = offset[user] + spread[user] * rng.normal(size=len(user))
    raters = fit_raters(user, rating)
    np.testing.assert_allclose([raters.mean, raters.mean_variance], [5, 4], rtol=0.2)
    np.testing.assert_allclose([raters.log_spread, raters.log_spread_variance], [0.3, 0.25], rtol=0.3)
    # Of many ratings what they say, of one what raters are like.
    many = standardise_ratings(raters, np.zeros(5000, int), np.r_[np.zeros(2500), np.full(2500, 40.0)])
    np.testing.assert_allclose([many[0], many[-1]], [-1, 1], atol=0.02)
    between = raters.mean_variance / (raters.mean_variance + np.exp(2 * raters.log_spread))
    expected = (1 - between) * (9 - raters.mean) / np.exp(raters.log_spread)
    np.testing.assert_allclose(standardise_ratings(raters, np.array([0]), np.array([9.0])), expected)


@pytest.mark.parametrize("rating", [[3.0], [3.0, 3.0], [0.0, 0.0], [1e6, 1e6 + 1e-3], [-1e30, 1e30]])
def test_degenerate_raters_are_finite(rating):
    for user in (np.zeros(len(rating), int), np.arange(len(rating))):
        raters = fit_raters(user, np.array(rating))
        assert np.isfinite(raters).all()
        assert np.isfinite(standardise_ratings(raters, user, np.array(rating))).all()
        assert np.isfinite(standardise_ratings(Raters(), user, np.array(rating))).all()


def test_ratings_alone_are_enough():
    features, _, tastes = world(10, ties=0.0, users=20)
    none = Comparisons(*np.zeros((3, 0), int))
    model = lore_jax.fit(features, none, config=SMALL, ratings=ratings_of(features, tastes, 800))
    assert model.facts["validation_votes"] == 80
    assert agreement(model._fit, features, tastes) > 0.75
    assert model.add_votes("new", {"rated": features[:3], "rating": np.array([1.0, 9.0, 5.0])}).votes == 3
    # One rating each, and of one person: nothing can be held out, and all is finite.
    for count in (1, 2):
        few = Ratings(np.arange(count), np.arange(count), np.full(count, 3.0, np.float32))
        model = lore_jax.fit(features, none, config=SMALL, ratings=few)
        assert "no vote could be held out" in repr(model)
        assert np.isfinite(model.score("0", None, features)).all()
