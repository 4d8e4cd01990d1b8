"""The files that a workdir's work was made from, by their SHA-256: whoever changes one is told, not given old results.

WORKDIR/inputs.json has {name: {file within the input, or "": {"sha256", and size and times, by which a file that nobody
touched is not read again}}}.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pref_jax.errors import UserError
from pref_jax.files import digest, read_json, write_json
from pref_jax.locks import first_process

FILE = "inputs.json"
# Of a folder all visible files count but those that only people read.
PEOPLE = (".md", ".log", ".png", ".pdf")
# Files of a transformer's folder that decide what it gives.
CHECKPOINT = ("*.safetensors", "*.gguf", "*.json", "*.txt", "*.model", "*.jinja", "*/*.jinja")


def check_inputs(
    workdir: str | Path, inputs: Mapping[str, Path], *, made: bool | Mapping[str, bool] | None = None
) -> None:
    """Compares the files behind paths with those that the work in `workdir` was made from; remembers them at first.

    A file that was touched, copied or moved and still says the same is the same. One that is gone is not missed.

    Args:
      workdir: keeps the digests.
      inputs: name -> file or folder; of the name "base" (a transformer) only the files that are read.
      made: whether there is work made from the inputs, for all or by name; if not, a changed one is no harm. None:
        there is if the workdir has a folder with anything in it.

    Raises:
      UserError: naming every changed file.
    """
    workdir = Path(workdir)
    path = workdir / FILE
    before = read_json(path) if path.exists() else {}
    made = has_work(workdir) if made is None else made
    now, changed = dict(before), []
    for name, place in inputs.items():
        if not place.exists():
            continue
        known = before.get(name, {})
        now[name] = found = _read(place, workdir, CHECKPOINT if name == "base" else None, known)
        if known and (made if isinstance(made, bool) else made[name]):
            changed += _changed(place, known, found)
    if changed:
        some = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        what, old = ("are not the files", "files") if len(changed) > 1 else ("is not the file", "file")
        raise UserError(f"{some} {what} that {workdir} was made from; use a new workdir, or put the old {old} back")
    if now != before and first_process():
        write_json(path, now)


def has_work(workdir: Path) -> bool:
    """Whether a workdir has a visible folder with anything in it."""
    return any(path.is_dir() and any(path.iterdir()) for path in workdir.glob("[!.]*"))


def _read(
    place: Path, workdir: Path, patterns: Sequence[str] | None, known: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Digest of each file of an input; those that look as they did are not read."""
    found = {}
    for path in [place] if place.is_file() else _files(place, workdir, patterns):
        stat, name = path.stat(), "" if path == place else str(path.relative_to(place))
        look = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}
        old = known.get(name, {})
        same = all(old.get(field) == value for field, value in look.items())
        found[name] = {"sha256": old["sha256"] if same else digest(path), **look}
    return found


def _files(place: Path, workdir: Path, patterns: Sequence[str] | None) -> list[Path]:
    """The files of a folder that count, but for those of a workdir inside it."""
    found = itertools.chain.from_iterable(place.glob(pattern) for pattern in patterns or ("**/*",))
    return sorted(
        path
        for path in set(found)
        if path.is_file()
        and path.suffix not in PEOPLE
        and not any(part.startswith(".") for part in path.relative_to(place).parts)
        and not path.resolve().is_relative_to(workdir.resolve())
    )


def _changed(place: Path, known: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Paths of files that say something else, are new, or are gone from an input."""
    names = sorted(
        name
        for name in known.keys() | found.keys()
        if known.get(name, {}).get("sha256") != found.get(name, {}).get("sha256")
    )
    how = {name: " (new)" if name not in known else " (gone)" if name not in found else "" for name in names}
    return [f"{place / name}{how[name]}" for name in names]
