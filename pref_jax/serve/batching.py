"""Threads for the work of a model: short jobs at once, texts of many clients in common batches.

The transformer reads texts of one length's bucket together, whoever sent them; nothing waits for company while it is
idle. Short jobs have a thread of their own, so that what needs no transformer does not wait for it; or the same one,
for methods whose batches look at users.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from pref_jax.serve.faults import RefusedError

T = TypeVar("T")


class Item(NamedTuple):
    """One text that waits: its turn, what is read, and who waits for it."""

    turn: int
    what: Any
    done: "asyncio.Future[Any]"


class _Job(NamedTuple):
    run: Callable[[], Any]
    done: "asyncio.Future[Any]"


class Worker:
    """The threads and what waits for them; to be used from one event loop.

    Example:
      worker = Worker(read_batch, batch=32, most=4096)
      worker.start()
      scores = await worker.run(model.score, "ada", "How long?", ["Seven minutes."])
      rows = await worker.read([(32, text)])
    """

    def __init__(self, read: Callable[[list[Any]], Sequence[Any]], *, batch: int, most: int, alone: bool = True):
        """A worker.

        Args:
          read: reads some of what was sent to `read`, of one bucket; a result for each, in order. One that is an
            exception is raised for its client alone.
          batch: how many at a time.
          most: how many may wait.
          alone: `read` may run beside short jobs.
        """
        self._read, self._batch, self._most = read, batch, most
        self._thread = ThreadPoolExecutor(1, "model")
        self._reader = ThreadPoolExecutor(1, "reader") if alone else self._thread
        self._jobs: deque[_Job] = deque()
        # By bucket, each in order of turns.
        self._waiting: dict[Hashable, deque[Item]] = {}
        self._turns = itertools.count()
        self._job_came, self._text_came, self._rate = asyncio.Event(), asyncio.Event(), 100.0
        self._tasks: list[asyncio.Task[None]] = []
        self.queued, self._stopping = 0, False

    def start(self) -> None:
        """Begins."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run_jobs()), loop.create_task(self._run_batches())]

    async def stop(self) -> None:
        """Ends the threads once they have done what they do; what still waits is refused."""
        self._stopping = True
        self._job_came.set()
        self._text_came.set()
        await asyncio.gather(*self._tasks)
        for waiting in (*self._jobs, *itertools.chain.from_iterable(self._waiting.values())):
            if not waiting.done.done():
                waiting.done.set_exception(RefusedError(503, "the service stops; send the same again", retry=1.0))
        self._thread.shutdown(wait=True)
        self._reader.shutdown(wait=True)

    async def run(self, job: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Runs a short job, after those that came before."""
        done = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(lambda: job(*arguments, **options), done))
        self._job_came.set()
        return await done

    async def read(self, items: Sequence[tuple[Hashable, Any]]) -> list[Any]:
        """Reads things, given with their buckets, in batches with those of others.

        Raises:
          RefusedError: with status 429 if too many wait.
        """
        if self.queued + len(items) > self._most and self.queued:
            wait = self.queued / self._rate
            raise RefusedError(429, f"{self.queued} texts wait to be read; come back in {wait:.0f} s", retry=wait)
        loop = asyncio.get_running_loop()
        own = [Item(next(self._turns), what, loop.create_future()) for _, what in items]
        for (bucket, _), item in zip(items, own, strict=True):
            self._waiting.setdefault(bucket, deque()).append(item)
        self.queued += len(own)
        self._text_came.set()
        try:
            return await asyncio.gather(*(item.done for item in own))
        finally:
            # Whoever has gone, or was refused one text, does not have the others read.
            for item in own:
                item.done.cancel()

    async def _run_jobs(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            await self._job_came.wait()
            self._job_came.clear()
            while self._jobs and not self._stopping:
                jobs = list(self._jobs)
                self._jobs.clear()
                _settle(jobs, await loop.run_in_executor(self._thread, _run_all, jobs))

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            await self._text_came.wait()
            self._text_came.clear()
            while self.queued and not self._stopping:
                if batch := self._next():
                    start = time.perf_counter()
                    _settle(batch, await loop.run_in_executor(self._reader, _run_batch, self._read, batch))
                    rate = len(batch) / max(time.perf_counter() - start, 1e-6)
                    self._rate += 0.2 * (rate - self._rate)

    def _next(self) -> list[Item]:
        """Some that wait of one bucket, that of whoever has waited longest."""
        for same in self._waiting.values():
            while same and same[0].done.done():
                same.popleft()
                self.queued -= 1
        same = min((some for some in self._waiting.values() if some), key=lambda some: some[0].turn, default=None)
        batch: list[Item] = []
        while same and len(batch) < self._batch:
            item = same.popleft()
            self.queued -= 1
            if not item.done.done():
                batch.append(item)
        return batch


def _run_all(jobs: Sequence[_Job]) -> list[Any]:
    found = []
    for job in jobs:
        try:
            found.append(None if job.done.cancelled() else job.run())
        except Exception as error:  # every job has a client of its own, who is told
            found.append(error)
    return found


def _run_batch(read: Callable[[list[Any]], Sequence[Any]], batch: Sequence[Item]) -> Sequence[Any]:
    try:
        found = read([item.what for item in batch])
        if len(found) != len(batch):
            raise RuntimeError(f"{len(found)} results for {len(batch)} texts")
        return found
    except Exception as error:  # told to all of the batch
        return [error] * len(batch)


def _settle(waiting: Sequence[_Job | Item], found: Sequence[Any]) -> None:
    for one, result in zip(waiting, found, strict=True):
        if one.done.done():
            continue
        if isinstance(result, Exception):
            one.done.set_exception(result)
        else:
            one.done.set_result(result)
