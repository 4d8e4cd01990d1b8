"""What ties and strengths are worth: each method on the same votes with them, and on those decided, as plain votes.

    python -m experiments.vote_kinds --config=configs/vote_kinds.py --workdir=runs/vote_kinds

Each kind of votes is a folder with a `results.json` of its own, done once; `ties.json` there holds how probable ties
were said to be, and how often they happened. `report.md` has the gain of each method, paired by seed.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from copl_jax.graph.embedding import embed_users, margins
from copl_jax.graph.settings import linear_config
from copl_jax.graph.solved_users import solve_users
from experiments import linear
from experiments.linear import Model, Task
from experiments.runner.cli import Config, check_workdir, freeze, launch
from experiments.studies.answered_world import AnsweredConfig, draw
from experiments.studies.planted_world import PlantedConfig, World
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.comparisons import Comparisons, decided
from pref_jax.errors import UserError
from pref_jax.eval.figures import canvas
from pref_jax.eval.figures.reliability import Reliability, reliability, reliability_curves
from pref_jax.eval.metrics import Interval, group_metrics, student_interval
from pref_jax.eval.reporting import report, results
from pref_jax.files import read_json, write_json, write_text

DECIDED = " (decided)"
GRAPH = "CoPL's graph"
MEANINGS = {
    "shared": "one linear Bradley-Terry reward for everyone",
    "LoRe": "the quick search, on responses that nobody voted on",
    GRAPH: "embeddings of users and responses by the graph of votes, on further pairs of known responses",
}
GAINS = "Gain by ties and strengths, points, with its 95 % interval over seeds:"
METRICS = {"seen/accuracy": "Accuracy, seen users", "unseen/accuracy": "Accuracy, unseen users"}
AnyTask = TypeVar("AnyTask", bound=Task)


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
    left = results.missing(path, config.methods, seed)
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
        for known in {method.startswith(GRAPH) for method in left}
    }
    rows = []
    for method in left:
        start = time.perf_counter()
        world, said = worlds[method.startswith(GRAPH)]
        tested = METHODS[method](decided_only(world) if method.endswith(DECIDED) else world, seed)
        if tested.tie is not None and ties:
            _note_ties(folder / "ties.json", f"{method}, seed {seed}", tested.tie, said)
        metrics = _metrics(world, tested.margins)
        rows.append(results.result_row(method=method, seed=seed, metrics=metrics, seconds=time.perf_counter() - start))
    if rows:
        results.write_results(path, dataset=folder.name, rows=rows)


def decided_only(task: AnyTask) -> AnyTask:
    """The same task without ties, all other votes alike."""
    parts = {name: decided(getattr(task, name)) for name in ("train", "validation", "context")}
    return dataclasses.replace(task, **parts)


def _metrics(world: World, margins: np.ndarray) -> dict[str, Any]:
    unknown, nobody = np.full(len(margins), -1), [None] * len(world.seen)
    found = group_metrics(margins, world.test.user, unknown, world.seen, nobody)
    return {name: found[name] for name in METRICS}


def _note_ties(path: Path, name: str, probability: np.ndarray, said: Comparisons) -> None:
    found = read_json(path) if path.exists() else {}
    write_json(path, {**found, name: curve_values(reliability(probability, said.tie))})


def linear_margins(task: Task, model: Model) -> Tested:
    """What a model on features says of the task's test pairs."""
    margins = linear.margins(task, model)
    reading = model.found and model.found.reading
    return Tested(margins, reading.probabilities(margins)[:, 1] if reading and reading.scale.ties else None)


def _graph(world: World, seed: int) -> Tested:
    """Margins by the default graph; unseen users are solved from their votes."""
    config = linear_config(dim=64)
    if world.train.tie is None:
        config = dataclasses.replace(config, ties=False, strengths="ignore")
    validation = decided(world.validation)
    sizes = {"seen": np.ones(world.num_seen, bool), "num_responses": len(world.features)}
    with tempfile.TemporaryDirectory() as folder:
        found = embed_users(config, world.train, validation, **sizes, seed=seed, folder=Path(folder))
    assert found.table is not None, "the default graph has one"
    unseen = solve_users(found.table, world.context, np.arange(world.num_unseen), scale=found.scale)
    users = np.concatenate([found.raw_users, unseen])
    return Tested(margins(users, found.responses, world.test, found.bias))


