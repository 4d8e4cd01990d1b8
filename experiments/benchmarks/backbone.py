"""The transformer at work: forward pass and training step of the reward model beside transformers and PEFT.

Axes: B rows (two a pair), L length.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from copl_jax.reward import lora_experts, reward_model
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from experiments.benchmarks import reference
from experiments.benchmarks.measure import Result, in_turns, result
from pref_jax.lm import backbone, checkpoint, sharding_rules
from pref_jax.mesh import make_mesh, put_batch, replicated, tree_shardings
from pref_jax.train.loop import jit_step
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

LORA = ExpertsConfig(num_experts=0, rank=8, alpha=16.0, dropout=0.0)
RATE, DECAY = 1e-3, 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One size.

    Attributes:
      shape: the fields of `config.json`.
      pairs: pairs of texts in a batch, so B = 2 pairs.
      length: L, tokens a text.
    """

    shape: Mapping[str, Any]
    pairs: int
    length: int


# The decoder of the quickstart at its batch size, and an encoder of the size of all-MiniLM-L6.
CASES = (
    Case(
        shape={
            "model_type": "llama",
            "vocab_size": 2048,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
        pairs=64,
        length=48,
    ),
    Case(
        shape={
            "model_type": "bert",
            "vocab_size": 30522,
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "max_position_embeddings": 512,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        pairs=16,
        length=128,
    ),
)


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
    tokens, mask = _texts(case)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_random(Path(folder), case.shape)
        lm, base = checkpoint.load(folder)
        config = RewardConfig(lm=lm, routing="none", mixture=LORA)
        params = _params(config)
        theirs = _theirs(Path(folder), config, params, tokens, mask)
        ours = _ours(config, base, params, tokens, mask)
    size = f"{lm.family} d={lm.hidden_size}, {2 * case.pairs} x {case.length} tokens"
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
        results.append(result("backbone_step", f"{kind}, {size}", *seconds, **extra))
    return results


def _texts(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [B L] and mask bool [B L]; lengths from half of L to L, padded on the right as our batches are."""
    rng = np.random.default_rng(0)
    shape = (2 * case.pairs, case.length)
    lengths = rng.integers(case.length // 2, case.length + 1, size=(shape[0], 1))
    return rng.integers(case.shape["vocab_size"], size=shape, dtype=np.int32), np.arange(case.length) < lengths


def _params(config: RewardConfig) -> dict[str, Any]:
    """Fresh trainable parameters, but LoRA's second factors are not zero: else nobody would see a wrong first one."""
    params = reward_model.init(config, jax.random.key(0))
    for target, own in params["experts"].items():
        shape = own["shared"]["b"].shape
        own["shared"]["b"] = 0.02 * jax.random.normal(jax.random.key(len(target)), shape)
    return params


def _theirs(folder: Path, config: RewardConfig, params: Any, tokens: np.ndarray, mask: np.ndarray) -> _Side:
    alpha = config.mixture.scale * config.mixture.rank
    model = reference.load(folder, params, rank=config.mixture.rank, alpha=alpha, pooling=config.lm.pooling)
    texts = reference.rows(tokens, mask)
    vectors = reference.pooled(model, texts).detach().numpy()
    step = reference.train_step(model, texts, rate=RATE, decay=DECAY)
    return _Side(vectors, reference.forward(model, texts), step)


def _ours(config: RewardConfig, base: Any, params: Any, tokens: np.ndarray, mask: np.ndarray) -> _Side:
    """The road of `experiments.reward_model`, but for the feed: the batch lies on the device, as the reference's."""
    mesh = make_mesh(devices=jax.devices()[:1])
    frozen = {"base": jax.device_put(base, tree_shardings(mesh, sharding_rules.specs(base, mesh)))}
    params = jax.device_put(params, replicated(mesh))
    transform = optimizer(OptimizerConfig(lr=RATE, num_steps=1_000_000, weight_decay=DECAY))
    # The steps take the memory of the state they are given; the forward passes keep their own.
    state = init_state(jax.tree.map(jnp.copy, params), transform, seed=0)
    compiled = jit_step(make_step(reward_model.make_loss(config), transform), state, frozen, mesh)
    texts = put_batch((tokens, mask), mesh)
    (chosen, rejected), (chosen_mask, rejected_mask) = (np.split(array, 2) for array in (tokens, mask))
    batch = put_batch(
        {
            "user": np.zeros(len(chosen), np.int32),
            "chosen": chosen,
            "chosen_mask": chosen_mask,
            "rejected": rejected,
            "rejected_mask": rejected_mask,
        },
        mesh,
    )
    rewards = jax.jit(functools.partial(reward_model.rewards, config))

    def forward() -> jax.Array:
        return jax.block_until_ready(rewards(params, frozen["base"], *texts))

    def step() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        return jax.block_until_ready((metrics["loss"], state))[0]

    return _Side(_vectors(config, params, frozen["base"], *texts), forward, step)


def _vectors(config: RewardConfig, params: Any, base: Any, tokens: jax.Array, mask: jax.Array) -> np.ndarray:
    """What the reward's head reads, for each text [B D]."""

    @jax.jit
    def vectors(params, base, tokens, mask):
        adapters = lora_experts.make_adapters(params["experts"])
        hidden = backbone.hidden_states(
            config.lm, base, tokens, mask, adapters, lora_experts.adapter_fn(config.mixture)
        )
        return backbone.pool(config.lm, hidden, mask)

    return np.asarray(vectors(params, base, tokens, mask))


def _twice(run: Callable[[], Any]) -> tuple[float, np.ndarray]:
    """Seconds of the first of two calls, and both answers."""
    start = time.perf_counter()
    answer = np.asarray(run())
    return time.perf_counter() - start, np.stack([answer, np.asarray(run())])


def _apart(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(theirs - ours).max() / np.abs(theirs).max())


def _flops(config: RewardConfig, rows: int, length: int) -> dict[str, float]:
    """Floating-point operations in matrix products of a "forward" pass and of a training "step".

    Backwards, a frozen linear asks for as much as forwards (the gradient of its input); attention and LoRA, whose
    factors both have gradients, ask for twice as much.
    """
    lm, shapes = config.lm, backbone.linear_shapes(config.lm)
    passed = rows * length * lm.num_layers
    linears = 2 * sum(d * f for d, f in shapes.values()) * passed
    both = 2 * config.mixture.rank * sum(sum(shapes[target]) for target in config.mixture.targets) * passed
    both += 4 * length * lm.num_heads * lm.head_dim * passed
    return {"forward": linears + both, "step": 2 * linears + 3 * both}
