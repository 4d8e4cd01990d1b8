"""Deep LoRe: the transformer is adapted so that users' weights, solved from some of their answers, predict the others.

    python -m experiments.compare --config=configs/deep.py --workdir=runs/deep

Axis letters: P pairs, N responses, U users, K basis.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.backbones import load_backbone, load_tokens, read_each
from experiments.runner.cli import freeze
from experiments.runner.workspace import (
    Run,
    context_pairs,
    load_data,
    log,
    method_folder,
    scored,
    stage,
    stopwatch,
    test_pairs,
    votes_by_prompt,
)
from lore_jax import deep
from lore_jax.deep import DeepConfig
from lore_jax.reward import pair_logits
from pref_jax.data.preferences import Preferences
from pref_jax.data.text.token_table import TokenTable
from pref_jax.files import read_json, write_json
from pref_jax.lm.pair_batches import rounded, shared_length, text_episodes
from pref_jax.mesh import make_mesh, replicated
from pref_jax.train.loop import fit
from pref_jax.train.state import OptimizerConfig, init_state, make_step

METHOD = "deep LoRe"


class Opened(NamedTuple):
    """What training and scoring both read: the model, the frozen transformer on the mesh, all texts."""

    config: DeepConfig
    base: Any
    tokens: TokenTable
    mesh: Mesh


def deep_lore(run: Run) -> None:
    """Trains and scores, unless that is done; killed and run again, it goes on from its last checkpoint."""
    folder = method_folder(run, METHOD)
    stage(folder / "model", lambda part: train(run, part, open_model(run), folder))
    scored(run, METHOD, lambda: score(run, open_model(run), folder))


def open_model(run: Run) -> Opened:
    """Loads transformer and texts for the model of the config."""
    mesh = make_mesh(**run.config.mesh.to_dict())
    lm, base = load_backbone(run, mesh)
    own = run.config.deep.model.to_dict()
    config = freeze(DeepConfig, {**own, "targets": tuple(own["targets"])}, "deep.model", lm=lm)
    return Opened(config, base, load_tokens(run, load_data(run)), mesh)


def train(run: Run, part: Path, model: Opened, folder: Path) -> None:
    """Trains adapters, heads and prior on the seen users' answers.

    Args:
      run: the run.
      part: gets `adapters/`, the model as `lore_jax.deep` writes it, and `model.json` (facts).
      model: what to train.
      folder: gets checkpoints and logs; a killed training goes on from there.
    """
    log(f"seed {run.seed}: {METHOD}, training")
    spent = stopwatch(folder)
    section, config, mesh = run.config.deep, model.config, model.mesh
    learn, _ = votes_by_prompt(run, load_data(run), fraction=0.0)
    longest = rounded(int(model.tokens.lengths.max(initial=1)), config.lm)
    shared = shared_length(config.lm, learn, model.tokens, longest) if section.share_prefix else None
    recipe = freeze(OptimizerConfig, section.optimizer, "deep.optimizer")
    transform = deep.optimizer(recipe, prior_lr_mult=section.prior_lr_mult)
    sizes = {name: section[name] for name in ("users_per_batch", "pairs_per_user", "splits")}
    # A reward model's own head is a better beginning than noise.
    head = model.base["score"]["kernel"][:, 0] if config.lm.num_labels == 1 else None
    params = jax.device_put(deep.init(config, jax.random.key(run.seed), head), replicated(mesh))
    state = fit(
        name=folder.name,
        state=init_state(params, transform, run.seed),
        frozen={"base": model.base},
        step=make_step(deep.make_loss(config), transform, accumulate=section.accumulate),
        batches=text_episodes(
            learn, model.tokens, longest, shared=shared, **sizes, num_steps=recipe.num_steps, seed=run.seed
        ),
        folder=folder,
        mesh=mesh,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        consume=True,
    )
    deep.save(part / "adapters", config, state.params)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    facts = {"trainable_parameters": size, **spent()}
    write_json(part / "model.json", facts)


def score(run: Run, model: Opened, folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Margins of the test pairs [P] by the model trained in `folder`, and facts."""
    params = load_params(folder, model)
    rewards = response_rewards(model, params, batch_size=run.config.deep.eval_batch_size)
    data, test = load_data(run), test_pairs(load_data(run))
    weights = solve_users(model.config, params, rewards, data)
    margins = pair_logits(rewards, weights, *(jnp.asarray(side) for side in (test.user, test.chosen, test.rejected)))
    facts = read_json(folder / "model" / "model.json")
    prior = deep.prior(params)
    own = {
        "trainable_parameters": facts["trainable_parameters"],
        "parameters_per_user": model.config.basis,
        "context_pairs": context_pairs(data),
        "stage_seconds": {"train": facts["seconds"]},
        "taken_up": facts.get("taken_up", False),
        "prior_mean": np.asarray(prior.mean).tolist(),
        "prior_precision": np.asarray(jnp.diag(prior.precision)).tolist(),
        "weights_deviation": np.asarray(weights).std(axis=0).tolist(),
    }
    return np.asarray(margins), own


def load_params(folder: Path, model: Opened) -> Any:
    """The parameters that `train` left in `folder`/model, a copy on each device of the mesh."""
    return jax.device_put(deep.load(folder / "model" / "adapters", model.config.lm)[1], replicated(model.mesh))


def solve_users(config: DeepConfig, params: Any, rewards: jax.Array, data: Preferences) -> jax.Array:
    """Weights [U K] of all users from all of their pairs but those of the test, in one call for seen and unseen."""
    known = data.pairs(("train", "validation"))
    votes = (jnp.asarray(column) for column in (known.user, known.chosen, known.rejected))
    return _solve(config, data.num_users, params, rewards, *votes).weights


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solve(config: DeepConfig, num_users: int, params, rewards, user, chosen, rejected):
    return deep.user_weights(config, params, rewards, user, chosen, rejected, num_users)


@functools.partial(jax.jit, static_argnums=0)
def _rewards(config: DeepConfig, params, base, tokens, mask):
    return deep.text_rewards(config, params, base, tokens, mask)


def response_rewards(model: Opened, params: Any, *, batch_size: int) -> jax.Array:
    """Basis rewards float32 [N K] of all responses, each read once, `batch_size` rows at a time over all devices."""

    def read(ids, mask):
        return _rewards(model.config, params, model.base, ids, mask)

    limit, basis = model.config.lm.max_positions, model.config.basis
    return jnp.asarray(read_each(model.tokens, basis, read, model.mesh, batch_size=batch_size, limit=limit))
