"""CoPL: signed graph -> user embeddings -> gated experts in the transformer -> rewards; unseen users by two hops.

python -m experiments.copl --config=configs/quickstart.py --workdir=runs/quickstart
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from copl_jax import gcf, graph
from copl_jax.adapt import adapt
from copl_jax.gcf import GCFConfig
from experiments import reward_model
from experiments.cli import Config, freeze, launch
from experiments.prepare import prepare
from experiments.stages import Run, load_data, method_folder, runs, say, scored, stage
from experiments.summary import summarise
from pref_jax.files import read_json, write_json

METHOD = "CoPL"


def run(config: Config, workdir: Path) -> None:
    """All stages of CoPL for every seed, then the report."""
    for one in runs(config, workdir):
        prepare(one)
        copl(one)
    summarise(config, workdir)


def copl(run: Run) -> None:
    """Graph, reward model, scores; stages that are done are skipped."""
    data = load_data(run)
    embed_users(run)
    embeddings = np.load(run.folder / "graph" / "users.npy", allow_pickle=False)
    facts = read_json(run.folder / "graph" / "graph.json")

    def score():
        margins, own = reward_model.train_and_score(
            run,
            method_folder(run, METHOD),
            routing="users",
            table=embeddings,
            more=lambda config, params: reward_model.gate_facts(config, params, embeddings, data.seen, data.groups),
        )
        return margins, {**own, "graph": facts}

    scored(run, METHOD, score)


def embed_users(run: Run) -> None:
    """Writes `graph/`: user embeddings of all users (unseen ones by adaptation), responses, history."""
    data = load_data(run)
    config = freeze(GCFConfig, run.config.graph, "graph")

    def make(part: Path) -> None:
        say(f"seed {run.seed}: graph")
        start = time.perf_counter()
        known, context = data.pairs("train", seen=True), data.pairs("train", seen=False)
        signed = graph.build(
            known.user, known.chosen, known.rejected, num_users=data.num_users, num_responses=data.num_responses
        )
        found = gcf.fit(config, signed, known, data.pairs("validation", seen=True), jax.random.key(run.seed))
        unseen = np.flatnonzero(~data.seen)
        adapted = adapt(
            users=found.users, responses=found.responses, seen=data.seen, known=known, context=context, unseen=unseen
        )
        users = found.users.copy()
        users[unseen] = adapted.embeddings
        np.save(part / "users.npy", users)
        np.save(part / "responses.npy", found.responses)
        facts = {
            "validation_accuracy": found.best_accuracy,
            "best_step": found.best_step,
            "history": {name: values.tolist() for name, values in found.history.items()},
            "unseen_without_neighbours": int(adapted.widened.sum()),
            "seconds": time.perf_counter() - start,
            "config": dataclasses.asdict(config),
        }
        write_json(part / "graph.json", facts)

    stage(run.folder / "graph", make)


if __name__ == "__main__":
    launch(run, __doc__ or "")
