"""Personal baselines on the adapted transformer: the shared reward's adapters, batches and steps, a head that knows
users in place of its linear one.

The head rates the tuned pooled state; contexts are encoded from the frozen transformer's features, as in VPL's code, so
that a step reads no more texts than the shared reward does.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from copl_jax.reward import lora_experts
from copl_jax.reward.reward_model import RewardConfig
from experiments import reward_model
from experiments.backbones import read_each
from experiments.baselines import on_features, personal, settings
from experiments.baselines.heads import Head
from experiments.embed import embed, embed_prompts
from experiments.reward_model import Opened
from experiments.runner.cli import freeze
from experiments.runner.workspace import (
    Run,
    load_data,
    log,
    method_folder,
    scored,
    stage,
    stopwatch,
    test_pairs,
    votes_by_prompt,
)
from pref_jax.data.loaders.contexts import context_batches
from pref_jax.files import read_json, write_json
from pref_jax.lm import backbone, parameter_files
from pref_jax.lm.pair_batches import shared_length, with_texts
from pref_jax.lm.pairs import pair_states
from pref_jax.mesh import replicated
from pref_jax.standardiser import standardise
from pref_jax.train.loop import fit
from pref_jax.train.state import LossFn, OptimizerConfig, init_state, make_step

METHODS = tuple(settings.HEADS)


def run_method(run: Run, method: str) -> None:
    """Trains and scores one of `METHODS`, unless that is done; killed and run again, it goes on where it was."""
    folder = method_folder(run, method)
    if (folder / "scores").is_dir():
        return
    embed(run)
    embed_prompts(run)
    model = open_model(run)
    data = load_data(run)
    head = _head(run, method)
    states, scale = on_features.load_states(run, data)
    frozen = {**on_features.frozen_states(states, data.seen), "scale": scale, "base": model.base}
    params = {
        "experts": fresh_adapters(model, run.seed),
        "personal": head.init(jax.random.key(run.seed), states.features.shape[1], int(data.seen.sum())),
    }
    loss = make_loss(model.config, head)
    stage(folder / "model", lambda part: train(run, part, model, folder, params, frozen, loss))
    scored(run, method, lambda: _score(run, model, head, folder, params))


def open_model(run: Run) -> Opened:
    """The shared reward's transformer and texts."""
    return reward_model.open_model(run, routing="none", num_experts=0)


def fresh_adapters(model: Opened, seed: int) -> Any:
    """The shared reward's adapters before training."""
    lm = model.config.lm
    return lora_experts.init(model.config.mixture, jax.random.key(seed), backbone.linear_shapes(lm), lm.num_layers)


def _head(run: Run, method: str) -> Head:
    """The method's head by the first of each of the config's choices: here nothing is held out to choose by."""
    return settings.HEADS[method](settings.read(run))[0]


def make_loss(config: RewardConfig, head: Head) -> LossFn:
    """`personal.batch_loss` on the tuned states, for `pref_jax.train`."""

    def loss(params, frozen, batch, key):
        noise, dropout = jax.random.split(key)
        adapters = lora_experts.make_adapters(params["experts"], None, dropout)
        applied = lora_experts.adapter_fn(config.mixture)
        states = pair_states(config.lm, frozen["base"], batch, adapters, applied, remat=config.remat)
        h = standardise(frozen["scale"], states.reshape(-1, states.shape[-1])).reshape(states.shape)
        return personal.batch_loss(head, params["personal"], frozen, batch, h, noise)

    return loss


