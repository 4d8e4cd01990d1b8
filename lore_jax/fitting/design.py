"""What directions act on: features of texts, a free part of each response, or both.

    rewards = phi B + s F,    B [D K] directions of the features phi, F [R K] free parts

A free part is a one-hot feature, never laid out: differences of rewards are gathered. With phi of D standardised
features, directions of L2 strength D / variance give a logit that variance; s^2 = D share gives the free part `share`
times as much. Responses alone have D = 1. F adds up to zero over the responses in use, for adding the same to all
rewards changes no vote, and is 0 for those without votes: a new response has the reward of its text alone.

Axis letters: N responses, R of them and where there are ratings the average one, D features, K basis.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pref_jax.errors import UserError

FEATURES = ("text", "response", "both", "auto")
# Of the free part's variance against the text's, where there are both.
SHARES = (0.1, 1.0, 10.0)


class Design(NamedTuple):
    """Features `text [R D]`, None for responses alone, and the scale of each response's free part, `free [R]`."""

    text: Array | None
    free: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Responses, and entries of a direction."""
        return len(self.free), len(self.free) + (0 if self.text is None else self.text.shape[1])

    @property
    def dtype(self) -> Any:
        """Of rewards."""
        return self.free.dtype

    def __matmul__(self, directions: Float[Array, "DR K"]) -> Float[Array, "R K"]:
        rewards = self.free[:, None] * directions[-len(self.free) :]
        return rewards if self.text is None else self.text @ directions[: -len(self.free)] + rewards


# What fits take: features alone are an array.
Features = Float[Array, "R D"] | Design


def width(features: Features) -> int:
    """D: the L2 strength of a direction is D / the variance of a logit."""
    if isinstance(features, Design):
        return 1 if features.text is None else features.text.shape[1]
    return features.shape[1]


def variances(features: Features, given: tuple[float, ...]) -> tuple[float, ...]:
    """Those to try: for free parts, which are known from their own votes alone, a third of the smallest as well."""
    return (min(given) / 3, *given) if isinstance(features, Design) and given else given


def designs(kind: str, phi: Float[Array, "R D"], num_responses: int) -> list[tuple[dict[str, Any], Features]]:
    """What there is to choose from, each with what candidates tell of it, for one of `FEATURES`.

    Raises: UserError for another kind.
    """
    if kind not in FEATURES:
        raise UserError(f"features: {kind!r}; give one of {', '.join(FEATURES)}")
    real = (np.arange(len(phi)) < num_responses).astype(np.float32)
    found: list[tuple[dict[str, Any], Features]] = []
    if kind in ("text", "auto"):
        found.append(({}, phi))
    if kind in ("both", "auto"):
        for share in SHARES:
            scale = np.float32(np.sqrt(phi.shape[1] * share))
            found.append(({"features": "both", "share": share}, Design(phi, jnp.asarray(real * scale))))
    if kind in ("response", "auto"):
        found.append(({"features": "response"}, Design(None, jnp.asarray(real))))
    return found


def parted(features: Features, directions: Array, num_features: int, num_responses: int) -> tuple[Array, Array | None]:
    """Directions of the features [D K], and the responses' free rewards [N K] or None."""
    if not isinstance(features, Design):
        return directions, None
    free = (features.free[:, None] * directions[-len(features.free) :])[:num_responses]
    if features.text is None:
        return jnp.zeros((num_features, directions.shape[1]), directions.dtype), free
    return directions[: -len(features.free)], free


def fitted_design(basis: Array, free: Array | None, phi: Float[Array, "M D"]) -> tuple[Features, Array]:
    """Features and directions of a fit for the responses phi, of which the first N are its own.

    Raises: UserError for fewer than those.
    """
    if free is None:
        return phi, basis
    if len(phi) < len(free):
        raise UserError(f"features: {len(phi)} rows; the fit has free parts of {len(free)} responses, which come first")
    new = jnp.zeros((len(phi) - len(free), basis.shape[1]), basis.dtype)
    return Design(phi, jnp.ones(len(phi), phi.dtype)), jnp.concatenate([basis, free, new])
