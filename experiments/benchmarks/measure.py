"""What all benchmarks share: clocks, the record of a result, and the list and table of records."""

import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from pref_jax.errors import UserError
from pref_jax.eval.reporting.report import plain
from pref_jax.files import read_json

# {"name", "size", "baseline_seconds", "seconds", "ratio", "extra"}, see `result`.
Result = dict[str, Any]
# Gives one result for each size that it measures.
Benchmark = Callable[[], list[Result]]


def result(name: str, size: str, baseline: float, ours: float, **extra: Any) -> Result:
    """The record of one size of one benchmark: ratio = baseline / ours; `extra` tells the machine as well.

    Args:
      name: of the benchmark, as on the command line.
      size: what was worked on, for people.
      baseline: seconds of the reference.
      ours: seconds of our code.
      **extra: further facts, as JSON has them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"device": jax.devices()[0].device_kind, "cores": cores}
    return {
        "name": name,
        "size": size,
        "baseline_seconds": baseline,
        "seconds": ours,
        "ratio": baseline / ours,
        "extra": extra | machine,
    }


def timed(run: Callable[[], Any], repeats: int = 1) -> tuple[float, float, Any]:
    """Seconds of the first call (compilation included), least seconds of the later ones, the last answer."""
    spans, answer = [], None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        answer = jax.block_until_ready(run())
        spans.append(time.perf_counter() - start)
    return spans[0], min(spans[1:]), answer


def in_turns(runs: Sequence[Callable[[], Any]], *, rounds: int, each: int) -> list[float]:
    """Median seconds of a call of each function, all of them warmed up before.

    They take turns, so that a machine that slows down for a while slows all of them. A turn is one call that is not
    counted, which wakes this side's threads while those of the side before go to sleep, and `each` calls that are.
    """
    spans: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, mine in zip(runs, spans, strict=True):
            jax.block_until_ready(run())
            for _ in range(each):
                start = time.perf_counter()
                jax.block_until_ready(run())
                mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in spans]


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes of a process by the kernel's names (VmRSS, VmHWM, RssAnon, ...); empty once it has ended, or off Linux."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def forget_peak() -> None:
    """Sets VmHWM, the highest resident size of this process so far, back to the present one; nothing off Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(run: Callable[[], Any]) -> int:
    """Memory that a call adds to this process at its highest; 0 off Linux."""
    forget_peak()
    before = memory().get("VmRSS", 0)
    jax.block_until_ready(run())
    return memory().get("VmHWM", 0) - before


def in_new_process(module: str, function: str, *arguments: Any, samples: list[Any] | None = None) -> dict[str, float]:
    """What `module.function(*arguments)` gives in a process of its own, and its memory at the highest as "peak".

    Args:
      module: that has the function.
      function: its name.
      *arguments: JSON values.
      samples: gets (monotonic clock, bytes of anonymous memory) of the process every 2 ms.

    Raises:
      RuntimeError: with the last lines that the process wrote, if it failed.
    """
    command = [sys.executable, "-m", __name__, module, function, json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        while samples is not None and process.poll() is None:
            samples.append((time.monotonic(), memory(process.pid).get("RssAnon", 0)))
            time.sleep(0.002)
        process.wait()
        for file in (out, err):
            file.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{err.read()[-3000:]}")
        return json.loads(out.read().splitlines()[-1])


def read(path: Path) -> list[Result]:
    """The results in a file that an earlier run wrote; none if there is no such file.

    Raises:
      UserError: if the file holds something else.
    """
    if not path.exists():
        return []
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(row, Mapping) and "name" in row for row in found):
        raise UserError(f"{path}: holds no list of results; give --out another file, or remove this one")
    return found


def merged(old: Sequence[Result], new: Sequence[Result], order: Sequence[str]) -> list[Result]:
    """New results and those old ones whose names were not measured again, in the given order of names.

    Names outside `order` come last.
    """
    measured = {row["name"] for row in new}
    rows = [row for row in old if row["name"] not in measured] + list(new)
    return sorted(rows, key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))


def table(results: Sequence[Result]) -> str:
    """The results in columns, for the terminal."""
    lines = [["name", "size", "baseline s", "ours s", "ratio"]]
    for row in results:
        seconds = [f"{row[name]:.4g}" for name in ("baseline_seconds", "seconds")]
        lines.append([row["name"], row["size"], *seconds, f"{row['ratio']:.2f}"])
    return plain(lines)


if __name__ == "__main__":
    told = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*json.loads(sys.argv[3]))
    print(json.dumps({"peak": memory().get("VmHWM", 0)} | told))
