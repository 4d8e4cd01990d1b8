"""CoPL's embeddings of unseen users."""

import time
from typing import NamedTuple

import numpy as np

from copl_jax.graph import training
from copl_jax.graph.cold_start import cold_start
from experiments.benchmarks.measure import Result, in_new_process, peak_bytes, result, timed
from experiments.benchmarks.votes import VotesConfig, draw
from pref_jax.comparisons import Comparisons


def adapt_unseen(sizes: tuple[int, ...] = (2_500, 5_000, 10_000), dim: int = 64, sample: int = 50) -> list[Result]:
    """As many unseen users as seen ones by two hops: all in one call against a NumPy loop over users.

    `extra`: the largest difference between the two, the seconds of the first call (compilation included), and the
    memory that the first call adds to a process of its own at the highest, over the number of pairs.
    """
    return [_one_size(count, dim, sample) for count in sizes]


class _Example(NamedTuple):
    """The arguments of `cold_start`."""

    users: np.ndarray
    responses: np.ndarray
    seen: np.ndarray
    train_pairs: Comparisons
    context: Comparisons
    unseen: np.ndarray


def _example(count: int, dim: int) -> _Example:
    votes = draw(VotesConfig(users=2 * count, prompts=2 * count, each=8, tests=0))
    pairs = votes.train
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(2, dim))
    users = training.normalised(centre[votes.camp] + 0.5 * rng.normal(size=(2 * count, dim))).astype(np.float32)
    table = rng.normal(size=(votes.num_responses, dim)).astype(np.float32)
    is_seen = np.arange(2 * count) < count
    train_pairs, context = (pairs.take(mask) for mask in (is_seen[pairs.user], ~is_seen[pairs.user]))
    return _Example(users, table, is_seen, train_pairs, context, np.flatnonzero(~is_seen))


def _memory_of_a_call(count: int, dim: int) -> dict[str, float]:
    example = _example(count, dim)
    return {"bytes": float(peak_bytes(lambda: cold_start(**example._asdict()))), "pairs": float(7 * 2 * count)}


def _one_size(count: int, dim: int, sample: int) -> Result:
    example = _example(count, dim)
    told = in_new_process(__name__, "_memory_of_a_call", count, dim)
    first, seconds, found = timed(lambda: cold_start(**example._asdict()), repeats=3)
    start = time.perf_counter()
    apart = [
        float(np.abs(_adapt_one(example, user) - found.embeddings[i]).max())
        for i, user in enumerate(example.unseen[:sample])
    ]
    loop = (time.perf_counter() - start) * count / sample
    facts = {"largest_difference": max(apart), "baseline_users_measured": sample, "first_call_seconds": first}
    facts |= {"neighbours_of_a_user": float(found.num_neighbours.mean()), "bytes_a_pair": told["bytes"] / told["pairs"]}
    return result("adapt", f"{count} unseen, {count} seen users, d={dim}", loop, seconds, **facts)


def _adapt_one(example: _Example, user: int) -> np.ndarray:
    """CoPL's embedding of one unseen user (arXiv 2503.01658), written as in the paper."""
    users, table, _, known, context, _ = example
    mine = context.user == user
    near = np.unique(known.user[np.isin(known.chosen, context.chosen[mine])])
    if not len(near):
        near = np.unique(known.user)
    margins = users[near] @ (table[context.chosen[mine]] - table[context.rejected[mine]]).T
    score = -np.logaddexp(0, -margins).mean(axis=1) / 0.07
    weight = np.exp(score - score.max())
    return (weight / weight.sum()) @ users[near]
