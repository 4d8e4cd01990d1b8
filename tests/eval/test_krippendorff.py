"""Krippendorff's alpha: his own worked examples, and the definition spelled out pair by pair."""

import itertools

import numpy as np
import pytest

from pref_jax.eval.agreement import nominal_alpha

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), examples A, B and C; a dot is a missing value.
EXAMPLES = {
    "two raters, two categories": (["0100000010", "1110010000"], 0.095),
    "two raters, five categories": (["aabbdcccedda", "babbbccceddd"], 0.692),
    "four raters, missing values": (["123321412...", "1233224125.3", ".3332342251.", "12332441251."], 0.743),
}


def long_form(raters):
    """Units and values, without those that are missing."""
    letters = sorted(set("".join(raters)) - {"."})
    rows = [(unit, letters.index(said)) for own in raters for unit, said in enumerate(own) if said != "."]
    return tuple(np.array(rows).T)


def by_definition(units, values):
    """1 - D_o / D_e, over all ordered pairs of values."""
    own = {u: values[units == u].tolist() for u in np.unique(units) if (units == u).sum() > 1}
    pooled = [value for some in own.values() for value in some]
    observed = sum(
        sum(a != b for a, b in itertools.permutations(some, 2)) / (len(some) - 1) for some in own.values()
    ) / len(pooled)
    pairs = list(itertools.permutations(pooled, 2))
    return 1 - observed / (sum(a != b for a, b in pairs) / len(pairs))


@pytest.mark.parametrize("name", EXAMPLES)
def test_published_examples(name):
    raters, published = EXAMPLES[name]
    found = nominal_alpha(*long_form(raters))
    assert found.value == pytest.approx(published, abs=5e-4)
    assert None not in found
    assert float(found.low or 0) < published < float(found.high or 0)


def test_any_votes_against_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        units, values = rng.integers(9, size=30), rng.integers(4, size=30)
        found = nominal_alpha(units, values, resamples=10)
        assert found.value == pytest.approx(by_definition(units, values), abs=1e-12)
        assert found.units == (np.unique(units, return_counts=True)[1] > 1).sum()
        order = rng.permutation(30)
        again = nominal_alpha(100 - units[order], (values[order] + 1) % 4, resamples=10)
        assert again.value == pytest.approx(found.value, abs=1e-12), "names and order do not matter"


def test_the_interval_covers_and_shrinks():
    rng, hits, widths = np.random.default_rng(1), 0, {}
    # Two raters who both say the truth with 0.8, and else one of two categories by chance: alpha is 0.64.
    for count, times in ((60, 60), (600, 1)):
        for _ in range(times):
            truth, sure = rng.integers(2, size=count), rng.random((2, count)) < 0.8
            values = np.where(sure, truth, rng.integers(2, size=(2, count))).ravel()
            found = nominal_alpha(np.tile(np.arange(count), 2), values, resamples=400)
            assert found.low is not None
            assert found.high is not None
            hits += count == 60 and found.low <= 0.64 <= found.high
            widths[count] = found.high - found.low
    assert 52 <= hits <= 60
    assert widths[600] < 0.45 * widths[60]


def test_where_nothing_can_differ_there_is_no_alpha():
    one = nominal_alpha(np.repeat(np.arange(8), 2), np.zeros(16, int))
    assert (one.value, one.low, one.units, one.values) == (None, None, 8, 16)
    assert nominal_alpha(np.arange(5), np.arange(5)) == (None, None, None, 0, 0), "one value each"
    assert nominal_alpha(np.zeros(0, int), np.zeros(0, int)).value is None
    perfect = nominal_alpha(np.repeat(np.arange(8), 2), np.repeat(np.arange(8) % 2, 2))
    assert perfect.value == 1
