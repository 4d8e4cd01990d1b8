"""Scores against integrals and determinants in float64, greedy batches against brute force, edges, answers saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lore_jax.online import acquisition, bayes_filter
from lore_jax.online import sliding_window as windows
from lore_jax.weights.objective import Prior
from pref_jax.errors import UserError

USERS, POOL, BASIS = 5, 30, 3
STRATEGIES = acquisition.STRATEGIES
choose = jax.jit(acquisition.select_queries, static_argnames=("strategy", "count"))


def case(seed, users=USERS, pool=POOL):
    """A belief of users and a pool each, float32."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(users, BASIS, BASIS))
    belief = bayes_filter.GaussianPosterior(
        jnp.asarray(rng.normal(size=(users, BASIS)), jnp.float32),
        jnp.asarray(factor, jnp.float32),
        jnp.zeros(users, jnp.int32),
    )
    return belief, jnp.asarray(rng.normal(size=(users, pool, BASIS)), jnp.float32)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-300)) + (1 - p) * np.log(np.maximum(1 - p, 1e-300)))


def expect(function, margin, spread):
    """E function(t), t ~ N(margin, spread), by a fine sum."""
    grid = np.linspace(-9, 9, 20001)
    mass = np.exp(-(grid**2) / 2)
    return np.sum(mass * function(margin + np.sqrt(spread) * grid)) / mass.sum()


GRID = [(m, s) for m in (-8.0, -1.5, 0.0, 0.4, 3.0, 20.0) for s in (0.0, 1e-4, 0.1, 1.0, 9.0, 400.0)]


def mean_curvature(margin, spread):
    return expect(lambda t: sigmoid(t) * sigmoid(-t), margin, spread)


def mean_information(margin, spread):
    return entropy(expect(sigmoid, margin, spread)) - expect(lambda t: entropy(sigmoid(t)), margin, spread)


@pytest.mark.parametrize("double", [True, False])
def test_scores_equal_the_integrals(double):
    with jax.enable_x64(double):
        margin, spread = jnp.asarray(GRID).T
        curvature, found = (
            acquisition.expected_curvature(margin, spread),
            np.asarray(acquisition.information(margin, spread)),
        )
    np.testing.assert_allclose(curvature, [mean_curvature(*at) for at in GRID], atol=1e-3)
    np.testing.assert_allclose(found, [mean_information(*at) for at in GRID], atol=1e-3)
    assert (found >= 0).all()
    assert (found <= np.log(2) + 1e-6).all()


@pytest.mark.parametrize("at", [(0.0, 0.0), (1e6, 1e12), (-1e6, 1.0), (0.0, 1e20), (1e18, 0.0)])
def test_scores_of_absurd_pairs_are_finite(at):
    margin, spread = jnp.asarray([at[0]]), jnp.asarray([at[1]])
    for score in (acquisition.information, acquisition.expected_curvature):
        assert np.isfinite(score(margin, spread)).all()
        assert (np.asarray(score(margin, spread)) >= 0).all()


def reference_scores(weights, covariance, pool):
    """The module's formula in NumPy, on covariances and with integrals; and the expected curvature."""
    moments = list(zip(pool @ weights, np.einsum("nk,kl,nl->n", pool, covariance, pool), strict=True))
    return np.array([mean_information(*at) for at in moments]), np.array([mean_curvature(*at) for at in moments])


def test_batches_equal_brute_force():
    belief, pool = case(0, users=3)
    open = np.random.default_rng(1).random((3, POOL)) < 0.7
    found = choose(belief, pool, jnp.asarray(open), jax.random.key(0), count=4)
    for user in range(3):
        factor = np.asarray(belief.factor[user], np.float64)
        covariance, left = factor @ factor.T, open[user].copy()
        z = np.asarray(pool[user], np.float64)
        real = np.where(open[user][:, None], z, 0)
        for place in range(4):
            kept = np.flatnonzero(np.abs(real).sum(1) > 0)
            scores = np.full(POOL, -np.inf)
            values, curvature = reference_scores(np.asarray(belief.weights[user]), covariance, real[kept])
            scores[kept] = values
            scores[~left] = -np.inf
            best = int(found.index[user, place])
            assert left[best]
            assert scores[best] == pytest.approx(scores.max(), abs=4e-3, rel=4e-3)
            assert found.score[user, place] == pytest.approx(scores[best], abs=4e-3, rel=4e-3)
            shrunk = np.linalg.inv(covariance) + curvature[kept == best][0] * np.outer(z[best], z[best])
            covariance = np.linalg.inv(shrunk)
            left[best] = False


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_pair_twice_and_no_closed_one(strategy):
    belief, pool = case(2)
    rng = np.random.default_rng(3)
    open = rng.random((USERS, POOL)) < 0.5
    open[0], open[1] = False, False
    open[1, [4, 7]] = True
    pool = jnp.where(jnp.asarray(open)[..., None], pool, jnp.nan)
    # An open pair without meaning is not asked either.
    pool = pool.at[2, int(np.flatnonzero(open[2])[0]), 0].set(jnp.inf)
    sound = open & np.isfinite(np.asarray(pool)).all(-1)
    found = choose(belief, pool, jnp.asarray(open), jax.random.key(1), strategy=strategy, count=POOL)
    for user in range(USERS):
        index, score = np.asarray(found.index[user]), np.asarray(found.score[user])
        asked = index[index >= 0]
        assert sorted(asked) == list(np.flatnonzero(sound[user]))
        assert (index[len(asked) :] == -1).all()
        assert (score[len(asked) :] == 0).all()
        assert np.isfinite(score).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_pool_for_all_equals_a_pool_each(strategy):
    belief, pool = case(4)
    open = jnp.ones((USERS, POOL), bool)
    shared = choose(belief, pool[0], open, jax.random.key(2), strategy=strategy, count=4)
    each = choose(belief, jnp.broadcast_to(pool[0], pool.shape), open, jax.random.key(2), strategy=strategy, count=4)
    np.testing.assert_array_equal(shared.index, each.index)


