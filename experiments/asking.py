"""How soon a new person's taste is known when the service asks, compared with pairs drawn at random.

    python -m experiments.asking --config=configs/asking.py --workdir=runs/asking

Every seed is a world of its own, done once: LoRe is fitted to the votes of its seen users, saved, and served in this
process. The unseen users are the new people: they vote through the service's endpoints, as on its page. `results.json`
has their accuracy on test pairs after so many answers, `report.md` and `plots/` show it.

Axis letters: U users, S numbers of answers, N responses, K basis.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from starlette.testclient import TestClient

import pref_jax
from experiments.demo import voted_pairs
from experiments.runner.cli import Config, freeze, launch
from experiments.runner.workspace import Workspace, log
from experiments.studies import simulated_people
from experiments.studies.fitted_world import ReadWorld, fit_world, others, read_world, seeds_to_do
from lore_jax.fitted import LoRe, basis_rewards
from lore_jax.fitting.bradley_terry import LoReConfig
from lore_jax.model import from_fit
from pref_jax.data.sources.synthetic import world
from pref_jax.eval.figures import canvas, plots
from pref_jax.eval.metrics import Interval, group_metrics, student_interval
from pref_jax.eval.reporting import report, results
from pref_jax.files import write_text
from pref_jax.lm.text_model import TextModel
from pref_jax.serve.app import make_app
from pref_jax.serve.store.store import Store

ASKED, PAGE, DRAWN, OTHER = "asked", "asked ahead, as on the page", "drawn at random", "another person's answers"
SEEN, SHARED = "seen users", "shared reward"
ARMS = (ASKED, PAGE, DRAWN, OTHER)
# Pairs that the page fetches at a time.
AHEAD = 10
MEANINGS = {
    ASKED: "new people answer pairs that the service chooses by expected information, each after the last answer",
    PAGE: "as the service's page has it: the next pair is there at once, chosen before the last answer was known",
    DRAWN: "new people answer pairs of the same pool, drawn at random",
    OTHER: "the weights of another new person who was asked",
    SEEN: "the people whose votes LoRe was fitted to, by their fitted weights and on their own test pairs",
    SHARED: "one linear reward for everyone, on the new people's test pairs",
}
# Share of the seen users' gain that is to be reached.
GOAL = 0.9
NEW, KNOWN, UNKNOWN = "unseen/accuracy", "seen/accuracy", "seen/accuracy by nobody's weights"


class Fitted(NamedTuple):
    """LoRe of a world's seen users, and the shared reward.

    Attributes:
      model: to be served.
      basis: float64 [N K], basis rewards of all responses.
      weights: float64 [U K]: of seen users the fitted ones; of unseen ones those of nobody.
      nobody: float64 [K].
      shared: float64 [N 1], the shared reward of all responses.
    """

    model: LoRe
    basis: Float64[np.ndarray, "N K"]
    weights: Float64[np.ndarray, "U K"]
    nobody: Float64[np.ndarray, " K"]
    shared: Float64[np.ndarray, "N 1"]


def run(config: Config, workdir: Path) -> None:
    """Every seed that is not done yet; then the report."""
    for reader, seed in seeds_to_do(config, workdir, list(MEANINGS)):
        _seed(config, reader, workdir, seed)
    _report(workdir, config)


def _seed(config: Config, reader: Workspace, workdir: Path, seed: int) -> None:
    start = time.perf_counter()
    read = read_world(config, reader, seed)
    found = _fit(read, reader.text, freeze(LoReConfig, config.lore, "lore", seed=seed))
    folder = workdir / f"seed_{seed}"
    # Of a run that was killed: its people have voted already.
    shutil.rmtree(folder, ignore_errors=True)
    found.model.save(folder / "model")
    fitted, start = time.perf_counter() - start, time.perf_counter()
    answered = _answers(config, read, folder)
    seconds = time.perf_counter() - start
    log(f"  fit {fitted:.0f} s, answers {seconds:.0f} s")
    metrics = levels(read, found) | {arm: curve(read, found, config.points, own) for arm, own in answered.items()}
    rows = [
        results.result_row(method=name, seed=seed, metrics=metrics[name], seconds=seconds if name in ARMS else fitted)
        for name in MEANINGS
    ]
    results.write_results(workdir / "results.json", dataset=config.dataset, rows=rows)


def _fit(read: ReadWorld, text: TextModel, config: LoReConfig) -> Fitted:
    (task, shared, lore), features = fit_world(read, config), read.features
    ids, count = read.tables.users["user_id"].to_pylist(), task.num_seen
    held = len(task.validation.user)
    model = from_fit(lore, features, task.answers, ids[:count], config=config, validation_votes=held, text=text)
    nobody = np.asarray(lore.mean, np.float64)
    weights = np.tile(nobody, (len(ids), 1))
    weights[:count] = np.asarray(lore.weights)[:count]
    return Fitted(model, basis_rewards(lore, features), weights, nobody, basis_rewards(shared, features))


def _answers(config: Config, read: ReadWorld, folder: Path) -> dict[str, Float64[np.ndarray, "S U K"]]:
    """Weights of the new people after so many answers, but none, by the arms."""
    seed, points = read.settings.seed, [n for n in config.points if n]
    pairs = voted_pairs(read.tables, seed, config.pool)
    says = simulated_people.opinions(
        read.settings, world.truth(read.settings), pairs, np.random.default_rng([seed, 42])
    )
    rng, found = np.random.default_rng([seed, 43]), {ASKED: [], PAGE: [], DRAWN: []}
    with served(folder) as client:
        simulated_people.make_pool(client, pairs)
        for person, own in enumerate(says):
            given = (pairs, own, points)
            found[ASKED].append(simulated_people.answer_asked(client, f"asked-{person}", *given))
            found[PAGE].append(simulated_people.answer_asked(client, f"page-{person}", *given, ahead=AHEAD))
            found[DRAWN].append(simulated_people.answer_drawn(client, f"drawn-{person}", *given, rng))
    stacked = {arm: np.stack(own, axis=1) for arm, own in found.items()}
    return {**stacked, OTHER: stacked[ASKED][:, others(len(says), rng)]}


@contextmanager
def served(folder: Path) -> Iterator[TestClient]:
    """A client of the saved model's service, in this process and without a network; its votes lie beside the model."""
    model, store = pref_jax.load(folder / "model"), Store.open(f"sqlite:///{folder}/votes.db")
    app = make_app(model, store, folder=folder / "model", warm=False)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def curve(
    read: ReadWorld, found: Fitted, points: Sequence[int], weights: Float64[np.ndarray, "S U K"]
) -> dict[str, Interval]:
    """Accuracy of the new people by their numbers of answers, from weights after all of these but 0."""
    every, after = np.tile(found.weights, (len(points), 1, 1)), iter(weights)
    for place, number in enumerate(points):
        if number:
            every[place, ~read.tables.seen] = next(after)
    return {f"{NEW}/{n}": accuracies(read, found.basis, own)[NEW] for n, own in zip(points, every, strict=True)}


