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
import jax.numpy as jnp
import numpy as np
from absl import flags

from copl_jax.graph.embedding import NewUsers, embed_new_users, embed_users
from copl_jax.graph.solved_users import load_table, save_table
from copl_jax.graph.text_nodes import settle
from copl_jax.io import checkpoint
from copl_jax.reward.linear_experts import LinearExperts, directions, fit_linear
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.training import HeadStart, fit_reward, gate_facts, score_pairs
from experiments.embed import embed as embed_texts
from experiments.prepare import prepare_votes
from experiments.reporting.summary import summarise
from experiments.runner.cli import Config, launch
from experiments.runner.test_labels import load_groups, load_test_labels
from experiments.runner.workspace import Scored, Workspace, log, making, require, stage, workspaces
from pref_jax.comparisons import Comparisons
from pref_jax.data.preferences import Preferences
from pref_jax.errors import UserError
from pref_jax.eval.controls import REVERSED, SHUFFLED, effective_rank
from pref_jax.files import read_json, write_json
from pref_jax.graded import read_scale
from pref_jax.lm.pair_batches import Texts
from pref_jax.mesh import replicated
from pref_jax.standardiser import fit_standardiser, standardise

METHOD, ORACLE, ON_FEATURES = "CoPL", "group oracle", "CoPL (features)"
# Stages that other methods share, and the files that say what they took.
STAGE_FACTS = {"graph": "graph/graph.json", "adapt": "adapted/adapted.json"}
# Methods that differ from it by `reward.gate.balance` alone.
BALANCED = {"CoPL (balancing loss)": "loss", "CoPL (balancing bias)": "bias"}


def run(config: Config, workdir: Path, stage: str = "all") -> None:
    """One stage of CoPL or all of them, for every seed; then, if scores are made, the report."""
    if stage not in ("all", *STAGES):
        raise UserError(f"--stage={stage}: no such stage; give all, {', '.join(STAGES)}")
    for work in workspaces(config, workdir):
        prepare_votes(work)
        for name in STAGES if stage == "all" else (stage,):
            STAGES[name](work)
    if stage in ("all", "report"):
        summarise(config, workdir)


def copl(work: Workspace, method: str = METHOD) -> None:
    """All stages of one seed up to the scores; those that are done are skipped."""
    for make in STAGES.values():
        make(work)


def balanced(work: Workspace, method: str) -> None:
    """`copl` on the same graph with experts balanced as `BALANCED` says, as a method of its own."""
    embed(work)
    adapt(work)
    changed: Config = copy.deepcopy(work.config)
    changed.reward.gate.balance = BALANCED[method]
    work = dataclasses.replace(work, config=changed)
    train(work, method)
    score(work, method)


def embed(work: Workspace) -> None:
    """Writes `graph/`: embeddings of the seen users and of all responses, and history.

    With `refresh_seen` the seen users' are made from their own votes; graph.json has the validation accuracy of both.
    """

    def make(part: Path) -> None:
        log(f"seed {work.seed}: graph")
        found = embed_users(
            work.graph,
            work.graph_pairs(),
            work.graph_pairs("validation"),
            seen=work.data.seen,
            num_responses=work.data.num_responses,
            seed=work.seed,
            folder=work.folder / "graph_training",
            mesh=work.mesh,
            reembed=work.config.refresh_seen,
            features=lambda: work.features,
        )
        np.save(part / "users.npy", found.users[work.data.seen])
        np.save(part / "responses.npy", found.responses)
        if found.table is not None:
            save_table(part, found.table)
        write_json(part / "graph.json", found.facts)

    if settle(work.graph, work.graph_pairs(), texts=True).nodes != "table":
        embed_texts(work)
    stage(work.folder / "graph", make)


def train(work: Workspace, method: str = METHOD) -> None:
    """Writes `METHOD/model/`: gates, experts and head, trained on the seen users' votes."""
    table = work.users(adapted=False)
    fit_and_keep(work, method, table)


def fit_and_keep(work: Workspace, method: str, table: np.ndarray) -> None:
    """Trains a reward model for the users' table into `METHOD/model/`, unless that is done.

    Its learning votes are those of seen users, but for the part of the prompts that is held out. A table of group
    numbers in place of embeddings gives each group an expert: the oracle.
    """
    folder, settings, texts = work.method_folder(method), work.reward, work.texts
    if settings.head is not None:
        embed_texts(work)
    learn, _ = work.votes_by_prompt(work.config.reward.holdout_fraction, ties=settings.training.ties)
    start = None
    if settings.head is not None:
        start = HeadStart(settings.head, lambda: work.features, *_learned_and_not(work))
    groups = 0 if table.ndim > 1 else int(table.max()) + 1
    with making(folder / "model") as part:
        if part is not None:
            log(f"seed {work.seed}: {method}, training")
            config = settings.model(texts.model.config, num_groups=groups)
            trained = fit_reward(
                config,
                texts,
                learn,
                table,
                settings.training,
                folder=folder,
                seed=work.seed,
                start=start,
            )
            checkpoint.save(part / "adapters", config, trained.params, table)
            write_json(part / "model.json", trained.facts)


