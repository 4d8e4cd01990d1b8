"""`pref serve` under thousands of malformed and hostile requests, counted by what they were answered.

`seconds` are those of one such request, one after another; `baseline_seconds` those of a request for /healthz.
"""

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from experiments.benchmarks.hostile_target import SECRET, VICTIM, Target
from experiments.benchmarks.hostile_texts import VOTE
from experiments.benchmarks.measure import Result, result
from experiments.benchmarks.random_decoder import write_decoder
from experiments.benchmarks.served import ANY_PACE, Running, fit_model, running
from pref_jax.errors import UserError
from pref_jax.serve.store.store import Store

FAULTS = ("server_fault", "stranger", "traceback", "shape", "undocumented", "reached", "unanswered", "hung")
# Of all requests, how many of 20 are of each kind; what is left is any JSON.
BY_DOCUMENT, AGAINST, BYTES, ODD, NAMES, OTHERS, BROKEN = 4, 4, 2, 3, 2, 2, 1


def service_hostile(requests: int = 10_000, slow: int = 100) -> list[Result]:
    """One row: counts by class of status, and of all that must not happen, each of which must be 0.

    Args:
      requests: at least so many, without slow clients.
      slow: clients at once who never come to an end.

    Raises:
      UserError: if what makes the requests is not installed.
    """
    try:
        from experiments.benchmarks import hostile  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} makes the requests; pip install 'pref-jax[test]'") from error
    with tempfile.TemporaryDirectory() as name:
        folder = fit_model(Path(name), str(write_decoder(Path(name) / "base")))
        with _served(folder, f"{name}/votes.db", Path(name) / "log") as (service, target, key):
            baseline = _healthy(target.client)
            start = time.perf_counter()
            sent = _attack(target, service, key, requests)
            seconds = (time.perf_counter() - start) / max(1, sent)
            asyncio.run(_slow(target, service, slow))
            facts = _afterwards(target, service)
    counts = {name: target.faults[name] for name in FAULTS}
    size = f"{target.statuses.total()} requests, {slow} of them slow"
    return [result("service_hostile", size, baseline, seconds, **_classes(target), **counts, **facts)]


@contextlib.contextmanager
def _served(folder: Path, store: str, log: Path) -> Iterator[tuple[Running, Target, str]]:
    """A service that asks for keys and has a victim's vote, a target that may do all, and a key of another user."""
    with Store.open(store) as opened:
        admin, other = opened.add_key("admin", ["admin"]), opened.add_key("other", ["score", "vote"], "other")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(running(folder, store, log, "--key-required", *ANY_PACE))
        client = stack.enter_context(httpx.Client(base_url=service.url, timeout=60))
        target = Target(client, key=admin)
        body = {**VOTE, "first": SECRET, "id": "victims"}
        client.post(f"/v1/users/{VICTIM}/votes", json=body, headers=target.headers).raise_for_status()
        yield service, target, other


def _healthy(client: httpx.Client, times: int = 50) -> float:
    start = time.perf_counter()
    for _ in range(times):
        client.get("/healthz").raise_for_status()
    return (time.perf_counter() - start) / times


def _attack(target: Target, service: Running, key: str, requests: int) -> int:
    """Sends at least so many requests; returns how many."""
    from experiments.benchmarks import hostile

    document = target.client.get("/openapi.json").json()
    paths, before = [*hostile.paths_of(document, "other"), *hostile.paths_of(document, "new")], target.statuses.total()
    operations = sum(map(len, document["paths"].values()))
    share = requests / 20
    hostile.from_document(target, document, round(BY_DOCUMENT * share / operations) or 1)
    hostile.from_document(target, document, round(AGAINST * share / operations) or 1, against=True)
    hostile.any_bytes(target, paths, round(BYTES * share))
    hostile.odd_json(target, paths, round(ODD * share))
    hostile.names(target, round(NAMES * share))
    hostile.others(target, key, round(OTHERS * share))
    asyncio.run(hostile.broken_http(target, service.address, round(BROKEN * share)))
    # Some kinds have fewer different requests than were asked for.
    seed = 0
    while (left := requests - (target.statuses.total() - before)) > 0 and service.process.poll() is None:
        hostile.any_json(target, paths, min(left, 1000), seed)
        seed += 1
    return target.statuses.total() - before


async def _slow(target: Target, service: Running, count: int) -> None:
    """Slow clients; while they are there, others are answered."""
    from experiments.benchmarks import hostile

    task = asyncio.create_task(hostile.slow(target, service.address, count))
    async with httpx.AsyncClient(base_url=service.url, timeout=10) as client:
        while not task.done():
            answer = await client.get("/healthz")
            if answer.status_code != 200:
                target.fault("server_fault", answer.status_code)
            await asyncio.sleep(0.2)
    await task


def _classes(target: Target) -> dict[str, int]:
    counts = Counter[str]()
    for (_, status), number in target.statuses.items():
        counts["cut_off" if status == 0 else f"status_{status // 100}xx"] += number
    return {"requests": target.statuses.total(), **{name: counts[name] for name in sorted({*counts, "status_5xx"})}}


def _afterwards(target: Target, service: Running) -> dict[str, Any]:
    """Whether it lives, still has the victim's vote, ends in order, and has logged nothing that it should not."""
    kinds = Counter[str]()
    for (kind, _), number in target.statuses.items():
        kinds[kind] += number
    crashed, kept = service.process.poll() is not None, False
    if not crashed:
        answer = target.client.get(f"/v1/users/{VICTIM}/votes", headers=target.headers)
        kept = SECRET in answer.text
        target.client.close()
        service.stop()
    lines = service.log().splitlines()
    errors = [line for line in lines if "Traceback" in line or '"error"' in line]
    return {
        "crashes": int(crashed),
        "victims_lost": int(not kept),
        "errors_logged": len(errors),
        "texts_logged": sum(SECRET in line for line in lines),
        "slowest_seconds": target.slowest,
        "kinds": dict(kinds),
    } | ({"first_errors": [line[:300] for line in errors[:5]]} if errors else {})
