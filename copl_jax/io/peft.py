"""One user's reward model in the layout of Hugging Face PEFT: `adapter_config.json`, `adapter_model.safetensors`.

The user's mixture is folded into one LoRA of rank (1 + K) R (`experts.fold`); scale and weights are in its second
factor, so PEFT's alpha is the rank. Where a checkpoint keeps several of our linears in one (ModernBERT's Wqkv), their
factors stand side by side along the rank, with zeros where a linear is not theirs.

Models that read the last token are written as sequence classifiers, with the head as `score`. transformers' `score`
has no bias; ours moves all rewards alike and changes no comparison, so only the file's metadata tells it ("head_bias").
Encoders that read what their own classifier reads are written so too, with their last linear and its bias. For other
models, such as those that read the mean of all tokens, transformers has no such class: PEFT adapts the bare transformer
then, and the head goes into a file of its own. Engines without PEFT take `save_merged` instead: a transformer of that
user's.

Axes: Z layers, D features in, F features out, R rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from transformers import PreTrainedTokenizerBase

from copl_jax.reward import lora_experts, reward_model, routing
from copl_jax.reward.reward_model import RewardConfig
from pref_jax.files import atomic_folder, write_json, write_tensors
from pref_jax.lm import backbone, heads, hub, layer_sizes, lora, weights
from pref_jax.lm.classifier import check_padding, save_classifier, save_tokenizer
from pref_jax.lm.config import LMConfig

HEAD = "head.safetensors"
Factors = dict[str, np.ndarray]

# What PEFT calls them.
FILES = TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_peft(
    folder: str | Path,
    config: RewardConfig,
    params: Mapping[str, Any],
    user: Float[Array | np.ndarray, " C"] | Int[Array | np.ndarray, ""] | None = None,
    *,
    base_name: str = "",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
) -> None:
    """Writes the folder, in place of what was there; if killed, it is whole or absent.

    `peft.PeftModel.from_pretrained(base, folder)` opens it, where base is `AutoModelForSequenceClassification` of the
    transformer with `num_labels=1`, `problem_type="regression"` (without it pipelines and vLLM return a sigmoid) and a
    `pad_token_id`, or for "mean" pooling `AutoModel`.

    Args:
      folder: replaced if it is there.
      config: the model's.
      params: trainable parameters, as from `reward.init`.
      user: the user's embedding [C] (routing "users") or group number ("groups").
      base_name: what PEFT calls the transformer: a hub id or a folder; see `hub.public_name`.
      tokenizer: put into the folder, if it is given, with the chat template by which texts were rendered. Without it,
        call `classifier.check_padding` first for models that read the last token.
      max_length: the most tokens of a text, for the tokenizer's files.

    Raises:
      UserError: if `user` is not what the routing needs, or the tokenizer's padding may stand in a text, so that
        transformers would read another token than the last.
    """
    decided, head = _of(config, params, user)
    folded = lora_experts.to_single_lora(params["experts"], decided, scale=config.mixture.scale)
    options: dict[str, Any] = {"base_name": base_name, "tokenizer": tokenizer, "max_length": max_length}
    save_adapters(folder, config.lm, folded, head, **options)


def _of(config: RewardConfig, params: Mapping[str, Any], user: Any) -> tuple[routing.Gates, dict[str, np.ndarray]]:
    """One user's gates, and head {"w": [D], "b": []}."""
    row = None if user is None else jnp.asarray(user)[None]
    decided, head = reward_model.route(config, params, row), reward_model.personal_head(config, params, row)
    return decided, {"w": np.asarray(head["w"]).reshape(-1), "b": np.asarray(head["b"])}


def save_adapters(
    folder: str | Path,
    lm: LMConfig,
    adapters: lora.Adapters,
    head: Mapping[str, Any],
    *,
    scale: float = 1.0,
    base_name: str = "",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
) -> None:
    """`save_peft` of plain adapters: one user's mixture, or the reward that all users share.

    Args:
      folder: replaced if it is there.
      lm: the transformer.
      adapters: as from `pref_jax.lm.lora.init`.
      head: {"w": [D], "b": []}.
      scale: of the adapters' products, alpha / R.
      base_name, tokenizer, max_length: as for `save_peft`.

    Raises:
      UserError: if the tokenizer's padding may stand in a text.
    """
    folded = {
        target: {"a": np.asarray(own["a"]), "b": scale * np.asarray(own["b"])} for target, own in adapters.items()
    }
    classifier, score = lm.as_classifier, heads.score_module(lm)
    if classifier and not lm.dense_head and tokenizer is not None:
        check_padding(lm, tokenizer, folder)
    modules = _modules(lm, folded, prefix=classifier)
    tensors = {}
    for name, factors in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = factors["a"].T
        tensors[f"base_model.model.{name}.lora_B.weight"] = factors["b"].T
    weight, bias = {"score.weight": np.asarray(head["w"])[None]}, {"score.bias": np.asarray(head["b"])[None]}
    if classifier:
        own = weight | bias if lm.dense_head else weight
        tensors |= {f"base_model.model.{name.replace('score', score)}": leaf for name, leaf in own.items()}
    metadata = {"format": "pt", "head_bias": repr(float(head["b"]))}
    with atomic_folder(folder) as part:
        whole = {name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}
        write_tensors(part / TENSORS, whole, metadata)
        write_json(part / CONFIG, _config(modules, score if classifier else None, hub.public_name(base_name)))
        if tokenizer is not None:
            save_tokenizer(part, tokenizer, lm, max_length=max_length)
        if not classifier:
            write_tensors(part / HEAD, weight | bias, {"format": "pt"})