def adapt(work: Workspace) -> None:
    """Writes `adapted/`: embeddings of the unseen users, in the order of their rows, from their own votes."""

    def make(part: Path) -> None:
        log(f"seed {work.seed}: unseen users")
        start = time.perf_counter()
        found = embed_unseen(work, work.data.pairs("train", seen=False, ties=work.graph.ties))
        np.save(part / "users.npy", found.users)
        facts = {"without_votes": int(found.no_votes.sum()), "seconds": time.perf_counter() - start}
        if found.neighbours is not None:
            facts |= {"without_neighbours": int((found.neighbours == 0).sum())}
            facts |= {"neighbours": found.neighbours.tolist()}
        write_json(part / "adapted.json", facts)

    stage(work.folder / "adapted", make)


def embed_unseen(work: Workspace, context: Comparisons) -> NewUsers:
    """The unseen users, in the order of their rows, from these votes of theirs."""
    data, folder = work.data, work.folder / "graph"
    return embed_new_users(
        users=work.users(adapted=False),
        responses=work.responses,
        table=load_table(folder),
        seen=data.seen,
        train_pairs=data.pairs("train", seen=True),
        context=context,
        unseen=np.flatnonzero(~data.seen),
        scale=read_scale(read_json(folder / "graph.json").get("scale")),
    )


def controls(
    work: Workspace, users: np.ndarray, margins: Callable[[np.ndarray, Comparisons], np.ndarray]
) -> dict[str, np.ndarray]:
    """The test pairs by another user's embedding, and of unseen users by that of their votes turned round.

    Args:
      work: the workspace.
      users: embeddings of all users [U C].
      margins: (embeddings of all users, pairs) -> margins of these pairs.
    """
    data, pairs = work.data, work.test_pairs
    turned, late = users.copy(), ~data.seen[pairs.user]
    found = np.full(len(pairs.user), np.nan, np.float32)
    if late.any():
        context = data.pairs("train", seen=False, ties=work.graph.ties).reversed()
        turned[~data.seen] = embed_unseen(work, context).users
        found[late] = margins(turned, pairs.take(late))
    return {SHUFFLED: margins(users[work.another_user], pairs), REVERSED: found}


def latent_facts(work: Workspace, users: np.ndarray) -> dict[str, float]:
    """In how many directions the seen users' embeddings differ."""
    return {"effective_rank": effective_rank(users[work.data.seen])}


def score(work: Workspace, method: str = METHOD) -> None:
    """Writes `METHOD/scores/`: margins of the test pairs of seen and unseen users."""
    users = work.users()
    files = {name: work.folder / file for name, file in STAGE_FACTS.items()}
    files["reward"] = require(work.method_folder(method) / "model", "copl --stage=reward") / "model.json"
    facts = {name: read_json(file) for name, file in files.items()}
    seconds = {name: own["seconds"] for name, own in facts.items()}

    def make() -> Scored:
        config, params, margins, own = evaluate(work, method, users)
        own |= {"was_resumed": any(part.get("was_resumed", False) for part in facts.values())}
        own |= {"parameters_per_user": users.shape[1], "context_pairs": work.context_pairs}
        own |= gate_facts(config, params, users, work.data.seen, load_groups(work, "report on experts"))
        size = work.reward.training.eval_batch_size

        def read(table: np.ndarray, pairs: Comparisons) -> np.ndarray:
            return score_pairs(config, params, work.texts, pairs, table, batch_size=size)

        told = {**own, "graph": facts["graph"], "stage_seconds": seconds}
        return Scored(margins, told | latent_facts(work, users), controls(work, users, read))

    work.scored(method, make)


def evaluate(work: Workspace, method: str, table: np.ndarray) -> tuple[RewardConfig, Any, np.ndarray, dict[str, Any]]:
    """The model trained in `METHOD/model`, its parameters, its margins of the test pairs [P], and facts.

    The margins of the held-out votes go to `held_out.npy`, for a choice between trained models.
    """
    folder = work.method_folder(method)
    config, params = load_model(work, method)
    _, held_out = work.votes_by_prompt(work.config.reward.holdout_fraction)
    size = work.reward.training.eval_batch_size
    margins, chosen_by = (
        score_pairs(config, params, work.texts, pairs, table, batch_size=size) for pairs in (work.test_pairs, held_out)
    )
    np.save(folder / "held_out.npy", chosen_by)
    trained = read_json(folder / "model" / "model.json")
    facts = {name: trained[name] for name in ("trainable_parameters", "was_resumed", "scale") if name in trained}
    return config, params, margins, {**facts, "truncated_responses": work.texts.tokens.truncated}