def levels(read: ReadWorld, found: Fitted) -> dict[str, dict[str, Interval]]:
    """Accuracies of what does not depend on answers: of nobody's weights too, on the seen users' test pairs."""
    nobody = accuracies(read, found.basis, np.tile(found.nobody, (len(found.weights), 1)))
    shared = accuracies(read, found.shared, np.ones((len(found.weights), 1)))
    return {
        SEEN: {KNOWN: accuracies(read, found.basis, found.weights)[KNOWN], UNKNOWN: nobody[KNOWN]},
        SHARED: {name: shared[name] for name in (KNOWN, NEW)},
    }


def accuracies(
    read: ReadWorld, basis: Float64[np.ndarray, "N K"], weights: Float64[np.ndarray, "U K"]
) -> dict[str, Interval]:
    """Accuracies on the test pairs, as `group_metrics` names them."""
    test, tables = read.tables.pairs("test"), read.tables
    margins = np.einsum("pk,pk->p", basis[test.chosen] - basis[test.rejected], weights[test.user])
    return group_metrics(margins, test.user, test.controversial, tables.seen, tables.groups)


# --- figures ---


def shares(rows: Sequence[Mapping[str, Any]], arm: str, seed: int) -> dict[int, float]:
    """Share of the seen users' gain that an arm has reached after so many answers; {} where they gained nothing.

    The gain is how much better the seen users' own weights do than nobody's on their test pairs; new people begin with
    nobody's weights, and their gain is over these, on their own test pairs.
    """
    found = {row["method"]: row["metrics"] for row in rows if row["seed"] == seed}
    gain = found[SEEN][KNOWN] - found[SEEN][UNKNOWN]
    if gain <= 0:
        return {}
    own = {int(name.rsplit("/", 1)[1]): value for name, value in found[arm].items()}
    return {n: (own[n] - own[0]) / gain for n in sorted(own)}


