"""A plan as a table for people, and as JSON values."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.planning.compilers import Compiled
from experiments.planning.hardware import Hardware
from experiments.planning.programs import Planned, Sizes
from experiments.runner.workspace import Workspace
from pref_jax.version import __version__

GB = 1e9


def row(name: str, planned: Planned, compiled: Compiled, machine: Hardware) -> dict[str, Any]:
    """What a program would take, as JSON values; per device, but for `useful_operations` and what a call does."""
    found: dict[str, Any] = {
        "program": name,
        "does": f"{planned.rows} {planned.unit}",
        "fits": compiled.fits,
        "argument_bytes": compiled.arguments,
        "temporary_bytes": compiled.temporaries,
        "peak_bytes": compiled.peak,
        "memory_share": compiled.peak / machine.chip.memory,
        "compile_seconds": compiled.seconds,
    }
    if compiled.work is None or compiled.estimate is None:
        return found
    work, estimate = compiled.work, compiled.estimate
    found |= {
        "operations": work.operations,
        "bytes": work.bytes,
        "sent_bytes": work.sent(),
        "unknown_loops": len(work.unknown_loops),
        "attention": "" if planned.useful is None else _attention(work.kernels),
        "kernels": work.kernels,
        **{f"estimate_{key}": value for key, value in estimate._asdict().items()},
    }
    if planned.useful is not None and estimate.seconds:
        each = planned.useful / machine.devices
        found["useful_operations"] = planned.useful
        found["useful_utilisation"] = each / machine.chip.operations / estimate.seconds
    return found


def _attention(kernels: Mapping[str, int]) -> str:
    fused = [name for name in kernels if "fmha" in name.lower() or "attention" in name.lower() or "splash" in name]
    if fused:
        return ", ".join(sorted(fused))
    return "splash (Pallas)" if "tpu_custom_call" in kernels else "products that write all scores"


def about(config: Any, machine: Hardware, sizes: Sizes, work: Workspace) -> dict[str, Any]:
    """What a plan is of."""
    return {
        "hardware": machine.name,
        "chip": machine.chip.name,
        "devices": machine.devices,
        "peaks": {
            "operations": machine.chip.operations,
            "memory": machine.chip.memory,
            "bandwidth": machine.chip.bandwidth,
            "interconnect": machine.chip.interconnect,
        },
        "base": config.backbone.name,
        "mesh": dict(work.mesh.shape),
        "accumulate": config.reward.accumulate,
        "remat": config.reward.remat,
        "batch_size": config.reward.batch_size,
        "sizes": dataclasses.asdict(sizes),
        "jax": jax.__version__,
        "version": __version__,
    }


def sentence(found: Mapping[str, Any]) -> str:
    """One line on a program."""
    if "operations" not in found:
        return f"does not fit: {found['peak_bytes'] / GB:.1f} GB"
    told = "" if found["fits"] else "does not fit: "
    return (
        f"{told}{found['peak_bytes'] / GB:.2f} GB a device ({found['memory_share']:.0%}), at best "
        f"{found['estimate_seconds']:.3g} s for {found['does']}, products {found['estimate_utilisation']:.0%} of it; "
        f"compiled in {found['compile_seconds']:.0f} s"
    )


def markdown(told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The plan as a page."""
    mesh = " ".join(f"{name}={size}" for name, size in told["mesh"].items())
    lines = [
        f"# {told['base']} on {told['devices']} x {told['chip']}",
        "",
        f"Compiled for {told['hardware']}, which was not there (JAX {told['jax']}); mesh {mesh}, steps of "
        f"{told['batch_size']} pairs in {told['accumulate']} micro-batches, remat {told['remat']}. Sizes: "
        + ", ".join(f"{value} {name}" for name, value in told["sizes"].items())
        + ".",
        "",
        "Per device. Times are by the data sheet's peaks: a real run takes longer. Products: share of the time in "
        "which matrix products run at the peak, with what the backward pass computes again; useful: without that.",
        "",
        "| Program | A call does | Memory | Share | Temporaries | Tera-operations | Moved | Sent | Time at best "
        "| Products | Useful | Waits for others | Attention | Compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(one) for one in rows]
    if loops := [f"{one['program']} ({one['unknown_loops']})" for one in rows if one.get("unknown_loops")]:
        lines += ["", f"Loops that end when something is reached count once: {', '.join(loops)}."]
    if "search" in told:
        lines += ["", *_search(told["search"])]
    return "\n".join(lines) + "\n"


def _search(found: Mapping[str, Any]) -> list[str]:
    """Steps that were tried, the fastest first, then those that find no room."""
    tried = sorted(found["tried"], key=lambda one: (not one["room"], one.get("estimate_seconds", 0.0)))
    lines = ["## Steps that were tried", "", "| Mesh | Remat | Micro-batches | Memory | Time at best | Products |"]
    lines += ["|---|---|---|---|---|---|"]
    for one in tried:
        mesh = " ".join(f"{name}={size}" for name, size in one["mesh"].items())
        memory = f"{one['peak_bytes'] / GB:.2f} GB" if one["peak_bytes"] else "too much"
        told = f"{one['estimate_seconds']:.3g} s | {one['estimate_utilisation']:.0%}" if one["room"] else "no room |"
        mark = "**" if one == found["best"] else ""
        lines.append(f"| {mark}{mesh}{mark} | {one['remat']} | {one['accumulate']} | {memory} | {told} |")
    return lines


def _line(one: Mapping[str, Any]) -> str:
    memory = f"{one['peak_bytes'] / GB:.2f} GB"
    if "operations" not in one:
        return f"| {one['program']} | {one['does']} | **does not fit**, {memory} |" + " |" * 11
    useful = f"{one['useful_utilisation']:.0%}" if "useful_utilisation" in one else ""
    cells = [
        one["program"],
        one["does"],
        memory if one["fits"] else f"**does not fit**, {memory}",
        f"{one['memory_share']:.0%}",
        f"{one['temporary_bytes'] / GB:.2f} GB",
        f"{one['operations'] / 1e12:.3g}",
        f"{one['bytes'] / GB:.3g} GB",
        f"{sum(one['sent_bytes'].values()) / GB:.3g} GB",
        f"{one['estimate_seconds']:.3g} s",
        f"{one['estimate_utilisation']:.0%}",
        useful,
        f"{one['estimate_exposed']:.3g} s",
        one["attention"],
        f"{one['compile_seconds']:.0f} s",
    ]
    return "| " + " | ".join(cells) + " |"
