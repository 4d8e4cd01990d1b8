"""PAL: each user's ideal point is a mixture of a few prototypes (Chen et al., ICLR 2025, arXiv 2406.08469).

    w_u = softmax(l_u),  l_u in R^K
    A:  a_u = f(sum over k of w_uk p_k),          r = -|f(h) - a_u|,         hinge loss max(0, 1 - margin)
    B:  a_u(x) = sum over k of w_uk g_k(h_x),     r = s cos(f(h), a_u(x)),   Bradley-Terry loss

p_k is a point among the states and h_x the prompt's own state. In A f is linear plus two hidden layers with ReLU
around it; in B f and every g_k have GELU. s begins at 1 / 0.07 and stays at most 100. A new user's l alone is fitted,
all else stays; without answers it is 0, the uniform mixture. The published fit of l (AdamW at 5e-3, 20 epochs) hardly
leaves its start on a handful of answers: here it is Adam at `fit_rate` for `fit_steps` under a weak prior around 0.

Axis letters as in `heads`; K prototypes, H hidden, d features of the common space (the published model has d = 512).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from pref_jax.baselines.heads import Head, Known, Params, dense, dense_init, mlp, mlp_init, own_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PAL(Head):
    """What both forms share: the table of logits, and its fit for new users.

    Attributes:
      prototypes: K.
      hidden: H.
      size: d.
      fit_steps, fit_rate: of Adam, for a new user's logits.
      shrink: weight of |l_u|² / 2 beside each pair's loss in training, and beside all of a new user's in the fit.
    """

    has_table: ClassVar[bool] = True
    prototypes: int = 2
    hidden: int = 128
    size: int = 64
    fit_steps: int = 200
    fit_rate: float = 0.1
    shrink: float = 0.01

    @property
    def kept(self) -> int:
        """The logits."""
        return self.prototypes

    def _table(self, key: Key[Array, ""], num_users: int) -> Float[Array, "U K"]:
        return 0.1 * jax.random.normal(key, (num_users, self.prototypes))

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "B K"], Float[Array, " B"]]:
        """The mixture's weights, and the logits' prior."""
        del params, progress, key
        logits, penalty = own_rows(known, self.shrink)
        return jax.nn.softmax(logits, axis=-1), penalty

    def adapt(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B n 2 D"],
        prompt: Float[Array, "B n D"],
        mask: Bool[Array, "B n"],
    ) -> Float[Array, "B K"]:
        """Each row's logits by Adam from 0."""
        transform = optax.adam(self.fit_rate)

        def cost(logits, h, prompt, mask):
            weights = jnp.broadcast_to(jax.nn.softmax(logits), (len(h), self.prototypes))
            each = self.loss(self.margins(params, h, weights, prompt))
            return jnp.sum(jnp.where(mask, each, 0)) + 0.5 * self.shrink * jnp.sum(logits**2)

        def fitted(h, prompt, mask):
            def step(carry, _):
                logits, state = carry
                updates, state = transform.update(jax.grad(cost)(logits, h, prompt, mask), state)
                return (optax.apply_updates(logits, updates), state), None

            start = jnp.zeros(self.prototypes)
            return jnp.asarray(jax.lax.scan(step, (start, transform.init(start)), length=self.fit_steps)[0][0])

        return jax.vmap(fitted)(h, prompt, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PALA(PAL):
    """Form A: distance to an ideal point."""

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """{"table": [U K], "prototypes": [K D], "straight", "bent"}."""
        keys = jax.random.split(key, 4)
        return {
            "table": self._table(keys[0], num_users),
            "prototypes": jax.random.normal(keys[1], (self.prototypes, dim)),
            "straight": dense_init(keys[2], dim, self.size),
            "bent": mlp_init(keys[3], (dim, self.hidden, self.hidden, self.size)),
        }

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: Float[Array, "B K"],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """-|f(h) - f(w p)|."""
        del prompt
        ideal = _project(params, users @ params["prototypes"])[:, None]
        # Without the small number the gradient at the ideal point itself would be NaN.
        return -jnp.sqrt(jnp.sum((_project(params, h) - ideal) ** 2, axis=-1) + 1e-12)

    def loss(self, margin: Array) -> Array:
        """Hinge at 1."""
        return jax.nn.relu(1 - margin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PALB(PAL):
    """Form B: likeness to an ideal answer to the prompt."""

    reads_prompt: ClassVar[bool] = True

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """{"table": [U K], "answer", "ideal" (leaves lead with K), "scale": []}."""
        keys = jax.random.split(key, 3)
        sizes = (dim, self.hidden, self.hidden, self.size)
        return {
            "table": self._table(keys[0], num_users),
            "answer": mlp_init(keys[1], sizes),
            "ideal": jax.vmap(lambda k: mlp_init(k, sizes))(jax.random.split(keys[2], self.prototypes)),
            "scale": jnp.asarray(math.log(1 / 0.07)),
        }

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: Float[Array, "B K"],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """s cos(f(h), sum of w g(h_x)); s = exp of its parameter, so that it stays above 0."""
        each = jax.vmap(mlp, in_axes=(0, None, None))(params["ideal"], prompt, jax.nn.gelu)
        ideal = jnp.einsum("bk,kbd->bd", users, each)
        scale = jnp.minimum(jnp.exp(params["scale"]), 100)
        return scale * jnp.einsum("bsd,bd->bs", _unit(mlp(params["answer"], h, jax.nn.gelu)), _unit(ideal))


def _project(params: Mapping[str, Any], x: Float[Array, "*batch D"]) -> Float[Array, "*batch d"]:
    return dense(params["straight"], x) + mlp(params["bent"], x, jax.nn.relu)


def _unit(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)
