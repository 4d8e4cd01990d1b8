"""Makes the tables of an experiment, and a small pretrained decoder where the config asks for one.

python -m experiments.prepare --config=configs/quickstart.py --workdir=runs/quickstart
python -m experiments.prepare --config=configs/jsonl.py --config.source.path=votes.jsonl --workdir=runs/mine
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runner.cli import Config, freeze, launch
from experiments.runner.test_labels import load_test_labels
from experiments.runner.workspace import Workspace, log, stage, workspaces
from pref_jax.data import preferences, sources
from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.synthetic import world
from pref_jax.data.text import same_tokens
from pref_jax.data.votes import need_seen
from pref_jax.errors import UserError
from pref_jax.files import write_json
from pref_jax.lm import hub
from pref_jax.lm.config import LMConfig
from pref_jax.locks import hold
from pref_jax.train.pretrain import make_decoder
from pref_jax.train.state import OptimizerConfig

# Seconds to wait for another run that pretrains the same decoder.
PRETRAINING = 3600.0


def run(config: Config, workdir: Path) -> None:
    """Prepares every seed and prints what is in the tables."""
    for work in workspaces(config, workdir):
        prepare(work)
        for name, value in preferences.summarise(load_test_labels(work, "counts of the tables")).items():
            log(f"  {name}: {value}")


def prepare(work: Workspace) -> None:
    """Tables, then the backbone if `backbone.name` is `pretrain`; what is there is left alone."""

    def tables(part: Path) -> None:
        log(f"seed {work.seed}: tables from {work.config.source.name}")
        preferences.save(_read(work), part)

    stage(work.folder / "data", tables)
    if work.config.backbone.name == "pretrain":
        folder = work.pretrain_folders[0]
        # Runs in other workdirs may share it: the first one makes it.
        with contextlib.nullcontext() if folder.is_dir() else hold(folder, beside=True, wait=PRETRAINING):
            stage(folder, lambda part: _pretrain(work, part))
    else:
        hub.locate(work.config.backbone.name)


def prepare_votes(work: Workspace) -> None:
    """`prepare`, then finds the votes on two texts that are the same tokens to the transformer, and says how many.

    Raises:
      UserError: if they are all of the training votes, or all of the test votes.
    """
    prepare(work)

    def find(part: Path) -> None:
        votes = work.tables.comparisons
        same = same_tokens.same_tokens(work.texts.tokens, *(votes[side].to_numpy() for side in ("chosen", "rejected")))
        left = same_tokens.without(work.tables, same)
        if (tested := len(work.tables.pairs("test").user)) and not len(left.pairs("test").user):
            fix = "take a model or chat template that tells them apart, or another split"
            raise UserError(f"all {tested} test votes are on two texts that are the same tokens to the model; {fix}")
        np.save(part / "rows.npy", np.flatnonzero(same))

    stage(work.folder / "same_tokens", find)
    if note := same_tokens.told(work.data):
        log(f"seed {work.seed}: {note}")


def _read(work: Workspace) -> Preferences:
    """The tables of `config.source`; the run's seed decides all draws."""
    options: dict[str, Any] = work.config.source.to_dict()
    if options.get("tokenizer"):
        options["tokenizer"] = str(hub.locate(options["tokenizer"]))
    if "on_bad_row" in options:
        options["bad_rows"] = str(work.folder / "bad_rows.jsonl")
    return need_seen(sources.read(options.pop("name"), seed=work.seed, **options))


def _pretrain(work: Workspace, folder: Path) -> None:
    """Trains tokenizer and decoder on the world's text and writes both in Hugging Face layout."""
    section = work.config.pretrain
    log(f"seed {work.seed}: pretraining a small decoder")
    text = world.pretraining_text(
        dialogues=section.dialogues,
        glossaries=section.glossaries,
        marker_noise=work.config.source.marker_noise,
        seed=work.seed,
    )
    size = make_decoder(
        folder,
        text,
        freeze(LMConfig, section.lm, "pretrain.lm"),
        recipe=freeze(OptimizerConfig, section.optimizer, "pretrain.optimizer"),
        batch_size=section.batch_size,
        max_length=section.max_length,
        checkpoints=work.pretrain_folders[1],
        checkpoint_every=section.checkpoint_every,
        seed=work.seed,
    )
    write_json(folder / "pretrain.json", {"settings": work.pretrain_settings, "text": size})


if __name__ == "__main__":
    launch(run, __doc__ or "")
