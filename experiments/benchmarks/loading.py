"""Memory and time of loading a checkpoint, each load in a process of its own that is watched from outside."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import reference
from experiments.benchmarks.measure import Result, forget_peak, in_new_process, memory, result
from pref_jax.errors import UserError
from pref_jax.lm import backbone, checkpoint
from pref_jax.lm.config import LMConfig

# 145 million parameters, 580 MB in float32; all layers' `up_proj` together are a fifth of it.
SHAPE = LMConfig(
    family="llama",
    vocab_size=32000,
    hidden_size=1024,
    intermediate_size=2816,
    num_layers=10,
    num_heads=16,
    num_kv_heads=4,
    max_positions=2048,
)
# dtype of the file and of the parameters, and the megabytes that no file exceeds.
CASES = (("float32", 5000.0), ("float32", 150.0), ("bfloat16", 5000.0))
SIDES = ("theirs", "ours")


def load_memory(
    shape: LMConfig = SHAPE, cases: tuple[tuple[str, float], ...] = CASES, repeats: int = 3
) -> list[Result]:
    """Loading a checkpoint in its own dtype, ours against transformers' `from_pretrained`, files in the page cache.

    Seconds are the median over `repeats` loads, and include reading a byte of every page of the parameters: a load
    that only maps files has not loaded yet. `extra` holds, baseline first where there are two:

      bytes: of the checkpoint's files.
      peak_over_size: the most memory that loading adds to the process, mapped pages of the files included
        (VmHWM), over `bytes`.
      anonymous_peak_over_size: the same without mapped pages (RssAnon), which the kernel may drop at any time.
      kept_over_size: what the process holds more when all is loaded.

    Raises:
      UserError: if torch is not installed, or this is no Linux.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise UserError("load_memory reads /proc, which this system lacks; run it on Linux")
    return [_compare(shape, dtype, megabytes, repeats) for dtype, megabytes in cases]


def _compare(shape: LMConfig, dtype: str, megabytes: float, repeats: int) -> Result:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), backbone.init(shape, jax.random.key(0)))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, shape, params, max_shard_bytes=int(1e6 * megabytes))
        files = list(Path(folder).glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        loads = [[_watched(side, folder, dtype) for side in SIDES] for _ in range(repeats)]
    seconds = [statistics.median(load["seconds"] for load in side) for side in zip(*loads, strict=True)]
    # Peaks hardly differ between loads; the highest one counts.
    peaks = {
        f"{name}_over_size": [max(load[name] for load in side) / size for side in zip(*loads, strict=True)]
        for name in ("peak", "anonymous_peak", "kept")
    }
    parts = "1 file" if len(files) == 1 else f"{len(files)} files"
    return result("load_memory", f"llama, {dtype}, {size / 1e6:.0f} MB, {parts}", *seconds, bytes=size, **peaks)


def _watched(side: str, folder: str, dtype: str) -> dict[str, float]:
    """Loads in a process of its own; seconds of the load, and bytes that it added to the process.

    The process cannot watch its own anonymous memory: while it copies, no other thread of it gets a turn.
    """
    samples: list[tuple[float, int]] = []
    told = in_new_process(__name__, "load_once", side, folder, dtype, samples=samples)
    during = [size for when, size in samples if told["start"] <= when <= told["end"]]
    return {
        "seconds": told["end"] - told["start"],
        "peak": told["peak"] - told["before"],
        "anonymous_peak": max(during, default=0) - told["anonymous_before"],
        "kept": told["after"] - told["before"],
    }


def load_once(side: str, folder: str, dtype: str) -> dict[str, Any]:
    """Loads and tells when, and the memory before, at the highest and after."""
    load = {"ours": _load_ours, "theirs": _load_theirs}[side](folder, dtype)
    before = memory()
    forget_peak()
    start = time.monotonic()
    params = load()
    end = time.monotonic()
    after = memory()
    told = {"start": start, "end": end, "before": before["VmRSS"], "anonymous_before": before["RssAnon"]}
    return told | {"peak": after["VmHWM"], "after": after["VmRSS"], "parameters": len(params)}


def _load_ours(folder: str, dtype: str) -> Callable[[], list[Any]]:
    jax.block_until_ready(jnp.ones(8) + 1)

    def load() -> list[Any]:
        _, params = checkpoint.load(folder, jnp.dtype(dtype))
        leaves = jax.tree.leaves(params)
        for leaf in leaves:
            np.asarray(leaf).view(np.uint8).reshape(-1)[::4096].max()
        return leaves

    return load


def _load_theirs(folder: str, dtype: str) -> Callable[[], list[Any]]:
    torch, transformers = reference.library("torch"), reference.library("transformers")
    torch.ones(8).add(1)
    kind = transformers.LlamaModel

    def load() -> list[Any]:
        model = kind.from_pretrained(folder, dtype=getattr(torch, dtype))
        leaves = list(model.parameters())
        for leaf in leaves:
            leaf.detach().view(torch.uint8).flatten()[::4096].max()
        return [model, *leaves]

    return load
