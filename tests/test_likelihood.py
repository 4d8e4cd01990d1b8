"""Votes as logistic rows, against probabilities of the cumulative logit model in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from pref_jax.comparisons import Comparisons
from pref_jax.likelihood import Scale, fit_scale, log_widths, logistic_rows, offsets, thresholds


def _probability(margin: float, tie: bool, level: float, scale: Scale, ends: np.ndarray) -> float:
    """P of one answer, from the definition: where noisy margins lie."""
    ends = np.concatenate([[] if scale.ties else [0.0], ends, [np.inf]])
    if tie:
        return expit(ends[0] - margin) - expit(-ends[0] - margin)
    if np.isnan(level):
        return 1 - expit(ends[0] - margin)
    place = np.searchsorted(scale.edges, level, side="right")
    return expit(ends[place + 1] - margin) - expit(ends[place] - margin)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_losses_are_log_probabilities(ties, levels):
    rng = np.random.default_rng(levels + 10 * ties)
    count = 60
    tie = (rng.random(count) < 0.3) & ties
    strength = np.where(tie | (rng.random(count) < 0.2), np.nan, rng.integers(1, levels + 1, count))
    votes = Comparisons(
        np.zeros(count, int), np.arange(count), np.arange(count) + count, tie=tie, strength=strength.astype(np.float32)
    )
    scale = fit_scale(votes)
    assert scale.num_thresholds == levels - 1 + ties
    with jax.enable_x64(True):
        ends = np.asarray(thresholds(jnp.asarray(rng.normal(size=scale.num_thresholds), jnp.float64)))
        rewards = rng.normal(size=2 * count) * 3
        rows = logistic_rows(votes, scale)
        margin = rewards[rows.chosen] - rewards[rows.rejected] + np.asarray(offsets(jnp.asarray(ends), rows.bound))
        loss = np.logaddexp(0, -margin) - np.asarray(log_widths(jnp.asarray(ends), ties=ties))[rows.interval]
    found = np.bincount(rows.vote, weights=loss * rows.weight)
    margins = rewards[:count] - rewards[count:]
    right = [-np.log(_probability(m, t, s, scale, ends)) for m, t, s in zip(margins, tie, strength, strict=True)]
    np.testing.assert_allclose(found, right, rtol=1e-7, atol=1e-9)


def test_all_answers_of_a_scale_have_probability_one():
    scale, ends = Scale(ties=True, edges=(2.0, 3.0)), jnp.array([0.3, 1.0, 2.5])
    left = Comparisons(
        *np.zeros((3, 7), int), tie=np.arange(7) == 3, strength=np.array([3, 2, 1, np.nan, 1, 2, 3], np.float32)
    )
    rows = logistic_rows(left._replace(chosen=np.repeat([0, 1], [4, 3]), rejected=np.repeat([1, 0], [4, 3])), scale)
    reward = np.array([0.7, -0.2])
    margin = reward[rows.chosen] - reward[rows.rejected] + np.asarray(offsets(ends, rows.bound))
    loss = np.logaddexp(0, -margin) - np.asarray(log_widths(ends, ties=True))[rows.interval]
    assert np.exp(-np.bincount(rows.vote, weights=loss)).sum() == pytest.approx(1, abs=1e-6)


def test_plain_preferences_are_their_own_rows():
    votes = Comparisons(np.array([0, 1]), np.array([2, 3]), np.array([3, 2]))
    rows = logistic_rows(votes, fit_scale(votes))
    assert np.array_equal(rows.chosen, votes.chosen)
    assert np.array_equal(rows.rejected, votes.rejected)
    assert not rows.bound.any()
    assert (rows.weight == 1).all()
    assert (rows.choice == -1).all()


def test_strengths_as_weights_and_as_margins():
    votes = Comparisons(*np.zeros((3, 2), int), strength=np.array([1.0, 3.0], np.float32))
    weighted = logistic_rows(votes, fit_scale(votes, "weight"))
    assert weighted.weight.tolist() == [0.5, 1.5]
    assert not weighted.margin.any()
    shifted = logistic_rows(votes, fit_scale(votes, "margin"))
    assert shifted.margin.tolist() == [-0.5, -1.5]
    assert (shifted.weight == 1).all()


def test_ties_where_none_was_expected_count_nothing():
    votes = Comparisons(*np.zeros((3, 2), int), tie=np.array([True, False]))
    assert logistic_rows(votes, Scale()).weight.tolist() == [0.0, 1.0]


def test_many_strengths_are_cut_at_quantiles_and_nobody_gives_one_level():
    rng = np.random.default_rng(0)
    votes = Comparisons(*np.zeros((3, 400), int), strength=rng.random(400).astype(np.float32))
    scale = fit_scale(votes)
    counts = np.bincount(np.searchsorted(scale.edges, votes.strength, side="right"))
    assert len(counts) == 4
    assert counts.min() >= 95
    assert fit_scale(Comparisons(*np.zeros((3, 0), int))) == Scale(False, (), "ignore", 1.0)
