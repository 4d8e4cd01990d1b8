"""LoRe on planted low-rank worlds: who gains by learning tastes, by how few votes, and how well it knows its doubts.

    python -m experiments.planted --config=configs/lore_planted.py --workdir=runs/planted

Each world of the grid (diversity x votes a user x wrong votes) is a folder with a `results.json` of its own, done once.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments import linear
from experiments.linear import Margins, Model
from experiments.runner.cli import Config, check_workdir, freeze, launch
from experiments.studies.planted_world import PlantedConfig, World, draw
from lore_jax.fitting.bradley_terry import LoReConfig
from lore_jax.fitting.settings import PublishedConfig
from pref_jax.errors import UserError
from pref_jax.eval.figures import plots
from pref_jax.eval.metrics import group_metrics
from pref_jax.eval.reporting import report, results
from pref_jax.files import write_text

HEAD, SHARED, SINGLE, REFERENCE, LORE = "given head", "Bradley-Terry", "per-user model", "LoRe (published)", "LoRe"
TOLD = "LoRe (true directions)"
MEANINGS = {
    HEAD: "a fixed reward model, the mean of all directions, that learns nothing",
    SHARED: "one linear reward for everyone",
    SINGLE: "a linear reward for each user alone, its prior variance chosen by validation votes",
    REFERENCE: "the published recipe with the true number of directions: one Adam over basis and weights",
    LORE: "ours: a population of tastes by marginal likelihood; rank and shrinkage chosen by validation votes",
    TOLD: "an oracle: ours on features along the true directions alone, so that weights are all it has to learn",
}


def run(config: Config, workdir: Path) -> None:
    """Every world, seed and method that is not done yet; then tables and pictures."""
    check_workdir(workdir, config)
    if unknown := sorted(set(config.methods) - set(METHODS)):
        raise UserError(f"config.methods: unknown {', '.join(unknown)}; known: {', '.join(METHODS)}")
    cells = {name: freeze(PlantedConfig, config.world, "world", **own) for name, own in _grid(config).items()}
    todo = [(name, seed) for name in cells for seed in config.seeds]
    for name, seed in tqdm(todo, desc="planted", disable=None):
        _cell(workdir / "worlds" / name, name, cells[name], seed, config)
    _summarise(workdir, cells, config)


def _grid(config: Config) -> dict[str, dict[str, Any]]:
    """Name of each world -> what sets it apart."""
    return {
        f"{_tastes(alpha)}, {pairs} pairs, {wrong:.0%} wrong": {"alpha": alpha, "pairs": pairs, "wrong": wrong}
        for alpha in config.alphas
        for pairs in config.pairs
        for wrong in config.wrongs
    }


def _tastes(alpha: float | None) -> str:
    return "all alike" if alpha is None else f"alpha {alpha:g}"


def _cell(folder: Path, name: str, planted: PlantedConfig, seed: int, config: Config) -> None:
    path = folder / "results.json"
    left = results.missing(path, config.methods, seed)
    if not left:
        return
    world, lore, rows = draw(planted, seed), freeze(LoReConfig, config.lore, "lore"), []
    for method in left:
        start = time.perf_counter()
        margins = linear.margins(world, METHODS[method](world, planted.directions, seed, lore))
        rows.append(
            results.result_row(
                method=method, seed=seed, metrics=_metrics(world, margins), seconds=time.perf_counter() - start
            )
        )
    results.write_results(path, dataset=name, rows=rows)


def _metrics(world: World, margins: Margins) -> dict[str, Any]:
    """Accuracy on true preferences; log-loss and calibration on what users say, which may be wrong."""
    user, nobody = world.test.user, [None] * len(world.seen)
    unknown = np.full(len(user), -1)
    true = group_metrics(margins, user, unknown, world.seen, nobody)
    said = group_metrics(np.where(world.said, margins, -margins), user, unknown, world.seen, nobody)
    return {name: (true if name.endswith("/accuracy") else said)[name] for name in METRICS}


def _told(world: World, config: LoReConfig) -> Model:
    """The world's features are K instead of D to this method; its predictions read no features but those."""
    return linear.hierarchical(dataclasses.replace(world, features=world.features @ world.directions), config)


METHODS: dict[str, Callable[[World, int, int, LoReConfig], Model]] = {
    HEAD: lambda world, directions, seed, lore: linear.given(world),
    SHARED: lambda world, directions, seed, lore: linear.shared(world, lore),
    SINGLE: lambda world, directions, seed, lore: linear.single(world),
    REFERENCE: lambda world, directions, seed, lore: linear.published(world, PublishedConfig(rank=directions), seed),
    LORE: lambda world, directions, seed, lore: linear.hierarchical(world, lore),
    TOLD: lambda world, directions, seed, lore: _told(world, lore),
}
METRICS = {
    "seen/accuracy": "Accuracy, seen users",
    "unseen/accuracy": "Accuracy, unseen users",
    "seen/log_loss": "Log-loss on votes, seen users",
    "unseen/log_loss": "Log-loss on votes, unseen users",
    "seen/calibration_error": "Calibration error on votes, seen users",
    "unseen/calibration_error": "Calibration error on votes, unseen users",
}


def _summarise(workdir: Path, cells: dict[str, PlantedConfig], config: Config) -> None:
    found = {name: results.read_results(workdir / "worlds" / name / "results.json") for name in cells}
    parts = [f"# {config.dataset}", "\n".join(f"- **{name}**: {MEANINGS[name]}." for name in config.methods)]
    for metric, title in METRICS.items():
        parts += [f"## {title}", report.across(list(found.values()), metric, config.methods)]
    parts += ["## Pictures"]
    for alpha in config.alphas:
        for wrong in config.wrongs:
            for side in ("seen", "unseen"):
                name = f"{_tastes(alpha).replace(' ', '_')}_wrong_{100 * wrong:g}_{side}.png"
                title = f"{side.capitalize()} users: {_tastes(alpha)}, {wrong:.0%} wrong votes"
                own = {c.pairs: found[n] for n, c in cells.items() if (c.alpha, c.wrong) == (alpha, wrong)}
                figure = plots.few_shot(results.curves(own, f"{side}/accuracy", config.methods), title=title)
                plots.save(figure, workdir / "plots" / name)
                parts.append(f"![{title}](plots/{name})")
    write_text(workdir / "report.md", "\n\n".join(part.strip("\n") for part in parts) + "\n")
    print(f"report and pictures: {workdir}")


if __name__ == "__main__":
    launch(run, __doc__ or "", default_config="configs/lore_planted.py")
