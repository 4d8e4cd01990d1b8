"""HyRe: many heads on one trunk, weighed by how likely each makes a user's votes (arXiv 2412.08812).

    f_k(h) = heads_k·MLP(h),    weight_k ∝ exp(sum over the user's votes of log sigmoid(f_k(chosen) - f_k(rejected)))
    r_u(h) = sum over k of weight_k f_k(h)

Heads differ as each pair of a training batch teaches one of them, drawn at random, so that each is a Bradley-Terry fit
to its own sample of the votes. The weights are Bayes' rule over the heads, all alike at first: without votes the reward
is the heads' mean.

Axis letters as in `heads`; H hidden, K heads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from pref_jax.baselines.heads import Head, Known, Params, leaky, mlp, mlp_init


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyRe(Head):
    """The head.

    Attributes:
      hidden: H.
      heads: K.
    """

    hidden: int = 128
    heads: int = 16

    @property
    def kept(self) -> int:
        """The weights."""
        return self.heads

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """{"reward"}."""
        del num_users
        return {"reward": mlp_init(key, (dim, self.hidden, self.hidden, self.heads))}

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B K"], Float[Array, " B"]]:
        """Weights [B K]; in training one head for each row."""
        del progress
        rows = len(known.mask)
        if key is not None:
            return jax.nn.one_hot(jax.random.randint(key, (rows,), 0, self.heads), self.heads), jnp.zeros(rows)
        margins = mlp(params["reward"], known.chosen, leaky) - mlp(params["reward"], known.rejected, leaky)
        likelihood = -jnp.sum(jnp.where(known.mask[..., None], jax.nn.softplus(-margins), 0), axis=1)
        return jax.nn.softmax(likelihood, axis=-1), jnp.zeros(rows)

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: Float[Array, "B K"],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """The heads' weighted mean."""
        del prompt
        return jnp.einsum("bsk,bk->bs", mlp(params["reward"], h, leaky), users)
