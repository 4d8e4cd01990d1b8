"""Small random Hugging Face models and what torch computes with them: written once, checked forever without torch.

Run `python tests/lm/make_goldens.py` (needs the extra `parity`) to write `tests/lm/goldens/` anew.
"""

from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, dict[str, Any]] = {
    "llama_tied": _LLAMA | {"tie_word_embeddings": True},
    "llama_untied": _LLAMA | {"head_dim": 6, "attention_bias": True, "mlp_bias": True, "rope_scaling": _LLAMA3},
    "llama_linear": _LLAMA | {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "bert": {
        "model_type": "bert",
        "vocab_size": 37,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    },
}


def model(case: str, seed: int) -> Any:
    """The torch model of a case with every parameter random, norms and biases too, in float32 and eval mode."""
    import torch
    import transformers

    raw = dict(CASES[case])
    kinds = {"llama": "LlamaForCausalLM", "bert": "BertModel"}
    kind = getattr(transformers, kinds[raw["model_type"]])
    config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    config._attn_implementation = "eager"
    found = kind(config).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in found.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            p.copy_(centre + 0.3 * torch.randn(p.shape, generator=draw) / max(1, p.ndim - 1))
    return found


def rows(seed: int, *, batch: int = 6, length: int = 14, vocab: int = 37) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [batch, length] and their mask: full rows, and rows padded left or right."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (batch, length)).astype(np.int32)
    mask = np.ones((batch, length), bool)
    for row, (left, right) in enumerate([(0, 0), (0, 5), (4, 0), (0, 13), (13, 0), (0, 1)][:batch]):
        mask[row, :left] = False
        mask[row, length - right :] = False
    return tokens, mask


def outputs(found: Any, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Torch's hidden states after the final norm and, for a causal model, its logits."""
    import torch

    where = torch.from_numpy(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    with torch.no_grad():
        trunk = found.model if hasattr(found, "model") else found
        ids, attend = torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
        hidden = trunk(input_ids=ids, attention_mask=attend, position_ids=where).last_hidden_state
        result = {"hidden": hidden.numpy()}
        if hasattr(found, "lm_head"):
            result["logits"] = found.lm_head(hidden).numpy()
    return result


COMMITTED = ("llama_tied", "llama_untied", "bert")


def main() -> None:
    """Writes one folder a case: a checkpoint, and `expected.npz` with rows and outputs."""
    for number, case in enumerate(COMMITTED):
        found = model(case, seed=number)
        found.save_pretrained(GOLDENS / case)
        (GOLDENS / case / "generation_config.json").unlink(missing_ok=True)
        tokens, mask = rows(seed=number)
        arrays: dict[str, Any] = {"tokens": tokens, "mask": mask, **outputs(found, tokens, mask)}
        np.savez_compressed(GOLDENS / case / "expected.npz", **arrays)


if __name__ == "__main__":
    main()
