"""P-TTT: fast weights of one layer, written by a user's votes in closed form; summed as published, or solved.

    k(h) = gelu(U h + b),    r_0(h) = v·h + w·k(h),    r_u(h) = r_0(h) + a_u·k(h)

"P-TTT" (personalised test-time training, 2026) adapts a layer's down-projection W by one closed-form update for all of
a user's context pairs, W_u = W + eta W_value v_r (sum over pairs of k_chosen - k_rejected)^T, and learns everything
else through that update. Under a linear reward head v_r its effect on the reward is that of

    a_u = s (sum over pairs of k_chosen - k_rejected),    s = eta v_r·W_value v_r,

one vector per user; the formulas above are the published ones for a single layer at the last token, on a given state h.

"P-TTT (solved)" keeps the layer and replaces the sum by what it approximates: the user's Bradley-Terry mode,

    a_u = argmin over a of sum over pairs of softplus(-(r_0 + a·k)(chosen) + (r_0 + a·k)(rejected)) + lambda/2 |a|²,

of which the sum is a first gradient step that takes all pairs for undecided. lambda is learned with the rest, through
the exact solution (`pref_jax.user_modes.differentiable_modes`).

Axis letters as in `heads`; H hidden features.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from pref_jax.baselines.heads import Head, Known, Params, dense, dense_init
from pref_jax.user_modes import differentiable_modes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PTTT(Head):
    """Summed fast weights.

    Attributes:
      hidden: H.

    Example:
      >>> PTTT(hidden=64).kept
      64
    """

    hidden: int = 128

    @property
    def kept(self) -> int:
        """The fast weights."""
        return self.hidden

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """{"up", "head": [D], "base": [H], "scale": []}; s is scale / H, so that few pairs move rewards by about 1."""
        del num_users
        up, head = jax.random.split(key)
        return {
            "up": dense_init(up, dim, self.hidden, scale=2**0.5),
            "head": 0.1 * jax.random.normal(head, (dim,)) / jnp.sqrt(jnp.float32(dim)),
            "base": jnp.zeros(self.hidden),
            "scale": jnp.ones(()),
        }

    def keys(self, params: Mapping[str, Any], h: Float[Array, "*batch D"]) -> Float[Array, "*batch H"]:
        """k(h)."""
        return jax.nn.gelu(dense(params["up"], h))

    def shared(self, params: Mapping[str, Any], h: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """r_0(h), of nobody in particular."""
        return h @ params["head"] + self.keys(params, h) @ params["base"]

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B H"], Float[Array, " B"]]:
        """a [B H]."""
        del progress, key
        moved = self.keys(params, known.chosen) - self.keys(params, known.rejected)
        total = jnp.sum(jnp.where(known.mask[..., None], moved, 0), axis=1)
        return params["scale"] / self.hidden * total, jnp.zeros(len(total))

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: Float[Array, "B H"],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """r_0(h) + a·k(h)."""
        del prompt
        return self.shared(params, h) + jnp.einsum("bsh,bh->bs", self.keys(params, h), users)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PTTTSolved(PTTT):
    """Solved fast weights; {"log_precision": []} in place of "scale", lambda = H exp(log_precision)."""

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """As of `PTTT`; votes begin to count as under a prior by which logits of a user's own vary by about 1."""
        found = super().init(key, dim, num_users)
        del found["scale"]
        return found | {"log_precision": jnp.zeros(())}

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B H"], Float[Array, " B"]]:
        """a [B H], exact to the float's precision; zero without votes."""
        del progress, key
        moved = self.keys(params, known.chosen) - self.keys(params, known.rejected)
        offsets = self.shared(params, known.chosen) - self.shared(params, known.rejected)
        precision = self.hidden * jnp.exp(params["log_precision"])
        means = jnp.zeros((len(moved), self.hidden))
        # Padding may hold anything, also what no gradient should see.
        moved, offsets = jnp.where(known.mask[..., None], moved, 0), jnp.where(known.mask, offsets, 0)
        return differentiable_modes(means, moved, offsets, known.mask, precision), jnp.zeros(len(moved))
