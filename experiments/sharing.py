"""What text nodes are worth to CoPL where ever fewer users vote on the same responses.

    python -m experiments.sharing --config=configs/sharing.py --workdir=runs/sharing

Everything that `experiments.compare` makes of the same config, done once, and beside it `sharing.md`, which has the
accuracy by the number of votes a prompt, what is lost against the most, paired by seed, and a picture of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import compare
from experiments.runner.cli import Config, launch
from pref_jax.eval.figures import canvas, plots
from pref_jax.eval.metrics import Interval, student_interval
from pref_jax.eval.reporting import report
from pref_jax.files import read_json, write_text

METHOD = "CoPL"
PEOPLE = {"seen": "seen users", "unseen": "unseen users"}
NAMES = {"table": "own rows", "both": "own rows and texts", "text": "texts"}

# Accuracies [seeds] by kind of nodes and people, and by votes a prompt.
Curves = Mapping[tuple[str, str], Mapping[float, list[float]]]


def run(config: Config, workdir: Path) -> None:
    """The comparison, and what it says of sharing."""
    compare.run(config, workdir)
    found = curves(config, read_json(workdir / "results.json")["datasets"])
    drawn = {
        f"{NAMES[nodes]}, {PEOPLE[people]}": {votes: _interval(own) for votes, own in points.items()}
        for (nodes, people), points in found.items()
    }
    title = f"{METHOD} by what responses are in the graph"
    picture = plots.sweep(drawn, xlabel="training votes a prompt", title=title)
    canvas.save(picture, workdir / "plots" / "sharing.png")
    write_text(workdir / "sharing.md", told(found, len(config.seeds)))
    print(f"accuracy by what is shared: {workdir / 'sharing.md'}")


def curves(config: Config, datasets: Mapping[str, Any]) -> Curves:
    """CoPL's accuracies, seeds in the order of the config."""
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for name, own in config.datasets.items():
        source, rows = own.source, {row["seed"]: row for row in datasets[name]["rows"] if row["method"] == METHOD}
        votes = source.seen_users * source.pairs_per_user / source.train_prompts
        for people in PEOPLE:
            values = [rows[seed]["metrics"][f"{people}/accuracy"] for seed in config.seeds]
            found.setdefault((own.graph.nodes, people), {})[votes] = values
    return found


def told(found: Curves, seeds: int) -> str:
    """The report: accuracies, and losses against the most votes a prompt, in percent and points."""
    votes = sorted(next(iter(found.values())), reverse=True)
    head = ["response nodes", "users", *(f"{count:g} votes a prompt" for count in votes)]
    table, lost = [head], [head[:2] + head[3:]]
    for (nodes, people), points in found.items():
        most = points[votes[0]]
        table.append(
            [NAMES[nodes], PEOPLE[people], *(report.cell("accuracy", _interval(points[count])) for count in votes)]
        )
        less = ([new - old for new, old in zip(points[count], most, strict=True)] for count in votes[1:])
        lost.append([NAMES[nodes], PEOPLE[people], *(_gain(own) for own in less)])
    parts = [
        f"# {METHOD} by how much is shared",
        f"Accuracy in percent on new prompts, mean and 95 % interval over {seeds} seeds. The votes are as many "
        "everywhere, on ever more prompts; with one vote a prompt hardly any two users share a response. A response "
        "is in the graph as a row of its own that is learned, or as that and a linear map of its text.",
        report.grid(table),
        "## Lost against the most votes a prompt, points, paired by seed",
        report.grid(lost),
        "![accuracy by votes a prompt](plots/sharing.png)",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _interval(values: list[float]) -> Interval:
    return student_interval(values, over="seeds", fractions=True)


def _gain(changes: list[float]) -> str:
    return report.plus_minus(student_interval(changes, over="seeds"), scale=100, sign="+")


if __name__ == "__main__":
    launch(run, __doc__ or "", default_config="configs/sharing.py")
