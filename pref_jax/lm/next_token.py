"""Which token comes next: temperature, top-k, top-p, and one stream of randomness for each row.

Axes: B rows, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Key

from pref_jax.errors import Faults


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn.

    Attributes:
      temperature: logits are divided by it; 0: the likeliest token is taken.
      top_p: only the likeliest tokens are drawn, as few as have this probability together.
      top_k: only so many of the likeliest tokens are drawn; 0: of all. It comes before `top_p`.
      max_new_tokens: after so many a text ends anyhow.

    Raises:
      UserError: for numbers out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256

    def __post_init__(self):
        faults = Faults()
        if not 0 <= self.temperature < float("inf"):
            faults.add("temperature", f"is {self.temperature}", "give 0 for the likeliest tokens, or more")
        if not 0 < self.top_p <= 1:
            faults.add("top_p", f"is {self.top_p}", "give a probability above 0, 1 for all tokens")
        if self.top_k < 0:
            faults.add("top_k", f"is {self.top_k}", "give a number of tokens, 0 for all")
        if self.max_new_tokens < 1:
            faults.add("max_new_tokens", f"is {self.max_new_tokens}", "give at least 1")
        faults.raise_if_any("Sampling")


class Drawing(NamedTuple):
    """The numbers of a `SamplingConfig` as arrays, so that other numbers need no other program."""

    temperature: Float32[Array, ""]
    top_p: Float32[Array, ""]
    top_k: Int32[Array, ""]


def drawing(config: SamplingConfig) -> Drawing:
    """The config's numbers as arrays."""
    return Drawing(jnp.float32(config.temperature), jnp.float32(config.top_p), jnp.int32(config.top_k))


def truncate(
    logits: Float32[Array, "B V"], top_k: Int32[Array, ""], top_p: Float32[Array, ""]
) -> Float32[Array, "B V"]:
    """Logits with -inf at tokens that are not to be drawn.

    Of each row the k likeliest tokens stay, and of these the fewest likeliest ones whose probabilities, among the k,
    add up to `top_p` or more; a token just as likely as one that stays, stays too (so no numbering of tokens matters).
    Nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751, section 3.1.
    """
    size = logits.shape[-1]
    falling = -jnp.sort(-logits, axis=-1)
    last = jnp.take(falling, jnp.where(top_k > 0, jnp.minimum(top_k, size), size) - 1, axis=-1)[:, None]
    probability = jax.nn.softmax(jnp.where(falling >= last, falling, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # With p = 1 nothing may go, whatever rounding makes of the sum; the likeliest token always stays.
    stays = (before < top_p) | (top_p >= 1) | (jnp.arange(size) == 0)[None]
    count = jnp.sum(stays & (falling >= last), axis=-1, keepdims=True)
    least = jnp.take_along_axis(falling, count - 1, axis=-1)
    return jnp.where(logits >= least, logits, -jnp.inf)


def draw(logits: Float32[Array, "B V"], keys: Key[Array, " B"], how: Drawing) -> Int32[Array, " B"]:
    """A token for each row, by the row's own key."""

    def sample(logits: Array) -> Array:
        cut = (how.top_k > 0) | (how.top_p < 1)
        # Sorting a vocabulary costs as much as a small model's pass: only where something is cut.
        logits = jax.lax.cond(cut, lambda x: truncate(x, how.top_k, how.top_p), lambda x: x, logits / how.temperature)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)

    greedy = lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int32)  # noqa: E731
    return jax.lax.cond(how.temperature > 0, sample, greedy, logits)
