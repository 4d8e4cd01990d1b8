"""Configurations: to Hugging Face and back, as its own classes read them, and as they lie on the hub."""

import dataclasses
import json
from pathlib import Path

import make_goldens
import pytest

from pref_jax.errors import UserError
from pref_jax.lm import hf_config, hf_fields, layer_sizes
from pref_jax.lm.config_parts import DeltaNet, Disentangled, Experts, Gemma4, RopeScaling

# What is written in config.json of well-known models, sizes and oddities as there, fields of no effect left out.
# Of these, what is refused.
REFUSED = {
    "microsoft/deberta-v2-xlarge": "conv_kernel_size: is 3",
}
# Fields that no class in transformers reads, and that are told.
UNREAD = {
    "HuggingFaceTB/SmolLM3-3B": ["max_window_layers"],
    "Qwen/Qwen3-30B-A3B": ["max_window_layers"],
    "unsloth/gpt-oss-20b-BF16": ["experts_per_token", "initial_context_length"],
    "openai/gpt-oss-20b": ["experts_per_token", "initial_context_length"],
    "microsoft/Phi-4-mini-instruct": ["full_attn_mod", "interpolate_factor"],
    "HuggingFaceTB/SmolLM2-135M-Instruct": ["is_llama_config"],
}
WHOLE = json.loads((Path(__file__).parent / "hub_configs.json").read_text())
HUB = {name: raw for name, raw in WHOLE.items() if name not in REFUSED}


@pytest.mark.parametrize("name", HUB)
def test_files_of_the_hub_mean_what_transformers_takes_them_for(name):
    import transformers

    raw = HUB[name]
    ours = hf_config.read(raw)
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
    standard = theirs.to_dict() | {"architectures": raw.get("architectures")}
    # What a file leaves out, a part's class fills in; it is of no effect here.
    ends = {"bos_token_id": ours.bos_token_id, "eos_token_id": ours.eos_token_id}
    assert dataclasses.replace(hf_config.read(standard), **ends) == ours
    assert hf_fields.unread(raw) == UNREAD.get(name, [])
    assert hf_config.read(json.loads(json.dumps(hf_config.write(ours)))) == ours


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_has_and_we_have_not_is_refused_by_name(name):
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        hf_config.read(WHOLE[name])
    assert "1 fault" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "near"),
    [
        *[
            ("qwen3_next", "qwen3_5_text"),
            ("gemma4", "gemma4_text"),
            ("distilbert", "bert"),
            ("mixtral", "qwen3_moe"),
            ("phi", "phi3"),
        ],
        *[("deberta", "deberta-v2"), ("camembert", "roberta"), ("granitemoe", "granite"), ("llama4", "llama")],
    ],
)
def test_an_unknown_family_is_told_with_the_nearest_one(family, near):
    with pytest.raises(UserError, match=rf"'{family}' is not supported; nearest to it is {near}[_a-z0-9]*; use one of"):
        hf_config.read(HUB["Qwen/Qwen3-0.6B"] | {"model_type": family})
    with pytest.raises(UserError, match=r"'zzz' is not supported; use one of"):
        hf_config.read(HUB["Qwen/Qwen3-0.6B"] | {"model_type": "zzz"})


def test_what_the_hub_says_arrives():
    llama = hf_config.read(HUB["meta-llama/Llama-3.2-1B-Instruct"])
    assert llama.rope_scaling == RopeScaling(kind="llama3", factor=32.0)
    assert llama.eos_token_id == (128001, 128008, 128009)
    assert llama.lm_head
    assert llama.num_labels == 0
    skywork = hf_config.read(HUB["Skywork/Skywork-Reward-Llama-3.1-8B"])
    assert (skywork.num_labels, skywork.lm_head, skywork.head_dim) == (1, False, 128)
    gemma = hf_config.read(HUB["google/gemma-2b-it"])
    assert gemma.tie_embeddings
    assert gemma.query_scale == 1 / 16
    gemma2 = hf_config.read(HUB["google/gemma-2-2b-it"])
    assert gemma2.sliding_layers == (True, False) * 13
    assert (gemma2.attention_softcap, gemma2.logit_softcap) == (50.0, 30.0)
    gemma3 = hf_config.read(HUB["google/gemma-3-1b-it"])
    assert gemma3.sliding_layers == ((True,) * 5 + (False,)) * 4 + (True,) * 2
    assert [pattern[:2] for pattern in gemma3.patterns] == [(512, 1e4), (None, 1e6)]
    assert gemma3.attention_softcap is None
    assert hf_config.read(HUB["Qwen/Qwen2.5-0.5B-Instruct"]).attention_bias
    assert hf_config.read(HUB["Qwen/Qwen2.5-0.5B-Instruct"]).patterns == ((None, 1e6, None),)
    assert hf_config.read(HUB["mistralai/Mistral-7B-Instruct-v0.1"]).patterns == ((4096, 1e4, None),)
    modern = hf_config.read(HUB["answerdotai/ModernBERT-base"])
    assert [pattern[:2] for pattern in modern.patterns] == [(None, 160000.0), (65, 1e4)]
    assert modern.layer_patterns == ((0, 1, 1) * 8)[:22]


