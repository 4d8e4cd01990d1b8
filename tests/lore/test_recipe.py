"""The published regularised recipe: its loss against NumPy, its ramp, what it drops, and that it learns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lore_jax.fitting import model_selection, published
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError


def small(seed, users=6, responses=20, dim=5, votes=40):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(responses, dim))
    taste = rng.normal(size=dim)
    user, first = rng.integers(0, users, votes), rng.integers(0, responses, votes)
    second = (first + rng.integers(1, responses, votes)) % responses
    wins = (features[first] - features[second]) @ taste > 0
    return rng, features, taste, Comparisons(user, np.where(wins, first, second), np.where(wins, second, first))


def test_anchored_loss_equals_numpy():
    rng, features, taste, votes = small(0)
    w, v = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)) * 30
    soft = np.exp(w) / np.exp(w).sum(1, keepdims=True)
    margins = np.einsum("pd,dk,pk->p", features[votes.chosen] - features[votes.rejected], v, soft[votes.user]) / 100
    cosines = [v[:, j] @ taste / np.linalg.norm(v[:, j]) / np.linalg.norm(taste) for j in range(3)]
    expected = np.mean(np.logaddexp(0, -margins)) + 7 * np.mean(1 - np.array(cosines))
    with jax.enable_x64(True):
        anchor = jnp.asarray(taste / np.linalg.norm(taste))
        args: Any = jnp.asarray(features), *map(jnp.asarray, votes[:3]), anchor, jnp.asarray(7.0)
        run = jax.value_and_grad(lambda params: published.anchored_loss(params, *args))
        params = {"W": jnp.asarray(w), "V": jnp.asarray(v)}
        value, gradient = run(params)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        lean = {name: rng.normal(size=x.shape) for name, x in params.items()}
        ahead, behind = (float(run({k: v + s * lean[k] for k, v in params.items()})[0]) for s in (1e-5, -1e-5))
        slope = sum(np.sum(gradient[name] * lean[name]) for name in params)
    np.testing.assert_allclose((ahead - behind) / 2e-5, slope, rtol=1e-5, atol=1e-6)


def test_ramp():
    found = [float(published.ramp(jnp.asarray(step), 100, jnp.asarray(1e4))) for step in (0, 20, 50, 80, 99)]
    np.testing.assert_allclose(found, [0, 0, 5e3, 1e4, 1e4], atol=1e-2)


def test_one_step_moves_the_weights_first():
    """Adam's first step is the rate times the gradient's sign: W's at the start, V's after W has moved."""
    _, features, taste, votes = small(1)
    args = jnp.asarray(features, jnp.float32), *(jnp.asarray(x, jnp.int32) for x in votes[:3])
    args = *args, jnp.asarray(taste / np.linalg.norm(taste), jnp.float32), jnp.float32(0)
    start = published._start(6, 5, 3, 0)
    moved = {**start, "W": start["W"] - 0.5 * jnp.sign(jax.grad(published.anchored_loss)(start, *args)["W"])}
    direction = jnp.sign(jax.grad(published.anchored_loss)(moved, *args)["V"])
    found = published.fit_published_anchored(
        features.astype(np.float32), votes, 6, rank=3, anchor=taste, seed=0, steps=1, least=0.0
    )
    np.testing.assert_allclose(found.weights, jax.nn.softmax(moved["W"]), atol=1e-4)
    np.testing.assert_allclose(found.basis * 100, start["V"] - 0.5 * direction, atol=1e-3)


def test_bases_turn_to_the_anchor_and_idle_ones_are_dropped():
    _, features, taste, votes = small(2)
    args = features.astype(np.float32), votes, 6
    found = published.fit_published_anchored(*args, rank=4, anchor=taste, seed=0, steps=800, rate=0.05)
    basis = np.asarray(found.basis)
    cosines = taste @ basis / np.linalg.norm(basis, axis=0) / np.linalg.norm(taste)
    assert (cosines > 0.99).all()
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-5)
    right = np.asarray(model_selection.predict(found, args[0], found.weights, votes)) > 0
    assert right.mean() > 0.9
    strict = published.fit_published_anchored(*args, rank=4, anchor=taste, seed=0, steps=800, rate=0.05, least=0.4)
    highest = np.asarray(found.weights).max(0)
    assert strict.basis.shape[1] == strict.weights.shape[1] == np.sum(highest >= 0.4) < 4
    np.testing.assert_allclose(strict.weights.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("anchor", [np.zeros(5), np.ones(4), np.full(5, np.nan)])
def test_a_bad_anchor_is_told(anchor):
    _, features, _, votes = small(3)
    with pytest.raises(UserError, match=r"give the score head's weights \[5\]"):
        published.fit_published_anchored(features.astype(np.float32), votes, 6, rank=2, anchor=anchor, seed=0, steps=1)
