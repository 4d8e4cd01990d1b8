"""A run killed again and again, also while it writes a checkpoint, ends in the bits of an undisturbed one.

The file is its own victim: `python test_train_kill.py FOLDER` runs one small fit.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from pref_jax.train.checkpoint import load_tree, save_tree

STEPS = 14


def main(folder: str) -> None:
    import jax.numpy as jnp

    from pref_jax.data.loaders.batches import index_batches
    from pref_jax.train.loop import fit
    from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 64)).astype(np.float32)
    # 6 MB of state, so that a kill finds checkpoints half-written.
    params = {"in": jnp.asarray(rng.normal(size=(64, 8_000)) / 64, jnp.float32), "out": jnp.zeros((8_000,))}

    def loss_fn(params, frozen, batch, key):
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        return jnp.mean((jnp.tanh((batch["x"] + noise) @ params["in"]) @ params["out"] - batch["y"]) ** 2), {}

    opt = optimizer(OptimizerConfig(lr=1e-3, num_steps=STEPS, warmup_fraction=0.1))
    state = fit(
        name="victim",
        state=init_state(params, opt, 0),
        frozen=None,
        step=make_step(loss_fn, opt),
        batches=index_batches(64, 16, STEPS, seed=0).map(lambda rows: {"x": x[rows], "y": x[rows, 0]}),
        folder=folder,
        checkpoint_every=2,
        log_every=3,
        tensorboard=False,
    )
    save_tree(Path(folder) / "done", state._replace(key=jax.random.key_data(state.key)))


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, str(folder)])


def in_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*tmp*"))


def kill_at(folder: Path, moment, seconds: float = 180) -> bool:
    """Kills a run at the first `moment`; False if it ended before."""
    process, end = start(folder), time.monotonic() + seconds
    while process.poll() is None and not moment():
        assert time.monotonic() < end, "the run hangs"
        time.sleep(0.001)
    early = process.poll() is None
    process.kill()
    process.wait()
    return early


def terminate_at(folder: Path, moment, seconds: float = 180) -> tuple[int, str]:
    """Asks a run to end at the first `moment`; its exit code and what it says."""
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + seconds
    while process.poll() is None and not moment():
        assert time.monotonic() < end, "the run hangs"
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=seconds)[1]
    return process.returncode, said


def test_killed_runs_end_in_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(whole)  # side by side with the first kills, to save time
    rng = random.Random(0)

    def written(step):
        return (killed / "checkpoints" / str(step)).exists()

    def soon_after(step, delay):
        return lambda: written(step) and (time.sleep(delay) or True)

    moments = [
        lambda: in_checkpoint(killed),  # in the very first checkpoint
        soon_after(4, rng.uniform(0, 0.2)),
        lambda: written(8) and in_checkpoint(killed),
    ]
    assert sum([kill_at(killed, moment) for moment in moments]) >= 2, "most kills come before the end"
    assert undisturbed.wait(180) == 0
    # Every second step has a checkpoint by itself; one that is asked to end has one of any step.
    before = max(int(step.name) for step in (killed / "checkpoints").iterdir() if step.name.isdecimal())
    logged = len((killed / "metrics.jsonl").read_bytes())
    code, said = terminate_at(killed, lambda: len((killed / "metrics.jsonl").read_bytes()) > logged)
    if code:  # it had not ended before
        assert code == 128 + signal.SIGTERM, said
        assert "asked to end (SIGTERM), saved after step" in said
        step = int(said.split("saved after step ")[1].split()[0])
        assert before < step < STEPS
        assert written(step)
    assert start(killed).wait(180) == 0
    ours, theirs = load_tree(killed / "done"), load_tree(whole / "done")
    assert int(ours["step"]) == STEPS
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert not in_checkpoint(killed)


if __name__ == "__main__":
    main(sys.argv[1])
