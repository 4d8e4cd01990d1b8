"""Measured figures: our code against the reference recipe, on this machine, in one run.

    python -m experiments.bench gcf_recipe --out=runs/bench.json
    python -m experiments.bench all --out=runs/bench.json

Each benchmark compiles first and is timed afterwards; the compile time is told apart. The file is a list of
{"name", "size", "baseline_seconds", "seconds", "ratio", "extra"} with ratio = baseline / ours.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from copl_jax import gcf, graph
from copl_jax.adapt import adapt
from lore_jax import solve
from lore_jax.objective import Prior
from pref_jax.data.preferences import Pairs
from pref_jax.data.sources import world
from pref_jax.data.sources.world import WorldConfig
from pref_jax.errors import UserError
from pref_jax.files import write_json

Result = dict[str, Any]


def main() -> None:
    """Runs the benchmarks named on the command line, prints a table and writes the file."""
    values = flags.FlagValues()
    out = flags.DEFINE_string("out", None, "JSON file to write", flag_values=values)
    if {"--help", "-h"} & set(sys.argv):
        print(f"{(__doc__ or '').strip()}\n\nbenchmarks: all, {', '.join(BENCHMARKS)}")
        return
    try:
        names = _names(values(sys.argv)[1:])
        results = []
        for name in names:
            print(f"{name} ...", flush=True)
            results.append(BENCHMARKS[name]())
        print(_table(results))
        if out.value:
            write_json(Path(out.value), results)
    except (UserError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _names(given: list[str]) -> list[str]:
    if given == ["all"]:
        return list(BENCHMARKS)
    unknown = [name for name in given if name not in BENCHMARKS]
    if unknown or not given:
        raise UserError(f"benchmarks: {unknown or 'none named'}; give all, or some of {', '.join(BENCHMARKS)}")
    return given


def _table(results: list[Result]) -> str:
    lines = [f"{'name':<12} {'size':<44} {'baseline s':>12} {'ours s':>12} {'ratio':>9}"]
    for row in results:
        lines.append(
            f"{row['name']:<12} {row['size']:<44} {row['baseline_seconds']:>12.4g} {row['seconds']:>12.4g} "
            f"{row['ratio']:>9.1f}"
        )
    return "\n".join(lines)


def _result(name: str, size: str, baseline: float, ours: float, **extra: Any) -> Result:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"device": jax.devices()[0].device_kind, "cores": cores}
    ratio = baseline / ours
    return {
        "name": name,
        "size": size,
        "baseline_seconds": baseline,
        "seconds": ours,
        "ratio": ratio,
        "extra": extra | machine,
    }


def _timed(run: Callable[[], Any], repeats: int = 1) -> tuple[float, float, Any]:
    """Seconds of the first call (compilation included), least seconds of the later ones, the last answer."""
    spans, answer = [], None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        answer = jax.block_until_ready(run())
        spans.append(time.perf_counter() - start)
    return spans[0], min(spans[1:]), answer


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


def gcf_recipe(users: int = 1000, dim: int = 64, each: int = 8) -> Result:
    """Time of the fast recipe against the reference recipe (minibatches, 100 epochs), by validation accuracy."""
    train, validation, _, responses = _two_camps(users, 2 * users, each)
    signed = graph.build(train.user, train.chosen, train.rejected, num_users=users, num_responses=responses)
    key = jax.random.key(0)
    slow_compile, slow, reference = _timed(lambda: gcf.fit(gcf.reference(dim=dim), signed, train, validation, key))
    fast_compile, fast, ours = _timed(lambda: gcf.fit(gcf.fast(dim=dim), signed, train, validation, key))
    return _result(
        "gcf_recipe",
        f"{users} users, {responses} responses, d={dim}, L=4",
        slow,
        fast,
        reference_accuracy=reference.best_accuracy,
        accuracy=ours.best_accuracy,
        first_call_seconds=[slow_compile, fast_compile],
    )


def lore_solve(users: int = 500, pairs: int = 9, rank: int = 5, sample: int = 25) -> Result:
    """New users' weights: all of them in one closed-form call against 500 steps of Adam for one user after another."""
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(rank, 0.5), users)
    z = rng.normal(size=(users, pairs, rank)).astype(np.float32)
    z *= np.sign(np.einsum("unk,uk->un", z, truth))[..., None].astype(np.float32)
    prior = Prior(jnp.full(rank, 1 / rank), jnp.eye(rank))
    mask = jnp.ones((users, pairs), bool)
    program = jax.jit(lambda z: solve.logistic(z, mask, prior).weights)
    first, ours, weights = _timed(lambda: program(z), repeats=20)
    start = time.perf_counter()
    for user in range(sample):
        _adam(z[user])
    loop = (time.perf_counter() - start) * users / sample
    fresh = rng.normal(size=(users, 100, rank))
    agree = np.mean(
        np.sign(np.einsum("unk,uk->un", fresh, truth)) == np.sign(np.einsum("unk,uk->un", fresh, np.asarray(weights)))
    )
    return _result(
        "lore_solve",
        f"{users} users, {pairs} pairs, K={rank}",
        loop,
        ours,
        users_a_second=users / ours,
        accuracy=float(agree),
        baseline_users_measured=sample,
        first_call_seconds=first,
    )