def needed(reached: Mapping[int, float], goal: float = GOAL) -> float:
    """Answers after which the goal is first reached, on straight lines between the points; infinity if never.

    Example:
      >>> needed({0: 0.0, 4: 0.5, 8: 1.0}, 0.75)
      6.0
    """
    ends = sorted(reached.items())
    for (start, low), (stop, high) in zip(ends[:1] + ends, ends, strict=False):
        if high >= goal:
            return float(np.interp(goal, (low, high), (start, stop)))
    return math.inf


def answers_needed(rows: Sequence[Mapping[str, Any]], most: int) -> dict[str, list[float]]:
    """Of each arm, answers needed in each world, `most` where the goal is not reached; of worlds with a gain."""
    seeds = sorted({row["seed"] for row in rows})
    return {
        arm: [min(needed(own), float(most)) for seed in seeds if (own := shares(rows, arm, seed))] for arm in ARMS[:-1]
    }


def _report(workdir: Path, config: Config) -> None:
    rows, points = results.read_results(workdir / "results.json")["rows"], config.points
    found = results.by_method(rows)
    curves = {arm: {n: found[arm][f"{NEW}/{n}"] for n in points} for arm in ARMS}
    lines = {SEEN: found[SEEN][KNOWN], SHARED: found[SHARED][NEW]}
    picture = plots.sweep(curves, xlabel="answers given", title=config.dataset, levels=lines)
    canvas.save(picture, workdir / "plots" / "asking.png")
    worlds = f"95 % intervals over {len(config.seeds)} worlds"
    parts = [
        f"# {config.dataset}",
        f"Accuracy in percent on test pairs, means with {worlds}: of new people after so many answers. Each world has "
        f"{config.source.unseen_users} of them, and a pool of {config.pool} pairs that seen users had voted on.",
        report.bullets(f"**{name}**: {meaning}." for name, meaning in MEANINGS.items()),
        report.grid(_table(points, lambda arm, n: report.plus_minus(curves[arm][n], scale=100))),
        report.bullets(
            [
                *(f"{name}: {report.plus_minus(value, scale=100)}" for name, value in lines.items()),
                f"nobody's weights on the seen users' test pairs: {report.plus_minus(found[SEEN][UNKNOWN], scale=100)}",
            ]
        ),
        "![accuracy by answers](plots/asking.png)",
        "## Share of the seen users' gain",
        "The new people's gain over nobody's weights, with which they begin, in percent of what the seen users' own "
        "weights gain over nobody's on the test pairs of theirs.",
        report.grid(_table(points, lambda arm, n: report.plus_minus(_share(rows, arm, n), scale=100))),
        f"## Answers needed for {GOAL:.0%} of it",
        needed_told(answers_needed(rows, points[-1]), points[-1], len(config.seeds)),
    ]
    write_text(workdir / "report.md", "\n\n".join(parts) + "\n")
    print(f"report and picture: {workdir}")


def _table(points: Sequence[int], cell: Callable[[str, int], str]) -> list[list[str]]:
    return [["answers", *ARMS], *([str(n), *(cell(arm, n) for arm in ARMS)] for n in points)]


def _share(rows: Sequence[Mapping[str, Any]], arm: str, number: int) -> Interval | None:
    every = (shares(rows, arm, seed) for seed in sorted({row["seed"] for row in rows}))
    return _over_worlds([own[number] for own in every if own])


def _over_worlds(values: Sequence[float]) -> Interval | None:
    return student_interval(values, over="seeds") if len(values) else None


def needed_told(found: Mapping[str, Sequence[float]], most: int, worlds: int) -> str:
    """`answers_needed`, their means, and what asking saves, in Markdown."""
    told = [
        f"{arm}: {report.plus_minus(_over_worlds(own))} ({', '.join(f'{n:.1f}' for n in own)})"
        for arm, own in found.items()
    ]
    for arm in (ASKED, PAGE):
        saved = [b - a for a, b in zip(found[arm], found[DRAWN], strict=True)]
        told.append(f"saved compared with {DRAWN}, paired by world, {arm}: {report.plus_minus(_over_worlds(saved))}")
    parts = [
        "Where the curve of a world first reaches it, on straight lines between the numbers above; in brackets that of "
        "each world.",
        report.bullets(told),
    ]
    every = [number for own in found.values() for number in own]
    if never := sum(number >= most for number in every):
        parts.append(f"{never} of {len(every)} times it was not reached before {most} answers, which stand for more.")
    if left := worlds - len(found[DRAWN]):
        parts.append(
            f"Left out of this chapter and the last: {left} of {worlds} worlds, whose seen users gained nothing."
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    launch(run, __doc__ or "", default_config="configs/asking.py")
