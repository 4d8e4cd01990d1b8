"""CoPL's graph: training of user embeddings, and embeddings of unseen users."""

import time

import jax
import numpy as np

from copl_jax import graph, recipe
from copl_jax.adapt import adapt
from experiments.benchmarks.measure import Result, result, timed
from pref_jax.data.preferences import Pairs


def _two_camps(users: int, prompts: int, each: int, seed: int = 0) -> tuple[Pairs, Pairs, np.ndarray, int]:
    """Noise-free votes of two opposite camps on shared pairs: training, one validation vote a user, camps."""
    rng = np.random.default_rng(seed)
    camp = rng.integers(2, size=users)
    user = np.repeat(np.arange(users, dtype=np.int32), each)
    pair = rng.integers(prompts, size=len(user))
    swap = camp[user] == 1
    chosen = (2 * pair + swap).astype(np.int32)
    rejected = (2 * pair + ~swap).astype(np.int32)
    held = np.arange(len(user)) % each == each - 1
    unknown, row = np.full(len(user), -1, np.int8), np.arange(len(user))
    every = Pairs(user, chosen, rejected, unknown, row)
    split = [Pairs(*(column[mask] for column in every)) for mask in (~held, held)]
    return split[0], split[1], camp, 2 * prompts


def gcf_recipe(users: int = 1000, dim: int = 64, each: int = 8) -> list[Result]:
    """Time of the fast recipe against the reference recipe (minibatches, 100 epochs), by validation accuracy."""
    train, validation, _, responses = _two_camps(users, 2 * users, each)
    signed = graph.build(train.user, train.chosen, train.rejected, num_users=users, num_responses=responses)
    key = jax.random.key(0)
    slow_compile, slow, reference = timed(lambda: recipe.fit(recipe.reference(dim=dim), signed, train, validation, key))
    fast_compile, fast, ours = timed(lambda: recipe.fit(recipe.fast(dim=dim), signed, train, validation, key))
    return [
        result(
            "gcf_recipe",
            f"{users} users, {responses} responses, d={dim}, L=4",
            slow,
            fast,
            reference_accuracy=reference.best_accuracy,
            accuracy=ours.best_accuracy,
            first_call_seconds=[slow_compile, fast_compile],
        )
    ]


def adapt_unseen(seen: int = 2000, unseen: int = 2000, dim: int = 64, each: int = 8, sample: int = 50) -> list[Result]:
    """Unseen users by two hops: all in one call against a NumPy loop over users."""
    known, _, camp, responses = _two_camps(seen + unseen, 2 * seen, each)
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(2, dim))
    users = recipe.normalised(centre[camp] + 0.5 * rng.normal(size=(len(camp), dim))).astype(np.float32)
    table = rng.normal(size=(responses, dim)).astype(np.float32)
    is_seen = np.arange(len(camp)) < seen
    parts = [Pairs(*(column[mask] for column in known)) for mask in (is_seen[known.user], ~is_seen[known.user])]
    rows = np.flatnonzero(~is_seen)

    def ours():
        return adapt(users=users, responses=table, seen=is_seen, known=parts[0], context=parts[1], unseen=rows)

    first, seconds, found = timed(ours, repeats=3)
    start = time.perf_counter()
    worst = 0.0
    for i, user in enumerate(rows[:sample]):
        worst = max(
            worst, float(np.abs(_adapt_one(users, table, parts[0], parts[1], user) - found.embeddings[i]).max())
        )
    loop = (time.perf_counter() - start) * len(rows) / sample
    return [
        result(
            "adapt",
            f"{unseen} unseen, {seen} seen users, d={dim}",
            loop,
            seconds,
            largest_difference=worst,
            baseline_users_measured=sample,
            first_call_seconds=first,
        )
    ]


def _adapt_one(users: np.ndarray, table: np.ndarray, known: Pairs, context: Pairs, user: int) -> np.ndarray:
    """DESIGN 4.3 for one user, literally."""
    mine = context.user == user
    near = np.unique(known.user[np.isin(known.chosen, context.chosen[mine])])
    if not len(near):
        near = np.unique(known.user)
    margins = users[near] @ (table[context.chosen[mine]] - table[context.rejected[mine]]).T
    score = -np.logaddexp(0, -margins).mean(axis=1) / 0.07
    weight = np.exp(score - score.max())
    return (weight / weight.sum()) @ users[near]
