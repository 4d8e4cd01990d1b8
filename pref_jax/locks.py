"""One process at a time in a folder; a second one is told who is there."""

import contextlib
import datetime
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pref_jax.errors import UserError
from pref_jax.files import read_json, write_json
from pref_jax.progress import log

NAME = ".lock"
# Seconds in which a process that has just come says who it is.
PATIENCE = 0.5
# Letters of its command that the message has.
SHOWN = 300


@contextlib.contextmanager
def hold(folder: str | Path, *, beside: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Holds `folder` for this process while the block runs; nested calls of one process are one hold.

    The operating system lets go of what a process held that died. Of a job of several JAX processes the first one holds
    the folder for all.

    Args:
      folder: made if it is not there, unless `beside`.
      beside: the lock stands beside the folder, for folders that are replaced as a whole.
      wait: seconds to wait for another process; meanwhile the terminal says for which one.

    Raises:
      UserError: if another process holds the folder, saying which one.

    Example:
      >>> with hold("runs/mine"):
      ...     print("alone")
      alone
    """
    if not first_process():
        yield
        return
    folder = Path(folder)
    path = folder.with_name(f".{folder.name}{NAME}") if beside else folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, about = FileLock(path.absolute(), is_singleton=True), path.with_name(f"{path.name}.json")
    _acquire(lock, folder, about, wait)
    try:
        if lock.lock_counter == 1:
            write_json(about, _me())
        yield
    finally:
        if lock.lock_counter == 1:
            # Who waits for the file that goes sees that it is gone, and makes a new one.
            about.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        lock.release()


def first_process() -> bool:
    """Whether this process is alone, or the first of a job of several JAX processes."""
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def _acquire(lock: FileLock, folder: Path, about: Path, wait: float) -> None:
    try:
        lock.acquire(timeout=PATIENCE)
        return
    except Timeout:
        pass
    if wait > PATIENCE:
        log(f"{folder}: in use by {_who(about)}; waiting")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=wait)
            return
    raise UserError(
        f"{folder} is in use by {_who(about)}; wait until it has ended, or name another folder. Nothing was changed"
    )


def _me() -> dict[str, str | int]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    command = shlex.join(sys.orig_argv)
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": command}


def _who(about: Path) -> str:
    try:
        found = read_json(about)
        command = " ".join(found["command"].split())[:SHOWN]
        return f"process {found['pid']} on {found['host']} since {found['since']} ({command})"
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return "another process"
