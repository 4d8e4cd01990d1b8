"""Gated delta nets: the recurrence in float64, one token after another, in packed and padded rows."""

import dataclasses

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import pytest

from pref_jax.errors import UserError
from pref_jax.lm import attention, backbone, delta, hf_config

TEXT = np.array([[0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3], [1] * 9 + [2] * 4], np.int32)


def recurrence(q, k, v, g, b, text):
    """arXiv 2412.06464, equation 10, in NumPy."""
    out = np.zeros(v.shape)
    for row in range(len(q)):
        for head in range(q.shape[2]):
            state = np.zeros((q.shape[3], v.shape[3]))
            for t in range(q.shape[1]):
                state = state * (0 if t and text[row, t] != text[row, t - 1] else np.exp(g[row, t, head]))
                error = v[row, t, head] - k[row, t, head] @ state
                state = state + b[row, t, head] * np.outer(k[row, t, head], error)
                out[row, t, head] = q[row, t, head] @ state
    return out


@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 64])
@pytest.mark.parametrize("decay", [0.0, 1.0, 20.0])
def test_the_chunked_rule_is_the_recurrence(chunk, decay):
    rng = np.random.default_rng(chunk)
    q, k, v = (rng.normal(size=(2, 13, 3, width)) for width in (4, 4, 2))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    g, b = -decay * rng.random((2, 13, 3)), rng.random((2, 13, 3))
    b[0, 3] = 0
    q_, k_, v_, g_, b_ = (jnp.asarray(t, jnp.float32) for t in (q, k, v, g, b))
    ours = delta.delta_rule(q_, k_, v_, g_, b_, jnp.asarray(TEXT), chunk=chunk)[0]
    want = recurrence(q, k, v, g, b, TEXT)
    np.testing.assert_allclose(ours, want, atol=5e-6 * np.abs(want).max())


def test_gradients_of_the_rule_are_finite_and_match_finite_differences():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 13, 2, 3)), jnp.float32) for _ in range(3))
    g, b = jnp.asarray(-60 * rng.random((2, 13, 2)), jnp.float32), jnp.asarray(rng.random((2, 13, 2)), jnp.float32)
    towards = jnp.asarray(rng.normal(size=v.shape), jnp.float32)

    def loss(q, k, v, g, b):
        return (delta.delta_rule(q, 0.3 * k, v, g, b, jnp.asarray(TEXT), chunk=4)[0] * towards).sum()

    grads = jax.grad(loss, argnums=(0, 1, 2, 3, 4))(q, k, v, g, b)
    assert all(np.isfinite(grad).all() for grad in grads)
    step = 1e-2 * jnp.asarray(rng.normal(size=k.shape), jnp.float32)
    slope = (loss(q, k + step, v, g, b) - loss(q, k - step, v, g, b)) / 2
    assert float((grads[1] * step).sum()) == pytest.approx(float(slope), rel=2e-2)


def test_a_convolution_stays_in_its_text():
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(2, 13, 3)), rng.normal(size=(3, 4))
    want = np.zeros(x.shape)
    for row in range(2):
        for t in range(13):
            for back in range(min(4, t + 1)):
                if TEXT[row, t - back] == TEXT[row, t]:
                    want[row, t] += x[row, t - back] * kernel[:, 3 - back]
    ours = delta.convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), jnp.asarray(TEXT))
    np.testing.assert_allclose(ours, want, atol=1e-5)


def test_texts_that_branch_are_refused_and_pairs_get_rows_of_their_own():
    config = hf_config.read(make_goldens.CASES["qwen3_5"])
    assert (config.traits.causal, config.shares_prefix) == (True, False)
    params = backbone.init(config, jax.random.key(0))
    rows = attention.branches(jnp.array([[1, 1, 2, 3]], jnp.int32))
    with pytest.raises(UserError, match="reads each text in a row of its own; use share_prefix=False"):
        backbone.hidden_states(config, params, jnp.ones((1, 4), jnp.int32), rows)
    with pytest.raises(UserError, match="delta: belongs to qwen3_5_text, and to it alone"):
        dataclasses.replace(config, delta=None)
