"""What fields a family's class in transformers 5 has where `config.json` leaves them out."""

from collections.abc import Mapping
from typing import Any

Raw = Mapping[str, Any]

_DECODER = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "architectures": ["ForCausalLM"]}
_QWEN = _DECODER | {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_MISTRAL = _DECODER | {"sliding_window": 4096, "num_key_value_heads": 8}
_GEMMA = _DECODER | {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 256,
    "num_key_value_heads": 16,
    "pad_token_id": 0,
}
_GEMMA2 = _GEMMA | {"sliding_window": 4096, "query_pre_attn_scalar": 256, "num_key_value_heads": 4}
_OLMO = _DECODER | {"rms_norm_eps": 1e-5, "pad_token_id": 1}
_BERT = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0}
_YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0}
DEFAULTS: dict[str, Raw] = {
    "llama": _DECODER,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "ministral3": _MISTRAL
    | {"sliding_window": None, "rms_norm_eps": 1e-5, "head_dim": 128, "pad_token_id": 11}
    | {
        "rope_parameters": _YARN
        | {"rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384}
        | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "qwen3_moe": _QWEN
    | {"num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    | {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen3_5_text": _DECODER
    | {"num_key_value_heads": 4, "head_dim": 256, "partial_rotary_factor": 0.25, "full_attention_interval": 4}
    | {"linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
    | {"linear_num_key_heads": 16, "linear_num_value_heads": 32},
    "gemma": _GEMMA,
    "gemma2": _GEMMA2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _GEMMA2
    | {
        "sliding_window_pattern": 6,
        # The files of the larger models leave out what does not differ from these.
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "max_position_embeddings": 131_072,
    },
    "gemma4_text": {name: value for name, value in _GEMMA.items() if name != "hidden_act"}
    | {"vocab_size": 262_144, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131_072}
    | {"sliding_window": 512, "global_head_dim": 512, "hidden_size_per_layer_input": 256}
    | {"vocab_size_per_layer_input": 262_144, "attention_k_eq_v": False, "num_kv_shared_layers": 0}
    | {"use_double_wide_mlp": False, "enable_moe_block": False}
    | {
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    },
    "smollm3": _DECODER
    | {"num_key_value_heads": 4, "rope_theta": 2e6, "no_rope_layer_interval": 4, "use_sliding_window": False}
    | {"tie_word_embeddings": True, "pad_token_id": 128_004},
    "olmo2": _OLMO,
    "olmo3": _OLMO | {"sliding_window": 4096},
    "phi3": _DECODER | {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, "pad_token_id": 32000},
    "granite": _DECODER
    | {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "logits_scaling": 1.0},
    "gpt_oss": _DECODER
    | {"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "attention_bias": True}
    | {"num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_limit": 7.0, "rope_theta": 150_000.0}
    | {"rope_parameters": _YARN | {"factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}},
    "bert": _BERT,
    "roberta": _BERT | {"pad_token_id": 1},
    "xlm-roberta": _BERT | {"pad_token_id": 1},
    "deberta-v2": {
        **_BERT,
        "layer_norm_eps": 1e-7,
        "type_vocab_size": 0,
        "max_relative_positions": -1,
        "position_buckets": -1,
        "position_biased_input": True,
        "norm_rel_ebd": "none",
        "pooler_hidden_act": "gelu",
    },
    "modernbert": {
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "pad_token_id": 50283,
        "classifier_pooling": "cls",
        "classifier_bias": False,
        "classifier_activation": "gelu",
    },
}
# Fields in which null is a value of its own: where the class has a default, null says otherwise.
NULLS = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "num_key_value_heads", "pad_token_id")
