"""A mixture of a few Gaussians over the users' weights, for users whom a single Gaussian describes badly.

    w ~ sum_c share_c N(mean_c, precision_c^-1)

Few answers then say to which cluster a user belongs, more of them where in the cluster the user is. Learned from the
seen users by expectation and maximisation, each user's votes a Gaussian likelihood (Laplace's, at the MAP), so that
users of whom little is known widen no cluster ("extreme deconvolution", Bovy, Hogg and Roweis, arXiv 0905.2979).

Axis letters: U users, L lanes, n pairs per lane (padded), K basis, C clusters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lore_jax.weights import objective, solve
from lore_jax.weights.batched_cholesky import cholesky
from lore_jax.weights.objective import Prior
from lore_jax.weights.precision import full_matmul_precision

# A cluster's covariance is that of its users and of so many more, who spread as all users do but for this share of
# their variance; and no weight is known better than FLOOR.
EXTRA_USERS, EXTRA_SPREAD, FLOOR = 10.0, 0.02, 1e-4


class Clusters(NamedTuple):
    """log_share [C], mean [C K], precision [C K K] (symmetric, positive definite)."""

    log_share: Array
    mean: Array
    precision: Array


class LaplaceLikelihood(NamedTuple):
    """What votes say of each user's weights w, up to a constant: information.w - 1/2 w.curvature.w."""

    information: Array
    curvature: Array


@full_matmul_precision
def laplace_likelihood(
    z: Float[Array, "L n K"], mask: Bool[Array, "L n"] | Float[Array, "L n"], prior: Prior, **extras: Any
) -> LaplaceLikelihood:
    """The votes' log-likelihood to second order about the MAP under `prior`: [U K] and [U K K]; zeros without votes.

    A prior that holds a user where the votes are as good as impossible leaves them a slope without curvature, which
    rises far beyond the votes' own likelihood: the prior should be as wide as users differ. `extras` are those of
    `solve_weights`: user, offset, choice, squared.
    """
    problem, users = objective.problem(z, mask, prior, **extras)
    weights = solve.logistic_weights(problem, users)
    alone = problem._replace(precision=jnp.zeros_like(problem.precision))
    curvature = objective.logistic_hessian(alone, weights)
    slope = -objective.logistic_gradient(alone, weights)
    return LaplaceLikelihood(slope + jnp.einsum("ukl,ul->uk", curvature, weights), curvature)


def _members(users: LaplaceLikelihood, mean: Array, precision: Array) -> tuple[Array, Array, Array]:
    """Each user as one of a cluster: posterior mean [U K] and covariance [U K K], log-evidence [U] (0 for none)."""
    pull = users.information - users.curvature @ mean
    factor = cholesky(users.curvature + precision[None])
    shift = factor.divide(pull)
    here = users.information @ mean - 0.5 * jnp.einsum("k,ukl,l->u", mean, users.curvature, mean)
    volume = jnp.linalg.slogdet(precision)[1] - factor.log_determinant()
    return mean[None] + shift, factor.inverse(), here + 0.5 * (jnp.sum(pull * shift, -1) + volume)


def _farthest_point_init(weights: Array, real: Array, count: int) -> Array:
    """Means to begin from [C K]: the users' mean, then again and again the user who is farthest from all so far."""
    first = jnp.sum(jnp.where(real[:, None], weights, 0), 0) / jnp.maximum(real.sum(), 1)

    def add(index, state):
        means, distance = state
        taken = weights[jnp.argmax(jnp.where(real, distance, -1))]
        return means.at[index].set(taken), jnp.minimum(distance, jnp.sum((weights - taken[None]) ** 2, -1))

    means = jnp.zeros((count, weights.shape[1]), weights.dtype).at[0].set(first)
    return lax.fori_loop(1, count, add, (means, jnp.sum((weights - first[None]) ** 2, -1)))[0]


