import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pref_jax.errors import UserError
from pref_jax.mesh import make_mesh, put_batch
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer, schedule


def make_params(seed=0, features=4, hidden=8):
    rng = np.random.default_rng(seed)
    return {
        "in": jnp.asarray(rng.normal(size=(features, hidden)) / 2, jnp.float32),
        "out": {"w": jnp.asarray(rng.normal(size=(hidden, 1)) / 3, jnp.float32), "b": jnp.zeros((1,))},
    }


def make_batch(rows=16, seed=1, features=4):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(rows, features)).astype(np.float32), "y": rng.normal(size=rows).astype(np.float32)}


def loss_fn(params, frozen, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["in"]) * frozen
    error = (hidden @ params["out"]["w"] + params["out"]["b"][None])[:, 0] - batch["y"]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def assert_trees_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


FROZEN = np.float32(0.9)
CONFIG = OptimizerConfig(lr=1e-2, num_steps=20, warmup_fraction=0.1, weight_decay=0.1, clip=0.5)


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.0), (2, 0.5), (10, 0.0), (37, 0.1), (100, 0.03), (10, 0.99)])
def test_schedule_follows_its_formula(steps, fraction):
    config = OptimizerConfig(lr=0.3, num_steps=steps, warmup_fraction=fraction)
    warmup, i = round(fraction * steps), np.arange(steps + 1)
    decay = 0.5 * (1 + np.cos(np.pi * (i - warmup) / max(1, steps - warmup)))
    expected = 0.3 * np.where(i < warmup, (i + 1) / (warmup + 1), decay)
    rates = np.asarray(jax.vmap(schedule(config))(i))
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    if warmup < steps:
        assert (rates[:-1] > 0).all()
        np.testing.assert_allclose(rates.max(), 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"num_steps": 0}, {"warmup_fraction": 1.0}, {"clip": 0.0}, {"lr": float("nan")}]
)
def test_settings_out_of_range_are_told(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        OptimizerConfig(**{"lr": 0.1, "num_steps": 5, **wrong})


def test_steps_equal_adamw_written_out():
    """Three steps against AdamW in float64 NumPy, gradients by hand for a linear model."""
    rng = np.random.default_rng(4)
    w, x, y = rng.normal(size=3), rng.normal(size=(8, 3)), rng.normal(size=8)

    def linear(params, frozen, batch, key):
        return jnp.mean((batch["x"] @ params - batch["y"]) ** 2), {}

    opt = optimizer(CONFIG)
    state, step = init_state(jnp.asarray(w, jnp.float32), opt, 0), jax.jit(make_step(linear, opt))
    mean, square = np.zeros(3), np.zeros(3)
    for i in range(3):
        state, metrics = step(state, None, {"x": np.float32(x), "y": np.float32(y)})
        grad = 2 * x.T @ (x @ w - y) / 8
        norm = np.linalg.norm(grad)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], np.mean((x @ w - y) ** 2), rtol=1e-5)
        grad *= min(1, 0.5 / norm)
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        direction = mean / (1 - 0.9 ** (i + 1)) / (np.sqrt(square / (1 - 0.999 ** (i + 1))) + 1e-8)
        w = w - np.asarray(schedule(CONFIG)(i), np.float64) * (direction + 0.1 * w)
        np.testing.assert_allclose(state.params, w, rtol=1e-5)
    assert int(state.step) == 3


@pytest.mark.parametrize("parts", [4, 16])
def test_accumulation_equals_the_whole_batch(parts):
    opt, batch = optimizer(CONFIG), make_batch()
    state = init_state(make_params(), opt, 0)
    whole, whole_metrics = jax.jit(make_step(loss_fn, opt))(state, FROZEN, batch)
    cut, cut_metrics = jax.jit(make_step(loss_fn, opt, accumulate=parts))(state, FROZEN, batch)
    assert_trees_close(whole_metrics, cut_metrics, rtol=1e-5)
    assert_trees_close(whole.params, cut.params, atol=1e-6)


def test_accumulation_that_does_not_divide_the_batch_is_told():
    opt = optimizer(CONFIG)
    with pytest.raises(UserError, match="multiple of accumulate"):
        make_step(loss_fn, opt, accumulate=3)(init_state(make_params(), opt, 0), FROZEN, make_batch())


