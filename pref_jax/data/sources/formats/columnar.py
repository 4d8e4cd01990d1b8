"""Tables in Arrow's own formats and in Parquet, a batch at a time."""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pref_jax.errors import UserError

ROWS = 1024


def columnar(file: io.BufferedReader, format: str, name: object) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and cells by column of each row; nulls, and the NaN that pandas writes for them, are left out.

    Args:
      file: read from its beginning.
      format: "Parquet", "Arrow" (also Feather) or "Arrow stream".
      name: of the file, for messages.

    Raises:
      UserError: while it is read, where the file is damaged.
    """
    number = 0
    try:
        for batch in _batches(_seekable(file), format):
            # Offsets of a damaged file may point outside it.
            batch.validate(full=True)
            for start in range(0, batch.num_rows, ROWS):
                for row in batch.slice(start, ROWS).to_pylist():
                    number += 1
                    yield number, filled(row)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{name}: damaged after {number} rows of {format} ({what}); write the file again") from None


def filled(row: dict[str, Any]) -> dict[str, Any]:
    """The cells of a row that hold something: no null, nor the NaN that pandas writes for it."""
    return {name: value for name, value in row.items() if value is not None and value == value}


def _seekable(file: Any) -> Any:
    """What was packed is unpacked in memory: these formats are read from several places."""
    return file if isinstance(file.raw, io.FileIO) else io.BytesIO(file.read())


def _batches(file: Any, format: str) -> Iterator[pa.RecordBatch]:
    if format == "Parquet":
        yield from pq.ParquetFile(file).iter_batches(batch_size=ROWS)
    elif format == "Arrow":
        with pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
    else:
        with pa.ipc.open_stream(file) as reader:
            yield from reader
