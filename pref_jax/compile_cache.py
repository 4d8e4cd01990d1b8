"""Compiled programs kept on disk, so that later processes load a program instead of compiling it again."""

import contextlib
import hashlib
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from pref_jax.files import user_cache

_FOLDER = "jax_compilation_cache_dir"
# Settings of JAX while programs are kept: all programs but those that compile at once, however small.
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    "jax_enable_compilation_cache": True,
}


def enable() -> Path | None:
    """Turns JAX's persistent compilation cache on for this process; the folder in use, None if there is none.

    The folder is the environment's PREF_JAX_CACHE ("off" for none), or `pref_jax` in the user's cache folder
    (`$XDG_CACHE_HOME`, else `~/.cache`). It holds one folder per kind of processor, since a program compiled for one
    CPU may use instructions that another one lacks, which JAX does not check. Whatever is in it may be deleted. A
    folder that JAX was given by other means stays in use, and a cache that was turned off stays off.

    Example:
      >>> enable()
      PosixPath('/home/ada/.cache/pref_jax/x86_64_1f0c3b7a')
    """
    there, on = getattr(jax.config, _FOLDER), getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
    if there is not None or not on:
        return there and Path(there)
    named = os.environ.get("PREF_JAX_CACHE", "")
    if named.lower() == "off":
        return None
    own = _own_folder(Path(named) if named else user_cache())
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.getLogger(__name__).warning("programs are not cached: %s; set PREF_JAX_CACHE to a folder", error)
        return None
    _update({**_SETTINGS, _FOLDER: str(own)})
    return own


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[Path]:
    """Keeps programs under `folder`, in a folder for this kind of processor; settings are as before afterwards."""
    own = _own_folder(folder)
    before = {name: getattr(jax.config, name) for name in (*_SETTINGS, _FOLDER)}
    _update({**_SETTINGS, _FOLDER: str(own)})
    try:
        yield own
    finally:
        _update(before)


def _update(settings: dict[str, object]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX decides once per process whether there is a folder; this makes it decide again.
    compilation_cache.reset_cache()


def _own_folder(folder: Path) -> Path:
    """The folder for this kind of processor: its architecture and a hash of the instructions that it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    text = "\n".join(sorted(set(known))) or platform.processor()
    return folder.resolve() / f"{platform.machine()}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