_FITS: dict[str, Callable[[World, int], Tested]] = {
    "shared": lambda world, seed: linear_margins(world, linear.shared(world, LoReConfig.quick(seed=seed))),
    "LoRe": lambda world, seed: linear_margins(world, linear.hierarchical(world, LoReConfig.quick(seed=seed))),
    GRAPH: _graph,
}
METHODS = {f"{name}{which}": fit for name, fit in _FITS.items() for which in ("", DECIDED)}


def _summarise(workdir: Path, config: Config) -> None:
    names = [_name(*kind) for kind in config.kinds]
    found = {name: results.read_results(workdir / "kinds" / name / "results.json") for name in names}
    parts = [f"# {config.dataset}", "\n".join(f"- **{name}**: {MEANINGS[name]}." for name in _FITS)]
    parts.append(f"{DECIDED.strip()} methods get the decided votes alone, all as strong as each other.")
    gained = {name: gains(rows["rows"], _FITS) for name, rows in found.items()}
    for metric, title in METRICS.items():
        parts += [f"## {title}", report.across(list(found.values()), metric, config.methods)]
        parts += [GAINS, gain_table(gained, _FITS, metric)]
    curves = {
        f"{method.rpartition(', ')[0]}, {name}": curve
        for name in names
        for method, curve in _first_seed(workdir / "kinds" / name / "ties.json").items()
    }
    if curves:
        parts += ["## Ties that were held out", ties_picture(workdir, curves)]
    write_json(workdir / "gains.json", {name: gain_values(own) for name, own in gained.items()})
    write_report(workdir, parts)


def write_report(workdir: Path, parts: Iterable[str]) -> None:
    """Writes `report.md` of parts in Markdown, and says where."""
    write_text(workdir / "report.md", "\n\n".join(part.strip("\n") for part in parts) + "\n")
    print(f"report and picture: {workdir}")


def ties_picture(workdir: Path, curves: Mapping[str, Reliability]) -> str:
    """Draws how often ties happened against how probable they were said to be; the line that shows it in a report."""
    words = {"xlabel": "predicted probability of a tie", "ylabel": "share of ties"}
    canvas.save(reliability_curves(curves, **words, title="Ties that were held out"), workdir / "plots/ties.png")
    return "![predicted and observed ties](plots/ties.png)"


def curve_values(curve: Reliability) -> dict[str, list[float]]:
    """A curve as JSON values."""
    return {key: column.tolist() for key, column in curve._asdict().items()}


def gain_values(gained: Mapping[tuple[str, str], Interval]) -> dict[str, Any]:
    """What methods gain in each metric, as JSON values."""
    return {f"{method}: {metric}": dataclasses.asdict(gain) for (method, metric), gain in gained.items()}


def gain_table(gained: Mapping[str, Mapping[tuple[str, str], Interval]], methods: Iterable[str], metric: str) -> str:
    """What each method gains in points: data sets down, methods across."""
    lines = [["votes", *methods]]
    lines += [[name, *(_points(own.get((method, metric))) for method in methods)] for name, own in gained.items()]
    return report.grid(lines)


def gains(rows: Iterable[Mapping[str, Any]], methods: Iterable[str]) -> dict[tuple[str, str], Interval]:
    """What each method gains by ties and strengths in each metric, paired by seed."""
    values = {(row["method"], row["seed"]): row["metrics"] for row in rows}
    found = {}
    for method in methods:
        for metric in METRICS:
            pairs = [
                (values[method, seed][metric], values[method + DECIDED, seed][metric])
                for name, seed in values
                if name == method and (method + DECIDED, seed) in values and metric in values[method, seed]
            ]
            if pairs:
                found[method, metric] = student_interval([_mean(a) - _mean(b) for a, b in pairs], over="seeds")
    return found


def _mean(value: Any) -> float:
    return float(value["mean"] if isinstance(value, dict) else value)


def _points(gain: Interval | None) -> str:
    return "-" if gain is None else report.plus_minus(gain, scale=100, sign="+")


def _first_seed(path: Path) -> dict[str, Reliability]:
    """The curve of each method, its first seed's: curves of several seeds would hide one another."""
    curves = read_json(path) if path.exists() else {}
    return {
        name: Reliability(**{key: np.asarray(column) for key, column in curve.items()})
        for name, curve in curves.items()
        if name.endswith("seed 0")
    }


if __name__ == "__main__":
    launch(run, __doc__ or "", default_config="configs/vote_kinds.py")
