"""Small files of votes in every format, and random damage to their values and bytes."""

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
Rng = np.random.Generator
_WORDS = ("Blue.", "Seven minutes.", "It depends, mostly.", 'She said "no".', "Zwölf\nZeilen", "🙂", "{", "[1]", "a;b")


def rows(rng: Rng, *, mixed: bool) -> Rows:
    """Votes of a few people, all valid: pairs, or every form."""
    return [_row(rng, int(rng.integers(6)) if mixed else int(rng.integers(2))) for _ in range(rng.integers(2, 14))]


def _row(rng: Rng, form: int) -> dict[str, Any]:
    texts = [str(text) for text in rng.choice(_WORDS, 4, replace=False)]
    row: dict[str, Any] = {"user": f"u{rng.integers(4)}", "prompt": f"How, {rng.integers(3)}?"}
    pair = {"chosen": texts[0], "rejected": texts[1]}
    forms: list[dict[str, Any]] = [
        pair,
        {**pair, "strength": float(rng.integers(1, 4))},
        {**pair, "outcome": "tie"},
        {"responses": texts[:2], "preference": int(rng.integers(-3, 4))},
        {"ranking": texts[: rng.integers(2, 5)]},
        {"response": texts[0], "rating": float(rng.integers(1, 6))},
    ]
    return {**row, **forms[form], **({"time": 1.7e9 + float(rng.integers(1000))} if rng.random() < 0.3 else {})}


def _nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


_VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: "",
    lambda: " ",
    lambda: True,
    lambda: -1,
    lambda: 10**400,
    lambda: 1e300,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: [],
    lambda: {},
    lambda: {"role": "user"},
    lambda: [{"role": "assistant", "content": "Blue."}],
    lambda: [{"role": "bot", "content": "x"}],
    lambda: _nested(60),
    lambda: "y" * 10_000,
    lambda: "\ud800",
)


def damaged_values(given: Rows, rng: Rng) -> Rows:
    """One to three rows with a field lost, swapped, misnamed or of a wrong kind; or rows doubled or no rows."""
    found: list[Any] = [dict(row) for row in given]
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(found)))
        row = found[place]
        if not isinstance(row, dict) or not row:
            continue
        names = list(row)
        one, other = (str(name) for name in rng.choice(names, 2))
        way = int(rng.integers(6))
        if way == 0:
            del row[one]
        elif way == 1:
            row[one], row[other] = row[other], row[one]
        elif way == 2:
            row[f"x{one}"] = row.pop(one)
        elif way == 3:
            found.insert(place, dict(row))
        elif way == 4 and rng.random() < 0.3:
            found[place] = _VALUES[rng.integers(len(_VALUES))]()
        else:
            row[one] = _VALUES[rng.integers(len(_VALUES))]()
    return found


def damaged_bytes(data: bytes, rng: Rng) -> bytes:
    """Bytes flipped, cut, doubled, swapped, lost or put in."""
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        a, b = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
        near = min(b, a + int(rng.integers(1, 20)))
        way = int(rng.integers(7))
        if way == 0:
            changed = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 8)):
                changed[place] ^= int(rng.integers(1, 256))
            data = bytes(changed)
        elif way == 1:
            data = data[:b]
        elif way == 2:
            data = data[:near] + data[a:near] + data[near:]
        elif way == 3:
            data = data[:a] + data[near:]
        elif way == 4:
            data = data[:a] + rng.bytes(int(rng.integers(1, 9))) + data[a:]
        elif way == 5:
            data = data[:a] + bytes(rng.choice(list(b'"{}[],:\n\r\\\x00')) for _ in range(2)) + data[a:]
        else:
            data = data[b:] + data[a:b] + data[:a]
    return data


def json_lines(given: Rows) -> bytes:
    """The rows, one on each line."""
    return "".join(json.dumps(row) + "\n" for row in given).encode()


def _separated(given: Rows, delimiter: str) -> bytes:
    names = list(dict.fromkeys(name for row in given if isinstance(row, dict) for name in row)) or ["user", "prompt"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, delimiter=delimiter)
    writer.writeheader()
    for row in given:
        cells = row if isinstance(row, dict) else {names[0]: row}
        writer.writerow(
            {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in cells.items()}
        )
    return text.getvalue().encode("utf-8", "replace")


def _table(given: Rows) -> pa.Table:
    return pa.Table.from_pylist([row for row in given if isinstance(row, dict)])