def train(run: Run, part: Path, model: Opened, folder: Path, params: Any, frozen: Any, loss: LossFn) -> None:
    """Trains with the shared reward's batches, steps and optimizer; rows of "table" learn faster.

    Args:
      run: the run.
      part: gets `adapters/`, the trained parameters, and `model.json` (facts).
      model: transformer and texts.
      folder: gets checkpoints and logs; a killed training goes on from there.
      params: where to begin.
      frozen: what the loss reads beside them.
      loss: of batches as from `context_batches` with texts, and "row", the chosen responses.
    """
    log(f"seed {run.seed}: {folder.name}, training")
    spent = stopwatch(folder)
    section, config = run.config.reward, settings.read(run)
    learn, _ = votes_by_prompt(run, load_data(run), fraction=section.holdout_fraction)
    recipe = freeze(OptimizerConfig, section.optimizer, "reward.optimizer")
    transform = personal.optimizer(recipe, user_lr_mult=config.user_lr_mult)
    shared = shared_length(model.config.lm, learn, model.tokens, model.length) if section.share_prefix else None
    sizes = {"context": config.context, "batch_size": section.batch_size, "num_steps": recipe.num_steps}
    batches = context_batches(learn, **sizes, seed=run.seed).map(lambda batch: {**batch, "row": batch["chosen"]})
    state = fit(
        name=folder.name,
        state=init_state(jax.device_put(params, replicated(model.mesh)), transform, run.seed),
        frozen=frozen,
        step=make_step(loss, transform, accumulate=section.accumulate),
        batches=with_texts(batches, model.tokens, model.length, shared=shared),
        folder=folder,
        mesh=model.mesh,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
    )
    parameter_files.write(
        part / "adapters", {"model": {"method": folder.name}}, parameter_files.as_tensors(state.params)
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    facts = {"trainable_parameters": size, **spent()}
    write_json(part / "model.json", facts)


def load_trained(folder: Path, model: Opened, like: Any) -> tuple[Any, dict[str, Any]]:
    """What `train` left in `folder`/model, a copy on each device: parameters in the tree of `like`, and facts.

    Raises:
      UserError: if a file is missing or damaged, or does not fit.
    """
    tensors = parameter_files.read_tensors(folder / "model" / "adapters")
    parameter_files.check(tensors, parameter_files.kinds(like), where=str(folder / "model" / "adapters"))
    facts = read_json(folder / "model" / "model.json")
    own = {"trainable_parameters": facts["trainable_parameters"], "stage_seconds": {"train": facts["seconds"]}}
    own |= {"taken_up": facts.get("taken_up", False)}
    return jax.device_put(parameter_files.as_tree(tensors, like), replicated(model.mesh)), own


def _score(run: Run, model: Opened, head: Head, folder: Path, like: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Margins of the test pairs [P], and facts."""
    params, facts = load_trained(folder, model, like)
    data, config = load_data(run), settings.read(run)
    states, scale = on_features.load_states(run, data)
    rated = tuned_states(model, params["experts"], batch_size=run.config.reward.eval_batch_size)
    states = states._replace(rated=standardise(scale, jnp.asarray(rated)))
    own = jax.tree.map(jnp.asarray, jax.device_get(params["personal"]))  # heads are scored on the first device
    answers, context = data.pairs(("train", "validation")), config.context
    users = personal.user_representations(head, own, states, answers, data.seen, context=context, seed=run.seed)
    margins = personal.pair_margins(head, own, states, users, test_pairs(data))
    return margins, {**facts, **on_features.needs(head, data, context), "head": str(head)}


@functools.partial(jax.jit, static_argnums=0)
def _pooled(config: RewardConfig, adapters, base, tokens, mask):
    applied = lora_experts.adapter_fn(config.mixture)
    hidden = backbone.hidden_states(config.lm, base, tokens, mask, lora_experts.make_adapters(adapters), applied)
    return backbone.pool(config.lm, hidden, mask)


def tuned_states(model: Opened, adapters: Any, *, batch_size: int) -> np.ndarray:
    """Pooled states float32 [N D] of all responses, each read once, `batch_size` rows at a time over all devices."""

    def read(ids, mask):
        return _pooled(model.config, adapters, model.base, ids, mask)

    lm = model.config.lm
    return read_each(model.tokens, lm.hidden_size, read, model.mesh, batch_size=batch_size, limit=lm.max_positions)
