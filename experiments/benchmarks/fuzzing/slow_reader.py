"""What a damaged file of votes still says, by a slow reader that shares no code with the fast one.

It knows the formats and forms that `damage` writes, and nothing else.
"""

import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

NUMBERS = ("strength", "preference", "rating", "time")
TEXTS = ("prompt", "chosen", "rejected", "response")


class Unreadable(Exception):
    """The file as a whole says nothing reliable."""


def knows(name: str, data: bytes) -> bool:
    """Whether a file can be read in one way only: UTF-16 that has lost its mark may be of either order of bytes."""
    return not name.endswith("UTF-16") or data[:2] in (b"\xff\xfe", b"\xfe\xff")


def kinds(name: str, data: bytes) -> tuple[Counter[str], set[str], int]:
    """Votes by kind, users, and the number of bad rows.

    Raises:
      Unreadable: where rows cannot be told apart.
    """
    found: Counter[str] = Counter()
    users: set[str] = set()
    bad = 0
    for row in records(name, data):
        kind = _kind(row) if isinstance(row, dict) else None
        bad += kind is None
        if kind is not None and isinstance(row, dict):
            found[kind] += 1
            users.add(row["user"])
    return found, users, bad


def records(name: str, data: bytes) -> list[Any]:
    """Rows under the fields' names; None for those that are none."""
    if name.startswith("JSON lines"):
        return _lines(name, data)
    if name in ("CSV", "TSV"):
        return _cells(data, "," if name == "CSV" else "\t")
    if name in ("Parquet", "Arrow file", "Arrow stream", "datasets"):
        return _columns(name, data)
    try:
        values = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Unreadable from None
    if not isinstance(values, list):
        raise Unreadable
    values = [value if _characters(value) else None for value in values]
    unpack = {"Chatbot Arena": _arena, "Label Studio": _label_studio, "Argilla": _argilla}.get(name)
    return values if unpack is None else [row for value in values for row in unpack(value)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError
    return dict(pairs)


def _lines(name: str, data: bytes) -> list[Any]:
    try:
        data = gzip.decompress(data) if name.endswith("gzip") else data
        data = data.decode("utf-16").encode() if name.endswith("16") else data
    except (OSError, EOFError, ValueError, zlib.error):
        raise Unreadable from None
    rows = []
    for line in data.split(b"\n"):
        try:
            text = line.decode()
            if text.strip():
                rows.append(json.loads(text, object_pairs_hook=_once))
        except (ValueError, RecursionError):
            rows.append(None)
    return rows


def _cells(data: bytes, sign: str) -> list[Any]:
    """Cells by a reading of one character after another; bytes that are no UTF-8 spoil their row."""
    text = data.decode("utf-8-sig", errors="surrogateescape")
    table, row, cell, state = [], [], "", "start"
    for place, sign_here in enumerate(text):
        if state == "lost":
            if sign_here in "\r\n":
                table, row, cell, state = [*table, ["\udcff"]], [], "", "start"
        elif state == "quoted":
            if sign_here == '"':
                state = "closed"
            else:
                cell += sign_here
        elif sign_here == '"' and state == "closed":
            cell, state = cell + '"', "quoted"
        elif sign_here == '"' and state == "start":
            state = "quoted"
        elif sign_here == sign or sign_here in "\r\n":
            if sign_here == "\n" and place and text[place - 1] == "\r" and not row and not cell and state == "start":
                continue
            row, cell, state = [*row, cell], "", "start"
            if sign_here != sign:
                table, row = [*table, row], []
        elif state == "closed":
            if "\n" in "".join([*row, cell]) or "\r" in "".join([*row, cell]):
                raise Unreadable
            state = "lost"
        else:
            cell, state = cell + sign_here, "plain"
    if state == "quoted" and ("\n" in "".join([*row, cell]) or "\r" in "".join([*row, cell])):
        raise Unreadable
    if state in ("quoted", "lost"):
        row, cell = ["\udcff"], "\udcff"
    table = [one for one in [*table, [*row, cell]] if one != [""]]
    if not table:
        return []
    header = table[0]
    if len(set(header)) < len(header):
        raise Unreadable
    if re.search("[\udc80-\udcff]", "".join(header)):
        raise Unreadable
    fit = [len(one) == len(header) and not re.search("[\udc80-\udcff]", "".join(one)) for one in table[1:]]
    rows = [dict(zip(header, one, strict=True)) if good else None for one, good in zip(table[1:], fit, strict=True)]
    return [row and {name: _value(name, cell) for name, cell in row.items() if cell != ""} for row in rows]


def _value(name: str, cell: str) -> Any:
    if name in NUMBERS:
        try:
            return float(cell)
        except ValueError:
            return cell
    if name in TEXTS and cell.startswith("[{"):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _columns(name: str, data: bytes) -> list[Any]:
    try:
        if name == "Parquet":
            rows = pd.read_parquet(io.BytesIO(data)).to_dict("records")
        else:
            open_ = pa.ipc.open_file if name == "Arrow file" else pa.ipc.open_stream
            table = open_(io.BytesIO(data)).read_all()
            table.validate(full=True)
            rows = table.to_pylist()
    except Exception:  # many kinds, all of damage
        raise Unreadable from None
    rows = [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()} for row in rows
    ]
    return [{key: value for key, value in row.items() if not _missing(value)} for row in rows]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _arena(value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return [None]
    sides = [value.get(f"conversation_{side}") for side in "ab"]
    if not all(isinstance(side, list) and side for side in sides):
        return [None]
    left, right = (side or [] for side in sides)
    if left[:-1] != right[:-1]:
        return []
    winner = str(value.get("winner"))
    if winner not in ("tie", "model_a", "model_b"):
        return [None]
    user = {} if value.get("judge") is None else {"user": str(value["judge"])}
    outcome = {"outcome": "tie"} if winner == "tie" else {}
    return [{**user, **outcome, "chosen": sides[0], "rejected": sides[1]}]


def _label_studio(value: Any) -> list[Any]:
    if not isinstance(value, dict) or not isinstance(value.get("annotations"), list):
        return [None]
    data = value["data"] if isinstance(value.get("data"), dict) else {}
    rows = []
    for one in value["annotations"]:
        if not isinstance(one, dict):
            rows.append(None)
            continue
        result = one["result"] if isinstance(one.get("result"), list) else []
        values = [each.get("value") for each in result if isinstance(each, dict) and each.get("type") == "pairwise"]
        if not values or not isinstance(values[0], dict):
            continue
        if values[0].get("selected") not in ("left", "right"):
            rows.append(None)
            continue
        by = one.get("completed_by")
        user = {} if by is None or isinstance(by, dict) else {"user": str(by)}
        rows.append({**user, "prompt": data.get("prompt"), "chosen": data.get("text1"), "rejected": data.get("text2")})
    return rows


def _argilla(value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return [None]
    fields = value["fields"] if isinstance(value.get("fields"), dict) else {}
    data, rows = {re.sub("[^a-z0-9]", "", name.lower()): one for name, one in fields.items()}, []
    given = value["responses"] if isinstance(value.get("responses"), dict) else {}
    for one in [one for answers in given.values() if isinstance(answers, list) for one in answers]:
        if not isinstance(one, dict) or not isinstance(one.get("value"), list):
            continue
        user = {} if one.get("user_id") is None else {"user": str(one["user_id"])}
        names = [data.get(re.sub("[^a-z0-9]", "", str(name).lower())) for name in one["value"]]
        rows.append({**user, "prompt": data.get("prompt"), "ranking": names})
    return rows


def _kind(row: dict[str, Any]) -> str | None:
    """The kind of a valid row, None for a bad one."""
    there = {name: value for name, value in row.items() if value is not None}
    if not (isinstance(row.get("user"), str) and row["user"].strip()) or not _characters(row):
        return None
    if not all(_good_number(there[name], name) for name in ("time",) if name in there):
        return None
    form = next(
        (
            form
            for form, fields in (
                (_pair, ("chosen", "rejected")),
                (_ranking, ("ranking",)),
                (_two, ("responses",)),
                (_rating, ("response", "rating")),
            )
            if there.keys() & set(fields)
        ),
        _pair,
    )
    return form(there)


def _characters(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _good_number(value: Any, name: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return isinstance(value, str) and name == "time" and re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None
    if name == "time":
        return 0 <= value < 1e17
    return abs(value) < 3.4e38 and (value == 0 or abs(value) > 1e-44)


def _texts(prompt: Any, given: list[Any]) -> bool:
    """Whether these are different answers to one prompt."""
    chats = [_chat(one, "assistant") for one in given]
    asked = _chat(prompt, "user")
    if prompt is None and all(isinstance(one, list) for one in given):
        beginnings = [(chat or [])[:-1] for chat in chats]
        asked = beginnings[0] if beginnings and all(one == beginnings[0] for one in beginnings) else None
    if not asked or any(chat is None for chat in chats):
        return False
    size = len(asked)
    ends = [chat[size:] if chat and len(chat) > size and chat[:size] == asked else chat for chat in chats]
    good = all(end and len(end) == 1 and end[0][0] == "assistant" for end in ends)
    return good and len({str(end) for end in ends}) == len(ends)


def _chat(value: Any, role: str) -> list[tuple[str, str]] | None:
    if isinstance(value, str):
        return [(role, value)] if value.strip() else None
    if not isinstance(value, list) or not value:
        return None
    for one in value:
        if not isinstance(one, dict) or one.get("role") not in ("system", "user", "assistant", "tool"):
            return None
        if not isinstance(one.get("content"), str) or not one["content"].strip():
            return None
    return [(one["role"], one["content"]) for one in value]


def _pair(row: dict[str, Any]) -> str | None:
    outcome = row.get("outcome", "preferred")
    if outcome not in ("preferred", "tie", "both_bad", "skipped"):
        return None
    if "strength" in row:
        good = _good_number(row["strength"], "strength") and row["strength"] > 0
        if not good or outcome != "preferred":
            return None
    return outcome if _texts(row.get("prompt"), [row.get("chosen"), row.get("rejected")]) else None


def _two(row: dict[str, Any]) -> str | None:
    given, preference = row["responses"], row.get("preference")
    if "outcome" in row or not isinstance(given, list) or len(given) != 2 or not _texts(row.get("prompt"), given):
        return None
    if not _good_number(preference, "preference"):
        return None
    return "preferred" if preference else "tie"


def _ranking(row: dict[str, Any]) -> str | None:
    given = row["ranking"]
    good = isinstance(given, list) and 2 <= len(given) <= 100 and _texts(row.get("prompt"), given)
    return "ranking" if good else None


def _rating(row: dict[str, Any]) -> str | None:
    rating = row.get("rating")
    if not isinstance(rating, bool) and not _good_number(rating, "rating"):
        return None
    return "rating" if _texts(row.get("prompt"), [row.get("response")]) else None
