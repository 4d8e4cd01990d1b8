"""P-RLHF: a user stands before each text as a soft prompt (Li et al., arXiv 2402.05133, sections 4 and 5).

    e_u = e_0 + o_u,    r_u(y) = v . LM([e_u; x; y]) + b

e_0 is S embeddings that stand for nobody in particular, o_u what a user adds to them. The published loss is
alpha times that under e_u plus (1 - alpha) times that under e_0; here each pair of a batch is read under e_0 with
probability 1 - alpha (`generic_share`) and under e_u else, which has the same mean at half the cost. Unseen users get
e_0: their answers are not read. Transformer, adapters, batches and steps are the shared reward's.

Axis letters: B rows, L length, S soft tokens, D features, U users.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from copl_jax.reward import lora_experts
from copl_jax.reward.reward_model import RewardConfig
from experiments import reward_model
from experiments.baselines import on_transformer, personal, settings
from experiments.reward_model import Opened
from experiments.runner.workspace import Run, load_data, method_folder, scored, stage, test_pairs
from pref_jax.lm import backbone
from pref_jax.lm.pairs import pair_states, soften
from pref_jax.mesh import put_batch
from pref_jax.train.state import LossFn

METHOD = "P-RLHF"


def run_method(run: Run) -> None:
    """Trains and scores, unless that is done; killed and run again, it goes on where it was."""
    folder = method_folder(run, METHOD)
    if (folder / "scores").is_dir():
        return
    model, data, config = on_transformer.open_model(run), load_data(run), settings.read(run)
    params = init(model, jax.random.key(run.seed), config.soft_tokens, int(data.seen.sum()), run.seed)
    frozen = {"base": model.base, "number": jnp.asarray(personal.seen_rows(data.seen))}
    loss = make_loss(model.config, config.generic_share)
    stage(folder / "model", lambda part: on_transformer.train(run, part, model, folder, params, frozen, loss))
    scored(run, METHOD, lambda: _score(run, model, folder, params))


def init(model: Opened, key: Key[Array, ""], soft_tokens: int, num_users: int, seed: int) -> dict[str, Any]:
    """{"experts", "generic": [S D], "table": [U S*D], "head": {"w": [D], "b": []}}, float32.

    e_0 begins as the embeddings of random tokens, o_u as zeros.
    """
    lm = model.config.lm
    tokens_key, head_key = jax.random.split(key)
    ids = jax.random.randint(tokens_key, (1, soft_tokens), 0, lm.vocab_size)
    generic = backbone.hidden_states(lm, model.base, ids, jnp.ones((1, soft_tokens), bool), layer=0)[0]
    return {
        "experts": on_transformer.fresh_adapters(model, seed),
        "generic": generic.astype(jnp.float32),
        "table": jnp.zeros((num_users, soft_tokens * lm.hidden_size)),
        "head": {"w": 0.02 * jax.random.normal(head_key, (lm.hidden_size,)), "b": jnp.zeros(())},
    }


def soft_prompts(params: Mapping[str, Any], rows: Int[Array, " B"], known: Bool[Array, " B"]) -> Float[Array, "B S D"]:
    """e_0 + o_u of the users in these rows of the table where `known`, e_0 elsewhere."""
    own = params["table"][rows].reshape(len(rows), *params["generic"].shape)
    return params["generic"][None] + jnp.where(known[:, None, None], own, 0)


def make_loss(config: RewardConfig, generic_share: float) -> LossFn:
    """The mean of -log sigmoid(r_chosen - r_rejected), for `pref_jax.train`.

    `frozen` is {"base", "number": int [U], each seen user's row of the table}; `batch` has "user" and the texts.
    """

    def loss(params, frozen, batch, key):
        choice, dropout = jax.random.split(key)
        rows = frozen["number"][batch["user"]]
        soft = soft_prompts(params, rows, ~jax.random.bernoulli(choice, generic_share, rows.shape))
        adapters, applied = (
            lora_experts.make_adapters(params["experts"], None, dropout),
            lora_experts.adapter_fn(config.mixture),
        )
        states = pair_states(config.lm, frozen["base"], batch, adapters, applied, remat=config.remat, soft=soft)
        scores = states @ params["head"]["w"] + params["head"]["b"]
        margin = scores[:, 0] - scores[:, 1]
        metrics = {"accuracy": jnp.mean((margin > 0).astype(jnp.float32)), "margin": jnp.mean(margin)}
        return -jnp.mean(jax.nn.log_sigmoid(margin)), metrics

    return loss


@functools.partial(jax.jit, static_argnums=0)
def rewards(
    config: RewardConfig,
    params: Mapping[str, Any],
    base: Mapping[str, Any],
    tokens: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    rows: Int[Array, " B"],
) -> Float[Array, " B"]:
    """Rewards of texts for the users in `rows` of the table; -1 stands for everybody else."""
    soft = soft_prompts(params, rows, rows >= 0)
    tokens, mask = soften(tokens, mask, soft)
    adapters, applied = lora_experts.make_adapters(params["experts"]), lora_experts.adapter_fn(config.mixture)
    hidden = backbone.hidden_states(config.lm, base, tokens, mask, adapters, applied, soft=soft)
    return backbone.pool(config.lm, hidden, mask) @ params["head"]["w"] + params["head"]["b"]


def _score(run: Run, model: Opened, folder: Any, like: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Margins of the test pairs [P], and facts."""
    params, facts = on_transformer.load_trained(folder, model, like)
    data, pairs = load_data(run), test_pairs(load_data(run))
    # Route 0 is everybody who was not trained on.
    route = np.where(data.seen, personal.seen_rows(data.seen) + 1, 0)[pairs.user]

    def rate(tokens, mask, owner):
        batch = put_batch((tokens, mask, (owner - 1).astype(np.int32)), model.mesh)
        return rewards(model.config, params, model.base, *batch)

    with jax.set_mesh(model.mesh):
        margins = reward_model.routed_margins(model, pairs, route, rate, batch_size=run.config.reward.eval_batch_size)
    return margins, {**facts, "parameters_per_user": like["table"].shape[1], "context_pairs": "none"}
