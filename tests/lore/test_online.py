"""One answer at a time against refits, dense Gaussian algebra and SciPy in float64; events in order; edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, minimize

from lore_jax.online import bayes_filter
from lore_jax.online import sliding_window as windows
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.errors import UserError

USERS, BASIS = 6, 4
LOGISTIC, RIDGE = bayes_filter.UpdateRule(), bayes_filter.UpdateRule(likelihood="ridge")


def case(seed, answers, users=USERS, basis=BASIS):
    """Answers [n U K], the prior's mean and precision, in float64."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(basis, basis))
    return rng.normal(size=(answers, users, basis)), rng.normal(size=basis) * 0.5, root @ root.T + 0.3 * np.eye(basis)


def prior_of(mean, precision, dtype=jnp.float64):
    return Prior(jnp.asarray(mean, dtype), jnp.asarray(precision, dtype))


@partial(jax.jit, static_argnames=("rule",))
def answer_all(belief, answers, origin, rule):
    """All answers [n U K] in turn."""
    return jax.lax.scan(lambda state, z: (bayes_filter.update(state, z, None, origin, rule), None), belief, answers)[0]


def run(answers, mean, precision, rule, dtype):
    prior = prior_of(mean, precision, dtype)
    origin = bayes_filter.start(prior, 1)
    belief = answer_all(bayes_filter.start(prior, answers.shape[1]), jnp.asarray(answers, dtype), origin, rule)
    return belief, np.asarray(bayes_filter.covariance(belief))


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-10), (False, 1e-5)])
def test_ridge_equals_a_refit_after_hundreds_of_answers(double, tolerance):
    answers, mean, precision = case(seed=0, answers=400)
    with jax.enable_x64(double):
        belief, covariance = run(answers, mean, precision, RIDGE, jnp.float64 if double else jnp.float32)
    with jax.enable_x64(True):
        expected = solve_weights(
            jnp.asarray(np.moveaxis(answers, 0, 1)), None, prior_of(mean, precision), likelihood="ridge"
        )
    np.testing.assert_allclose(belief.weights, expected.weights, atol=tolerance)
    np.testing.assert_allclose(covariance, expected.covariance, atol=tolerance)
    for user in range(USERS):
        z = answers[:, user]
        direct = np.linalg.solve(precision + z.T @ z, precision @ mean + z.sum(0))
        np.testing.assert_allclose(belief.weights[user], direct, atol=tolerance)
    assert (np.asarray(belief.answers) == 400).all()


def test_forgetting_is_the_posterior_of_an_autoregressive_taste():
    answers, mean, precision = case(seed=1, answers=30)
    forgetting_factor = 0.9
    with jax.enable_x64(True):
        belief, covariance = run(
            answers,
            mean,
            precision,
            bayes_filter.UpdateRule(likelihood="ridge", forgetting_factor=forgetting_factor),
            jnp.float64,
        )
    # Dense: the tastes of all moments at once, cov(w_s, w_t) = forgetting_factor^|s - t| prior covariance.
    lag = forgetting_factor ** np.abs(np.arange(30)[:, None] - np.arange(30))
    joint = np.kron(lag, np.linalg.inv(precision))
    for user in range(USERS):
        design = np.zeros((30, 30 * BASIS))
        for step in range(30):
            design[step, step * BASIS : (step + 1) * BASIS] = answers[step, user]
        gain = joint @ design.T @ np.linalg.inv(design @ joint @ design.T + np.eye(30))
        average = np.tile(mean, 30)
        expected = average + gain @ (1 - design @ average)
        spread = joint - gain @ design @ joint
        np.testing.assert_allclose(belief.weights[user], expected[-BASIS:], atol=1e-9)
        np.testing.assert_allclose(covariance[user], spread[-BASIS:, -BASIS:], atol=1e-9)


@pytest.mark.parametrize("double", [True, False])
def test_what_is_forgotten_ends_at_the_prior_and_not_beyond(double):
    answers, mean, precision = case(seed=2, answers=20)
    rule = bayes_filter.UpdateRule(forgetting_factor=0.8)
    dtype, tolerance = (jnp.float64, 1e-9) if double else (jnp.float32, 2e-3)
    with jax.enable_x64(double):
        prior = prior_of(mean, precision, dtype)
        origin = bayes_filter.start(prior, 1)
        belief = answer_all(bayes_filter.start(prior, USERS), jnp.asarray(answers, dtype), origin, rule)
        empty = answer_all(belief, jnp.zeros((200, USERS, BASIS), dtype), origin, rule)
        covariance = bayes_filter.covariance(empty)
    np.testing.assert_allclose(empty.weights, np.tile(mean, (USERS, 1)), atol=tolerance)
    expected = np.tile(np.linalg.inv(precision), (USERS, 1, 1))
    np.testing.assert_allclose(covariance, expected, rtol=tolerance, atol=tolerance)


