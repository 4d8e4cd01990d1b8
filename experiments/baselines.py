"""The baselines of one seed: trained and scored once, each from the workspace's data by its function in the packages.

Killed and run again, each is resumed.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import copl
from experiments.embed import embed, embed_prompts
from experiments.linear import NO_CHOICE
from experiments.methods import SHARED
from experiments.runner.test_labels import load_test_labels, test_signs
from experiments.runner.workspace import Scored, Workspace, log, stage
from pref_jax.baselines import head_training, on_features, on_transformer, p_rlhf
from pref_jax.baselines import shared as shared_reward
from pref_jax.baselines.head_training import HEADS, States
from pref_jax.baselines.heads import Head
from pref_jax.comparisons import Comparisons
from pref_jax.data.checks import formatting
from pref_jax.data.checks.majority import majority_margins
from pref_jax.data.schema import prompt_ids
from pref_jax.errors import UserError
from pref_jax.eval.controls import REVERSED, SHUFFLED, active_units, effective_rank
from pref_jax.files import read_json, write_json
from pref_jax.lm import parameter_files
from pref_jax.lm.pair_batches import pair_margins
from pref_jax.mesh import replicated
from pref_jax.standardiser import Standardiser, standardise

# Part of the prompts by whose votes heads on features are compared.
HELD_OUT = 0.2
GRID = np.linspace(0, 1, 21)


def _keep(part: Path, method: str, params: Any, facts: dict[str, Any]) -> None:
    parameter_files.write(part / "adapters", {"model": {"method": method}}, parameter_files.as_tensors(params))
    write_json(part / "model.json", facts)


def _load(work: Workspace, method: str, like: Any) -> tuple[Any, dict[str, Any]]:
    """What `_keep` left: parameters in the tree of `like`, and facts of the training."""
    folder = work.method_folder(method) / "model"
    tensors = parameter_files.read_tensors(folder / "adapters")
    parameter_files.check(tensors, parameter_files.kinds(like), where=str(folder / "adapters"))
    facts = read_json(folder / "model.json")
    own = {"stage_seconds": {"train": facts.pop("seconds")}}
    return parameter_files.as_tree(tensors, like), {**facts, **own}


def load_shared(work: Workspace, method: str = SHARED) -> tuple[Any, dict[str, Any]]:
    """Parameters of the shared reward that was trained in `METHOD/model`, and facts of the training."""
    return _load(work, method, jax.eval_shape(lambda: shared_reward.init(work.shared, jax.random.key(0))))


def shared(work: Workspace, method: str = SHARED) -> None:
    """One reward for all users, on the adapted transformer."""
    folder, config, settings = work.method_folder(method), work.shared, work.reward.training
    earlier = (folder / "model").is_dir()

    def train(part: Path) -> None:
        learn, _ = work.votes_by_prompt(work.config.reward.holdout_fraction, ties=settings.ties)
        trained = shared_reward.fit_shared(config, work.texts, learn, settings, folder=folder, seed=work.seed)
        _keep(part, method, *trained)

    def score() -> tuple[np.ndarray, dict[str, Any]]:
        stage(folder / "model", train)
        params, facts = load_shared(work, method)
        params = jax.device_put(params, replicated(work.mesh))

        def read(tokens, mask):
            return shared_reward.rewards(config, params, work.text.params, tokens, mask)

        _, held_out = work.votes_by_prompt(work.config.reward.holdout_fraction)
        size = settings.eval_batch_size
        margins, chosen_by = (
            pair_margins(work.texts, pairs, read, batch_size=size) for pairs in (work.test_pairs, held_out)
        )
        np.save(folder / "held_out.npy", chosen_by)
        if not earlier:
            # `scored` counts what is done here; what a process before this one did is told to it.
            del facts["stage_seconds"]
        facts |= {"truncated_responses": work.texts.tokens.truncated, "parameters_per_user": 0, "context_pairs": 0}
        return margins, facts

    work.scored(method, score)


def _states(work: Workspace) -> tuple[States, Standardiser]:
    embed(work)
    embed_prompts(work)
    votes = work.data.pairs(("train", "validation"), seen=True)
    prompts = work.data.responses["prompt"]
    return on_features.open_states(np.asarray(work.features), np.asarray(work.prompt_features), prompts, votes)


def _score_head(work: Workspace, head: Head, params: Any, states: States) -> Scored:
    """Margins of the test pairs [P], what the head keeps of a user and reads of an unseen one, and controls."""
    data, known, pairs, context = work.data, work.answers, work.test_pairs, work.baselines.context
    told: dict[str, Any] = {"context": context, "seed": work.seed}

    def represent(votes: Comparisons) -> Any:
        return head_training.user_representations(head, params, states, votes, data.seen, **told)

    def margins(users: Any) -> np.ndarray:
        return head_training.pair_margins(head, params, states, users, pairs)

    users = represent(known)
    # What a head with a table keeps of seen users does not turn with their votes.
    fixed = data.seen[pairs.user] & head.has_table
    controls = {
        SHUFFLED: margins(jax.tree.map(lambda leaf: leaf[work.another_user], users)),
        REVERSED: np.where(fixed, np.nan, margins(represent(known.reversed()))),
    }
    counts = np.bincount(known.user, minlength=data.num_users)[~data.seen]
    read = float(np.minimum(counts, context).mean()) if len(counts) else "none"
    facts = {"parameters_per_user": head.kept, "context_pairs": read, "most_context_pairs": context}
    if isinstance(users, jax.Array) and users.ndim == 2:
        seen = np.asarray(users)[data.seen]
        facts |= {"effective_rank": effective_rank(seen)}
        facts |= {"active_units": active_units(seen)} if head.has_latent else {}
    return Scored(margins(users), facts, controls)


def head_on_features(work: Workspace, method: str) -> None:
    """A personal head on frozen features, chosen among its candidates by held-out votes."""
    folder, name = work.method_folder(method), method.removesuffix(" (features)")
    if (folder / "scores").is_dir():
        return
    data, (states, _) = work.data, _states(work)
    votes = data.pairs(("train", "validation"), seen=True)
    task = on_features.Task(states, votes, work.held_out(votes, HELD_OUT), data.seen, work.seed)

    def train(part: Path) -> None:
        log(f"seed {work.seed}: {method}, training")
        found = on_features.choose_and_fit(name, work.baselines, task, folder=folder)
        _keep(part, method, found.params, found.facts)

    def score() -> Scored:
        chosen = read_json(folder / "model" / "model.json")["chosen"]
        head, _ = on_features.candidates(work.baselines, name)[chosen]
        shapes = (states.features.shape[1], int(data.seen.sum()))
        params, facts = _load(work, method, jax.eval_shape(lambda: head.init(jax.random.key(0), *shapes)))
        found = _score_head(work, head, params, states)
        return found._replace(facts={**facts, **found.facts})

    stage(folder / "model", train)
    work.scored(method, score)


def head_on_transformer(work: Workspace, method: str) -> None:
    """A personal head on the adapted transformer, by the first of its candidates: nothing is held out to choose by."""
    folder, model = work.method_folder(method), work.shared
    if (folder / "scores").is_dir():
        return
    head, (states, scale) = HEADS[method](work.baselines)[0], _states(work)
    params, frozen = on_transformer.begin_head(head, model, work.texts, states, scale, work.data.seen, work.seed)
    loss = on_transformer.make_loss(model, head)

    def score() -> Scored:
        found, facts = _load(work, method, jax.eval_shape(lambda: params))
        adapters = jax.device_put(found["adapters"], replicated(work.mesh))
        size = work.reward.training.eval_batch_size
        rated = on_transformer.tuned_states(model, adapters, work.texts, batch_size=size)
        tuned = states._replace(rated=standardise(scale, jnp.asarray(rated)))
        scores = _score_head(work, head, found["personal"], tuned)
        return scores._replace(facts={**facts, **scores.facts, "head": str(head)})

    stage(folder / "model", lambda part: _fit_users(work, part, method, params, frozen, loss))
    work.scored(method, score)


def _fit_users(work: Workspace, part: Path, method: str, params: Any, frozen: Any, loss: Any) -> None:
    log(f"seed {work.seed}: {method}, training")
    learn, _ = work.votes_by_prompt(work.config.reward.holdout_fraction)
    settings = (work.reward.training, work.baselines)
    folder = work.method_folder(method)
    trained = on_transformer.fit_users(
        params, frozen, loss, work.texts, learn, *settings, folder=folder, seed=work.seed
    )
    _keep(part, method, *trained)


def soft_prompts(work: Workspace, method: str) -> None:
    """P-RLHF."""
    folder, model, data, config = work.method_folder(method), work.shared, work.data, work.baselines
    if (folder / "scores").is_dir():
        return
    base, sizes = work.text.params, {"soft_tokens": config.soft_tokens, "num_users": int(data.seen.sum())}
    params = p_rlhf.init(model, base, jax.random.key(work.seed), **sizes)
    frozen = {"base": base, "number": jnp.asarray(head_training.seen_rows(data.seen))}
    loss = p_rlhf.make_loss(model, config.generic_share)

    def score() -> tuple[np.ndarray, dict[str, Any]]:
        found, facts = _load(work, method, jax.eval_shape(lambda: params))
        found, size = jax.device_put(found, replicated(work.mesh)), work.reward.training.eval_batch_size
        margins = p_rlhf.score_pairs(model, found, work.texts, work.test_pairs, data.seen, batch_size=size)
        return margins, {**facts, "parameters_per_user": params["table"].shape[1], "context_pairs": "none"}

    stage(folder / "model", lambda part: _fit_users(work, part, method, params, frozen, loss))
    work.scored(method, score)


def formatting_only(work: Workspace, method: str) -> None:
    """The look of the texts alone. Where it is far above chance, the answers can be told by their format."""

    def score() -> tuple[np.ndarray, dict[str, Any]]:
        data = work.data
        table = formatting.features(data.responses["text"].to_pylist())

        def differences(pairs: Comparisons) -> np.ndarray:
            return table[pairs.chosen] - table[pairs.rejected]

        known = data.pairs(("train", "validation"), seen=True)
        prompt = prompt_ids(data.responses["prompt"])[known.chosen]
        facts: dict[str, Any] = {"parameters_per_user": 0, "context_pairs": 0}
        if len(np.unique(prompt)) > 1:
            found = formatting.fit(differences(known), prompt, seed=work.seed)
            weights = found.weights
            facts |= {"ridge": found.strength, "accuracy_on_held_out_prompts": found.accuracy}
        else:
            weights = formatting.fit_unjudged(differences(known))
            facts["fallback"] = "there is one prompt, so none is held out to choose by: the strongest ridge"
        return differences(work.test_pairs) @ weights, facts

    work.scored(method, score)


def majority(work: Workspace, method: str) -> None:
    """The majority of the other raters of the same pair; ties and pairs of one rater count half."""

    def score() -> tuple[np.ndarray, dict[str, Any]]:
        truth = load_test_labels(work, method)
        margins = majority_margins(truth, truth.pairs("test")) * test_signs(work, truth)
        return margins, {"parameters_per_user": 0, "context_pairs": 0}

    work.scored(method, score)


def best_mixture(base: np.ndarray, personal: np.ndarray) -> tuple[float, list[float]]:
    """The share in `GRID` with the lowest mean -log sigmoid of the mixed margins [P], and the losses of all.

    Of no margins the share is 0, the base alone, and there are no losses.
    """
    if not len(base):
        return 0.0, []
    losses = [float(np.logaddexp(0, -((1 - share) * base + share * personal)).mean()) for share in GRID]
    return float(GRID[int(np.argmin(losses))]), losses


def shrunk(work: Workspace, method: str) -> None:
    """CoPL shrunk towards the shared reward:  margin = (1 - lambda) shared + lambda CoPL.

    With weak personal signal a personal model overfits. Both margins are Bradley-Terry logits, so the mixture is one
    too; lambda minimises the log-loss of the held-out votes, which CoPL's graph does not know either
    (`Workspace.graph_pairs`).
    """
    if not work.config.reward.holdout_fraction > 0:
        fix = "set --config.reward.holdout_fraction above 0, such as 0.2"
        raise UserError(f"{method} chooses on held-out prompts; {fix}")
    shared(work)
    copl.copl(work)

    def score() -> tuple[np.ndarray, dict[str, Any]]:
        names = (SHARED, copl.METHOD)
        held = [np.load(work.method_folder(name) / "held_out.npy", allow_pickle=False) for name in names]
        share, losses = best_mixture(*held)
        (base, before), (personal, facts) = (work.scores(name) for name in names)
        own = {name: facts[name] for name in ("parameters_per_user", "context_pairs")}
        own |= {"stage_seconds": {"shared": before["seconds"], "personal": facts["seconds"]}}
        if not losses:
            log(f"seed {work.seed}: {method}: {NO_CHOICE}: the shared reward")
            own["fallback"] = f"{NO_CHOICE}: it is the shared reward"
        return (1 - share) * base + share * personal, {**own, "share_of_copl": share, "grid_losses": losses}

    work.scored(method, score)
