"""Files and folders that are either whole or absent, whenever a run is killed."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
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
