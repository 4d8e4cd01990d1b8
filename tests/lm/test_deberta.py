"""DeBERTa's attention by distance, one pair of tokens after another, and its rows of the table of distances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pref_jax.lm import attention, backbone, deberta, lora
from pref_jax.lm.config_parts import Disentangled


@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (0, 512), (6, 32), (32, 128), (4, 9)])
def test_rows_of_distances_are_those_of_transformers(buckets, longest):
    torch = pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    from transformers.models.deberta_v2 import modeling_deberta_v2 as theirs

    reach = longest + 9
    found = deberta.places(Disentangled(max_distance=longest, buckets=buckets), reach)
    rows = torch.zeros((1, reach, 1))
    span = buckets or longest
    distances = theirs.build_relative_position(rows, rows, bucket_size=buckets or -1, max_position=longest)[0]
    want = torch.clamp(distances + span, 0, 2 * span - 1).numpy()
    place = np.arange(reach)
    np.testing.assert_array_equal(found[place[:, None] - place[None] + reach - 1], want)


@pytest.mark.parametrize("scores", [("c2p", "p2c"), ("c2p",), ("p2c",)])
def test_scores_are_products_with_tokens_and_with_distances(scores):
    settings = Disentangled(max_distance=4, scores=scores)
    config = tiny.bert(family="deberta-v2", disentangled=settings, type_vocab_size=0, num_layers=1)
    params = jax.tree.map(lambda p: 8 * p, backbone.init(config, jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (1, 7), 0, 32, jnp.int32)
    seen = []

    def attend(q, k, v, allowed, *, scale, softcap=None, **more):
        bias = more["bias"]
        seen.append((q, k, scale, bias))
        return attention.plain(q, k, v, allowed, scale=scale, bias=bias)

    mask = jnp.ones((1, 7), bool)
    backbone.hidden_states(config, params, tokens, mask, attend=attend, unroll=True)
    with jax.disable_jit():
        seen.clear()
        backbone.hidden_states(config, params, tokens, mask, attend=attend)
    q, k, scale, bias = (np.asarray(t, np.float64) for t in seen[0])
    table = np.asarray(params["distances"]["embedding"], np.float64)
    block = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), params["blocks"])
    r, s = ((table @ block[name]["kernel"] + block[name]["bias"]).reshape(8, 4, 4) for name in ("k_proj", "q_proj"))
    assert scale == pytest.approx((4 * (1 + len(scores))) ** -0.5)
    for i in range(7):
        for j in range(7):
            place = min(max(i - j + 4, 0), 7)
            for n in range(4):
                want = q[0, i, n] @ r[place, n] if "c2p" in scores else 0.0
                want += k[0, j, n] @ s[place, n] if "p2c" in scores else 0.0
                assert bias[0, n, i, j] == pytest.approx(scale * want, abs=1e-4)


def test_adapters_bound_to_rows_act_on_distances_too():
    config = tiny.bert(family="deberta-v2", disentangled=Disentangled(max_distance=4), type_vocab_size=0)
    params = jax.tree.map(lambda p: 5 * p, backbone.init(config, jax.random.key(0)))
    shapes = {name: backbone.linear_shapes(config)[name] for name in ("q_proj", "k_proj")}
    trees = [lora.init(jax.random.key(seed), shapes, config.num_layers, 2) for seed in (1, 2)]
    trees = [jax.tree.map(lambda leaf: leaf + 0.2, tree) for tree in trees]
    tokens, mask = jax.random.randint(jax.random.key(1), (2, 7), 0, 32, jnp.int32), jnp.ones((2, 7), bool)
    run = functools.partial(backbone.hidden_states, config, params)

    def by_row(adapter, x):
        return jnp.einsum("bld,bdr,brf->blf", x, adapter["a"], adapter["b"])

    both = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *trees)
    ours = run(tokens, mask, both, by_row)
    for row in range(2):
        alone = run(tokens[row : row + 1], mask[:1], trees[row])
        np.testing.assert_allclose(ours[row], alone[0], atol=2e-5)
        merged = backbone.hidden_states(config, lora.merge(params, trees[row]), tokens[row : row + 1], mask[:1])
        np.testing.assert_allclose(merged, alone, atol=2e-5)