def test_what_newer_families_say_arrives():
    smol = hf_config.read(HUB["HuggingFaceTB/SmolLM3-3B"])
    assert smol.still_layers == (False, False, False, True) * 9
    assert smol.patterns == ((None, 5e6, None), (None, None, None))
    olmo = hf_config.read(HUB["allenai/Olmo-3-7B-Instruct"])
    near, far = olmo.patterns
    assert (near.window, near.scaling, far.window, near.theta, far.theta) == (4096, None, None, 5e5, 5e5)
    assert far.scaling is not None
    assert (far.scaling.kind, far.scaling.factor, far.scaling.attention_factor) == ("yarn", 8.0, 1.2079441541679836)
    phi = hf_config.read(HUB["microsoft/Phi-4-mini-instruct"])
    assert (phi.rotary_dim, phi.head_dim, phi.max_positions) == (96, 128, 4096)
    long = hf_config.read(HUB["microsoft/Phi-3-mini-128k-instruct"]).rope_scaling
    assert long is not None
    assert (long.kind, long.short_factor[-1]) == ("longrope", 1.6)
    granite = hf_config.read(HUB["ibm-granite/granite-3.3-2b-instruct"])
    assert (granite.query_scale, granite.multipliers.embedding, granite.multipliers.logits) == (1 / 64, 12.0, 8.0)
    ministral = hf_config.read(HUB["mistralai/Ministral-3-3B-Instruct-2512-BF16"])
    assert ministral.rope_scaling is not None
    assert (ministral.family, ministral.rope_scaling.query_beta, ministral.lm_head) == ("ministral3", 0.1, True)
    assert ministral.rope_scaling.attention_factor == 1.0
    moe = hf_config.read(HUB["Qwen/Qwen3-30B-A3B"])
    assert (moe.experts, moe.intermediate_size) == (Experts(count=128, per_token=8), 768)
    oss = hf_config.read(HUB["unsloth/gpt-oss-20b-BF16"])
    assert oss.experts == Experts(count=32, per_token=4, scores="chosen", clamp=7.0)
    assert (oss.patterns[0].window, oss.patterns[1].window, oss.attention_bias) == (128, None, True)
    embedding = hf_config.read(HUB["google/embeddinggemma-300m"])
    assert (embedding.traits.causal, embedding.patterns[0].window, embedding.pooling) == (False, 257, "mean")
    roberta = hf_config.read(HUB["FacebookAI/roberta-base"])
    assert (roberta.max_positions, roberta.position_offset, roberta.pooling) == (512, 2, "mean")
    reranker = hf_config.read(HUB["BAAI/bge-reranker-v2-m3"])
    assert (reranker.num_labels, reranker.pooling, reranker.max_positions) == (1, "first", 8192)
    deberta = hf_config.read(HUB["OpenAssistant/reward-model-deberta-v3-large-v2"])
    assert deberta.disentangled == Disentangled(max_distance=512, buckets=256, normed=True)
    assert (deberta.num_labels, deberta.head_activation, deberta.absolute_positions) == (1, "gelu", False)
    qwen = hf_config.read(HUB["Qwen/Qwen3.5-0.8B"])
    assert qwen.delta == DeltaNet(key_heads=16, value_heads=16, key_dim=128, value_dim=128)
    assert (qwen.still_layers, qwen.rotated, qwen.lm_head) == ((True, True, True, False) * 6, 64, True)
    gte = hf_config.read(HUB["Alibaba-NLP/gte-reranker-modernbert-base"])
    assert (gte.num_labels, gte.pooling, gte.head_pooling, gte.head_bias) == (1, "mean", "mean", False)


def test_the_text_part_of_a_model_with_pictures_is_read():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    config = hf_config.read(raw | {"eos_token_id": [1, 106], "vision_config": {"hidden_size": 1152}})
    assert (config.family, config.num_heads, config.num_kv_heads, config.head_dim) == ("gemma3_text", 8, 4, 256)
    assert (config.vocab_size, config.max_positions, config.eos_token_id) == (262208, 131072, (1, 106))
    assert config.patterns[1].scaling == RopeScaling(kind="linear", factor=8.0, original_max_positions=131072)
    assert config.patterns[0].scaling is None
    assert config.lm_head