def test_first_logistic_answer_is_the_exact_mode():
    answers, mean, precision = case(seed=3, answers=1, users=50)
    answers *= np.geomspace(0.01, 30, 50)[None, :, None]
    with jax.enable_x64(True):
        belief, covariance = run(answers, mean, precision, LOGISTIC, jnp.float64)
        expected = solve_weights(jnp.asarray(np.moveaxis(answers, 0, 1)), None, prior_of(mean, precision))
    np.testing.assert_allclose(belief.weights, expected.weights, atol=1e-8)
    np.testing.assert_allclose(covariance, expected.covariance, atol=1e-8)
    z, w = answers[0, 20], np.asarray(belief.weights[20])
    best = minimize(
        lambda w: np.logaddexp(0, -z @ w) + 0.5 * (w - mean) @ precision @ (w - mean), mean, options={"gtol": 1e-9}
    )
    np.testing.assert_allclose(w, best.x, atol=1e-6)


def planted(seed, answers, users=300):
    """Answers by Bradley-Terry of users drawn from the prior N(0, I)."""
    rng = np.random.default_rng(seed)
    truth, z = rng.normal(size=(users, BASIS)), 2 * rng.normal(size=(answers, users, BASIS))
    right = rng.random((answers, users)) < sigmoid(np.einsum("nuk,uk->nu", z, truth))
    return truth, z * np.where(right, 1, -1)[..., None], rng.normal(size=(500, BASIS))


def test_logistic_steps_stay_near_the_exact_mode():
    truth, answers, test = planted(4, 60)
    mean, precision = np.zeros(BASIS), np.eye(BASIS)
    belief, covariance = run(answers, mean, precision, LOGISTIC, jnp.float32)
    exact = solve_weights(jnp.asarray(np.moveaxis(answers, 0, 1), jnp.float32), None, prior_of(mean, precision, "f4"))
    mode = np.asarray(exact.weights)
    # Off by a fraction of the posterior's own standard deviation, and no less accurate.
    away = np.linalg.norm(np.asarray(belief.weights) - mode, axis=1)
    width = np.sqrt(np.trace(np.asarray(exact.covariance), axis1=1, axis2=2))
    assert np.median(away / width) < 0.5
    assert np.median(np.trace(covariance, axis1=1, axis2=2) / width**2) == pytest.approx(1, abs=0.3)
    right = [np.mean((test @ w.T > 0) == (test @ truth.T > 0)) for w in (np.asarray(belief.weights), mode)]
    assert right[0] > right[1] - 0.005


def test_posterior_margin_equals_scipys_root():
    grid = [(m, s) for m in (-1e6, -30.0, -2.0, 0.0, 0.7, 40.0, 1e6) for s in (0.0, 1e-9, 0.3, 5.0, 1e3, 1e6, 1e12)]
    margin, spread = np.array(grid).T
    with jax.enable_x64(True):
        found = np.asarray(bayes_filter.posterior_margin(jnp.asarray(margin), jnp.asarray(spread)))
    for (m, s), t in zip(grid, found, strict=True):
        root = brentq(lambda t, m=m, s=s: t - m - s * sigmoid(-t), m - 1, m + s + 1, xtol=1e-12, rtol=np.float64(1e-15))
        assert t == pytest.approx(root, rel=1e-7, abs=1e-7), (m, s)
    single = bayes_filter.posterior_margin(jnp.asarray(margin, jnp.float32), jnp.asarray(spread, jnp.float32))
    # A rounding of the terms of t - margin - spread * sigmoid(-t), divided by its slope.
    terms = np.abs(margin) + spread * sigmoid(-found) + np.abs(found)
    rounding = 4e-7 * terms / (1 + spread * sigmoid(found) * sigmoid(-found))
    assert (np.abs(single - found) <= rounding + 1e-6).all()


@pytest.mark.parametrize("likelihood", ["ridge", "logistic"])
def test_predictions_equal_the_integral(likelihood):
    answers, mean, precision = case(seed=5, answers=3)
    rule = bayes_filter.UpdateRule(likelihood=likelihood)
    with jax.enable_x64(True):
        belief, covariance = run(answers, mean, precision, rule, jnp.float64)
        logit = np.asarray(bayes_filter.predict(belief, jnp.asarray(answers[0]), rule))
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    for user in range(USERS):
        z = answers[0, user]
        margin, deviation = z @ np.asarray(belief.weights[user]), np.sqrt(z @ covariance[user] @ z)
        drawn = margin + deviation * nodes
        if likelihood == "logistic":
            share = masses @ sigmoid(drawn) / masses.sum()
        else:
            one, other = (masses @ np.exp(-0.5 * (y - drawn) ** 2) for y in (1, -1))
            share = one / (one + other)
        assert sigmoid(logit[user]) == pytest.approx(share, abs=0.02 if likelihood == "logistic" else 1e-6)


