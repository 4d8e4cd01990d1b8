import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pref_jax.data.loaders.batches import index_batches
from pref_jax.errors import UserError
from pref_jax.mesh import make_mesh, put_batch
from pref_jax.train import loop
from pref_jax.train.checkpoint import KeepConfig, restore_params
from pref_jax.train.logging import read_metrics
from pref_jax.train.loop import fit, jit_step
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

STEPS = 12
OPT = optimizer(OptimizerConfig(lr=3e-2, num_steps=STEPS, warmup_fraction=0.2, clip=1.0))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = np.sin(X.sum(axis=1))
FROZEN = {"scale": np.linspace(0.5, 1.5, 8, dtype=np.float32)}
SPECS = {"in": PartitionSpec(None, "fsdp"), "out": PartitionSpec("fsdp", None), "bias": PartitionSpec()}


def make_params():
    rng = np.random.default_rng(1)
    shapes = {"in": (4, 8), "out": (8, 1), "bias": (8,)}
    return {name: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for name, shape in shapes.items()}


def loss_fn(params, frozen, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"][None]) * frozen["scale"][None]
    keep = jax.random.bernoulli(key, 0.9, hidden.shape)
    error = ((hidden * keep) @ params["out"])[:, 0] - batch["y"]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


STEP = make_step(loss_fn, OPT)


def make_batches(steps=STEPS, spoil=()):
    rows = index_batches(64, 16, steps, seed=0)
    poisoned = [rows[i][0] for i in spoil]

    def look_up(index):
        y = Y[index]
        if index[0] in poisoned:
            y = y * np.float32(np.nan)
        return {"x": X[index], "y": y}

    return rows.map(look_up)


def spoil_from(steps):
    """Batches of users 3, 7 and 9, without a number to learn in these steps."""

    def change(number, batch):
        y = batch["y"] * np.float32(np.nan if number in steps else 1)
        return {**batch, "y": y, "user": np.array([7, 3, 7, 9] * 4)}

    return make_batches().map_with_index(change)


def run(folder, **changes):
    options = {
        "name": "toy",
        "frozen": FROZEN,
        "step": STEP,
        "batches": make_batches(),
        "folder": folder,
        "log_every": 1,
        "tensorboard": False,
    }
    return fit(**{"state": init_state(make_params(), OPT, 0), **options, **changes})


def losses(folder):
    return np.array([line["loss"] for line in read_metrics(folder) if "loss" in line])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return jax.device_get(run(folder).params), losses(folder), (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 2}])
def test_eight_devices_equal_one(tmp_path, reference, sizes):
    mesh = make_mesh(**sizes)
    params = jax.device_put(make_params(), jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS))
    state = run(tmp_path, state=init_state(params, OPT, 0))
    np.testing.assert_allclose(losses(tmp_path), reference[1], rtol=1e-5)
    for name, leaf in state.params.items():
        assert leaf.sharding == NamedSharding(mesh, SPECS[name])
        np.testing.assert_allclose(leaf, reference[0][name], atol=1e-5)


def test_scores_fall_and_are_written_once_a_step(tmp_path, reference):
    assert len(reference[1]) == STEPS
    assert reference[1][-3:].mean() < reference[1][:3].mean()
    run(tmp_path, log_every=5)
    lines = read_metrics(tmp_path, "toy")
    assert [line["step"] for line in lines] == [5, 10, 12]
    expected = [reference[1][:5].mean(), reference[1][5:10].mean(), reference[1][10:].mean()]
    np.testing.assert_allclose([line["loss"] for line in lines], expected, rtol=1e-12)
    assert set(lines[0]) == {"name", "step", "loss", "mae", "grad_norm", "skipped"}


def test_a_finished_fit_returns_at_once(tmp_path, reference):
    first = run(tmp_path)

    def never(*_):
        raise AssertionError("not to be called")

    again = run(tmp_path, step=never, evaluate=never)
    assert int(again.step) == STEPS
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.params), jax.device_get(first.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.opt_state), jax.device_get(first.opt_state))
    assert (tmp_path / "metrics.jsonl").read_bytes() == reference[2]


@pytest.mark.parametrize("fall", [3, 8, 11])
def test_a_broken_run_goes_on_to_the_same_bits(tmp_path, fall):
    def evaluate(state):
        if int(state.step) == fall and not (tmp_path / "fallen").exists():
            (tmp_path / "fallen").touch()
            raise KeyboardInterrupt
        return {"bias": float(state.params["bias"].sum())}

    options = {"log_every": 4, "checkpoint_every": 3, "evaluate": evaluate, "evaluate_every": 1}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", **options)
    broken, whole = run(tmp_path / "broken", **options), run(tmp_path / "whole", **options)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(broken.params), jax.device_get(whole.params))
    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("broken", "whole")]
    assert texts[0] == texts[1]


def test_batches_that_are_not_finite_are_counted_and_left_out(tmp_path):
    state = run(tmp_path, batches=make_batches(spoil=(1, 2, 9)), log_every=3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))
    skipped = [line["skipped"] for line in read_metrics(tmp_path)]
    assert sum(skipped) >= 3
    assert np.isfinite(losses(tmp_path)).all()


