"""Adapters in a folder: bit for bit, whole or absent, and every fault told at once."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from copl_jax.io import checkpoint
from copl_jax.reward import reward_model
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from pref_jax.errors import UserError

LM = tiny.llama()
USERS = RewardConfig(
    lm=LM,
    mixture=ExpertsConfig(num_experts=3, rank=2, targets=("v_proj", "down_proj"), alpha=5.0),
    gate=GateConfig(hidden=4, top_k=2, balance="bias"),
)
GROUPS = dataclasses.replace(USERS, routing="groups", gate=GateConfig())
PLAIN = dataclasses.replace(USERS, mixture=ExpertsConfig(num_experts=2, alpha=None), remat="dots")
DIM = 5
TABLES = {
    "users": np.random.default_rng(0).standard_normal((7, DIM)).astype(np.float32),
    "groups": np.arange(7, dtype=np.int32) % 3,
}


def trained(config):
    params = reward_model.init(config, jax.random.key(0), embedding_dim=DIM)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params)


@pytest.mark.parametrize("config", [USERS, GROUPS, PLAIN], ids=lambda config: config.routing)
@pytest.mark.parametrize("with_table", [False, True])
def test_what_comes_back_is_the_same_in_every_bit(tmp_path, config, with_table):
    params, table = trained(config), TABLES[config.routing] if with_table else None
    for _ in range(2):  # the second one takes the first one's place
        checkpoint.save(tmp_path / "adapters", config, params, table)
    found = checkpoint.load(tmp_path / "adapters", LM)
    assert found.config == config
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.view(jnp.int32), b.view(jnp.int32)), found.params, params)
    if table is None:
        assert found.user_embeddings is None
    else:
        assert found.user_embeddings is not None
        np.testing.assert_array_equal(found.user_embeddings, table)
        assert found.user_embeddings.dtype == table.dtype
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {checkpoint.TENSORS, checkpoint.CONFIG}


def test_only_the_folders_config_is_json_and_it_holds_no_transformer(tmp_path):
    checkpoint.save(tmp_path / "a", USERS, trained(USERS))
    raw = json.loads((tmp_path / "a" / checkpoint.CONFIG).read_text())
    assert raw["format"] == 1
    assert raw["embedding_dim"] == DIM
    assert set(raw["model"]) == {"routing", "mixture", "gate", "remat", "head_gates"}


def damage(folder, change):
    tensors = safetensors.numpy.load_file(folder / checkpoint.TENSORS)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / checkpoint.TENSORS)


def test_all_wrong_tensors_are_told_together(tmp_path):
    checkpoint.save(tmp_path / "a", USERS, trained(USERS), TABLES["users"])

    def change(tensors):
        del tensors["head/w"]
        tensors["more"] = np.zeros(1, np.float32)
        tensors["head/b"] = tensors["head/b"].astype(np.float16)
        tensors["experts/v_proj/shared/a"] = tensors["experts/v_proj/shared/a"][:, :3]
        tensors["table"] = tensors["table"][:, :2]

    damage(tmp_path / "a", change)
    with pytest.raises(UserError, match="5 faults") as error:
        checkpoint.load(tmp_path / "a", LM)
    for words in ("head/w: missing", "more: the config knows no such", "head/b: is float16", "[2, 3, 2]", "[7, 2]"):
        assert words in str(error.value)


def test_another_transformer_is_told(tmp_path):
    checkpoint.save(tmp_path / "a", USERS, trained(USERS))
    with pytest.raises(UserError, match=r"experts/down_proj/shared/a: is float32 \[2, 24, 2\], where .*\[3, 24, 2\]"):
        checkpoint.load(tmp_path / "a", tiny.llama(num_layers=3))


def test_all_wrong_fields_are_told_together(tmp_path):
    checkpoint.save(tmp_path / "a", USERS, trained(USERS))
    path = tmp_path / "a" / checkpoint.CONFIG
    raw = json.loads(path.read_text())
    raw["embedding_dim"] = -1
    raw["model"]["gate"]["hiden"] = raw["model"]["gate"].pop("hidden")
    raw["model"]["mixture"] |= {"rank": "2", "targets": [1], "num_experts": True, "alpha": "x"}
    raw["model"]["remat"] = 0
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="8 faults") as error:
        checkpoint.load(tmp_path / "a", LM)
    for words in ("gate.hiden: unknown", "gate.hidden: is missing", "mixture.rank: is '2'", "model.remat: is 0"):
        assert words in str(error.value)


@pytest.mark.parametrize("raw", ["[]", '{"format": 2}', "{", '{"format": 1}', '{"format": 1, "model": {"gate": 3}}'])
def test_no_config_of_ours_is_told(tmp_path, raw):
    checkpoint.save(tmp_path / "a", USERS, trained(USERS))
    (tmp_path / "a" / checkpoint.CONFIG).write_text(raw)
    with pytest.raises(UserError, match=r"adapters\.json"):
        checkpoint.load(tmp_path / "a", LM)


def test_values_out_of_range_are_told(tmp_path):
    checkpoint.save(tmp_path / "a", USERS, trained(USERS))
    path = tmp_path / "a" / checkpoint.CONFIG
    path.write_text(path.read_text().replace('"top_k": 2', '"top_k": 4'))
    with pytest.raises(UserError, match="top_k=4 of 3 experts"):
        checkpoint.load(tmp_path / "a", LM)


def test_missing_and_cut_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"adapters\.json: no such file"):
        checkpoint.load(tmp_path / "nowhere", LM)
    checkpoint.save(tmp_path / "a", USERS, trained(USERS))
    file = tmp_path / "a" / checkpoint.TENSORS
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"adapters\.safetensors: cut short or damaged"):
        checkpoint.load(tmp_path / "a", LM)
    file.unlink()
    with pytest.raises(UserError, match=r"adapters\.safetensors: no such file"):
        checkpoint.load(tmp_path / "a", LM)


def test_what_does_not_fit_is_not_written(tmp_path):
    params = trained(USERS)
    with pytest.raises(UserError, match="head/w: is float32"):
        checkpoint.save(tmp_path / "a", USERS, params | {"head": {"w": jnp.zeros(3), "b": jnp.zeros(())}})
    with pytest.raises(UserError, match="table: is int32"):
        checkpoint.save(tmp_path / "a", USERS, params, TABLES["groups"])
    with pytest.raises(UserError, match="table: is float32"):
        checkpoint.save(tmp_path / "a", GROUPS, trained(GROUPS), TABLES["users"])
    assert not list(tmp_path.iterdir())


def test_killed_while_writing_the_old_folder_stays(tmp_path):
    checkpoint.save(tmp_path / "a", USERS, trained(USERS))
    before = (tmp_path / "a" / checkpoint.TENSORS).read_bytes()
    script = f"""
import os
from pathlib import Path
from pref_jax import files
from copl_jax.io import checkpoint as store
store.write_json = lambda *_: os._exit(9)
with files.atomic_folder({str(tmp_path / "a")!r}) as part:
    (part / store.TENSORS).write_bytes(b"half")
    store.write_json()
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=".").returncode == 9
    assert (tmp_path / "a" / checkpoint.TENSORS).read_bytes() == before
    checkpoint.save(tmp_path / "a", USERS, trained(USERS))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
