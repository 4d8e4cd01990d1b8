"""Bases held in bytes: how far numbers are off, what is read, trained and refused, on one device and on eight."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

import lore_jax
import pref_jax
from pref_jax.errors import UserError
from pref_jax.lm import backbone, checkpoint, int8, lora
from pref_jax.lm.int8 import Int8Kernel
from pref_jax.lm.pairs import pair_states
from pref_jax.lm.text_model import open_text
from pref_jax.mesh import make_mesh

GOLDENS = Path(__file__).parent / "goldens"
CASES = ("llama_tied", "gemma2", "bert", "modernbert", "deberta_v3", "qwen3_5", "gemma4")


@pytest.mark.parametrize("seed", range(5))
def test_no_number_is_off_by_more_than_half_a_step_of_its_column(seed):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 7, 5)) * 10.0 ** rng.integers(-8, 8, (3, 1, 5))
    kernel[0, :, 0] = 0
    kernel[1, :, 1] = np.eye(7)[2] * 1e-30
    found = int8.quantise(jnp.asarray(kernel, jnp.float32))
    scale = np.abs(kernel).max(axis=1, keepdims=True) / 127
    assert found.values.dtype == jnp.int8
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    wide = np.asarray(found.values, np.float64) * np.asarray(found.scale, np.float64)
    assert (np.abs(wide - kernel) <= scale * 0.50001).all()
    np.testing.assert_array_equal(np.asarray(int8.widened(found, jnp.float32)), wide.astype(np.float32))
    np.testing.assert_array_equal(int8.quantise(int8.widened(found, jnp.float32)).values, found.values)


@pytest.mark.parametrize("case", CASES)
def test_states_are_those_of_the_widened_matrices(case):
    config, params = checkpoint.load(GOLDENS / case, in_bytes=True)
    kinds = [isinstance(leaf, Int8Kernel) for leaf in jax.tree.leaves(params["blocks"], is_leaf=_is_kernel)]
    assert sum(kinds) >= 6
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 4, config.vocab_size)
    mask = jnp.arange(9)[None] < jnp.array([[9], [4]])
    found = backbone.hidden_states(config, params, tokens, mask)
    wide = backbone.hidden_states(config, int8.widened(params, jnp.float32), tokens, mask)
    np.testing.assert_allclose(found, wide, atol=1e-6)
    exact = backbone.hidden_states(config, checkpoint.load(GOLDENS / case)[1], tokens, mask)
    error = np.asarray(found - exact)[np.asarray(mask)]
    assert 0 < np.sqrt(np.mean(error**2)) < 0.05 * np.asarray(exact)[np.asarray(mask)].std()


def _is_kernel(leaf):
    return isinstance(leaf, Int8Kernel)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_adapters_learn_on_it_as_on_the_widened_matrices(remat):
    config, params = checkpoint.load(GOLDENS / "llama_tied", in_bytes=True)
    rng = np.random.default_rng(0)
    shape = (3, 8)
    ids = {side: jnp.asarray(rng.integers(0, config.vocab_size, shape), jnp.int32) for side in ("chosen", "rejected")}
    batch = ids | {f"{side}_mask": jnp.ones(shape, bool) for side in ids}
    adapters = lora.init(jax.random.key(2), {"q_proj": backbone.linear_shapes(config)["q_proj"]}, config.num_layers, 2)
    adapters["q_proj"]["b"] += 0.1

    def loss(adapters, params):
        states = pair_states(config, params, batch, adapters, remat=remat)
        return jnp.sum(states[:, 0] ** 2 - states[:, 1])

    found = jax.grad(loss)(adapters, params)
    wanted = jax.grad(loss)(adapters, int8.widened(params, jnp.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)
    assert float(jnp.abs(found["q_proj"]["a"]).max()) > 0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_eight_devices_hold_what_one_holds(base, sizes):
    config, alone = checkpoint.load(base, in_bytes=True)
    mesh = make_mesh(**{"data": 1, **sizes})
    parted = checkpoint.load(base, mesh=mesh, in_bytes=True)[1]
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(parted), strict=True):
        np.testing.assert_array_equal(one, other)
    kernel = parted["blocks"]["q_proj"]["kernel"]
    assert kernel.values.sharding == NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    assert kernel.scale.sharding == NamedSharding(mesh, PartitionSpec(None, None, "tensor"))
    tokens = jnp.arange(16, dtype=jnp.int32).reshape(8, 2) + 4
    mask = jnp.ones((8, 2), bool)
    with jax.set_mesh(mesh):
        found = jax.jit(backbone.hidden_states, static_argnums=0)(config, parted, tokens, mask)
    np.testing.assert_allclose(found, backbone.hidden_states(config, alone, tokens, mask), atol=1e-5)


def test_a_base_takes_half_the_memory_of_bfloat16(base):
    held, half = (open_text(str(base), dtype=dtype).params["blocks"] for dtype in ("int8", "bfloat16"))
    assert held["q_proj"]["kernel"].values.nbytes * 2 == half["q_proj"]["kernel"].nbytes
    assert held["input_norm"]["scale"].dtype == jnp.bfloat16


def test_shapes_without_weights_are_those_of_a_loaded_base(base):
    mesh = make_mesh(data=1, fsdp=8)
    config, params = checkpoint.load(base, jnp.bfloat16, mesh=mesh, in_bytes=True)
    floats = checkpoint.load(base, jnp.bfloat16, mesh=mesh)[1]
    told = int8.shapes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), floats))
    del config
    for one, other in zip(jax.tree.leaves(told), jax.tree.leaves(params), strict=True):
        assert (one.shape, one.dtype, one.sharding) == (other.shape, other.dtype, other.sharding)


def test_a_reward_on_it_is_saved_and_loaded_and_its_exports_are_refused(base, tmp_path):
    words = ("red", "green", "a long walk", "rain", "sun and rain", "no")
    rows = [
        {"user": user, "prompt": "How long?", "chosen": words[n], "rejected": words[(n + 1 + shift) % 6]}
        for shift, user in enumerate(("ada", "bo", "cy"))
        for n in range(6)
    ]
    model = lore_jax.fit(rows, base=str(base), dtype="int8", batch_size=8)
    user = "ada"
    scores = model.score(user, "How long?", ["Seven minutes.", "It depends."])
    assert np.isfinite(scores).all()
    model.save(tmp_path / "mine")
    np.testing.assert_array_equal(
        pref_jax.load(tmp_path / "mine").score(user, "How long?", ["Seven minutes.", "It depends."]), scores
    )
    with pytest.raises(UserError, match="held in bytes"):
        model.export(tmp_path / "classifier", user=user)
    assert not (tmp_path / "classifier").exists()


def test_what_has_to_be_exact_is_refused(base, tmp_path):
    config, params = checkpoint.load(base, in_bytes=True)
    with pytest.raises(UserError, match="held in bytes"):
        checkpoint.save(tmp_path / "out", config, params)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="held in bytes"):
        lora.merge(params, {})
    with pytest.raises(UserError, match="float32, bfloat16 or int8"):
        open_text(str(base), dtype="int4")