@pytest.mark.parametrize("first", [0, 5])
def test_a_training_that_has_diverged_ends_with_its_step_and_its_last_checkpoint(tmp_path, monkeypatch, first):
    monkeypatch.setattr(loop, "MOST_SKIPPED", 4)
    spoiled = spoil_from(range(first, STEPS))
    kept = "there is no checkpoint" if first == 0 else "the last checkpoint is .*checkpoints/8"
    told = f"not finite in 4 steps in a row, up to step {first + 4}; its batch is of users 3, 7, 9; {kept}"
    with pytest.raises(UserError, match=told):
        run(tmp_path, batches=spoiled, checkpoint_every=4)
    # With better batches the same run goes on.
    assert int(run(tmp_path, batches=spoil_from(())).step) == STEPS


def test_single_steps_that_are_not_finite_end_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MOST_SKIPPED", 2)
    assert int(run(tmp_path, batches=spoil_from((0, 2, 4, 6, 11))).step) == STEPS


def test_a_run_that_is_asked_to_end_saves_and_ends(tmp_path, reference):
    def evaluate(state):
        if int(state.step) == 5:
            signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(SystemExit) as ended:
        run(tmp_path, evaluate=evaluate, evaluate_every=1)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (tmp_path / "checkpoints" / "5").is_dir()
    state = run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), reference[0])
    np.testing.assert_array_equal(losses(tmp_path), reference[1])


def test_whoever_handles_sigterm_keeps_it(tmp_path):
    noted = []
    signal.signal(signal.SIGTERM, lambda *_: noted.append(1))
    try:
        state = run(tmp_path, evaluate=lambda _: signal.raise_signal(signal.SIGTERM) or {}, evaluate_every=6)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert int(state.step) == STEPS
    assert noted == [1, 1]


def test_the_best_evaluation_is_kept(tmp_path):
    seen = {}

    def evaluate(state):
        step = int(state.step)
        seen[step] = np.asarray(state.params["bias"]).copy()
        return {"accuracy": {4: 0.9}.get(step, 0.1), "step": step}

    run(tmp_path, evaluate=evaluate, evaluate_every=4, keep=KeepConfig(newest=1, best="accuracy"))
    assert list(seen) == [4, 8, 12]
    lines = [line for line in read_metrics(tmp_path) if "eval/accuracy" in line]
    assert [(line["step"], line["eval/accuracy"]) for line in lines] == [(4, 0.9), (8, 0.1), (12, 0.1)]
    np.testing.assert_array_equal(restore_params(tmp_path / "checkpoints", best=True)["bias"], seen[4])
    np.testing.assert_array_equal(restore_params(tmp_path / "checkpoints")["bias"], seen[12])


def test_the_step_takes_its_state_s_memory_and_fit_the_caller_s_only_if_told(tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    state = init_state(jax.device_put(make_params(), NamedSharding(mesh, PartitionSpec())), OPT, 0)
    frozen = jax.device_put(FROZEN, NamedSharding(mesh, PartitionSpec()))
    run(tmp_path / "kept", state=state, batches=make_batches(2))
    assert not state.params["in"].is_deleted()
    compiled = jit_step(STEP, state, frozen, mesh)
    after, _ = compiled(state, frozen, put_batch(make_batches()[0], mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not frozen["scale"].is_deleted()
    run(tmp_path / "taken", state=after, batches=make_batches(2), consume=True)
    assert after.params["in"].is_deleted()


def test_the_same_step_is_compiled_once(tmp_path):
    traces = []

    def counted(params, frozen, batch, key):
        traces.append(1)
        return loss_fn(params, frozen, batch, key)

    step = make_step(counted, OPT)
    run(tmp_path / "a", step=step)
    count = len(traces)
    run(tmp_path / "b", step=step)
    assert len(traces) == count


def test_mistakes_are_told(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match="give each fit a folder"):
        run(tmp_path, name="other")
    with pytest.raises(UserError, match="already trained for 12 steps, 5 are asked"):
        run(tmp_path, batches=make_batches(5))
    rows = index_batches(64, 12, 3, seed=0).map(lambda index: {"x": X[index], "y": Y[index]})
    with pytest.raises(UserError, match="batch size that 8 divides"):
        run(tmp_path / "uneven", batches=rows, mesh=make_mesh())


def test_a_step_is_compiled_with_the_mesh_set(tmp_path):
    """Models pin activations to the batch axes of this mesh (`lm.sharding.constrain`); without it they cannot."""
    seen = []

    def watching(params, frozen, batch, key):
        seen.append(jax.sharding.get_abstract_mesh())
        return loss_fn(params, frozen, batch, key)

    mesh = make_mesh(data=2, fsdp=4)
    run(tmp_path, step=make_step(watching, OPT), mesh=mesh)
    assert {tuple(found.shape.items()) for found in seen} == {(("data", 2), ("fsdp", 4), ("tensor", 1))}
    assert jax.sharding.get_abstract_mesh().empty
