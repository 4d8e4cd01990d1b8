"""CoPL: signed graph -> user embeddings -> gated experts in the transformer -> rewards; unseen users by two hops.

    python -m experiments.copl --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.copl --stage=adapt --config=configs/quickstart.py --workdir=runs/quickstart

Stages, each done once: graph -> reward (training) -> adapt (unseen users) -> report (scores, tables, pictures).
"""

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from copl_jax.graph import signed_graph, training
from copl_jax.graph.cold_start import cold_start, reembed_seen_users
from copl_jax.graph.gcf import GCFConfig
from experiments import reward_model
from experiments.prepare import prepare
from experiments.reporting.summary import summarise
from experiments.runner.cli import Config, freeze, launch
from experiments.runner.test_labels import load_test_labels
from experiments.runner.workspace import (
    Run,
    graph_pairs,
    load_data,
    load_responses,
    load_users,
    log,
    method_folder,
    require,
    runs,
    scored,
    stage,
    stopwatch,
)
from pref_jax.comparisons import Comparisons
from pref_jax.data.preferences import Preferences
from pref_jax.errors import UserError
from pref_jax.files import read_json, write_json
from pref_jax.mesh import make_mesh
from pref_jax.train.checkpoint import save_tree

METHOD = "CoPL"
# Methods that differ from it by `reward.gate.balance` alone.
BALANCED = {"CoPL (balancing loss)": "loss", "CoPL (balancing bias)": "bias"}


def run(config: Config, workdir: Path, stage: str = "all") -> None:
    """One stage of CoPL or all of them, for every seed; then, if scores are made, the report."""
    if stage not in ("all", *STAGES):
        raise UserError(f"--stage={stage}: no such stage; give all, {', '.join(STAGES)}")
    for one in runs(config, workdir):
        prepare(one)
        for name in STAGES if stage == "all" else (stage,):
            STAGES[name](one)
    if stage in ("all", "report"):
        summarise(config, workdir)


def copl(run: Run) -> None:
    """All stages of one seed up to the scores; those that are done are skipped."""
    for make in STAGES.values():
        make(run)


def balanced(run: Run, *, method: str) -> None:
    """`copl` on the same graph with experts balanced as `BALANCED` says, as a method of its own."""
    embed_users(run)
    adapt_users(run)
    changed: Config = copy.deepcopy(run.config)
    changed.reward.gate.balance = BALANCED[method]
    run = dataclasses.replace(run, config=changed)
    train(run, method)
    score(run, method)


def embed_users(run: Run) -> None:
    """Writes `graph/`: embeddings of the seen users and of all responses, the graph's parameters, history.

    With `refresh_seen` the seen users' are those of `adapt.refresh`; graph.json has the validation accuracy of both.
    """
    data = load_data(run)
    config = freeze(GCFConfig, run.config.graph, "graph")
    mesh = make_mesh(**run.config.mesh.to_dict())

    def make(part: Path) -> None:
        log(f"seed {run.seed}: graph")
        spent = stopwatch(run.folder / "graph_training")
        train_pairs, validation = graph_pairs(run, data), graph_pairs(run, data, "validation")
        signed = signed_graph.build(
            train_pairs.user,
            train_pairs.chosen,
            train_pairs.rejected,
            num_users=data.num_users,
            num_responses=data.num_responses,
        )
        found = training.fit(
            config,
            signed,
            train_pairs,
            validation,
            jax.random.key(run.seed),
            mesh=mesh if mesh.size > 1 else None,
            folder=run.folder / "graph_training" / "checkpoints",
        )
        fresh = reembed_seen_users(
            users=found.users, responses=found.responses, seen=data.seen, train_pairs=train_pairs
        )
        np.save(part / "users.npy", (fresh if run.config.refresh_seen else found.users)[data.seen])
        np.save(part / "responses.npy", found.responses)
        save_tree(part / "params", found.params)
        facts = {
            "validation_accuracy": found.best_accuracy,
            "validation_accuracy_refreshed": _accuracy(fresh, found.responses, validation),
            "best_step": found.best_step,
            "history": {name: _finite(values) for name, values in found.history.items()},
            **spent(),
            "config": dataclasses.asdict(config),
        }
        write_json(part / "graph.json", facts)

    stage(run.folder / "graph", make)


