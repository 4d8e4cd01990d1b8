"""Accuracies, intervals and log-losses against independent references written with loops and SciPy."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pref_jax.errors import UserError
from pref_jax.eval import bootstrap, metrics


def _ends(interval: metrics.Interval) -> np.ndarray:
    return np.array([interval.mean, interval.low, interval.high], dtype=np.float64)


def _pairs(seed: int, *, num_users: int = 30, num_pairs: int = 400):
    rng = np.random.default_rng(seed)
    margins = np.round(rng.normal(0.3, 1.0, num_pairs), 1)
    assert (margins == 0).any()  # ties are part of the input
    return {
        "margins": margins,
        "user": rng.integers(num_users - 2, size=num_pairs).astype(np.int32),  # the last two users have no pairs
        "controversial": rng.choice(np.array([-1, 0, 1], np.int8), num_pairs),
        "seen": rng.random(num_users) < 0.7,
        "groups": [None if u % 7 == 0 else f"group {u % 3}" for u in range(num_users)],
    }


def _reference_means(data, keep) -> list[float]:
    """Each user's accuracy on the pairs where keep(pair), one user and one pair at a time."""
    means = []
    for user in range(len(data["seen"])):
        scores = []
        for p, margin in enumerate(data["margins"]):
            if data["user"][p] == user and keep(p, user):
                scores.append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
        if scores:
            means.append(sum(scores) / len(scores))
    return means


@pytest.mark.parametrize("seed", [0, 1])
def test_group_metrics_match_the_reference(seed):
    data = _pairs(seed)
    found = metrics.group_metrics(**data)
    keeps = {
        "accuracy": lambda p, u: True,
        "common": lambda p, u: data["controversial"][p] == 0,
        "controversial": lambda p, u: data["controversial"][p] == 1,
    }
    keeps |= {f"group/group {g}": lambda p, u, g=g: data["groups"][u] == f"group {g}" for g in range(3)}
    kinds = (*keeps, "log_loss", "calibration_error")
    assert set(found) == {f"{side}/{kind}" for side in ("seen", "unseen") for kind in kinds}
    for side, flag in (("seen", True), ("unseen", False)):
        for kind, keep in keeps.items():
            means = _reference_means(data, lambda p, u, keep=keep, flag=flag: data["seen"][u] == flag and keep(p, u))
            low, high = stats.t.interval(0.95, len(means) - 1, loc=np.mean(means), scale=stats.sem(means))
            interval = found[f"{side}/{kind}"]
            assert interval.n == len(means)
            assert interval.over == "users"
            np.testing.assert_allclose(_ends(interval), (np.mean(means), low, high))
        mask = data["seen"][data["user"]] == flag
        loss = [-stats.logistic.logcdf(m) for m in data["margins"][mask]]
        np.testing.assert_allclose(found[f"{side}/log_loss"].mean, np.mean(loss))
        assert found[f"{side}/log_loss"].n == mask.sum()
        assert found[f"{side}/calibration_error"].mean == metrics.calibration_error(data["margins"][mask])


def test_users_without_pairs_are_left_out_and_counted():
    data = _pairs(2)
    found = metrics.group_metrics(**data)
    for side, members in (("seen", data["seen"]), ("unseen", ~data["seen"])):
        interval = found[f"{side}/accuracy"]
        assert interval.n + interval.left_out == members.sum()
        in_group = members & np.array([g == "group 1" for g in data["groups"]])
        interval = found[f"{side}/group/group 1"]
        assert interval.n + interval.left_out == in_group.sum()
    assert found["seen/accuracy"].left_out + found["unseen/accuracy"].left_out == 2


def test_user_accuracy_takes_device_arrays():
    found = metrics.user_accuracy(jnp.array([1.0, 0.0, -2.0, 3.0], jnp.bfloat16), jnp.array([0, 0, 2, 2]), 3)
    np.testing.assert_array_equal(found.accuracy, [0.75, 0.5, 0.5])
    np.testing.assert_array_equal(found.pairs, [2, 0, 2])


