"""What the personal baselines have in common: a reward of a text's state that depends on its user, as pure functions.

A head turns what is known of users into representations, and states of texts into rewards under them. It knows
neither where states come from (`on_features`: a frozen transformer, `on_transformer`: an adapted one) nor how it is
trained.

Axis letters: B rows (a user each), S texts of a row, n context pairs (padded), D features of a state, R numbers that a
user owns, F features in, G features out.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

Params = dict[str, Any]
# A pytree of arrays that lead with B.
Users = Any


class Known(NamedTuple):
    """What is known of the user of each row.

    Attributes:
      own: [B R] rows of the head's table; None for heads without one.
      chosen, rejected: [B n D] states of the texts of the context pairs.
      mask: [B n], False at padding.
    """

    own: Float[Array, "B R"] | None
    chosen: Float[Array, "B n D"]
    rejected: Float[Array, "B n D"]
    mask: Bool[Array, "B n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head(abc.ABC):
    """The interface; hashable, so it can be a static argument of `jax.jit`. A head with a table overrides `adapt`.

    Attributes:
      has_table: users own rows of a table; the other heads read users' votes.
      reads_prompt: `reward` reads the prompt's state.
      has_latent: users' representations are drawn from N(0, I) before anything is known of them, and so may collapse.
    """

    has_table: ClassVar[bool] = False
    reads_prompt: ClassVar[bool] = False
    has_latent: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def kept(self) -> int:
        """Numbers that are kept for one more user."""

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], dim: int, num_users: int) -> Params:
        """Fresh float32 parameters for D = `dim`; a head with a table has a row of "table" for each seen user."""

    @abc.abstractmethod
    def users(
        self, params: Mapping[str, Any], known: Known, progress: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Users, Float[Array, " B"]]:
        """Representations of the rows' users, and what each adds to the loss.

        `progress` [B], the part of training that is done, and `key` are given in training alone.
        """

    @abc.abstractmethod
    def reward(
        self, params: Mapping[str, Any], h: Float[Array, "B S D"], users: Users, prompt: Float[Array, "B D"]
    ) -> Float[Array, "B S"]:
        """Rewards of texts with states `h` under the prompt of state `prompt`, for each row's user."""

    def loss(self, margin: Array) -> Array:
        """What a margin, reward of the chosen minus the rejected text, costs: -log sigmoid(margin) (Bradley-Terry)."""
        return jax.nn.softplus(-margin)

    def reduce(self, losses: Float[Array, " B"]) -> Array:
        """A batch's loss from those of its pairs: their mean."""
        return jnp.mean(losses)

    def adapt(
        self,
        params: Mapping[str, Any],
        h: Float[Array, "B n 2 D"],
        prompt: Float[Array, "B n D"],
        mask: Bool[Array, "B n"],
    ) -> Float[Array, "B R"] | None:
        """Rows of the table for users who were not trained on, from the states of their context pairs."""
        del params, h, prompt, mask

    def margins(self, params: Mapping[str, Any], h: Array, users: Users, prompt: Array) -> Array:
        """Reward of the first text of each row minus that of the second: [B 2 D] -> [B]."""
        found = self.reward(params, h, users, prompt)
        return found[:, 0] - found[:, 1]


def own_rows(known: Known, shrink: float | int) -> tuple[Float[Array, "B R"], Float[Array, " B"]]:
    """The rows of the table, and `shrink` |own|² / 2 of each: what a prior N(0, I) / shrink costs, up to a constant."""
    assert known.own is not None, "a head with a table is given its rows"
    return known.own, 0.5 * shrink * jnp.sum(known.own**2, axis=-1)


def dense_init(key: Key[Array, ""], inputs: int, outputs: int, *, scale: float | int = 1) -> Params:
    """{"kernel": [F G] ~ N(0, scale² / F), "bias": [G] zeros}."""
    kernel = scale * jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(jnp.float32(inputs))
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def dense(params: Mapping[str, Array], x: Float[Array, "*batch F"]) -> Float[Array, "*batch G"]:
    """x W + b."""
    y = x @ params["kernel"]
    return y + jnp.broadcast_to(params["bias"], y.shape)


def mlp_init(key: Key[Array, ""], sizes: Sequence[int], *, last: float | int = 1) -> Params:
    """Linears from each size to the next, numbered from "0"; `last` scales the last one's kernel.

    The others have variance 2 / F, which keeps a signal's size through rectifiers.
    """
    keys = jax.random.split(key, len(sizes) - 1)
    scales = [2**0.5] * (len(sizes) - 2) + [last]
    linears = zip(keys, sizes[:-1], sizes[1:], scales, strict=True)
    return {str(i): dense_init(k, a, b, scale=scale) for i, (k, a, b, scale) in enumerate(linears)}


def mlp(params: Mapping[str, Any], x: Float[Array, "*batch F"], act: Callable[[Array], Array]) -> Array:
    """The linears of `mlp_init` one after another, `act` between them."""
    for i in range(len(params)):
        x = dense(params[str(i)], act(x) if i else x)
    return x


def leaky(x: Array) -> Array:
    """LeakyReLU with slope 0.2."""
    return jax.nn.leaky_relu(x, 0.2)


def beside(h: Float[Array, "B S D"], z: Float[Array, "B R"]) -> Float[Array, "B S DR"]:
    """Each text's state with its user's vector behind it."""
    return jnp.concatenate([h, jnp.broadcast_to(z[:, None], (*h.shape[:2], z.shape[-1]))], axis=-1)
