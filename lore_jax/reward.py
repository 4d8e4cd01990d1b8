"""LoRe's reward: features, a basis, a user's weights (arXiv 2504.14439).

Axis letters: U users, N responses, D features, K basis, P pairs.

    r_u(x) = w_uᵀ Vᵀ phi(x),    P(u prefers a over b) = sigmoid(r_u(a) - r_u(b))

phi is a frozen feature, standardised with `Standardiser`; V [D K] is the basis. A constant counts for nothing in a
difference, so centring changes no preference; scaling decides what an L2 penalty means.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

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


def basis_rewards(features: Float[Array, "N D"], basis: Float[Array, "D K"]) -> Float[Array, "N K"]:
    """Vᵀ phi of every response, from standardised features."""
    return features @ basis


def differences(
    rewards: Float[Array, "N K"], chosen: Int[Array, "*pairs"], rejected: Int[Array, "*pairs"]
) -> Float[Array, "*pairs K"]:
    """Basis rewards of the chosen response minus those of the rejected one, for each pair; rows by index."""
    return rewards[chosen] - rewards[rejected]


def rewards(basis_reward: Float[Array, "N K"], weights: Float[Array, "U K"]) -> Float[Array, "U N"]:
    """Every user's reward of every response: keep U * N within memory."""
    return jnp.einsum("nk,uk->un", basis_reward, weights)


def pair_logits(
    basis_reward: Float[Array, "N K"],
    weights: Float[Array, "U K"],
    user: Int[Array, " P"],
    chosen: Int[Array, " P"],
    rejected: Int[Array, " P"],
) -> Float[Array, " P"]:
    """Logit of each vote, w_u.(z_chosen - z_rejected): positive where the user is predicted right."""
    return jnp.einsum("pk,pk->p", differences(basis_reward, chosen, rejected), weights[user])


def bradley_terry_loss(logits: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """-log sigmoid(logit), without overflow."""
    return jax.nn.softplus(-logits)