def _adam(z: np.ndarray, steps: int = 500, rate: float = 0.1) -> np.ndarray:
    """The reference few-shot recipe for one user in NumPy: Adam on softmax weights (DESIGN 4.4)."""
    logits, mean, square = np.zeros(z.shape[1]), np.zeros(z.shape[1]), np.zeros(z.shape[1])
    for step in range(1, steps + 1):
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        slope = -(z / (1 + np.exp(z @ weights))[:, None]).mean(axis=0)
        gradient = weights * (slope - slope @ weights)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        logits -= rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights


def adapt_unseen(seen: int = 2000, unseen: int = 2000, dim: int = 64, each: int = 8, sample: int = 50) -> Result:
    """Unseen users by two hops: all in one call against a NumPy loop over users."""
    known, _, camp, responses = _two_camps(seen + unseen, 2 * seen, each)
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(2, dim))
    users = gcf.normalised(centre[camp] + 0.5 * rng.normal(size=(len(camp), dim))).astype(np.float32)
    table = rng.normal(size=(responses, dim)).astype(np.float32)
    is_seen = np.arange(len(camp)) < seen
    parts = [Pairs(*(column[mask] for column in known)) for mask in (is_seen[known.user], ~is_seen[known.user])]
    rows = np.flatnonzero(~is_seen)

    def ours():
        return adapt(users=users, responses=table, seen=is_seen, known=parts[0], context=parts[1], unseen=rows)

    first, seconds, found = _timed(ours, repeats=3)
    start = time.perf_counter()
    worst = 0.0
    for i, user in enumerate(rows[:sample]):
        worst = max(
            worst, float(np.abs(_adapt_one(users, table, parts[0], parts[1], user) - found.embeddings[i]).max())
        )
    loop = (time.perf_counter() - start) * len(rows) / sample
    return _result(
        "adapt",
        f"{unseen} unseen, {seen} seen users, d={dim}",
        loop,
        seconds,
        largest_difference=worst,
        baseline_users_measured=sample,
        first_call_seconds=first,
    )


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


def prepare(small: int = 100_000, times: int = 10) -> Result:
    """The embedded world at two sizes: the baseline is the small one's time, scaled; ratio 1 is linear cost."""

    def seconds(comparisons: int) -> tuple[float, int]:
        users = comparisons // 20
        config = WorldConfig(
            seen_users=users, unseen_users=0, pairs_per_user=10, test_pairs_per_user=10, train_prompts=users // 4
        )
        start = time.perf_counter()
        data = world.generate(config)
        return time.perf_counter() - start, data.comparisons.num_rows

    seconds(1000)
    (short, _), (long, rows) = seconds(small), seconds(small * times)
    return _result(
        "prepare", f"{rows} comparisons, against {small}", short * times, long, comparisons_a_second=rows / long
    )


BENCHMARKS: dict[str, Callable[[], Result]] = {
    "gcf_recipe": gcf_recipe,
    "lore_solve": lore_solve,
    "adapt": adapt_unseen,
    "prepare": prepare,
}

if __name__ == "__main__":
    main()
