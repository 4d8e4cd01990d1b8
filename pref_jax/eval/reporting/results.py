"""`results.json`: one row for each method and seed, kept across reruns.

{"dataset": str,
 "rows": [{"method": str, "seed": int, "metrics": {name: number},
           "intervals": {name: {"low", "high", "n", "over", "left_out"}}, "seconds": number}],
 "versions": {"python", "jax", ..., "device", "cores"}}
"""

import dataclasses
import importlib.metadata
import math
import operator
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import jax

from pref_jax.errors import Faults, UserError
from pref_jax.eval.metrics import Interval, over_seeds
from pref_jax.files import read_json, write_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_KINDS = ("accuracy", "common", "controversial")


def result_row(
    *,
    method: str,
    seed: SupportsIndex,
    metrics: Mapping[str, Interval | SupportsFloat],
    seconds: SupportsFloat,
) -> dict[str, Any]:
    """One row of `results.json`: what `method` reached with `seed`, and how many `seconds` it took.

    `metrics` is what `group_metrics` gives; plain numbers may be added to it and then have no interval.
    """
    with_interval = {name: value for name, value in metrics.items() if isinstance(value, Interval)}
    return {
        "method": method,
        "seed": operator.index(seed),
        "metrics": {name: v.mean if isinstance(v, Interval) else float(v) for name, v in metrics.items()},
        "intervals": {name: _without_mean(value) for name, value in with_interval.items()},
        "seconds": float(seconds),
    }


def versions() -> dict[str, str | int]:
    """Versions of Python and of the packages that decide the numbers; the device and the CPU cores at hand."""
    found: dict[str, str | int] = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    devices = jax.devices()
    found["device"] = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    # A container's share of the machine, not the machine, where the system tells it.
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return found


