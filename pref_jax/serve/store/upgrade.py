"""Brings a database's tables to the newest version, once, however many processes start at a time."""

import threading
from pathlib import Path

import sqlalchemy as sa

from pref_jax.errors import UserError
from pref_jax.serve.store import tables
from pref_jax.serve.store.engine import Database

# Any number, of which PostgreSQL makes a lock that all who migrate wait for.
_LOCK = 7065318
# Alembic keeps what it works on in its modules, for one thread at a time.
_ALEMBIC = threading.Lock()
_VERSION = sa.table("alembic_version", sa.column("version_num"))


def upgrade(database: Database, *, make: bool = True) -> None:
    """Makes (if `make`) or changes the tables if they are not of version `tables.HEAD`.

    Raises:
      UserError: if there are none and none are to be made; if they are of a newer version than this code; if they are
        of something else.
      StoreUnavailableError: if it cannot be reached, or another process holds it for too long.
    """
    with database.read() as connection:
        found = version(connection)
    if found is None and not make:
        raise UserError(f"{database.name}: holds no votes; pref serve makes its tables, or pref store keys add")
    if found != tables.HEAD:
        database.write(lambda connection: _migrate(connection, database.name))
    database.use()


def version(connection: sa.Connection) -> str | None:
    """The version of a database's tables; None if there are none."""
    if not sa.inspect(connection).has_table(_VERSION.name):
        return None
    return connection.scalar(sa.select(_VERSION.c.version_num))


def _migrate(connection: sa.Connection, name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    found = version(connection)
    if found == tables.HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    # A % would begin a reference to another option.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise UserError(
            f"{name}: its tables are of version {found}, which this version of pref-jax does not know (it knows "
            f"{tables.HEAD}); install the version that made them, or a newer one. Nothing was changed"
        )
    if found is None and (others := set(sa.inspect(connection).get_table_names())):
        some = ", ".join(sorted(others)[:5])
        raise UserError(f"{name}: holds tables of something else ({some}); name a database of its own")
    with _ALEMBIC:
        command.upgrade(config, "head")
