"""The personal candidates of `lore_jax.fitting.model_selection.regularised`: populations fitted from one start, on
votes that count.

Axis letters: U users, n votes a user (padded), N responses, D features, K basis.

Jitted once a shape: strengths, ranks and masks are arguments, and arrays as wide as the widest candidate of a kind.
"""

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lore_jax.comparisons import Table
from lore_jax.fitting import gaussian_mixture, priors
from lore_jax.fitting.bradley_terry import LoReConfig, shared_program
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.fitting.lbfgs import minimise
from lore_jax.fitting.priors import FitProblem
from lore_jax.weights import solve
from lore_jax.weights.objective import Prior
from lore_jax.weights.precision import full_matmul_precision

# Populations that have a basis of their own, and how they are named in candidates; "clusters" stand on another's.
PERSONAL = ("gaussian", "mixture", "simplex", "clusters")


class Initialization(NamedTuple):
    """What every candidate begins from.

    Features [N D], the table, which votes count [U n], the L2 strength of the shared direction, that direction [D],
    the directions in which users disagree with it [D K], and the history of the shared fit.
    """

    features: Array
    table: Table
    mask: Array
    strength: Array
    shared: Array
    directions: Array
    history: Array


class CandidateFit(NamedTuple):
    """One candidate's fit: basis, weights, prior, logits and losses of every vote [U n], history, clusters."""

    basis: Array
    weights: Array
    mean: Array
    precision: Array
    logits: Array
    loss: Array
    history: Array
    clusters: Clusters | None = None


def infer_weights(
    kind: str,
    z: Float[Array, "U n K"],
    mask: Bool[Array, "U n"],
    prior: Prior,
    found: Clusters | None,
) -> tuple[Float[Array, "U K"], Float[Array, "U n"]]:
    """Weights of users known by the votes in `mask`, in the way of a kind of fit, and the log-loss of all their votes.

    The loss is of the predictive probability. Where a posterior is known, its width moderates the probability (MacKay
    1992), but not the order of two responses.
    """
    if kind == "mixture":
        weights = solve.mixture(z, mask, jnp.log(prior.mean + 1e-30))
        return weights, -jax.nn.logsumexp(jax.nn.log_sigmoid(z) + jnp.log(weights + 1e-30)[:, None], axis=-1)
    if kind == "simplex":
        weights = solve.logistic_simplex(z, mask, prior)
        return weights, jax.nn.softplus(-jnp.einsum("unk,uk->un", z, weights))
    if kind == "clusters":
        assert found is not None, "fits of this kind have them"
        weights, covariance = gaussian_mixture.posterior(z, mask, found)
    else:
        weights, covariance = solve.logistic(z, mask, prior)
    variance = jnp.einsum("unk,ukl,unl->un", z, covariance, z)
    logits = jnp.einsum("unk,uk->un", z, weights)
    return weights, jax.nn.softplus(-logits * lax.rsqrt(1 + jnp.pi / 8 * variance))


def _outcome(
    kind: str, z: Array, mask: Array, basis: Array, prior: Prior, history: Array, found: Clusters | None = None
) -> CandidateFit:
    """The users solved on a basis, on which their votes are z [U n K]."""
    weights, loss = infer_weights(kind, z, mask, prior, found)
    logits = jnp.einsum("unk,uk->un", z, weights)
    return CandidateFit(basis, weights, *prior, logits, loss, history, found)


@partial(jax.jit, static_argnames=("steps",))
@full_matmul_precision
def _gaussian_program(task: FitProblem, shared, directions, steps, tolerance):
    start = {"shared": shared, "spread": 0.5 * jnp.linalg.norm(shared) * jnp.where(task.used[None], directions, 0)}
    objective = partial(priors.gaussian_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance)
    basis, prior = priors.gaussian_basis(params, task.used), priors.gaussian_prior(len(task.used))
    return _outcome("gaussian", task.votes(basis), task.mask, basis, prior, history)


@partial(jax.jit, static_argnames=("steps",))
@full_matmul_precision
def _mixture_program(task: FitProblem, shared, directions, steps, tolerance):
    size = len(task.used)
    spots = priors.corners(size, task.used.sum())[:, : size - 1]
    start = {
        "shared": shared,
        "delta": jnp.linalg.norm(shared) * directions[:, : size - 1] @ spots.T,
        "logits": jnp.zeros(size),
    }
    objective = partial(priors.mixture_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance)
    basis, mean = priors.mixture_basis(params), jnp.exp(priors.mixture_log_prior(params, task.used))
    covariance = jnp.diag(mean) - mean[:, None] * mean[None] + 1e-3 * jnp.eye(size)
    prior = Prior(mean, jnp.linalg.inv(covariance))
    return _outcome("mixture", task.votes(basis), task.mask, basis, prior, history)


