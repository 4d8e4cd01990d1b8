"""What a checkpoint's folder says of its transformer: `config.json`, and what that file leaves to others to tell."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from pref_jax import json_fields
from pref_jax.errors import UserError
from pref_jax.files import read_json
from pref_jax.lm import heads, hf_config, hf_fields, hub, weight_files, weights
from pref_jax.lm.config import LMConfig
from pref_jax.lm.stored_tensors import Tensor
from pref_jax.progress import log_once


def load_config(folder: str | Path) -> LMConfig:
    """Reads `config.json`, and what it does not tell: a reward head in the weights, token types of the tokenizer.

    What is left out, of the file's fields and of heads, is told on the terminal.

    Raises:
      UserError: if it is missing or broken, or names a kind of model that is not supported; if the folder holds an
        adapter or weights in a form that we do not read.
    """
    folder = hub.locate(folder)
    weight_files.check_folder(folder)
    path = folder / "config.json"
    raw = dict(json_fields.record(read_json(path), str(path)))
    config = hf_config.read(raw, where=str(path))
    config = dataclasses.replace(config, type_separator=_type_separator(config, folder))
    if form := (raw.pop("quantization_config", None) or {}).get("quant_method"):
        log_once(f"  {folder}: the weights are quantised ({form}) and widened as they are read")
    if unread := hf_fields.unread(raw):
        log_once(f"  {path}: no {config.family} model reads {', '.join(unread)}; passed over, as transformers does")
    try:
        found = find_head(config, weight_files.catalog(folder))
    except UserError:
        return config  # told when the weights are loaded
    for text in found.left_out:
        log_once(f"  {folder}: {text}")
    if found.key is None or config.num_labels:
        return config
    log_once(f"  {folder}: {found.key} is taken as the reward head, which config.json does not announce")
    told = dataclasses.replace(config, num_labels=found.labels)
    return dataclasses.replace(told, pooling=told.head_pooling) if told.dense_head else told


def _type_separator(config: LMConfig, folder: Path) -> int | None:
    """The token behind which the folder's tokenizer calls texts type 1."""
    if config.family != "bert" or config.type_vocab_size < 2 or not (folder / "tokenizer.json").exists():
        return None
    from pref_jax.data.text.tokenization import load_tokenizer, type_separator

    try:
        return type_separator(load_tokenizer(folder))
    except UserError:
        return None  # told when texts are tokenized


def find_head(config: LMConfig, tensors: Mapping[str, Tensor]) -> heads.Found:
    """The reward head among all tensors of a checkpoint."""
    return heads.find(config, {weights.plain(key): tensor for key, tensor in tensors.items()})
