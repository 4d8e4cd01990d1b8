"""Texts that begin alike, in one row: who sees whom there, and that each text is read as if it stood alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.lm import attention, backbone
from pref_jax.lm.attention import Rows

WINDOW = {"sliding_layers": (True, False), "window": 3}
CONFIGS = {
    "llama": tiny.llama(),
    "mistral": tiny.llama(family="mistral", sliding_layers=(True, True), window=3),
    "qwen3": tiny.llama(family="qwen3", head_dim=6),
    "gemma": tiny.llama(family="gemma", activation="gelu_pytorch_tanh"),
    "gemma2": tiny.llama(family="gemma2", attention_softcap=5.0, **WINDOW),
    "gemma3": tiny.llama(family="gemma3_text", local_rope_theta=20.0, **WINDOW),
}
# Tokens of the trunk and of up to three branches.
SIZES = st.tuples(st.integers(0, 6), *[st.integers(0, 4)] * 3)
LENGTH = 20


def parts_of(sizes, left=0):
    """A row int32 [LENGTH]: padding, trunk, branches, padding."""
    parts = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)
    return np.pad(parts, (left, LENGTH - left - len(parts)))


def slow_rows(sizes, left):
    """The texts that each token stands in, and its place in them, by a loop over the tokens in their order."""
    owners = [frozenset()] * LENGTH
    places = [0] * LENGTH
    texts = frozenset(range(1, len(sizes)))
    seen = dict.fromkeys(texts, 0)
    column = left
    for part, size in enumerate(sizes):
        for _ in range(size):
            owners[column] = texts if part == 0 else frozenset([part])
            places[column] = max(seen[text] for text in owners[column])
            for text in owners[column]:
                seen[text] += 1
            column += 1
    return owners, places


@given(SIZES, st.integers(0, 2), st.booleans(), st.sampled_from([None, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_branches_see_the_trunk_and_themselves(sizes, left, causal, window):
    owners, places = slow_rows(sizes, left)
    rows = attention.branches(jnp.asarray(parts_of(sizes, left))[None])
    real = np.array([bool(owner) for owner in owners])
    np.testing.assert_array_equal(np.asarray(rows.position)[0][real], np.array(places)[real])
    expected = np.zeros((LENGTH, LENGTH), bool)
    for i in range(LENGTH):
        for j in range(LENGTH):
            # A query sees a key if all texts that the query stands in hold the key as well.
            distance = places[i] - places[j]
            fine = owners[i] <= owners[j] and owners[i] and (distance >= 0 or not causal)
            expected[i, j] = fine and (window is None or abs(distance) < window)
    found = np.asarray(attention.visible(rows, causal=causal, window=window))[0, 0]
    np.testing.assert_array_equal(found[real], expected[real])
    texts = np.asarray(attention.texts(rows, 3))[0]
    np.testing.assert_array_equal(texts, [[text in owner for owner in owners] for text in (1, 2, 3)])


def test_packed_rows_are_what_they_were():
    mask = jnp.array([[1, 1, 2, 2, 2, 3, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]], jnp.int32)
    rows = attention.rows(mask)
    assert rows.branch is None
    assert attention.rows(rows) is rows
    for of in (mask, rows):
        np.testing.assert_array_equal(attention.texts(of, 3), np.asarray(mask)[:, None] == np.arange(1, 4)[:, None])
    # Rows that say no more than their mask are read as the mask is.
    config, params = CONFIGS["llama"], params_of("llama")
    tokens = jax.random.randint(jax.random.key(2), mask.shape, 0, 32, jnp.int32)
    by_mask, by_rows = (hidden(config, params, tokens, of) for of in (mask, rows))
    np.testing.assert_array_equal(by_mask, by_rows)
    for segments in (None, 3):
        pooled = backbone.pool(config, by_mask, rows, segments)
        np.testing.assert_array_equal(pooled, backbone.pool(config, by_mask, mask, segments))


@functools.cache
def params_of(name):
    """Parameters far from zero, so that attention is no mere mean."""
    params = jax.jit(backbone.init, static_argnums=0)(CONFIGS[name], jax.random.key(0))
    return jax.tree.map(lambda p: p * 8 if p.ndim > 2 else p, params)


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, tokens, mask: jax.Array | Rows):
    return backbone.hidden_states(config, params, tokens, mask)


def laid_out(seed, left=0):
    """Sixteen rows of random sizes (some parts are missing), and their texts alone [B S L], padded on the right."""
    rng = np.random.default_rng(seed)
    sizes = [tuple(rng.integers(0, [7, 5, 5, 5])) for _ in range(14)] + [(6, 0, 0, 0), (0, 1, 1, 1)]
    parts = np.stack([parts_of(one, left) for one in sizes])
    tokens = rng.integers(0, 32, parts.shape).astype(np.int32)
    alone, mask = np.zeros((16, 3, LENGTH), np.int32), np.zeros((16, 3, LENGTH), bool)
    for row in range(16):
        for text in range(3):
            own = tokens[row][(parts[row] == 1) | (parts[row] == text + 2)]
            alone[row, text, : len(own)], mask[row, text, : len(own)] = own, True
    return jnp.asarray(tokens), attention.branches(jnp.asarray(parts)), jnp.asarray(alone), jnp.asarray(mask)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("left", [0, 2])
def test_every_token_is_read_as_in_its_text_alone(name, left):
    config, params = CONFIGS[name], params_of(name)
    tokens, rows, alone, mask = laid_out(seed=len(name), left=left)
    together = np.asarray(hidden(config, params, tokens, rows))
    apart = np.asarray(hidden(config, params, alone.reshape(48, -1), mask.reshape(48, -1))).reshape(16, 3, LENGTH, -1)
    texts = np.asarray(attention.texts(rows, 3))
    for row in range(16):
        for text in range(3):
            ours, theirs = together[row][texts[row, text]], apart[row, text][np.asarray(mask)[row, text]]
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooling_takes_the_trunk_with_each_branch(pooling):
    config = tiny.llama(pooling=pooling)
    _, rows, _, mask = laid_out(seed=3)
    rng = np.random.default_rng(0)
    together = rng.normal(size=(16, LENGTH, 5)).astype(np.float32)
    found = np.asarray(backbone.pool(config, jnp.asarray(together), rows, 3))
    assert found.shape == (16, 3, 5)
    for row in range(16):
        for text in range(3):
            own = together[row][np.asarray(attention.texts(rows, 3))[row, text]]
            assert len(own) == mask[row, text].sum()
            expected = np.zeros(5) if not len(own) else own[-1] if pooling == "last" else own.mean(axis=0)
            np.testing.assert_allclose(found[row, text], expected, atol=1e-6)


def test_a_row_may_be_longer_than_any_text_may():
    config = tiny.llama(max_positions=8)
    params = params_of("llama")
    tokens = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    rows = attention.branches(jnp.asarray(parts_of((4, 4, 4, 4)))[None])
    np.testing.assert_allclose(
        hidden(config, params, tokens, rows)[0, 12:16],
        hidden(config, params, jnp.concatenate([tokens[:, :4], tokens[:, 12:16]], axis=1), jnp.ones((1, 8), bool))[
            0, 4:
        ],
        atol=1e-5,
    )
