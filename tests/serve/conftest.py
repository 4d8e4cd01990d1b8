"""A private PostgreSQL server for the tests of the service, stores in it and in SQLite, and a tiny model."""

import pytest
import tiny
from services import need_postgres
from serving import lore

from experiments.benchmarks.private_postgres import private_postgres
from lore_jax.fitted import LoRe
from pref_jax.serve.store.store import Store


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny reward model."""
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture(scope="module")
def reference(base) -> LoRe:
    """A LoRe on it, to compare answers with."""
    return lore(base)


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
