"""A run's transformer and texts: where its weights lie, its config and parameters, texts as tokens, each read once.

Axis letters: B batch, L length, N texts, F numbers of a text.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh
from tqdm import tqdm

from experiments.runner.cli import plain
from experiments.runner.workspace import Run, log, require
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import prompt_ids
from pref_jax.data.text.token_table import TokenTable
from pref_jax.data.text.tokenization import load_tokenizer, tokenize_prompts, tokenize_responses
from pref_jax.errors import UserError
from pref_jax.lm import checkpoint, features, hub
from pref_jax.lm.config import LMConfig
from pref_jax.mesh import batch_shards, put_batch


def backbone_folder(run: Run) -> Path:
    """Where the transformer lies: made by `experiments.prepare`, or named by the config."""
    name = run.config.backbone.name
    return require(pretrain_folders(run)[0], "prepare") if name == "pretrain" else hub.locate(name)


def pretrain_settings(run: Run) -> dict[str, Any]:
    """All that a pretrained decoder depends on, as JSON values."""
    section = run.config.pretrain.to_dict()
    del section["folder"]
    return plain({"seed": run.seed, "marker_noise": run.config.source.marker_noise, **section})


def pretrain_folders(run: Run) -> tuple[Path, Path]:
    """Where the pretrained decoder lies, and where its training keeps checkpoints.

    In the run's own folder; or with `pretrain.folder`, which several runs can share, in folders there that are named
    by a digest of `pretrain_settings`, so that a decoder of other settings is never taken.
    """
    shared = run.config.pretrain.folder
    if not shared:
        return run.folder / "backbone", run.folder / "pretrain"
    settings = json.dumps(pretrain_settings(run), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    return Path(shared) / f"decoder_{digest}", Path(shared) / f"pretrain_{digest}"


def load_backbone_config(run: Run) -> LMConfig:
    """Config of the transformer, with the run's pooling.

    Raises:
      UserError: if `backbone.pooling` is unknown, or the checkpoint is not readable.
    """
    pooling, config = run.config.backbone.pooling, checkpoint.load_config(backbone_folder(run))
    if pooling not in ("", "last", "mean"):
        raise UserError(f"config.backbone.pooling is {pooling!r}; give last, mean, or nothing for the model's own")
    return dataclasses.replace(config, pooling=pooling or config.pooling)


def load_backbone(run: Run, mesh: Mesh | None = None) -> tuple[LMConfig, Any]:
    """Config and parameters of the transformer, without next-token head, on the mesh or else on the first device.

    Raises:
      UserError: if `backbone.pooling` or `backbone.dtype` is unknown, or the checkpoint is not readable.
    """
    dtype, pooling = run.config.backbone.dtype, load_backbone_config(run).pooling
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.backbone.dtype is {dtype!r}; give float32 or bfloat16")
    config, params = checkpoint.load(backbone_folder(run), jnp.dtype(dtype), mesh=mesh, lm_head=False)
    return dataclasses.replace(config, pooling=pooling), params


def load_tokens(run: Run, data: Preferences) -> TokenTable:
    """All responses of the run's data as tokens, as `tokenize` does."""
    return tokenize(run, data.responses)


def tokenize(run: Run, responses: pa.Table) -> TokenTable:
    """Responses under their prompts as tokens: rendered as dialogues for decoders, text pairs for encoders.

    Raises:
      UserError: if the tokenizer is not readable or has no chat template for a decoder, or if
        `backbone.max_length` exceeds what the model reads.
    """
    return _tokens(run, responses, tokenize_responses, "responses")


def load_prompt_tokens(run: Run, data: Preferences) -> TokenTable:
    """Every distinct prompt alone as tokens, in the order of `prompt_ids`' numbers; raises as `load_tokens` does."""
    _, first = np.unique(prompt_ids(data.responses["prompt"]), return_index=True)
    return _tokens(run, data.responses.take(first), tokenize_prompts, "prompts")


def _tokens(run: Run, rows: pa.Table, tokenize: Callable[..., TokenTable], what: str) -> TokenTable:
    section, folder = run.config.backbone, backbone_folder(run)
    lm = checkpoint.load_config(folder)
    if section.max_length > lm.max_positions:
        raise UserError(
            f"config.backbone.max_length is {section.max_length}, but {section.name} reads at most {lm.max_positions} "
            f"tokens; set --config.backbone.max_length={lm.max_positions} or lower"
        )
    tokens = tokenize(
        load_tokenizer(folder, chat_template=section.chat_template),
        rows,
        max_length=section.max_length,
        pairs=not lm.traits.causal,
    )
    if tokens.truncated:
        log(f"  {tokens.truncated} of {len(tokens.lengths)} {what} cut to their last {section.max_length} tokens")
    return tokens


def read_each(
    tokens: TokenTable,
    width: int,
    read: Callable[[jax.Array, jax.Array], jax.Array],
    mesh: Mesh,
    *,
    batch_size: int,
    limit: int,
) -> np.ndarray:
    """F numbers of every text, float32 [N F], each text read once, those of like length together.

    Args:
      tokens: the texts.
      width: F.
      read: (ids int32 [B L], mask bool [B L]), cut over the mesh -> [B F].
      mesh: the devices.
      batch_size: B, rounded up to a multiple of the parts that the mesh cuts batches into.
      limit: the longest L that the model reads.
    """
    shards = batch_shards(mesh)
    plan = features.make_plan(tokens, batch_size=-(-batch_size // shards) * shards, limit=limit)
    found = np.empty((len(tokens.lengths), width), np.float32)
    with jax.set_mesh(mesh):
        for number in tqdm(range(len(plan.rows)), desc="texts", disable=None):
            batch = features.read(tokens, plan, number)
            there = batch.sequences >= 0
            found[batch.sequences[there]] = np.asarray(read(*put_batch((batch.ids, batch.mask), mesh)))[there]
    return found
