"""Best of n on the synthetic world: the true utility of what users' own rewards pick, and of what others would pick.

    python -m experiments.best_of --config=configs/best_of.py --workdir=runs/best_of

Every seed is a world of its own, done once: LoRe is fitted to its votes, and every user picks from the answers to each
new prompt. `results.json` has the mean true utility of what is picked, `report.md` and `plots/` show it.

Axis letters: U users, N responses, P new prompts, C candidates of each, K basis.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.runner.cli import Config, freeze, launch
from experiments.runner.workspace import Workspace
from experiments.studies.fitted_world import ReadWorld, fit_world, others, read_world, seeds_to_do
from lore_jax.fitted import basis_rewards
from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.data.sources.synthetic import world
from pref_jax.data.sources.synthetic.world import Truth
from pref_jax.eval.figures import canvas
from pref_jax.eval.metrics import Interval, student_interval
from pref_jax.eval.reporting import report, results
from pref_jax.files import write_text

RANDOM, SHARED, OTHER, OWN, BEST = "random", "shared reward", "another user's reward", "own reward", "oracle"
MEANINGS = {
    RANDOM: "any of the answers",
    SHARED: "one linear reward for everyone",
    OTHER: "LoRe's reward with the weights of another user, drawn at random",
    OWN: "LoRe's reward with the user's own weights",
    BEST: "the answer of the highest true utility to the user",
}
GAINS = ((OWN, SHARED), (OWN, OTHER), (OTHER, SHARED))


class Rewards(NamedTuple):
    """What each user gives each response: one reward for all, and LoRe's.

    Attributes:
      shared: float64 [N].
      basis: float64 [N K], LoRe's basis rewards.
      weights: float64 [U K], LoRe's weights of the users.
    """

    shared: Float[np.ndarray, " N"]
    basis: Float[np.ndarray, "N K"]
    weights: Float[np.ndarray, "U K"]


def run(config: Config, workdir: Path) -> None:
    """Every seed that is not done yet; then the report."""
    for reader, seed in seeds_to_do(config, workdir, list(MEANINGS)):
        _seed(config, reader, workdir, seed)
    _report(workdir, config)


def _seed(config: Config, reader: Workspace, workdir: Path, seed: int) -> None:
    start = time.perf_counter()
    read = read_world(config, reader, seed)
    tables, rewards = read.tables, _fit(read, freeze(LoReConfig, config.lore, "lore", seed=seed))
    picked = utilities(world.truth(read.settings), rewards, np.random.default_rng([seed, 41]))
    seconds = time.perf_counter() - start
    groups = np.array(tables.groups)
    rows = [
        results.result_row(method=name, seed=seed, metrics=_metrics(own, groups, tables.seen), seconds=seconds)
        for name, own in picked.items()
    ]
    results.write_results(workdir / "results.json", dataset=config.dataset, rows=rows)


def _fit(read: ReadWorld, config: LoReConfig) -> Rewards:
    """The rewards by the votes; users of a world are in the order seen, unseen."""
    (task, shared, lore), features = fit_world(read, config), read.features
    unseen = model_selection.adapt(lore, features, task.context, task.num_unseen)
    weights = np.concatenate([np.asarray(lore.weights)[: task.num_seen], np.asarray(unseen)]).astype(np.float64)
    return Rewards(basis_rewards(shared, features)[:, 0], basis_rewards(lore, features), weights)


def utilities(truth: Truth, rewards: Rewards, rng: np.random.Generator) -> dict[str, Float[np.ndarray, " U"]]:
    """Each user's mean true utility, over the new prompts, of what is picked from the answers to each; 1 to 5."""
    shape = (-1, int((truth.prompt == truth.prompt[-1]).sum()))
    true = (truth.tastes @ truth.levels[truth.test].T).reshape(len(truth.tastes), *shape)  # [U P C]
    shared, basis = rewards.shared[truth.test].reshape(1, *shape), rewards.basis[truth.test]
    other = rewards.weights[others(len(rewards.weights), rng)]

    def best(given: np.ndarray) -> np.ndarray:
        place = np.broadcast_to(given.argmax(axis=-1), true.shape[:2])
        return np.take_along_axis(true, place[:, :, None], axis=2)[:, :, 0].mean(axis=1)

    by_weights = {name: (own @ basis.T).reshape(true.shape) for name, own in ((OTHER, other), (OWN, rewards.weights))}
    return {
        RANDOM: true.mean(axis=(1, 2)),
        SHARED: best(shared),
        OTHER: best(by_weights[OTHER]),
        OWN: best(by_weights[OWN]),
        BEST: true.max(axis=2).mean(axis=1),
    }


