"""Bytes of a file: opened, unpacked, and as lines of UTF-8."""

import contextlib
import gzip
import io
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pref_jax.errors import UserError

STDIN, STDIN_NAME = Path("-"), Path("standard input")
SAMPLE = 1 << 16
_GZIP = b"\x1f\x8b"
# Longest first, as UTF-32's begins like UTF-16's.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file, or standard input (`-`), for reading from its beginning; gzip is unpacked, whatever the file's ending.

    Raises:
      UserError: if there is no such file, or while it is read, if it is cut short.
    """
    if path != STDIN and (path.is_dir() or not path.exists()):
        raise UserError(f"{path}: no such file; check the path")
    # What can be read only once, such as a pipe, is copied.
    once = path == STDIN or not path.is_file()
    try:
        with contextlib.ExitStack() as stack:
            file: Any = tempfile.TemporaryFile(buffering=0) if once else path.open("rb", 0)  # noqa: SIM115
            stack.enter_context(file)
            if once:
                with contextlib.nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb") as given:
                    shutil.copyfileobj(given, file)
                file.seek(0)
            packed = file.read(2) == _GZIP
            file.seek(0)
            if packed or path.suffix == ".gz":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            yield stack.enter_context(io.BufferedReader(file, SAMPLE))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: cut short or not gzip ({error}); fetch or pack the file again") from None


def encoding(start: bytes) -> str:
    """The encoding of a text, from its beginning: by its mark, or by the zeros that UTF-16 has in plain text."""
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name
    for place, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        own = start[place::2]
        if len(own) > 4 and own.count(0) > 0.4 * len(own):
            return name
    return "utf-8-sig"


@contextlib.contextmanager
def decoded(file: io.BufferedReader, coded: str, **options: Any) -> Iterator[io.TextIOWrapper]:
    """The file as text; it stays open."""
    text = io.TextIOWrapper(file, encoding=coded, **options)
    try:
        yield text
    finally:
        text.detach()


def lines(file: io.BufferedReader, start: bytes, name: object) -> Iterable[bytes]:
    """Lines of a text as UTF-8, with their ends: of Unix, Windows or the old Mac.

    Raises:
      UserError: while it is read, if a text of another encoding than UTF-8 is damaged.
    """
    coded = encoding(start)
    if coded != "utf-8-sig":
        return _recoded(file, coded, name)
    return _split(file) if b"\r" in start and b"\n" not in start else file


def _recoded(file: io.BufferedReader, coded: str, name: object) -> Iterator[bytes]:
    try:
        with decoded(file, coded) as text:
            for line in text:
                yield line.encode("utf-8", "surrogatepass")
    except UnicodeError as error:
        raise UserError(f"{name}: not {coded.upper()} throughout ({error}); save the file as UTF-8") from None


def _split(file: io.BufferedReader) -> Iterator[bytes]:
    """Lines that a carriage return alone ends."""
    rest = b""
    while part := file.read(SAMPLE):
        *whole, rest = (rest + part).split(b"\r")
        yield from whole
    if rest:
        yield rest
