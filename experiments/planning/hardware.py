"""Machines that people rent: what they can do by their makers' data sheets, and how XLA is told of one.

Peaks are those of dense products in bfloat16. Interconnect: what a chip can send at once along one axis of its torus in
both directions (TPU), or over NVLink in one direction (NVIDIA). Sources: Google Cloud's pages on each TPU version and
"How to Scale Your Model" (jax-ml.github.io/scaling-book); NVIDIA's data sheets of H100 SXM, H200 SXM and B200.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from experiments.benchmarks.measure import timed
from pref_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as people say.
      operations: a second, of products of bfloat16.
      memory: bytes that a program can have.
      bandwidth: bytes of memory a second.
      interconnect: bytes a second that it sends to its neighbours.
      target: of NVIDIA, what XLA has to know.
    """

    name: str
    operations: float
    memory: float
    bandwidth: float
    interconnect: float
    target: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine.

    Attributes:
      name: as `--hardware` takes it.
      chip: what it has.
      devices: how many.
      kind: which compiler makes its programs; "here": that of this process's devices.
      topology: of a TPU slice, "v5e:2x4".
    """

    name: str
    chip: Chip
    devices: int
    kind: Literal["tpu", "cuda", "here"]
    topology: str = ""


def _gpu(
    name: str,
    *,
    operations: float,
    memory: float,
    bandwidth: float,
    interconnect: float,
    cores: int,
    major: int,
    l2: int,
) -> Chip:
    """A GPU, and how XLA's `GpuTargetConfigProto` describes it."""
    target = f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {int(bandwidth)}
l2_cache_size: {l2} clock_rate_ghz: 1.98 device_memory_size: {int(memory)} shared_memory_per_block_optin: 232448
cuda_compute_capability {{ major: {major} minor: 0 }} registers_per_core_limit: 65536
registers_per_block_limit: 65536 }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}" """
    peaks = {"operations": operations, "memory": memory, "bandwidth": bandwidth, "interconnect": interconnect}
    return Chip(name=name, target=target, **peaks)


_V5E = Chip(name="TPU v5e", operations=197e12, memory=15.75 * GIB, bandwidth=819e9, interconnect=90e9)
_V5P = Chip(name="TPU v5p", operations=459e12, memory=95 * GIB, bandwidth=2765e9, interconnect=180e9)
_V6E = Chip(name="TPU v6e", operations=918e12, memory=31.25 * GIB, bandwidth=1640e9, interconnect=180e9)
_HOPPER: Any = {"operations": 989e12, "interconnect": 450e9, "cores": 132, "major": 9, "l2": 52428800}
_H100 = _gpu("NVIDIA H100", memory=79.6e9, bandwidth=3350e9, **_HOPPER)
_H200 = _gpu("NVIDIA H200", memory=140e9, bandwidth=4800e9, **_HOPPER)
_B200 = _gpu(
    "NVIDIA B200",
    operations=2250e12,
    memory=179e9,
    bandwidth=7700e9,
    interconnect=900e9,
    cores=148,
    major=10,
    l2=132644864,
)


# What JAX calls them.
_KINDS = {
    "NVIDIA H100": _H100,
    "NVIDIA H200": _H200,
    "NVIDIA B200": _B200,
    "TPU v5 lite": _V5E,
    "TPU v5": _V5P,
    "TPU v6 lite": _V6E,
}


def _tpus(name: str, chip: Chip, shapes: Sequence[str]) -> dict[str, Hardware]:
    found = {}
    for shape in shapes:
        devices = math.prod(int(length) for length in shape.split("x"))
        own = f"tpu_{name}_{devices}"
        topology = f"{name}:{shape}"
        found[own] = Hardware(name=own, chip=chip, devices=devices, kind="tpu", topology=topology)
    return found


HARDWARE: Mapping[str, Hardware] = {
    **_tpus("v5e", _V5E, ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
    **_tpus("v5p", _V5P, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")),
    **_tpus("v6e", _V6E, ("2x4", "4x4", "4x8", "8x8")),
    "h100": Hardware(name="h100", chip=_H100, devices=1, kind="cuda"),
    "h200": Hardware(name="h200", chip=_H200, devices=1, kind="cuda"),
    "b200": Hardware(name="b200", chip=_B200, devices=1, kind="cuda"),
}


def find(name: str) -> Hardware:
    """The machine of a name.

    Raises:
      UserError: for an unknown one.
    """
    if name not in HARDWARE:
        raise UserError(f"--hardware={name}: unknown; there are {', '.join(HARDWARE)}")
    return HARDWARE[name]


def here() -> Hardware:
    """The devices of this process: their data sheet by what JAX calls them, else peaks measured in a second."""
    first: Any = jax.devices()[0]
    known = [chip for name, chip in _KINDS.items() if first.device_kind.startswith(name)]
    chip = known[0] if known else _measured(first)
    return Hardware(name="here", chip=chip, devices=jax.device_count(), kind="here")


def _measured(device: Any) -> Chip:
    """What a device does with a large product and a large copy."""
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    size, copied = (2048, 1 << 26) if device.platform == "cpu" else (8192, 1 << 30)
    x, flat = jnp.ones((size, size), dtype), jnp.ones(copied // 4, jnp.float32)
    multiply, add = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    product, copy = timed(lambda: multiply(x), 5)[1], timed(lambda: add(flat), 5)[1]
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip(
        name=f"{device.device_kind}, peaks measured",
        operations=2 * size**3 / product,
        memory=memory,
        bandwidth=2 * copied / copy,
        interconnect=2 * copied / copy,
    )


def devices(hardware: Hardware) -> list[Any]:
    """Devices that programs can be compiled for and never run on; the process needs `compilers.environment`.

    Raises:
      UserError: if the compiler is not there, or does not know the machine.
    """
    if hardware.kind == "here":
        return jax.devices()
    try:
        if hardware.kind == "tpu":
            # Boards of v5e and v6e have four chips; others tell by themselves.
            bounds = {} if "v5p" in hardware.topology else {"chips_per_host_bounds": (2, 2, 1)}
            found = topologies.get_topology_desc(hardware.topology, "tpu", **bounds)
        else:
            found = _cuda_topology(hardware)
    except (RuntimeError, ValueError, ImportError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"no compiler for {hardware.name} ({first}); `make plan` installs them") from None
    return list(found.devices)


def _cuda_topology(hardware: Hardware) -> Any:
    shape = f"1x1x{hardware.devices}"
    return topologies.get_topology_desc(hardware.name, "cuda", target_config=hardware.chip.target, topology=shape)
