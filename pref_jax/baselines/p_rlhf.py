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

from pref_jax.baselines.head_training import seen_rows
from pref_jax.baselines.shared import SharedConfig, init_adapters
from pref_jax.comparisons import Votes
from pref_jax.lm import backbone, lora
from pref_jax.lm.pair_batches import Texts, pair_margins
from pref_jax.lm.pairs import apply_head, init_head, pair_states, pairwise_loss, text_states
from pref_jax.train.state import LossFn


def init(
    config: SharedConfig, base: Mapping[str, Any], key: Key[Array, ""], *, soft_tokens: int, num_users: int
) -> dict[str, Any]:
    """{"adapters", "generic": [S D], "table": [U S*D], "head": {"w": [D], "b": []}}, float32.

    e_0 begins as the embeddings of random tokens, o_u as zeros.
    """
    lm = config.lm
    tokens_key, head_key = jax.random.split(key)
    ids = jax.random.randint(tokens_key, (1, soft_tokens), 0, lm.vocab_size)
    generic = backbone.hidden_states(lm, base, ids, jnp.ones((1, soft_tokens), bool), layer=0)[0]
    return {
        "adapters": init_adapters(config, key),
        "generic": generic.astype(jnp.float32),
        "table": jnp.zeros((num_users, soft_tokens * lm.hidden_size)),
        "head": init_head(lm, None, head_key),
    }


def soft_prompts(params: Mapping[str, Any], rows: Int[Array, " B"], known: Bool[Array, " B"]) -> Float[Array, "B S D"]:
    """e_0 + o_u of the users in these rows of the table where `known`, e_0 elsewhere."""
    own = params["table"][rows].reshape(len(rows), *params["generic"].shape)
    return params["generic"][None] + jnp.where(known[:, None, None], own, 0)


def make_loss(config: SharedConfig, generic_share: float) -> LossFn:
    """Bradley-Terry loss, for `pref_jax.train`.

    `frozen` is {"base", "number": int [U], each seen user's row of the table}; `batch` has "user" and the texts.
    """

    def loss(params, frozen, batch, key):
        choice, dropout = jax.random.split(key)
        rows = frozen["number"][batch["user"]]
        soft = soft_prompts(params, rows, ~jax.random.bernoulli(choice, generic_share, rows.shape))
        adapters, apply = lora.with_keys(params["adapters"], dropout), lora.adapter_fn(config.lora)
        states = pair_states(config.lm, frozen["base"], batch, adapters, apply, remat=config.remat, soft=soft)
        return pairwise_loss(apply_head(params["head"], states))

    return loss


@functools.partial(jax.jit, static_argnums=0)
def rewards(
    config: SharedConfig,
    params: Mapping[str, Any],
    base: Mapping[str, Any],
    tokens: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    route: Int[Array, " B"],
) -> Float[Array, " B"]:
    """Rewards of texts for the users in rows `route` - 1 of the table; 0 stands for everyone else."""
    soft, apply = soft_prompts(params, route - 1, route > 0), lora.adapter_fn(config.lora)
    return apply_head(params["head"], text_states(config.lm, base, tokens, mask, params["adapters"], apply, soft=soft))


def score_pairs(
    config: SharedConfig, params: Any, texts: Texts, pairs: Votes, seen: np.ndarray, *, batch_size: int = 0
) -> np.ndarray:
    """Margins float32 [P]; unseen users get the generic prompt."""
    route = np.where(seen, seen_rows(seen) + 1, 0)[pairs.user]
    read = functools.partial(rewards, config, params, texts.model.params)
    return pair_margins(texts, pairs, read, route=route, batch_size=batch_size)
