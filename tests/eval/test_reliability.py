"""Reliability curves against plain Python, and pictures of little or nothing."""

import numpy as np
import pytest

from pref_jax.eval.figures import canvas
from pref_jax.eval.figures.reliability import reliability, reliability_curves


@pytest.mark.parametrize("count", [1, 7, 200])
def test_bins_hold_neighbouring_predictions(count):
    rng = np.random.default_rng(count)
    probability = rng.random(count)
    happened = rng.random(count) < probability
    found = reliability(probability, happened, bins=5)
    ranked = sorted(zip(probability, happened, strict=True))
    assert found.count.sum() == count
    for said, share, error, size in zip(*found, strict=True):
        own, ranked = ranked[:size], ranked[size:]
        assert said == pytest.approx(sum(p for p, _ in own) / size)
        right = sum(h for _, h in own) / size
        assert (share, error) == pytest.approx((right, (right * (1 - right) / size) ** 0.5))


def test_nothing_gives_no_bins_and_a_picture_that_says_so(tmp_path):
    nothing = reliability(np.zeros(0), np.zeros(0, bool))
    assert not len(nothing.said)
    figure = reliability_curves({"none": nothing}, xlabel="p", ylabel="share", title="t")
    assert canvas.save(figure, tmp_path / "none.png").stat().st_size > 0
