"""Tables as text: CSV and its like, with a header. Every cell is text; an empty one is none."""

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any

from pref_jax.data.sources.formats.streams import decoded, encoding
from pref_jax.errors import Faults, UserError

_DELIMITERS = ",\t;|"


def delimiter(header: str) -> str | None:
    """What separates the cells of a header; None if it has a single one."""
    if not header.strip():
        return None

    def cells(sign: str) -> int:
        return len(next(csv.reader([header], delimiter=sign), []))

    best = max(_DELIMITERS, key=cells)
    return best if cells(best) > 1 else None


def separated(
    file: io.BufferedReader, start: bytes, sign: str, name: object, faults: Faults
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line (of a row's end) and cells by column; notes rows that do not fit the header.

    Raises:
      UserError: for a header that names a column twice; while it is read, where a quotation mark opens what no other
        closes, so that rows cannot be told apart.
    """
    # Cells are texts of any length; the module's limit is one for all readers.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with decoded(file, encoding(start), errors="surrogateescape", newline="") as text:
        yield from _rows(csv.reader(text, delimiter=sign, strict=True), encoding(start), name, faults)


def _rows(rows: Any, coded: str, name: object, faults: Faults) -> Iterator[tuple[int, dict[str, str]]]:
    header, before = list[str](), 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except (csv.Error, UnicodeError) as error:
            if rows.line_num > before + 1 or isinstance(error, UnicodeError):
                what = f"no row from line {before + 1} to {rows.line_num} ({error})"
                raise UserError(f"{name}: {what}; look for a quotation mark that nothing closes") from None
            faults.add(f"{name}:{rows.line_num}", f"no row ({error})", "double quotation marks inside a quoted cell")
            row = None
        before = rows.line_num
        if not row:
            continue
        if not header:
            header = row
            if twice := {column for column in header if header.count(column) > 1}:
                raise UserError(f"{name}: the header names {sorted(twice)} twice; give each column one name")
            if not all(map(_is_text, header)):
                raise UserError(f"{name}: the header is not {coded.upper()}; save the file as UTF-8")
            continue
        if len(row) != len(header):
            fix = "quote cells that hold the separator, or drop the row"
            faults.add(f"{name}:{before}", f"{len(row)} cells under a header of {len(header)}", fix)
            continue
        if any(not cell.isascii() and not _is_text(cell) for cell in row):
            faults.add(f"{name}:{before}", f"not {coded.upper().removesuffix('-SIG')}", "save it as UTF-8")
            continue
        yield before, {column: cell for column, cell in zip(header, row, strict=True) if cell != ""}


def _is_text(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True