def write_results(path: str | Path, *, dataset: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes `rows` into the results file at `path` and returns the whole file.

    A row takes the place of an older one with the same method and seed; the other older rows stay, in their order.

    Raises:
      UserError: if the file there is broken or belongs to another data set, or if a row is malformed.
    """
    _validate({"dataset": dataset, "rows": list(rows), "versions": {}}, Path(path))
    old = read_results(path)["rows"] if _same_dataset(path, dataset) else []
    merged = {(row["method"], row["seed"]): row for row in old}
    merged |= {(row["method"], row["seed"]): dict(row) for row in rows}
    results = {"dataset": dataset, "rows": list(merged.values()), "versions": versions()}
    write_json(path, results)
    return results


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads and checks a `results.json`.

    Raises:
      UserError: if the file is missing, no JSON, or not of the layout that this module's docstring shows; all faults
        are named together.
    """
    results = read_json(path)
    _validate(results, Path(path))
    return results


def by_method(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Interval]]:
    """Each method's metrics, in order of first appearance.

    A metric that a method has for several seeds is averaged over them, with the interval over seeds; for one seed its
    own interval, over users, stands.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    return {method: _summary(group) for method, group in groups.items()}


def missing(path: str | Path, methods: Sequence[str], seed: int) -> list[str]:
    """Those of the methods that the results file at `path` does not hold with this seed; all where there is no file.

    Raises:
      UserError: if the file there is broken.
    """
    rows = read_results(path)["rows"] if Path(path).exists() else []
    done = {row["method"] for row in rows if row["seed"] == seed}
    return [method for method in methods if method not in done]


def curves(
    found: Mapping[Any, Mapping[str, Any]], metric: str, methods: Sequence[str]
) -> dict[str, dict[Any, Interval]]:
    """One metric of several results, such as of worlds of different sizes: method -> {point: mean and interval}.

    Args:
      found: point -> what `read_results` gives.
      metric: such as "unseen/accuracy".
      methods: in order; points at which one was not measured are absent from its curve.
    """
    every = {point: by_method(own["rows"]) for point, own in found.items()}
    return {
        method: {point: own[method][metric] for point, own in every.items() if metric in own.get(method, {})}
        for method in methods
    }


def metric_names(rows: Sequence[Mapping[str, Any]], *, with_groups: bool = False) -> list[str]:
    """The accuracies present in `rows`, in the order of a report: seen before unseen, all, common, controversial.

    Further metrics (log-losses and, if asked for, groups) are left to callers that name them.
    """
    present = {name for row in rows for name in row["metrics"]}
    names = []
    for side in ("seen", "unseen"):
        names += [f"{side}/{kind}" for kind in _KINDS if f"{side}/{kind}" in present]
        names += sorted(name for name in present if name.startswith(f"{side}/group/")) if with_groups else []
    return names


def _summary(rows: list[Mapping[str, Any]]) -> dict[str, Interval]:
    summary = over_seeds([row["metrics"] for row in rows])
    for name, value in summary.items():
        if value.n == 1:
            (row,) = (row for row in rows if name in row["metrics"])
            summary[name] = _with_mean(value.mean, row.get("intervals", {}).get(name))
    return summary


def _without_mean(value: Interval) -> dict[str, Any]:
    return {name: entry for name, entry in dataclasses.asdict(value).items() if name != "mean"}


def _with_mean(mean: float, ends: Mapping[str, Any] | None) -> Interval:
    known: Any = {"low": None, "high": None, "n": 1, "over": "seeds"} if ends is None else ends
    return Interval(
        mean=mean, **{name: known[name] for name in ("low", "high", "n", "over", "left_out") if name in known}
    )


def _same_dataset(path: str | Path, dataset: str) -> bool:
    """Whether there is a results file to merge with; refuses to mix two data sets."""
    if not Path(path).exists():
        return False
    old = read_results(path)["dataset"]
    if old != dataset:
        raise UserError(f"{path}: holds results on {old!r}, not on {dataset!r}; choose another --workdir or remove it")
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _validate(results: Any, path: Path) -> None:
    """Raises one UserError with everything that is wrong with `results`."""
    fix = "restore the file, or remove it and run the command again"
    faults = Faults()
    if not isinstance(results, dict):
        raise UserError(f"{path}: holds a {type(results).__name__}, not an object with dataset, rows, versions; {fix}")
    for name, kind in (("dataset", str), ("rows", list), ("versions", dict)):
        if not isinstance(results.get(name), kind):
            faults.add(str(path), f"`{name}` is missing or no {kind.__name__}", fix)
    rows = results.get("rows")
    places: dict[tuple[Any, Any], int] = {}
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        for what in _row_faults(row):
            faults.add(f"{path}, rows[{number}]", what, fix)
        if isinstance(row, dict) and isinstance(row.get("method"), str) and isinstance(row.get("seed"), int):
            first = places.setdefault((row["method"], row["seed"]), number)
            if first != number:
                faults.add(f"{path}, rows[{number}]", f"same method and seed as rows[{first}]", "keep one of the two")
    faults.raise_if_any("broken results")


def _row_faults(row: Any) -> list[str]:
    if not isinstance(row, dict):
        return [f"a {type(row).__name__}, not an object"]
    faults = []
    if not isinstance(row.get("method"), str) or not row["method"]:
        faults.append("`method` is missing or no text")
    if not isinstance(row.get("seed"), int) or isinstance(row["seed"], bool):
        faults.append("`seed` is missing or no whole number")
    if not _is_number(row.get("seconds")) or row["seconds"] < 0:
        faults.append("`seconds` is missing or no number from 0 up")
    metrics, intervals = row.get("metrics"), row.get("intervals", {})
    if isinstance(metrics, dict):
        faults += [f"metric {name!r} is {own!r}, no number" for name, own in metrics.items() if not _is_number(own)]
    else:
        faults.append("`metrics` is missing or no object")
    if isinstance(intervals, dict):
        faults += [f"interval {name!r} is malformed" for name, own in intervals.items() if not _is_interval(own)]
    else:
        faults.append("`intervals` is no object")
    return faults


def _is_interval(value: Any) -> bool:
    if not isinstance(value, dict) or not {"low", "high", "n", "over"} <= value.keys():
        return False
    ends = (value["low"], value["high"])
    ends_are_fine = ends == (None, None) or all(_is_number(end) for end in ends)
    return ends_are_fine and isinstance(value["n"], int) and isinstance(value["over"], str)
