"""Folders that are no checkpoint as they stand, broken files, NaN in weights, and heads that no config announces."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import parity
import pytest
from safetensors.numpy import load_file, save_file

from pref_jax.errors import UserError
from pref_jax.lm import backbone, checkpoint, hub, pairs


def golden(case, folder, rename=lambda key: key, add=None, **changes):
    """A copy of a golden checkpoint with changes to its config, keys renamed and tensors added."""
    config = json.loads((make_goldens.GOLDENS / case / "config.json").read_text())
    tensors = load_file(make_goldens.GOLDENS / case / "model.safetensors")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    tensors = {rename(key): value for key, value in tensors.items()} | (add or {})
    save_file({key: value for key, value in tensors.items() if key}, folder / "model.safetensors")
    return folder


def refused(folder, words):
    for opened in (checkpoint.load_config, checkpoint.load):
        with pytest.raises(UserError, match=words):
            opened(folder)


def test_an_adapter_is_told_with_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "acme/tiny"}))
    refused(tmp_path, "this is an adapter of acme/tiny, no checkpoint; merge it first")
    refused(golden("qwen3", tmp_path), "this is an adapter of acme/tiny")
    for value, words in (({"base_model_name_or_path": 3}, "of an unnamed base"), ([], r"adapter_config.json: is \[\]")):
        (tmp_path / "adapter_config.json").write_text(json.dumps(value))
        refused(tmp_path, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.gguf", r"to read a GGUF file, name the file: .*/model.gguf"),
        ("pytorch_model.bin", "pytorch_model.bin: pickled weights can run code and are not opened; convert them"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin.index.json: pickled weights"),
        ("consolidated.00.pth", "consolidated.00.pth: pickled weights"),
        ("model-00001-of-00002.safetensors", "model-0000.*: part of a model without its model.safetensors.index.json"),
        ("weights.safetensors", "weights.safetensors: no weights under a known name"),
    ],
)
def test_weights_in_another_form_are_told(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path, f"no config.json; {words}")
    (tmp_path / "config.json").write_text((make_goldens.GOLDENS / "qwen3" / "config.json").read_text())
    with pytest.raises(UserError, match=f"neither model.safetensors nor model.safetensors.index.json; {words}"):
        checkpoint.load(tmp_path)
    fix = "no GGUF file, or cut short" if name.endswith("gguf") else "is a file.*give the folder"
    with pytest.raises(UserError, match=fix):
        hub.locate(tmp_path / name)


def test_a_checkpoint_in_a_folder_within_is_told(tmp_path):
    golden("bert", tmp_path / "0_Transformer")
    refused(tmp_path, f"no config.json here, but in 0_Transformer; give {tmp_path}/0_Transformer")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "pretrained_model.", "a.b."])
def test_wrapped_keys_are_told_with_what_to_strip(tmp_path, prefix):
    with pytest.raises(UserError, match=f"all keys (begin with|hold) {prefix}.*: a wrapper was saved; strip it"):
        checkpoint.load(golden("qwen3", tmp_path, lambda key: prefix + key))
    inside = golden("bert", tmp_path, lambda key: prefix + key if key.startswith("embeddings.") else key)
    with pytest.raises(UserError, match=f"keys (begin with|hold) {prefix}"):
        checkpoint.load(inside)


def test_wrappers_inside_and_adapters_are_told(tmp_path):
    torn = golden("qwen3", tmp_path, lambda key: key.replace("self_attn", "_checkpoint_wrapped_module.self_attn"))
    with pytest.raises(UserError, match=r"of \d+ keys hold _checkpoint_wrapped_module\."):
        checkpoint.load(torn)
    adapted = golden("qwen3", tmp_path, lambda key: key.replace("q_proj.weight", "q_proj.base_layer.weight"))
    with pytest.raises(UserError, match=r"3 of \d+ keys are those of adapters.*merge them first"):
        checkpoint.load(adapted)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([], r"index.json: is \[\], where an object"),
        ({}, "weight_map: is None, where an object"),
        ({"weight_map": ["model.safetensors"]}, r"weight_map: is \['model"),
        ({"weight_map": {"model.norm.weight": 3}}, "weight_map: model.norm.weight is 3, no file beside the index"),
        ({"weight_map": {"model.norm.weight": "../x.safetensors"}}, "no file beside the index"),
        ({"weight_map": {}}, "weight_map is empty"),
    ],
)
def test_an_index_of_another_shape_is_told(tmp_path, index, words):
    golden("qwen3", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=words):
        checkpoint.load(tmp_path)


def test_a_pointer_in_place_of_weights_is_told(tmp_path):
    golden("qwen3", tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(UserError, match="a pointer of git-lfs, not the weights; run git lfs pull"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_that_are_not_finite_are_named(tmp_path, dtype):
    norm, up = np.ones(16, np.float32), np.zeros((24, 16), np.float32)
    norm[3], up[0, 0] = np.nan, -np.inf
    spoiled = {"model.norm.weight": norm, "model.layers.1.mlp.up_proj.weight": up}
    with pytest.raises(UserError) as caught:
        checkpoint.load(golden("qwen3", tmp_path, add=spoiled), dtype)
    assert "2 faults" in str(caught.value)
    for key in spoiled:
        assert f"{key}: holds NaN or infinite values; fetch the file again" in str(caught.value)


HEAD = np.linspace(-1, 1, 16, dtype=np.float32)[None]


@pytest.mark.parametrize("name", ["score", "v_head", "v_head.summary", "value_head", "reward_head"])
def test_a_head_that_no_config_announces_is_taken_and_told(tmp_path, capsys, name):
    add = {f"{name}.weight": HEAD, f"{name}.bias": np.ones(1, np.float32)}
    folder = golden("llama_untied", tmp_path, add=add)
    config, params = checkpoint.load(folder, lm_head=False)
    assert config.num_labels == checkpoint.load_config(folder).num_labels == 1
    np.testing.assert_array_equal(params["score"]["kernel"], HEAD.T)
    np.testing.assert_array_equal(checkpoint.tensor(folder, "score.weight"), HEAD)
    np.testing.assert_array_equal(pairs.init_head(config, params, jax.random.key(0))["w"], HEAD[0])
    told = capsys.readouterr().err
    assert f"{name}.weight is taken as the reward head, which config.json does not announce" in told
    assert f"{name}.bias is left out: it moves all rewards alike" in told
    checkpoint.save(tmp_path / "again", config, params)
    assert checkpoint.load_config(tmp_path / "again").num_labels == 1


def test_an_unannounced_head_gives_the_rewards_of_transformers(tmp_path):
    """The same weights, announced to transformers and not to us."""
    pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    import transformers

    golden("qwen3", tmp_path / "theirs")
    config, params = checkpoint.load(
        golden("qwen3", tmp_path / "ours", architectures=["Qwen3ForCausalLM"], tie_word_embeddings=True)
    )
    tokens, mask = make_goldens.rows(5)
    found = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "theirs", attn_implementation="eager"
    )
    hidden = parity.hidden_states(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    ours = backbone.scores(config, params, backbone.pool(config, hidden, jnp.asarray(mask)))
    assert parity.relative_error(ours, make_goldens.outputs(found.eval(), tokens, mask)["reward"]) < parity.EXACT


def test_heads_that_cannot_be_taken_are_told(tmp_path, capsys):
    two = {"score.weight": HEAD, "v_head.weight": HEAD + 1}
    assert checkpoint.load_config(golden("llama_tied", tmp_path / "two", add=two)).num_labels == 1
    assert "v_head.weight is left out: score.weight is taken" in capsys.readouterr().err
    wide = {"value_head.weight": np.zeros((1, 5), np.float32)}
    assert checkpoint.load(golden("llama_tied", tmp_path / "wide", add=wide))[0].num_labels == 0
    assert "value_head.weight [1, 5] is left out: it does not read 16 features" in capsys.readouterr().err
    several = {"score.weight": np.zeros((3, 16), np.float32)}
    assert checkpoint.load_config(golden("llama_tied", tmp_path / "several", add=several)).num_labels == 3
    assert "score.weight has 3 outputs, none of which is the reward" in capsys.readouterr().err
    for case, dense in (("bert", "pooler.dense"), ("modernbert", "head.dense")):
        add = {"classifier.weight": HEAD, "classifier.bias": np.zeros(1, np.float32)}
        folder = golden(case, tmp_path / case, lambda key: "" if key.startswith("pooler") else key, add=add)
        assert checkpoint.load(folder)[0].num_labels == 0
        told = capsys.readouterr().err
        assert f"classifier.weight [1, 16] is left out: a {case} classifier has {dense}.weight and class" in told


@pytest.mark.parametrize("case", ["bert", "roberta", "deberta_v3", "modernbert"])
@pytest.mark.parametrize("labels", [1, 3])
def test_an_encoders_head_is_taken_though_no_config_announces_it(tmp_path, capsys, case, labels):
    """The head begins the reward with its dense layer, as transformers computes it."""
    pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    found = make_goldens.model(case, "score", seed=8, labels=labels)
    found.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"architectures": ["SomeModel"], "id2label": None}))
    config, params = checkpoint.load(tmp_path)
    assert (config.num_labels, config.reads_score) == (labels, True)
    assert "is taken as the reward head, which config.json does not announce" in capsys.readouterr().err
    tokens, mask = make_goldens.rows(9)
    hidden = parity.hidden_states(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    pooled = backbone.pool(config, hidden, jnp.asarray(mask))
    want = make_goldens.outputs(found, tokens, mask)["reward"]
    assert parity.relative_error(backbone.scores(config, params, pooled), want) < parity.EXACT
    head = pairs.init_head(config, params, jax.random.key(0))
    if labels == 1:
        assert parity.relative_error(pairs.apply_head(head, pooled), want[:, 0]) < parity.EXACT
    other = dataclasses.replace(config, pooling="last")
    assert not np.array_equal(pairs.init_head(other, params, jax.random.key(0))["w"], params["score"]["kernel"][:, 0])


def test_fields_that_nothing_reads_are_told_once(tmp_path, capsys):
    folder = golden("llama_tied", tmp_path, layer_types=["full_attention"] * 3, odd=1, use_cache=True)
    for _ in range(2):
        checkpoint.load_config(folder)
    assert (
        capsys.readouterr().err.count("no llama model reads layer_types, odd; passed over, as transformers does") == 1
    )
