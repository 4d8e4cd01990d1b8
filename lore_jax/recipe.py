"""The published LoRe recipe (arXiv 2504.14439; DESIGN 4.4), for comparison.

Axis letters: U users, N responses, D features, K basis, P pairs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from lore_jax.linear import Fit
from lore_jax.reward import basis_rewards, identity_standardiser, pair_logits
from lore_jax.votes import Votes, checked


def reference_loss(
    params: dict[str, Array],
    features: Float[Array, "N D"],
    user: Int[Array, " P"],
    chosen: Int[Array, " P"],
    rejected: Int[Array, " P"],
    share: Float[Array, " P"],
) -> Array:
    """Sum over users of the mean over their pairs of -log sigmoid(w_uᵀ Vᵀ(phi_c - phi_r) / 100).

    Args: params `W [U K]` (softmax gives the weights), `V [D K]`; share: 1 / votes of the pair's user.
    """
    logits = pair_logits(basis_rewards(features, params["V"]), jax.nn.softmax(params["W"]), user, chosen, rejected)
    return jnp.sum(share * jax.nn.softplus(-logits / 100))


@partial(jax.jit, static_argnames=("steps",))
def _reference_program(params, features, votes, share, steps, rate):
    optimizer = optax.adam(rate)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(reference_loss)(params, features, *votes, share)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    (params, _), history = lax.scan(step, (params, optimizer.init(params)), None, length=steps)
    return params, history


def reference(
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    train: Votes,
    num_users: int,
    *,
    rank: int,
    seed: int,
    steps: int = 1000,
    rate: float = 0.5,
) -> Fit:
    """The published recipe: one Adam, 1000 full-batch steps at 0.5, W and V ~ N(0, 1), W through softmax, logits / 100.

    Features are taken as they are. The factor 1/100 is folded into the returned basis. Unseen users: simplex
    MAP under a faint pull to equal weights, where the recipe runs 500 steps of Adam. Source: DESIGN 4.4.
    """
    phi = jnp.asarray(features, jnp.float32)
    votes = checked(train, num_users, len(phi), "training votes")
    share = 1 / np.bincount(votes.user, minlength=num_users)[votes.user]
    w_key, v_key = jax.random.split(jax.random.key(seed))
    params = {"W": jax.random.normal(w_key, (num_users, rank)), "V": jax.random.normal(v_key, (phi.shape[1], rank))}
    triples = tuple(jnp.asarray(x, jnp.int32) for x in votes)
    params, history = _reference_program(
        params, phi, triples, jnp.asarray(share, jnp.float32), steps, jnp.float32(rate)
    )
    weights = jax.nn.softmax(params["W"])
    chosen = {"kind": "simplex", "rank": rank}
    mean, precision = jnp.full(rank, 1 / rank), 1e-3 * jnp.eye(rank)
    basis = params["V"] / 100
    return Fit(
        "simplex", identity_standardiser(phi.shape[1]), basis, weights, mean, precision, history, chosen, (chosen,)
    )
