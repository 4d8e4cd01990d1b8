"""What is drawn, against probabilities in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pref_jax.errors import UserError
from pref_jax.lm import next_token
from pref_jax.lm.next_token import SamplingConfig

DRAWS = 20_000
_draw = jax.jit(next_token.draw)
_truncate = jax.jit(next_token.truncate)


def kept(logits, top_k=0, top_p=1.0):
    """bool [V]: the tokens that may be drawn, one after the other from the likeliest down, ties at once."""
    values = np.sort(np.unique(logits.astype(np.float64)))[::-1]
    found, among = np.zeros(len(logits), bool), np.zeros(len(logits), bool)
    for value in values:
        if top_k and among.sum() >= top_k:
            break
        among |= logits == value
    weights = np.where(among, np.exp(logits.astype(np.float64) - values[0]), 0)
    weights = weights / weights.sum()
    for value in values:
        if top_p < 1 and weights[found].sum() >= top_p:
            break
        found |= among & (logits == value)
    return found


CASES = [
    np.log([0.5, 0.25, 0.125, 0.0625, 0.0625]),
    np.zeros(8),  # all alike
    np.array([1.0, 3.0, 3.0, -2.0, 3.0, 0.0]),  # the likeliest three alike
    np.array([-np.inf, 0.0, -1.0, -np.inf]),  # some never
    np.array([80.0, -80.0, 0.0]),  # one for sure
    np.random.default_rng(0).normal(scale=3, size=300),
]


@pytest.mark.parametrize("logits", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.6, 0.3, 1e-6])
@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 1000])
def test_top_k_and_top_p_keep_what_they_should(logits, top_p, top_k):
    logits = logits.astype(np.float32)
    found = np.asarray(_truncate(logits[None], jnp.int32(top_k), jnp.float32(top_p)))[0]
    stays = kept(logits, top_k, top_p) & (logits > -np.inf)
    np.testing.assert_array_equal(found > -np.inf, stays)
    np.testing.assert_array_equal(found[stays], logits[stays])


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(temperature=2.0, top_p=0.8),
        SamplingConfig(temperature=1.0, top_k=3),
        SamplingConfig(temperature=1.5, top_k=4, top_p=0.7),
    ],
)
def test_frequencies_are_those_of_the_softmax(config):
    logits = np.array([0.5, 2.0, 1.0, -1.0, 0.0, 1.9], np.float32)
    keys = jax.random.split(jax.random.key(7), DRAWS)
    found = np.asarray(_draw(jnp.broadcast_to(jnp.asarray(logits), (DRAWS, 6)), keys, next_token.drawing(config)))
    scaled = (logits / np.float32(config.temperature)).astype(np.float64)
    expected = np.where(kept(scaled, config.top_k, config.top_p), np.exp(scaled), 0)
    counts, possible = np.bincount(found, minlength=6), expected > 0
    assert not counts[~possible].any()
    expected = DRAWS * expected[possible] / expected.sum()
    assert scipy.stats.chisquare(counts[possible], expected).pvalue > 1e-3


def test_at_temperature_0_the_likeliest_token_is_taken():
    logits = jnp.asarray([[0.0, 2.0, 1.0], [3.0, 3.0, -1.0]])
    greedy = next_token.drawing(SamplingConfig(temperature=0.0, top_p=0.5))
    assert _draw(logits, jax.random.split(jax.random.key(0), 2), greedy).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("max_new_tokens", 0),
    ],
)
def test_numbers_out_of_range_are_told(field, value):
    with pytest.raises(UserError, match=f"{field}: is {value}"):
        SamplingConfig(**{field: value})
