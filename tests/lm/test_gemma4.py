"""Gemma 4's stacked layers: what a layer does not have is never read, gradients stop there, texts may branch."""

import dataclasses

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import parity
import pytest

from pref_jax.errors import UserError
from pref_jax.lm import attention, backbone, checkpoint, layer_sizes, layers
from pref_jax.lm.config_parts import Gemma4, Pattern, RopeScaling

CASES = ("gemma4", "gemma4_dense")


def states(config, params, tokens, mask):
    return parity.hidden_states(config, params, jnp.asarray(tokens, jnp.int32), jax.tree.map(jnp.asarray, mask))


def absent(config, params):
    """True at the entries of each stacked parameter that its layer does not have."""
    found = {}
    for path, leaf in checkpoint.flat({"blocks": params["blocks"]}).items():
        found[path] = np.zeros(leaf.shape, bool)
        for layer in range(config.num_layers):
            own = layer_sizes.places(config, path, layer)
            if own is not None:
                axes = [np.arange(n) if axis is None else axis for n, axis in zip(leaf.shape[1:], own, strict=True)]
                found[path][layer] = True
                found[path][layer][np.ix_(*axes)] = False
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_a_layer_does_not_have_is_never_read(case):
    config, params = checkpoint.load(make_goldens.GOLDENS / case)
    tokens, mask = make_goldens.rows(1)
    gone = absent(config, params)
    assert {path.split("/")[1] for path, where in gone.items() if where.any()} >= {"q_proj", "o_proj", "k_proj"}
    loud = {"blocks": {}}
    for path, leaf in checkpoint.flat({"blocks": params["blocks"]}).items():
        checkpoint._set(loud, path, jnp.where(gone[path], 1e3, leaf))
    ours = states(config, params | loud, tokens, mask)
    np.testing.assert_array_equal(ours, states(config, params, tokens, mask))

    def loss(params):
        return backbone.hidden_states(config, params, jnp.asarray(tokens), jnp.asarray(mask))[mask][:, 0].sum()

    grads = checkpoint.flat({"blocks": jax.grad(loss)(params)["blocks"]})
    assert not any(np.asarray(grads[path])[where].any() for path, where in gone.items())
    # A buffer in the reference.
    assert not grads["blocks/layer_scale"].any()
    assert grads["blocks/q_proj/kernel"].any()


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_gradients_through_lent_keys_are_the_same_with_rematerialisation(remat):
    config, params = checkpoint.load(make_goldens.GOLDENS / "gemma4")
    tokens, mask = (jnp.asarray(rows) for rows in make_goldens.rows(2))

    def loss(params, remat):
        return (backbone.hidden_states(config, params, tokens, mask, remat=remat) * mask[:, :, None])[..., 3].sum()

    want = jax.grad(loss)(params, "none")
    got = jax.grad(loss)(params, remat)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(np.asarray(ours - theirs)).max() <= 1e-4 * max(np.abs(theirs).max(), 1e-3)


@pytest.mark.parametrize("case", CASES)
def test_texts_that_begin_alike_may_share_a_row(case):
    config, params = checkpoint.load(make_goldens.GOLDENS / case)
    assert config.shares_prefix
    trunk, first, second = [3, 4, 5, 6, 7, 8], [9, 10, 11], [12, 13]
    shared = states(
        config, params, [trunk + first + second], attention.branches(jnp.array([[1] * 6 + [2] * 3 + [3] * 2]))
    )
    for branch, where in ((first, slice(6, 9)), (second, slice(9, 11))):
        alone = states(config, params, [trunk + branch], np.ones((1, 6 + len(branch)), bool))
        assert parity.relative_error(shared[0, where], alone[0, 6:]) < parity.EXACT


def test_soft_prompts_take_the_place_of_embeddings_in_every_layer_s_own_one():
    config, params = checkpoint.load(make_goldens.GOLDENS / "gemma4")
    tokens = jnp.array([[0, 0, 5, 6, 7]])
    mask = jnp.ones((1, 5), bool)
    soft = jnp.full((1, 2, config.hidden_size), 0.7)
    params_ = params | {"embed": {"embedding": params["embed"]["embedding"].at[0].set(0.7 / config.hidden_size**0.5)}}
    ours = backbone.hidden_states(config, params, tokens, mask, soft=soft)
    assert parity.relative_error(ours, backbone.hidden_states(config, params_, tokens, mask)) < parity.EXACT


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("head_dim", [2, 6, 8, 64])
def test_proportional_frequencies(share, head_dim):
    scaling = RopeScaling(kind="proportional", factor=3.0, share=share)
    want = [500.0 ** (-2 * i / head_dim) / 3 if i < int(share * head_dim // 2) else 0 for i in range(head_dim // 2)]
    np.testing.assert_allclose(layers.rotary_frequencies(head_dim, Pattern(None, 500.0, scaling)), want, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_norm_of_a_narrow_head_in_a_wide_one(size):
    x = np.zeros((2, 5, 8))
    x[..., :size] = np.random.default_rng(size).normal(size=(2, 5, size))
    x[1, 2] = 0
    want = x / np.sqrt((x[..., :size] ** 2).mean(-1, keepdims=True) + 1e-6)
    ours = layers.root_mean_square_normed(jnp.asarray(x, jnp.float32), 1e-6, jnp.float32(size))
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-6)


def test_places_of_a_narrow_head_pair_the_same_features():
    np.testing.assert_array_equal(layer_sizes.head_places(4, 8), [0, 1, 4, 5])
    config, _ = checkpoint.load(make_goldens.GOLDENS / "gemma4")
    into, out = layer_sizes.features(config, "o_proj", 0)
    assert out is None
    assert into is not None
    np.testing.assert_array_equal(into, np.arange(32).reshape(4, 8)[:, [0, 1, 2, 4, 5, 6]].reshape(-1))
    part, where = layer_sizes.within((into, None), [(5, 17), (2, 6)])
    assert part == [(4, 13), (2, 6)]
    np.testing.assert_array_equal(where[0] + 5, into[4:13])
    np.testing.assert_array_equal(where[1], [0, 1, 2, 3])


def test_sizes_that_do_not_fit_are_refused():
    config, _ = checkpoint.load(make_goldens.GOLDENS / "gemma4")
    with pytest.raises(UserError, match="gemma4: belongs to gemma4_text, and to it alone"):
        dataclasses.replace(config, gemma4=None)
    with pytest.raises(UserError, match=r"(?s)2 faults.*full_head_dim: is 3.*full_kv_heads: 2 and 3 key heads"):
        dataclasses.replace(config, gemma4=Gemma4(full_head_dim=3, full_kv_heads=3))
