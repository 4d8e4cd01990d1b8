"""What a run leaves on disk and where: stages that are done or not, never half; loaders of their results.

WORKDIR/config.json, results.json, report.md, plots/
WORKDIR/studies/            results of studies              (experiments.studies.lore_studies)
WORKDIR/seed_S/data/        tables                         (experiments.prepare)
               backbone/    a pretrained decoder, if made and not shared (experiments.prepare)
               features/    features.npy, one row a response (experiments.embed)
               prompt_features/  the same of every prompt alone (experiments.embed)
               reward_bench/  features and scores on RewardBench 2 (experiments.reward_bench)
               graph_training/  checkpoints of the graph's training
               graph/       seen users' and all responses' embeddings (experiments.copl --stage=graph)
               adapted/     unseen users' embeddings          (experiments.copl --stage=adapt)
               worlds/      data and features of further worlds (experiments.studies.lore_studies)
               leaks.json   what the leakage checks say      (experiments.reporting.checks)
               test_reads.jsonl  who read groups or test answers (experiments.runner.test_labels)
               METHOD/      metrics.jsonl, checkpoints/, model/: the trained reward model without its transformer,
                            scores/: margins of the test pairs (every method)

What is there is not made again. To repeat a stage, delete its folder and those of the stages that read it.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runner.cli import Config, check_workdir
from pref_jax.comparisons import Comparisons
from pref_jax.data import preferences
from pref_jax.data.label_masking import mask_labels
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import prompt_ids
from pref_jax.errors import UserError
from pref_jax.files import atomic_folder, read_json, write_json
from pref_jax.train.logging import read_metrics

# Stands in the facts of scores whose method did not know which response of a test pair was chosen.
HIDDEN = "hidden"


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed of an experiment: its config, its folder, its seed."""

    config: Config
    seed: int
    folder: Path


def runs(config: Config, workdir: Path) -> Iterator[Run]:
    """A run for each of `config.seeds`; the workdir becomes this config's.

    Raises:
      UserError: if the workdir is another config's, or there are no seeds.
    """
    seeds = tuple(config.seeds)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"config.seeds is {seeds}; give at least one, each from 0 and different")
    check_workdir(workdir, config)
    for seed in seeds:
        yield Run(config, seed, workdir / f"seed_{seed}")


def stage(folder: Path, make: Callable[[Path], Any], *, resume: bool = False) -> Path:
    """Makes `folder` by `make(part)` unless it is there: whole or absent, whenever the run is killed.

    With `resume`, `make` finds in `part` what it had done before it was killed.
    """
    if not folder.is_dir():
        with atomic_folder(folder, resume=resume) as part:
            make(part)
    return folder


def log(text: str) -> None:
    """Tells the person at the terminal what is going on."""
    print(text, flush=True)


def load_data(run: Run) -> Preferences:
    """The tables of `experiments.prepare` as methods get them, without groups and test answers (`blind`)."""
    return mask_labels(preferences.load(require(run.folder / "data", "prepare")), run.seed)


def load_features(run: Run) -> np.ndarray:
    """float32 [N D], memory-mapped, of `experiments.embed`."""
    return _rows(require(run.folder / "features", "embed") / "features.npy")


def load_prompt_features(run: Run) -> np.ndarray:
    """float32 [prompts D], memory-mapped, in the order of `prompt_ids`' numbers, of `experiments.embed`."""
    return _rows(require(run.folder / "prompt_features", "embed") / "features.npy")


def _rows(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); delete the folder and run experiments.embed again") from None


def load_users(run: Run, data: Preferences, *, adapted: bool = True) -> np.ndarray:
    """Embeddings of all users [U D] of `experiments.copl`: of the seen by the graph, of the unseen by adaptation.

    With `adapted` False unseen users get zeros, and their stage need not have run.
    """
    folders = {True: require(run.folder / "graph", "copl --stage=graph")}
    if adapted:
        folders[False] = require(run.folder / "adapted", "copl --stage=adapt")
    parts = {seen: np.load(folder / "users.npy", allow_pickle=False) for seen, folder in folders.items()}
    users = np.zeros((data.num_users, parts[True].shape[1]), parts[True].dtype)
    for seen, rows in parts.items():
        users[data.seen == seen] = rows
    return users


def load_responses(run: Run) -> np.ndarray:
    """The graph's embeddings of all responses [N D] of `experiments.copl`."""
    return np.load(require(run.folder / "graph", "copl --stage=graph") / "responses.npy", allow_pickle=False)


def method_folder(run: Run, method: str) -> Path:
    """The folder of a method's run: `group oracle` -> `group_oracle`."""
    return run.folder / re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")


def done(run: Run) -> list[str]:
    """Methods of the config that have scores, in its order."""
    return [name for name in run.config.methods if (method_folder(run, name) / "scores").is_dir()]


def test_pairs(data: Preferences) -> Comparisons:
    """The test pairs of all users, which methods score once, after all training and choosing.

    In the tables of `load_data` nothing tells which response the user chose.
    """
    return data.pairs("test")