# --- the window ---


def test_a_window_is_exact_while_it_holds_every_answer():
    _, answers, _ = planted(6, 12, users=20)
    mean, precision = np.full(BASIS, 0.3), 0.7 * np.eye(BASIS)
    with jax.enable_x64(True):
        prior = prior_of(mean, precision)
        window = windows.start(prior, 20, 12)
        slide = jax.jit(lambda window, z: windows.update(window, z, None))
        for z in jnp.asarray(answers):
            window = slide(window, z)
        exact = solve_weights(jnp.asarray(np.moveaxis(answers, 0, 1)), None, prior)
        np.testing.assert_allclose(window.belief.weights, exact.weights, atol=1e-7)
        np.testing.assert_allclose(bayes_filter.covariance(window.belief), exact.covariance, atol=1e-7)
        np.testing.assert_allclose(
            bayes_filter.covariance(window.base), np.tile(np.eye(BASIS) / 0.7, (20, 1, 1)), atol=1e-12
        )


def test_a_window_that_has_run_over_is_nearer_to_the_mode_than_single_steps():
    _, answers, _ = planted(7, 40, users=100)
    prior = prior_of(np.zeros(BASIS), np.eye(BASIS), jnp.float32)
    slide = jax.jit(lambda window, z: windows.update(window, z, None))
    exact = np.asarray(solve_weights(jnp.asarray(np.moveaxis(answers, 0, 1), jnp.float32), None, prior).weights)
    gaps = []
    for size in (1, 20):
        window = windows.start(prior, 100, size)
        for z in jnp.asarray(answers, jnp.float32):
            window = slide(window, z)
        gaps.append(np.linalg.norm(np.asarray(window.belief.weights) - exact, axis=1).mean())
        assert (np.asarray(window.base.answers) == 40 - size).all()
    assert gaps[1] < 0.4 * gaps[0]
    single = answer_all(
        bayes_filter.start(prior, 100), jnp.asarray(answers, jnp.float32), bayes_filter.start(prior, 1), LOGISTIC
    )
    # Room for one answer is the same as no window.
    window = windows.start(prior, 100, 1)
    for z in jnp.asarray(answers, jnp.float32):
        window = slide(window, z)
    np.testing.assert_allclose(window.belief.weights, single.weights, atol=2e-3)


def test_windows_leave_out_what_is_masked_or_refused():
    _, answers, _ = planted(8, 3, users=4)
    prior = prior_of(np.zeros(BASIS), np.eye(BASIS), jnp.float32)
    window = windows.start(prior, 4, 2)
    for z in jnp.asarray(answers, jnp.float32):
        window = windows.update(window, z, None)
    bad = jnp.asarray(answers[0], jnp.float32).at[0].set(jnp.nan).at[1, 2].set(1e30)
    after = windows.update(window, bad, jnp.asarray([True, True, False, True]))
    for old, new in zip(jax.tree.leaves(window), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[:3], new[:3])
    assert after.belief.answers[3] == 4
    assert (after.belief.weights[3] != window.belief.weights[3]).all()


# --- events ---


@pytest.mark.parametrize("width", [1, 5, 1024])
def test_events_take_effect_in_their_order(width):
    rng = np.random.default_rng(9)
    _, mean, precision = case(seed=9, answers=1)
    # Some users often, some never; padding; users that do not exist.
    user = rng.choice([0, 0, 0, 0, 2, 3, 5, -1, USERS, 10**6], 60)
    z, mask = rng.normal(size=(60, BASIS)), rng.random(60) < 0.8
    z[~mask] = np.nan
    rule = bayes_filter.UpdateRule(forgetting_factor=0.9)
    with jax.enable_x64(True):
        prior = prior_of(mean, precision)
        origin = bayes_filter.start(prior, 1)

        def step(rows, z, mask):
            return bayes_filter.update(rows, z, mask, origin, rule)

        program = jax.jit(lambda state, *events: bayes_filter.in_order(step, state, *events, width=width))
        found = program(bayes_filter.start(prior, USERS), jnp.asarray(user), jnp.asarray(z), jnp.asarray(mask))
        alone = jax.jit(lambda belief, z: bayes_filter.update(belief, z, None, origin, rule))
        for who in range(USERS):
            belief = bayes_filter.start(prior, 1)
            for row in np.flatnonzero((user == who) & mask):
                belief = alone(belief, jnp.asarray(z[row : row + 1]))
            assert found.answers[who] == belief.answers[0]
            np.testing.assert_allclose(found.weights[who], belief.weights[0], atol=1e-12)
            np.testing.assert_allclose(found.factor[who], belief.factor[0], atol=1e-12)