def save_merged(
    folder: str | Path,
    config: RewardConfig,
    params: Mapping[str, Any],
    base: Mapping[str, Any],
    user: Float[Array | np.ndarray, " C"] | Int[Array | np.ndarray, ""] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    label: str = "reward",
    max_length: int | None = None,
) -> None:
    """One user's reward merged into the transformer: a `classifier.save_classifier` of one label.

    Args:
      folder: replaced if it is there.
      config: the model's.
      params: trainable parameters, as from `reward_model.init`.
      base: the frozen transformer's; left as they are.
      user: as for `save_peft`.
      tokenizer: the transformer's, with the chat template by which texts were rendered.
      label: the reward's name.
      max_length: the most tokens of a text; by default the transformer's positions.

    Raises:
      UserError: if `user` is not what the routing needs; as `save_classifier`.
    """
    decided, head = _of(config, params, user)
    merged = lora_experts.merge(base, params["experts"], decided, scale=config.mixture.scale)
    options: dict[str, Any] = {"labels": [label], "tokenizer": tokenizer, "max_length": max_length}
    save_classifier(folder, config.lm, merged, head["w"][None], bias=head["b"][None], **options)


def _config(modules: Mapping[str, Factors], score: str | None, base_name: str) -> dict[str, Any]:
    """`adapter_config.json`; alpha is the rank of every module, so PEFT scales by 1.

    `score` is the last linear of a sequence classifier; None: the model is none.
    """
    ranks = {name: factors["a"].shape[1] for name, factors in modules.items()}
    usual = min(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != usual}
    # PEFT's own sequence classifiers save all of the head, of which RoBERTa's dense layer is a part.
    task = "FEATURE_EXTRACTION" if score is None else None if "." in score else "SEQ_CLS"
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base_name,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": other,
        "alpha_pattern": other,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
        "modules_to_save": [score] if score else None,
    }


def _modules(config: LMConfig, folded: Mapping[str, Any], *, prefix: bool) -> dict[str, Factors]:
    """Their module -> its factors {"a": [D R], "b": [R F]}, for each layer and each linear that holds one of ours."""
    layout, shapes = weights.layout(config), backbone.linear_shapes(config)
    modules = {}
    for key, row in layout.table.items():
        parts = [path.split("/")[1] for path in row.paths if path.startswith("blocks/") and path.endswith("/kernel")]
        if not set(parts) & set(folded):
            continue
        name = key.removesuffix(".weight")
        for layer in (layer for layer in range(config.num_layers) if row.at(config, layer)):
            full = weights.full(layout, name) if prefix else name
            own = {part: _cut(config, part, layer, folded[part]) for part in parts if part in folded}
            modules[full.format(layer)] = _fused(own, parts, {part: shapes[part][1] for part in parts})
    return modules


def _cut(config: LMConfig, name: str, layer: int, folded: Factors) -> Factors:
    """One layer's factors of a linear, of the inputs and outputs that this layer has."""
    into, out = layer_sizes.features(config, name, layer)
    a, b = (np.asarray(folded[part][layer]) for part in ("a", "b"))
    return {"a": layer_sizes.cut(a, (into, None)), "b": layer_sizes.cut(b, (None, out))}


def _fused(own: Mapping[str, Factors], parts: Sequence[str], widths: Mapping[str, int]) -> Factors:
    """Factors of several linears as those of one whose outputs are theirs, one after another."""
    b = []
    for name, factors in own.items():
        blocks = [factors["b"] if part == name else _nothing(factors["b"], widths[part]) for part in parts]
        b.append(np.concatenate(blocks, axis=1))
    return {"a": np.concatenate([factors["a"] for factors in own.values()], axis=1), "b": np.concatenate(b)}


def _nothing(like: np.ndarray, width: int) -> np.ndarray:
    return np.zeros((len(like), width), like.dtype)
