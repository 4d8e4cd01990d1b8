"""Biased matrix factorisation of votes: users and responses as factors, without texts and without a graph.

    P(u prefers p to n) = sigmoid(x_u·(y_p - y_n) + b_p - b_n),    x, y ~ N(0, 1/λ),

after Koren, Bell and Volinsky, Matrix Factorization Techniques for Recommender Systems (2009), with votes in place of
ratings (Rendle et al., BPR, arXiv 1205.2618, with a Gaussian prior).

Axis letters: U users, N responses, D factors.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from pref_jax.calibrated import calibrated_loss
from pref_jax.comparisons import Comparisons, decided
from pref_jax.item_values import choose_item_values
from pref_jax.user_modes import solve_modes

_STEPS, _LOOKS, _RATE = 400, 40, 0.05
PRIORS, FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), (16, 64, 128)


class Factors(NamedTuple):
    """A fit; `loss` is the calibrated one of the validation votes.

    Attributes:
      users: float32 [U D].
      responses: float32 [N D].
      bias: float32 [N].
      prior: λ.
    """

    users: Float[np.ndarray, "U D"]
    responses: Float[np.ndarray, "N D"]
    bias: Float[np.ndarray, " N"]
    prior: float
    loss: float

    def new_users(self, votes: Comparisons, num_users: int) -> Float[np.ndarray, "V D"]:
        """Factors of other users by their votes, rows of `num_users`, given those of responses."""
        none = np.zeros((num_users, self.users.shape[1]), np.float32)
        return solve_modes(none, votes, embeddings=self.responses, bias=self.bias, precision=self.prior)


def fit(
    train: Comparisons,
    validation: Comparisons,
    *,
    num_users: int,
    num_responses: int,
    key: Key[Array, ""],
    priors: tuple[float, ...] = PRIORS,
    factors: tuple[int, ...] = FACTORS,
) -> Factors:
    """The fit of lowest calibrated validation loss among numbers of factors, priors, and times to stop.

    Begins at the items' Bradley-Terry values; full-batch Adam. Ties are left out.

    Args:
      train: votes to learn.
      validation: held-out votes of the same users.
      num_users: U.
      num_responses: N.
      key: of the factors' start.
      priors: λ to choose from.
      factors: D to choose from.
    """
    train, validation = decided(train), decided(validation)
    bias, precision = choose_item_values(train, validation, num_responses)
    rows = tuple(jnp.asarray(np.stack(part[:3]), jnp.int32) for part in (train, validation))
    best: Factors | None = None
    for size in factors:
        sizes = {"num_users": num_users, "size": size}
        for prior in priors:
            params, loss = _train(*rows, jnp.asarray(bias, jnp.float32), prior, precision, key, **sizes)
            if best is None or float(loss) < best.loss:
                x, y, b = (np.asarray(part) for part in params)
                best = Factors(x, y, b, prior, float(loss))
    if best is None:
        raise ValueError("give at least one prior and one number of factors")
    return best


@functools.partial(jax.jit, static_argnames=("num_users", "size"))
def _train(
    train: Array, validation: Array, bias: Array, prior: Any, precision: Any, key: Array, *, num_users: int, size: int
) -> tuple[tuple[Array, Array, Array], Array]:
    """The best of `_LOOKS` looks at the validation votes, and its loss there; the last without any."""
    keys = jax.random.split(key)
    x, y = (0.1 * jax.random.normal(k, (rows, size)) for k, rows in zip(keys, (num_users, len(bias)), strict=True))
    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))

    def margins(params, votes):
        x, y, b = params
        user, chosen, rejected = votes
        return jnp.sum(x[user] * (y[chosen] - y[rejected]), -1) + b[chosen] - b[rejected]

    def objective(params):
        x, y, b = params
        nll = -jnp.sum(jax.nn.log_sigmoid(margins(params, train)))
        return nll + (prior * (jnp.sum(x**2) + jnp.sum(y**2)) + precision * jnp.sum(b**2)) / 2

    def step(_, carry):
        updates, state = optimizer.update(jax.grad(objective)(carry[0]), carry[1])
        return optax.apply_updates(carry[0], updates), state

    def look(carry, _):
        params, state, best, lowest = carry
        params, state = jax.lax.fori_loop(0, _STEPS // _LOOKS, step, (params, state))
        told = margins(params, validation)
        loss = calibrated_loss(told, jnp.ones_like(told)) if validation.shape[1] else -jnp.inf
        best = jax.tree.map(lambda new, old: jnp.where(loss <= lowest, new, old), params, best)
        return (params, state, best, jnp.minimum(loss, lowest)), None

    params = (x, y, bias)
    carry: Any = (params, optimizer.init(params), params, jnp.asarray(jnp.inf))
    _, _, best, lowest = jax.lax.scan(look, carry, length=_LOOKS)[0]
    return best, lowest
