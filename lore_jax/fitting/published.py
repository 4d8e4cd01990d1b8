"""The two published LoRe recipes (arXiv 2504.14439), for comparison. They know preferences alone: ties are left out.

Axis letters: U users, N responses, D features, K basis, P pairs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from lore_jax.fitting.bradley_terry import Fit
from lore_jax.reward import basis_rewards, pair_logits
from pref_jax.comparisons import Votes, check_comparisons, decided
from pref_jax.errors import UserError
from pref_jax.standardiser import identity_standardiser

Params = dict[str, Array]


def _pair_losses(params: Params, features, user, chosen, rejected) -> Array:
    """-log sigmoid(w_uᵀ Vᵀ(phi_c - phi_r) / 100) of every pair, [P]."""
    logits = pair_logits(basis_rewards(features, params["V"]), jax.nn.softmax(params["W"]), user, chosen, rejected)
    return jax.nn.softplus(-logits / 100)


def reference_loss(
    params: Params,
    features: Float[Array, "N D"],
    user: Int[Array, " P"],
    chosen: Int[Array, " P"],
    rejected: Int[Array, " P"],
    share: Float[Array, " P"],
) -> Array:
    """Sum over users of the mean over their pairs of -log sigmoid(w_uᵀ Vᵀ(phi_c - phi_r) / 100).

    Args: params `W [U K]` (softmax gives the weights), `V [D K]`; share: 1 / votes of the pair's user.
    """
    return jnp.sum(share * _pair_losses(params, features, user, chosen, rejected))


def anchored_loss(
    params: Params,
    features: Float[Array, "N D"],
    user: Int[Array, " P"],
    chosen: Int[Array, " P"],
    rejected: Int[Array, " P"],
    anchor: Float[Array, " D"],
    strength: Array,
) -> Array:
    """Mean over all pairs of the same, plus strength * mean over j of (1 - cos(V_j, anchor)).

    Args: params as `reference_loss`; anchor: the reward model's score head, of unit length.
    """
    cosine = anchor @ params["V"] / (jnp.linalg.norm(params["V"], axis=0) + 1e-30)
    return jnp.mean(_pair_losses(params, features, user, chosen, rejected)) + strength * jnp.mean(1 - cosine)


def ramp(step: Array, steps: int, full: Array) -> Array:
    """0 up to 20 % of the steps, `full` from 80 % on, a straight line between."""
    return full * jnp.clip((step / steps - 0.2) / 0.6, 0, 1)


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


@partial(jax.jit, static_argnames=("steps",))
def _anchored_program(params, features, votes, anchor, steps, rate, full):
    optimizer = optax.adam(rate)

    def move(name, params, states, strength):
        """One Adam step on W or V, the other one held; (params, states, loss before it)."""

        def loss(moving):
            user, chosen, rejected = votes
            return anchored_loss({**params, name: moving}, features, user, chosen, rejected, anchor, strength)

        value, gradient = jax.value_and_grad(loss)(params[name])
        update, state = optimizer.update(gradient, states[name])
        return {**params, name: optax.apply_updates(params[name], update)}, {**states, name: state}, value

    def step(carry, index):
        strength = ramp(index, steps, full)
        params, states = carry
        params, states, _ = move("W", params, states, strength)
        params, states, value = move("V", params, states, strength)
        return (params, states), value

    states = {name: optimizer.init(value) for name, value in params.items()}
    (params, _), history = lax.scan(step, (params, states), jnp.arange(steps))
    return params, history


def _start(num_users: int, num_features: int, rank: int, seed: int) -> Params:
    w_key, v_key = jax.random.split(jax.random.key(seed))
    return {"W": jax.random.normal(w_key, (num_users, rank)), "V": jax.random.normal(v_key, (num_features, rank))}


def _fit(basis: Array, weights: Array, history: Array) -> Fit:
    """The factor 1/100 of the logits is folded into the basis; unseen users are pulled faintly to equal weights."""
    size, rank = basis.shape
    chosen = {"kind": "simplex", "rank": rank}
    mean, precision = jnp.full(rank, 1 / rank), 1e-3 * jnp.eye(rank)
    return Fit(
        "simplex", identity_standardiser(size), basis / 100, weights, mean, precision, history, chosen, (chosen,)
    )


def fit_published(
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
    MAP under a faint pull to equal weights, where the recipe runs 500 steps of Adam. Source: the joint loss of LoRe
    (arXiv 2504.14439), with the learning rates and the factor of its published code.
    """
    phi = jnp.asarray(features, jnp.float32)
    votes = check_comparisons(decided(train), num_users, len(phi), "training votes")
    share = 1 / np.bincount(votes.user, minlength=num_users)[votes.user]
    triples = tuple(jnp.asarray(x, jnp.int32) for x in votes[:3])
    params = _start(num_users, phi.shape[1], rank, seed)
    share = jnp.asarray(share, jnp.float32)
    params, history = _reference_program(params, phi, triples, share, steps, jnp.float32(rate))
    return _fit(params["V"], jax.nn.softmax(params["W"]), history)


def fit_published_anchored(
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    train: Votes,
    num_users: int,
    *,
    rank: int,
    anchor: Float[np.ndarray, " head"] | Float[Array, " head"],
    seed: int,
    steps: int = 20_000,
    rate: float = 0.5,
    strength: float = 1e4,
    least: float = 1e-2,
) -> Fit:
    """The published regularised recipe (PRISM): all pairs pooled, and basis rewards drawn to the reward model's own.

    A step is one of Adam on W, then one on V, for `anchored_loss`; the pull to the anchor rises as `ramp` says. In the
    end basis rewards that no user gives a weight of `least` are dropped, and the other weights are scaled to sum to
    one. Starts, softmax and the factor 1/100 as in `fit_published`; so is the rate, of which none is published.

    Args: anchor [D]: the reward model's score head (`score.weight`), of any length but zero.
    Raises: UserError for bad indices, no votes, or an anchor of another shape, zero or not finite.
    Source: the recipe for PRISM in the published code of arXiv 2504.14439.
    """
    phi = jnp.asarray(features, jnp.float32)
    votes = check_comparisons(decided(train), num_users, len(phi), "training votes")
    unit = np.asarray(anchor, np.float32)
    length = np.linalg.norm(unit)
    if unit.shape != phi.shape[1:] or not np.isfinite(length) or length == 0 or len(votes.user) == 0:
        raise UserError(
            f"anchored recipe: anchor of shape {unit.shape} and length {length}, {len(votes.user)} votes; give the "
            f"score head's weights [{phi.shape[1]}] and at least one vote"
        )
    triples = tuple(jnp.asarray(x, jnp.int32) for x in votes[:3])
    params = _start(num_users, phi.shape[1], rank, seed)
    anchor = jnp.asarray(unit / length)
    params, history = _anchored_program(params, phi, triples, anchor, steps, jnp.float32(rate), jnp.float32(strength))
    weights = jax.nn.softmax(params["W"])
    kept = np.flatnonzero(np.asarray(weights).max(0) >= least)
    weights = weights[:, kept]
    return _fit(params["V"][:, kept], weights / weights.sum(1, keepdims=True), history)
