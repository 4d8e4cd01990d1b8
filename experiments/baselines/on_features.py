"""Personal baselines on frozen features: choose by held-out votes, train on all, score; on CPU in seconds.

Of each method's candidates the one with the lowest loss on the votes about held-out prompts is trained again on all
votes of the seen users. Unseen users' votes are read for their context alone.
"""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.baselines import personal, settings
from experiments.baselines.heads import Head, Params
from experiments.baselines.personal import States
from experiments.baselines.settings import BaselinesConfig
from experiments.embed import embed, embed_prompts
from experiments.runner.workspace import (
    Run,
    load_data,
    load_features,
    load_prompt_features,
    log,
    method_folder,
    scored,
    stage,
    stopwatch,
    test_pairs,
    votes_by_prompt,
)
from pref_jax.comparisons import Comparisons
from pref_jax.data.loaders.contexts import context_batches
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import prompt_ids
from pref_jax.files import read_json, write_json
from pref_jax.lm import parameter_files
from pref_jax.standardiser import Standardiser, fit_standardiser, standardise
from pref_jax.train.loop import fit
from pref_jax.train.state import OptimizerConfig, init_state, make_step

# Part of the prompts by whose votes candidates are compared.
HELD_OUT = 0.2
METHODS = {f"{name} (features)": name for name in settings.HEADS}


def run_method(run: Run, method: str) -> None:
    """Trains and scores one of `METHODS`, unless that is done; killed and run again, it goes on where it was."""
    folder = method_folder(run, method)
    if (folder / "scores").is_dir():
        return
    embed(run)
    embed_prompts(run)
    data = load_data(run)
    states, _ = load_states(run, data)
    stage(folder / "model", lambda part: _train(run, part, method, folder, data, states))
    scored(run, method, lambda: _score(run, method, folder, data, states))


def load_states(run: Run, data: Preferences) -> tuple[States, Standardiser]:
    """States of all texts from the frozen transformer, standardised by those of the responses that were voted on."""
    votes = data.pairs(("train", "validation"), seen=True)
    found = np.asarray(load_features(run))
    scale = fit_standardiser(found[np.unique(np.concatenate([votes.chosen, votes.rejected]))])
    features, prompts = (standardise(scale, jnp.asarray(x)) for x in (found, np.asarray(load_prompt_features(run))))
    prompt = jnp.asarray(np.unique(prompt_ids(data.responses["prompt"]), return_inverse=True)[1], jnp.int32)
    return States(features, features, prompts, prompt), scale


def frozen_states(states: States, seen: np.ndarray) -> dict[str, Any]:
    """What `personal.batch_loss` reads beside the parameters."""
    own = {"features": states.features, "prompts": states.prompts, "prompt": states.prompt}
    return own | {"number": jnp.asarray(personal.seen_rows(seen))}


def _fit(
    run: Run, head: Head, steps: int, votes: Comparisons, states: States, seen: np.ndarray, folder: Path
) -> Params:
    """One candidate's parameters from these votes, by `pref_jax.train.loop.fit`."""
    config = settings.read(run)
    recipe = OptimizerConfig(
        lr=config.lr, num_steps=steps, weight_decay=config.weight_decay, warmup_fraction=0.05, clip=1.0
    )
    transform = personal.optimizer(recipe, user_lr_mult=config.user_lr_mult)
    sizes = {"context": config.context, "batch_size": config.batch_size, "num_steps": steps}
    params = head.init(jax.random.key(run.seed), states.features.shape[1], int(seen.sum()))
    return fit(
        name=folder.name,
        state=init_state(params, transform, run.seed),
        frozen=frozen_states(states, seen),
        step=make_step(personal.feature_loss(head), transform),
        batches=context_batches(votes, **sizes, seed=run.seed),
        folder=folder,
        checkpoint_every=100,
        consume=True,
    ).params


def _candidates(config: BaselinesConfig, method: str) -> list[tuple[Head, int]]:
    return list(itertools.product(settings.HEADS[METHODS[method]](config), config.steps))


def _train(run: Run, part: Path, method: str, folder: Path, data: Preferences, states: States) -> None:
    """Writes the chosen candidate's parameters and `model.json` to `part`; `folder` gets checkpoints and logs."""
    log(f"seed {run.seed}: {method}, training")
    spent = stopwatch(folder)
    seen = data.seen
    learn, held = votes_by_prompt(run, data, fraction=HELD_OUT)
    candidates = _candidates(settings.read(run), method)
    losses = [0.0]
    if len(candidates) > 1:
        losses = [
            _held_out_loss(run, head, steps, learn, held, states, seen, folder / f"candidate_{number}")
            for number, (head, steps) in enumerate(candidates)
        ]
    best = int(np.argmin(np.nan_to_num(losses, nan=np.inf)))
    head, steps = candidates[best]
    params = _fit(run, head, steps, data.pairs(("train", "validation"), seen=True), states, seen, folder)
    parameter_files.write(part / "adapters", {"model": {"method": method}}, parameter_files.as_tensors(params))
    facts = {
        "chosen": best,
        "candidates": [f"{candidate}, {count} steps" for candidate, count in candidates],
        "held_out_losses": losses if len(candidates) > 1 else None,
        "trainable_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **spent(),
    }
    write_json(part / "model.json", facts)


def _held_out_loss(
    run: Run,
    head: Head,
    steps: int,
    learn: Comparisons,
    held: Comparisons,
    states: States,
    seen: np.ndarray,
    folder: Path,
) -> float:
    """Mean loss on the held-out votes of users who are known by the other votes."""
    params = _fit(run, head, steps, learn, states, seen, folder)
    users = personal.user_representations(
        head, params, states, learn, seen, context=settings.read(run).context, seed=run.seed, unseen=False
    )
    margins = personal.pair_margins(head, params, states, users, held)
    return float(jnp.mean(head.loss(jnp.asarray(margins))))


def _score(run: Run, method: str, folder: Path, data: Preferences, states: States) -> tuple[np.ndarray, dict[str, Any]]:
    """Margins of the test pairs [P], and facts."""
    config = settings.read(run)
    facts = read_json(folder / "model" / "model.json")
    head, _ = _candidates(config, method)[facts["chosen"]]
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), states.features.shape[1], int(data.seen.sum())))
    params = parameter_files.as_tree(parameter_files.read_tensors(folder / "model" / "adapters"), shapes)
    known = data.pairs(("train", "validation"))
    users = personal.user_representations(head, params, states, known, data.seen, context=config.context, seed=run.seed)
    margins = personal.pair_margins(head, params, states, users, test_pairs(data))
    seconds = {"stage_seconds": {"train": facts.pop("seconds")}}
    return margins, {**facts, **seconds, **needs(head, data, config.context)}


def needs(head: Head, data: Preferences, most: int) -> dict[str, Any]:
    """What the head keeps of each user, and how many answers of an unseen one it reads: the mean over them."""
    counts = np.bincount(data.pairs(("train", "validation")).user, minlength=data.num_users)[~data.seen]
    read = float(np.minimum(counts, most).mean()) if len(counts) else "none"
    return {"parameters_per_user": head.kept, "context_pairs": read, "most_context_pairs": most}
