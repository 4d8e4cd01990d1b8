"""Public data sets, by hub id or from a local folder, as memory-mapped columns whose types are checked.

`datasets` reads the files and keeps an Arrow copy of them in its cache, which is mapped and not held in memory. Only
parquet, JSON lines (also .gz) and csv are read; code in a repository never is.

A local folder is laid out like the repository on the hub, as this makes it:

    hf download --repo-type dataset ID --local-dir FOLDER

Axis letters: R rows.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from pref_jax.data.schema import kind
from pref_jax.download import fetch, quiet
from pref_jax.errors import Faults, UserError

# Longest first, so that .jsonl.gz is not taken for .gz.
_BUILDERS = {".jsonl.gz": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def read_columns(
    path: str | Path,
    *,
    files: Sequence[str],
    columns: Mapping[str, pa.DataType],
    revision: str | None = None,
    flag: str = "--config.source.path",
) -> pa.Table:
    """Reads some columns of some files of a data set.

    Columns that are not asked for are left aside, as are further fields of a struct. Types that differ harmlessly
    are cast: other widths of numbers, whole numbers for floats or (csv knows no better) strings, large strings, a
    column without any value.

    Args:
      path: a local folder, or a hub id such as `org/name`.
      files: globs of the files' paths inside the data set, without the ending, such as `data/train*`.
      columns: name -> Arrow type; a struct's type names the fields that are needed.
      revision: branch, tag or commit on the hub; the main branch if None. A local folder has none.
      flag: that gives `path` on the command line, for messages.

    Returns:
      The rows of all files, in the order of the files' names, with exactly these columns and types, memory-mapped
      but for the columns that had to be cast.

    Raises:
      UserError: if there is no such folder, the hub cannot be reached, a file cannot be read, or the schema is
        another one: then every missing or wrongly typed column is named, with the type found.
    """
    folder = Path(path) if _is_folder(path) else _fetch(str(path), files, revision, flag)
    return conform(_table(folder, files, columns, flag), columns, describe(path, revision))


def read_halves(
    path: str | Path, *, train: str, test: str, columns: Mapping[str, pa.DataType], revision: str | None = None
) -> tuple[pa.Table, Bool[np.ndarray, "R"]]:
    """Reads files to learn from and files to test on, as `read_columns` does.

    Args:
      path, columns, revision: as for `read_columns`.
      train: glob of the first files.
      test: glob of the others.

    Returns:
      The rows of both, `train` first, and True for each of `test`.
    """
    parts = [read_columns(path, files=[files], columns=columns, revision=revision) for files in (train, test)]
    table = pa.concat_tables(parts)
    return table, np.arange(table.num_rows) >= parts[0].num_rows


def describe(path: str | Path, revision: str | None = None) -> str:
    """Where data came from, for meta: the folder's name, or hub id and revision."""
    return f"local folder {Path(path).resolve().name}" if _is_folder(path) else f"{path}@{revision or 'main'}"


def _is_folder(path: str | Path) -> bool:
    """The empty path is none, though `Path` takes it for the working directory."""
    return path != "" and Path(path).is_dir()


def conform(table: pa.Table, columns: Mapping[str, pa.DataType], where: str) -> pa.Table:
    """The named columns in the given types.

    Args:
      table: any columns.
      columns: name -> type wanted.
      where: name of the data set for the message.

    Raises:
      UserError: naming all columns, and fields of structs, that are missing or cannot be cast without loss.
    """
    faults = Faults()
    there = [name for name in columns if name in table.column_names]
    blank = {name for name in there if 0 < table.num_rows == table[name].null_count}
    for name, wanted in columns.items():
        if name not in blank:
            _check(table.schema.field(name).type if name in table.column_names else None, wanted, name, faults)
    title = f"{where}: not the known schema (has {', '.join(table.column_names)})"
    faults.raise_if_any(title)
    cast = {}
    for name, wanted in columns.items():
        try:
            if name in blank:
                cast[name] = pa.nulls(table.num_rows, wanted)
            else:
                cast[name] = table[name] if table[name].type == wanted else table[name].cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            faults.add(f"column {name!r}", f"cannot be read as {wanted} ({error})", _MEND)
    faults.raise_if_any(title)
    return pa.table(cast)


