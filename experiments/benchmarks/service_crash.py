"""A service is killed under load, and loses its database: no acknowledged vote is lost, and scores are those of votes.

The rows of kills: `seconds` from the start after a kill until the service can score and store, `baseline_seconds` those
of its first start. The row of the outage: `seconds` from the moment the database answers again until the service says
that it is ready, `baseline_seconds` those that the database itself took to start.
"""

import asyncio
import contextlib
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from experiments.benchmarks.load_client import PROMPT, known_texts
from experiments.benchmarks.measure import Result, result
from experiments.benchmarks.private_postgres import PostgresServer, private_postgres
from experiments.benchmarks.random_decoder import write_decoder
from experiments.benchmarks.served import ANY_PACE, Running, fit_model, running
from experiments.benchmarks.voters import Voter, different_scores, judge, told

FAULTS = ("lost", "half", "doubled", "stray", "different_scores")
# Seconds of load within which the process is killed; users who vote at once; texts that they vote on.
ALIVE, USERS, KNOWN = 1.0, 8, 40
# Each so many kills, the start that follows is killed too.
STARTING = 4


def service_crash(
    kills: int = 100, seconds: float = 10.0, stores: Sequence[str] = ("sqlite", "postgresql")
) -> list[Result]:
    """One row of kills for each store, and one of an outage of PostgreSQL.

    Args:
      kills: of each store.
      seconds: without PostgreSQL.
      stores: some of "sqlite" and "postgresql".
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = fit_model(Path(name), str(write_decoder(Path(name) / "base")))
        for kind in stores:
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(private_postgres(safe=True)) if kind == "postgresql" else None
                case = _Case(folder, kind, f"{name}/votes.db" if server is None else server.database(), stack)
                rows.append(case.kill_often(kills))
                if server is not None:
                    rows.append(case.lose_database(server, seconds))
    return rows


class _Case:
    """One store and the users who vote, over all lives of the service."""

    def __init__(self, folder: Path, kind: str, url: str, stack: contextlib.ExitStack):
        self._folder, self._kind, self._url, self._stack = folder, kind, url, stack
        self._log, self._known = folder.parent / f"{kind}.log", known_texts(KNOWN)
        self._voters, self._faults, self._rng = [Voter(f"user {n}") for n in range(USERS)], Counter(), random.Random(0)
        self._service, self._first = self._start()

    def _start(self) -> tuple[Running, float]:
        """A service, and the seconds until it was ready."""
        start = time.perf_counter()
        service = self._stack.enter_context(running(self._folder, self._url, self._log, *ANY_PACE))
        return service, time.perf_counter() - start

    def kill_often(self, kills: int) -> Result:
        """Kills the service under load, starts it again, and looks at what is there."""
        spans, starting = [], 0
        for kill in range(kills):
            asyncio.run(self._kill(self._rng.uniform(0, ALIVE)))
            if kill % STARTING == STARTING - 1:
                starting += 1
                early = Running(self._folder, self._url, self._log, *ANY_PACE)
                time.sleep(self._rng.uniform(0, self._first))
                early.kill()
            self._service, span = self._start()
            spans.append(span)
            self._judge()
        size, seconds = f"{kills} kills under load, {self._kind}", sum(spans) / kills
        return result("service_crash", size, self._first, seconds, **self._facts(), killed_while_starting=starting)

    async def _kill(self, seconds: float) -> None:
        """All vote at once until the service is killed."""
        tasks = self._vote(asyncio.Event())
        await asyncio.sleep(seconds)
        self._service.kill()
        await asyncio.gather(*tasks)

    def _vote(self, stop: asyncio.Event) -> list[asyncio.Task[None]]:
        seeds = [random.Random(self._rng.random()) for _ in self._voters]
        lives = zip(self._voters, seeds, strict=True)
        where = self._service.address
        return [asyncio.create_task(one.live(where, seed, self._known, stop)) for one, seed in lives]

    def _judge(self) -> None:
        self._faults += judge(self._url, self._voters)
        found = different_scores(self._folder, self._url, self._service.url, self._known[:3])
        self._faults["different_scores"] += found

    def _facts(self) -> dict[str, int]:
        return {name: self._faults[name] for name in FAULTS} | told(self._voters)

    def lose_database(self, server: PostgresServer, seconds: float) -> Result:
        """Takes the database away under load, and gives it back; counts are those of the outage alone."""
        for one in self._voters:
            one.statuses.clear()
        self._faults.clear()
        facts = asyncio.run(self._without(server, seconds))
        self._judge()
        self._service.stop()
        baseline, recovery = facts.pop("database_seconds"), facts.pop("seconds")
        size = f"database gone for {seconds:g} s, {self._kind}"
        return result("service_crash", size, baseline, recovery, **self._facts(), **facts)

    async def _without(self, server: PostgresServer, seconds: float) -> dict[str, Any]:
        stop = asyncio.Event()
        tasks = self._vote(stop)
        await asyncio.sleep(ALIVE)
        await asyncio.to_thread(server.stop, signal.SIGQUIT)
        before = told(self._voters)["acknowledged"]
        async with httpx.AsyncClient(base_url=self._service.url, timeout=60) as client:
            seen = await _watch(client, self._known[:2], seconds)
            during, start = told(self._voters)["acknowledged"] - before, time.perf_counter()
            await asyncio.to_thread(server.start)
            back = time.perf_counter()
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
            recovery = time.perf_counter() - back
        await asyncio.sleep(ALIVE)
        stop.set()
        await asyncio.gather(*tasks)
        counts = {"acknowledged_without": during, "acknowledged_after": told(self._voters)["acknowledged"] - before}
        return {"database_seconds": back - start, "seconds": recovery, **counts, **seen}


async def _watch(client: httpx.AsyncClient, responses: Sequence[str], seconds: float) -> dict[str, list[int]]:
    """Statuses of answers while there is no database."""
    end = time.monotonic() + seconds
    seen: dict[str, set[int]] = {"readiness": set(), "health": set(), "scores_of_nobody": set()}
    while time.monotonic() < end:
        seen["readiness"].add((await client.get("/readyz")).status_code)
        seen["health"].add((await client.get("/healthz")).status_code)
        answer = await client.post("/v1/score", json={"prompt": PROMPT, "responses": list(responses)})
        seen["scores_of_nobody"].add(answer.status_code)
        await asyncio.sleep(0.1)
    return {name: sorted(found) for name, found in seen.items()}
