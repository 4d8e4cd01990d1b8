"""Several writers at a time: threads, handles, processes."""

import random
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from ballots import vote

from experiments.benchmarks.store_crash import strays
from pref_jax.errors import UserError
from pref_jax.serve.store import ballots, tables
from pref_jax.serve.store.errors import StoreUnavailableError
from pref_jax.serve.store.store import Store

ROOT = Path(__file__).resolve().parents[2]


def test_no_vote_of_a_user_becomes_visible_after_a_later_one(store, url):
    drawn, go_on = threading.Event(), threading.Event()

    def slowly(connection):
        added = ballots.add(connection, "ada", ballots.ballots([vote("1")]), 0.0)
        drawn.set()
        assert go_on.wait(20)
        return added

    store.add("ada", [vote("0")])
    before = store.history("ada")
    with Store.open(url) as other, ThreadPoolExecutor() as pool:
        slow = pool.submit(store._database.write, slowly)
        assert drawn.wait(20)
        quick = pool.submit(other.add, "ada", [vote("2")])
        gone = pool.submit(other.remove_vote, "ada", "1")
        time.sleep(0.2)
        assert not quick.done()
        assert not gone.done()
        assert other.history("ada") == before
        go_on.set()
        assert (slow.result(20).stored, quick.result(20).stored, gone.result(20)) == (("1",), ("2",), True)
    first, last = store.votes("ada")
    assert (first.id, last.id) == ("0", "2")
    assert store.revision("ada") >= last.number > before.revision


def test_users_of_postgresql_do_not_wait_for_each_other(postgres):
    with Store.open(postgres.database("empty_store")) as store, ThreadPoolExecutor() as pool:

        def meanwhile(connection):
            ballots.add(connection, "ada", ballots.ballots([vote("1", first="Common.")]), 0.0)
            store.add("bo", [vote("2", first="Bo's.", second="Also Bo's.", prompt="Bo's?")])

        pool.submit(store._database.write, meanwhile).result(20)
        assert [user.id for user in store.users()] == ["ada", "bo"]


def test_writers_and_removers_of_the_same_texts_leave_a_whole_store(store, url):
    other, errors, acknowledged = Store.open(url), [], set()

    def work(seed):
        drawn, handle = random.Random(seed), (store, other)[seed % 2]
        for number in range(12):
            name, user = f"{seed}-{number}", drawn.choice(["stays", f"own{seed}", "goes"])
            first, second = drawn.sample(["one", "two", "three", "four"], 2)
            try:
                handle.add(user, [vote(name, first=first, second=second, prompt=f"{drawn.randrange(3)}?")])
                if user == "stays":
                    acknowledged.add(name)
                if drawn.random() < 0.3:
                    handle.remove_user(drawn.choice(["goes", f"own{seed}"]))
            except Exception as error:
                errors.append(error)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert errors == []
    stored = store.votes("stays")
    assert {each.id for each in stored} == acknowledged
    assert strays(store) == 0
    for user, count, revision in store.users():
        assert store.history(user)[0] == revision
        assert len(store.votes(user)) == count
    other.close()


def test_one_vote_that_all_send_at_once_is_stored_once(store):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: store.add("ada", [vote("1")]), range(8)))
    assert sorted(each.stored for each in found) == [(), (), (), (), (), (), (), ("1",)]
    assert len(store.votes("ada")) == 1


def test_processes_that_open_a_new_store_at_once_make_its_tables_once(postgres, tmp_path):
    code = "import sys; from pref_jax.serve.store.store import Store; [Store.open(url).close() for url in sys.argv[1:]]"
    urls = [str(tmp_path / "new.db"), postgres.database()]
    command = [sys.executable, "-c", code, *urls]
    starts = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in starts] == [("", 0)] * 2
    for url in urls:
        with Store.open(url) as store:
            store.add("ada", [vote()])


def test_the_migrations_make_the_tables_that_the_code_has(store):
    with store._database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == tables.HEAD
        # PostgreSQL has a sequence in place of the counter.
        extra = [table for table in tables.metadata.tables.values() if table.name != "counter"]
        metadata = sa.MetaData(naming_convention=tables.metadata.naming_convention)
        for table in extra if connection.dialect.name == "postgresql" else tables.metadata.tables.values():
            table.to_metadata(metadata)
        assert compare_metadata(context, metadata) == []


def test_tables_of_a_newer_version_are_left_alone(store, url):
    store.add("ada", [vote()])
    with store._database.engine.connect() as connection, connection.begin():
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"version 9999, which this version of pref-jax does not know.*install"):
        Store.open(url)
    assert len(store.votes("ada")) == 1


def test_a_database_of_something_else_is_left_alone(postgres, tmp_path):
    for url in (f"sqlite:///{tmp_path}/theirs.db", postgres.database()):
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE theirs (id int)"))
        with pytest.raises(UserError, match=r"tables of something else \(theirs\)"):
            Store.open(url)
        assert sa.inspect(engine).get_table_names() == ["theirs"]
        if engine.dialect.name == "sqlite":
            with engine.connect() as connection:
                assert connection.scalar(sa.text("PRAGMA journal_mode")) == "delete"
        engine.dispose()


def test_a_store_that_nobody_made_is_made_only_on_request(postgres, tmp_path):
    empty = tmp_path / "empty.db"
    empty.touch()
    for url, message in ((tmp_path / "no.db", "no such file"), (empty, "no votes"), (postgres.database(), "no votes")):
        with pytest.raises(UserError, match=message):
            Store.open(str(url), make=False)
    assert [file.name for file in tmp_path.iterdir() if file.stat().st_size] == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/votes", "begins with mysql://"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///votes.db?mode=memory", "options after"),
        ("no/such/folder/votes.db", "there is no folder"),
        (".", "is a folder"),
        ("postgresql://user:secret@[::1/votes", "is no URL"),
    ],
)
def test_an_address_that_cannot_be_opened_is_told(url, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        Store.open(url)
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_told_nowhere(postgres):
    url = postgres.url("none").replace("pref@", "pref:hunter2@")
    with pytest.raises(StoreUnavailableError, match=r"\*\*\*.*none. does not exist") as error:
        Store.open(url)
    assert "hunter2" not in "".join(traceback.format_exception(error.value))
