"""The forward pass: its parameter tree, padding, degenerate rows, pooling, memory options, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pref_jax.errors import UserError
from pref_jax.lm import attention, backbone, lora
from pref_jax.lm.config import LMConfig
from pref_jax.lm.config_parts import DeltaNet, Disentangled, Gemma4, RopeScaling
from pref_jax.lm.families import TRAITS

LLAMA = tiny.llama(vocab_size=31, num_layers=3)
BERT = tiny.bert(vocab_size=31, num_layers=3, max_positions=12)
GEMMA3 = tiny.llama(
    family="gemma3_text",
    vocab_size=31,
    num_layers=3,
    head_dim=6,
    sliding_layers=(True, True, False),
    window=3,
    local_rope_theta=20.0,
    num_labels=2,
    lm_head=False,
)
MODERNBERT = tiny.bert(family="modernbert", vocab_size=31, num_layers=3, max_positions=12, mlp_bias=False)
ALL = pytest.mark.parametrize(
    "config", [LLAMA, BERT, GEMMA3, MODERNBERT], ids=["llama", "bert", "gemma3", "modernbert"]
)


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
    assert paths(backbone.shapes(GEMMA3)) == {
        "blocks/attention_out_norm/scale": (3, 16),
        "blocks/down_proj/kernel": (3, 24, 16),
        "blocks/gate_proj/kernel": (3, 16, 24),
        "blocks/input_norm/scale": (3, 16),
        "blocks/k_norm/scale": (3, 6),
        "blocks/k_proj/kernel": (3, 16, 12),
        "blocks/mlp_norm/scale": (3, 16),
        "blocks/mlp_out_norm/scale": (3, 16),
        "blocks/o_proj/kernel": (3, 24, 16),
        "blocks/q_norm/scale": (3, 6),
        "blocks/q_proj/kernel": (3, 16, 24),
        "blocks/up_proj/kernel": (3, 16, 24),
        "blocks/v_proj/kernel": (3, 16, 12),
        "embed/embedding": (31, 16),
        "final_norm/scale": (16,),
        "score/kernel": (16, 2),
    }
    qwen = LMConfig(**{**vars(LLAMA), "family": "qwen2", "attention_bias": None})
    biases = {path for path in paths(backbone.shapes(qwen)) if path.endswith("bias")}
    assert biases == {f"blocks/{name}_proj/bias" for name in "qkv"}


@ALL
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


@ALL
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


@ALL
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


@ALL
def test_packed_texts_do_not_see_each_other_and_pool_apart(config):
    params = jax.tree.map(lambda p: p * 5, params_of(config))
    tokens, mask = some_rows(batch=3, length=3)
    alone = hidden(config, params, tokens, mask)
    # Three texts of three tokens in one row, with padding between two of them.
    row = jnp.concatenate([tokens[0], tokens[1], jnp.array([30, 30]), tokens[2]])[None]
    segments = jnp.array([[1] * 3 + [2] * 3 + [0] * 2 + [3] * 3], jnp.int32)
    together = hidden(config, params, row, segments)
    for number, where in enumerate((slice(0, 3), slice(3, 6), slice(8, 11))):
        np.testing.assert_allclose(together[0, where], alone[number], atol=2e-5)
    pooled = backbone.pool(config, together, segments, segments=4)
    np.testing.assert_allclose(pooled[0, :3], backbone.pool(config, alone, mask), atol=2e-5)
    np.testing.assert_array_equal(pooled[0, 3], 0)


def test_a_lower_layer_is_where_the_model_cut_there_ends():
    params = params_of(GEMMA3)
    tokens, mask = some_rows()
    adapters = jax.tree.map(lambda a: a + 0.1, _fresh(GEMMA3))
    whole = backbone.hidden_states(GEMMA3, params, tokens, mask, adapters)
    last = backbone.hidden_states(GEMMA3, params, tokens, mask, adapters, layer=3)
    np.testing.assert_array_equal(whole, last)
    short = LMConfig(**{**vars(GEMMA3), "num_layers": 2, "sliding_layers": (True, True)})
    cut, cut_adapters = jax.tree.map(lambda leaf: leaf[:2], (params["blocks"], adapters))
    want = backbone.hidden_states(short, {**params, "blocks": cut}, tokens, mask, cut_adapters)
    ours = backbone.hidden_states(GEMMA3, params, tokens, mask, adapters, layer=2)
    normed = ours / np.sqrt((np.asarray(ours) ** 2).mean(axis=-1, keepdims=True) + GEMMA3.norm_eps)
    np.testing.assert_allclose(normed * (1 + params["final_norm"]["scale"][None, None]), want, atol=1e-5)
    first = backbone.hidden_states(GEMMA3, params, tokens, mask, adapters, layer=0)
    np.testing.assert_allclose(first, params["embed"]["embedding"][tokens] * 4.0, atol=1e-6)


def test_scores_are_the_heads_product_in_float32():
    params = params_of(GEMMA3)
    pooled = jax.random.normal(jax.random.key(3), (5, 16))
    want = np.asarray(pooled, np.float64) @ np.asarray(params["score"]["kernel"], np.float64)
    np.testing.assert_allclose(backbone.scores(GEMMA3, params, pooled), want, atol=1e-6)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    assert backbone.scores(GEMMA3, half, pooled.astype(jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(UserError, match="no score head"):
        backbone.scores(LLAMA, params, pooled)


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

    plain = grads("none", 1)
    for remat, unroll in (("full", 1), ("dots", 1), ("none", True)):
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


@pytest.mark.parametrize("extra", [None, "sinks", "bias"])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_attention_is_the_textbook_formula_with_shared_key_heads(softcap, extra):
    rng = np.random.default_rng(3)
    sinks, bias = 2 * rng.normal(size=6), 2 * rng.normal(size=(2, 6, 5, 5))
    q, k, v = rng.normal(size=(2, 5, 6, 4)), rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(2, 5, 3, 4))
    allowed = rng.random((2, 1, 5, 5)) < 0.6
    allowed[..., 0] = True
    allowed[1, 0, 2] = False
    want = np.zeros((2, 5, 6, 4))
    for b in range(2):
        for n in range(6):
            for i in range(5):
                s = k[b, :, n // 2] @ q[b, i, n] * 0.3
                s = s if softcap is None else softcap * np.tanh(s / softcap)
                s = s + bias[b, n, i] if extra == "bias" else s
                w = np.exp(s) * allowed[b, 0, i] if allowed[b, 0, i].any() else np.ones(5)
                # Where a query may look nowhere, any finite vector will do.
                sink = np.exp(sinks[n]) if extra == "sinks" else 0
                want[b, i, n] = (w / (w.sum() + sink)) @ v[b, :, n // 2]
    q, k, v, sinks, bias = (jnp.asarray(t, jnp.float32) for t in (q, k, v, sinks, bias))
    more = {} if extra is None else {extra: sinks if extra == "sinks" else bias}
    ours = np.array(attention.attend(q, k, v, jnp.asarray(allowed), scale=0.3, softcap=softcap, **more))
    if extra is not None:
        assert np.isfinite(ours[1, 2]).all()
        ours[1, 2] = want[1, 2].reshape(24)
    np.testing.assert_allclose(ours, want.reshape(2, 5, 24), atol=1e-6)


def test_attention_survives_scores_that_overflow_exp():
    q = jnp.full((1, 3, 2, 4), 300.0)
    out = attention.attend(q, q, q, jnp.ones((1, 1, 3, 3), bool), scale=0.5)
    np.testing.assert_allclose(out, 300.0, rtol=1e-6)


def test_mistakes_are_told_with_their_mend():
    tokens, mask = some_rows(length=13)
    params = params_of(BERT)
    with pytest.raises(
        UserError, match=r"(?s)3 faults.*13 tokens.*12 positions; cut.*'some'.*none, full, dots.*0 to 3"
    ):
        backbone.hidden_states(BERT, params, tokens, mask, remat="some", layer=4)
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
    wrong = {"sliding_layers": (True, False), "num_labels": 1, "num_kv_heads": 4, "family": "modernbert"}
    with pytest.raises(UserError, match=r"(?s)2 faults.*sliding_layers.*window"):
        LMConfig(**{**vars(LLAMA), **wrong})


def brute_force_visible(segment, position, causal, window):
    batch, length = segment.shape
    allowed = np.zeros((batch, 1, length, length), bool)
    for b in range(batch):
        for i in range(length):
            for j in range(length):
                near = window is None or abs(position[b, i] - position[b, j]) < window
                ahead = position[b, j] > position[b, i]
                allowed[b, 0, i, j] = segment[b, j] > 0 and segment[b, i] == segment[b, j] and near
                allowed[b, 0, i, j] &= not (causal and ahead)
    return allowed


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_rows_and_visibility_are_those_of_a_loop(causal, window):
    segments = np.array(
        [
            [1, 1, 1, 1, 1, 1, 1, 1],
            [0, 0, 1, 1, 1, 1, 0, 0],
            [1, 1, 2, 2, 2, 3, 0, 0],
            [0, 1, 0, 1, 2, 0, 2, 2],
            [0, 0, 0, 0, 0, 0, 0, 0],
        ],
        np.int32,
    )
    positions = [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 0, 0, 1, 2, 3, 3, 3],
        [0, 1, 0, 1, 2, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 1, 2],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    rows = attention.rows(jnp.asarray(segments))
    np.testing.assert_array_equal(rows.segment, segments)
    np.testing.assert_array_equal(np.where(segments, rows.position, 0), np.where(segments, positions, 0))
    ours = attention.visible(rows, causal=causal, window=window)
    np.testing.assert_array_equal(ours, brute_force_visible(segments, np.asarray(rows.position), causal, window))


def test_a_mask_of_truths_is_one_text():
    mask = jnp.array([[1, 1, 0], [0, 1, 1]], bool)
    for ours, theirs in zip(attention.rows(mask), attention.rows(mask.astype(jnp.int32)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_jax_attention_gives_the_same_as_plain():
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 7, heads, 4)) for key, heads in zip(keys, (6, 3, 3), strict=True))
    allowed = attention.visible(attention.rows(jnp.array([[1] * 7, [1, 1, 2, 2, 2, 0, 0]], jnp.int32)), causal=True)
    theirs = jax.nn.dot_product_attention(q, k, v, mask=allowed, scale=0.4, implementation="xla").reshape(2, 7, -1)
    ours = attention.plain(q, k, v, allowed, scale=0.4)
    np.testing.assert_allclose(ours[:, :5], theirs[:, :5], atol=1e-5)


def test_flash_attention_is_lowered_for_nvidia_in_half_precision_with_its_gradient(monkeypatch):
    # Lowering for another platform needs no GPU, but JAX first asks which cuDNN is installed.
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    q, k = (jax.ShapeDtypeStruct((2, 64, heads, 64), jnp.bfloat16) for heads in (4, 2))
    allowed = jax.ShapeDtypeStruct((2, 1, 64, 64), bool)

    def loss(q, k, v, allowed):
        return attention.flash(q, k, v, allowed, scale=0.1).astype(jnp.float32).sum()

    found = jax.jit(jax.grad(loss)).trace(q, k, k, allowed).lower(lowering_platforms=("cuda",)).as_text()
    assert "fmhaScaleBiasSoftmaxBackward" in found
    half = jnp.zeros((1, 2, 1, 4), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="no soft-cap"):
        attention.flash(half, half, half, jnp.ones((1, 1, 2, 2), bool), scale=1.0, softcap=1.0)


def test_flash_attention_is_taken_where_cudnn_can_do_it_only(monkeypatch):
    taken = []
    monkeypatch.setattr(
        attention, "flash", lambda q, *rest, **more: taken.append(q.shape) or q.reshape(*q.shape[:2], -1)
    )

    def taken_for(length=4, features=8, dtype=jnp.bfloat16, softcap=None):
        taken.clear()
        q = jnp.zeros((1, length, 2, features), dtype)
        attention.attend(q, q, q, jnp.ones((1, 1, length, length), bool), scale=1.0, softcap=softcap)
        return bool(taken)

    assert not taken_for()
    monkeypatch.setattr(attention, "_platform", lambda: "cuda")
    assert taken_for()
    assert taken_for(features=128, dtype=jnp.float16)
    assert not any([taken_for(length=5), taken_for(features=12), taken_for(features=256)])
    assert not any([taken_for(dtype=jnp.float32), taken_for(softcap=50.0)])


def test_another_attention_can_be_handed_in():
    params, (tokens, mask) = params_of(LLAMA), some_rows()
    calls = []

    def own(q, k, v, allowed, *, scale, softcap=None):
        calls.append((scale, softcap))
        return attention.plain(q, k, v, allowed, scale=scale, softcap=softcap)

    ours = backbone.hidden_states(LLAMA, params, tokens, mask, attend=own)
    assert calls
    assert calls[0] == (4**-0.5, None)
    np.testing.assert_allclose(ours, backbone.hidden_states(LLAMA, params, tokens, mask), atol=1e-6)


def test_patterns_name_each_kind_of_layer_once():
    assert LLAMA.patterns == ((None, 10000.0, None),)
    assert LLAMA.layer_patterns == (0, 0, 0)
    assert GEMMA3.patterns == ((3, 20.0, None), (None, 10000.0, None))
    assert GEMMA3.layer_patterns == (0, 0, 1)
    stretched = LMConfig(**{**vars(GEMMA3), "rope_scaling": RopeScaling(kind="linear", factor=8.0)})
    assert [pattern.scaling for pattern in stretched.patterns] == [None, stretched.rope_scaling]
    plain = LMConfig(**{**vars(GEMMA3), "sliding_layers": (False,) * 3})
    assert plain.window is None
    assert plain == LMConfig(**{**vars(GEMMA3), "sliding_layers": (), "window": None})


@pytest.mark.slow
def test_every_family_makes_finite_states_and_gradients():
    tokens, mask = some_rows()
    for name in TRAITS:
        own = {
            "deberta": {"disentangled": Disentangled(max_distance=8)},
            "delta": {
                "delta": DeltaNet(key_heads=2, value_heads=4, key_dim=3, value_dim=5),
                "still_layers": (True, False, True),
            },
            "gemma4": {"gemma4": Gemma4(full_head_dim=8, full_kv_heads=2, per_layer=4)},
        }.get(TRAITS[name].kind, {})
        config = LMConfig(**{**vars(LLAMA), "family": name, "num_kv_heads": 4, "attention_bias": None, **own})
        params = params_of(config)
        adapters = _fresh(config)

        def loss(adapters, config=config, params=params):
            return (backbone.hidden_states(config, params, tokens, mask, adapters) ** 2).mean()

        value, grads = jax.jit(jax.value_and_grad(loss))(adapters)
        assert all(np.isfinite(leaf).all() for leaf in [value, *jax.tree.leaves(grads)]), name
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves({k: g["b"] for k, g in grads.items()})), name