@full_matmul_precision
def fit_em(
    weights: Float[Array, "U K"],
    users: LaplaceLikelihood,
    real: Bool[Array, " U"],
    *,
    count: int,
    steps: int = 100,
) -> tuple[Clusters, Float[Array, " steps"]]:
    """The clusters that make the seen users' votes likely, and the log-likelihood before each step.

    With the logs of two priors added the log-likelihood rises from step to step: of Dirichlet(2, 2 ..) on the shares,
    and of a conjugate density on each covariance S,  |S|^(-EXTRA_USERS / 2) exp(-tr(spread S^-1) EXTRA_USERS
    EXTRA_SPREAD / 2).  But for what keeps all finite (FLOOR, and the thousandth of a user) the limit is therefore a
    local MAP. The log-likelihood alone may fall.

    Args:
      weights: estimates to begin from.
      users: what the votes say, from `laplace_likelihood`.
      real: false for padding and for whoever is to be left out; such rows of `weights` are finite.
      count: C. Clusters without users keep next to no share.
      steps: of expectation and maximisation.
    """
    size, total = weights.shape[1], jnp.maximum(real.sum(), 1)
    centre = jnp.sum(jnp.where(real[:, None], weights, 0), 0) / total
    away = jnp.where(real[:, None], weights - centre[None], 0)
    spread, floor = away.T @ away / total, FLOOR * jnp.eye(size, dtype=weights.dtype)
    begin = (spread / count + floor)[None].repeat(count, 0)
    start = (_farthest_point_init(weights, real, count), begin, jnp.full(count, -jnp.log(count), weights.dtype))

    def step(state, _):
        means, covariances, log_share = state
        precisions = cholesky(covariances).inverse()
        # One cluster after the other: what is held at a time is [U K K], not [U C K K].
        evidence = lax.map(lambda own: _members(users, *own)[2], (means, precisions)) + log_share[:, None]
        share = jnp.where(real[None], jax.nn.softmax(evidence, 0), 0)

        def refit(own):
            mean, precision, members = own
            weights, covariance, _ = _members(users, mean, precision)
            number = members.sum()
            # A thousandth of a user at the centre keeps an empty cluster's mean finite.
            middle = (members @ weights + 1e-3 * centre) / (number + 1e-3)
            gap = weights - middle[None]
            scatter = jnp.einsum("u,ukl->kl", members, covariance + gap[:, :, None] * gap[:, None])
            wide = (scatter + EXTRA_USERS * EXTRA_SPREAD * spread) / (number + EXTRA_USERS)
            return middle, wide + floor, jnp.log(number + 1)

        middles, wide, sizes = lax.map(refit, (means, precisions, share))
        likelihood = jnp.sum(jnp.where(real, jax.nn.logsumexp(evidence, 0), 0))
        return (middles, wide, sizes - jax.nn.logsumexp(sizes)), likelihood

    (means, covariances, log_share), history = lax.scan(step, start, None, length=steps)
    return Clusters(log_share, means, cholesky(covariances).inverse()), history


@full_matmul_precision
def moments(clusters: Clusters) -> Prior:
    """The one Gaussian of the same mean and covariance: mean [K], precision [K K]."""
    share = jnp.exp(clusters.log_share)
    mean = share @ clusters.mean
    away = clusters.mean - mean[None]
    covariance = jnp.einsum(
        "c,ckl->kl", share, cholesky(clusters.precision).inverse() + away[:, :, None] * away[:, None]
    )
    return Prior(mean, cholesky(covariance[None]).inverse()[0])


@full_matmul_precision
def posterior(
    z: Float[Array, "L n K"], mask: Bool[Array, "L n"] | Float[Array, "L n"], clusters: Clusters, **extras: Any
) -> solve.Posterior:
    """Mean and covariance of each user's weights: in every cluster Laplace's, at the exact MAP, weighed by evidence.

    Without votes the mean is the population's. `extras` are those of `solve_weights`: user, offset, choice, squared.
    """

    def within(own):
        mean, precision = own
        problem, users = objective.problem(z, mask, Prior(mean, precision), **extras)
        found = solve.logistic_weights(problem, users)
        factor = cholesky(objective.logistic_hessian(problem, found))
        volume = jnp.linalg.slogdet(precision)[1] - factor.log_determinant()
        evidence = 0.5 * volume - objective.logistic_objective(problem, found)
        # Without votes it is 0 but for rounding.
        known = problem.rows.total(problem.rows.weight, users) > 0
        return found, factor.inverse(), jnp.where(known, evidence, 0)

    found, covariance, evidence = lax.map(within, (clusters.mean, clusters.precision))
    share = jax.nn.softmax(clusters.log_share[:, None] + evidence, 0)
    mean = jnp.einsum("cu,cuk->uk", share, found)
    away = found - mean[None]
    between = jnp.einsum("cu,cuk,cul->ukl", share, away, away)
    return solve.Posterior(mean, jnp.einsum("cu,cukl->ukl", share, covariance) + between)
