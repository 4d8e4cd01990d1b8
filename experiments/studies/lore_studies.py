"""Studies of LoRe on a run's features: how many basis rewards, how few answers, how different the users.

- ranks: the published recipe and LoRe with a given number of basis rewards K, beside the K that held-out votes choose;
- shots: accuracy of unseen users after some of their answers, drawn again in every trial;
- diversity: all methods on worlds of their own, whose tastes are Dirichlet(alpha).

A study leaves WORKDIR/studies/STUDY/POINT/results.json, a row for each method and seed, which is not done again.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import linear
from experiments.embed import embed
from experiments.linear import Task
from experiments.lore_methods import HEAD, LEARNED, METHOD, ORACLE, PUBLISHED, Models
from experiments.prepare import prepare_votes
from experiments.reporting.summary import pair_metrics
from experiments.runner.cli import Config, freeze
from experiments.runner.workspace import Workspace, log
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.eval.figures import plots
from pref_jax.eval.metrics import Interval, is_loss, student_interval, user_accuracy
from pref_jax.eval.reporting import report, results
from pref_jax.eval.reporting.report import Section
from pref_jax.ragged import ranges

RANKS, SHOTS, DIVERSITY = "ranks", "shots", "diversity"
# A picture's file and its caption.
Picture = tuple[str | Path, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudiesConfig:
    """Which studies; an empty tuple leaves one out.

    Attributes:
      ranks: numbers of basis rewards K to force.
      shots: numbers of answers of an unseen user; those beyond what the users gave are left out.
      trials: draws of which answers these are.
      alphas: of the Dirichlet that draws tastes; for `source.name` world only.
    """

    ranks: tuple[int, ...]
    shots: tuple[int, ...]
    trials: int
    alphas: tuple[float, ...]

    def __post_init__(self):
        """Raises UserError for numbers out of range."""
        if min(self.ranks, default=1) < 1 or min(self.shots, default=0) < 0 or self.trials < 1:
            raise UserError(f"config.studies: {self}: ranks and trials are at least 1, shots at least 0")
        if not all(alpha > 0 for alpha in self.alphas):
            raise UserError(f"config.studies.alphas is {self.alphas}; every alpha is above 0")


def read(config: Config) -> StudiesConfig | None:
    """The config's studies; None if it has no such section.

    Raises:
      UserError: for fields that do not fit, or worlds asked for where the data is no world.
    """
    if "studies" not in config:
        return None
    studies = freeze(StudiesConfig, config.studies, "studies")
    if studies.alphas and config.source.name != "world":
        raise UserError(
            f"config.studies.alphas asks for worlds of other tastes, but config.source.name is {config.source.name!r}; "
            "leave them out with --config.studies.alphas='()'"
        )
    return studies


def run(models: Models, methods: Sequence[str], studies: StudiesConfig, workdir: Path) -> None:
    """Every study of one seed that is not done, with those of `methods` that it is about."""
    folder = workdir / "studies"
    able = [name for name in methods if models.able(name)]
    _ranks(models, able, studies.ranks, folder / RANKS)
    _shots(models, able, studies, folder / SHOTS)
    _diversity(models, able, studies.alphas, folder / DIVERSITY)


def sections(
    every: Sequence[Models], methods: Sequence[str], studies: StudiesConfig, workdir: Path, found: Mapping[str, Any]
) -> list[Section]:
    """Tables and pictures of all seeds' studies.

    Args:
      every: the seeds' models.
      methods: those of the run that are on features.
      studies: what was studied.
      workdir: where the studies lie, and where pictures go.
      found: `results.json` of the run.
    """
    rows = [row for row in found["rows"] if row["method"] in methods]
    names = [f"{side}/{what}" for what in ("accuracy", "log_loss", "calibration_error") for side in ("seen", "unseen")]
    chapters = [Section("Seen and unseen users", report.table(rows, names))]
    folders = {name: workdir / "studies" / name for name in (RANKS, SHOTS, DIVERSITY)}
    points = {name: _points(folder) for name, folder in folders.items()}
    if points[RANKS]:
        chapters.append(_ranks_section([models.work for models in every], rows, points[RANKS], workdir / "plots"))
    if points[SHOTS]:
        chapters.append(_shots_section(every[0].task, methods, studies, points[SHOTS], workdir / "plots"))
    if points[DIVERSITY]:
        chapters.append(_diversity_section(methods, points[DIVERSITY], workdir / "plots"))
    return chapters


# --- the studies ---


def _ranks(models: Models, methods: Sequence[str], ranks: Sequence[int], folder: Path) -> None:
    for rank in ranks:
        fits = {name: partial(_at_rank, models, name, rank) for name in (PUBLISHED, METHOD) if name in methods}
        _measure(folder / str(rank), f"K = {rank}", models.work.seed, fits)


def _at_rank(models: Models, name: str, rank: int) -> dict[str, Any]:
    """Metrics of the published recipe or of LoRe with so many basis rewards."""
    task, width = models.task, models.task.features.shape[1]
    if rank > width:
        raise UserError(f"config.studies.ranks: {rank} basis rewards of {width} features; give at most {width}")
    if name == PUBLISHED:
        model = linear.published(task, dataclasses.replace(models.recipe, rank=rank), models.work.seed)
    else:
        model = linear.hierarchical(task, linear.fixed_rank(models.config, rank))
    return _scores(models, linear.margins(task, model))


def _scores(models: Models, margins: np.ndarray) -> dict[str, Any]:
    truth, turn = models.truth
    return pair_metrics(truth, margins * turn)


def _shots(models: Models, methods: Sequence[str], studies: StudiesConfig, folder: Path) -> None:
    if not studies.shots or models.data.seen.all():
        return
    most = _answers(models.task).max(initial=0)
    for shots in (count for count in studies.shots if count <= most):
        fits = {name: partial(_trials, models, name, shots, studies.trials) for name in methods if name in LEARNED}
        _measure(folder / str(shots), f"{shots} answers", models.work.seed, fits)


def _diversity(models: Models, methods: Sequence[str], alphas: Sequence[float], folder: Path) -> None:
    for alpha in alphas:
        world = Models(_world(models.work, alpha))
        fits = {name: partial(_on_world, world, name) for name in methods if name != ORACLE}
        _measure(folder / f"{alpha:g}", f"alpha {alpha:g}", models.work.seed, fits)


def _on_world(models: Models, name: str) -> dict[str, Any]:
    """Metrics of a method on a world that is made where it is missing."""
    prepare_votes(models.work)
    embed(models.work)
    return _scores(models, linear.margins(models.task, models(name)))


def _measure(folder: Path, point: str, seed: int, fits: Mapping[str, Callable[[], dict[str, Any]]]) -> None:
    """One point of a study: the metrics that each function returns, unless the folder has them."""
    path = folder / "results.json"
    for name in results.missing(path, list(fits), seed):
        log(f"seed {seed}: {point}: {name}")
        start = time.perf_counter()
        metrics = fits[name]()
        row = results.result_row(method=name, seed=seed, metrics=metrics, seconds=time.perf_counter() - start)
        results.write_results(path, dataset=point, rows=[row])


def _world(work: Workspace, alpha: float) -> Workspace:
    """A run like this one, with the same transformer, on a world of Dirichlet(alpha) tastes."""
    config = work.config.copy_and_resolve_references()
    config.source.update({"tastes": "dirichlet", "dirichlet_alpha": alpha})
    config.backbone.name = str(work.text.folder)
    return Workspace(config, work.seed, work.folder / "worlds" / f"alpha_{alpha:g}")


def _answers(task: Task) -> np.ndarray:
    """Context votes of each unseen user [M]."""
    return np.bincount(task.context.user, minlength=task.num_unseen)


def _trials(models: Models, name: str, shots: int, trials: int) -> dict[str, Interval]:
    """Unseen users' accuracy and log-loss, mean over the trials, which are solved all at once: as many users each."""
    task, count = models.task, models.task.num_unseen
    context = draw(task.context, shots=shots, trials=trials, num_users=count, seed=models.work.seed)
    new = task.test.user >= task.num_seen
    asked = task.test.take(new)
    number = (np.arange(trials)[:, None] * count + asked.user[None]).ravel()
    test = Comparisons(number, np.tile(asked.chosen, trials), np.tile(asked.rejected, trials))
    margins = models(name).predict(context, trials * count, test) * np.tile(models.truth[1][new], trials)
    right = user_accuracy(margins, number - task.num_seen, trials * count)
    tested = right.pairs[:count] > 0
    accuracy = right.accuracy.reshape(trials, count)[:, tested].mean(1)
    loss = np.logaddexp(0, -margins).reshape(trials, -1).mean(1)
    values = {"unseen/accuracy": accuracy, "unseen/log_loss": loss}
    return {
        metric: student_interval(value, over="trials", fractions=not is_loss(metric))
        for metric, value in values.items()
    }


