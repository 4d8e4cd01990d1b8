"""What ties and strengths are worth: each method on the same votes with them, and on those decided, as plain votes.

    python -m experiments.vote_kinds --config=configs/vote_kinds.py --workdir=runs/vote_kinds

Each kind of votes is a folder with a `results.json` of its own, done once; `ties.json` there holds how probable ties
were said to be, and how often they happened. `report.md` has the gain of each method, paired by seed.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.runner.cli import Config, check_workdir, freeze
from experiments.studies.answered_world import AnsweredConfig, draw
from experiments.studies.planted_world import PlantedConfig, World
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.eval.figures.reliability import reliability
from pref_jax.eval.metrics import group_metrics
from pref_jax.eval.reporting import results
from pref_jax.files import read_json, write_json

DECIDED = " (decided)"
GRAPH = "CoPL's graph"
MEANINGS = {
    "shared": "one linear Bradley-Terry reward for everyone",
    "LoRe": "the full search, on responses that nobody voted on",
    GRAPH: "embeddings of users and responses by the graph of votes, on further pairs of known responses; seen users",
}
METRICS = {"seen/accuracy": "Accuracy, seen users", "unseen/accuracy": "Accuracy, unseen users"}


class Tested(NamedTuple):
    """Margins of the test pairs [P], and how probable a tie of each is, [P] or None."""

    margins: np.ndarray
    tie: np.ndarray | None = None


def run(config: Config, workdir: Path) -> None:
    """Every kind of votes, seed and method that is not done yet; then the report."""
    check_workdir(workdir, config)
    if unknown := sorted(set(config.methods) - set(METHODS)):
        raise UserError(f"config.methods: unknown {', '.join(unknown)}; known: {', '.join(METHODS)}")
    todo = [(kind, seed) for kind in config.kinds for seed in config.seeds]
    for (ties, strengths), seed in tqdm(todo, desc="kinds of votes", disable=None):
        _cell(workdir / "kinds" / _name(ties, strengths), ties, strengths, seed, config)
    _summarise(workdir, config)


def _name(ties: float, strengths: int) -> str:
    parts = [f"{ties:.0%} ties"] * bool(ties) + [f"{strengths} strengths"] * (strengths > 1)
    return ", ".join(parts) or "plain votes"


def _cell(folder: Path, ties: float, strengths: int, seed: int, config: Config) -> None:
    path = folder / "results.json"
    worlds = {
        known: draw(
            AnsweredConfig(
                planted=freeze(PlantedConfig, config.known if known else config.world, "world"),
                noise=config.noise,
                ties=ties,
                strengths=strengths,
            ),
            seed,
        )
        for known in (False, True)
    }
    rows = []
    for method in results.missing(path, config.methods, seed):
        start = time.perf_counter()
        world, said = worlds[method.startswith(GRAPH)]
        tested = METHODS[method](_decided(world) if method.endswith(DECIDED) else world, seed)
        if tested.tie is not None and ties:
            _note_ties(folder / "ties.json", f"{method}, seed {seed}", tested.tie, said)
        metrics = _metrics(world, tested.margins, unseen=not method.startswith(GRAPH))
        rows.append(results.result_row(method=method, seed=seed, metrics=metrics, seconds=time.perf_counter() - start))
    if rows:
        results.write_results(path, dataset=folder.name, rows=rows)


def _decided(world: World) -> World:
    """The same world without ties, all other votes alike."""

    def plain(votes: Comparisons) -> Comparisons:
        return votes.take(~votes.tie)._replace(tie=None, strength=None)

    return dataclasses.replace(
        world, train=plain(world.train), validation=plain(world.validation), context=plain(world.context)
    )


def _metrics(world: World, margins: np.ndarray, *, unseen: bool) -> dict[str, Any]:
    unknown, nobody = np.full(len(margins), -1), [None] * len(world.seen)
    found = group_metrics(margins, world.test.user, unknown, world.seen, nobody)
    return {name: found[name] for name in METRICS if unseen or not name.startswith("unseen")}


def _note_ties(path: Path, name: str, probability: np.ndarray, said: Comparisons) -> None:
    found = read_json(path) if path.exists() else {}
    found[name] = {key: column.tolist() for key, column in reliability(probability, said.tie)._asdict().items()}
    write_json(path, found)
