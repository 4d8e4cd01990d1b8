"""What ties and strengths are worth on real votes: methods on features with all votes, and with the decided ones alone.

    python -m experiments.vote_kinds_real --config=configs/ukp_convarg.py:linear --config.source.path=DIR \
        --workdir=runs/ukp_ties

Test answers, ties among them, are read once all methods of all seeds have predicted. `report.md` has accuracies on
decided test pairs and the gain by ties; `plots/ties.png` how probable ties were said to be and how often they happened.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import linear
from experiments.embed import embed
from experiments.lore_methods import make_task, seen_first
from experiments.prepare import prepare_votes
from experiments.runner.cli import Config, launch
from experiments.runner.test_labels import load_test_labels
from experiments.runner.workspace import Workspace, log, workspaces
from experiments.vote_kinds import (
    DECIDED,
    GAINS,
    METRICS,
    Tested,
    curve_values,
    decided_only,
    gain_table,
    gain_values,
    gains,
    linear_margins,
    ties_picture,
    write_report,
)
from pref_jax.data.label_masking import label_signs
from pref_jax.eval.figures.reliability import Reliability, reliability
from pref_jax.eval.metrics import group_metrics
from pref_jax.eval.reporting import report, results
from pref_jax.files import write_json

FITS = {"shared": linear.shared, "LoRe": linear.hierarchical}


class Predicted(NamedTuple):
    """One seed: the workspace, and what each method says of all test pairs, tied ones too."""

    work: Workspace
    tested: dict[str, Tested]
    seconds: dict[str, float]


def run(config: Config, workdir: Path) -> None:
    """All methods for all seeds, then the answers and the report."""
    every = [_predict(work) for work in workspaces(config, workdir)]
    # From here on test answers are read; no method runs any more.
    rows, curves = [], {}
    for one in every:
        truth = load_test_labels(one.work, "the report of ties")
        told = truth.pairs("test", ties=True)
        signs, decided = label_signs(one.work.data, truth), ~told.tie
        for name, (margins, tie) in one.tested.items():
            known = group_metrics(
                margins[decided] * signs, told.user[decided], told.controversial[decided], truth.seen, truth.groups
            )
            metrics = {metric: known[metric] for metric in METRICS if metric in known}
            rows.append(results.result_row(method=name, seed=one.work.seed, metrics=metrics, seconds=one.seconds[name]))
            if tie is not None and one is every[0]:
                curves[name] = reliability(tie, told.tie)
    results.write_results(workdir / "results.json", dataset=config.dataset, rows=rows)
    _report(workdir, config.dataset, rows, curves)


def _predict(work: Workspace) -> Predicted:
    prepare_votes(work)
    embed(work)
    task, tested, seconds = make_task(work), {}, {}
    order = np.argsort(seen_first(work.data))
    test = work.data.pairs("test", ties=True)
    task = dataclasses.replace(task, test=test._replace(user=order[test.user], tie=None, row=None))
    for name, fit in FITS.items():
        for kept, own in ((name, task), (name + DECIDED, decided_only(task))):
            log(f"seed {work.seed}: {kept}")
            start = time.perf_counter()
            tested[kept] = linear_margins(own, fit(own, work.lore))
            seconds[kept] = time.perf_counter() - start
    return Predicted(work, tested, seconds)


def _report(workdir: Path, dataset: str, rows: list[dict[str, Any]], curves: dict[str, Reliability]) -> None:
    found = gains(rows, FITS)
    write_json(workdir / "gains.json", gain_values(found))
    parts = [f"# {dataset}: with ties, and without", report.table(rows, list(METRICS))]
    for metric, title in METRICS.items():
        parts += [f"{title}. {GAINS}", gain_table({dataset: found}, FITS, metric)]
    if curves:
        write_json(workdir / "ties.json", {name: curve_values(curve) for name, curve in curves.items()})
        parts.append(ties_picture(workdir, curves))
    write_report(workdir, parts)


if __name__ == "__main__":
    launch(run, __doc__ or "", default_config="configs/ukp_convarg.py:linear")
