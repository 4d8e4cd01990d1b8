"""RewardBench 2 by what a finished run learned: each basis reward of LoRe, its average user, and the shared reward.

    python -m experiments.reward_bench --config=configs/lore_personalllm.py:cpu --workdir=runs/lore --path=FOLDER

The config and workdir are those of `experiments.lore`, which comes first. Its fits are made again from its features,
in seconds. It leaves `reward_bench.json` and `reward_bench.md` in the workdir. Killed, it goes on.
"""

import hashlib
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.lore_methods import HEAD, METHOD, SHARED, Models, score_head
from experiments.runner.cli import Config, launch
from experiments.runner.workspace import Workspace, log, require, stage, workspaces
from lore_jax.fitting.bradley_terry import Fit
from lore_jax.reward import basis_rewards
from pref_jax.data.sources import reward_bench_2
from pref_jax.data.sources.reward_bench_2 import Bench
from pref_jax.errors import UserError
from pref_jax.eval import reward_bench
from pref_jax.eval.reporting import report, results
from pref_jax.eval.reward_bench import OVERALL, Responses
from pref_jax.files import read_json, write_json, write_text
from pref_jax.standardiser import standardise

METHODS = (HEAD, SHARED, METHOD)
TITLE = "RewardBench 2"
NOTES = (
    "A prompt of the five first kinds counts as won where the right one of four answers has the highest reward; "
    "guessing wins a quarter of them. Ties has rules of its own (pref_jax/eval/reward_bench.py). Overall is the mean "
    "of the kinds.",
    "LoRe, average user: the mean of the seen users' weights. LoRe, basis k: the k-th basis reward alone, with the "
    "sign with which it was learned; where weights may be negative its opposite is as good a basis. Bases of different "
    "seeds have nothing to do with each other.",
)


def run(config: Config, workdir: Path, *, path: str = reward_bench_2.ID) -> None:
    """Scores every seed, then writes both files and prints the table."""
    methods = [name for name in METHODS if name in config.methods]
    if not methods:
        raise UserError(f"config.methods names nothing to score; add some of: {', '.join(METHODS)}")
    bench = reward_bench_2.read(path)
    every = list(workspaces(config, workdir))
    rows = [row for one in every for row in _rows(one, methods, bench, several=len(every) > 1)]
    if not rows:
        raise UserError(f"nothing to score: the backbone has not what {', '.join(methods)} needs; add other methods")
    # All rows are there: those of other data must not stay beside them.
    (workdir / "reward_bench.json").unlink(missing_ok=True)
    found = results.write_results(workdir / "reward_bench.json", dataset=TITLE, rows=rows)
    names = [*(name for name in rows[0]["metrics"] if name != OVERALL), OVERALL]
    source = f"{len(bench.subset)} answers, {bench.source}. Trained on: {config.dataset}."
    parts = [f"# {TITLE}", source, report.table(found["rows"], names), *NOTES]
    write_text(workdir / "reward_bench.md", "\n\n".join(part.strip("\n") for part in parts) + "\n")
    log(f"\n{report.table(found['rows'], names, style='plain')}\n\nscores and table: {workdir}/reward_bench.md")


def define(values: flags.FlagValues) -> None:
    """The flags of this experiment."""
    text = f"folder with data/test-*.parquet of {reward_bench_2.ID}, or a hub id"
    flags.DEFINE_string("path", reward_bench_2.ID, text, flag_values=values)


def _rows(work: Workspace, methods: list[str], bench: Bench, *, several: bool) -> list[dict[str, Any]]:
    """Rows of results of one seed, which are made unless they are there."""
    models = Models(work)
    require(work.folder / "features", "lore")
    for name in methods:
        if models.able(name):
            require(work.method_folder(name) / "scores", "lore")
    digest = hashlib.sha256(repr((bench.responses.to_pylist(), bench.subset, bench.correct.tolist())).encode())
    made_by = {"data": digest.hexdigest(), "methods": methods}

    def make(part: Path) -> None:
        log(f"seed {work.seed}: {TITLE}")
        start = time.perf_counter()
        write_json(part / "features.json", work.text.write_features(work.text.tokenize(bench.responses), part))
        features = np.load(part / "features.npy", mmap_mode="r", allow_pickle=False)
        scores = {name: value for method in methods for name, value in _scores(models, method, features, bench).items()}
        write_json(part / "scores.json", {**made_by, "scores": scores, "seconds": time.perf_counter() - start})

    folder = stage(work.folder / "reward_bench", make, resume=True)
    done = read_json(folder / "scores.json")
    if {name: done.get(name) for name in made_by} != made_by:
        raise UserError(f"{folder}: made from other data or for other methods; delete the folder, or give that --path")
    return [
        results.result_row(
            method=f"{name} (seed {work.seed})" if several and name.startswith(f"{METHOD}, basis") else name,
            seed=work.seed,
            metrics=metrics,
            seconds=done["seconds"],
        )
        for name, metrics in done["scores"].items()
    ]


def _scores(models: Models, method: str, features: np.ndarray, bench: Bench) -> dict[str, dict[str, float]]:
    """Scores of a method by row and subset; nothing where the run has no such method."""
    responses = Responses(subset=bench.subset, prompt=bench.prompt, correct=bench.correct, reference=bench.reference)
    if not models.able(method):
        return {}
    if method == HEAD:
        head = score_head(models.work)
        assert head is not None, "able says that there is one"
        found = reward_bench.scores(features.astype(np.float64) @ head.astype(np.float64)[:, None], responses)
        return {method: {name: float(value[0]) for name, value in found.items()}}
    found = models(method).found
    assert found is not None, "these methods are a basis and weights"
    weights = np.asarray(found.weights, np.float64)[: models.task.num_seen].mean(axis=0)
    scores = reward_bench.basis_scores(_rewards(found, features), weights, responses)
    if method == SHARED:
        return {method: scores["average user"]}
    order = ["average user", *(name for name in scores if name != "average user")]
    return {f"{method}, {name}": scores[name] for name in order}


def _rewards(found: Fit, features: np.ndarray) -> np.ndarray:
    """Basis rewards [N K] of features [N D]."""
    return np.asarray(basis_rewards(standardise(found.standardiser, jnp.asarray(features, jnp.float32)), found.basis))


if __name__ == "__main__":
    launch(run, __doc__ or "", define=define)
