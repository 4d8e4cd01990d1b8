"""Features of mean 0 and variance 1: the scale that makes penalties and learning rates mean the same everywhere.

Axis letters: N responses, D features.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pref_jax.errors import UserError


class Standardiser(NamedTuple):
    """Centre and scale of each feature: `mean [D]` and `scale [D]`, float32, both part of a fit's parameters."""

    mean: Array
    scale: Array


def fit_standardiser(features: Float[np.ndarray, "N D"] | Float[Array, "N D"]) -> Standardiser:
    """Mean and standard deviation over the training responses; features that do not vary get scale 1.

    Raises: UserError for NaN or infinite features, or none at all.
    """
    values = np.asarray(features)
    if len(values) == 0:
        raise UserError("features: no training responses; give at least one pair")
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise UserError(
            f"features: {len(bad)} responses hold NaN or infinite values, first row {bad[0]}; embed them again"
        )
    mean = values.mean(0, dtype=np.float64)
    spread = np.sqrt(np.mean((values - mean) ** 2, 0, dtype=np.float64))
    # Rounding leaves a constant feature with a little spread; dividing by it would blow up noise.
    still = spread <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    return Standardiser(jnp.asarray(mean, jnp.float32), jnp.asarray(np.where(still, 1, spread), jnp.float32))


def identity_standardiser(num_features: int) -> Standardiser:
    """Leaves features as they are (the reference recipe works on raw features)."""
    return Standardiser(jnp.zeros(num_features), jnp.ones(num_features))


def standardise(standardiser: Standardiser, features: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """(features - mean) / scale."""
    return (features - standardiser.mean[None]) / standardiser.scale[None]