def test_gemma_4_s_sizes_and_shared_keys_arrive():
    raw = HUB["google/gemma-4-E2B-it"]
    text = raw["text_config"]
    config = hf_config.read(raw)
    assert (config.gemma4, config.query_scale) == (
        Gemma4(full_head_dim=512, full_kv_heads=4, shared_layers=20, per_layer=256),
        1,
    )
    assert (config.own_keys, config.sliding_layers[-1], sum(config.sliding_layers)) == (15, False, 29)
    assert layer_sizes.largest(config) == (512, 4, 6144)
    given = {str(layer): {"head_dim": 384, "num_key_value_heads": 2} for layer in (5, 11, 17, 23, 29, 34)}
    twice = {"per_layer_config": given, "global_head_dim": 128, "use_double_wide_mlp": True}
    config = hf_config.read(raw | {"text_config": text | twice})
    assert layer_sizes.sizes(config, 14) == (256, 4, 6144)
    assert layer_sizes.sizes(config, 29) == (384, 2, 12288)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"enable_moe_block": True}, "enable_moe_block: is true: routed experts of Gemma 4 are not supported"),
        ({"vocab_size_per_layer_input": 99}, "vocab_size_per_layer_input: is 99, but vocab_size is 262144"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types: 3 for 35 layers"),
        ({"per_layer_config": {"5": {"intermediate_size": 8}}}, r"per_layer_config\.5: is {'intermediate_size': 8}"),
        (
            {"per_layer_config": {"35": {"head_dim": 8}}},
            r"per_layer_config\.35: is no layer's number; number layers from 0",
        ),
        ({"per_layer_config": {"sliding_attention": {}}}, r"per_layer_config\.sliding_attention: is no layer's number"),
        ({"per_layer_config": {"5": {"head_dim": 8}}}, r"layers of one kind with head_dim .* \[\(8, 4\), \(256, 4\)\]"),
        ({"num_kv_shared_layers": 35}, "35 of 35 layers read others' keys; leave a layer of each kind"),
        ({"num_kv_shared_layers": 31}, "31 of 35 layers read others' keys; leave a layer of each kind"),
        ({"global_head_dim": 7}, "gemma4.full_head_dim: is 7; give an even number"),
        ({"num_global_key_value_heads": 3, "attention_k_eq_v": True}, "3 and 4 key heads in the two kinds of layers"),
        ({"use_bidirectional_attention": True}, 'use_bidirectional_attention: is True; give "all" or "vision"'),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling: this family has it for each kind"),
        (
            {"rope_parameters": {"full_attention": None}},
            "(?s)2 faults.*full_attention: is None.*sliding_attention: is None",
        ),
        ({"attn_logit_softcapping": 3.0}, "attn_logit_softcapping: is 3.0, which no gemma4_text here has"),
    ],
)
def test_what_gemma_4_does_not_have_is_refused_by_name(change, told):
    raw = HUB["google/gemma-4-E2B-it"]
    with pytest.raises(UserError, match=told):
        hf_config.read(raw | {"text_config": raw["text_config"] | change})


def test_the_first_gelu_of_gemma_is_the_tanh_form():
    raw = HUB["google/gemma-2b-it"] | {"hidden_act": "gelu", "hidden_activation": None}
    assert hf_config.read(raw).activation == "gelu_pytorch_tanh"


@pytest.mark.parametrize("case", make_goldens.CASES)
def test_configurations_survive_the_trip_to_hugging_face_and_back(case):
    for head in make_goldens.heads(case):
        names = {"lm": "ForCausalLM", "score": "ForSequenceClassification", "trunk": "Model"}
        raw = make_goldens.CASES[case] | {"architectures": [names[head]], "id2label": {"0": "LABEL_0"}}
        config = hf_config.read(raw)
        assert config.num_labels == (head == "score")
        assert config.lm_head == (head == "lm")
        written = json.loads(json.dumps(hf_config.write(config)))
        assert hf_config.read(written) == config
        legacy = {key: value for key, value in written.items() if key != "rope_parameters"}
        # Files of Gemma 4 are all younger than the records.
        assert config.gemma4 or hf_config.read(legacy) == config


def test_what_cannot_be_honoured_is_told_all_at_once():
    raw = HUB["google/gemma-3-1b-it"] | {
        "embedding_multiplier": 8.0,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"full_attention": {"rope_type": "mrope"}, "sliding_attention": {"rope_type": "linear"}},
        "quantization_config": {"bits": 4},
    }
    with pytest.raises(UserError) as caught:
        hf_config.read(raw)
    told = str(caught.value)
    assert "5 faults" in told
    for words in ("embedding_multiplier", "partial_rotary_factor", "'mrope' is unknown", "quantization_config"):
        assert words in told
    with pytest.raises(UserError, match=r"(?s)7 faults.*model_type: None is not supported; use one of llama"):
        hf_config.read({})
    with pytest.raises(UserError, match="norm_bias"):
        hf_config.read(HUB["answerdotai/ModernBERT-base"] | {"norm_bias": True})


