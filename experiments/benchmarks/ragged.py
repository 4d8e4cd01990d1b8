"""LoRe's joint fit on ragged votes: time and memory against the number of votes, however unevenly users vote.

In rows of times `baseline_seconds` are those of the same number of votes spread evenly, of the smallest size times the
votes: a ratio of 1 is linear.
"""

import time
from typing import Any

import numpy as np

from experiments.benchmarks.measure import Result, in_new_process, result, timed
from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.comparisons import Comparisons

EACH, FEATURES, RESPONSES = 20, 32, 2000
# Of the Pareto distribution of users' votes: the busiest have thousands, as in public corpora.
TAIL = 1.1


def config(steps: int) -> LoReConfig:
    """One candidate of rank 2 and a fixed number of steps, so that sizes differ in their votes alone."""
    alone: dict[str, Any] = {"ranks": (2,), "components": (), "variances": (1.0,), "shared_variances": (1.0,)}
    return LoReConfig.quick(**alone, steps=steps, tolerance=0.0, refit=False)


def counts_of(votes: int, kind: str) -> np.ndarray:
    """Votes of each user, `EACH` on average: "even", or "heavy": a Pareto tail."""
    users = max(votes // EACH, 2)
    if kind == "even":
        return np.full(users, votes // users)
    share = 0.2 + np.random.default_rng(0).pareto(TAIL, users)
    return np.maximum((share / share.sum() * votes).astype(int), 1)


def world(counts: np.ndarray, seed: int = 0) -> tuple[np.ndarray, Comparisons, Comparisons]:
    """Features, and votes of users with tastes in two directions, a tenth of them for validation."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((RESPONSES, FEATURES), np.float32)
    rewards = features @ rng.standard_normal((FEATURES, 3), np.float32)
    tastes = rng.standard_normal((len(counts), 3), np.float32)
    user = np.repeat(np.arange(len(counts)), counts)
    one = rng.integers(0, RESPONSES, len(user))
    other = (one + rng.integers(1, RESPONSES, len(user))) % RESPONSES
    first = np.einsum("pk,pk->p", rewards[one] - rewards[other], tastes[user]) + rng.logistic(size=len(user)) > 0
    votes = Comparisons(user, np.where(first, one, other), np.where(first, other, one))
    held = rng.random(len(user)) < 0.1
    return features, votes.take(~held), votes.take(held)


def _fit(counts: np.ndarray, steps: int) -> tuple[float, float]:
    """Seconds of the first fit and of a later one."""
    features, train, validation = world(counts)

    def run() -> Any:
        return model_selection.fit(features, train, validation, len(counts), config=config(steps)).basis

    first, seconds, _ = timed(run)
    return first, seconds


def in_memory(users: int, most: int, steps: int) -> dict[str, float]:
    """Seconds of a fit of users with 5 votes each but one, who has `most`."""
    counts = np.append(np.full(users - 1, 5), most)
    features, train, validation = world(counts)
    start = time.perf_counter()
    found = model_selection.fit(features, train, validation, users, config=config(steps))
    return {"seconds": time.perf_counter() - start, "votes": int(counts.sum()), "rank": int(found.basis.shape[1])}


def heavy_tail(
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000),
    users: int = 1_000_000,
    most: int = 50_000,
    steps: int = 10,
) -> list[Result]:
    """Fits of more and more votes, even and heavy-tailed; then the memory of very many users of whom one votes on."""
    rows, smallest = list[Result](), 0.0
    for votes in sizes:
        for kind in ("even", "heavy"):
            counts = counts_of(votes, kind)
            first, seconds = _fit(counts, steps)
            smallest = smallest or seconds / counts.sum()
            facts = {"users": len(counts), "most_votes": int(counts.max()), "first_call_seconds": first}
            size = f"{votes} votes, {kind}, d={FEATURES}, rank 2, {steps} steps"
            rows.append(result("heavy_tail", size, smallest * counts.sum(), seconds, **facts))
    told = in_new_process(__name__, "in_memory", users, most, steps)
    size = f"{users} users, one of {most} votes, in a process of its own"
    return [*rows, result("heavy_tail", size, smallest * told["votes"], told.pop("seconds"), **told)]
