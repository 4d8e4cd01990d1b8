"""Gates against NumPy, their noise and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from copl_jax.reward import routing
from pref_jax.errors import UserError

TARGETS = ("q_proj", "v_proj")
# Compiled, because op by op the same takes several times longer.
init = jax.jit(routing.init, static_argnums=(0, 2), static_argnames=("num_layers", "dim", "num_experts"))
decide = jax.jit(routing.route, static_argnums=0)
fix = jax.jit(routing.one_hot_routing, static_argnums=1, static_argnames=("num_layers", "num_experts"))
SIZES = {"num_layers": 3, "dim": 5, "num_experts": 4}


def example(seed, batch=7, hidden=6, **changes):
    config = routing.GateConfig(hidden=hidden, temperature=0.7, **changes)
    params = init(config, jax.random.key(seed), TARGETS, **SIZES)
    rows = np.random.default_rng(seed).standard_normal((batch, SIZES["dim"]))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return config, params, jnp.asarray(rows, jnp.float32)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("balance", ["none", "bias"])
def test_decisions_follow_the_formula(top_k, balance):
    with jax.enable_x64(True):
        config, params, users = example(0, top_k=top_k, balance=balance)
        params, users = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, users))
        params = jax.tree.map(lambda x: x + 0.1, params)  # biases, too
        tilt = np.array([-0.8, 0.9, 0.0, 0.4])
        if balance == "bias":
            assert params["q_proj"]["balance"].shape == (3, 4)
            params = {target: {**own, "balance": own["balance"] + tilt[None]} for target, own in params.items()}
        decided = decide(config, params, users)
    for target in TARGETS:
        own = jax.tree.map(np.array, params[target])
        for z in range(SIZES["num_layers"]):
            hidden = np.maximum(np.array(users) @ own["hidden"]["kernel"][z] + own["hidden"]["bias"][z], 0)
            logits = hidden @ own["out"]["kernel"][z] + own["out"]["bias"][z] + (tilt + 0.1) * (balance == "bias")
            expected = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum(1, keepdims=True)
            chosen = np.argsort(-logits, axis=1)[:, :top_k]
            np.testing.assert_allclose(decided[target].probabilities[z], expected, rtol=1e-9)
            np.testing.assert_array_equal(decided[target].choice[z], chosen)
            np.testing.assert_allclose(decided[target].weight[z], np.take_along_axis(expected, chosen, 1), rtol=1e-9)


def test_only_training_is_noisy():
    config, params, users = example(1)
    logits = jax.jit(jax.vmap(lambda key: jnp.log(routing.route(config, params, users, key)["v_proj"].probabilities)))(
        jax.random.split(jax.random.key(9), 3000)
    )
    calm = np.log(decide(config, params, users)["v_proj"].probabilities)
    # A softmax knows logits up to a constant: compare differences of two experts, whose noise has twice the variance.
    shift = np.asarray(logits) - calm
    noise = (shift[..., 0] - shift[..., 1]) * config.temperature
    assert abs(noise.mean()) < 0.005
    np.testing.assert_allclose(noise.std(), 0.1 * 2**0.5, rtol=0.03)
    np.testing.assert_array_equal(
        decide(config, params, users)["q_proj"].weight, decide(config, params, users)["q_proj"].weight
    )
    independent = np.corrcoef(noise.reshape(3000, -1).T) - np.eye(noise[0].size)
    assert np.abs(independent).max() < 0.12  # every gate and example draws its own


def test_the_chosen_weight_trains_the_gate():
    with jax.enable_x64(True):
        config, params, users = example(2)
        params, users = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, users))

        def weights(params):
            decided = decide(config, params, users, jax.random.key(1))
            return sum(jnp.sum(jnp.sin(gate.weight)) for gate in decided.values())

        check_grads(jax.jit(weights), (params,), order=1, modes=["rev"], rtol=1e-6)
        grads = jax.jit(jax.grad(weights))(params)
    for leaf in jax.tree.leaves(grads):
        assert np.abs(leaf).max() > 0


def test_initial_gates_spread_users_over_experts():
    config = routing.GateConfig()
    params = init(config, jax.random.key(0), TARGETS, num_layers=4, dim=64, num_experts=8)
    rows = np.random.default_rng(1).standard_normal((500, 64))
    users = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)
    decided = decide(config, params, users)
    usage = routing.usage(decided)
    assert usage.shape == (2 * 4, 8)
    np.testing.assert_allclose(usage.sum(1), 1, rtol=1e-5)
    assert usage.min() > 0.03
    assert 0.3 < routing.entropy(decided) < np.log(8)
    noisy = decide(config, params, users, jax.random.key(2))
    same = np.mean(noisy["q_proj"].choice == decided["q_proj"].choice)
    assert same > 0.8  # the user decides, not the noise


def test_fixed_gates():
    fixed = fix(jnp.array([2, 0, 2]), TARGETS, num_layers=3, num_experts=4)
    np.testing.assert_array_equal(fixed["v_proj"].choice[..., 0], [[2, 0, 2]] * 3)
    np.testing.assert_array_equal(fixed["q_proj"].weight, np.ones((3, 3, 1)))
    assert routing.entropy(fixed) == 0
    np.testing.assert_allclose(routing.usage(fixed), [[1 / 3, 0, 2 / 3, 0]] * 6, rtol=1e-6)
    np.testing.assert_array_equal(routing.repeat(fixed, 2)["q_proj"].choice[0, :, 0], [2, 2, 0, 0, 2, 2])


def test_loads_count_every_choice():
    choice = jnp.array([[[0, 1], [0, 2], [1, 0]], [[2, 1], [2, 0], [2, 1]]], jnp.int32)
    gate = routing.Gate(choice, jnp.ones((2, 3, 2)), jnp.zeros((2, 3, 4)))
    expected = np.array([[3, 2, 1, 0], [1, 2, 3, 0]]) / 6
    np.testing.assert_allclose(routing.expert_load(gate), expected, rtol=1e-6)
    np.testing.assert_allclose(routing.usage({"q": gate, "v": gate}), np.tile(expected, (2, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hidden": 0}, "hidden is at least 1"),
        ({"noise": -1.0}, "hidden is at least 1"),
        ({"temperature": 0.0}, "hidden is at least 1"),
        ({"top_k": 0}, "top_k at least 1"),
        ({"balance_weight": -1.0}, "balance_rate are at least 0"),
        ({"balance_rate": -1.0}, "balance_rate are at least 0"),
    ],
)
def test_bad_configs(wrong, words):
    with pytest.raises(UserError, match=words):
        routing.GateConfig(**wrong)