def graph_pairs(run: Run, data: Preferences, split: str = "train") -> Comparisons:
    """The answers that CoPL's graph is made of, or with "validation" is stopped by: of seen users, nobody else's.

    What the reward models are chosen by is not among them (`votes_by_prompt`): a graph that knew these answers would
    tell them to its users' embeddings.
    """
    pairs = data.pairs(split, seen=True)
    held = _held_out(run, data, pairs, run.config.reward.holdout_fraction)
    return pairs.take(~held)


def votes_by_prompt(run: Run, data: Preferences, *, fraction: float) -> tuple[Comparisons, Comparisons]:
    """The seen users' answers to learn from, and those on a `fraction` of the prompts, to choose by.

    Test prompts are new to a model, so what it is chosen by must be new too: on prompts it has seen, remembering
    their responses looks like understanding them. Methods of a run that hold out the same part hold out the same
    prompts.
    """
    pairs = data.pairs(("train", "validation"), seen=True)
    choose = _held_out(run, data, pairs, fraction)
    return pairs.take(~choose), pairs.take(choose)


def _held_out(run: Run, data: Preferences, pairs: Comparisons, fraction: float) -> np.ndarray:
    """bool [P]: which pairs are on the prompts that are held out, a fraction of those that seen users answered."""
    prompt = prompt_ids(data.responses["prompt"])
    distinct = np.unique(prompt[data.pairs(("train", "validation"), seen=True).chosen])
    held = np.random.default_rng([run.seed, 5]).permutation(distinct)[: round(fraction * len(distinct))]
    return np.isin(prompt[pairs.chosen], held)


def was_resumed(folder: Path) -> bool:
    """Whether a training in `folder` goes on from checkpoints of a process that was killed.

    The seconds that it then tells are of the rest alone, which tables say.
    """
    return any(folder.rglob("checkpoints/*"))


def stopwatch(folder: Path) -> Callable[[], dict[str, Any]]:
    """Starts the clock of a training in `folder`; called at its end, what comes back tells "seconds" and "taken_up"."""
    start, again = time.perf_counter(), was_resumed(folder)
    return lambda: {"seconds": time.perf_counter() - start, "taken_up": again}


def scored(run: Run, method: str, score: Callable[[], tuple[np.ndarray, dict[str, Any]]]) -> None:
    """Runs a method unless its scores are there.

    Args:
      run: the run.
      method: name of the row in tables.
      score: returns the margins of `test_pairs` (float [P]) of `load_data`, and facts to keep (JSON values). Where
        stages of the method were run before, "stage_seconds" among the facts, by name, is counted into the method's
        time; "taken_up" tells that they lack what was done before a kill. "parameters_per_user" and "context_pairs"
        tell what the method learns of a user and from what, "most_context_pairs" of how many it reads at most.

    Raises:
      UserError: for margins that are not finite, which nobody could compare; nothing is kept of them.
    """
    folder = method_folder(run, method)
    if (folder / "scores").is_dir():
        return
    log(f"seed {run.seed}: {method}")
    start = time.perf_counter()
    margins, facts = score()
    wrong = int((~np.isfinite(margins)).sum())
    if wrong:
        fix = f"delete {folder} and lower the learning rate, or leave the method out"
        raise UserError(f"{method}, seed {run.seed}: {wrong} of {len(margins)} margins are not finite; {fix}")
    seconds = time.perf_counter() - start + sum(facts.get("stage_seconds", {}).values())

    def write(part: Path) -> None:
        np.save(part / "margins.npy", np.asarray(margins, np.float32))
        write_json(part / "facts.json", {"method": method, "seconds": seconds, "answers": HIDDEN, **facts})

    stage(folder / "scores", write)


def load_scores(run: Run, method: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Margins and facts that `scored` kept; `truth.answered` turns the margins as users answered.

    Raises:
      UserError: if there are none, or they are of a version that showed methods the answers of test pairs.
    """
    folder = require(method_folder(run, method) / "scores", "compare")
    facts = read_json(folder / "facts.json")
    if facts.get("answers") != HIDDEN:
        raise UserError(f"{folder}: made by an older version, which scored test pairs with their answers; delete it")
    return np.load(folder / "margins.npy", allow_pickle=False), facts


def context_pairs(data: Preferences) -> float:
    """Mean number of pairs that an unseen user brings; 0 without unseen users."""
    unseen = int((~data.seen).sum())
    return len(data.pairs("train", seen=False).user) / unseen if unseen else 0.0


def curve(folder: Path, field: str) -> tuple[list[int], list[float]]:
    """Steps and values of one field of a folder's `metrics.jsonl`; empty where there is none."""
    found = [(line["step"], line[field]) for line in read_metrics(folder) if field in line]
    return [step for step, _ in found], [value for _, value in found]


def require(folder: Path, command: str) -> Path:
    """The folder, which `command` of the experiments makes.

    Raises:
      UserError: if it is not there yet.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not there yet; run python -m experiments.{command} with the same flags first")
    return folder
