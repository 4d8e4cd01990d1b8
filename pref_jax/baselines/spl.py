"""SPL: VPL against the collapse of its latent, by mirrored users, a flow and a decoder that cannot ignore it.

    o(c, r) as in VPL;   mu = linear of o,   log sigma² = linear of o
    d = mean over j of p(c_j) - p(r_j),   s = mean over j of p(c_j) + p(r_j), each over 2,   p a linear of a state
    z_0 = mu + sigma eps;   z_i = exp(tanh(z_0<i, s)) z_0i + shift(z_0<i, d)          (inverse autoregressive flow)
    r(h) = w·leaky((1 + gamma(z)) W h + beta(z))                                       (FiLM)
    loss = -log sigmoid(margin) + beta a(t) KL + mirror (|mu + mu'|² + |log sigma² - log sigma'²|²)

Swap-guided preference learning (arXiv 2603.12595, ICLR 2026). mu' and sigma' are what the encoder makes of the same
context with every vote turned round: whose votes are the opposite should be the opposite point, as certain. The
divergence from N(0, I) has no closed form behind a flow and is drawn with z. What is read of an empty context is zero,
as in VPL; afterwards z is the flow's image of mu. The published flow's depth and sizes are not given in what was read:
here one step, whose shift and scale are masked linears.

Axis letters as in `heads`; d latent = H hidden.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from pref_jax.baselines.heads import Known, Params, dense, dense_init, leaky
from pref_jax.baselines.vpl import VPL, masked_mean, rising


@dataclasses.dataclass(frozen=True, kw_only=True)
class SPL(VPL):
    """The head.

    Attributes:
      mirror: weight of the guidance by mirrored users.
    """

    mirror: float = 0.1

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """As VPL, with {"side", "shift", "spread", "shift_by", "spread_by", "text", "gain", "offset", "out"}."""
        keys, size = jax.random.split(key, 10), self.hidden
        found = super().init(keys[0], dim, num_users)
        del found["reward"]
        # The flow begins as the identity, and the decoder listening.
        flow = {name: dense_init(k, size, size, scale=0.1) for name, k in zip(_FLOW, keys[1:5], strict=True)}
        return (
            found
            | flow
            | {
                "side": dense_init(keys[5], dim, size),
                "text": dense_init(keys[6], dim, size, scale=2**0.5),
                "gain": dense_init(keys[7], size, size, scale=0.5),
                "offset": dense_init(keys[8], size, size, scale=0.5),
                "out": dense_init(keys[9], size, 1),
            }
        )

    def flow(
        self, params: Mapping[str, Any], z: Float[Array, "B d"], known: Known
    ) -> tuple[Float[Array, "B d"], Float[Array, " B"]]:
        """The latent behind the flow, and the log of its volume change."""
        chosen, rejected = (dense(params["side"], side) for side in (known.chosen, known.rejected))
        apart, together = (masked_mean(half / 2, known.mask) for half in (chosen - rejected, chosen + rejected))
        scale = jnp.tanh(_lower(params["spread"], z) + dense(params["spread_by"], together))
        return jnp.exp(scale) * z + _lower(params["shift"], z) + dense(params["shift_by"], apart), scale.sum(axis=-1)

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B d"], Float[Array, " B"]]:
        """z [B d]; in training also the divergence and the guidance."""
        mu, log_variance = self.encode(params, known)
        some = known.mask.any(axis=1)
        if key is None or progress is None:
            return jnp.where(some[:, None], self.flow(params, mu, known)[0], 0), jnp.zeros(len(mu))
        noise = jax.random.normal(key, mu.shape)
        z, volume = self.flow(params, mu + jnp.exp(0.5 * log_variance) * noise, known)
        entropy = 0.5 * jnp.sum(noise**2 + log_variance, axis=-1) + volume
        divergence = 0.5 * jnp.sum(z**2, axis=-1) - entropy
        turned, spread = self.encode(params, known._replace(chosen=known.rejected, rejected=known.chosen))
        guidance = jnp.mean((mu + turned) ** 2 + (log_variance - spread) ** 2, axis=-1)
        penalty = self.kl_weight * rising(progress) * divergence + self.mirror * guidance
        return jnp.where(some[:, None], z, 0), jnp.where(some, penalty, 0)

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: Float[Array, "B d"],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """w·leaky((1 + gamma(z)) W h + beta(z))."""
        del prompt
        gain, offset = (dense(params[name], users)[:, None] for name in ("gain", "offset"))
        return dense(params["out"], leaky((1 + gain) * dense(params["text"], h) + offset))[..., 0]


_FLOW = ("shift", "spread", "shift_by", "spread_by")


def _lower(params: Mapping[str, Array], z: Float[Array, "B d"]) -> Float[Array, "B d"]:
    """A linear of which each output knows the numbers before it alone."""
    return z @ jnp.triu(params["kernel"], 1) + params["bias"][None]
