"""Where rows are: a file, a folder of files, a folder that `datasets` saved, or a set on the Hugging Face hub."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pref_jax.data.schema import SPLITS
from pref_jax.data.sources.formats.columnar import ROWS, filled
from pref_jax.data.sources.formats.recognise import READ, Source, open_file
from pref_jax.data.sources.formats.streams import STDIN
from pref_jax.download import fetch, quiet
from pref_jax.errors import Faults, UserError
from pref_jax.progress import log

HUB = "hub:"
_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc")
# These describe a data set and are none.
_ABOUT = {"dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json", "meta.json", "config.json"}
_ID = re.compile(r"(?:hub:)?([\w-][\w.-]*/[\w-][\w.-]*?)(?:@([\w./-]+))?")
_WORDS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


def open_sources(path: str | Path, faults: Faults) -> Iterator[Source]:
    """The files of rows at a place, one after the other.

    Files and parts that are named after two splits or more (train, validation, test) give their rows that split.

    Args:
      path: a file, `-`, a folder, or a hub id `org/name`, also `hub:org/name@revision`.
      faults: as for `open_file`.

    Raises:
      UserError: if there is no such place, or nothing in it can be read.
    """
    named = _ID.fullmatch(str(path))
    if named and not Path(path).exists() and not named[1].endswith(_ENDINGS):
        return _folder(_fetched(named[1], named[2]), faults)
    path = Path(path)
    if path == STDIN or not path.is_dir():
        return iter([open_file(path, faults)])
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _saved(path)
    return _folder(path, faults)


def _fetched(name: str, revision: str | None) -> Path:
    patterns = [f"{where}*{ending}{packed}" for where in ("", "**/") for ending in _ENDINGS for packed in ("", ".gz")]
    give = "fetch it with a network, or give a local file or folder"
    log(f"{name}: no file here; reading the set of that name on the Hugging Face hub")
    return fetch(name, patterns, repo_type="dataset", revision=revision, check="the path", give=give)


def _folder(path: Path, faults: Faults) -> Iterator[Source]:
    here = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
    files = [file for file in here if file.name.removesuffix(".gz").endswith(_ENDINGS) and file.name not in _ABOUT]
    if not files:
        raise UserError(f"{path}: no file of votes in this folder (none ends in {', '.join(_ENDINGS)}); give {READ}")
    if left := [file.name for file in here if file not in files]:
        some = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        log(f"{path}: read {len(files)} files; left aside {len(left)} ({some})")
    splits = _splits({file: str(file.relative_to(path)) for file in files}, path)
    for file in files:
        yield open_file(file, faults)._replace(split=splits[file])


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _splits(names: dict[Any, str], path: Path) -> dict[Any, str | None]:
    """The split that each name begins with, if there are two or more among them."""
    found: dict[Any, str | None] = {}
    for key, name in names.items():
        words = re.split(r"[^a-z]+", name.lower())
        found[key] = next((_WORDS[word] for word in words if word in _WORDS), None)
    known = {split for split in found.values() if split}
    if len(known) < 2:
        return dict.fromkeys(names)
    said = ", ".join(split for split in SPLITS if split in known)
    log(f"{path}: rows that name no split get that of their file's name ({said})")
    return found


def _saved(path: Path) -> Iterator[Source]:
    """Parts of a folder by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    import datasets

    try:
        with quiet(datasets):
            data = datasets.load_from_disk(str(path))
    except Exception as error:  # `datasets` raises errors of many libraries: all mean "not read" to the user
        raise UserError(f"{path}: cannot be read by `datasets` ({type(error).__name__}: {error!s:.300})") from error
    parts: dict[Any, Any] = {**data} if isinstance(data, datasets.DatasetDict) else {"": data}
    splits = _splits({part: part for part in parts}, path)
    for part, table in parts.items():
        name = f"{path / part}" if part else str(path)
        yield Source(name, "datasets", _rows(table, name), "typed", splits[part])


def _rows(table: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        for part in table.with_format("arrow").iter(batch_size=ROWS):
            part.validate(full=True)
            for row in part.to_pylist():
                number += 1
                yield f"{name}, row {number}", filled(row)
    except Exception as error:  # as above
        what = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{name}: damaged after {number} rows ({what}); save the set again") from error
