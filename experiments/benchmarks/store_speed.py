"""How many votes a store acknowledges in a second, and how long its look-ups take."""

import contextlib
import itertools
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from experiments.benchmarks.measure import Result, result
from experiments.benchmarks.private_postgres import PostgresServer, private_postgres
from pref_jax.serve.store.records import Vote
from pref_jax.serve.store.store import Store

WRITERS = (1, 8)
USERS, PAIRS = 100, 500


def store_speed(seconds: float = 5.0, filled: int = 20_000) -> list[Result]:
    """Seconds of one acknowledged vote, for each database and number of writing threads, and of one look-up.

    The baseline of a vote is one row of the same database, written by one connection of the bare driver and committed
    as durably; that of a look-up is one `SELECT` of such a row.

    Args:
      seconds: of each measurement.
      filled: votes that are there before, as many of each of 100 users.
    """
    with tempfile.TemporaryDirectory() as folder, private_postgres(safe=True) as server:
        return [
            *_measure("SQLite", f"{folder}/votes.db", _bare_sqlite(Path(folder) / "bare.db", seconds), seconds, filled),
            *_measure("PostgreSQL", server.database(), _bare_postgres(server, seconds), seconds, filled),
        ]


def _measure(name: str, url: str, bare: tuple[float, float], seconds: float, filled: int) -> list[Result]:
    found, numbers = [], itertools.count()
    with Store.open(url) as store:
        each = -(-filled // USERS)
        for user in range(USERS):
            store.add(f"user {user}", [_vote(next(numbers)) for _ in range(each)])
        for writers in WRITERS:
            spans = _at_once(lambda: _add(store, next(numbers)), writers, seconds)
            facts = {"votes_per_second": round(len(spans) / seconds), "p99_ms": _p99(spans)}
            size = f"{name}, one vote, writers: {writers}"
            found.append(result("store_speed", size, bare[0], seconds / len(spans), **facts))
        users = itertools.cycle(f"user {number}" for number in range(USERS))
        for what, call in (("revision", store.revision), ("votes", store.votes)):
            spans = _at_once(lambda call=call: call(next(users)), 1, seconds / 5)
            facts = {"votes": filled, "votes_of_user": each, "p99_ms": _p99(spans)}
            size = f"{name}, {what} of one user"
            found.append(result("store_speed", size, bare[1], statistics.median(spans), **facts))
        start = time.perf_counter()
        store.remove_user("user 0")
        spent = time.perf_counter() - start
        found.append(result("store_speed", f"{name}, removal of a user", bare[0], spent, votes=filled))
    return found


def _vote(number: int) -> Vote:
    pair = number % PAIRS
    texts = [f"Text {side} of pair {pair}. " * 20 for side in range(3)]
    return Vote(id=f"{number:032x}", prompt=texts[0], first=texts[1], second=texts[2], choice="first", pair=f"p{pair}")


def _add(store: Store, number: int) -> None:
    store.add(f"user {number % USERS}", [_vote(number)])


def _at_once(call: Callable[[], object], threads: int, seconds: float) -> list[float]:
    """Spans of calls that some threads make one after the other, for so many seconds."""
    spans: list[float] = []
    end = time.perf_counter() + seconds

    def work() -> None:
        now = time.perf_counter()
        while True:
            start = now
            call()
            now = time.perf_counter()
            spans.append(now - start)
            if now > end:
                return

    call()
    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return spans


def _p99(spans: list[float]) -> float:
    return round(1e3 * sorted(spans)[int(0.99 * (len(spans) - 1))], 2)


def _bare_sqlite(path: Path, seconds: float) -> tuple[float, float]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE rows (text TEXT)"):
            connection.execute(statement)
        writes = _at_once(lambda: connection.execute("INSERT INTO rows VALUES ('row')"), 1, seconds)
        return statistics.mean(writes), statistics.median(
            _at_once(lambda: connection.execute("SELECT * FROM rows WHERE rowid = 1").fetchone(), 1, seconds / 5)
        )


def _bare_postgres(server: PostgresServer, seconds: float) -> tuple[float, float]:
    with server.connect() as connection:
        connection.execute("CREATE TABLE rows (id serial PRIMARY KEY, text text)")
        writes = _at_once(lambda: connection.execute("INSERT INTO rows (text) VALUES ('row')"), 1, seconds)
        return statistics.mean(writes), statistics.median(
            _at_once(lambda: connection.execute("SELECT * FROM rows WHERE id = 1").fetchone(), 1, seconds / 5)
        )
