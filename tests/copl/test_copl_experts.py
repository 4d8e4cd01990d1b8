"""The expert layer against the formula with all experts, and what it changes in a transformer."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copl_jax.reward import lora_experts, routing
from pref_jax.errors import UserError
from pref_jax.lm import lora

SHAPES = {"q_proj": (6, 8), "v_proj": (6, 4), "o_proj": (8, 6)}
LAYERS = 2
# Compiled, because op by op the same takes several times longer.


@functools.partial(jax.jit, static_argnums=0)
def outputs(config, params, decided, x, key=None):
    """{target: [layer, B, L, F]}; what the transformer's scan would do."""
    adapters = lora_experts.make_adapters(params, decided, key)
    apply = lora_experts.adapter_fn(config)
    return {name: jnp.stack([apply(at_layer(a, z), x) for z in range(LAYERS)]) for name, a in adapters.items()}


def example(num_experts=3, rank=2, seed=0, dtype=jnp.float32, top_k=1, **changes):
    """Config, params with B away from zero, gates of 5 examples, and an input."""
    config = lora_experts.ExpertsConfig(num_experts=num_experts, rank=rank, alpha=3.0, dropout=0.0, **changes)
    made = jax.eval_shape(lambda: lora_experts.init(config, jax.random.key(seed), SHAPES, LAYERS))
    rng = np.random.default_rng(seed)
    everyone = np.broadcast_to(np.arange(max(num_experts, 1)), (LAYERS, 5, max(num_experts, 1)))
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), dtype), made)
    decided = {
        target: routing.Gate(
            choice=jnp.asarray(rng.permuted(everyone, axis=-1)[..., :top_k], jnp.int32),
            weight=jnp.asarray(rng.random((LAYERS, 5, top_k)), dtype),
            probabilities=jnp.zeros((LAYERS, 5, max(num_experts, 1)), dtype),
        )
        for target in config.targets
    }
    return config, params, decided, jnp.asarray(rng.standard_normal((5, 7, 6)), dtype)


def at_layer(adapter, layer):
    return jax.tree.map(lambda leaf: leaf[layer], adapter)


def dense(params, gate, x, layer, scale):
    """Every expert's output, weighted by the gate at the chosen one and by 0 elsewhere; float64."""
    own = jax.tree.map(lambda leaf: np.array(leaf[layer], np.float64), params)
    x = np.array(x, np.float64)
    everyone = np.einsum("bld,edr,erf->eblf", x, own["experts"]["a"], own["experts"]["b"])
    mask = np.arange(len(everyone))[:, None, None] == np.array(gate.choice[layer])
    weights = np.where(mask, np.array(gate.weight[layer], np.float64), 0).sum(axis=-1)
    return scale * (x @ own["shared"]["a"] @ own["shared"]["b"] + np.einsum("eb,eblf->blf", weights, everyone))


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_is_the_dense_formula(layer, top_k):
    with jax.enable_x64(True):
        config, params, decided, x = example(dtype=jnp.float64, top_k=top_k)
        got = outputs(config, params, decided, x)
        for target in config.targets:
            np.testing.assert_allclose(
                got[target][layer], dense(params[target], decided[target], x, layer, 1.5), rtol=1e-10, atol=1e-12
            )


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_are_the_dense_formulas_and_reach_the_chosen_only(top_k):
    with jax.enable_x64(True):
        config, params, decided, x = example(num_experts=9, dtype=jnp.float64, top_k=top_k)
        pull = np.random.default_rng(1).standard_normal((5, 7, 8))

        def ours(params, weight, x):
            gate = decided["q_proj"]._replace(weight=weight)
            return jnp.sum(outputs(config, {"q_proj": params}, {"q_proj": gate}, x)["q_proj"][1] * pull)

        def everyone(params, weight, x):
            own = jax.tree.map(lambda leaf: leaf[1], params)
            outputs = jnp.einsum("bld,edr,erf->eblf", x, own["experts"]["a"], own["experts"]["b"])
            mask = jnp.arange(9)[:, None, None] == decided["q_proj"].choice[1][None]
            mixed = jnp.einsum("ebk,eblf->blf", mask * weight[1][None], outputs)
            return jnp.sum(1.5 * (x @ own["shared"]["a"] @ own["shared"]["b"] + mixed) * pull)

        inputs = (params["q_proj"], decided["q_proj"].weight, x)
        got, expected = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*inputs) for f in (ours, everyone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, expected)
    unused = np.setdiff1d(np.arange(9), np.array(decided["q_proj"].choice[1]))
    np.testing.assert_array_equal(np.array(got[0]["experts"]["a"])[1, unused], 0)


