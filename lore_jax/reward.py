"""LoRe's reward: features, a basis, a user's weights (arXiv 2504.14439).

Axis letters: U users, N responses, D features, K basis, P pairs.

    r_u(x) = w_uᵀ Vᵀ phi(x),    P(u prefers a over b) = sigmoid(r_u(a) - r_u(b))

phi is a frozen feature, standardised with `Standardiser`; V [D K] is the basis. A constant counts for nothing in a
difference, so centring changes no preference; scaling decides what an L2 penalty means.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
