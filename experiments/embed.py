"""Features of every response from the frozen transformer, each distinct response read once.

python -m experiments.embed --config=configs/quickstart.py --workdir=runs/quickstart
"""

from collections.abc import Callable
from pathlib import Path

from experiments.prepare import prepare_votes
from experiments.runner.cli import Config, launch
from experiments.runner.workspace import Workspace, log, stage, workspaces
from pref_jax.data.text.token_table import TokenTable
from pref_jax.files import write_json


def run(config: Config, workdir: Path) -> None:
    """Prepares what is missing, then embeds every seed."""
    for work in workspaces(config, workdir):
        prepare_votes(work)
        embed(work)


def embed(work: Workspace) -> None:
    """Writes `features/features.npy`, float32 [responses, features], and `features.json`.

    Killed and run again, it is resumed after the last batches that were saved.
    """
    _embed(work, "features", lambda: work.texts.tokens)


def embed_prompts(work: Workspace) -> None:
    """Writes the same of every prompt alone to `prompt_features`, in the order of `schema.prompt_ids`' numbers."""
    _embed(work, "prompt_features", lambda: work.text.tokenize_prompts(work.data.responses))


def _embed(work: Workspace, name: str, tokens: Callable[[], TokenTable]) -> None:
    def make(part: Path) -> None:
        log(f"seed {work.seed}: {name.replace('_', ' ')}")
        write_json(part / "features.json", work.text.write_features(tokens(), part))

    stage(work.folder / name, make, resume=True)


if __name__ == "__main__":
    launch(run, __doc__ or "")