def load_model(work: Workspace, method: str) -> tuple[RewardConfig, Any]:
    """The model that `fit_and_keep` left, its parameters on each device of the mesh."""
    found = checkpoint.load(work.method_folder(method) / "model" / "adapters", work.text.config)
    return found.config, jax.device_put(found.params, replicated(work.mesh))


def on_features(work: Workspace, method: str = ON_FEATURES) -> None:
    """The same graph gating linear experts on frozen features, in place of those of the transformer."""
    embed(work)
    adapt(work)
    embed_texts(work)
    folder, users = work.method_folder(method), work.users()
    config = work.reward.head or LinearExperts()

    def make() -> Scored:
        train, validation = _learned_and_not(work)
        rows = np.unique(np.concatenate([train.chosen, train.rejected]))
        features = np.asarray(work.features)
        features = np.asarray(standardise(fit_standardiser(features[rows]), jnp.asarray(features)))
        trained = fit_linear(config, features, users, train, validation, folder=folder, seed=work.seed)

        def margins(table: np.ndarray, pairs: Comparisons) -> np.ndarray:
            own = np.asarray(directions(config, trained.params, jnp.asarray(table)))
            return np.sum(own[pairs.user] * (features[pairs.chosen] - features[pairs.rejected]), axis=1)

        told = {"parameters_per_user": users.shape[1], "context_pairs": work.context_pairs, **latent_facts(work, users)}
        spent = {name: read_json(work.folder / file)["seconds"] for name, file in STAGE_FACTS.items()}
        facts = {**trained.facts, **told, "stage_seconds": spent}
        return Scored(margins(users, work.test_pairs), facts, controls(work, users, margins))

    work.scored(method, make)


def _learned_and_not(work: Workspace) -> tuple[Comparisons, Comparisons]:
    """The seen users' votes to learn linear experts from, and those to choose their priors by.

    The graph must not know the latter, as user embeddings would tell their answers: they are what reward models are
    chosen by, on prompts as new as those of the test; where nothing is held out, what the graph is not made of.
    """
    fraction = work.config.reward.holdout_fraction
    learn, held = work.votes_by_prompt(fraction)
    if fraction > 0:
        return learn, held
    known = np.isin(learn.row, work.graph_pairs().row)
    return learn.take(known), learn.take(~known)


def group_numbers(work: Workspace, reader: str) -> np.ndarray | None:
    """int32 [U] number of each user's group in alphabetical order; None unless every user has one."""
    groups = load_groups(work, reader)
    if not groups or any(name is None for name in groups):
        return None
    return np.unique(np.array(groups, str), return_inverse=True)[1].astype(np.int32)


def oracle(work: Workspace, method: str = ORACLE) -> None:
    """The same transformer told every user's true group, an expert for each: what CoPL could reach at best.

    Nothing is done if it has scores already, or the data has no groups.
    """
    groups = group_numbers(work, ORACLE)
    if groups is None:
        return

    def make() -> tuple[np.ndarray, dict[str, Any]]:
        earlier = (work.method_folder(ORACLE) / "model").is_dir()
        fit_and_keep(work, ORACLE, groups)
        margins, facts = evaluate(work, ORACLE, groups)[2:]
        trained = read_json(work.method_folder(ORACLE) / "model" / "model.json")
        # `scored` counts what is done here; what a process before this one did is told to it.
        spent = {"stage_seconds": {"train": trained["seconds"]}} if earlier else {}
        return margins, {**facts, "parameters_per_user": 0, "context_pairs": 0, **spent}

    work.scored(ORACLE, make)


STAGES: dict[str, Callable[[Workspace], None]] = {"graph": embed, "reward": train, "adapt": adapt, "report": score}


class Finished(NamedTuple):
    """A finished run of CoPL, as `load` gives it.

    Attributes:
      data: its tables, with groups and test answers.
      texts: the frozen transformer and all responses.
      config: the reward model.
      params: its trained parameters.
      users: float [U C], embeddings of all users, seen and unseen.
      responses: float [N C], the graph's embeddings of all responses.
    """

    data: Preferences
    texts: Texts
    config: RewardConfig
    params: Any
    users: np.ndarray
    responses: np.ndarray


def load(work: Workspace) -> Finished:
    """Everything that rewards of a finished run are computed from.

    Raises:
      UserError: if a stage is missing, naming the command that makes it.
    """
    data = load_test_labels(work, "a reader of the finished run")
    users, responses = work.users(), work.responses
    require(work.method_folder(METHOD) / "model", "copl --stage=reward")
    return Finished(data, work.texts, *load_model(work, METHOD), users, responses)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_enum("stage", "all", ["all", *STAGES], "which stage to run", flag_values=values)


if __name__ == "__main__":
    launch(run, __doc__ or "", define=_define)
