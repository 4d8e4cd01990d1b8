"""The fastest training step that fits a machine: micro-batches, meshes, and what the backward pass keeps.

Candidates are compiled one after another, those of the least recomputation and the largest micro-batches first. One
that does not fit rules out all that keep as much and compute as many rows at a time on the same mesh.
"""

import copy
from collections.abc import Iterator
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


def best_step(config: Config, machine: Hardware, sizes: Sizes, base: Path) -> dict[str, Any]:
    """All candidates and the fastest of those that take at most `ROOM`, as JSON values."""
    tried, too_large = [], []
    for mesh, remat, accumulate in candidates(config.reward.batch_size, machine.devices):
        if any(mesh == other and remat == kept and accumulate <= parts for other, kept, parts in too_large):
            continue
        own = copy.deepcopy(config)
        own.mesh.update(mesh)
        own.reward.update({"accumulate": accumulate, "remat": remat})
        planned = reward_step(open_planned(own, machine, base), sizes)
        compiled = compilers.compile_for(planned, machine)
        found = report.row("reward step", planned, compiled, machine)
        fits = compiled.fits and compiled.peak <= ROOM * machine.chip.memory
        if not fits:
            too_large.append((mesh, remat, accumulate))
        tried.append({"mesh": mesh, "remat": remat, "accumulate": accumulate, "room": fits, **found})
        log(f"  {mesh} remat={remat} accumulate={accumulate}: {report.sentence(found)}")
    fitting = [one for one in tried if one["room"]]
    if not fitting:
        raise UserError(f"no step fits {machine.name}; cut the texts shorter, or take more devices")
    return {"tried": tried, "best": min(fitting, key=lambda one: one["estimate_seconds"])}


def candidates(batch_size: int, devices: int) -> Iterator[tuple[dict[str, int], str, int]]:
    """Meshes of all devices, what is kept, and micro-batches, the largest first."""
    for fsdp in _divisors(devices):
        mesh = {"data": devices // fsdp, "fsdp": fsdp, "tensor": 1}
        for remat in KEPT:
            for accumulate in _divisors(batch_size // devices):
                if accumulate & (accumulate - 1) == 0:
                    yield mesh, remat, accumulate


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
