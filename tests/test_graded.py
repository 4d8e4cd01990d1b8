"""Losses of votes kept whole, against the rows of `pref_jax.likelihood` and float64 formulas of this file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit

from pref_jax import graded
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.likelihood import Scale, fit_scale, log_widths, logistic_rows, offsets, thresholds
from pref_jax.lm.pairs import pairwise_loss
from pref_jax.train.method import TrainingConfig, open_votes
from pref_jax.train.state import OptimizerConfig


def mixed(rng, count: int, *, ties: bool = True) -> Comparisons:
    """Votes of every kind, in a random order: ties, unknown and known strengths, choices out of three to five."""
    size = rng.choice([0, 0, 0, 2, 3, 4], count)
    choice = np.repeat(np.arange(count), np.maximum(size, 1))
    alone = np.repeat(size == 0, np.maximum(size, 1))
    tie = alone & (rng.random(len(choice)) < 0.3) & ties
    known = alone & ~tie & (rng.random(len(choice)) < 0.7)
    strength = np.where(known, rng.integers(1, 4, len(choice)), np.nan).astype(np.float32)
    user, chosen = (np.repeat(rng.integers(0, most, count), np.maximum(size, 1)).astype(np.int32) for most in (8, 30))
    votes = Comparisons(
        user,
        chosen,
        (chosen + rng.integers(1, 30, len(chosen)).astype(np.int32)) % np.int32(30),
        tie=tie,
        strength=strength,
        choice=np.where(alone, -1, choice).astype(np.int32),
    )
    return votes.take(rng.permutation(len(chosen)))


def sizes(votes: Comparisons) -> np.ndarray:
    return np.array([1 if own < 0 else (votes.choice == own).sum() for own in votes.choice])


@pytest.mark.parametrize("use", ["levels", "weight", "margin", "ignore"])
@pytest.mark.parametrize("ties", [False, True])
def test_losses_are_those_of_the_rows(use, ties):
    rng = np.random.default_rng(3 + ties)
    votes = mixed(rng, 60, ties=ties)
    scale = fit_scale(votes, use)
    found = graded.grade(votes, scale)
    assert found is not None
    rows, margins = logistic_rows(votes, scale), rng.normal(size=len(votes.user)) * 2
    gaps = rng.normal(size=scale.num_thresholds)
    parts = {"ties": gaps[: int(ties)], "levels": gaps[int(ties) :]}
    parts = {name: part for name, part in parts.items() if len(part)}

    def by_rows(margins, gaps):
        ends = thresholds(gaps)
        sign = jnp.where(rows.interval > 0, -1, 1)  # the two responses change places
        loss = jax.nn.softplus(-(sign * margins[rows.vote] + rows.margin + offsets(ends, rows.bound)))
        loss = (loss - log_widths(ends, ties=scale.ties)[rows.interval]) * rows.weight / sizes(votes)[rows.vote]
        return jax.ops.segment_sum(loss, rows.vote, len(margins))

    def whole(margins, gaps):
        own = {name: gaps[: int(ties)] if name == "ties" else gaps[int(ties) :] for name in parts}
        return graded.losses_by_gaps(margins, found, own)

    with jax.enable_x64(True):
        inputs = jnp.asarray(margins), jnp.asarray(gaps)
        np.testing.assert_allclose(whole(*inputs), by_rows(*inputs), rtol=2e-7)  # weights of choices are float32
        for one, two in zip(jax.jacobian(whole, (0, 1))(*inputs), jax.jacobian(by_rows, (0, 1))(*inputs), strict=True):
            np.testing.assert_allclose(one, two, rtol=2e-7, atol=1e-9)
    np.testing.assert_array_equal(found.decided, ~votes.tie)


def test_plain_votes_are_none_and_unexpected_ties_weigh_nothing():
    plain = Comparisons(*np.zeros((3, 4), int), tie=np.zeros(4, bool), strength=np.full(4, np.nan, np.float32))
    assert graded.grade(plain, fit_scale(plain)) is None
    assert graded.grade(plain._replace(tie=np.ones(4, bool)), None) is None
    config = TrainingConfig(optimizer=OptimizerConfig(lr=0.1, num_steps=1))
    opened = open_votes(plain, config)
    assert opened.graded is None
    assert opened.params == {}
    found = graded.grade(plain._replace(tie=np.arange(4) == 0), Scale())
    assert found is not None
    assert found.weight.tolist() == [0, 1, 1, 1]
    assert found.decided.tolist() == [False, True, True, True]
    with pytest.raises(UserError, match="strengths is 'level'; write one of levels, weight, margin, ignore"):
        graded.find_scale(plain, "level")


def test_thresholds_are_the_most_likely_ones():
    rng = np.random.default_rng(5)
    votes = mixed(rng, 900)
    votes = votes.take(votes.choice < 0)
    scale, margins = fit_scale(votes), rng.normal(size=900)[: len(votes.user)] * 1.5
    level = np.where(np.isfinite(votes.strength), votes.strength, 0).astype(int)

    def objective(free):
        ends = np.concatenate([np.cumsum(np.exp(free)), [np.inf]])
        tied = expit(ends[0] - margins) - expit(-ends[0] - margins)
        low, high = ends[np.maximum(level - 1, 0)], np.where(level > 0, ends[np.clip(level, 0, 3)], np.inf)
        preferred = expit(high - margins) - expit(low - margins)
        return -np.log(np.where(votes.tie, tied, preferred)).mean()

    best = optimize.minimize(objective, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    fitted = graded.fit_thresholds(margins, votes, scale)
    np.testing.assert_allclose(fitted.thresholds, np.cumsum(np.exp(best.x)), rtol=2e-3)
    again = graded.read_scale(fitted.about())
    assert again is not None
    assert again.scale == scale
    np.testing.assert_array_equal(again.thresholds, fitted.thresholds)
    # A training begins where its thresholds explain the votes without any reward.
    begin = graded.begin_gaps(graded.grade(votes, scale), scale)
    assert {name: gap.shape for name, gap in begin.items()} == {"ties": (1,), "levels": (2,)}
    share = votes.tie.mean()
    np.testing.assert_allclose(thresholds(jnp.asarray(begin["ties"]))[0], 2 * np.arctanh(share), rtol=2e-3)


def test_only_ties_and_only_choices_have_thresholds_that_are_finite():
    for tie, choice in ((np.ones(6, bool), -1), (np.zeros(6, bool), 0)):
        votes = Comparisons(*np.zeros((3, 6), int), tie=tie, choice=np.full(6, choice, np.int32))
        scale = fit_scale(votes)
        gaps, found = graded.begin_gaps(graded.grade(votes, scale), scale), graded.grade(votes, scale)
        assert found is not None
        values = graded.losses_by_gaps(jnp.zeros(6), found, gaps)
        assert np.isfinite(values).all()
        assert len(gaps) == int(tie.all())
    np.testing.assert_allclose(np.sum(values), np.log(2), rtol=1e-6)  # one choice counts as one vote


def test_pairwise_loss_of_votes_of_every_kind():
    rng = np.random.default_rng(8)
    votes = mixed(rng, 30)
    scale = fit_scale(votes)
    found = graded.grade(votes, scale)
    assert found is not None
    gaps, scores = graded.begin_gaps(found, scale), rng.normal(size=(len(votes.user), 2)).astype(np.float32)
    loss, metrics = pairwise_loss(jnp.asarray(scores), jax.device_put(found._asdict()), gaps)
    margin = scores[:, 0] - scores[:, 1]
    np.testing.assert_allclose(loss, np.mean(graded.losses_by_gaps(jnp.asarray(margin), found, gaps)), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (margin[~votes.tie] > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["margin"], margin[~votes.tie].mean(), rtol=1e-5)
