"""Adapters: harmless when fresh, each layer its own, the same merged, and the only thing that is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pref_jax.lm import backbone, lora
from pref_jax.lm.config import LMConfig
from pref_jax.lm.lora import LoRAConfig

CONFIG = LMConfig(
    family="llama", vocab_size=31, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2
)
SCALE = 1.7
SCALED = lora.adapter_fn(LoRAConfig(rank=2, alpha=3.4))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda p: p * 4, jax.jit(backbone.init, static_argnums=0)(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def rows():
    tokens = jax.random.randint(jax.random.key(5), (3, 7), 0, 31, jnp.int32)
    return tokens, jnp.arange(7)[None] < jnp.array([7, 4, 1])[:, None]


@functools.partial(jax.jit, static_argnums=0)
def hidden(apply_adapter, params, rows, adapters):
    return backbone.hidden_states(CONFIG, params, rows[0], rows[1], adapters, apply_adapter)


def grown(key):
    """Adapters of every linear with both factors away from zero, all layers different."""
    fresh = lora.init(key, backbone.linear_shapes(CONFIG), CONFIG.num_layers, 2)
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def reference(params, rows, adapters):
    """The whole transformer in float64 NumPy, one row and one layer after another, no padding at all."""
    params, adapters = jax.tree.map(lambda p: np.asarray(p, np.float64), (params, adapters))

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.norm_eps) * scale

    result = []
    for tokens, mask in zip(*map(np.asarray, rows), strict=True):
        x = params["embed"]["embedding"][tokens[mask]]
        length, half = len(x), CONFIG.head_dim // 2
        angle = np.arange(length)[:, None] * CONFIG.rope_theta ** (-np.arange(half) / half)
        for layer in range(CONFIG.num_layers):
            block = jax.tree.map(lambda p, layer=layer: p[layer], params["blocks"])
            own = jax.tree.map(lambda p, layer=layer: p[layer], adapters)

            def linear(name, x, block=block, own=own):
                return x @ block[name]["kernel"] + SCALE * x @ own[name]["a"] @ own[name]["b"]

            def turned(x, half=half, angle=angle):
                z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
                return np.concatenate([z.real, z.imag], -1)

            h = norm(x, block["input_norm"]["scale"])
            q, k, v = (linear(n, h).reshape(length, -1, CONFIG.head_dim) for n in ("q_proj", "k_proj", "v_proj"))
            q, k, out = turned(q), turned(k), np.zeros_like(q)
            for head in range(CONFIG.num_heads):
                for i in range(length):
                    w = np.exp(k[: i + 1, head // 2] @ q[i, head] / np.sqrt(CONFIG.head_dim))
                    out[i, head] = (w / w.sum()) @ v[: i + 1, head // 2]
            x = x + linear("o_proj", out.reshape(length, -1))
            h = norm(x, block["mlp_norm"]["scale"])
            gate = linear("gate_proj", h)
            x = x + linear("down_proj", gate / (1 + np.exp(-gate)) * linear("up_proj", h))
        result.append(norm(x, params["final_norm"]["scale"]))
    return result


def test_a_fresh_adapter_changes_nothing(params, rows):
    fresh = lora.init(jax.random.key(2), backbone.linear_shapes(CONFIG), CONFIG.num_layers, 2)
    assert set(fresh) == set(backbone.linear_shapes(CONFIG))
    assert fresh["up_proj"]["a"].shape == (3, 16, 2)
    assert fresh["up_proj"]["b"].shape == (3, 2, 24)
    np.testing.assert_array_equal(hidden(SCALED, params, rows, fresh), hidden(SCALED, params, rows, {}))


def test_every_layer_runs_its_own_adapter_as_in_plain_numpy(params, rows):
    adapters = grown(jax.random.key(3))
    ours = np.asarray(hidden(SCALED, params, rows, adapters))
    for row, mask, want in zip(ours, np.asarray(rows[1]), reference(params, rows, adapters), strict=True):
        np.testing.assert_allclose(row[mask], want, atol=2e-5 * np.abs(want).max())


def test_merged_weights_say_the_same_without_adapters(params, rows):
    adapters = {name: own for name, own in grown(jax.random.key(4)).items() if name in ("q_proj", "down_proj")}
    before = jax.tree.map(np.asarray, params)
    merged = lora.merge(params, adapters, scale=SCALE)
    with_adapters, plain = hidden(SCALED, params, rows, adapters), hidden(SCALED, merged, rows, {})
    np.testing.assert_allclose(plain, with_adapters, atol=2e-5 * float(jnp.abs(with_adapters).max()))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, params))
    half = lora.merge(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), adapters)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def test_gradients_reach_both_factors_of_every_layer_and_match_finite_differences(params, rows):
    adapters = grown(jax.random.key(6))
    weight = jax.random.normal(jax.random.key(7), (3, 16))

    @jax.jit
    def loss(adapters):
        pooled = backbone.pool(
            CONFIG, backbone.hidden_states(CONFIG, params, rows[0], rows[1], adapters, SCALED), rows[1]
        )
        return (pooled * weight).sum()

    grads = jax.jit(jax.grad(loss))(adapters)
    assert jax.tree.structure(grads) == jax.tree.structure(adapters)
    for leaf in jax.tree.leaves(grads):
        assert (jnp.abs(leaf).max(axis=(1, 2)) > 0).all()
    along = jax.tree.map(lambda g: g / jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(grads))), grads)
    up, down = (loss(jax.tree.map(lambda p, d, s=s: p + s * d, adapters, along)) for s in (1e-3, -1e-3))
    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(along), strict=True))
    assert (up - down) / 2e-3 == pytest.approx(slope, rel=2e-2)


def test_the_backward_pass_copies_no_frozen_weight(params, rows):
    # Adapters by surgery inside the layers make scan keep a copy of every base weight for the backward pass.
    def loss(adapters):
        return backbone.hidden_states(CONFIG, params, rows[0], rows[1], adapters, SCALED).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(grown(jax.random.key(8)))
    scans = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(scans) == 2
    kernels = {params["blocks"][name]["kernel"].shape for name in backbone.linear_shapes(CONFIG)}
    assert not kernels & {out.aval.shape for scan in scans for out in scan.outvars}
