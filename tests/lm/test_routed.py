"""Routed MLPs against every part computed for every token, in float64."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pref_jax.errors import UserError
from pref_jax.lm import routed
from pref_jax.lm.config_parts import Experts


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference(params, x, experts):
    """Each token's chosen parts, one after another."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:2]):
        h = x[place]
        logits = h @ p["router"]["kernel"] + p["router"].get("bias", 0)
        chosen = np.argsort(-logits)[: experts.per_token]
        weights = softmax(logits[chosen] if experts.scores == "chosen" else logits)
        weights = weights if experts.scores == "chosen" else weights[chosen]
        weights = weights / weights.sum() if experts.scores == "normalised" else weights
        for weight, e in zip(weights, chosen, strict=True):
            if experts.clamp is None:
                gate, up = h @ p["gate"][e], h @ p["up"][e]
                mixed = gate / (1 + np.exp(-gate)) * up
            else:
                both = h @ p["gate_up"][e] + p["gate_up_bias"][e]
                gate, up = np.minimum(both[::2], experts.clamp), np.clip(both[1::2], -experts.clamp, experts.clamp)
                mixed = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
            out[place] += weight * (mixed @ p["down"][e] + p.get("down_bias", np.zeros((9, 1)))[e])
    return out


@pytest.mark.parametrize("scores", ["chosen", "all", "normalised"])
@pytest.mark.parametrize("clamp", [None, 0.4])
@pytest.mark.parametrize("each", [1, 2, 4])
def test_parts_of_each_token_are_those_of_a_loop(scores, clamp, each):
    experts = Experts(count=4, per_token=each, scores=scores, clamp=clamp)
    config = tiny.llama(experts=experts)
    module = routed.RoutedMLP(config, experts, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    rng = np.random.default_rng(each)
    state = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32), state)
    x = rng.standard_normal((2, 5, 16)).astype(np.float32)
    # Tokens that are alike all go to the same parts: others get none.
    x[1] = x[1, :1]
    ours = nnx.merge(graph, state)(jnp.asarray(x))
    want = reference(nnx.to_pure_dict(state), x, experts)
    np.testing.assert_allclose(ours, want, atol=2e-5 * np.abs(want).max())


def test_a_token_can_run_through_no_more_parts_than_there_are():
    for each in (0, 5):
        with pytest.raises(UserError, match=f"experts: {each} of 4 a token; give from 1 to all"):
            tiny.llama(experts=Experts(count=4, per_token=each))