def _metrics(own: np.ndarray, groups: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    parts = {"utility/seen users": seen, "utility/unseen users": ~seen}
    parts |= {f"utility/{group}": groups == group for group in sorted(set(groups))}
    return {name: float(own[members].mean()) for name, members in parts.items() if members.any()}


def _report(workdir: Path, config: Config) -> None:
    rows = results.read_results(workdir / "results.json")["rows"]
    found = results.by_method(rows)
    names = list(found[OWN])
    lines = [["picked by", *(name.removeprefix("utility/") for name in names)]]
    lines += [
        [method, *(report.plus_minus(own.get(name), digits=2) for name in names)] for method, own in found.items()
    ]
    gained = [["gain", *lines[0][1:]]]
    gained += [
        [f"{a} over {b}", *(report.plus_minus(gain(rows, a, b, name), digits=2, sign="+") for name in names)]
        for a, b in GAINS
    ]
    canvas.save(picture(found, config.dataset), workdir / "plots" / "best_of.png")
    parts = [
        f"# {config.dataset}",
        "True utility, a level from 1 to 5, of the answer that is picked for a user from those to a new prompt; means "
        f"over users and prompts, with 95 % intervals over {len(config.seeds)} worlds.",
        report.bullets(f"**{name}**: {meaning}." for name, meaning in MEANINGS.items()),
        report.grid(lines),
        "## Gains, paired by world",
        report.grid(gained),
        "![true utility of what is picked](plots/best_of.png)",
    ]
    write_text(workdir / "report.md", "\n\n".join(parts) + "\n")
    print(f"report and picture: {workdir}")


def gain(rows: list[Any], first: str, second: str, metric: str) -> Interval:
    """Of one way to pick over another, paired by seed."""
    values = {(row["method"], row["seed"]): row["metrics"].get(metric) for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return student_interval([values[first, seed] - values[second, seed] for seed in seeds], over="seeds")


@canvas.style()
def picture(found: Mapping[str, Mapping[str, Interval]], title: str) -> Figure:
    """Utilities of each way to pick, side by side for each group, with their intervals."""
    names = [name for name in found[OWN] if not name.endswith(" users")]
    width, methods = 9.0, list(found)
    fig = canvas.new_figure(width, 3.6 + canvas.legend_height(methods, width))
    ax, handles = fig.subplots(), []
    for number, method in enumerate(methods):
        x = np.arange(len(names)) + 0.14 * (number - (len(methods) - 1) / 2)
        mean, low, high = canvas.percent(found[method][name] for name in names) / 100
        look: Any = {"color": canvas.colour(number), "marker": canvas.MARKERS[number], "linestyle": ""}
        handles.append(ax.errorbar(x, mean, [mean - low, high - mean], capsize=3, markersize=6, **look))
    ax.set_xticks(
        np.arange(len(names)),
        [f"users who care for\n{name.removeprefix('utility/').replace('_', ' ')}" for name in names],
    )
    ax.set_ylabel("true utility, level 1 to 5")
    ax.set_ylim(2.5, 5.1)
    ax.yaxis.grid(True, **canvas.GRID)
    canvas.heading(fig, f"{title}: answers picked for each group", width=width)
    canvas.legend_below(fig, handles, methods, width=width)
    return fig


if __name__ == "__main__":
    launch(run, __doc__ or "", default_config="configs/best_of.py")
