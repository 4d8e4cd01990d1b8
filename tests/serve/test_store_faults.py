"""Kills, full disks, databases that go away: clear errors, nothing lost, and recovery without hands."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
import traceback
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from ballots import vote
from sqlalchemy import event

from experiments.benchmarks import store_crash, store_writer
from pref_jax.serve.store.errors import StoreUnavailableError
from pref_jax.serve.store.store import Store

SECRET = "A text that no error tells."


@contextlib.contextmanager
def refused(reason, message):
    """What is raised in here is for people, and holds no text, not even in its traceback."""
    with pytest.raises(StoreUnavailableError, match=message) as error:
        yield
    assert error.value.reason == reason
    assert "try again" in str(error.value) or reason == "damaged"
    assert SECRET not in "".join(traceback.format_exception(error.value))


@contextlib.contextmanager
def small_disk(size):
    """A disk of its own that is soon full."""
    folder = Path(tempfile.mkdtemp(prefix="pref-disk-", dir="/tmp"))
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    try:
        if done.returncode:
            pytest.skip("no small disk can be mounted here")
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True)
        folder.rmdir()


@pytest.mark.parametrize("seed", range(5))
def test_whoever_is_killed_leaves_every_acknowledged_vote_and_no_half_one(url, seed):
    assert store_crash.crash(url, seed)[1:4] == (0, 0, 0)


def test_the_judge_of_kills_finds_what_is_wrong(store, url):
    names = next(names for batch in range(99) if len(names := store_writer.ids_of(0, 0, batch)) == 3)
    lines = [["+", *store_writer.ids_of(0, 0, batch)] for batch in range(99)]
    lines = lines[: next(place for place, line in enumerate(lines) if line[1:] == names) + 1]
    for _, *each in lines:
        store.add(store_writer.user_of(each[0]), [store_writer.vote_of(name) for name in each])
    assert store_crash.judge(url, 0, lines)[1:4] == (0, 0, 0)
    store.remove_vote(store_writer.user_of(names[0]), names[1])
    assert store_crash.judge(url, 0, lines)[1:4] == (1, 1, 0)
    assert store_crash.judge(url, 0, [*lines, ["?", names[1]], ["-", names[1]]])[1:4] == (0, 0, 0)
    with store._database.engine.connect() as connection, connection.begin():
        connection.execute(sa.text("UPDATE votes SET choice = 'skip', strength = NULL"))
        connection.execute(sa.text("INSERT INTO texts (digest, chat, text) VALUES ('\\x00', FALSE, 'stray')"))
    _, lost, half, stray, _ = store_crash.judge(url, 0, lines)
    assert (lost, stray) == (1, 1)
    assert half > 1


def fill(store):
    """Stores votes until there is no room; returns how many there was room for."""
    for number in range(10_000):
        try:
            store.add("ada", [vote(str(number), first=SECRET + os.urandom(20_000).hex())])
        except StoreUnavailableError:
            return number
    raise AssertionError("the disk has no end")


def check_full(store, room):
    """After `fill`: `room` makes some."""
    stored = len(store.votes("ada"))
    assert stored > 0
    with refused("full", "disk is full; nothing was stored"):
        store.add("bo", [vote("bo", first=SECRET + os.urandom(100_000).hex())])
    assert len(store.votes("ada")) == stored
    room()
    store.add("bo", [vote("bo", first=SECRET + os.urandom(100_000).hex())])
    assert len(store.votes("bo")) == 1


def test_a_file_that_may_not_grow_is_told_and_used_again_when_it_may(tmp_path):
    with Store.open(str(tmp_path / "votes.db")) as store:
        pages = [60]
        event.listen(
            store._database.engine, "checkout", lambda c, *_: c.execute(f"PRAGMA max_page_count={pages[0]}").fetchone()
        )
        assert fill(store) > 0
        check_full(store, lambda: pages.__setitem__(0, 100_000))
        assert store_crash.strays(store) == 0


def test_a_full_disk_is_told_and_used_again_when_there_is_room():
    with small_disk("2m") as folder, Store.open(str(folder / "votes.db")) as store:
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(700_000))
        assert fill(store) > 0
        check_full(store, ballast.unlink)
        assert store_crash.strays(store) == 0


def test_a_full_disk_of_postgresql_is_told_and_used_again_when_there_is_room(postgres):
    with small_disk("16m") as folder:
        space = folder / "space"
        space.mkdir()
        os.chown(space, *postgres.owner)
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(2_000_000))
        postgres.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
        try:
            url = postgres.database("empty_store", "TABLESPACE small")
            with Store.open(url) as store:
                assert fill(store) > 0
                check_full(store, ballast.unlink)
            postgres.execute(f"DROP DATABASE {url.split('/')[3].split('?')[0]}")
        finally:
            postgres.execute("DROP TABLESPACE small")


def test_a_server_that_goes_and_comes_back_needs_no_hands(postgres):
    with Store.open(postgres.database("empty_store")) as store:
        store.add("ada", [vote("1")])
        postgres.stop()
        try:
            start = time.monotonic()
            for call in (store.ready, lambda: store.votes("ada"), lambda: store.add("ada", [vote("2", first=SECRET)])):
                with refused("gone", "cannot be reached, or went away"):
                    call()
            assert time.monotonic() - start < 5
        finally:
            postgres.start()
        store.ready()
        assert store.add("ada", [vote("2")]).stored == ("2",)
        assert [each.id for each in store.votes("ada")] == ["1", "2"]
        # A restart that nobody noticed.
        postgres.stop()
        postgres.start()
        assert store.add("ada", [vote("3")]).stored == ("3",)


def test_a_server_that_dies_under_writers_has_all_that_it_acknowledged(postgres):
    with Store.open(postgres.database("empty_store"), connections=4) as store:
        acknowledged, errors, stop = [], [], threading.Event()

        def write(thread):
            number = 0
            while not stop.is_set():
                try:
                    store.add(f"user {thread}", [vote(f"{thread}-{number}")])
                    acknowledged.append(f"{thread}-{number}")
                    number += 1
                except StoreUnavailableError as error:
                    errors.append(error.reason)
                    time.sleep(0.05)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        postgres.stop(signal.SIGQUIT)
        time.sleep(0.2)
        before = len(acknowledged)
        postgres.start()
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(errors) == {"gone"}
        assert before < len(acknowledged)
        assert {each.id for _, each in store.export()} == set(acknowledged)


def test_a_file_that_goes_and_comes_back_needs_no_hands(tmp_path):
    path, away = tmp_path / "votes.db", tmp_path / "away.db"
    with Store.open(str(path)) as store:
        store.add("ada", [vote("1")])
        path.rename(away)
        for call in (store.ready, lambda: store.add("ada", [vote("2", first=SECRET)])):
            with refused("gone", "the file cannot be opened"):
                call()
        assert not path.exists()
        away.rename(path)
        assert store.add("ada", [vote("2")]).stored == ("2",)
        with sqlite3.connect(path) as copy:
            copy.execute("VACUUM INTO ?", [str(away)])
        # A backup that was put back.
        away.rename(path)
        assert store.add("ada", [vote("3")]).stored == ("3",)
    with Store.open(str(path)) as store:
        assert [each.id for each in store.votes("ada")] == ["1", "2", "3"]


def test_a_file_that_is_no_database_is_told(tmp_path):
    path = tmp_path / "votes.db"
    path.write_bytes(b"user,prompt,chosen,rejected\n" * 100)
    with refused("damaged", "is no SQLite database"):
        Store.open(str(path))


def test_who_waits_too_long_for_another_writer_is_told(tmp_path):
    path = tmp_path / "votes.db"
    with Store.open(str(path), wait=0.2) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with refused("locked", r"for more than 0.2 s; it is safe to try again"):
            store.add("ada", [vote("1", first=SECRET)])
        assert store.votes("ada") == []
        other.execute("ROLLBACK")
        other.close()
        store.add("ada", [vote("1")])


def test_who_waits_too_long_for_a_row_of_postgresql_is_told(postgres):
    url = postgres.database("empty_store")
    with Store.open(url, wait=0.2) as store:
        store.add("ada", [vote("1")])
        with psycopg.connect(url.replace("+psycopg", "")) as other:
            other.execute("SELECT * FROM people FOR UPDATE")
            with refused("locked", r"for more than 0.2 s; it is safe to try again"):
                store.add("ada", [vote("2", first=SECRET)])
            assert len(store.votes("ada")) == 1
        store.add("ada", [vote("2")])


def test_who_finds_no_free_connection_is_told(url):
    busy = refused("locked", "all connections are in use")
    with Store.open(url, wait=0.2, connections=1) as store, store._database.read(), busy:
        store.votes("ada")


def test_a_clock_that_is_set_back_changes_no_order(store, monkeypatch):
    revisions = []
    for number, now in enumerate((2e9, 1e9, 1.5e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        store.add("ada", [vote(str(number))])
        revisions.append(store.revision("ada"))
    assert revisions == sorted(set(revisions))
    assert [(each.id, each.received) for each in store.votes("ada")] == [("0", 2e9), ("1", 1e9), ("2", 1.5e9)]
    assert [each.id for _, each in store.export()] == ["0", "1", "2"]
