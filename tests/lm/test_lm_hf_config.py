"""Configurations: to Hugging Face and back, as its own classes read them, and as they lie on the hub."""

import json

import make_goldens
import pytest

from pref_jax.errors import UserError
from pref_jax.lm import hf_config, hf_fields
from pref_jax.lm.config import RopeScaling

# What is written in config.json of well-known models, sizes and oddities as there, fields of no effect left out.
HUB = {
    "meta-llama/Llama-3.2-1B-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "Skywork/Skywork-Reward-Llama-3.1-8B": {
        "architectures": ["LlamaForSequenceClassification"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": 128009,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "id2label": {"0": "LABEL_0"},
        "intermediate_size": 14336,
        "label2id": {"LABEL_0": 0},
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pad_token_id": 128256,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128257,
    },
    "google/gemma-2b-it": {
        "architectures": ["GemmaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "max_position_embeddings": 8192,
        "model_type": "gemma",
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    },
    "google/gemma-2-2b-it": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "eos_token_id": [1, 107],
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "google/gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen/Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "mistralai/Mistral-7B-Instruct-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "answerdotai/ModernBERT-base": {
        "architectures": ["ModernBertForMaskedLM"],
        "attention_bias": False,
        "bos_token_id": 50281,
        "cls_token_id": 50281,
        "eos_token_id": 50282,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "hidden_activation": "gelu",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "modernbert",
        "norm_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": 12,
        "num_hidden_layers": 22,
        "pad_token_id": 50283,
        "sep_token_id": 50282,
        "vocab_size": 50368,
    },
}


@pytest.mark.parametrize("name", HUB)
def test_files_of_the_hub_mean_what_transformers_takes_them_for(name):
    import transformers

    raw = HUB[name]
    ours = hf_config.read(raw)
    standard = transformers.AutoConfig.for_model(**raw).to_dict() | {"architectures": raw["architectures"]}
    assert hf_config.read(standard) == ours
    assert hf_config.read(json.loads(json.dumps(hf_config.write(ours)))) == ours


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
        assert hf_config.read(legacy) == config


def test_what_cannot_be_honoured_is_told_all_at_once():
    raw = HUB["google/gemma-3-1b-it"] | {
        "use_bidirectional_attention": True,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"full_attention": {"rope_type": "mrope"}, "sliding_attention": {"rope_type": "linear"}},
        "quantization_config": {"bits": 4},
    }
    with pytest.raises(UserError) as caught:
        hf_config.read(raw)
    told = str(caught.value)
    assert "5 faults" in told
    for words in ("use_bidirectional_attention", "partial_rotary_factor", "'mrope' is unknown", "quantization_config"):
        assert words in told
    with pytest.raises(UserError, match=r"(?s)7 faults.*model_type: None is not supported; use one of llama"):
        hf_config.read({})
    with pytest.raises(UserError, match="norm_bias"):
        hf_config.read(HUB["answerdotai/ModernBERT-base"] | {"norm_bias": True})


@pytest.mark.parametrize("name", sorted(hf_fields.KINDS))
def test_a_value_of_another_type_is_told_with_its_field(name):
    whole = next(
        raw for raw in (*HUB.values(), make_goldens.CASES["bert"]) if name in hf_fields.USED[raw["model_type"]]
    )
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
    for raw in HUB.values():
        assert not hf_fields.unread(raw)


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
