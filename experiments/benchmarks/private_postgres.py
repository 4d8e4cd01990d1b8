"""A PostgreSQL server of one's own: in a temporary folder, reached by a socket there, gone when the block ends."""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pref_jax.errors import UserError

# Where Debian and its kin keep them, outside the path.
PLACES = "/usr/lib/postgresql/*/bin"
# Sockets' paths have to be short, and other users have to reach them.
PARENT = "/tmp"
SECONDS = 30.0
# Safe against the death of processes, not against a power cut: quick.
UNSAFE = ("fsync=off", "full_page_writes=off")


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, of the newest version that is installed; None if there is none."""
    found = [path for path in Path("/").glob(PLACES.removeprefix("/")) if (path / "initdb").exists()]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    named = shutil.which("initdb")
    return None if named is None else Path(named).resolve().parent


class PostgresServer:
    """A server that can be stopped and started.

    Args:
      folder: empty; holds the data and the socket.
      safe: whether what is committed survives a power cut, as it does by default; without, it is quicker.

    Attributes:
      owner: numbers of the user and group that it runs as.
    """

    def __init__(self, folder: Path, *, safe: bool):
        found = binaries()
        if found is None:
            raise UserError("there is no PostgreSQL server here: apt-get install postgresql")
        self._bin, self._folder, self._safe = found, folder, safe
        self._numbers, self._process = itertools.count(), None
        self._log = folder / "log"
        self._run_as: dict[str, Any] = {}
        self.owner = os.geteuid(), os.getegid()
        if os.geteuid() == 0:
            # PostgreSQL does not run as root.
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            self.owner = user.pw_uid, user.pw_gid
            os.chown(folder, *self.owner)
            self._run_as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        command = [self._bin / "initdb", "-D", folder / "data", "-U", "pref", "-A", "trust", "-E", "UTF8", "--no-sync"]
        done = subprocess.run(
            [*command, "--locale=C"], cwd=folder, capture_output=True, text=True, check=False, **self._run_as
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr[-2000:]}")

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        settings = ["listen_addresses=", f"unix_socket_directories={self._folder}", "max_connections=200"]
        settings += () if self._safe else UNSAFE
        options = [part for setting in settings for part in ("-c", setting)]
        command = [str(self._bin / "postgres"), "-D", str(self._folder / "data"), *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, **self._run_as)
        self._wait()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it: at once, if not by SIGINT but by SIGQUIT."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(SECONDS)
            self._process = None

    def database(self, template: str = "template1", options: str = "") -> str:
        """The address of a new database, a copy of another one."""
        name = f"d{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} {options}")
        return self.url(name)

    def url(self, database: str) -> str:
        """The address of a database."""
        return f"postgresql+psycopg://pref@/{database}?host={self._folder}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Runs a statement outside of transactions."""
        with self.connect(database) as connection:
            connection.execute(statement.encode())

    def connect(self, database: str = "postgres") -> Any:
        """A connection of the bare driver, which commits each statement."""
        import psycopg

        return psycopg.connect(host=str(self._folder), user="pref", dbname=database, autocommit=True)

    def _wait(self) -> None:
        import psycopg

        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.02)


@contextlib.contextmanager
def private_postgres(*, safe: bool) -> Iterator[PostgresServer]:
    """A running server.

    Raises:
      UserError: if PostgreSQL is not installed.
    """
    folder = Path(tempfile.mkdtemp(prefix="pref-pg-", dir=PARENT))
    try:
        server = PostgresServer(folder, safe=safe)
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