@pytest.mark.parametrize("name", sorted(hf_fields.KINDS))
def test_a_value_of_another_type_is_told_with_its_field(name):
    files = (*HUB.values(), *make_goldens.CASES.values())
    whole = next(raw for raw in files if name in hf_fields.USED.get(raw["model_type"], ()))
    for bad in ({"a": 1}, "tiny", [[1]], True, 1.5, float("nan"), -3):
        fits = hf_fields.KINDS[name][0]
        if fits(bad) or (bad == -3 and fits(3)):
            continue
        with pytest.raises(UserError, match=rf"folder/config.json: {name}: is .*; give"):
            hf_config.read(whole | {name: bad}, where="folder/config.json")


@pytest.mark.parametrize("raw", [[], "lama", None, 3, [{"model_type": "llama"}]])
def test_a_file_that_holds_no_object_is_told(raw):
    with pytest.raises(UserError, match=r"config.json: is .*, where an object \{...\} is meant"):
        hf_config.read(raw)
    with pytest.raises(UserError, match=r"model_type: .* is not supported"):
        hf_config.read({"model_type": raw})


def test_a_family_reads_the_fields_of_its_class_and_no_others():
    llama = HUB["Skywork/Skywork-Reward-Llama-3.1-8B"]
    foreign = {"norm_eps": 0.5, "rope_local_base_freq": 5.0, "local_rope_theta": 5.0, "hidden_activation": "relu"}
    foreign |= {"layer_types": ["sliding_attention"] * 32, "sliding_window": 7, "use_sliding_window": True}
    assert hf_config.read(llama | foreign) == hf_config.read(llama)
    assert hf_fields.unread(llama | foreign | {"use_cache": True, "attention_dropout": 0.5, "odd": [1]}) == [
        *("layer_types", "local_rope_theta", "norm_eps", "odd", "rope_local_base_freq", "sliding_window"),
        "use_sliding_window",
    ]
    for name in ("embedding_multiplier", "num_local_experts", "query_pre_attn_scalar", "use_bidirectional_attention"):
        with pytest.raises(UserError, match=f"{name}: is 8, which no llama here has; use a checkpoint without it"):
            hf_config.read(llama | {name: 8})
    with pytest.raises(UserError, match="layer_types: has 'chunked_attention'"):
        hf_config.read(HUB["Qwen/Qwen3-0.6B"] | {"layer_types": ["chunked_attention"] * 28})


def test_the_number_of_key_heads_is_the_classes_own_where_a_file_leaves_it_out():
    import transformers

    for name in ("mistralai/Mistral-7B-Instruct-v0.1", "Qwen/Qwen3-0.6B", "google/gemma-2-2b-it"):
        raw = {key: value for key, value in HUB[name].items() if key != "num_key_value_heads"}
        raw |= {"num_attention_heads": 32}
        assert hf_config.read(raw).num_kv_heads == transformers.AutoConfig.for_model(**raw).num_key_value_heads


def test_labels_are_counted_as_transformers_counts_them():
    import transformers

    llama = {key: value for key, value in HUB["Skywork/Skywork-Reward-Llama-3.1-8B"].items() if "label" not in key}
    for labels in ({}, {"num_labels": 3}, {"id2label": {"0": "a"}}, {"id2label": {"0": "a"}, "num_labels": 3}):
        want = transformers.AutoConfig.for_model(**llama, **json.loads(json.dumps(labels))).num_labels
        assert hf_config.read(llama | labels).num_labels == want


def test_fields_beside_a_text_part_count_where_transformers_reads_them():
    text = {"hidden_size": 32, "intermediate_size": 24, "model_type": "gemma3_text", "num_hidden_layers": 6}
    raw = {"model_type": "gemma3", "text_config": text | {"tie_word_embeddings": False, "pad_token_id": 3}}
    config = hf_config.read(raw | {"architectures": ["Gemma3ForConditionalGeneration"], "pad_token_id": 9})
    assert config.tie_embeddings
    assert config.pad_token_id == 3
    assert not hf_config.read(raw | {"tie_word_embeddings": False}).tie_embeddings
    assert hf_config.read(raw | {"hidden_size": 32}).hidden_size == 32
    for name, value in (("rope_scaling", {"rope_type": "linear", "factor": 2.0}), ("hidden_size", 64)):
        with pytest.raises(UserError, match=f"{name}: .* stands beside text_config, where transformers does not"):
            hf_config.read(raw | {name: value})
    with pytest.raises(UserError, match="quantization_config"):
        hf_config.read(raw | {"quantization_config": {"bits": 4}})
    with pytest.raises(UserError, match=r"config.json: text_config: is \[\], where an object"):
        hf_config.read(raw | {"text_config": []})
