"""Balancing against references, through optimizer, micro-batches, devices and checkpoints; and that no expert dies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from copl_jax.reward import load_balancing, routing
from pref_jax.mesh import make_mesh
from pref_jax.train.checkpoint import Checkpoints
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

TARGETS = ("q_proj", "v_proj")
LAYERS, DIM, EXPERTS = 2, 6, 4
BIAS = routing.GateConfig(hidden=8, noise=0.0, balance="bias", balance_rate=0.05)
PLAIN = dataclasses.replace(BIAS, balance="none")
LOSS = dataclasses.replace(BIAS, balance="loss", balance_weight=0.5)
OPTIMIZER = OptimizerConfig(lr=3e-3, num_steps=1000, weight_decay=0.1, clip=0.5)


def start(config, seed=0, skew=0.0):
    """Gates, their first expert preferred by `skew`, and normalised users."""
    params = routing.init(config, jax.random.key(seed), TARGETS, num_layers=LAYERS, dim=DIM, num_experts=EXPERTS)
    for own in params.values():
        own["out"]["bias"] = own["out"]["bias"].at[:, 0].add(skew)
    users = np.random.default_rng(seed).standard_normal((64, DIM))
    return params, jnp.asarray(users / np.linalg.norm(users, axis=1, keepdims=True), jnp.float32)


def make_loss(config):
    """What the experts give the gates: a better score for a higher weight, whoever is chosen."""

    def loss(params, frozen, batch, key):
        decided = routing.route(config, params, frozen[batch["user"]])
        gain = sum(jnp.mean(gate.weight) for gate in decided.values())
        return load_balancing.auxiliary_loss(config, params, decided) - 0.1 * gain, {}

    return loss


@functools.cache
def compiled(config, accumulate=1):
    """The optimizer and the step."""
    transform = load_balancing.optimizer(config, optimizer(OPTIMIZER), num_steps=OPTIMIZER.num_steps)
    return transform, jax.jit(make_step(make_loss(config), transform, accumulate=accumulate))


def steps(config, params, users, count, accumulate=1):
    transform, step = compiled(config, accumulate)
    state = init_state(params, transform, 0)
    for _ in range(count):
        state, _ = step(state, users, {"user": jnp.arange(len(users))})
    return state


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_loss_is_equation_4_and_its_gradient_flows_through_probabilities_only(top_k):
    with jax.enable_x64(True):
        config = dataclasses.replace(LOSS, top_k=top_k)
        params, users = start(config, 1, skew=1.0)
        params, users = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, users))

        def penalty(params):
            return load_balancing.auxiliary_loss(config, params, routing.route(config, params, users))

        def reference(params):
            found = []
            for target in TARGETS:
                gate = routing.route(config, params, users)[target]
                counts = np.zeros((LAYERS, EXPERTS))
                for (layer, _, _), expert in np.ndenumerate(np.asarray(chosen[target])):
                    counts[layer, expert] += 1
                f = counts / (len(users) * top_k)
                assert f.max() > 2 * f.min()  # else a wrong pairing of f and P would not be seen
                found += [EXPERTS * (f[z] * gate.probabilities[z].mean(axis=0)).sum() for z in range(LAYERS)]
            return 0.5 * sum(found) / len(found)

        chosen = {target: gate.choice for target, gate in routing.route(config, params, users).items()}
        (got, ours), (expected, theirs) = (jax.value_and_grad(f)(params) for f in (penalty, reference))
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-14), ours, theirs)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(ours)) > 1e-3


def test_even_use_costs_one_and_one_expert_for_all_costs_as_many_as_there_are():
    even = routing.one_hot_routing(jnp.arange(8) % 4, TARGETS, num_layers=2, num_experts=4)
    one = routing.one_hot_routing(jnp.zeros(8, jnp.int32), TARGETS, num_layers=2, num_experts=4)
    assert load_balancing.imbalance(even) == 1
    assert load_balancing.imbalance(one) == 4


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_bias_moves_by_the_sign_of_what_is_missing_less_each_time(accumulate):
    params, users = start(BIAS, 2, skew=1.0)
    expected = {target: np.zeros((LAYERS, EXPERTS)) for target in TARGETS}
    before = params
    for count in range(1, 4):
        for target, gate in routing.route(BIAS, before, users).items():
            loads = np.stack([np.bincount(row.ravel(), minlength=EXPERTS) for row in np.asarray(gate.choice)])
            size = 0.05 * (1 - (count - 1) / OPTIMIZER.num_steps) ** 3
            expected[target] += size * np.sign(loads.mean(axis=1, keepdims=True) - loads)
        before = steps(BIAS, params, users, count, accumulate).params
        for target in TARGETS:
            np.testing.assert_allclose(before[target]["balance"], expected[target], atol=1e-6)
    assert np.abs(expected["q_proj"]).max() > 0.1


def test_nothing_else_feels_the_bias_and_the_bias_feels_nothing_else():
    """One step with and without balancing: equal but for the bias, clipping and decay notwithstanding."""
    params, users = start(BIAS, 3, skew=1.0)
    plain = {name: {k: v for k, v in own.items() if k != "balance"} for name, own in params.items()}
    loss, key = make_loss(BIAS), jax.random.key(0)
    value, _ = loss(params, users, {"user": jnp.arange(64)}, key)
    assert value == make_loss(PLAIN)(plain, users, {"user": jnp.arange(64)}, key)[0]
    both = []
    for config, own in ((BIAS, params), (PLAIN, plain)):
        transform, step = compiled(config)
        state, metrics = step(init_state(own, transform, 0), users, {"user": jnp.arange(64)})
        both.append(({t: {k: v for k, v in o.items() if k != "balance"} for t, o in state.params.items()}, metrics))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), *both)
    rest = optimizer(OPTIMIZER)
    assert load_balancing.optimizer(PLAIN, rest, num_steps=10) is rest


def test_a_step_that_is_not_finite_moves_no_bias():
    params, users = start(BIAS, 4, skew=1.0)
    params["q_proj"]["out"]["bias"] = params["q_proj"]["out"]["bias"].at[0, 0].set(jnp.nan)
    state = steps(BIAS, params, users, 2)
    assert int(state.step) == 2
    np.testing.assert_array_equal(state.params["v_proj"]["balance"], 0)


@pytest.mark.parametrize("config", [LOSS, BIAS], ids=lambda config: config.balance)
def test_on_several_devices_it_is_the_same(config):
    params, users = start(config, 5, skew=1.0)
    expected = steps(config, params, users, 3).params
    mesh = make_mesh(data=4, fsdp=2)
    everywhere, rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(("data", "fsdp"))))
    transform, step = compiled(config)
    state = init_state(jax.device_put(params, everywhere), transform, 0)
    batch = {"user": jax.device_put(np.arange(64), rows)}
    for _ in range(3):
        state, _ = step(state, jax.device_put(users, everywhere), batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), state.params, expected)


def test_a_checkpoint_holds_the_bias_and_training_goes_on_in_the_same_bits(tmp_path):
    params, users = start(BIAS, 6, skew=1.0)
    transform, step = compiled(BIAS)
    batch = {"user": jnp.arange(64)}
    state = init_state(params, transform, 0)
    for count in range(6):
        if count == 3:
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(state, {})
        state, _ = step(state, users, batch)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(init_state(params, transform, 0))
    assert restored is not None
    resumed = restored[0]
    assert np.abs(resumed.params["q_proj"]["balance"]).max() > 0.1
    for _ in range(3):
        resumed, _ = step(resumed, users, batch)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, state.params)


def dead(config, params, users):
    return int(np.sum(np.asarray(routing.usage(routing.route(config, params, users))) == 0))


@pytest.mark.parametrize(("config", "alive"), [(PLAIN, False), (LOSS, True), (BIAS, True)])
def test_experts_that_start_dead_come_alive_with_balance_only(config, alive):
    params, users = start(config, 7, skew=3.0)
    assert dead(config, params, users) > 8  # of 4 gates with 4 experts each
    after = dead(config, steps(config, params, users, 200).params, users)
    assert after == 0 if alive else after > 8


def test_labels_are_by_name_wherever_the_leaf_stands():
    tree = {"gates": {"q_proj": {"balance": jnp.ones(3), "out": jnp.ones(3)}}, "head": jnp.ones(3)}
    transform = load_balancing.optimizer(BIAS, optax.set_to_zero(), num_steps=10)
    updates, _ = transform.update(tree, transform.init(tree), tree)
    expected = {"gates": {"q_proj": {"balance": np.full(3, -0.05), "out": np.zeros(3)}}, "head": np.zeros(3)}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), updates, expected)