def draw(votes: Comparisons, *, shots: int, trials: int, num_users: int, seed: int) -> Comparisons:
    """At most `shots` votes of every user, drawn again in each trial; user u of trial t becomes t * num_users + u.

    More shots with the same seed hold those of fewer.
    """
    total = len(votes.user)
    user = (np.arange(trials)[:, None] * num_users + votes.user[None]).ravel()
    order = np.lexsort((np.random.default_rng([seed, 7]).random(len(user)), user))
    counts = np.bincount(user, minlength=trials * num_users)
    place = ranges(counts)
    taken = order[place < shots]
    return Comparisons(user[taken], votes.chosen[taken % total], votes.rejected[taken % total])


# --- their tables and pictures ---


def _points(folder: Path) -> dict[float, dict[str, Any]]:
    """Results of a study by the number that it varies, in rising order."""
    found = {float(path.parent.name): results.read_results(path) for path in folder.glob("*/results.json")}
    return dict(sorted(found.items()))


def _ranks_section(
    works: Sequence[Workspace], rows: Sequence[Mapping[str, Any]], points: Mapping[float, Any], folder: Path
) -> Section:
    both = list(dict.fromkeys(row["method"] for own in points.values() for row in own["rows"]))
    head = [{**row, "method": name} for row in rows if row["method"] == HEAD for name in both]
    chosen = [row for row in rows if row["method"] == METHOD]
    ends = ({"dataset": f"K = 0, {HEAD}", "rows": head}, {"dataset": "K chosen by held-out votes", "rows": chosen})
    lines = [point for point in (ends[0], *points.values(), ends[1]) if point["rows"]]
    pictures, tables = [], []
    for side in ("seen", "unseen"):
        metric = f"{side}/accuracy"
        tables.append(report.across(lines, metric, both))
        summary = results.by_method(rows)
        marks = {HEAD: f"{HEAD} (K = 0)", METHOD: f"{METHOD}, K chosen"}
        levels = {mark: summary[name][metric] for name, mark in marks.items() if metric in summary.get(name, {})}
        figure = plots.sweep(
            results.curves(points, metric, both),
            xlabel="basis rewards K",
            title=f"How many basis rewards: {side} users",
            levels=levels,
        )
        pictures.append((plots.save(figure, folder / f"ranks_{side}.png"), f"Accuracy of {side} users by K."))
    told = [work.scores(METHOD)[1] for work in works if chosen]
    taken = ", ".join(f"{facts['rank']} ({facts['chosen']['kind']})" for facts in told)
    text = "K = 1 is Bradley-Terry, for LoRe with a prior."
    return Section(
        "How many basis rewards", "\n\n".join([text + f" Chosen, by seed: {taken}." * bool(told), *tables]), pictures
    )


