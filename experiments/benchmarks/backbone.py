"""The transformer at work: forward pass and training step of the reward model beside transformers and PEFT.

Axes: B rows (two a pair), L length.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import reference
from experiments.benchmarks.measure import Result, in_turns, result
from experiments.benchmarks.training import ENCODER, SMALL, Case, frozen_parts, trained_parts, training_step
from pref_jax.baselines import shared
from pref_jax.baselines.shared import SharedConfig
from pref_jax.lm import backbone, checkpoint, lora
from pref_jax.lm.lora import LoRAConfig
from pref_jax.lm.pairs import text_states
from pref_jax.train.state import OptimizerConfig

LORA = LoRAConfig(rank=8, alpha=16.0, dropout=0.0)
RECIPE = OptimizerConfig(lr=1e-3, num_steps=1_000_000, weight_decay=1e-3)
# The quickstart's decoder at its batch size, and an encoder.
CASES = (Case(SMALL, pairs=64, length=48), Case(ENCODER, pairs=16, length=128))


class _Side(NamedTuple):
    """One of the two that are compared: the texts' vectors, and functions that do the work once.

    `forward` gives the texts' rewards [B], `step` the loss of the step it takes.
    """

    vectors: np.ndarray
    forward: Callable[[], Any]
    step: Callable[[], Any]


def backbone_step(cases: tuple[Case, ...] = CASES, rounds: int = 10, each: int = 4) -> list[Result]:
    """Forward pass and training step of the reward model, plain LoRA: ours against transformers and PEFT on torch.

    Same weights, same batch, float32, all cores, both sides in turns. `extra` holds what our first call took beyond
    a usual one, both sides' GFLOP/s in matrix products (baseline first), and how far the sides differ, relative to
    the largest value: in the texts' vectors, and in the answers of the first two calls (rewards, or losses: the
    second one has the first update in it).

    Raises:
      UserError: if torch or PEFT is not installed.
    """
    return [row for case in cases for row in _compare(case, rounds, each)]


def _compare(case: Case, rounds: int, each: int) -> list[Result]:
    config, batch = SharedConfig(lm=case.lm, lora=LORA), case.batch()
    frozen, params = frozen_parts(config), trained_parts(config)
    tokens, mask = (
        np.concatenate([batch[f"{side}{part}"] for side in ("chosen", "rejected")]) for part in ("", "_mask")
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, case.lm, frozen["base"])
        theirs = _theirs(Path(folder), config, params, tokens, mask)
    ours = _ours(config, frozen, params, batch, tokens, mask)
    apart = _apart(theirs.vectors, ours.vectors)
    flops = _flops(config, *tokens.shape)
    results = []
    for kind in ("forward", "step"):
        runs = [getattr(theirs, kind), getattr(ours, kind)]
        firsts, answers = zip(*(_twice(run) for run in runs), strict=True)
        seconds = in_turns(runs, rounds=rounds, each=each)
        extra = {
            "compile_seconds": firsts[1] - seconds[1],
            "gflops": [flops[kind] / usual / 1e9 for usual in seconds],
            "vectors_apart": apart,
            "answers_apart": _apart(*answers),
            "real_tokens": float(mask.mean()),
        }
        results.append(result("backbone_step", f"{kind}, {case.size}", *seconds, **extra))
    return results


def _theirs(folder: Path, config: SharedConfig, params: Any, tokens: np.ndarray, mask: np.ndarray) -> _Side:
    alpha = config.lora.scale * config.lora.rank
    model = reference.load(folder, params, rank=config.lora.rank, alpha=alpha, pooling=config.lm.pooling)
    texts = reference.rows(tokens, mask)
    vectors = reference.pooled(model, texts).detach().numpy()
    step = reference.train_step(model, texts, rate=RECIPE.lr, decay=RECIPE.weight_decay)
    return _Side(vectors, reference.forward(model, texts), step)


def _ours(
    config: SharedConfig, frozen: Any, params: Any, batch: dict[str, np.ndarray], tokens: np.ndarray, mask: np.ndarray
) -> _Side:
    """As in training, but for the feed: the batch lies on the device, as the reference's."""
    texts = jax.device_put((tokens, mask), jax.devices()[0])
    rewards = functools.partial(shared.rewards, config)

    def forward() -> jax.Array:
        return jax.block_until_ready(rewards(params, frozen["base"], *texts))

    step = training_step(config, batch, frozen=frozen, recipe=RECIPE)
    return _Side(_vectors(config, params, frozen["base"], *texts), forward, step)


def _vectors(config: SharedConfig, params: Any, base: Any, tokens: jax.Array, mask: jax.Array) -> np.ndarray:
    """What the reward's head reads, for each text [B D]."""

    @jax.jit
    def vectors(params, base, tokens, mask):
        return text_states(config.lm, base, tokens, mask, params["adapters"], lora.adapter_fn(config.lora))

    return np.asarray(vectors(params, base, tokens, mask))


def _twice(run: Callable[[], Any]) -> tuple[float, np.ndarray]:
    """Seconds of the first of two calls, and both answers."""
    start = time.perf_counter()
    answer = np.asarray(run())
    return time.perf_counter() - start, np.stack([answer, np.asarray(run())])


def _apart(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(theirs - ours).max() / np.abs(theirs).max())


def _flops(config: SharedConfig, rows: int, length: int) -> dict[str, float]:
    """Floating-point operations in matrix products of a "forward" pass and of a training "step".

    Backwards, a frozen linear asks for as much as forwards (the gradient of its input); attention and LoRA, whose
    factors both have gradients, ask for twice as much.
    """
    lm, shapes = config.lm, backbone.linear_shapes(config.lm)
    passed = rows * length * lm.num_layers
    linears = 2 * sum(d * f for d, f in shapes.values()) * passed
    both = 2 * config.lora.rank * sum(sum(shapes[target]) for target in config.lora.targets) * passed
    both += 4 * length * lm.num_heads * lm.head_dim * passed
    return {"forward": linears + both, "step": 2 * linears + 3 * both}
