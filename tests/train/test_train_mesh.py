import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pref_jax import mesh as meshes
from pref_jax.errors import UserError


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 2)),
    ],
)
def test_sizes(sizes, shape):
    mesh = meshes.make_mesh(**sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_one_device_is_a_mesh_too():
    assert meshes.make_mesh(devices=jax.devices()[3:4]).size == 1


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 3}, {"data": 4}, {"data": 16}, {"data": -1, "fsdp": -1}, {"tensor": 0}, {"data": -2}, {"fsdp": 9}],
)
def test_sizes_that_do_not_fit_are_told(sizes):
    with pytest.raises(UserError, match=r"fix the sizes|or -1 for one of them"):
        meshes.make_mesh(**sizes)


def test_batches_are_cut_over_data_and_fsdp():
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    rows = np.arange(24, dtype=np.int32).reshape(8, 3)
    batch = meshes.put_batch({"x": rows}, mesh)
    assert batch["x"].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(batch["x"], rows)
    with pytest.raises(UserError, match=r"'x'.*4 divides"):
        meshes.put_batch({"x": rows[:6]}, mesh)


def test_tree_shardings_keep_the_tree():
    mesh = meshes.make_mesh(fsdp=2)
    shardings = meshes.tree_shardings(mesh, {"a": PartitionSpec("fsdp"), "b": [PartitionSpec()]})
    assert shardings["a"].spec == PartitionSpec("fsdp")
    assert shardings["b"][0] == meshes.replicated(mesh)


def test_a_single_process_is_left_alone(monkeypatch):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "TPU_WORKER_HOSTNAMES")
    for name in (*names, *meshes.LAUNCHERS.values()):
        monkeypatch.delenv(name, raising=False)
    assert meshes.initialize_distributed() is False
    for name in meshes.LAUNCHERS.values():
        monkeypatch.setenv(name, "1")
    assert meshes.initialize_distributed() is False
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES='two'"):
        meshes.initialize_distributed()


def test_several_processes_are_joined_when_asked(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    assert meshes.initialize_distributed() is True
    assert meshes.initialize_distributed("other:1", 2, 0) is True
    assert calls == [("host:1234", 4, 2), ("other:1", 2, 0)]


@pytest.mark.parametrize("launcher", sorted(meshes.LAUNCHERS))
def test_launchers_that_start_several_processes_are_followed(monkeypatch, launcher):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    for name in ("JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(meshes.LAUNCHERS[launcher], "2")
    assert meshes.initialize_distributed() is True
    assert calls == [(None, None, None)]


def test_others_who_cannot_be_reached_are_told(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match="several processes: DEADLINE_EXCEEDED: no answer; start all of them"):
        meshes.initialize_distributed("host:1", 2, 0)
