"""How far our numbers are from transformers' own: measured here for tests and for the table in docs/checkpoints.md.

Run `python tests/lm/parity.py` (needs the extra `parity`) to write `results/parity.json` and `results/parity.md` again.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
from make_goldens import Head

from pref_jax.lm import backbone, checkpoint

RESULTS = Path(__file__).parents[2] / "results"
# What is asked of float32 and bfloat16.
EXACT, HALF = 1e-5, 2e-2
SEEDS = (77, 78, 79)
NAMES = {
    "llama_tied": "Llama",
    "llama_untied": "Llama 3 rope, biases",
    "llama_linear": "Llama, linear rope",
    "mistral": "Mistral, sliding window",
    "qwen2": "Qwen 2.5, sliding layers",
    "qwen2_full": "Qwen 2.5",
    "qwen3": "Qwen 3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3, linear rope",
    "gemma3_both_ways": "Gemma 3 looking both ways (EmbeddingGemma)",
    "gemma4": "Gemma 4, per-layer embeddings, shared keys",
    "gemma4_dense": "Gemma 4, keys as values",
    "gemma4_both_ways": "Gemma 4 looking both ways",
    "ministral": "Ministral",
    "ministral3": "Ministral 3",
    "smollm3": "SmolLM3",
    "smollm3_sliding": "SmolLM3, sliding layers",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3, yarn",
    "phi3": "Phi 3, sliding window",
    "phi4_mini": "Phi 4 mini, longrope on part of a head",
    "granite": "Granite",
    "qwen3_moe": "Qwen 3 MoE",
    "qwen3_5": "Qwen 3.5, delta nets",
    "gpt_oss": "gpt-oss",
    "bert": "BERT",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-R",
    "deberta_v3": "DeBERTa v3",
    "deberta_v2": "DeBERTa v2, one of two scores",
    "modernbert": "ModernBERT",
}
# Texts, seen by us together in packed rows and by transformers alone, padded.
CAPACITY = 30

hidden_states = jax.jit(backbone.hidden_states, static_argnums=0)


def relative_error(ours: Any, theirs: Any, mask: Any = ...) -> float:
    """Largest difference (over real tokens, given their mask), in units of the largest value."""
    ours, theirs = np.asarray(ours, np.float64)[mask], np.asarray(theirs, np.float64)[mask]
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def errors(config: Any, params: Any, tokens: np.ndarray, mask: np.ndarray, want: dict) -> dict[str, float]:
    """Relative errors of hidden states, padded and packed, and of the model's head, padded and packed."""
    hidden = hidden_states(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    found = {"hidden": relative_error(_trunk(config, params, tokens, mask, hidden), want["hidden"], mask)}
    if "logits" in want:
        logits = backbone.next_token_logits(config, params, hidden)
        found["head"] = relative_error(logits, want["logits"], mask)
    if "reward" in want:
        pooled = backbone.pool(config, hidden, jnp.asarray(mask))
        found["head"] = relative_error(backbone.scores(config, params, pooled), want["reward"])
    rows, segments, places = make_goldens.packed(tokens, mask, capacity=CAPACITY)
    states = hidden_states(config, params, jnp.asarray(rows), jnp.asarray(segments))
    bare = _trunk(config, params, rows, segments, states)
    ours = np.concatenate([np.asarray(bare)[row, where] for row, where, _ in places])
    found["packed"] = relative_error(ours, np.concatenate([h[m] for h, m in zip(want["hidden"], mask, strict=True)]))
    if "reward" in want:
        most = int(segments.max())
        pooled = backbone.pool(config, states, jnp.asarray(segments), segments=most)
        scores = np.asarray(backbone.scores(config, params, pooled))
        ours = np.stack([scores[row, number - 1] for row, _, number in places])
        found["packed head"] = relative_error(ours, want["reward"])
    return found


def _trunk(config: Any, params: Any, tokens: np.ndarray, mask: np.ndarray, hidden: Any) -> Any:
    """Hidden states as transformers counts them: without the dense layer of an encoder's head."""
    if not config.dense_head:
        return hidden
    bare = dataclasses.replace(config, pooling="last")
    return hidden_states(bare, params, jnp.asarray(tokens), jnp.asarray(mask))


def measure(case: str, head: Head, seed: int) -> dict[str, float]:
    """Float32 errors on fresh random weights, saved by transformers and read by us."""
    found = make_goldens.model(case, head, seed)
    tokens, mask = make_goldens.rows(seed + 1, length=23)
    with tempfile.TemporaryDirectory() as folder:
        found.save_pretrained(folder)
        config, params = checkpoint.load(folder)
    return errors(config, params, tokens, mask, make_goldens.outputs(found, tokens, mask))


def measure_half(case: str, seed: int) -> dict[str, float]:
    """Errors of bfloat16, ours and transformers' own.

    Both compute with the same rounded weights; the reference is transformers in float32 with them.
    """
    import torch

    found = make_goldens.model(case, make_goldens.heads(case)[0], seed, loud=False)
    tokens, mask = make_goldens.rows(seed + 1, length=23)
    with tempfile.TemporaryDirectory() as folder:
        found.save_pretrained(folder)
        config, params = checkpoint.load(folder, jnp.bfloat16)
    theirs = make_goldens.outputs(found.to(torch.bfloat16), tokens, mask)["hidden"]
    want = make_goldens.outputs(found.float(), tokens, mask)["hidden"]
    ours = hidden_states(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    return {"bfloat16": relative_error(ours, want, mask), "torch bfloat16": relative_error(theirs, want, mask)}


def worst(case: str) -> dict[str, float]:
    """The largest of each error over heads and seeds."""
    each = [measure(case, head, seed) for head in make_goldens.heads(case) for seed in SEEDS]
    each += [measure_half(case, seed) for seed in SEEDS]
    return {name: max(one.get(name, 0.0) for one in each) for name in dict.fromkeys(key for one in each for key in one)}


def table(results: dict[str, dict[str, float]]) -> str:
    """The Markdown table of docs/checkpoints.md."""
    columns = ("hidden", "head", "packed", "packed head", "bfloat16", "torch bfloat16")
    lines = ["| family | hidden states | logits, reward | packed | packed reward | bfloat16 | transformers' bfloat16 |"]
    lines.append("|---|" + "---:|" * len(columns))
    for case, found in results.items():
        cells = [f"{found[name]:.0e}" if name in found else "" for name in columns]
        lines.append(f"| {NAMES[case]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """What was compared with what."""
    import torch
    import transformers

    return {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def main() -> None:
    """Measures every case, or those named behind, and writes the results after each."""
    jax.config.update("jax_default_matmul_precision", "highest")
    told = RESULTS / "parity.json"
    found = json.loads(told.read_text())["max relative error"] if sys.argv[1:] else {}
    for case in sys.argv[1:] or make_goldens.CASES:
        found[case] = worst(case)
        results = {case: found[case] for case in make_goldens.CASES if case in found}
        facts = {"versions": versions(), "seeds": SEEDS, "max relative error": results}
        told.write_text(json.dumps(facts, indent=2) + "\n")
        (RESULTS / "parity.md").write_text(table(results))
    print((RESULTS / "parity.md").read_text())


if __name__ == "__main__":
    main()
