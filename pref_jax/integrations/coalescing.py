"""Calls of many threads answered together: trainers that score one answer at a time still fill a batch."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import Any


class Coalescer:
    """Puts the rows of calls that wait for one another into one call.

    While one call runs, others wait; whoever comes next takes the rows of all of them.

    Args:
      run: rows to results, one for each; called by one thread at a time.

    Example:
      >>> Coalescer(lambda rows: [row * 2 for row in rows])([1, 2])
      [2, 4]
    """

    def __init__(self, run: Callable[[list[Any]], Sequence[Any]]):
        self._run, self._lock = run, threading.Lock()
        self._waiting: collections.deque[tuple[list[Any], concurrent.futures.Future]] = collections.deque()

    def __call__(self, rows: Sequence[Any]) -> list[Any]:
        """Results of the rows; raises what `run` raises on them."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._waiting.append((list(rows), future))
        with self._lock:
            if not future.done():
                self._answer([self._waiting.popleft() for _ in range(len(self._waiting))])
        return future.result()

    def _answer(self, calls: list[tuple[list[Any], concurrent.futures.Future]]) -> None:
        try:
            found = list(self._run([row for rows, _ in calls for row in rows]))
        except Exception as error:
            if len(calls) == 1:
                calls[0][1].set_exception(error)
                return
            # One bad row must not fail the others' calls.
            for call in calls:
                self._answer([call])
            return
        place = 0
        for rows, future in calls:
            future.set_result(found[place : place + len(rows)])
            place += len(rows)