def test_signs_of_pairs_do_not_matter():
    belief, pool = case(5)
    open, key = jnp.ones((USERS, POOL), bool), jax.random.key(3)
    sign = jnp.where(jax.random.bernoulli(jax.random.key(4), shape=(USERS, POOL, 1)), 1, -1)
    ways = [choose(belief, z, open, key, count=5).index for z in (pool, pool * sign)]
    np.testing.assert_array_equal(*ways)


def test_ties_go_to_the_first_and_duplicates_tell_less_the_second_time():
    belief = bayes_filter.start(Prior(jnp.zeros(2), jnp.eye(2)), 1)
    pool = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 0.95], [0.0, 0.0]])
    found = choose(belief, pool, jnp.ones((1, 4), bool), jax.random.key(0), count=4)
    np.testing.assert_array_equal(found.index, [[0, 2, 1, 3]])
    assert found.score[0, 3] == pytest.approx(0, abs=1e-6)


def test_random_is_uniform_over_open_pairs():
    belief = bayes_filter.start(Prior(jnp.zeros(2), jnp.eye(2)), 3000)
    open = jnp.broadcast_to(jnp.asarray([True, False, True, True]), (3000, 4))
    found = choose(belief, jnp.ones((4, 2)), open, jax.random.key(0), strategy="random").index
    np.testing.assert_allclose(
        np.bincount(np.asarray(found[:, 0]), minlength=4) / 3000, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03
    )


@pytest.mark.parametrize(("mistake", "message"), [({"count": 0}, "count 0"), ({"pool": (0, 2)}, "pool of 0")])
def test_choices_that_cannot_be_are_told(mistake, message):
    belief = bayes_filter.start(Prior(jnp.zeros(2), jnp.eye(2)), 1)
    pool = jnp.ones(mistake.get("pool", (4, 2)))
    with pytest.raises(UserError, match=message):
        choose(belief, pool, jnp.ones((1, len(pool)), bool), jax.random.key(0), count=mistake.get("count", 1))


def test_chosen_pairs_tell_more_than_random_ones():
    rng = np.random.default_rng(7)
    truth = jnp.asarray(2 * rng.normal(size=(100, BASIS)), jnp.float32)
    pool = jnp.asarray(rng.normal(size=(80, BASIS)), jnp.float32)
    test = rng.normal(size=(300, BASIS))
    prior = Prior(jnp.zeros(BASIS), jnp.eye(BASIS) / 4)

    @jax.jit
    def rounds(key, pick):
        def step(carry, key):
            window, open = carry
            keys = jax.random.split(key)
            index = jax.lax.switch(
                pick,
                [
                    lambda: choose(window.belief, pool, open, keys[0]).index[:, 0],
                    lambda: choose(window.belief, pool, open, keys[0], strategy="random").index[:, 0],
                ],
            )
            z = pool[index]
            yes = jax.random.bernoulli(keys[1], jax.nn.sigmoid(jnp.sum(z * truth, -1)))
            window = windows.update(window, jnp.where(yes[:, None], z, -z), None)
            return (window, open.at[jnp.arange(100), index].set(False)), None

        state = windows.start(prior, 100, 8), jnp.ones((100, 80), bool)
        return jax.lax.scan(step, state, jax.random.split(key, 8))[0][0].belief.weights

    right = [
        np.mean((test @ np.asarray(rounds(jax.random.key(0), pick)).T > 0) == (test @ np.asarray(truth).T > 0))
        for pick in (0, 1)
    ]
    assert right[0] > right[1] + 0.02


def test_a_pair_that_is_too_large_to_learn_from_is_not_asked():
    belief, pool = case(0, users=3)
    huge = pool.at[:, 1].set(1e25)
    open = jnp.ones((3, POOL), bool)
    found = choose(belief, huge, open, jax.random.key(0), count=4)
    without = choose(belief, huge, open.at[:, 1].set(False), jax.random.key(0), count=4)
    np.testing.assert_array_equal(found.index, without.index)
    np.testing.assert_array_equal(found.score, without.score)
    assert np.isfinite(found.score).all()
