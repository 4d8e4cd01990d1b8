"""Compiled programs kept on disk, so that seeds, data sets and a repeated command compile each program once."""

import contextlib
import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

# Settings of JAX and what they are set to while programs are kept: all programs, however small or quickly compiled.
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    "jax_enable_compilation_cache": True,
}


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[Path]:
    """Keeps programs under `folder`, in a folder for this kind of processor; settings are as before afterwards.

    A program compiled for a CPU may use instructions that another CPU lacks, and JAX does not look at that.
    """
    own = folder / _machine()
    before = {name: getattr(jax.config, name) for name in (*_SETTINGS, "jax_compilation_cache_dir")}
    for name, value in {**_SETTINGS, "jax_compilation_cache_dir": str(own.resolve())}.items():
        jax.config.update(name, value)
    # JAX decides once a process whether there is such a folder; this lets it decide anew.
    compilation_cache.reset_cache()
    try:
        yield own
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _machine() -> str:
    """A name for what programs are compiled for: architecture and the instructions that the processor has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    text = "\n".join(sorted(set(known))) or platform.processor()
    return f"{platform.machine()}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
