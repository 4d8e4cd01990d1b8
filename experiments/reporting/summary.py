"""From the margins that methods left (`truth.answered`) to `results.json`, `report.md` and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.methods import METHODS, ignored
from experiments.reporting import ceilings, checks, controls
from experiments.runner.cli import Config
from experiments.runner.test_labels import Answered, answered
from experiments.runner.workspace import Workspace, curve, log, workspaces
from pref_jax.data.preferences import Preferences
from pref_jax.data.text.same_tokens import FIELD
from pref_jax.eval.bootstrap import paired_difference
from pref_jax.eval.figures import plots
from pref_jax.eval.metrics import group_metrics, user_accuracy
from pref_jax.eval.reporting import report, results
from pref_jax.eval.reporting.report import Section
from pref_jax.files import read_json

FEW = 4  # votes, of which a user's taste is often not to be told


def summarise(
    config: Config,
    workdir: Path,
    sections: Callable[[dict[str, Any]], list[Section]] | None = None,
    *,
    every: list[Answered] | None = None,
) -> dict[str, Any]:
    """Scores every method that is done, writes results, report and plots, and prints the table.

    `sections` makes further chapters of the report from the results. `every` are the seeds' scores, where they have
    been read already.
    """
    every = every or [answered(work) for work in workspaces(config, workdir)]
    rows = [row for own in every for row in _rows(own)]
    found = results.write_results(workdir / "results.json", dataset=config.dataset, rows=rows)
    missing = checks.left_out([own.work for own in every])
    pictures = _pictures(every[0], found["rows"], workdir / "plots")
    report.write_report(
        workdir,
        found,
        title=str(config.dataset),
        meanings={name: own.sentence for name, own in METHODS.items() if any(row["method"] == name for row in rows)},
        findings=[*missing, *_findings(every)],
        plots=pictures,
        sections=[
            *(sections(found) if sections else ()),
            controls.section(every),
            *ceilings.sections(every),
            checks.section([own.work for own in every]),
        ],
    )
    beside = "\n".join(missing)
    log(f"\n{report.table(found['rows'], style='plain')}{beside}\n\nresults, report and pictures: {workdir}")
    return found


def _rows(own: Answered) -> list[dict[str, Any]]:
    rows = []
    for method, margins in own.margins.items():
        seconds = own.facts[method]["seconds"]
        metrics = pair_metrics(own.data, margins)
        if (skipped := own.data.meta.get(FIELD, {}).get("test")) is not None:
            metrics[f"{FIELD}/test"] = float(skipped)
        rows.append(results.result_row(method=method, seed=own.work.seed, metrics=metrics, seconds=seconds))
    return rows


def pair_metrics(data: Preferences, margins: np.ndarray) -> dict[str, Any]:
    """Accuracies, log-losses and calibration errors from the margins [P] of the test pairs as users answered."""
    pairs = data.pairs("test")
    return dict(group_metrics(margins, pairs.user, pairs.controversial, data.seen, data.groups))


def _findings(every: list[Answered]) -> list[str]:
    """For each seed: differences between methods over users, and experts that nobody is sent to."""
    found = []
    for method, base in (
        ("CoPL", "shared reward"),
        ("CoPL", "group oracle"),
        ("CoPL (balancing loss)", "CoPL"),
        ("CoPL (balancing bias)", "CoPL"),
        ("CoPL + shrinkage", "shared reward"),
        ("LoRe", "shared (features)"),
        ("LoRe", "LoRe (published)"),
        ("LoRe", "per-user model"),
        ("deep LoRe", "LoRe"),
        ("deep LoRe", "shared reward"),
    ):
        for own in every:
            if not {method, base} <= own.margins.keys():
                continue
            data, pairs = own.data, own.pairs
            ours, theirs = (user_accuracy(own.margins[name], pairs.user, data.num_users) for name in (method, base))
            for who, members in _kinds(data, by_votes=base == "group oracle").items():
                asked = members & (ours.pairs > 0)
                gap = paired_difference(ours.accuracy[asked], theirs.accuracy[asked])
                if gap is None:
                    continue
                span = "" if gap.low is None or gap.high is None else f" [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
                found.append(
                    f"{method} against {base}, {who}, seed {own.work.seed}: {100 * gap.mean:+.1f} points{span} "
                    f"(mean over {gap.n} users, 95 % bootstrap)."
                )
    found += [f"{text}." for text in checks.told(every)]
    for method in dict.fromkeys(name for own in every for name in own.margins):
        facts = [own.facts[method] for own in every if method in own.facts]
        if method == "CoPL":
            found.append(_refreshing(every[0].work, facts))
        if "dead_experts" in facts[0]:
            counts = ", ".join(str(own["dead_experts"]) for own in facts)
            found.append(f"{method}: of {_experts(facts[0])}, so many serve no seen user, by seed: {counts}.")
    return found + ignored(every[0].data, list(every[0].margins))


def _kinds(data: Preferences, *, by_votes: bool) -> dict[str, np.ndarray]:
    """Kinds of users, bool [U] each: seen and unseen.

    With `by_votes` seen ones also by what their votes tell: by their number where these differ, and by whether groups
    disagree on any of the pairs where some users have voted on none such. Of two groups nobody knows theirs.
    """
    seen, known = data.seen, data.pairs("train", seen=True)
    kinds = {"seen users": seen, "unseen users": ~seen}
    votes = np.bincount(known.user, minlength=data.num_users)
    telling = np.bincount(known.user[known.controversial == 1], minlength=data.num_users)
    few, silent = votes < FEW, telling == 0
    if by_votes and len(np.unique(votes[seen])) > 1:
        kinds |= {f"seen users of under {FEW} votes": seen & few, f"seen users of {FEW} or more": seen & ~few}
    if by_votes and (seen & silent).any() and (known.controversial >= 0).all():
        kinds["seen users with a vote on a controversial pair"] = seen & ~silent
        kinds["seen users with none"] = seen & silent
    return kinds


def _refreshing(work: Workspace, facts: list[dict[str, Any]]) -> str:
    """Whether seen users' embeddings are refreshed, and what validation pairs say of either choice."""
    kept, fresh = (
        ", ".join(f"{own['graph'][name]:.1%}" for own in facts)
        for name in ("validation_accuracy", "validation_accuracy_refreshed")
    )
    again = "are re-embedded from their own votes, as unseen users are"
    choice = again if work.config.refresh_seen else "keep the graph's embeddings"
    return f"CoPL: seen users {choice}; validation accuracy by seed: {kept} of the graph's embeddings, {fresh} of new."


