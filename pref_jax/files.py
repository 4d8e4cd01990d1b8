"""Files and folders that are either whole or absent, whenever a run is killed."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pref_jax.errors import UserError


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, resume: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes the place of `path` when the block ends well.

    If the block raises, the folder is removed and `path` stays as it was. A folder left by a killed run is swept
    away by the next one.

    With `resume`, the folder of a block that raised or was killed stays, and the next block gets it as it is: the
    block itself has to see what of it is of use.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if not resume:
        shutil.rmtree(part, ignore_errors=True)
    part.mkdir(exist_ok=resume)
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
    finally:
        if not resume:
            shutil.rmtree(part, ignore_errors=True)


def user_cache() -> Path:
    """Where this package may keep what can be made again: `$XDG_CACHE_HOME`/pref_jax, else `~/.cache/pref_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pref_jax"


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file at once: readers see the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, at once; NaN is refused because JSON has none.

    Raises:
      ValueError: if `value` holds NaN or an infinity.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Writes arrays by name as safetensors.

    Raises:
      OSError: if the disk is full or the file cannot be written; the library's own error is none.
    """
    import safetensors.numpy

    try:
        safetensors.numpy.save_file(dict(tensors), path, metadata=metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: if the file is missing, cut short or no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path, or run the command that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore the file or make it again") from None


def digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reserve(path: str | Path) -> None:
    """Takes the space on the disk that a file's length asks for, before anything else is written to it.

    A new file of a given length takes its space page by page, so that a full disk would be met in the middle of the
    work. File systems that cannot reserve space are left to report it then.

    Raises:
      UserError: if there is not the space; the file is removed.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        with path.open("r+b") as file:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return
        path.unlink()
        need = f"{path} needs {size / 1e6:.1f} MB"
        raise UserError(f"{error.strerror}; {need}: make room there and run the same command again") from None
