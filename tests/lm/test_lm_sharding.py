"""Eight fake devices give what one gives, with every array where the table says."""

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pref_jax import sharding
from pref_jax.lm import backbone, checkpoint, hf_config, lora, sharding_rules
from pref_jax.mesh import make_mesh, put_batch, tree_shardings

CONFIG = tiny.llama(tie_embeddings=False)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


@pytest.fixture(scope="module")
def params():
    return jax.jit(backbone.init, static_argnums=0)(CONFIG, jax.random.key(0))


def named(mesh, specs):
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, PartitionSpec))


def test_every_parameter_finds_its_row(params):
    found = sharding_rules.specs(params)
    assert found["blocks"]["q_proj"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert found["blocks"]["gate_proj"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert found["blocks"]["o_proj"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert found["blocks"]["down_proj"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert found["blocks"]["input_norm"]["scale"] == PartitionSpec()
    assert found["embed"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert found["lm_head"]["kernel"] == PartitionSpec("fsdp", "tensor")
    assert sharding_rules.spec("0/mu/blocks/q_proj/bias") == PartitionSpec(None, "tensor")
    assert sharding_rules.spec("positions/embedding") == PartitionSpec(None, "fsdp")
    adapters = sharding_rules.specs({"q_proj": {"a": jnp.zeros((2, 16, 4)), "b": jnp.zeros((2, 4, 16))}})
    assert adapters["q_proj"] == {"a": PartitionSpec(None, "fsdp", None), "b": PartitionSpec(None, None, "tensor")}


def test_an_axis_that_does_not_divide_stays_whole(mesh):
    odd = {"embed": {"embedding": jnp.zeros((30521, 16))}}
    assert sharding_rules.specs(odd, mesh)["embed"]["embedding"] == PartitionSpec(None, "fsdp")
    assert sharding_rules.specs(odd)["embed"]["embedding"] == PartitionSpec("tensor", "fsdp")


def test_sharded_forward_equals_single_device_and_is_split_by_rows(mesh, params):
    tokens = jax.random.randint(jax.random.key(1), (8, 6), 0, 32, jnp.int32)
    mask = jnp.arange(6)[None] < jnp.array([6, 5, 4, 3, 2, 1, 6, 6])[:, None]
    adapters = lora.init(jax.random.key(2), backbone.linear_shapes(CONFIG), 2, 2)
    adapters = jax.tree.map(lambda a: a + 0.1, adapters)

    def forward(params, adapters, tokens, mask):
        return backbone.hidden_states(CONFIG, params, tokens, mask, adapters)

    want = jax.jit(forward)(params, adapters, tokens, mask)
    places = (*(named(mesh, sharding_rules.specs(tree, mesh)) for tree in (params, adapters)),)
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH))
    split = [jax.device_put(tree, place) for tree, place in zip((params, adapters), places, strict=True)]
    assert split[0]["blocks"]["q_proj"]["kernel"].addressable_shards[0].data.shape == (2, 4, 8)
    with jax.set_mesh(mesh):
        run = jax.jit(forward, in_shardings=(*places, rows, rows))
        # No out_shardings: the pins inside the forward pass keep the batch split and the features whole.
        out = run(*split, jax.device_put(tokens, rows), jax.device_put(mask, rows))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(sharding.BATCH)), out.ndim)
    assert out.sharding.spec[0] in (sharding.BATCH, "fsdp")
    assert len(out.sharding.device_set) == 8
    assert float(jnp.abs(np.asarray(out) - want).max() / jnp.abs(want).max()) < 1e-5


def test_a_checkpoint_loads_straight_onto_the_mesh(mesh, params, tmp_path):
    checkpoint.save(tmp_path, CONFIG, params)
    config, loaded = checkpoint.load(tmp_path, mesh=mesh)
    assert config.hidden_size == 16
    places = named(mesh, sharding_rules.specs(params, mesh))

    def check(got, want, place):
        assert got.sharding.is_equivalent_to(place, got.ndim)
        np.testing.assert_array_equal(got, want)

    jax.tree.map(check, loaded, params, places)


# For these, of whose parts the others are made, each shape of mesh; for the others all axes at once: half the time.
EVERY_MESH = ("llama_tied", "bert", "gpt_oss")
ONE_AXIS = ((1, 8, 1), (4, 1, 2))


@pytest.mark.parametrize("case", make_goldens.CASES)
def test_one_device_equals_eight_for_every_family_forward_and_adapter_gradients(case):
    names = {"lm": "ForCausalLM", "trunk": "Model"}
    config = hf_config.read(make_goldens.CASES[case] | {"architectures": [names[make_goldens.heads(case)[0]]]})
    params = jax.jit(backbone.init, static_argnums=0)(config, jax.random.key(0))
    shapes = lora.init(jax.random.key(2), backbone.linear_shapes(config), config.num_layers, 2)
    rng = np.random.default_rng(3)
    adapters = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), shapes)
    tokens, _ = make_goldens.rows(3, batch=8)
    # Padding left and right, and two packed texts.
    segments = np.ones_like(tokens)
    segments[0, :3], segments[1, 9:], segments[2, 6:] = 0, 0, 2

    towards = jax.random.normal(jax.random.key(4), (config.hidden_size,))

    def loss(adapters, params, tokens, segments):
        hidden = backbone.hidden_states(config, params, tokens, segments, adapters)
        pooled = backbone.pool(config, hidden, segments, segments=2)
        # Final norms fix the length of a state: only a direction has gradients that are more than noise.
        return (pooled * towards[None, None]).sum(), pooled

    step = jax.grad(loss, has_aux=True)
    want = jax.jit(step)(adapters, params, jnp.asarray(tokens), jnp.asarray(segments))
    for data, fsdp, tensor in (*(ONE_AXIS if case in EVERY_MESH else ()), (2, 2, 2)):
        mesh = make_mesh(data, fsdp, tensor)
        split = (
            jax.device_put(tree, tree_shardings(mesh, sharding_rules.specs(tree, mesh))) for tree in (adapters, params)
        )
        with jax.set_mesh(mesh):
            got = jax.jit(step)(*split, *put_batch((tokens, segments), mesh))
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert np.abs(np.asarray(ours) - theirs).max() <= 1e-5 * np.abs(theirs).max(), mesh
