"""GPO-style: a transformer reads a user's answers in its context and rates a text; nothing is tuned for a new user.

Group Preference Optimization (arXiv 2310.11523, ICLR 2024) meta-trains, over groups, a transformer without positions on
points (embedding, preference): points of the context see each other, a point to be predicted sees the context and
itself. Here a user is a group, an answer is one point with the states of both its texts, so that the pair is not lost,
and the point to be predicted is the text to be rated. So what comes out depends neither on the order of the answers nor
on other texts. Blocks are pre-norm.

Axis letters as in `heads`; H features of a point, A attention heads, Z blocks.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from pref_jax.baselines.heads import Head, Known, Params, dense, dense_init, mlp, mlp_init

LINEARS = ("query", "key", "value", "out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPO(Head):
    """The head.

    Attributes:
      hidden: H.
      heads: A, which divides H.
      blocks: Z.
    """

    hidden: int = 128
    heads: int = 4
    blocks: int = 2

    @property
    def kept(self) -> int:
        """Nothing but the answers themselves."""
        return 0

    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """{"answer", "text", "blocks" (leaves lead with Z), "reward"}."""
        del num_users
        keys = jax.random.split(key, 4)
        return {
            "answer": dense_init(keys[0], 2 * dim, self.hidden),
            "text": dense_init(keys[1], dim, self.hidden),
            "blocks": jax.vmap(self._block)(jax.random.split(keys[2], self.blocks)),
            "reward": dense_init(keys[3], self.hidden, 1),
        }

    def _block(self, key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, len(LINEARS) + 1)
        wide = {"wide": mlp_init(keys[-1], (self.hidden, 2 * self.hidden, self.hidden))}
        return wide | {
            name: dense_init(k, self.hidden, self.hidden) for name, k in zip(LINEARS, keys[:-1], strict=True)
        }

    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[tuple[Float[Array, "B Z n H"], Bool[Array, "B n"]], Float[Array, " B"]]:
        """The normed states of the context's points before each block, and which are real."""
        del progress, key
        x = dense(params["answer"], jnp.concatenate([known.chosen, known.rejected], axis=-1))
        seen = jnp.broadcast_to(known.mask[:, None], (*known.mask.shape, known.mask.shape[1]))

        def step(x, block):
            normed = _norm(x)
            return self._through(block, x, normed, normed, seen), normed

        _, states = jax.lax.scan(step, x, params["blocks"])
        return (jnp.moveaxis(states, 0, 1), known.mask), jnp.zeros(len(x))

    def reward(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B S D"],
        users: tuple[Float[Array, "B Z n H"], Bool[Array, "B n"]],
        prompt: Float[Array, "B D"],
    ) -> Float[Array, "B S"]:
        """Each text as a further point, which sees the context and itself."""
        del prompt
        states, mask = users
        x = dense(params["text"], h)
        texts = x.shape[1]
        context = jnp.broadcast_to(mask[:, None], (len(mask), texts, mask.shape[1]))
        itself = jnp.broadcast_to(jnp.eye(texts, dtype=bool)[None], (len(mask), texts, texts))
        seen = jnp.concatenate([context, itself], axis=-1)

        def step(x, own):
            block, points = own
            normed = _norm(x)
            return self._through(block, x, normed, jnp.concatenate([points, normed], axis=1), seen), None

        x, _ = jax.lax.scan(step, x, (params["blocks"], jnp.moveaxis(states, 1, 0)))
        return dense(params["reward"], _norm(x))[..., 0]

    def _through(self, block: Mapping[str, Any], x: Array, normed: Array, points: Array, seen: Array) -> Array:
        """One block: x + attention of `normed` to `points` where `seen` [B queries keys], then x + MLP(norm x)."""

        def split(name: str, x: Array) -> Array:
            return dense(block[name], x).reshape(*x.shape[:2], self.heads, -1)

        q, k, v = split("query", normed), split("key", points), split("value", points)
        scores = jnp.einsum("biae,bjae->baij", q, k) / jnp.sqrt(jnp.float32(q.shape[-1]))
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
        x = x + dense(block["out"], jnp.einsum("baij,bjae->biae", weights, v).reshape(x.shape))
        return x + mlp(block["wide"], _norm(x), jax.nn.gelu)


def _norm(x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Mean 0 and variance 1 over the features; the linears behind it have the gains."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
