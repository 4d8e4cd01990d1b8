"""Pairs that share a row: CoPL's training step beside the same step with a row for each text.

Axes: B pairs, P pairs of a run.
"""

import functools
from typing import Any

import jax
import numpy as np

from copl_jax.reward import reward_model
from copl_jax.reward.reward_model import RewardConfig
from experiments.benchmarks.measure import Result, in_turns, result
from experiments.benchmarks.training import LARGER, SMALL, USERS, Case, frozen_parts, trained_parts, training_step
from pref_jax.comparisons import Comparisons
from pref_jax.data.text.shared_prefix import shared_lengths
from pref_jax.data.text.token_table import TokenTable
from pref_jax.lm.pair_batches import text_batches

# Of the tokens of a shared row; the first makes 60 % of the tokens of two separate rows.
SHARES = (3 / 7, 0.6, 0.7, 0.8)


# The decoder at the quickstart's batch size; L is of the longest pair, its prompt counted once, the shortest has half.
CASES = (Case(SMALL, pairs=64, length=64), Case(LARGER, pairs=16, length=160))


def prefix_pairs(
    cases: tuple[Case, ...] = CASES,
    shares: tuple[float, ...] = SHARES,
    rounds: int = 6,
    each: int = 3,
    size: int = 2000,
) -> list[Result]:
    """CoPL's training step (8 experts, dropout, AdamW) on pairs in one row, against a row for each text.

    A share is that of the prompt in the pair's shared row, P / (P + C + R). All rows are padded to the longest of a
    run of `size` pairs, as in training, and both sides take turns. `extra` holds the prompt's share in separate rows,
    2 P / (2 P + C + R); the tokens of a batch in both layouts (separate rows first), and padded ones; the ratio that
    real tokens alone would give, and padded ones; and how far the rewards differ, relative to the largest.
    """
    return [_compare(case, share, rounds, each, size) for case in cases for share in shares]


def _compare(case: Case, share: float, rounds: int, each: int, size: int) -> Result:
    table, pairs = _texts(case, share, size)
    length = int(table.lengths.max())
    shared = int(shared_lengths(table, pairs.chosen, pairs.rejected).max())
    batches: list[Any] = [
        text_batches(pairs, table, length, shared=layout, batch_size=case.pairs, num_steps=1, seed=0)[0]
        for layout in (None, shared)
    ]
    config = RewardConfig(lm=case.lm)
    params, frozen = trained_parts(config), frozen_parts(config)
    rewards = jax.jit(functools.partial(reward_model.pair_rewards, config))
    apart, together = (
        np.asarray(rewards(params, frozen["base"], batch, frozen["users"][batch["user"]])) for batch in batches
    )
    runs = [training_step(config, batch) for batch in batches]
    for run in runs:
        run()
    seconds = in_turns(runs, rounds=rounds, each=each)
    separate, parts = batches[0], batches[1]["parts"]
    real = [int(separate["chosen_mask"].sum() + separate["rejected_mask"].sum()), int((parts > 0).sum())]
    padded = [2 * case.pairs * length, case.pairs * shared]
    facts: dict[str, Any] = {
        "share_of_separate": 2 * int((parts == 1).sum()) / real[0],
        "tokens": real,
        "padded_tokens": padded,
        "ratio_of_tokens": real[0] / real[1],
        "ratio_of_padded_tokens": padded[0] / padded[1],
        "largest_difference": float(np.abs(apart - together).max() / np.abs(apart).max()),
    }
    label = f"prompt {share:.0%}, d={case.lm.hidden_size}, {case.pairs} pairs x {shared} tokens"
    return result("prefix_pairs", label, *seconds, **facts)


def _texts(case: Case, share: float, size: int) -> tuple[TokenTable, Comparisons]:
    """Random pairs whose prompt is `share` of the tokens of both in one row; answers of different lengths."""
    rng = np.random.default_rng(0)
    whole = rng.integers(case.length // 2, case.length + 1, size)
    answers = np.maximum(2, np.round((1 - share) * whole)).astype(int)
    chosen = np.clip(np.round(rng.uniform(0.3, 0.7, size) * answers), 1, answers - 1).astype(int)
    texts = []
    for prompt, first, second in zip(whole - answers, chosen, answers - chosen, strict=True):
        begin = rng.integers(2, case.lm.vocab_size, prompt)
        # The first token of an answer tells the two apart, so that nothing of them is shared by chance.
        for mark, rest in ((0, first), (1, second)):
            texts.append(np.concatenate([begin, [mark], rng.integers(2, case.lm.vocab_size, rest - 1)]))
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    table = TokenTable(np.concatenate(texts).astype(np.int32), offsets.astype(np.int64), 0)
    first = 2 * np.arange(size, dtype=np.int32)
    return table, Comparisons(rng.integers(0, USERS, size).astype(np.int32), first, first + 1)
