"""Connections: how each database is opened so that what is acknowledged is durable, and its errors in words."""

import contextlib
import os
import random
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

from pref_jax.errors import UserError
from pref_jax.serve.store.errors import StoreUnavailableError

T = TypeVar("T")
# Seconds to wait for another writer, and for a connection.
WAIT, CONNECT = 10.0, 5
# Of transactions that met another one's: by row locks, or by the same new text or id.
ATTEMPTS = 20
_MET = ("40001", "40P01", "23503", "23505")
_SAFE = "it is safe to try again"


class Database:
    """An engine, and transactions that read or write.

    Args:
      url: "sqlite:///path", the path alone, or "postgresql://...".
      wait: seconds to wait for another writer.
      connections: at most.
      make: whether a file that is not there is made.

    Raises:
      UserError: for another kind of URL, a folder or file that is not there, or a driver that is not installed.
    """

    def __init__(self, url: str, *, wait: float = WAIT, connections: int = 16, make: bool = True):
        self.wait, parsed = wait, parse(url)
        self.name = parsed.render_as_string(hide_password=True)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_size": connections, "max_overflow": 0, "pool_timeout": wait}
        # What is written must not be told in errors.
        options |= {"hide_parameters": True, "poolclass": sa.QueuePool}
        self.engine = _sqlite(parsed, wait, make, options) if self.is_sqlite else _postgres(parsed, wait, options)
        self._log = False
        if self.is_sqlite:
            event.listen(self.engine, "connect", self._use_log)
        # SQLite's own queue of writers lets them sleep; that of one process need not.
        self._writer = threading.Lock() if self.is_sqlite else None

    def use(self) -> None:
        """Says that the tables are ours: SQLite then keeps a log beside its file, which changes the file for good."""
        self._log = True
        self.engine.dispose()

    def _use_log(self, connection: sqlite3.Connection, _: Any) -> None:
        deadline = time.monotonic() + self.wait
        while self._log and connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            # Two processes that both change it meet without waiting for each other.
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextlib.contextmanager
    def read(self, *, snapshot: bool = False) -> Iterator[sa.Connection]:
        """A transaction that reads; with `snapshot` all of its statements see the same moment."""
        with self.told(), self.engine.connect() as connection:
            if snapshot and not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """What `work` gives, once its transaction is durable; `work` may run several times.

        Raises:
          StoreUnavailableError: if it cannot be.
        """
        with self._turn(), self.told():
            for attempt in range(ATTEMPTS):
                try:
                    with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
                        return work(connection)
                except exc.DBAPIError as error:
                    if self.is_sqlite or _state(error) not in _MET or attempt == ATTEMPTS - 1:
                        raise
                time.sleep(random.uniform(0, 0.002 * 2 ** min(attempt, 6)))
        raise AssertionError("the last attempt returns or raises")

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=self.wait):
            raise self._locked()
        try:
            yield
        finally:
            self._writer.release()

    def wipe(self) -> bool | None:
        """Rids SQLite's files of what was removed; whether they are free of it. None: PostgreSQL looks after itself.

        `secure_delete` zeroes what is deleted, but not copies that were left behind when rows moved from page to page:
        only a file that is rewritten is free of them.
        """
        if not self.is_sqlite:
            return None
        try:
            with self._turn(), self.told(), contextlib.closing(self.engine.raw_connection()) as connection:
                cursor = connection.cursor()
                if not cursor.execute("PRAGMA user_version").fetchone()[0]:
                    return True
                cursor.execute("VACUUM")
                busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if not busy:
                    cursor.execute("PRAGMA user_version=0")
                return not busy
        except (StoreUnavailableError, sqlite3.Error):
            return False

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turns errors of the database into errors for people, without what was written or read."""
        try:
            yield
        except exc.TimeoutError:
            raise StoreUnavailableError(
                "locked", f"{self.name}: all connections are in use; {_SAFE} in a moment"
            ) from None
        except exc.SQLAlchemyError as error:
            told = _sqlite_error(error) if self.is_sqlite else _postgres_error(error)
            if told[0] == "locked":
                raise self._locked() from None
            raise StoreUnavailableError(told[0], f"{self.name}: {told[1]}") from None

    def _locked(self) -> StoreUnavailableError:
        what = f"another writer held the database for more than {self.wait:g} s"
        return StoreUnavailableError("locked", f"{self.name}: {what}; {_SAFE}")


def owe_wiping(connection: sa.Connection) -> None:
    """Notes in a transaction that removes something that `Database.wipe` has to follow."""
    if connection.dialect.name == "sqlite":
        connection.execute(sa.text("PRAGMA user_version=1"))


def parse(url: str) -> sa.URL:
    """The URL, with its driver; a path is one of SQLite's.

    Raises:
      UserError: if it is none of SQLite's or PostgreSQL's.
    """
    fix = "give a file such as votes.db, or postgresql://user@host/database"
    try:
        parsed = sa.make_url(url) if "://" in url else sa.URL.create("sqlite", database=url)
    except (exc.ArgumentError, ValueError):
        raise UserError(f"the store's address is no URL; {fix}") from None
    kind = parsed.drivername
    if kind in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if kind not in ("sqlite", "sqlite+pysqlite"):
        raise UserError(f"the store's address begins with {kind}://; {fix}")
    if parsed.database in (None, "", ":memory:") or parsed.query:
        raise UserError(f"{url}: votes in memory do not last, and options after ? are not taken; {fix}")
    return parsed


def _sqlite(url: sa.URL, wait: float, make: bool, options: dict[str, Any]) -> sa.Engine:
    path = Path(str(url.database)).absolute()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    if not make and not path.exists():
        raise UserError(f"{path}: no such file; pref serve makes it, or pref store keys add")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it, or name another file")
    with contextlib.suppress(OSError):
        # Votes are private; SQLite gives its log the mode of the file.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))

    def connect() -> sqlite3.Connection:
        # A file that has gone is not created again: nobody would notice that its votes are missing.
        given = f"file:{urllib.parse.quote(str(path))}?mode=rw"
        # The module must not begin transactions by itself: `_begin` does.
        return sqlite3.connect(given, uri=True, timeout=wait, check_same_thread=False, isolation_level=None)

    def note(connection: sqlite3.Connection, record: Any) -> None:
        for setting in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {setting}")
        record.info["file"] = _file(path)

    def check(_: sqlite3.Connection, record: Any, __: Any) -> None:
        # What is written to a file that was moved away, or replaced, would be acknowledged and lost.
        if _file(path) != record.info["file"]:
            raise exc.DisconnectionError

    engine = sa.create_engine(url, creator=connect, **options)
    event.listen(engine, "connect", note)
    event.listen(engine, "checkout", check)
    event.listen(engine, "begin", _begin)
    return engine


def _file(path: Path) -> tuple[int, int] | None:
    """Which file this is; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgres(url: sa.URL, wait: float, options: dict[str, Any]) -> sa.Engine:
    limit = f"-c lock_timeout={int(wait * 1000)} -c client_encoding=utf8"
    given: dict[str, Any] = {"connect_timeout": CONNECT, "options": limit, "application_name": "pref"}
    # A server that falls silent is noticed in seconds, not in the two hours that TCP waits by itself.
    given |= {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 15_000}
    try:
        # A connection that broke while nobody used it is replaced before anybody does.
        engine = sa.create_engine(url, connect_args=given, pool_pre_ping=True, **options)
    except ModuleNotFoundError:
        raise UserError("PostgreSQL's driver is not installed: pip install 'pref-jax[postgres]'") from None
    event.listen(engine, "connect", _set_postgres)
    return engine


