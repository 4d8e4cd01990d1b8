"""Features of every response from the frozen transformer, each distinct response read once.

python -m experiments.embed --config=configs/quickstart.py --workdir=runs/quickstart
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.backbones import backbone_folder, load_backbone, load_prompt_tokens, load_tokens
from experiments.prepare import prepare
from experiments.runner.cli import Config, launch
from experiments.runner.workspace import Run, load_data, log, runs, stage
from pref_jax.data.preferences import Preferences
from pref_jax.data.text.token_table import TokenTable
from pref_jax.files import write_json
from pref_jax.lm import features
from pref_jax.mesh import batch_shards, make_mesh, put_batch

# Seconds between savings: what a kill costs at most.
SAVE_EVERY = 5.0


def run(config: Config, workdir: Path) -> None:
    """Prepares what is missing, then embeds every seed."""
    for one in runs(config, workdir):
        prepare(one)
        embed(one)


def embed(run: Run) -> None:
    """Writes `features/features.npy`, float32 [responses, features], and `features.json`.

    Killed and run again, it goes on after the last batches that were saved.
    """
    _embed(run, "features", load_tokens)


def embed_prompts(run: Run) -> None:
    """Writes the same of every prompt alone to `prompt_features`, in the order of `validate.prompt_ids`' numbers."""
    _embed(run, "prompt_features", load_prompt_tokens)


def _embed(run: Run, name: str, texts: Callable[[Run, Preferences], TokenTable]) -> None:
    def make(part: Path) -> None:
        log(f"seed {run.seed}: {name.replace('_', ' ')}")
        write_features(run, texts(run, load_data(run)), part)

    stage(run.folder / name, make, resume=True)


def write_features(run: Run, tokens: TokenTable, folder: Path) -> None:
    """Writes the features of any texts, as `embed` does those of the run's data; goes on with what is there."""
    section = run.config.backbone
    mesh = make_mesh(**run.config.mesh.to_dict())
    config, params = load_backbone(run, mesh)
    shards = batch_shards(mesh)
    with jax.set_mesh(mesh):
        found, seconds = features.embed(
            config,
            params,
            tokens,
            folder,
            batch_size=-(-section.batch_size // shards) * shards,
            layer=None if section.layer == -1 else section.layer,
            packing=section.packing,
            put=functools.partial(put_batch, mesh=mesh),
            source=_weights(run),
            save_every=SAVE_EVERY,
        )
    facts = {
        "backbone": section.name,
        "pooling": config.pooling,
        "layer": section.layer,
        "packing": section.packing,
        "shape": list(found.shape),
        "truncated": tokens.truncated,
        "tokens": len(tokens.flat),
        "seconds": seconds,
        "tokens_per_second": len(tokens.flat) / max(seconds, 1e-9),
    }
    write_json(folder / "features.json", facts)


def _weights(run: Run) -> list[Any]:
    """Name, size and time of the weight files: features half done must not go on with other weights."""
    files = sorted(backbone_folder(run).glob("*.safetensors"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


if __name__ == "__main__":
    launch(run, __doc__ or "")