def _shots_section(
    task: Task, methods: Sequence[str], studies: StudiesConfig, points: Mapping[float, Any], folder: Path
) -> Section:
    known = [name for name in methods if name in LEARNED]
    counts = _answers(task)
    text = (
        f"Unseen users known by some of their answers, drawn again in each of {studies.trials} trials. They gave "
        f"{counts.min()} to {counts.max()}; who gave fewer than are asked for is known by all of them. Of one seed, "
        "intervals are over trials: they tell how much the choice of answers matters, not how much users differ."
    )
    tables = [report.across(list(points.values()), metric, known) for metric in ("unseen/accuracy", "unseen/log_loss")]
    curves = results.curves({int(count): own for count, own in points.items()}, "unseen/accuracy", known)
    figure = plots.few_shot(curves, title="Unseen users after a few answers")
    pictures: list[Picture] = [(plots.save(figure, folder / "shots.png"), "Accuracy of unseen users by answers.")]
    return Section("How few answers", "\n\n".join([text, *tables]), pictures)


def _diversity_section(methods: Sequence[str], points: Mapping[float, Any], folder: Path) -> Section:
    learned = [name for name in methods if any(row["method"] == name for own in points.values() for row in own["rows"])]
    pictures, tables = [], []
    for side in ("seen", "unseen"):
        metric = f"{side}/accuracy"
        tables.append(report.across(list(points.values()), metric, learned))
        figure = plots.sweep(
            results.curves(points, metric, learned),
            xlabel="alpha of the users' tastes",
            title=f"How different the users: {side} users",
        )
        pictures.append((plots.save(figure, folder / f"diversity_{side}.png"), f"Accuracy of {side} users by alpha."))
    text = "Worlds whose users' tastes are Dirichlet(alpha): small alphas are users who care for one thing each."
    return Section("How different the users", "\n\n".join([text, *tables]), pictures)
