"""Features of every response from the frozen transformer, each distinct response read once.

python -m experiments.embed --config=configs/quickstart.py --workdir=runs/quickstart
"""

from pathlib import Path

import numpy as np

from experiments.cli import Config, launch
from experiments.prepare import prepare
from experiments.stages import Run, load_backbone, load_data, load_tokens, runs, say, stage
from pref_jax.files import write_json
from pref_jax.lm import features


def run(config: Config, workdir: Path) -> None:
    """Prepares what is missing, then embeds every seed."""
    for one in runs(config, workdir):
        prepare(one)
        embed(one)


def embed(run: Run) -> None:
    """Writes `features/features.npy`, float32 [responses, features], and `features.json`."""

    def make(part: Path) -> None:
        say(f"seed {run.seed}: features")
        tokens = load_tokens(run, load_data(run))
        config, params = load_backbone(run)
        found = features.embed(config, params, tokens, batch_size=run.config.backbone.batch_size)
        np.save(part / "features.npy", found)
        facts = {"backbone": run.config.backbone.name, "truncated": tokens.truncated, "shape": list(found.shape)}
        write_json(part / "features.json", facts)

    stage(run.folder / "features", make)


if __name__ == "__main__":
    launch(run, __doc__ or "")
