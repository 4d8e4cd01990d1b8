"""Texts of many clients are read together; faults, cancelled clients and full queues are their own clients' alone."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pref_jax.serve.batching import Worker
from pref_jax.serve.faults import RefusedError


def run(test: Callable[[Worker, list[Any]], Awaitable[None]], **sizes: int) -> list[Any]:
    """Runs a test with a worker whose batches come back; a text that is an exception is one's own fault."""
    batches: list[Any] = []

    def read(batch: list[Any]) -> list[Any]:
        time.sleep(0.02)
        batches.append(list(batch))
        assert threading.current_thread().name.startswith("reader" if sizes.get("alone", True) else "model")
        if "broken" in batch:
            raise RuntimeError("all of it")
        return [one if isinstance(one, Exception) else one * 2 for one in batch]

    async def main() -> None:
        given: dict[str, Any] = {"batch": 4, "most": 12, **sizes}
        worker = Worker(read, **given)
        worker.start()
        try:
            await asyncio.wait_for(test(worker, batches), 10)
        finally:
            await worker.stop()

    asyncio.run(main())
    return batches


def test_clients_are_read_together_by_bucket_and_get_their_own():
    async def test(worker: Worker, batches: list[Any]) -> None:
        first = asyncio.create_task(worker.read([(32, 1)]))
        while not worker.queued:
            await asyncio.sleep(0)
        while worker.queued:
            await asyncio.sleep(0.001)
        # Those who come while the first is read.
        several = [worker.read([(32, 10 + n), (64, 20 + n)]) for n in range(3)]
        assert await asyncio.gather(first, *several) == [[2], *([2 * (10 + n), 2 * (20 + n)] for n in range(3))]

    assert run(test) == [[1], [10, 11, 12], [20, 21, 22]]


def test_nothing_waits_for_company():
    async def test(worker: Worker, batches: list[Any]) -> None:
        start = time.perf_counter()
        assert await worker.read([(32, 3)]) == [6]
        assert time.perf_counter() - start < 0.5

    assert run(test) == [[3]]


@pytest.mark.parametrize("alone", [False, True])
def test_short_jobs_do_not_wait_for_all_batches(alone):
    async def test(worker: Worker, batches: list[Any]) -> None:
        reading = asyncio.create_task(worker.read([(32, n) for n in range(12)]))
        await asyncio.sleep(0.01)
        assert await worker.run(lambda: len(batches)) <= 1
        await reading
        with pytest.raises(KeyError):
            await worker.run({}.__getitem__, "a")

    assert len(run(test, alone=alone)) == 3


def test_ones_fault_is_ones_own():
    async def test(worker: Worker, batches: list[Any]) -> None:
        fault = ValueError("mine")
        found = await asyncio.gather(
            worker.read([(32, 1)]), worker.read([(32, fault), (32, 5)]), worker.read([(32, 2)]), return_exceptions=True
        )
        assert found == [[2], fault, [4]]
        with pytest.raises(RuntimeError, match="all of it"):
            await worker.read([(32, "broken")])
        assert await worker.read([(32, 4)]) == [8]

    run(test)


def test_who_has_gone_is_not_read_for():
    async def test(worker: Worker, batches: list[Any]) -> None:
        first = asyncio.create_task(worker.read([(32, 1)]))
        await asyncio.sleep(0.005)
        gone, stays = (asyncio.create_task(worker.read([(32, n)])) for n in (7, 8))
        await asyncio.sleep(0.005)
        gone.cancel()
        assert await asyncio.gather(first, stays) == [[2], [16]]
        assert worker.queued == 0

    assert run(test) == [[1], [8]]


def test_a_full_queue_sends_clients_away_for_a_while():
    async def test(worker: Worker, batches: list[Any]) -> None:
        reading = [asyncio.create_task(worker.read([(32, n)] * 6)) for n in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as caught:
            await worker.read([(32, 9)] * 12)
        assert caught.value.status == 429
        assert int(caught.value.headers()["retry-after"]) >= 1
        await asyncio.gather(*reading)
        # More than may wait is read all the same where nobody else does.
        assert len(await worker.read([(32, 9)] * 20)) == 20

    run(test)


def test_what_still_waits_at_the_end_is_refused():
    async def test(worker: Worker, batches: list[Any]) -> None:
        reading = [asyncio.create_task(worker.read([(32, n)])) for n in range(9)]
        await asyncio.sleep(0.01)
        await worker.stop()
        found = await asyncio.gather(*reading, return_exceptions=True)
        refused = [one for one in found if isinstance(one, RefusedError)]
        assert refused
        assert all(one.status == 503 for one in refused)

    run(test)
