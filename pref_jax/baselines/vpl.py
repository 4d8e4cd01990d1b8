"""VPL: a variational encoder of a user's answers, and a reward that reads its latent (arXiv 2408.10075, NeurIPS 2024).

    p_j = MLP([c_j; r_j]),    o = mean over j of attention(p)_j,    mu, log sigma² = linears of o, clamped to [-1, 1]
    z = mu + sigma eps, then sqrt(d) z / |z| in training; z = mu afterwards;    r = MLP([h; z])
    loss = -log sigmoid(r_c - r_r) + beta a(t) KL(N(mu, sigma²) || N(0, I))

As published, but for: no pair is in its own context; an empty context gives z = 0, the prior's mean, in training too,
so that users of whom nothing is known get a reward that was trained for them; a(t) rises from 0.1 to 1 by half a cosine
once over the whole training, which here is far shorter than the published period of 10⁴ steps.

Axis letters as in `heads`; d latent, H hidden (the published model has d = H = 512).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from pref_jax.baselines.heads import Head, Known, Params, beside, dense, dense_init, leaky, mlp, mlp_init


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPL(Head):
    """The head.

    Attributes:
      hidden: H = d.
      kl_weight: beta.
    """

    has_latent: ClassVar[bool] = True
    hidden: int = 128
    kl_weight: float = 1e-4

    @property
    def kept(self) -> int:
        """The latent."""
        return self.hidden

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """{"pair", "query", "key", "value", "mu", "log_variance", "reward"}."""
        del num_users
        keys, size = jax.random.split(key, 7), self.hidden
        names = ("query", "key", "value", "mu", "log_variance")
        linears = {name: dense_init(k, size, size) for name, k in zip(names, keys[2:], strict=True)}
        return {
            "pair": mlp_init(keys[0], (2 * dim, size, size, size)),
            "reward": mlp_init(keys[1], (dim + size, size, size, 1)),
            **linears,
        }

    def encode(self, params: Mapping[str, Any], known: Known) -> tuple[Float[Array, "B d"], Float[Array, "B d"]]:
        """mu and log sigma² of each row's user, both zero for an empty context."""
        p = mlp(params["pair"], jnp.concatenate([known.chosen, known.rejected], axis=-1), leaky)
        q, k, v = (dense(params[name], p) for name in ("query", "key", "value"))
        scores = jnp.einsum("bid,bjd->bij", q, k) / jnp.sqrt(jnp.float32(self.hidden))
        scores = jnp.where(known.mask[:, None], scores, -1e30)
        o = masked_mean(jnp.einsum("bij,bjd->bid", jax.nn.softmax(scores, axis=-1), v), known.mask)
        some = known.mask.any(axis=1)[:, None]
        mu, log_variance = (jnp.clip(dense(params[name], o), -1, 1) for name in ("mu", "log_variance"))
        return jnp.where(some, mu, 0), jnp.where(some, log_variance, 0)

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B d"], Float[Array, " B"]]:
        """z [B d], and beta a(t) KL."""
        mu, log_variance = self.encode(params, known)
        if key is None or progress is None:
            return mu, jnp.zeros(len(mu))
        z = mu + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mu.shape)
        z = z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-12)
        some = known.mask.any(axis=1)
        return jnp.where(some[:, None], z, 0), self.kl_weight * rising(progress) * kl(mu, log_variance)

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: Float[Array, "B d"],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """MLP([h; z])."""
        del prompt
        return mlp(params["reward"], beside(h, users), leaky)[..., 0]


def kl(mu: Float[Array, "B d"], log_variance: Float[Array, "B d"]) -> Float[Array, " B"]:
    """KL(N(mu, sigma²) || N(0, I)) of each row, in nats."""
    return 0.5 * jnp.sum(mu**2 + jnp.exp(log_variance) - 1 - log_variance, axis=-1)


def rising(progress: Float[Array, " B"]) -> Float[Array, " B"]:
    """a(t): from 0.1 to 1 by half a cosine."""
    return 0.1 + 0.9 * 0.5 * (1 - jnp.cos(jnp.pi * progress))


def masked_mean(x: Float[Array, "B n d"], mask: Bool[Array, "B n"]) -> Float[Array, "B d"]:
    """Over the real pairs; zeros where there are none."""
    return jnp.where(mask[..., None], x, 0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)[:, None]
