"""Deep LoRe: the transformer is adapted so that users' weights, solved from some of their answers, predict the others.

    python -m experiments.compare --config=configs/deep.py --workdir=runs/deep

Axis letters: P pairs, N responses, U users, K basis.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runner.cli import freeze
from experiments.runner.workspace import Scored, Workspace, log, stage, training
from lore_jax import deep
from lore_jax.deep import DeepConfig
from lore_jax.reward import pair_logits
from pref_jax.data.preferences import Preferences
from pref_jax.eval.controls import REVERSED, SHUFFLED, effective_rank
from pref_jax.files import read_json, write_json
from pref_jax.lm.pair_batches import text_episodes
from pref_jax.mesh import replicated
from pref_jax.train import method as methods
from pref_jax.train.state import optimizer_by_group

METHOD = "deep LoRe"


def deep_lore(work: Workspace, method: str = METHOD) -> None:
    """Trains and scores, unless that is done; killed and run again, it is resumed from its last checkpoint."""
    folder, config = work.method_folder(method), model_of(work)
    stage(folder / "model", lambda part: train(work, config, part, folder))
    work.scored(method, lambda: score(work, config, folder))


def model_of(work: Workspace) -> DeepConfig:
    """The model of the config on the workspace's transformer."""
    own = work.config.deep.model.to_dict()
    return freeze(DeepConfig, {**own, "targets": tuple(own["targets"])}, "deep.model", lm=work.text.config)


def train(work: Workspace, config: DeepConfig, part: Path, folder: Path) -> None:
    """Trains adapters, heads and prior on the seen users' votes.

    Args:
      work: the workspace.
      config: the model.
      part: gets `adapters/`, the model as `lore_jax.deep` writes it, and `model.json` (facts).
      folder: gets checkpoints and logs; a killed training is resumed from there.
    """
    log(f"seed {work.seed}: {METHOD}, training")
    section, texts = work.config.deep, work.texts
    settings = training(section, "deep", batch_size=section.users_per_batch)
    learn, _ = work.votes_by_prompt(0.0)
    sizes = {name: section[name] for name in ("users_per_batch", "pairs_per_user", "splits")}
    shared = texts.shared_length(learn, settings.share_prefix)
    # A reward model's own head is a better beginning than noise.
    head = texts.model.params["score"]["kernel"][:, 0] if config.lm.num_labels == 1 and config.lm.reads_score else None
    steps = {"num_steps": settings.optimizer.num_steps, "seed": work.seed}
    trained = methods.train(
        params=deep.init(config, jax.random.key(work.seed), head),
        frozen={"base": texts.model.params},
        loss=deep.make_loss(config),
        optimizer=optimizer_by_group(settings.optimizer, ("prior",), lr_mult=section.prior_lr_mult),
        batches=text_episodes(learn, texts.tokens, texts.length, shared=shared, **sizes, **steps),
        folder=folder,
        mesh=work.mesh,
        seed=work.seed,
        **settings.loop(),
    )
    deep.save(part / "adapters", config, trained.params)
    write_json(part / "model.json", trained.facts)


def score(work: Workspace, config: DeepConfig, folder: Path) -> Scored:
    """Margins of the test pairs [P] by the model trained in `folder`, facts and controls."""
    params = load_params(work, config, folder)
    rewards = response_rewards(work, config, params)
    data, test = work.data, work.test_pairs

    def margins(weights: jax.Array) -> np.ndarray:
        sides = (jnp.asarray(side) for side in (test.user, test.chosen, test.rejected))
        return np.asarray(pair_logits(rewards, weights, *sides))

    weights, turned = (solve_users(config, params, rewards, data, turned=other) for other in (False, True))
    controls = {SHUFFLED: margins(weights[work.another_user]), REVERSED: margins(turned)}
    facts = read_json(folder / "model" / "model.json")
    prior = deep.prior(params)
    own = {
        "trainable_parameters": facts["trainable_parameters"],
        "parameters_per_user": config.basis,
        "context_pairs": work.context_pairs,
        "stage_seconds": {"train": facts["seconds"]},
        "was_resumed": facts["was_resumed"],
        "prior_mean": np.asarray(prior.mean).tolist(),
        "prior_precision": np.asarray(jnp.diag(prior.precision)).tolist(),
        "effective_rank": effective_rank(np.asarray(weights)[data.seen]),
        "weights_deviation": np.asarray(weights).std(axis=0).tolist(),
    }
    return Scored(margins(weights), own, controls)


def load_params(work: Workspace, config: DeepConfig, folder: Path) -> Any:
    """The parameters that `train` left in `folder`/model, a copy on each device of the mesh."""
    return jax.device_put(deep.load(folder / "model" / "adapters", config.lm)[1], replicated(work.mesh))


def solve_users(
    config: DeepConfig, params: Any, rewards: jax.Array, data: Preferences, *, turned: bool = False
) -> jax.Array:
    """Weights [U K] of all users from all of their pairs but those of the test, in one call for seen and unseen.

    With `turned` each pair is taken for its opposite.
    """
    known = data.pairs(("train", "validation"))
    known = known.reversed() if turned else known
    votes = (jnp.asarray(column) for column in (known.user, known.chosen, known.rejected))
    return _solve(config, data.num_users, params, rewards, *votes).weights


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solve(config: DeepConfig, num_users: int, params, rewards, user, chosen, rejected):
    return deep.user_weights(config, params, rewards, user, chosen, rejected, num_users)


@functools.partial(jax.jit, static_argnums=0)
def _rewards(config: DeepConfig, params, base, tokens, mask):
    return deep.text_rewards(config, params, base, tokens, mask)


def response_rewards(work: Workspace, config: DeepConfig, params: Any) -> jax.Array:
    """Basis rewards float32 [N K] of all responses, each read once."""
    read = functools.partial(_rewards, config, params, work.text.params)
    size = work.config.deep.eval_batch_size
    return jnp.asarray(work.text.read_rows(work.texts.tokens, read, width=config.basis, batch_size=size))
