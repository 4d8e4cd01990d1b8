"""The forward pass: its parameter tree, padding, degenerate rows, pooling, memory options, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pref_jax.errors import UserError
from pref_jax.lm import backbone, layers, lora
from pref_jax.lm.config import LMConfig

LLAMA = LMConfig(
    family="llama", vocab_size=31, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2
)
BERT = LMConfig(
    family="bert",
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    max_positions=12,
    activation="gelu",
    attention_bias=True,
    mlp_bias=True,
    tie_embeddings=False,
    lm_head=False,
    pooling="mean",
)
BOTH = pytest.mark.parametrize("config", [LLAMA, BERT], ids=["llama", "bert"])


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, tokens, mask, adapters=None):
    return backbone.hidden_states(config, params, tokens, mask, adapters)


@functools.cache
def params_of(config):
    return jax.jit(backbone.init, static_argnums=0)(config, jax.random.key(0))


def some_rows(batch=4, length=8):
    return jax.random.randint(jax.random.key(5), (batch, length), 0, 31, jnp.int32), jnp.ones((batch, length), bool)


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def test_the_parameter_trees_are_these():
    untied = LMConfig(**{**vars(LLAMA), "tie_embeddings": False})
    assert paths(backbone.shapes(untied)) == {
        "blocks/down_proj/kernel": (3, 24, 16),
        "blocks/gate_proj/kernel": (3, 16, 24),
        "blocks/input_norm/scale": (3, 16),
        "blocks/k_proj/kernel": (3, 16, 8),
        "blocks/mlp_norm/scale": (3, 16),
        "blocks/o_proj/kernel": (3, 16, 16),
        "blocks/q_proj/kernel": (3, 16, 16),
        "blocks/up_proj/kernel": (3, 16, 24),
        "blocks/v_proj/kernel": (3, 16, 8),
        "embed/embedding": (31, 16),
        "final_norm/scale": (16,),
        "lm_head/kernel": (16, 31),
    }
    assert paths(backbone.shapes(BERT)) == {
        "blocks/attention_norm/bias": (3, 16),
        "blocks/attention_norm/scale": (3, 16),
        "blocks/down_proj/bias": (3, 16),
        "blocks/down_proj/kernel": (3, 24, 16),
        "blocks/k_proj/bias": (3, 16),
        "blocks/k_proj/kernel": (3, 16, 16),
        "blocks/mlp_norm/bias": (3, 16),
        "blocks/mlp_norm/scale": (3, 16),
        "blocks/o_proj/bias": (3, 16),
        "blocks/o_proj/kernel": (3, 16, 16),
        "blocks/q_proj/bias": (3, 16),
        "blocks/q_proj/kernel": (3, 16, 16),
        "blocks/up_proj/bias": (3, 24),
        "blocks/up_proj/kernel": (3, 16, 24),
        "blocks/v_proj/bias": (3, 16),
        "blocks/v_proj/kernel": (3, 16, 16),
        "embed/embedding": (31, 16),
        "embed_norm/bias": (16,),
        "embed_norm/scale": (16,),
        "positions/embedding": (12, 16),
        "types/embedding": (2, 16),
    }


@BOTH
def test_init_gives_the_promised_tree_dtype_and_layers_that_differ(config):
    params = params_of(config)
    assert paths(params) == paths(backbone.shapes(config))
    for dtype in (jnp.float32, jnp.bfloat16):
        assert {leaf.dtype for leaf in jax.tree.leaves(backbone.shapes(config, dtype))} == {jnp.dtype(dtype)}
    kernels = np.asarray(params["blocks"]["q_proj"]["kernel"])
    assert not np.allclose(kernels[0], kernels[1])
    assert 0.015 < kernels.std() < 0.025
    assert set(backbone.linear_shapes(config)) == {name for name in params["blocks"] if name.endswith("_proj")}
    for name, shape in backbone.linear_shapes(config).items():
        assert params["blocks"][name]["kernel"].shape == (3, *shape)


@BOTH
def test_padding_on_either_side_changes_nothing(config):
    params = params_of(config)
    tokens, mask = some_rows(length=8)
    plain = hidden(config, params, tokens, mask)
    for left, right in ((0, 4), (4, 0)):
        wide = ((0, 0), (left, right))
        # -100 is what some collators put at padding; it must not be looked up.
        padded = hidden(config, params, jnp.pad(tokens, wide, constant_values=-100), jnp.pad(mask, wide))
        assert np.isfinite(padded).all()
        inside = padded[:, left : left + 8]
        np.testing.assert_allclose(inside, plain, atol=1e-5)
        np.testing.assert_allclose(
            backbone.pool(config, padded, jnp.pad(mask, wide)), backbone.pool(config, plain, mask), atol=1e-5
        )


def test_the_future_is_unseen_by_llama_and_seen_by_bert():
    tokens, mask = some_rows()
    other = tokens.at[:, -1].set((tokens[:, -1] + 1) % 31)
    for config, same in ((LLAMA, True), (BERT, False)):
        params = jax.tree.map(lambda p: p * 5, params_of(config))
        a, b = hidden(config, params, tokens, mask), hidden(config, params, other, mask)
        assert np.allclose(a[:, :-1], b[:, :-1], atol=1e-6) == same


@BOTH
def test_rows_of_padding_only_are_finite_forward_and_backward_and_pool_to_zero(config):
    params = params_of(config)
    tokens, mask = some_rows()
    mask = mask.at[1].set(False)

    def total(params):
        return (backbone.pool(config, backbone.hidden_states(config, params, tokens, mask), mask) ** 2).sum()

    value, grads = jax.jit(jax.value_and_grad(total))(params)
    assert all(np.isfinite(leaf).all() for leaf in [value, *jax.tree.leaves(grads)])
    pooled = backbone.pool(config, hidden(config, params, tokens, mask), mask)
    np.testing.assert_array_equal(pooled[1], 0)
    assert np.abs(pooled[0]).min() > 0


def test_remat_and_unroll_change_speed_only():
    config = LLAMA
    params = params_of(config)
    tokens, mask = some_rows()
    adapters = {"v_proj": jax.tree.map(lambda a: a + 0.1, _fresh(config)["v_proj"])}

    def grads(remat, unroll):
        def loss(adapters):
            h = backbone.hidden_states(config, params, tokens, mask, adapters, remat=remat, unroll=unroll)
            return (backbone.pool(config, h, mask) ** 2).sum()

        return jax.jit(jax.grad(loss))(adapters)

    plain = grads(False, 1)
    for remat, unroll in ((True, 1), (False, True)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, grads(remat, unroll))


def _fresh(config):
    return lora.init(jax.random.key(1), backbone.linear_shapes(config), config.num_layers, 2)


def test_bfloat16_weights_give_bfloat16_states_near_the_exact_ones():
    params = params_of(LLAMA)
    tokens, mask = some_rows()
    half = hidden(LLAMA, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), tokens, mask, adapters=_fresh(LLAMA))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), hidden(LLAMA, params, tokens, mask), atol=0.1)
    assert backbone.pool(LLAMA, half, mask).dtype == jnp.float32


def test_pooling_takes_the_last_real_token_or_the_mean_of_the_real_ones():
    h = jnp.arange(24, dtype=jnp.float32).reshape(3, 4, 2)
    mask = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(backbone.pool(LLAMA, h, mask), [[2, 3], [14, 15], [20, 21]])
    np.testing.assert_array_equal(backbone.pool(BERT, h, mask), [[1, 2], [13, 14], [18, 19]])


def test_attention_is_the_textbook_formula_with_shared_key_heads():
    rng = np.random.default_rng(3)
    q, k, v = rng.normal(size=(2, 5, 6, 4)), rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(2, 5, 3, 4))
    allowed = rng.random((2, 1, 5, 5)) < 0.6
    allowed[..., 0] = True
    allowed[1, 0, 2] = False
    want = np.zeros((2, 5, 6, 4))
    for b in range(2):
        for n in range(6):
            for i in range(5):
                s = k[b, :, n // 2] @ q[b, i, n] / 2
                w = np.exp(s) * allowed[b, 0, i] if allowed[b, 0, i].any() else np.ones(5)
                want[b, i, n] = (w / w.sum()) @ v[b, :, n // 2]
    q, k, v = (jnp.asarray(t, jnp.float32) for t in (q, k, v))
    ours = layers.attention(q, k, v, jnp.asarray(allowed))
    np.testing.assert_allclose(ours, want.reshape(2, 5, 24), atol=1e-6)


def test_attention_survives_scores_that_overflow_exp():
    q = jnp.full((1, 3, 2, 4), 300.0)
    out = layers.attention(q, q, q, jnp.ones((1, 1, 3, 3), bool))
    np.testing.assert_allclose(out, 300.0, rtol=1e-6)


def test_mistakes_are_told_with_their_mend():
    tokens, mask = some_rows(length=13)
    params = params_of(BERT)
    with pytest.raises(UserError, match=r"13 tokens.*12 positions; cut"):
        backbone.hidden_states(BERT, params, tokens, mask)
    with pytest.raises(UserError, match=r"'nope'.*use some of.*q_proj"):
        backbone.hidden_states(BERT, params, tokens, mask, adapters={"nope": {}})
    with pytest.raises(UserError, match="no next-token head"):
        backbone.next_token_logits(BERT, params, jnp.zeros((1, 16)))
    with pytest.raises(UserError, match=r"(?s)2 faults.*hidden_size.*activation: 'swoosh' is unknown; use one of silu"):
        LMConfig(**{**vars(LLAMA), "hidden_size": 0, "activation": "swoosh"})
    with pytest.raises(UserError, match="3 does not divide 4 heads"):
        LMConfig(**{**vars(LLAMA), "num_kv_heads": 3})