def _set_postgres(connection: Any, _: Any) -> None:
    with connection.cursor() as cursor:
        if cursor.execute("SHOW server_encoding").fetchone()[0] != "UTF8":
            raise UserError("the PostgreSQL database is not in UTF8; create it with ENCODING 'UTF8'")
        if cursor.execute("SHOW synchronous_commit").fetchone()[0] == "off":
            cursor.execute("SET synchronous_commit = on")
    connection.commit()


def _sqlite_error(error: exc.SQLAlchemyError) -> tuple[str, str]:
    origin = getattr(error, "orig", None)
    # The low byte is the kind, the others say more of it.
    code = (getattr(origin, "sqlite_errorcode", None) or 0) & 0xFF
    told = {
        sqlite3.SQLITE_BUSY: ("locked", ""),
        sqlite3.SQLITE_LOCKED: ("locked", ""),
        sqlite3.SQLITE_FULL: ("full", f"the disk is full; nothing was stored; make room, then {_SAFE}"),
        sqlite3.SQLITE_IOERR: ("gone", f"the disk could not be read or written; {_SAFE}"),
        sqlite3.SQLITE_CANTOPEN: ("gone", f"the file cannot be opened; see that it is there, then {_SAFE}"),
        sqlite3.SQLITE_READONLY: ("readonly", f"the file may not be written; change its permissions, then {_SAFE}"),
        sqlite3.SQLITE_PERM: ("readonly", f"the file may not be opened; change its permissions, then {_SAFE}"),
        sqlite3.SQLITE_CORRUPT: ("damaged", "the file is damaged; restore it from a backup"),
        sqlite3.SQLITE_NOTADB: ("damaged", "the file is no SQLite database; name another one"),
    }
    return told.get(code, ("failed", f"the database refused ({type(origin or error).__name__}); {_SAFE}"))


def _postgres_error(error: exc.SQLAlchemyError) -> tuple[str, str]:
    state = _state(error)
    kinds = {
        "53100": ("full", f"the server's disk is full; nothing was stored; make room, then {_SAFE}"),
        "53300": ("gone", f"the server has no connection left; {_SAFE} in a moment"),
        "25006": ("readonly", f"the server takes no writes now; {_SAFE} when it does"),
        "55P03": ("locked", ""),
        "57014": ("locked", ""),
        "42501": ("readonly", "the server does not let this user do that; grant it rights on the database"),
        **dict.fromkeys(_MET, ("locked", "")),
    }
    if state in kinds:
        return kinds[state]
    if not state or state[:2] in ("08", "57") or getattr(error, "connection_invalidated", False):
        # Of one that cannot be reached libpq tells the reason in its own words alone, and no texts were sent yet.
        why = "" if getattr(error, "statement", None) else " ".join(str(getattr(error, "orig", "")).split())[:300]
        return "gone", f"the server cannot be reached, or went away{why and f' ({why})'}; {_SAFE} when it is back"
    return "failed", f"the database refused (SQLSTATE {state}); {_SAFE}"


def _state(error: exc.SQLAlchemyError) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""