@partial(jax.jit, static_argnames=("steps",))
@full_matmul_precision
def _simplex_program(task: FitProblem, begun: CandidateFit, steps, tolerance):
    """From the mixture's fit: its directions, and weights that lie a little inside the simplex."""
    shared = jnp.sum(begun.mean[None] * begun.basis, axis=1)
    start = {
        "shared": shared,
        "delta": jnp.where(task.used[None], begun.basis - shared[:, None], 0),
        "tastes": jnp.where(task.used[None], jnp.log(begun.weights + 0.02), 0),
    }
    objective = partial(priors.simplex_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance)
    basis, weights = priors.mixture_basis(params), priors.simplex_weights(params, task.used)
    logits = jnp.einsum("unk,uk->un", task.votes(basis), weights)
    real = task.mask.any(1)
    mean = jnp.sum(jnp.where(real[:, None], weights, 0), 0) / jnp.maximum(real.sum(), 1)
    precision = 1e-3 * jnp.eye(len(task.used))
    return CandidateFit(basis, weights, mean, precision, logits, jax.nn.softplus(-logits), history)


@partial(jax.jit, static_argnames=("count",))
@full_matmul_precision
def _clusters_program(features, table: Table, mask, begun: CandidateFit, count):
    real = mask.any(1)
    ones, number = real[:, None].astype(begun.weights.dtype), jnp.maximum(real.sum(), 1)
    mean = jnp.sum(ones * begun.weights, 0) / number
    away = ones * (begun.weights - mean[None])
    precision = jnp.linalg.inv(away.T @ away / number + 0.01 * jnp.eye(len(mean)))
    z = priors.votes(features, table, begun.basis)
    users = gaussian_mixture.laplace_likelihood(z, mask, Prior(mean, precision))
    found, history = gaussian_mixture.fit_em(begun.weights, users, real, count=count)
    return _outcome("clusters", z, mask, begun.basis, gaussian_mixture.moments(found), -history, found)


_spectral = jax.jit(full_matmul_precision(priors.spectral_directions), static_argnames=("rank", "steps"))


def initialize(
    features: Float[Array, "N D"],
    table: Table,
    mask: Bool[Array, "U n"],
    strength: Float[Array, ""],
    config: LoReConfig,
) -> Initialization:
    """The shared direction and the spectral ones of the votes that count."""
    shared, _, history = shared_program(features, table, mask, strength)
    rank = max((*config.ranks, *(count - 1 for count in config.components), 1))
    directions = _spectral(features, table, mask, shared, rank, jax.random.key(config.seed))
    return Initialization(features, table, mask, strength, shared, directions, history)


def _personal(
    start: Initialization,
    kind: str,
    rank: int,
    variance: float,
    config: LoReConfig,
    mixture: CandidateFit | None = None,
) -> CandidateFit:
    """A gaussian, mixture or simplex candidate; `mixture`: the fit of that kind, where there is one, for simplex.

    The arrays are as wide as the widest candidate of the kind, so that one program serves all.
    """
    gaussian = kind == "gaussian"
    if kind == "simplex" and mixture is None:
        mixture = _personal(start, "mixture", rank, variance, config)
    size = max(config.ranks if gaussian else config.components)
    strengths = jnp.stack([start.strength, jnp.float32(start.features.shape[1] / variance)])
    task = FitProblem(start.features, start.table, start.mask, strengths, jnp.arange(size) < rank)
    tolerance = jnp.float32(config.tolerance)
    if kind == "simplex":
        return _simplex_program(task, mixture, config.steps, tolerance)
    program = _gaussian_program if gaussian else _mixture_program
    width = size if gaussian else max(size - 1, 1)
    return program(task, start.shared, start.directions[:, :width], config.steps, tolerance)


def search(start: Initialization, config: LoReConfig) -> dict[tuple[str, int, float], CandidateFit]:
    """Every gaussian, mixture and simplex candidate by kind, rank and variance."""
    found = {}
    for key in product(("gaussian",), config.ranks, config.variances):
        found[key] = _personal(start, *key, config)
    for rank, variance in product(config.components, config.variances):
        mixture = found["mixture", rank, variance] = _personal(start, "mixture", rank, variance, config)
        found["simplex", rank, variance] = _personal(start, "simplex", rank, variance, config, mixture)
    return found


def clustered(start: Initialization, begun: CandidateFit, config: LoReConfig) -> CandidateFit:
    """The users' weights on the basis of another fit as a population of clusters."""
    return _clusters_program(start.features, start.table, start.mask, begun, config.clusters)


def refit(start: Initialization, chosen: dict[str, Any], config: LoReConfig) -> CandidateFit:
    """The chosen candidate from another start."""
    kind = chosen.get("basis", chosen["kind"])
    outcome = _personal(start, kind, chosen["rank"], chosen["variance"], config)
    if chosen["kind"] == "clusters":
        return clustered(start, outcome, config)
    return outcome
