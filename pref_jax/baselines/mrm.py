"""MRM: a user's weights on basis rewards by one step from a learned start, trained on the users that are hard.

    r_u(h) = softmax(w_u)·f(h),    w_u = w_0 - rate Adam(gradient at w_0 of the context's mean -log sigmoid(margin))
    loss = mean over pairs of sigmoid((L - tau) / gamma) L,    L = -log sigmoid(r_u(chosen) - r_u(rejected))

Meta Reward Modeling (arXiv 2601.18731, SIGIR 2026): f and w_0 are learned through the inner step, which is the first of
Adam's, g / (|g| + 1e-8) in each coordinate; the robust outer loss puts weight on users whose loss is above tau, the
median of the batch (half of the users are hard), gamma wide. A batch here has some 128 pairs of nearly as many users,
so each pair stands for its user. Without context the weights are softmax(w_0).

Axis letters as in `heads`; H hidden, K basis rewards.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from pref_jax.baselines.heads import Head, Known, Params, leaky, mlp, mlp_init

_TINY = 1e-8  # of Adam


@dataclasses.dataclass(frozen=True, kw_only=True)
class MRM(Head):
    """The head.

    Attributes:
      hidden: H.
      basis: K.
      inner_lr: rate of the inner step, which moves each logit by at most so much.
      gamma: width, in nats, over which the outer loss turns towards hard users.
    """

    hidden: int = 128
    basis: int = 8
    inner_lr: float = 1.0
    gamma: float = 0.5

    @property
    def kept(self) -> int:
        """The weights."""
        return self.basis

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """{"reward", "start": [K]}."""
        del num_users
        return {"reward": mlp_init(key, (dim, self.hidden, self.basis)), "start": jnp.zeros(self.basis)}

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B K"], Float[Array, " B"]]:
        """softmax(w) [B K]."""
        del progress, key
        basis = mlp(params["reward"], known.chosen, leaky) - mlp(params["reward"], known.rejected, leaky)
        basis, count = jnp.where(known.mask[..., None], basis, 0), jnp.maximum(known.mask.sum(axis=1), 1)
        start = jnp.broadcast_to(params["start"], (len(basis), self.basis))

        def inner(logits: Float[Array, "B K"]) -> Array:
            margins = jnp.einsum("bnk,bk->bn", basis, jax.nn.softmax(logits, axis=-1))
            lost = jnp.where(known.mask, jax.nn.softplus(-margins), 0)
            return jnp.sum(lost / count[:, None])

        slope = jax.grad(inner)(start)
        weights = jax.nn.softmax(start - self.inner_lr * slope / (jnp.abs(slope) + _TINY), axis=-1)
        return weights, jnp.zeros(len(basis))

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: Float[Array, "B K"],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """softmax(w)·f(h)."""
        del prompt
        return jnp.einsum("bsk,bk->bs", mlp(params["reward"], h, leaky), users)

    def reduce(self, losses: Float[Array, " B"]) -> Array:
        """The robust outer loss."""
        threshold = jax.lax.stop_gradient(jnp.median(losses))
        return jnp.mean(jax.nn.sigmoid((losses - threshold) / self.gamma) * losses)