def test_the_order_of_one_users_events_matters_and_is_kept():
    prior = Prior(jnp.zeros(2), jnp.eye(2))
    origin = bayes_filter.start(prior, 1)
    rule = bayes_filter.UpdateRule(forgetting_factor=0.5)

    def step(rows, z, mask):
        return bayes_filter.update(rows, z, mask, origin, rule)

    z = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]])
    forth = bayes_filter.in_order(step, bayes_filter.start(prior, 3), jnp.asarray([1, 1]), z)
    back = bayes_filter.in_order(step, bayes_filter.start(prior, 3), jnp.asarray([1, 1]), z[::-1])
    assert forth.weights[1, 0] < 0 < back.weights[1, 0]
    np.testing.assert_array_equal(forth.weights[0], prior.mean)


def test_no_events_change_nothing():
    belief = bayes_filter.start(Prior(jnp.ones(2), jnp.eye(2)), 3)

    def step(rows, z, mask):
        return bayes_filter.update(rows, z, mask, belief, LOGISTIC)

    empty = bayes_filter.in_order(step, belief, jnp.zeros(0, jnp.int32), jnp.zeros((0, 2)))
    masked = bayes_filter.in_order(step, belief, jnp.zeros(4, jnp.int32), jnp.ones((4, 2)), jnp.zeros(4, bool))
    for after in (empty, masked):
        for old, new in zip(belief, after, strict=True):
            np.testing.assert_array_equal(old, new)


# --- edges ---


@pytest.mark.parametrize("rule", [LOGISTIC, RIDGE])
def test_nothing_asked_nothing_learned(rule):
    mean = jnp.asarray([0.1, 0.2, 0.7, 0.0])
    belief = bayes_filter.start(Prior(mean, jnp.eye(4)), 5)
    bad = jnp.asarray([[np.nan, 0, 0, 0], [0, np.inf, 0, 0], [1e30, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], jnp.float32)
    mask = jnp.asarray([True, True, True, False, True])
    after = bayes_filter.update(belief, bad, mask, belief, rule)
    np.testing.assert_array_equal(after.weights, belief.weights)
    np.testing.assert_array_equal(after.factor, belief.factor)
    # An answer between two equal responses is one, though it tells nothing; the others are refused.
    np.testing.assert_array_equal(after.answers, [0, 0, 0, 0, 1])


@pytest.mark.parametrize("rule", [LOGISTIC, RIDGE, bayes_filter.UpdateRule(forgetting_factor=0.99)])
def test_thousands_of_answers_of_all_sizes_stay_finite_and_positive(rule):
    rng = np.random.default_rng(10)
    answers = rng.normal(size=(4000, USERS, BASIS)) * 10.0 ** rng.integers(-6, 7, (4000, USERS, 1))
    answers[:, 0] = answers[0, 0]
    answers[:, 1] = 1e6 * np.eye(BASIS)[0]
    answers[:, 2] = np.where(np.arange(4000) % 2, -1, 1)[:, None] * answers[1, 2]
    belief, covariance = run(answers, np.full(BASIS, 0.2), np.eye(BASIS), rule, jnp.float32)
    assert np.isfinite(belief.weights).all()
    assert np.isfinite(belief.factor).all()
    assert (np.diagonal(covariance, axis1=1, axis2=2) >= 0).all()
    assert (np.diagonal(covariance, axis1=1, axis2=2) <= 1 + 1e-4).all()
    assert (np.linalg.eigvalsh(covariance.astype(np.float64)) > -1e-7).all()
    # Directions that were never asked about are as open as before.
    np.testing.assert_allclose(covariance[1, 1:, 1:], np.eye(BASIS - 1), atol=1e-4)


def test_duplicated_answers_equal_the_refit():
    answers, mean, precision = case(seed=11, answers=1)
    answers = np.repeat(answers, 500, 0)
    belief, covariance = run(answers, mean, precision, RIDGE, jnp.float32)
    for user in range(USERS):
        z = answers[:, user]
        np.testing.assert_allclose(covariance[user], np.linalg.inv(precision + z.T @ z), atol=2e-5)
        direct = np.linalg.solve(precision + z.T @ z, precision @ mean + z.sum(0))
        np.testing.assert_allclose(belief.weights[user], direct, atol=2e-5)


@pytest.mark.parametrize(
    "mistake", [{"forgetting_factor": 0.0}, {"forgetting_factor": 1.5}, {"forgetting_factor": float("nan")}]
)
def test_rules_that_mean_nothing_are_told(mistake):
    with pytest.raises(UserError, match="forgetting_factor"):
        bayes_filter.UpdateRule(**mistake)


def test_a_window_without_room_is_told():
    with pytest.raises(UserError, match="window"):
        windows.start(Prior(jnp.zeros(2), jnp.eye(2)), 3, 0)
