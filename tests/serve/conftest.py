"""A private PostgreSQL server for the tests of the service, and stores in it and in SQLite."""

import pytest
from services import need_postgres

from experiments.benchmarks.private_postgres import private_postgres
from pref_jax.serve.store.store import Store


@pytest.fixture(scope="session")
def postgres():
    """A running server, which forgets on a power cut, so that it is quick."""
    need_postgres()
    with private_postgres(safe=False) as server:
        server.execute("CREATE DATABASE empty_store")
        Store.open(server.url("empty_store")).close()
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The address of an empty store, in each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/votes.db"
    return request.getfixturevalue("postgres").database(template="empty_store")


@pytest.fixture
def store(url):
    with Store.open(url) as opened:
        yield opened
