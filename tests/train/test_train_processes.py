"""Two processes of four devices each train as one process of eight does, and one that dies takes the other with it.

The file is its own victim: `python test_train_processes.py FOLDER STEPS` runs one small fit.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

STEPS, SLOW = 8, 0.3


def main(folder: str, steps: str, seconds: str) -> None:
    from pref_jax.mesh import initialize_distributed

    initialize_distributed()
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from pref_jax.data.loaders.batches import index_batches
    from pref_jax.errors import UserError
    from pref_jax.mesh import make_mesh
    from pref_jax.train.loop import fit
    from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

    assert jax.device_count() == 8
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 16)).astype(np.float32)
    mesh = make_mesh(data=2, fsdp=4)
    place = NamedSharding(mesh, PartitionSpec("fsdp", None))
    start = rng.normal(size=(16, 4)).astype(np.float32)
    params = {"w": jax.make_array_from_callback(start.shape, place, lambda part: start[part])}

    def loss_fn(params, frozen, batch, key):
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        return jnp.mean((jnp.tanh((batch["x"] + noise) @ params["w"]).sum(axis=1) - batch["y"]) ** 2), {}

    def look_up(rows):
        time.sleep(float(seconds))
        if os.environ.get("FAILS") == str(jax.process_index()) and (Path(folder) / "checkpoints" / "2").is_dir():
            raise UserError("votes.jsonl: cannot be read on this host")
        return {"x": x[rows], "y": x[rows, 0]}

    opt = optimizer(OptimizerConfig(lr=1e-2, num_steps=STEPS))
    fit(
        name="processes",
        state=init_state(params, opt, 0),
        frozen=None,
        step=make_step(loss_fn, opt),
        batches=index_batches(64, 16, STEPS, seed=0).map(look_up)[: int(steps)],
        folder=folder,
        mesh=mesh,
        checkpoint_every=2,
        log_every=1,
        tensorboard=False,
    )


def start(folder: Path, processes: int, *, steps: int = STEPS, seconds: float = 0.0) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(processes):
        own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        own |= {"JAX_NUM_CPU_DEVICES": str(8 // processes), "JAX_PLATFORMS": "cpu"}
        if processes > 1:
            own |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
            own |= {"JAX_PROCESS_ID": str(number)}
        command = [sys.executable, __file__, str(folder), str(steps), str(seconds)]
        started.append(subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True))
    return started


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait(processes, seconds: float = 240) -> list[str]:
    """What each says; all have ended well."""
    said = [process.communicate(timeout=seconds)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


def until_saved(folder: Path, processes, seconds: float = 240) -> None:
    """Waits for the first checkpoint; nobody has ended before."""
    end = time.monotonic() + seconds
    while not (folder / "checkpoints" / "2").is_dir():
        assert time.monotonic() < end, "the processes hang"
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    wait(start(folder, 1))
    return losses(folder)


def test_two_processes_train_as_one(tmp_path, alone):
    wait(start(tmp_path, 2))
    assert len(alone) == STEPS
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-5)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_other_processes(tmp_path, alone, first, then):
    begun = start(tmp_path, first, seconds=SLOW)
    until_saved(tmp_path, begun)
    for process in begun:
        process.kill()
        process.communicate()
    wait(start(tmp_path, then))
    np.testing.assert_allclose(losses(tmp_path)[-2:], alone[-2:], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_dies_ends_the_other_within_a_minute(tmp_path, number):
    begun = start(tmp_path, 2, seconds=2 * SLOW)
    until_saved(tmp_path, begun)
    begun[number].kill()
    killed = time.monotonic()
    said = begun[1 - number].communicate(timeout=240)[1]
    assert begun[1 - number].returncode != 0
    assert time.monotonic() - killed < 60, said
    begun[number].communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_an_error_in_one_process_ends_both_with_its_message(tmp_path, monkeypatch, number):
    monkeypatch.setenv("FAILS", str(number))
    begun = start(tmp_path, 2, seconds=2 * SLOW)
    until_saved(tmp_path, begun)
    failed = time.monotonic()
    said = [process.communicate(timeout=240)[1] for process in begun]
    assert time.monotonic() - failed < 90, said
    assert all(process.returncode != 0 for process in begun), said
    assert "cannot be read on this host" in said[number]


def test_a_signal_to_one_process_saves_for_both(tmp_path, alone):
    begun = start(tmp_path, 2, seconds=5 * SLOW)
    until_saved(tmp_path, begun)
    begun[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in begun]
    assert [process.returncode for process in begun] == [143, 143], said
    assert "asked to end (SIGTERM), saved after step" in said[0]
    wait(start(tmp_path, 2))
    np.testing.assert_allclose(losses(tmp_path)[-2:], alone[-2:], rtol=1e-5)


if __name__ == "__main__":
    main(*sys.argv[1:])
