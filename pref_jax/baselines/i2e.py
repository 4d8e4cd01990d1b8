"""I2E: an embedding for each seen user, learned with the reward that reads it, and a proxy for everyone else.

    r_u(y) = MLP([h_y; e_u])

The embedding of a user's number is the individual user model of P-RLHF (arXiv 2402.05133, section 4), which CoPL's
tables (arXiv 2503.01658) call I2E. A number says nothing about someone new, so unseen users get a proxy: the mean of
the seen users' embeddings, each weighted by how likely it makes the new user's answers,

    e = sum over u of softmax(sum over the answers of log sigmoid(r_u(chosen) - r_u(rejected)))_u e_u,

the posterior mean where the prior is a seen user drawn at random. Without answers it is the mean of all.

Axis letters as in `heads`; H hidden.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from pref_jax.baselines.heads import Head, Known, Params, beside, leaky, mlp, mlp_init, own_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class I2E(Head):
    """The head.

    Attributes:
      hidden: H.
      size: R, numbers of an embedding.
      shrink: weight of |e_u|² / 2 in each pair's loss, as of a prior N(0, I).
    """

    has_table: ClassVar[bool] = True
    hidden: int = 128
    size: int = 16
    shrink: float = 0.01

    @property
    def kept(self) -> int:
        """The embedding."""
        return self.size

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """{"table": [U R], "reward"}."""
        table, reward = jax.random.split(key)
        return {
            "table": 0.1 * jax.random.normal(table, (num_users, self.size)),
            "reward": mlp_init(reward, (dim + self.size, self.hidden, self.hidden, 1)),
        }

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B R"], Float[Array, " B"]]:
        """The rows of the table, and their prior."""
        del params, progress, key
        return own_rows(known, self.shrink)

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: Float[Array, "B R"],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """MLP([h; e])."""
        del prompt
        return mlp(params["reward"], beside(h, users), leaky)[..., 0]

    def adapt(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B n 2 D"],
        prompt: Float[Array, "B n D"],
        mask: Bool[Array, "B n"],
    ) -> Float[Array, "B R"]:
        """The proxy; one seen user after another, so that no [U B n H] is ever there."""
        flat, asked = h.reshape(-1, *h.shape[2:]), prompt.reshape(-1, prompt.shape[-1])

        def agreement(own: Float[Array, " R"]) -> Float[Array, " B"]:
            margins = self.margins(params, flat, jnp.broadcast_to(own, (len(flat), self.size)), asked)
            return -jnp.sum(jnp.where(mask, jax.nn.softplus(-margins.reshape(mask.shape)), 0), axis=1)

        likelihood = jax.lax.map(agreement, params["table"])
        return jax.nn.softmax(likelihood, axis=0).T @ params["table"]