def _pictures(own: Answered, rows: list[dict[str, Any]], folder: Path) -> list[tuple[Path, str]]:
    """Plots of the table and, for the first seed, of what happened inside."""
    made = [(plots.save(plots.accuracy_bars(rows), folder / "accuracy.png"), "Accuracy of every method.")]
    work, data = own.work, own.data
    if (work.folder / "adapted").is_dir():
        figure = plots.embedding_map(work.users(), data.groups, data.seen, title="User embeddings of CoPL's graph")
        made.append((plots.save(figure, folder / "embeddings.png"), "User embeddings; groups were not told."))
        history = read_json(work.folder / "graph" / "graph.json")["history"]
        steps = range(1, len(history["train_loss"]) + 1)
        curves = {name.replace("_", " "): (steps, history[name]) for name in ("train_loss", "validation_loss")}
        figure = plots.learning_curves(curves, xlabel="evaluation", title="Graph: loss")
        made.append((plots.save(figure, folder / "graph.png"), "Learning of the graph's embeddings."))
    curves = {name: curve(work.method_folder(name), "loss") for name in own.margins}
    curves = {name: values for name, values in curves.items() if values[0]}
    if curves:
        figure = plots.learning_curves(curves, ylabel="the method's own loss", title="Training loss")
        caption = "Training: each method's own loss, PAL-A's a hinge, all others' Bradley-Terry, priors included."
        made.append((plots.save(figure, folder / "training.png"), caption))
    if "CoPL" in own.facts:
        facts = own.facts["CoPL"]
        figure = plots.expert_usage({k: np.array(v) for k, v in facts["expert_usage"].items()}, gates=facts["gates"])
        made.append((plots.save(figure, folder / "experts.png"), f"Which of {_experts(facts)} serve whom."))
        figure = plots.gate_curves(*_gates(work.method_folder("CoPL")), title="CoPL's experts while training")
        made.append((plots.save(figure, folder / "gates.png"), "Use of the experts and entropy of the gates."))
    return made


def _experts(facts: dict[str, Any]) -> str:
    each = len(next(iter(facts["expert_usage"].values()))[0])
    return f"the {facts['num_gates'] * each} experts of {facts['num_gates']} gates"


def _gates(folder: Path) -> tuple[list[int], list[list[float]], list[float]]:
    """Steps, use of each expert and gate entropy, as `metrics.jsonl` has them."""
    steps, entropy = curve(folder, "gate_entropy")
    use, expert = [], 0
    while values := curve(folder, f"usage_{expert}")[1]:
        use.append(values)
        expert += 1
    return steps, [list(shares) for shares in zip(*use, strict=True)], entropy
