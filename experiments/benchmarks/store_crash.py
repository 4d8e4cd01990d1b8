"""A process that votes is killed at a random moment: every vote that it was told is stored is there, and none is half
there."""

import dataclasses
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from experiments.benchmarks import store_writer
from experiments.benchmarks.measure import Result, result
from experiments.benchmarks.private_postgres import private_postgres
from pref_jax.serve.store.records import Vote
from pref_jax.serve.store.store import Store

# Seconds after the first sign of life within which the process is killed, and before that, when it makes the tables.
ALIVE, STARTING = 0.4, 1.2
_NAMES = ("prompt", "first", "second")


class Crash(NamedTuple):
    """What was found after one kill.

    Attributes:
      acknowledged: votes that the process said were stored.
      lost, half: of these, those that are not there; and votes of a call that are there without the others, or that
        say something else. Both must be 0.
      stray: texts that nothing names, and rows that name what is not there; must be 0.
      seconds: to open the store again and read all votes.
    """

    acknowledged: int
    lost: int
    half: int
    stray: int
    seconds: float


def store_crash(kills: int = 100) -> list[Result]:
    """One result for each database; the baseline is the time to open and read a store that was closed in order."""
    found = []
    with tempfile.TemporaryDirectory() as folder, private_postgres(safe=True) as server:
        files = (f"{folder}/{number}.db" for number in range(kills))
        for name, urls in (("SQLite", files), ("PostgreSQL", (server.database() for _ in range(kills)))):
            found.append(_many(name, urls, kills))
    return found


def _many(name: str, urls: Iterator[str], kills: int) -> Result:
    crashes, orderly = [], []
    for seed, url in enumerate(urls):
        crashes.append(crash(url, seed))
        start = time.perf_counter()
        with Store.open(url) as store:
            list(store.export())
        orderly.append(time.perf_counter() - start)
    counts = {field: sum(getattr(one, field) for one in crashes) for field in ("acknowledged", "lost", "half", "stray")}
    begun = sum(one.acknowledged > 0 for one in crashes)
    seconds = sum(one.seconds for one in crashes) / kills
    baseline = sum(orderly) / kills
    return result("store_crash", f"{kills} kills, {name}", baseline, seconds, **counts, killed_while_voting=begun)


def crash(url: str, seed: int) -> Crash:
    """Kills a process that votes into a new store, and looks at what is there.

    A quarter of the seeds kill it while it starts, which is when it makes the tables.
    """
    drawn = random.Random(seed)
    command = [sys.executable, "-m", "experiments.benchmarks.store_writer", url, str(seed)]
    with tempfile.NamedTemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, cwd=Path(__file__).parents[2])
        try:
            if drawn.random() < 0.25:
                time.sleep(drawn.uniform(0, STARTING))
            else:
                _until(lambda: process.poll() is not None or Path(said.name).stat().st_size > 0)
                time.sleep(drawn.uniform(0, ALIVE))
        finally:
            ended = process.poll()
            process.kill()
            process.wait()
        if ended is not None:
            raise RuntimeError("the process that should vote ended by itself")
        # The last line may have been cut.
        lines = [line.split() for line in Path(said.name).read_text().split("\n")[:-1]]
    return judge(url, seed, lines)


def _until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError("the process that should vote has not begun")
        time.sleep(0.005)


def judge(url: str, seed: int, lines: list[list[str]]) -> Crash:
    """What is in a store, compared with lines that a writer of this seed printed."""
    start = time.perf_counter()
    with Store.open(url) as store:
        there = {vote.id: (user, vote) for user, vote in store.export()}
        seconds = time.perf_counter() - start
        stray = strays(store)
    told = {kind: {name for line in lines if line[0] == kind for name in line[1:]} for kind in "+?-"}
    lost = (told["+"] - told["?"]) - there.keys() | told["-"] & there.keys()
    half = {name for name, found in there.items() if not _whole(name, *found)}
    half |= {name for names in _calls(seed, told["+"] | there.keys()) for name in torn(names, there.keys(), told["?"])}
    return Crash(len(told["+"]), len(lost), len(half), stray, seconds)


def _calls(seed: int, seen: Set[str]) -> Iterator[set[str]]:
    """Ids of each call of which anything was seen."""
    for thread in range(store_writer.THREADS):
        for batch in itertools.count():
            names = set(store_writer.ids_of(seed, thread, batch))
            if not names & seen:
                break
            yield names


def torn(names: set[str], there: Set[str], undone: Set[str]) -> set[str]:
    """Of the ids of a call, those that are missing while others are there, and that nobody took back."""
    missing = names - there - undone
    return missing if names & there else set()


def as_given(vote: Vote) -> Vote:
    """A stored vote without what the store has added."""
    return Vote(**{field.name: getattr(vote, field.name) for field in dataclasses.fields(Vote)})


def _whole(name: str, user: str, vote: Vote) -> bool:
    return as_given(vote) == store_writer.vote_of(name) and user == store_writer.user_of(name)


def strays(store: Store) -> int:
    """Texts that nothing names, and, in SQLite, faults that it finds in its own file."""
    named = " UNION ".join(f"SELECT {name} FROM {table}" for table in ("votes", "pairs") for name in _NAMES)
    query = f"SELECT count(*) FROM texts WHERE number NOT IN ({named})"
    # The store's own door tells only what is named.
    with store._database.read() as connection:
        count = connection.scalar(sa.text(query)) or 0
        if connection.dialect.name == "sqlite":
            count += len(connection.execute(sa.text("PRAGMA foreign_key_check")).all())
            count += connection.scalar(sa.text("PRAGMA integrity_check")) != "ok"
    return count
