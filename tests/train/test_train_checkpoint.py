import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pref_jax.errors import UserError
from pref_jax.mesh import make_mesh
from pref_jax.train.checkpoint import Checkpoints, KeepConfig, load_tree, restore_params, save_tree
from pref_jax.train.state import OptimizerConfig, TrainState, init_state, optimizer

OPT = optimizer(OptimizerConfig(lr=1e-2, num_steps=5, clip=1.0))


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
        "low": {"b": jnp.asarray(rng.normal(size=(8,)), jnp.bfloat16)},
        "none": jnp.zeros((0, 3)),
        "scalar": jnp.float32(rng.normal()),
    }


def make_state(step=0, seed=0) -> TrainState:
    state = init_state(make_params(seed), OPT, seed)
    moved = jax.tree.map(lambda x: x + (0.5 if jnp.issubdtype(x.dtype, jnp.floating) else 0), state.opt_state)
    return state._replace(step=jnp.int32(step), opt_state=moved)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_state_comes_back_bit_for_bit_with_its_metadata(tmp_path):
    state, metadata = make_state(3), {"name": "toy", "window": {"sums": {"loss": 0.1 + 0.2}}}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.restore(state) is None
        checkpoints.save(state, metadata)
        checkpoints.save(state, {"name": "the same step again"})
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(0, seed=1))
    assert restored is not None
    assert_same_bits(restored[0], state)
    assert restored[1] == metadata


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    big = init_state({"w": jnp.arange(3_000_000, dtype=jnp.float32)}, optax.sgd(0.1), 0)
    expected = np.asarray(big.params["w"]).copy()
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(big, {})
        spoilt = spoil(big.params)
        for _ in range(5):
            spoilt = spoil(spoilt)
    np.testing.assert_array_equal(restore_params(tmp_path)["w"], expected)


def test_a_state_moves_between_meshes(tmp_path):
    """Written by one device, read by eight, and back."""
    state = make_state(1)
    mesh = make_mesh(data=2, fsdp=4)
    specs = {"w": PartitionSpec("fsdp"), "low": {"b": PartitionSpec("fsdp")}, "none": PartitionSpec()}
    specs["scalar"] = PartitionSpec()
    sharded = jax.device_put(make_params(1), jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    like = init_state(sharded, OPT, 5)
    with Checkpoints(tmp_path / "one") as checkpoints:
        checkpoints.save(state, {})
        checkpoints.wait()
        restored = checkpoints.restore(like)
    assert restored is not None
    assert_same_bits(restored[0], state)
    assert jax.tree.map(lambda x: x.sharding, restored[0]) == jax.tree.map(lambda x: x.sharding, like)
    with Checkpoints(tmp_path / "eight") as checkpoints:
        checkpoints.save(restored[0], {})
        checkpoints.wait()
        back = checkpoints.restore(make_state(0))
    assert back is not None
    assert_same_bits(back[0], state)


@pytest.mark.parametrize(("highest", "best_step"), [(True, 2), (False, 1)])
def test_the_newest_and_the_best_are_kept(tmp_path, highest, best_step):
    scores = {1: 0.2, 2: 0.9, 3: 0.5, 4: float("nan"), 5: None, 6: 0.5}
    with Checkpoints(tmp_path, keep=KeepConfig(newest=2, best="accuracy", highest=highest)) as checkpoints:
        for step, score in scores.items():
            metrics = None if score is None else {"accuracy": score, "other": 1.0}
            checkpoints.save(make_state(step, seed=step), {}, metrics)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [best_step, 5, 6]
    best = restore_params(tmp_path, make_params(), best=True)
    assert_same_bits(best, make_params(best_step))
    newest = restore_params(tmp_path)
    np.testing.assert_array_equal(newest["low"]["b"], make_params(6)["low"]["b"])
    assert set(newest) == {"w", "low", "scalar"}, "what has no elements is known from `like` alone"


def test_what_a_killed_run_leaves_is_ignored_and_swept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), {})
    part = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", part)
    (part / "commit_success.txt").unlink(missing_ok=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(make_state(2), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


# Orbax gives up on a part while readers of it still run; they then find its event loop closed, and say so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "harm", ["params", "rest/_METADATA", "rest/manifest.ocdbt", "params/d", "_CHECKPOINT_METADATA", "cut data"]
)
def test_damage_is_told_with_folder_and_mend(tmp_path, harm):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(4), {})
    if harm == "cut data":
        files = [path for path in (tmp_path / "4" / "params").rglob("d/*") if path.is_file()]
        for path in files:
            path.write_bytes(path.read_bytes()[:-7])
    else:
        target = tmp_path / "4" / harm
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"/4: damaged checkpoint .* delete this"):
        checkpoints.restore(make_state(0))


def test_a_checkpoint_of_something_else_is_told(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(4), {})
        checkpoints.wait()
        params = make_params()
        params["w"] = jnp.zeros((8, 5))
        params["low"] = {"b": jnp.zeros((8,), jnp.float32)}
        params["new"] = params.pop("scalar")
        with pytest.raises(UserError) as error:
            checkpoints.restore(init_state(params, OPT, 0))
    text = str(error.value)
    for part in ("does not fit", "w: float32[8, 4] in the checkpoint, float32[8, 5] wanted", "new: not in the"):
        assert part in text
    assert "low/b: bfloat16[8] in the checkpoint, float32[8] wanted" in text
    assert "scalar: in the checkpoint, but unknown" in text


def test_missing_checkpoints_are_told(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder; run the stage"):
        restore_params(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no whole checkpoint"):
        restore_params(tmp_path)
    with pytest.raises(UserError, match=r"nowhere: no such folder; run the stage"):
        load_tree(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="damaged"):
        load_tree(tmp_path / "empty")
    with pytest.raises(UserError, match="newest=0"):
        KeepConfig(newest=0)


def test_trees_come_back_and_are_replaced(tmp_path):
    tree = {"a": np.arange(3), "b": (jnp.ones((2, 2), jnp.bfloat16), np.float32(4)), "none": jnp.zeros((0, 2))}
    save_tree(tmp_path / "deep" / "tree", {"a": np.zeros(1)})
    save_tree(tmp_path / "deep" / "tree", tree)
    again = load_tree(tmp_path / "deep" / "tree", like=tree)
    assert_same_bits(again, tree)
    assert isinstance(again["a"], np.ndarray), "NumPy's int64 would not survive as a JAX array"
    plain = load_tree(tmp_path / "deep" / "tree")
    assert set(plain) == {"a", "b"}
    assert_same_bits(plain["a"], tree["a"])
    assert_same_bits(plain["b"], {"0": tree["b"][0], "1": tree["b"][1]})
    mesh = make_mesh()
    save_tree(tmp_path / "rows", {"x": jnp.arange(16.0)})
    like = {"x": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))}
    assert load_tree(tmp_path / "rows", like)["x"].sharding == like["x"].sharding
    save_tree(tmp_path / "nothing", {})
    assert load_tree(tmp_path / "nothing") == {}


def test_saving_ten_megabytes_is_quick_and_silent(tmp_path, capfd):
    tree = {str(i): jnp.ones((250, 1000)) for i in range(10)}
    save_tree(tmp_path / "warm", {"a": jnp.ones(1)})
    times = []
    for i in range(3):
        start = time.perf_counter()
        save_tree(tmp_path / str(i), tree)
        times.append(time.perf_counter() - start)
    assert min(times) < 2, "0.1 s on an idle machine; much more means that a background thread is waited for"
    assert capfd.readouterr() == ("", "")
