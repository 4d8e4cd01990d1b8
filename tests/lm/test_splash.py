"""The kernel for TPUs, in plain JAX block by block, against attention by matrix products: values and gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pref_jax.lm import attention, backbone, splash
from pref_jax.mesh import make_mesh

BATCH, HEADS, KEY_HEADS, SIZE = 2, 4, 2, 32
INTERPRETED = functools.partial(splash.splash, interpret=True)


def _segments(length, *sizes):
    """A row of texts one after another, padded on both sides."""
    row = np.zeros(length, np.int32)
    place = 3
    for number, size in enumerate(sizes, 1):
        row[place : place + size] = number
        place += size
    return row


def _rows(kind, length) -> Any:
    if kind == "left":
        return jnp.asarray(np.arange(length)[None] >= np.array([[0], [length - 9]]))
    if kind == "right":
        return jnp.asarray(np.arange(length)[None] < np.array([[length], [7]]))
    if kind == "nothing":  # a row of padding only
        return jnp.asarray(np.array([np.arange(length) < 20, np.zeros(length)], bool))
    sizes = [(40, 31, 22), (5, length - 20)]
    rows = jnp.asarray(np.stack([_segments(length, *own) for own in sizes]))
    return attention.branches(rows) if kind == "shared" else rows


def _weigh(attend, allowed, real, q, k, v, sinks, **how):
    """A number that hangs on all that real tokens read, in no symmetric way."""
    own = {} if sinks is None else {"sinks": sinks}
    mixed = attend(q, k, v, allowed, scale=0.3, **how, **own)
    weights = jnp.linspace(0.5, 2.0, mixed.size).reshape(mixed.shape) / mixed.size
    return jnp.sum(jnp.sin(mixed) * weights * real[..., None]), mixed


CASES = [
    ("left", 130, True, None, None, False),
    ("right", 256, False, 17, None, False),
    ("packed", 300, True, None, None, True),
    ("shared", 140, True, 37, 3.0, False),
    ("nothing", 128, False, None, None, False),
]


@pytest.mark.parametrize(("kind", "length", "causal", "window", "softcap", "sinks"), CASES)
def test_blocks_read_what_products_read(kind, length, causal, window, softcap, sinks):
    rows = attention.rows(_rows(kind, length))
    allowed = attention.visible(rows, causal=causal, window=window)
    real = (rows.segment > 0).astype(jnp.float32)
    keys = jax.random.split(jax.random.key(length), 4)
    q = jax.random.normal(keys[0], (BATCH, length, HEADS, SIZE))
    k, v = (jax.random.normal(key, (BATCH, length, KEY_HEADS, SIZE)) for key in keys[1:3])
    sink = jax.random.normal(keys[3], (HEADS,)) if sinks else None
    places = (0, 1, 2, 3) if sinks else (0, 1, 2)

    def both(attend):
        own = functools.partial(_weigh, attend, allowed, real, softcap=softcap)
        return jax.jit(jax.value_and_grad(own, places, has_aux=True))(q, k, v, sink)

    (total, mixed), gradients = both(INTERPRETED)
    (wanted, expected), slopes = both(attention.plain)
    assert np.isfinite(mixed).all()
    np.testing.assert_allclose(mixed * real[..., None], expected * real[..., None], atol=1e-5)
    np.testing.assert_allclose(total, wanted, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, slopes, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("axes", [{"data": 2, "tensor": 2, "fsdp": 2}, {"data": 1, "tensor": 8}])
def test_devices_work_on_rows_and_heads_of_their_own(axes):
    rows = attention.rows(jnp.tile(_rows("packed", 128), (2, 1)))
    allowed, real = attention.visible(rows, causal=True), (rows.segment > 0)[..., None]
    keys = jax.random.split(jax.random.key(1), 3)
    q, k, v = (jax.random.normal(key, (4, 128, heads, 8)) for key, heads in zip(keys, (4, 2, 2), strict=True))
    sinks = jnp.arange(4.0)
    expected = attention.plain(q, k, v, allowed, scale=0.3, sinks=sinks)
    with jax.set_mesh(make_mesh(**axes)):
        found = jax.jit(functools.partial(INTERPRETED, scale=0.3))(q, k, v, allowed, sinks=sinks)
    np.testing.assert_allclose(found * real, expected * real, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_transformer_with_windows_learns_the_same_by_it(remat):
    config = tiny.llama(family="gemma2", attention_softcap=5.0, sliding_layers=(True, False), window=3)
    params = jax.jit(backbone.init, static_argnums=0)(config, jax.random.key(0))
    params = jax.tree.map(lambda p: p * 8 if p.ndim > 2 else p, params)
    tokens = jax.random.randint(jax.random.key(2), (2, 20), 0, 32, jnp.int32)
    mask = jnp.asarray(np.stack([_segments(20, 6, 9), _segments(20, 12)]))

    def total(attend, params):
        states = backbone.hidden_states(config, params, tokens, mask, attend=attend, remat=remat)
        return jnp.sum(jnp.where((mask > 0)[..., None], states, 0) ** 2)

    ours, theirs = (
        jax.jit(jax.value_and_grad(functools.partial(total, own)))(params) for own in (INTERPRETED, attention.plain)
    )
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(1.0, float(jnp.abs(other).max())))


def test_it_is_taken_on_tpus_for_long_rows_without_bias(monkeypatch):
    taken = []
    monkeypatch.setattr(splash, "splash", lambda q, *_, **more: taken.append(more) or q.reshape(*q.shape[:2], -1))

    def asked(length, **more):
        taken.clear()
        q = jnp.zeros((1, length, 2, 8))
        attention.attend(q, q, q, jnp.ones((1, 1, length, length), bool), scale=1.0, **more)
        return bool(taken)

    assert not asked(512)
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    assert asked(512)
    assert taken == [{"scale": 1.0, "softcap": None}]
    assert asked(256, softcap=3.0, sinks=jnp.zeros(2))
    assert not asked(128)
    assert not asked(512, bias=jnp.zeros((1, 2, 512, 512)))