_HARMLESS = {("whole number", "number"), ("whole number", "string")}
_MEND = "it may have changed upstream; give the revision that this program knows"


def _check(found: pa.DataType | None, wanted: pa.DataType, name: str, faults: Faults) -> None:
    """Notes where a type cannot stand for the one wanted, down to the fields of structs."""
    where = f"column {name!r}"
    if found is None:
        faults.add(where, f"missing, wanted as {wanted}", _MEND)
    elif pa.types.is_null(found) or (kind(found), kind(wanted)) in _HARMLESS:
        return
    elif kind(found) != kind(wanted):
        faults.add(where, f"has type {found}, wanted as {wanted}", _MEND)
    elif kind(wanted) == "struct":
        for field in wanted:
            place = found.get_field_index(field.name)
            _check(found.field(place).type if place >= 0 else None, field.type, f"{name}.{field.name}", faults)
    elif kind(wanted) == "list":
        _check(found.value_type, wanted.value_type, f"{name}[]", faults)


def _fetch(name: str, files: Sequence[str], revision: str | None, flag: str) -> Path:
    """The hub's cache folder that holds the files."""
    command = (
        f"hf download --repo-type dataset {name}{f' --revision {revision}' if revision else ''} --local-dir FOLDER"
    )
    give = f"give a local folder with {flag}=FOLDER; with a network, this fills one: {command}"
    patterns = [f"{glob}{ending}" for glob in files for ending in _BUILDERS]
    return fetch(name, patterns, repo_type="dataset", revision=revision, check=flag, give=give)


def _table(folder: Path, files: Sequence[str], columns: Mapping[str, pa.DataType], flag: str) -> pa.Table:
    """All rows of a folder's files as one memory-mapped table; `datasets` keeps the Arrow copy in its cache."""
    import datasets

    faults = Faults()
    found = {glob: sorted(file for file in folder.glob(f"{glob}.*") if _ending(file)) for glob in files}
    for glob in (glob for glob in files if not found[glob]):
        fix = f"lay the folder out like the hub's repository, or give another one with {flag}=FOLDER"
        faults.add(f"{folder / glob}", f"no such file with the ending {', '.join(_BUILDERS)}", fix)
    faults.raise_if_any(f"{folder}: files missing")
    names = sorted({str(file) for some in found.values() for file in some})
    formats = {_BUILDERS[_ending(Path(name))] for name in names}
    if len(formats) > 1:
        raise UserError(f"{folder}: the same files in several formats ({', '.join(names)}); leave those of one in it")
    builder = formats.pop()
    ways = {"json": _json_ways, "csv": lambda: _csv_ways(names, columns)}.get(builder, dict)
    try:
        with quiet(datasets):
            data = datasets.load_dataset(builder, data_files={"train": names}, split="train", **ways())
    except Exception as error:  # `datasets` raises errors of many libraries: all mean "not read" to the user
        cause = error.__cause__ or error
        raise UserError(
            f"{folder}: cannot be read ({type(cause).__name__}: {cause!s:.300}); fetch the files again, or look into "
            f"{', '.join(names)}"
        ) from error
    return data.data.table


def _json_ways() -> dict[str, Any]:
    """Options of the builder for JSON.

    Newer versions would turn structs whose fields differ from row to row into text; fields that are missing in a row
    are null here. Inference looks at the first chunk alone, so that is a large one.
    """
    from datasets.packaged_modules.json.json import JsonConfig

    return {"chunksize": 64 << 20} | ({"on_mixed_types": None} if hasattr(JsonConfig, "on_mixed_types") else {})


def _csv_ways(names: Sequence[str], columns: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """Options of the builder for csv: types are told, as it would take those of the first rows; an empty cell is null.

    Words such as None or NA stay words. Columns that are not asked for are strings.
    """
    import datasets

    wanted = {}
    for name in names:
        with open(name, encoding="utf-8-sig", newline="") as file:
            wanted |= {column: columns.get(column, pa.string()) for column in next(csv.reader(file), [])}
    features = datasets.Features.from_arrow_schema(pa.schema(wanted))
    return {"features": features, "keep_default_na": False, "na_values": [""]}


def _ending(file: Path) -> str:
    """The ending that is known, or nothing."""
    return next((ending for ending in _BUILDERS if file.name.endswith(ending) and file.is_file()), "")
