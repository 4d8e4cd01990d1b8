"""The watch over changing tastes: evidence against NumPy, few false alarms, soon right again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lore_jax.online import bayes_filter, change_detection
from lore_jax.weights.objective import Prior

BASIS = 4
RULE = bayes_filter.UpdateRule()
PRIOR = Prior(jnp.zeros(BASIS), jnp.eye(BASIS) / 4)


def stream(seed, steps, users, change=None):
    """(truth [S U K], answers [S U K]) of users who are turned into their opposite after `change` answers."""
    rng = np.random.default_rng(seed)
    truth = np.tile(2 * rng.normal(size=(users, BASIS)), (steps, 1, 1))
    if change is not None:
        truth[change:] *= -1
    z = rng.normal(size=(steps, users, BASIS))
    share = np.exp(-np.logaddexp(0, -np.sum(z * truth, -1)))
    return truth, (z * np.where(rng.random(share.shape) < share, 1, -1)[..., None]).astype(np.float32)


@jax.jit
def watch(tracker, answers):
    """The state after every answer."""
    origin = bayes_filter.start(PRIOR, 1)

    def step(tracker, z):
        tracker = change_detection.track(tracker, z, None, origin, RULE)
        return tracker, tracker

    return jax.lax.scan(step, tracker, answers)[1]


def step_in_numpy(weights, covariance, z):
    """One logistic answer, by bisection and the inverse of the precision."""
    margin, spread = z @ weights, z @ covariance @ z
    low, high, t = margin, margin + spread, margin
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if t - margin < spread / (1 + np.exp(t)) else (low, t)
    curvature = 1 / (1 + np.exp(t)) / (1 + np.exp(-t))
    fresh = np.linalg.inv(np.linalg.inv(covariance) + curvature * np.outer(z, z))
    return weights + covariance @ z / (1 + np.exp(t)), fresh


def log_predicted(weights, covariance, z):
    return -np.logaddexp(0, -(z @ weights) / np.sqrt(1 + np.pi / 8 * (z @ covariance @ z)))


def test_evidence_and_beliefs_equal_numpys():
    _, answers = stream(0, 60, 8, change=30)
    found = watch(change_detection.start_tracker(PRIOR, 8), jnp.asarray(answers))
    alarms = 0
    for user in range(8):
        nothing = np.zeros(BASIS), 4 * np.eye(BASIS)
        sides, evidence, count = [nothing] * 3, [0.0, 0.0], 0
        for step in range(60):
            z = answers[step, user].astype(np.float64)
            told = [log_predicted(*side, z) for side in sides]
            evidence = [e + t - told[0] for e, t in zip(evidence, told[1:], strict=True)]
            sides = [step_in_numpy(*side, z) for side in sides]
            alarm = max(evidence) > change_detection.THRESHOLD
            if alarm:
                sides[0], count = sides[1 + int(np.argmax(evidence))], count + 1
            for rival in range(2):
                if alarm or evidence[rival] <= 1e-6:
                    evidence[rival] = 0.0
                    sides[1 + rival] = nothing if rival == 0 else (-sides[0][0], sides[0][1])
            assert found.reset.evidence[step, user] == pytest.approx(evidence[0], abs=1e-3)
            assert found.flipped.evidence[step, user] == pytest.approx(evidence[1], abs=1e-3)
            assert found.alarms[step, user] == count
        np.testing.assert_allclose(found.belief.weights[-1, user], sides[0][0], atol=1e-3)
        np.testing.assert_allclose(found.reset.belief.weights[-1, user], sides[1][0], atol=1e-3)
        np.testing.assert_allclose(found.flipped.belief.weights[-1, user], sides[2][0], atol=1e-3)
        alarms += count
    assert alarms >= 6


def test_who_does_not_change_is_seldom_alarmed_about():
    _, answers = stream(1, 100, 300)
    found = watch(change_detection.start_tracker(PRIOR, 300), jnp.asarray(answers))
    # The bound of the module for two rivals.
    assert float(found.alarms[-1].mean()) < 2 * 100 * np.exp(-change_detection.THRESHOLD)
    quiet = np.asarray(found.alarms[-1]) == 0
    assert (np.asarray(found.belief.answers[-1]) == 100)[quiet].all()


def test_who_changes_is_known_again_soon():
    truth, answers = stream(2, 80, 200, change=50)
    found = watch(change_detection.start_tracker(PRIOR, 200), jnp.asarray(answers))
    test = np.random.default_rng(3).normal(size=(400, BASIS))

    def accuracy(step):
        return np.mean((test @ np.asarray(found.belief.weights[step]).T > 0) == (test @ truth[step].T > 0))

    assert accuracy(50) < 0.4
    assert np.mean(np.asarray(found.alarms[64]) >= 1) > 0.8
    assert accuracy(64) > accuracy(49) - 0.05
    # Without a watch fifty answers stand against fifteen.
    belief = bayes_filter.start(PRIOR, 200)
    step = jax.jit(partial(bayes_filter.update, rule=RULE))
    for z in answers[:65]:
        belief = step(belief, jnp.asarray(z), None, bayes_filter.start(PRIOR, 1))
    plain = np.mean((test @ np.asarray(belief.weights).T > 0) == (test @ truth[64].T > 0))
    assert plain < accuracy(64) - 0.2


@pytest.mark.parametrize("likelihood", ["logistic", "ridge"])
def test_what_is_masked_or_refused_leaves_no_trace(likelihood):
    rule = bayes_filter.UpdateRule(likelihood=likelihood, forgetting_factor=0.95)
    origin = bayes_filter.start(PRIOR, 1)
    tracker = change_detection.start_tracker(PRIOR, 3)
    _, answers = stream(4, 20, 3, change=14)
    step = jax.jit(lambda tracker, z, mask: change_detection.track(tracker, z, mask, origin, rule))
    for z in answers:
        tracker = step(tracker, jnp.asarray(z), jnp.ones(3, bool))
    bad = jnp.asarray(answers[0]).at[0].set(jnp.nan).at[1].set(1e30)
    after = step(tracker, bad, jnp.asarray([True, True, False]))
    for old, new in zip(jax.tree.leaves(tracker), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_events_can_be_watched_in_order():
    origin = bayes_filter.start(PRIOR, 1)

    def step(rows, z, mask):
        return change_detection.track(rows, z, mask, origin, RULE)

    _, answers = stream(5, 40, 3, change=20)
    table = watch(change_detection.start_tracker(PRIOR, 3), jnp.asarray(answers))
    user = np.tile(np.arange(3), 40)
    found = jax.jit(partial(bayes_filter.in_order, step))(
        change_detection.start_tracker(PRIOR, 3), jnp.asarray(user), jnp.asarray(answers.reshape(-1, BASIS))
    )
    for one, every in zip(jax.tree.leaves(found), jax.tree.leaves(table), strict=True):
        np.testing.assert_allclose(one, every[-1], atol=1e-4)
