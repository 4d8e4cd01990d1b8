"""Which format a file has, by its content: a reader for it, or its name and how to convert it."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pref_jax.data.sources.formats.columnar import columnar
from pref_jax.data.sources.formats.json_text import json_values, parsed_lines
from pref_jax.data.sources.formats.separated import delimiter, separated
from pref_jax.data.sources.formats.streams import SAMPLE, STDIN, STDIN_NAME, encoding, lines, opened
from pref_jax.errors import Faults, UserError

READ = "JSON lines, a JSON array, CSV, Parquet, Arrow (Feather), a folder of these, or a folder or hub id of `datasets`"
_COLUMNAR = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\xff\xff\xff\xff": "Arrow stream"}
_PANDAS = "pandas.{}(FILE).to_json('votes.jsonl', orient='records', lines=True)"
_UNPACK = "unpack it first ({} FILE)"
# How other formats begin, what they are, and what to do.
_OTHERS = (
    (rb"PK\x03\x04.*xl/", "an Excel workbook", f"save it as CSV UTF-8, or use {_PANDAS.format('read_excel')}"),
    (rb"PK\x03\x04.*opendocument", "an OpenDocument file", "save the sheet as CSV in UTF-8"),
    (rb"PK\x03\x04", "a zip archive", _UNPACK.format("unzip")),
    (rb"\xd0\xcf\x11\xe0", "an old Office file", "save the sheet as CSV in UTF-8"),
    (rb"%PDF", "a PDF", "export the votes as CSV or JSON lines where they were made"),
    (rb"SQLite format 3\x00", "an SQLite database", "sqlite3 -json FILE 'select * from TABLE' > votes.json"),
    (rb"\x80[\x02-\x05]", "a Python pickle, which is never opened, as it can run code", "save the votes as JSON lines"),
    (rb"BZh", "packed by bzip2", _UNPACK.format("bunzip2")),
    (rb"\xfd7zXZ", "packed by xz", _UNPACK.format("unxz")),
    (rb"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK.format("unzstd")),
    (rb"7z\xbc\xaf", "a 7z archive", _UNPACK.format("7z x")),
    (rb"Rar!", "a RAR archive", _UNPACK.format("unrar x")),
    (rb".{257}ustar", "a tar archive", _UNPACK.format("tar xf")),
    (rb"FEA1", "Feather of version 1", f"use {_PANDAS.format('read_feather')} with an older pandas"),
    (rb"\x89HDF", "HDF5", f"use {_PANDAS.format('read_hdf')}"),
    (rb"ORC", "ORC", f"use {_PANDAS.format('read_orc')}"),
    (rb"Obj\x01", "Avro", "convert it to JSON lines (avro-tools tojson FILE)"),
    (rb"\x93NUMPY", "a NumPy array", "save the votes as JSON lines or CSV"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image", "give the votes as text"),
    (rb"version https://git-lfs", "a Git LFS pointer instead of the file", "git lfs pull"),
    (rb"\{\\rtf", "rich text", "save it as plain text, CSV or JSON lines"),
    (rb"(?i:\s*<!doctype html|\s*<html)", "a web page", "check the link it was fetched from"),
    (rb"\s*<", "XML", f"use {_PANDAS.format('read_xml')}"),
    (rb"---\s|- \w", "YAML", "convert it to JSON lines"),
)


class Source(NamedTuple):
    """A file of rows.

    Attributes:
      name: of the file, as people know it.
      format: in words.
      rows: where each row is ("votes.csv:3", "votes.parquet, row 3") and its value, in order.
      cells: whether values are cells of a table, whose types say less than JSON's: "text" (all are texts), "typed" or
        "" (JSON).
      split: of all rows, by the file's name; None if it tells none.
    """

    name: str
    format: str
    rows: Iterator[tuple[str, Any]]
    cells: str = ""
    split: str | None = None


def open_file(path: Path, faults: Faults) -> Source:
    """A file, or standard input (`-`), by its content, whatever its ending.

    Args:
      path: the file, perhaps packed by gzip.
      faults: gets rows that cannot be read, while the others are.

    Raises:
      UserError: if there is no such file, or its format is none that is read; while it is read, if it is damaged.
    """
    name = str(STDIN_NAME if path == STDIN else path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened(path))
        source = _source(file, file.peek(SAMPLE)[:SAMPLE], name, faults)
        held = stack.pop_all()

    def rows() -> Iterator[tuple[str, Any]]:
        with held:
            yield from source.rows

    return source._replace(rows=rows())


def _source(file: io.BufferedReader, start: bytes, name: str, faults: Faults) -> Source:
    format = next((format for magic, format in _COLUMNAR.items() if start.startswith(magic)), None)
    if format is not None:
        found = columnar(file, format, name)
        return Source(name, format, ((f"{name}, row {number}", value) for number, value in found), "typed")
    for pattern, what, fix in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            raise UserError(f"{name}: is {what}; {fix}; what is read is {READ}")
    text = start.decode(encoding(start), errors="replace")
    format = _text_format(text, whole=len(start) < SAMPLE)
    if format == "JSON lines":
        found = parsed_lines(lines(file, start, name), name, faults)
        return Source(name, format, ((f"{name}:{number}", value) for number, value in found))
    if format == "JSON":
        found = json_values(file, start, name, faults)
        return Source(name, format, ((f"{name}, row {number}", value) for number, value in found))
    header = re.split(r"\r\n?|\n", text.lstrip("\r\n"), maxsplit=1)[0]
    sign = delimiter(header)
    if sign is None or "\x00" in text:
        raise UserError(f"{name}: neither JSON, nor a table with a header (CSV), nor another known format; give {READ}")
    found = separated(file, start, sign, name, faults)
    return Source(name, "CSV", ((f"{name}:{number}", value) for number, value in found), "text")


def _text_format(text: str, *, whole: bool) -> str:
    """ "JSON lines", "JSON" (an array, or values over several lines) or "" (no JSON), from a text's beginning."""
    text = text.lstrip("\ufeff \t\r\n")
    parts = [part for part in re.split(r"[\r\n]+", text) if part.strip()]
    parts = parts if whole else parts[: max(len(parts) - 1, 1)]
    if not parts:
        return "JSON lines"
    if text.startswith("["):
        return "JSON lines" if len(parts) > 1 and _is_json(parts[0]) else "JSON"
    if any(part.startswith("{") and _is_json(part) for part in parts[:1000]):
        return "JSON lines"
    if text.startswith("{"):
        return "JSON" if parts[0].strip() == "{" and (not whole or _is_json(text, rest=True)) else "JSON lines"
    return ""


def _is_json(text: str, *, rest: bool = False) -> bool:
    """Whether a text is a JSON value, or with `rest`, begins with one."""
    try:
        json.JSONDecoder().raw_decode(text) if rest else json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
