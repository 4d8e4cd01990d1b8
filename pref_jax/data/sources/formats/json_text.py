"""JSON: one value on each line, or an array of them, or values one after the other, indented or not."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pref_jax.data.sources.formats.streams import SAMPLE, STDIN, STDIN_NAME, decoded, encoding, lines, opened
from pref_jax.errors import Faults, UserError

# An array's element is held in memory as a whole: a damaged one must not take in the rest of a huge file.
_LONGEST = 1 << 28


def json_lines(
    path: Path, faults: Faults, *, fix: str = "write one JSON object on each line"
) -> Iterator[tuple[int, Any]]:
    """Line number and JSON value of each line that has one; notes the others. The path `-` is standard input.

    Args:
      path: the file, UTF-8 or UTF-16, perhaps packed by gzip.
      faults: gets the lines that hold no JSON, or the same field twice.
      fix: of a line that is no JSON.

    Raises:
      UserError: if there is no such file, or it is cut short.
    """
    name = STDIN_NAME if path == STDIN else path
    with opened(path) as file:
        yield from parsed_lines(lines(file, file.peek(SAMPLE), name), name, faults, fix=fix)


def parsed_lines(
    given: Iterable[bytes], name: object, faults: Faults, *, fix: str = "write one JSON object on each line"
) -> Iterator[tuple[int, Any]]:
    """`json_lines` of lines that are at hand."""
    for line, raw in enumerate(given, start=1):
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
            if text.strip():
                yield line, parse(text)
        except UnicodeEncodeError:
            what = "holds half of a surrogate pair, which is no character"
            faults.add(f"{name}:{line}", what, "drop the escape, or write the character itself")
        except UnicodeDecodeError as error:
            what = f"not UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1})"
            faults.add(f"{name}:{line}", what, "save the file as UTF-8")
        except json.JSONDecodeError as error:
            faults.add(f"{name}:{line}", f"not JSON ({error.msg} at column {error.colno})", fix)
        except (ValueError, RecursionError) as error:
            faults.add(f"{name}:{line}", f"not read ({error})", "write each field once, and as documented")


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      JSONDecodeError, ValueError, RecursionError: if it is none, names a field twice, or is nested too deeply.
      UnicodeEncodeError: if it holds half of a surrogate pair.
    """
    value = _DECODER.decode(text)
    _check_characters(text, value)
    return value


def _check_characters(text: str, value: Any) -> None:
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a field named twice one value would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"field {next(name for name in names if names[name] > 1)!r} is named twice")
    return value


# One for all: to make it takes as long as to read a short line.
_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_values(file: io.BufferedReader, start: bytes, name: object, faults: Faults) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of each element of an array, or of several values one after the other.

    Raises:
      UserError: while it is read, where the text is damaged: what follows cannot be told apart.
    """
    with decoded(file, encoding(start)) as given:
        yield from _values(_Text(given, name), faults)


def _values(text: "_Text", faults: Faults) -> Iterator[tuple[int, Any]]:
    number = 0
    array = text.next() == "["
    text.skip(array)
    while (character := text.next()) and character != "]":
        number += 1
        try:
            yield number, text.value()
        except UnicodeEncodeError:
            what = "holds half of a surrogate pair, which is no character"
            faults.add(f"{text.name}, row {number}", what, "drop the escape, or write the character itself")
        comma = array and text.next() == ","
        text.skip(comma)
        if array and not comma and text.next() != "]":
            raise text.fault("no comma and no end of the array")
        if comma and text.next() == "]":
            raise text.fault("a comma before the end of the array")
    if array and character != "]":
        raise text.fault("the array does not end")
    text.skip(array)
    if text.next():
        raise text.fault("more after the end")


class _Text:
    """JSON text that is read in parts; `next` is its next character that is no white space, "" at the end."""

    def __init__(self, file: io.TextIOWrapper, name: object):
        self._file, self.name = file, name
        self._buffer, self._place, self._line = "", 0, 1

    def next(self) -> str:
        while True:
            rest = self._buffer[self._place : self._place + 64]
            blank = len(rest) - len(rest.lstrip(" \t\r\n"))
            self.skip(blank)
            if blank < len(rest):
                return rest[blank]
            if self._place >= len(self._buffer) and not self._more():
                return ""

    def skip(self, count: int) -> None:
        end = self._place + count
        self._line += self._buffer.count("\n", self._place, end)
        self._place = end

    def value(self) -> Any:
        size = SAMPLE
        while True:
            try:
                found, end = _DECODER.raw_decode(self._buffer, self._place)
                if end < len(self._buffer) or not self._more():
                    break
            except (ValueError, RecursionError) as error:
                # It may only be cut where the part ends.
                size *= 2
                if len(self._buffer) - self._place > _LONGEST or not self._more(size):
                    what = f"{error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
                    raise self.fault(what) from None
        text = self._buffer[self._place : end]
        self.skip(end - self._place)
        _check_characters(text, found)
        return found

    def fault(self, what: str) -> UserError:
        if self._buffer[self._place : self._place + 1] == "":
            what += ", the file is cut short"
        return UserError(f"{self.name}: damaged at line {self._line} ({what}); write the file again")

    def _more(self, size: int = SAMPLE) -> bool:
        try:
            part = self._file.read(size)
        except UnicodeError as error:
            raise UserError(f"{self.name}: damaged after line {self._line} ({error}); save it as UTF-8") from None
        self._buffer, self._place = self._buffer[self._place :] + part, 0
        return bool(part)
