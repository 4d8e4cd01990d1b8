"""The fastest training step that fits a machine: meshes, what the backward pass keeps, micro-batches.

Of each mesh and each kind of recomputation the smallest micro-batches are compiled first; what they take tells how
large micro-batches can be, and those are compiled next. What recomputes more than the fastest step takes is left out.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.planning import compilers, report
from experiments.planning.hardware import Hardware
from experiments.planning.planned_workspace import open_planned
from experiments.planning.programs import Sizes, reward_step
from experiments.runner.cli import Config
from pref_jax.errors import UserError
from pref_jax.progress import log

# The share of memory that a step may take: allocators lose some to fragments.
ROOM = 0.9
# What the backward pass keeps, the most first.
KEPT = ("dots", "full")
Attempt = Callable[[Mapping[str, int], str, int], dict[str, Any]]


def best_step(config: Config, machine: Hardware, sizes: Sizes, base: Path) -> dict[str, Any]:
    """All steps that were tried and the fastest of those that take at most `ROOM`, as JSON values."""

    def attempt(mesh: Mapping[str, int], remat: str, accumulate: int) -> dict[str, Any]:
        own = copy.deepcopy(config)
        own.mesh.update(mesh)
        own.reward.update({"accumulate": accumulate, "remat": remat})
        planned = reward_step(open_planned(own, machine, base), sizes)
        compiled = compilers.compile_for(planned, machine)
        found = report.row("reward step", planned, compiled, machine)
        fits = compiled.fits and compiled.peak <= ROOM * machine.chip.memory
        log(f"  {mesh} remat={remat} accumulate={accumulate}: {report.sentence(found)}")
        return {"mesh": mesh, "remat": remat, "accumulate": accumulate, "room": fits, **found}

    return search(attempt, config.reward.batch_size, machine.devices, ROOM * machine.chip.memory)


def search(attempt: Attempt, batch_size: int, devices: int, room: float) -> dict[str, Any]:
    """`best_step` by a function that compiles a step of a mesh, a kind of recomputation and a number of micro-batches.

    Raises:
      UserError: if none fits.
    """
    tried: list[dict[str, Any]] = []
    for mesh in meshes(devices):
        for remat in KEPT:
            fitting = [one for one in tried if one["room"]]
            products = [one["estimate_products"] for one in fitting if one["remat"] == remat]
            if products and min(one["estimate_seconds"] for one in fitting) <= min(products):
                continue
            tried += _largest(functools.partial(attempt, mesh, remat), batch_size // devices, room)
    fitting = [one for one in tried if one["room"]]
    if not fitting:
        raise UserError("no step fits this machine; cut the texts shorter, or take more devices")
    return {"tried": tried, "best": min(fitting, key=lambda one: one["estimate_seconds"])}


def _largest(attempt: Callable[[int], dict[str, Any]], rows: int, room: float) -> list[dict[str, Any]]:
    """Attempts with the smallest micro-batches and with the largest that fit, of `rows` a device in a step."""
    parts = [1 << power for power in range(rows.bit_length()) if rows % (1 << power) == 0]
    tried = [attempt(parts[-1])]
    if not tried[0]["room"]:
        return tried
    left, each = room - tried[0]["peak_bytes"] + tried[0]["temporary_bytes"], tried[0]["temporary_bytes"]
    # What a step makes on the way grows with the rows that it computes at a time.
    for number in (one for one in parts[:-1] if each * parts[-1] / one <= left):
        tried.append(attempt(number))
        if tried[-1]["room"]:
            break
    return tried


def meshes(devices: int) -> list[dict[str, int]]:
    """Meshes of all devices, those with the most copies of the parameters first."""
    return [{"data": devices // fsdp, "fsdp": fsdp, "tensor": 1} for fsdp in _divisors(devices)]


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