def test_fresh_experts_change_nothing_and_have_these_shapes():
    config = lora_experts.ExpertsConfig(num_experts=4, rank=2, targets=("o_proj",))
    params = jax.jit(lambda: lora_experts.init(config, jax.random.key(0), SHAPES, LAYERS))()
    assert jax.tree.map(jnp.shape, params) == {
        "o_proj": {
            "shared": {"a": (2, 8, 2), "b": (2, 2, 6)},
            "experts": {"a": (2, 4, 8, 2), "b": (2, 4, 2, 6)},
        }
    }
    assert config.scale == 2
    decided = routing.one_hot_routing(jnp.array([3, 1]), ("o_proj",), num_layers=2, num_experts=4)
    np.testing.assert_array_equal(outputs(config, params, decided, jnp.ones((2, 3, 8)))["o_proj"], 0)
    assert np.std(params["o_proj"]["experts"]["a"]) == pytest.approx(8**-0.5, rel=0.2)


def test_examples_may_be_shuffled():
    config, params, decided, x = example(seed=4)
    order = np.random.default_rng(0).permutation(5)
    shuffled = jax.tree.map(lambda leaf: leaf[:, order], decided)
    before = outputs(config, params, decided, x)["v_proj"]
    after = outputs(config, params, shuffled, x[order])["v_proj"]
    np.testing.assert_allclose(after, before[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (4, 3)])
def test_one_users_experts_fold_into_one_lora(num_experts, top_k, row):
    config, params, decided, x = example(num_experts=num_experts, top_k=top_k, seed=7)
    of_one = jax.tree.map(lambda leaf: leaf[:, row : row + 1], decided)
    folded = lora_experts.to_single_lora(params, of_one, scale=config.scale)
    assert folded["v_proj"]["a"].shape == (LAYERS, 6, 2 * (1 + top_k))
    expected = outputs(config, params, decided, x)["v_proj"][:, row]
    for z in range(LAYERS):
        got = lora.apply(at_layer(folded["v_proj"], z), x[row])
        np.testing.assert_allclose(got, expected[z], rtol=1e-5, atol=1e-5)
    base = {"blocks": {name: {"kernel": jnp.ones((LAYERS, *SHAPES[name]))} for name in SHAPES}}
    merged = lora_experts.merge(base, params, of_one, scale=config.scale)["blocks"]
    np.testing.assert_allclose(x[row] @ (merged["v_proj"]["kernel"][0] - 1), expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(merged["o_proj"]["kernel"], base["blocks"]["o_proj"]["kernel"])


def test_several_users_do_not_fold_into_one():
    config, params, decided, _ = example()
    with pytest.raises(UserError, match="gates for 5 rows"):
        lora_experts.to_single_lora(params, decided, scale=config.scale)


def test_dropout_keeps_the_mean_and_differs_between_layers_and_targets():
    config, params, decided, x = example(seed=5)
    noisy = dataclasses.replace(config, dropout=0.2)
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = jax.vmap(lambda key: outputs(noisy, params, decided, x, key)["q_proj"])(keys)
    calm = outputs(config, params, decided, x)["q_proj"]
    error = np.abs(np.mean(draws, 0) - calm) / (np.std(draws, 0) / 2000**0.5 + 1e-6)
    assert np.mean(error) < 1.2
    assert np.max(error) < 6
    keys = lora_experts.make_adapters(params, decided, jax.random.key(0))
    data = np.concatenate([np.asarray(jax.random.key_data(keys[target]["key"])) for target in config.targets])
    assert len(np.unique(data, axis=0)) == LAYERS * len(config.targets)


def test_bfloat16_inputs_get_bfloat16_updates():
    config, params, decided, x = example(seed=6)
    half = outputs(config, params, decided, x.astype(jnp.bfloat16))["q_proj"]
    assert half.dtype == jnp.bfloat16
    full = np.asarray(outputs(config, params, decided, x)["q_proj"])
    np.testing.assert_allclose(np.asarray(half, np.float32), full, atol=0.05 * np.abs(full).max())


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"no linears named \['w'\]"):
        lora_experts.init(lora_experts.ExpertsConfig(targets=("w",)), jax.random.key(0), SHAPES, 1)
    wrongs: list[dict[str, Any]] = [{"num_experts": 0}, {"rank": 0}, {"dropout": 1.0}, {"targets": ()}]
    for wrong in wrongs:
        with pytest.raises(UserError, match="targets name some linear"):
            lora_experts.ExpertsConfig(**wrong)