def test_bfloat16_micro_batches_are_summed_in_float32():
    """256 gradients of 1 and one of 256: a bfloat16 sum would stop growing at 256."""

    def gradient(params, frozen, batch, key):
        return jnp.sum(params * batch["x"][0].astype(params.dtype)), {}

    opt = optax.sgd(1.0)
    state = init_state(jnp.zeros((1,), jnp.bfloat16), opt, 0)
    rows = np.ones((512, 1), np.float32)
    rows[0] = 256
    state, _ = jax.jit(make_step(gradient, opt, accumulate=512))(state, None, {"x": rows})
    np.testing.assert_allclose(np.float32(state.params), -(256 + 511) / 512, rtol=0.01)


def test_randomness_follows_from_seed_and_step():
    def noise(params, frozen, batch, key):
        return jnp.sum(params), {"draw": jax.random.normal(key)}

    opt = optax.sgd(0.1)

    def draws(seed, accumulate=1):
        state, step = init_state(jnp.ones((1,)), opt, seed), jax.jit(make_step(noise, opt, accumulate=accumulate))
        out = []
        for _ in range(3):
            state, metrics = step(state, None, {"x": np.zeros((2, 1), np.float32)})
            out.append(float(metrics["draw"]))
        return out

    assert len(set(draws(0) + draws(1))) == 6
    assert draws(0) == draws(0)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), 0)
    np.testing.assert_allclose(draws(0)[2], jax.random.normal(key), rtol=1e-6)
    halves = [jax.random.normal(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), j)) for j in (0, 1)]
    np.testing.assert_allclose(draws(0, accumulate=2)[0], np.mean(halves), rtol=1e-5)


@pytest.mark.parametrize(("bad", "parts"), [(np.nan, 4), (np.inf, 1)])
def test_a_batch_that_is_not_finite_is_skipped(bad, parts):
    opt, good = optimizer(CONFIG), make_batch()
    poisoned = {**good, "y": good["y"].copy()}
    poisoned["y"][3] = bad
    step = jax.jit(make_step(loss_fn, opt, accumulate=parts))
    state, metrics = step(init_state(make_params(), opt, 0), FROZEN, good)
    assert float(metrics["skipped"]) == 0
    after, metrics = step(state, FROZEN, poisoned)
    assert float(metrics["skipped"]) == 1
    assert int(after.step) == int(state.step) + 1
    assert_trees_close((after.params, after.opt_state), (state.params, state.opt_state), rtol=0)
    resumed, metrics = step(after, FROZEN, good)
    assert float(metrics["skipped"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(resumed.params))


def test_optimizer_state_lies_like_its_parameters():
    mesh = make_mesh(data=2, fsdp=4)
    specs = {"in": PartitionSpec(None, "fsdp"), "out": {"w": PartitionSpec("fsdp"), "b": PartitionSpec()}}
    params = jax.device_put(make_params(), jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    state = init_state(params, optimizer(CONFIG), 0)
    moments = [
        node for node in jax.tree.leaves(state.opt_state, is_leaf=lambda n: hasattr(n, "mu")) if hasattr(node, "mu")
    ]
    for tree in (moments[0].mu, moments[0].nu):
        assert jax.tree.map(lambda leaf: leaf.sharding.spec, tree) == specs
    assert state.key.sharding == state.step.sharding == NamedSharding(mesh, PartitionSpec())


def test_jit_shard_map_and_pmap_agree():
    """One step function under the three ways of JAX: placed by the compiler, and with the sum written out."""
    opt, batch, mesh = optimizer(CONFIG), make_batch(rows=16), make_mesh()
    states = [init_state(make_params(), opt, 0) for _ in range(4)]
    single, explicit = make_step(loss_fn, opt), make_step(loss_fn, opt, axis_name="data")
    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        explicit, mesh=mesh, in_specs=(whole, whole, rows), out_specs=(whole, whole), check_vma=False
    )
    ways = {
        "one device": (jax.jit(single), batch),
        "jit": (jax.jit(single), put_batch(batch, mesh)),
        "shard_map": (jax.jit(mapped), put_batch(batch, mesh)),
        "pmap": (
            jax.pmap(explicit, axis_name="data", in_axes=(None, None, 0), out_axes=None),
            jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch),
        ),
    }
    results = {}
    for (way, (step, rows)), state in zip(ways.items(), states, strict=True):
        for _ in range(3):
            state, metrics = step(state, FROZEN, rows)
        results[way] = jax.device_get((state.params, metrics))
    for way in ("jit", "shard_map", "pmap"):
        assert_trees_close(results[way], results["one device"], atol=1e-6, rtol=1e-5)