def _finite(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON has them, which knows no NaN: None after a training diverged."""
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _accuracy(users: np.ndarray, responses: np.ndarray, pairs: Comparisons) -> float:
    """Part of the pairs whose chosen response lies nearer to its user; 0 without pairs."""
    margins = np.sum(users[pairs.user] * (responses[pairs.chosen] - responses[pairs.rejected]), axis=-1)
    return float(np.mean(margins > 0)) if len(margins) else 0.0


def train(run: Run, method: str = METHOD) -> None:
    """Writes `METHOD/model/`: gates, experts and head, trained on the seen users' answers."""
    folder, data = method_folder(run, method), load_data(run)
    table = load_users(run, data, adapted=False)

    def make(part: Path) -> None:
        log(f"seed {run.seed}: {method}, training")
        model = reward_model.open_model(run, routing="users")
        reward_model.train(run, part, model, folder, table=table)

    stage(folder / "model", make)


def adapt_users(run: Run) -> None:
    """Writes `adapted/`: embeddings of the unseen users, in the order of their rows, from their neighbours."""
    data = load_data(run)
    responses = load_responses(run)
    users = load_users(run, data, adapted=False)

    def make(part: Path) -> None:
        log(f"seed {run.seed}: unseen users")
        start = time.perf_counter()
        adapted = cold_start(
            users=users,
            responses=responses,
            seen=data.seen,
            train_pairs=data.pairs("train", seen=True),
            context=data.pairs("train", seen=False),
            unseen=np.flatnonzero(~data.seen),
        )
        np.save(part / "users.npy", adapted.embeddings)
        facts = {
            "without_neighbours": int(adapted.used_all_users.sum()),
            "neighbours": adapted.num_neighbours.tolist(),
            "seconds": time.perf_counter() - start,
        }
        write_json(part / "adapted.json", facts)

    stage(run.folder / "adapted", make)


def score(run: Run, method: str = METHOD) -> None:
    """Writes `METHOD/scores/`: margins of the test pairs of seen and unseen users."""
    folder, data = method_folder(run, method), load_data(run)
    users = load_users(run, data)
    files = {"graph": run.folder / "graph/graph.json", "adapt": run.folder / "adapted/adapted.json"}
    files["reward"] = require(folder / "model", "copl --stage=reward") / "model.json"
    facts = {name: read_json(file) for name, file in files.items()}
    seconds = {name: own["seconds"] for name, own in facts.items()}

    def make() -> tuple[np.ndarray, dict[str, Any]]:
        model = reward_model.open_model(run, routing="users")
        margins, own = reward_model.evaluate(run, model, folder, table=users)
        own["taken_up"] = any(part.get("taken_up", False) for part in facts.values())
        return margins, {**own, "graph": facts["graph"], "stage_seconds": seconds}

    scored(run, method, make)


STAGES: dict[str, Callable[[Run], None]] = {
    "graph": embed_users,
    "reward": train,
    "adapt": adapt_users,
    "report": score,
}


class Finished(NamedTuple):
    """A finished run of CoPL, as `load` gives it.

    Attributes:
      data: its tables, with groups and test answers.
      model: the reward model's config, the frozen transformer and all texts, as `reward_model.score` takes them.
      params: the trained parameters.
      users: float [U D], embeddings of all users, seen and unseen.
      responses: float [N D], the graph's embeddings of all responses.
    """

    data: Preferences
    model: reward_model.Opened
    params: Any
    users: np.ndarray
    responses: np.ndarray


def load(run: Run) -> Finished:
    """Everything that rewards of a finished run are computed from.

    Raises:
      UserError: if a stage is missing, naming the command that makes it.
    """
    data = load_test_labels(run, "a reader of the finished run")
    users, responses = load_users(run, data), load_responses(run)
    folder = method_folder(run, METHOD)
    require(folder / "model", "copl --stage=reward")
    model = reward_model.open_model(run, routing="users")
    return Finished(data, model, reward_model.load_params(folder, model.config.lm, model.mesh), users, responses)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_enum("stage", "all", ["all", *STAGES], "which stage to run", flag_values=values)


if __name__ == "__main__":
    launch(run, __doc__ or "", define=_define)
