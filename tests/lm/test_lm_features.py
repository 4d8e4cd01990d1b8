"""Frozen features: the same by every road, and the same bytes after an interruption."""

import dataclasses
import errno
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding

from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import UserError
from pref_jax.lm import backbone, features, sharding_rules
from pref_jax.mesh import make_mesh, put_batch

DECODER = tiny.llama(vocab_size=50, num_layers=3, max_positions=70)
ENCODER = tiny.bert(vocab_size=50, num_layers=3, max_positions=70)
BOTH = pytest.mark.parametrize("config", [DECODER, ENCODER], ids=["decoder", "encoder"])


@functools.cache
def params_of(config):
    # Five times the usual size, so that what a token sees matters.
    init = jax.jit(backbone.init, static_argnums=0)(config, jax.random.key(0))
    return jax.tree.map(lambda leaf: 5 * leaf, init)


def table(count=23, longest=70, seed=0) -> TokenTable:
    """Texts of 1 to `longest` tokens; one is empty and one as long as can be."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(1 + rng.geometric(0.06, count), longest)
    lengths[3], lengths[5] = 0, longest
    offsets = np.concatenate([[0], lengths.cumsum()])
    return TokenTable(rng.integers(0, 50, offsets[-1]).astype(np.int32), offsets, 0)


@functools.cache
def one_by_one(config, layer=None) -> np.ndarray:
    """Each text alone, through one padded program."""
    texts = table()
    rows = []
    for i in range(len(texts.lengths)):
        ids, mask = texts.take(np.array([i]), 70)
        rows.append(features.pooled(config, params_of(config), jnp.asarray(ids), jnp.asarray(mask), layer=layer)[0])
    return np.stack(rows)


@BOTH
@pytest.mark.parametrize("packing", [False, True], ids=["bucketed", "packed"])
def test_every_text_gets_what_it_gets_alone(config, packing, tmp_path):
    texts = table()
    found, seconds = features.embed(config, params_of(config), texts, tmp_path, batch_size=4, packing=packing)
    assert found.dtype == np.float32
    assert seconds > 0
    np.testing.assert_allclose(found, one_by_one(config), atol=2e-4)
    np.testing.assert_array_equal(found[3], 0)  # the empty text
    assert len(np.unique(np.asarray(found), axis=0)) == 23
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), found)


@pytest.mark.parametrize("packing", [False, True], ids=["bucketed", "packed"])
@pytest.mark.parametrize(("pooling", "layer"), [("mean", None), ("last", 2), ("mean", 0), ("last", 3)])
def test_pooling_and_layer_are_the_ones_asked_for(pooling, layer, packing, tmp_path):
    config = dataclasses.replace(DECODER, pooling=pooling)
    texts, params = table(), params_of(DECODER)
    found, _ = features.embed(config, params, texts, tmp_path, batch_size=8, layer=layer, packing=packing)
    for i in (0, 5, 11):
        ids, mask = texts.take(np.array([i]), int(texts.lengths[i]))
        states = backbone.hidden_states(DECODER, params, jnp.asarray(ids), jnp.asarray(mask), layer=layer)[0]
        want = states.mean(axis=0) if pooling == "mean" else states[-1]
        np.testing.assert_allclose(found[i], want, atol=2e-4)


@pytest.mark.parametrize("packing", [False, True], ids=["bucketed", "packed"])
def test_eight_devices_give_what_one_gives(packing, tmp_path):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    places = jax.tree.map(
        lambda leaf, spec: NamedSharding(mesh, spec),
        params_of(DECODER),
        sharding_rules.specs(params_of(DECODER), mesh),
    )
    params = jax.device_put(params_of(DECODER), places)
    put = functools.partial(put_batch, mesh=mesh)
    with jax.set_mesh(mesh):
        found, _ = features.embed(DECODER, params, table(), tmp_path, batch_size=8, packing=packing, put=put)
    np.testing.assert_allclose(found, one_by_one(DECODER), atol=2e-4)


def test_plans_hold_every_text_once_in_few_shapes_and_the_longest_first():
    texts = table(100)
    plan = features.make_plan(texts, batch_size=8, limit=70)
    np.testing.assert_array_equal(np.sort(plan.rows[plan.rows >= 0]), np.arange(100))
    batches = [features.read(texts, plan, number) for number in range(len(plan.rows))]
    widths = [batch.ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert set(widths) == {70, 64, 48, 32}
    assert sum(int(batch.mask.sum()) for batch in batches) == len(texts.flat)
    packed = features.make_plan(texts, batch_size=8, limit=70, packing=True)
    batches = [features.read(texts, packed, number) for number in range(len(packed.rows))]
    sequences = np.concatenate([batch.sequences.ravel() for batch in batches])
    np.testing.assert_array_equal(np.sort(sequences[sequences >= 0]), np.arange(100))
    assert {batch.ids.shape for batch in batches} == {(8, 70)}
    assert sum(int((batch.mask > 0).sum()) for batch in batches) == len(texts.flat)


class Killed(Exception):
    pass


def _embed(folder, *, die_at=None, put=jax.device_put, **other):
    """Embeds with every batch saved; dies when it hands over batch `die_at`. Returns features and batches read."""
    count = 0

    def counted(batch):
        nonlocal count
        if count == die_at:
            raise Killed
        count += 1
        return put(batch)

    options = {"batch_size": 2, "source": "weights", "save_every": 0.0, **other}
    texts = options.pop("tokens", table())
    found, _ = features.embed(DECODER, params_of(DECODER), texts, folder, put=counted, **options)
    return found, count


@pytest.mark.parametrize("packing", [False, True], ids=["bucketed", "packed"])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(packing, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    _, batches = _embed(whole, packing=packing)
    plan = features.make_plan(table(), batch_size=2, limit=DECODER.max_positions, packing=packing)
    assert batches == len(plan.rows) >= 3
    with pytest.raises(Killed):
        _embed(killed, packing=packing, die_at=2)
    # Of the two batches handed over, the second was still on its way.
    assert json.loads((killed / "progress.json").read_text())["batches"] == 1
    found, rest = _embed(killed, packing=packing)
    assert rest == batches - 1
    assert (killed / "features.npy").read_bytes() == (whole / "features.npy").read_bytes()
    again, none = _embed(killed, packing=packing)
    assert none == 0
    np.testing.assert_array_equal(again, found)
    assert json.loads((killed / "progress.json").read_text())["tokens"] == len(table().flat)


@pytest.mark.parametrize(
    "change",
    [
        {"source": "other weights"},
        {"batch_size": 8},
        {"layer": 1},
        {"packing": True},
        {"tokens": table(seed=1)},
        {"tokens": table(count=22)},
    ],
)
def test_work_that_something_else_left_is_done_anew(change, tmp_path):
    left, fresh = tmp_path / "left", tmp_path / "fresh"
    left.mkdir()
    fresh.mkdir()
    with pytest.raises(Killed):
        _embed(left, die_at=3)
    want, batches = _embed(fresh, **change)
    found, again = _embed(left, **change)
    assert again == batches
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("damage", ["features.npy", "progress.json"])
def test_damaged_work_is_done_anew(damage, tmp_path):
    want, batches = _embed(tmp_path)
    want = np.array(want)
    file = tmp_path / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    found, again = _embed(tmp_path)
    assert again == batches
    np.testing.assert_array_equal(found, want)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match=r"layer 4 of a model of 3 blocks; give 0 to 3"):
        _embed(tmp_path, layer=4)
    with pytest.raises(UserError, match=r"71 tokens .* reads 70"):
        _embed(tmp_path, tokens=TokenTable(np.zeros(71, np.int32), np.array([0, 71]), 0))
    assert not list(tmp_path.iterdir())


# --- full disks ---


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_space_that_is_not_there_is_told_before_any_work(fault, tmp_path, monkeypatch):
    def full(file, start, size):
        assert (start, size) == (0, (tmp_path / "features.npy").stat().st_size)
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=rf"{os.strerror(fault)}; \S+features.npy needs 0.0 MB: make room"):
        _embed(tmp_path, die_at=0)
    assert not (tmp_path / "features.npy").exists()
    monkeypatch.undo()
    _embed(tmp_path)


def test_a_file_system_that_reserves_nothing_does_too(tmp_path, monkeypatch):
    def never(*_):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", never)
    found, _ = _embed(tmp_path)
    monkeypatch.undo()
    again = tmp_path / "again"
    again.mkdir()
    np.testing.assert_array_equal(found, _embed(again)[0])


def test_a_disk_that_fills_in_the_middle_is_an_error_and_the_work_goes_on(tmp_path, monkeypatch):
    write, room = os.pwrite, [5]

    def filling(file, data, place):
        room[0] -= 1
        return write(file, data if room[0] >= 0 else data[:7], place)

    monkeypatch.setattr(os, "pwrite", filling)
    with pytest.raises(OSError, match="No space left") as error:
        _embed(tmp_path)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    whole = tmp_path / "whole"
    whole.mkdir()
    np.testing.assert_array_equal(_embed(tmp_path)[0], _embed(whole)[0])


def test_features_take_their_space_at_once(tmp_path):
    with pytest.raises(Killed):
        _embed(tmp_path, die_at=0, tokens=table(count=400))
    stat = (tmp_path / "features.npy").stat()
    assert stat.st_blocks * 512 >= stat.st_size > 400 * 4
