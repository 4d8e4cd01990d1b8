"""The loss of held-out votes at the scale of margins that suits them best: how well they are told apart.

Models that differ in how strongly they are shrunk differ in the size of their margins too, which a plain loss rewards
or punishes, and an accuracy is too coarse to choose by.

Axis letters: P votes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_OCTAVES, _STEPS = (-5.0, 3.0), 33


def calibrated_loss(margin: Float[Array, " P"], weight: Float[Array | np.ndarray, " P"]) -> Float[Array, ""]:
    """The least over scales s of the weighted mean of -log sigmoid(s margin); 0 if all weights are 0.

    Example:
      >>> float(calibrated_loss(jnp.array([8.0, -8.0]), jnp.ones(2))) < float(jnp.log(2.0)) + 0.01
      True
    """
    total = jnp.sum(weight)

    def loss(octave: Array) -> Array:
        return -jnp.sum(weight * jax.nn.log_sigmoid(jnp.exp2(octave) * margin)) / jnp.where(total > 0, total, 1)

    return jnp.min(jax.lax.map(loss, jnp.linspace(*_OCTAVES, _STEPS, dtype=margin.dtype)))