def _one(margins, user=None, **changes):
    margins = np.asarray(margins, np.float64)
    user = np.zeros(len(margins), np.int32) if user is None else np.asarray(user, np.int32)
    given = {"controversial": np.zeros(len(margins), np.int8), "seen": np.array([True]), "groups": [None]}
    return metrics.group_metrics(margins, user, **{**given, **changes})


def test_nobody_gives_no_numbers():
    assert _one([]) == {}
    assert _one([], seen=np.zeros(0, bool), groups=[]) == {}
    assert metrics.over_seeds([]) == {}
    assert bootstrap.paired_difference(np.zeros(0), np.zeros(0)) is None


def test_one_user_has_no_interval():
    found = _one([1.0, -1.0, 2.0, 3.0])
    assert set(found) == {"seen/accuracy", "seen/common", "seen/log_loss", "seen/calibration_error"}
    assert found["seen/accuracy"].mean == 0.75
    assert found["seen/accuracy"].low is None
    assert found["seen/accuracy"].half_width is None


def test_intervals_of_few_users_are_fractions_or_none():
    """Student's of 0.5 and 1 would be -2.4 to 3.9."""
    users, two = [0, 0, 1, 1], {"seen": np.array([False, False]), "groups": [None, None]}
    found = _one([1.0, 1, 1, -1], user=users, controversial=np.full(4, -1), **two)
    assert found["unseen/accuracy"] == metrics.Interval(mean=0.75, low=None, high=None, n=2, over="users")
    right = _one([1.0, 1, 1, 1], user=users, controversial=np.full(4, -1), **two)["unseen/accuracy"]
    np.testing.assert_allclose(_ends(right), [1, stats.binomtest(2, 2).proportion_ci(0.95, "exact").low, 1])
    wrong = _one([-1.0, -1, -1, -1], user=users, controversial=np.full(4, -1), **two)["unseen/accuracy"]
    np.testing.assert_allclose(_ends(wrong), [0, 0, 1 - 0.025**0.5])
    cut = metrics.student_interval([1.0, 1.0, 1.0, 1.0, 0.5], over="users", fractions=True)
    low, high = stats.t.interval(0.95, 4, loc=0.9, scale=stats.sem([1.0, 1.0, 1.0, 1.0, 0.5]))
    assert high > 1
    np.testing.assert_allclose(_ends(cut), [0.9, low, 1])
    seeds = metrics.over_seeds(
        [{"seen/accuracy": 0.9, "seen/log_loss": 0.9}, {"seen/accuracy": 1.0, "seen/log_loss": 1.0}]
    )
    assert seeds["seen/accuracy"].high == 1
    assert _ends(seeds["seen/log_loss"])[2] > 1


@pytest.mark.parametrize("people", [2, 5, 6])
def test_a_bootstrap_of_few_users_gives_no_interval(people):
    found = bootstrap.paired_difference(np.linspace(0.5, 1, people), np.zeros(people))
    assert found is not None
    assert (found.low is None) == (people < 6)


def test_all_ties_are_a_coin():
    found = _one(np.zeros(6), user=[0, 0, 1, 1, 2, 2], seen=np.ones(3, bool), groups=["g"] * 3)
    for key in ("seen/accuracy", "seen/common", "seen/group/g"):
        interval = found[key]
        assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)
    np.testing.assert_allclose(found["seen/log_loss"].mean, np.log(2))


@pytest.mark.parametrize("size", [1e3, 1e30, 1e300, np.finfo(np.float64).max])
def test_huge_margins_stay_finite(size):
    found = _one([size, -size, -size, -size])
    assert found["seen/accuracy"].mean == 0.25
    np.testing.assert_allclose(found["seen/log_loss"].mean, 0.75 * size)
    seeds = metrics.over_seeds([found, found, _one([1.0])])
    assert np.isfinite(seeds["seen/log_loss"].mean)


def test_tiny_losses_are_not_lost():
    np.testing.assert_allclose(_one([50.0])["seen/log_loss"].mean, np.exp(-50), rtol=1e-12)


