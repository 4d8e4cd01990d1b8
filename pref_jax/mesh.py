"""Device meshes and the placement of batches and parameters on them.

A mesh has three axes: `data` (copies of the parameters), `fsdp` (parameters cut, batch cut too) and `tensor`
(features cut). Axis letters: B batch.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pref_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# Where launchers tell each process how many they have started; the rest JAX finds by itself.
LAUNCHERS = {"SLURM": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
# Seconds without a sign of life after which a process is taken for dead.
HEARTBEAT = 30


def initialize_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Joins the processes of several hosts into one job, if the arguments or the environment ask for it.

    The environment asks by JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID where the cluster
    tells neither), by naming several TPU_WORKER_HOSTNAMES (TPU pods, GKE), or by a launcher of `LAUNCHERS` that started
    several processes (srun, mpirun). To be called before any other use of JAX.

    A process that dies, or ends with an error, ends the others within a minute.

    Args:
      coordinator: address and port of process 0, "host:port".
      num_processes: number of processes of the job.
      process_id: number of this process, from 0.

    Returns:
      Whether a job of several processes was joined; False is the usual single process, left untouched.

    Raises:
      UserError: if a number in the environment is none, or the others cannot be reached.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if coordinator is None and not pod and not any((_env_int(name) or 1) > 1 for name in LAUNCHERS.values()):
        return False
    num_processes = _env_int("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _env_int("JAX_PROCESS_ID") if process_id is None else process_id
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
            # Else one that ends with an error waits five minutes for the others to end too.
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"several processes: {str(error).splitlines()[0]}; start all of them with the same "
            "JAX_COORDINATOR_ADDRESS=host:port and JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0 on"
        ) from error
    return True


def _env_int(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"environment: {name}={text!r} is no whole number; set it to one, or unset it")
    return int(text)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes ("data", "fsdp", "tensor"), all of type Auto: the compiler places what is not told.

    Args:
      data: devices along `data`; -1, allowed for one axis, takes what the others leave.
      fsdp: devices along `fsdp`.
      tensor: devices along `tensor`.
      devices: the `jax.Device`s to use; all of the job's by default.

    Raises:
      UserError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    asked = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{asked}: sizes are whole numbers from 1, one of them may be -1 (the rest); fix the sizes")
    known = math.prod(size for size in sizes.values() if size != -1)
    if rest:
        sizes[rest[0]] = max(1, len(devices) // known)
    if math.prod(sizes.values()) != len(devices):
        fitting = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            f"{asked}: the sizes do not multiply to the {len(devices)} devices at hand; "
            f"use sizes out of {fitting} whose product is {len(devices)}, or -1 for one of them"
        )
    shape = tuple(sizes[name] for name in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis (B) cut over `data` and `fsdp` together, all other axes whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """How many parts a batch is cut into; its size must be a multiple of this."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def tree_shardings(mesh: Mesh, specs: Any) -> Any:
    """Turns a tree of `PartitionSpec` into the same tree of `NamedSharding` on `mesh`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Copies a batch of host arrays, each leading with B, to the mesh; the copy runs in the background.

    On several hosts each process hands in the same whole batch and keeps its own part of it.

    Raises:
      UserError: if an array does not lead with an axis that `data` times `fsdp` divides.
    """
    sharding, shards = batch_sharding(mesh), batch_shards(mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if leaf.ndim == 0 or leaf.shape[0] % shards:
            raise UserError(
                f"batch entry {jax.tree_util.keystr(path)}: shape {leaf.shape} cannot be cut into the {shards} parts "
                f"of mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}; use a batch size that {shards} divides"
            )
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part]), batch)