def _parquet(given: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(_table(given), sink)
    return sink.getvalue().to_pybytes()


def _arrow(given: Rows, *, stream: bool) -> bytes:
    sink, table = pa.BufferOutputStream(), _table(given)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _dialogue(row: Any, side: str) -> Any:
    says = [("user", "prompt"), ("assistant", side)]
    return [{"role": role, "content": row[field]} for role, field in says if isinstance(row, dict) and field in row]


def arena(given: Rows) -> bytes:
    """The rows, pairs all, as Chatbot Arena has them."""
    return json.dumps(
        [
            {
                "judge": row.get("user"),
                "winner": "tie" if row.get("strength") else "model_a",
                "conversation_a": _dialogue(row, "chosen"),
                "conversation_b": _dialogue(row, "rejected"),
            }
            if isinstance(row, dict)
            else row
            for row in given
        ]
    ).encode()


def label_studio(given: Rows) -> bytes:
    """The rows, pairs all, as Label Studio has them."""
    selected = {"type": "pairwise", "to_name": "text1,text2", "value": {"selected": "left"}}
    names = {"prompt": "prompt", "text1": "chosen", "text2": "rejected"}
    return json.dumps(
        [
            {
                "data": {name: row[field] for name, field in names.items() if field in row},
                "annotations": [{"completed_by": row.get("user"), "result": [selected]}],
            }
            if isinstance(row, dict)
            else row
            for row in given
        ]
    ).encode()


def argilla(given: Rows) -> bytes:
    """The rows, pairs all, as Argilla has them."""
    names = {"prompt": "prompt", "response1": "chosen", "response2": "rejected"}
    return json.dumps(
        [
            {
                "fields": {name: row[field] for name, field in names.items() if field in row},
                "responses": {"best": [{"user_id": row.get("user"), "value": ["response1", "response2"]}]},
            }
            if isinstance(row, dict)
            else row
            for row in given
        ]
    ).encode()


def datasets_folder(given: Rows) -> bytes:
    """The one file of rows in a folder that `datasets` saved."""
    return _arrow(given, stream=True)


def write_datasets_folder(folder: Path, data: bytes) -> None:
    """Lays a folder out as `Dataset.save_to_disk` does."""
    import datasets

    with tempfile.TemporaryDirectory() as scratch:
        datasets.Dataset(_table([{"user": "u"}])).save_to_disk(scratch)
        state = json.loads((Path(scratch) / "state.json").read_text())
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    (folder / state["_data_files"][0]["filename"]).write_bytes(data)


# Name -> how it is written, whether rows are of every form, and the file's name; a name without a dot is a folder.
FORMATS: dict[str, tuple[Callable[[Rows], bytes], bool, str]] = {
    "JSON lines": (json_lines, True, "a.jsonl"),
    "JSON lines, gzip": (lambda given: gzip.compress(json_lines(given), mtime=0), True, "a.jsonl.gz"),
    "JSON lines, UTF-16": (lambda given: json_lines(given).decode().encode("utf-16"), True, "a.jsonl"),
    "JSON array": (lambda given: json.dumps(given).encode(), True, "a.json"),
    "JSON array, indented": (lambda given: json.dumps(given, indent=1).encode(), True, "a.json"),
    "CSV": (lambda given: _separated(given, ","), False, "a.csv"),
    "TSV": (lambda given: _separated(given, "\t"), False, "a.tsv"),
    "Parquet": (_parquet, False, "a.parquet"),
    "Arrow file": (lambda given: _arrow(given, stream=False), False, "a.arrow"),
    "Arrow stream": (lambda given: _arrow(given, stream=True), False, "a.arrow"),
    "datasets": (datasets_folder, False, "saved"),
    "Chatbot Arena": (arena, False, "a.json"),
    "Label Studio": (label_studio, False, "a.json"),
    "Argilla": (argilla, False, "a.json"),
}


def damaged(name: str, rng: Rng) -> bytes:
    """A file of a format: whole (one in ten), or with damage to its values, its bytes, or both."""
    write, mixed, _ = FORMATS[name]
    given, way = rows(rng, mixed=mixed), rng.random()
    broken = damaged_values(given, rng) if way > 0.1 and way < 0.6 else given
    try:
        data = write(broken)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError):
        # A typed format cannot hold such values.
        data, way = write(given), 1.0
    return damaged_bytes(data, rng) if way > 0.5 else data