def test_faults_are_named_together():
    with pytest.raises(UserError, match=r"(?s)2 of 4 are NaN.*1 of 4 are infinite.*1 of 4 rows are not in 0 \.\. 0"):
        _one([np.nan, 1.0, np.nan, np.inf], user=[0, 0, 0, 1])
    with pytest.raises(UserError, match="groups: 2 names for 1 users"):
        _one([1.0], groups=["a", "b"])


def test_over_seeds_matches_scipy():
    values = np.random.default_rng(3).random(5)
    runs = [{"a": float(v), "b": metrics.student_interval([v, v + 1], over="users")} for v in values]
    runs[0]["only"] = 0.25
    found = metrics.over_seeds(runs)
    low, high = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(_ends(found["a"]), (values.mean(), low, high))
    np.testing.assert_allclose(found["b"].mean, values.mean() + 0.5)
    assert (found["a"].n, found["a"].over) == (5, "seeds")
    assert found["only"] == metrics.Interval(mean=0.25, low=None, high=None, n=1, over="seeds")


def test_paired_difference_matches_scipys_bootstrap():
    rng = np.random.default_rng(4)
    hard = rng.normal(0.6, 0.2, 80)
    a, b = hard + rng.normal(0.05, 0.05, 80), hard
    found = bootstrap.paired_difference(a, b, resamples=20_000)
    assert found is not None
    reference = stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=20_000, rng=rng)
    np.testing.assert_allclose(found.mean, (a - b).mean())
    low, high = reference.confidence_interval
    np.testing.assert_allclose(_ends(found)[1:], (low, high), atol=4e-4)
    assert found == bootstrap.paired_difference(a, b, resamples=20_000)
    assert found != bootstrap.paired_difference(a, b, resamples=20_000, seed=1)


def test_paired_difference_degenerate(monkeypatch):
    one = bootstrap.paired_difference(np.array([0.75]), np.array([0.5]))
    assert one == metrics.Interval(mean=0.25, low=None, high=None, n=1, over="users")
    same = bootstrap.paired_difference(np.full(9, 0.5), np.full(9, 0.5))
    assert same is not None
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    # Drawn in blocks of one resample or all at once: the same draw.
    a, b = np.random.default_rng(5).random((2, 7))
    whole = bootstrap.paired_difference(a, b, resamples=50)
    monkeypatch.setattr(bootstrap, "_BLOCK", 1)
    assert bootstrap.paired_difference(a, b, resamples=50) == whole
    with pytest.raises(UserError, match="accuracy_b: 1 of 2 are NaN"):
        bootstrap.paired_difference(np.zeros(2), np.array([np.nan, 0.0]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 7, 400])
def test_calibration_error_matches_the_definition(seed, count):
    margins = np.random.default_rng(seed).normal(0.3, 2.0, count)
    margins[:: max(count // 5, 1)] = 0.0
    ranked = sorted(range(count), key=lambda i: (abs(margins[i]), i))
    edges = [sum(len(part) for part in np.array_split(np.arange(count), 10)[:i]) for i in range(11)]
    total = 0.0
    for low, high in itertools.pairwise(edges):
        sure = [1 / (1 + np.exp(-abs(margins[i]))) for i in ranked[low:high]]
        right = [1.0 if margins[i] > 0 else 0.5 if margins[i] == 0 else 0.0 for i in ranked[low:high]]
        total += abs(sum(sure) - sum(right))
    np.testing.assert_allclose(metrics.calibration_error(margins), total / count, rtol=1e-12)


def test_calibration_of_who_knows_and_who_boasts():
    rng = np.random.default_rng(4)
    truth = rng.normal(0, 2, 20_000)
    answered = np.where(rng.random(20_000) < 1 / (1 + np.exp(-truth)), truth, -truth)
    assert metrics.calibration_error(answered) < 0.02
    assert metrics.calibration_error(20 * answered) > 0.1  # all but certain, wrong as often as before
    assert metrics.calibration_error(np.zeros(0)) == 0
    assert metrics.calibration_error(np.array([-1e300, 1e300])) == 0.5
