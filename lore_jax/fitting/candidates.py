"""The personal candidates of `lore_jax.fitting.model_selection.fit`: priors over users' tastes, each fitted to the
same votes from the same start.

Axis letters: U users, n votes per user (padded), N responses, D features, K basis.

Strengths, ranks and masks are arguments of the programs, and arrays are as wide as the widest candidate of a kind, so
that one program per kind serves all of its candidates.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from lore_jax.comparisons import Table
from lore_jax.fitting import gaussian_mixture, priors
from lore_jax.fitting.bradley_terry import LoReConfig, shared_program
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.fitting.lbfgs import minimise
from lore_jax.fitting.priors import FitProblem
from lore_jax.weights.objective import Prior
from lore_jax.weights.precision import full_matmul_precision
from lore_jax.weights.solve import solve_weights

# Kinds of personal candidates: the first three have a basis of their own, "clusters" stand on another kind's.
PERSONAL = ("gaussian", "mixture", "simplex", "clusters")
# Called with the name of what is done next.
Tell = Callable[[str], None]


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
    """Weights of users from their votes in `mask`, as a kind of fit infers them, and the log-loss of all their votes.

    The loss is that of the predictive probability. Where a posterior covariance is known it moderates the probability
    (MacKay 1992), which changes no order of two responses.
    """
    if kind == "mixture":
        weights = solve_weights(z, mask, prior, likelihood="mixture").weights
        return weights, -jax.nn.logsumexp(jax.nn.log_sigmoid(z) + jnp.log(weights + 1e-30)[:, None], axis=-1)
    if kind == "simplex":
        weights = solve_weights(z, mask, prior, constraint="simplex").weights
        return weights, jax.nn.softplus(-jnp.einsum("unk,uk->un", z, weights))
    if kind == "clusters":
        assert found is not None, "fits of this kind have them"
        weights, covariance = gaussian_mixture.posterior(z, mask, found)
    else:
        weights, covariance = solve_weights(z, mask, prior)
    variance = jnp.einsum("unk,ukl,unl->un", z, covariance, z)
    logits = jnp.einsum("unk,uk->un", z, weights)
    return weights, jax.nn.softplus(-logits * lax.rsqrt(1 + jnp.pi / 8 * variance))


def _size(shared: Array) -> Array:
    """How far from the shared direction the personal ones begin: its length.

    Where opposite tastes cancel out it is 0, a saddle point that no descent leaves: hence the least value.
    """
    return jnp.maximum(jnp.linalg.norm(shared), 0.01)


@partial(jax.jit, static_argnames=("kind",))
@full_matmul_precision
def infer_program(kind: str, features, table: Table, mask, basis, prior: Prior, found: Clusters | None):
    """`infer_weights` on a basis [D K]: (weights [U K], log-losses [U n], logits [U n])."""
    z = priors.votes(features, table, basis)
    weights, loss = infer_weights(kind, z, mask, prior, found)
    return weights, loss, jnp.einsum("unk,uk->un", z, weights)


_minimising = partial(jax.jit, static_argnames=("steps", "line_search"))


@_minimising
@full_matmul_precision
def _gaussian_program(task: FitProblem, shared, directions, tolerance, *, steps, line_search):
    """(basis, prior, history)."""
    start = {"shared": shared, "spread": 0.5 * _size(shared) * jnp.where(task.used[None], directions, 0)}
    objective = partial(priors.gaussian_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance, line_search=line_search)
    return priors.gaussian_basis(params, task.used), priors.gaussian_prior(len(task.used)), history


@_minimising
@full_matmul_precision
def _mixture_program(task: FitProblem, shared, directions, tolerance, *, steps, line_search):
    """(basis, prior, history)."""
    size = len(task.used)
    spots = priors.corners(size, task.used.sum())[:, : size - 1]
    start = {
        "shared": shared,
        "delta": _size(shared) * directions[:, : size - 1] @ spots.T,
        "logits": jnp.zeros(size),
    }
    objective = partial(priors.mixture_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance, line_search=line_search)
    basis, mean = priors.mixture_basis(params), jnp.exp(priors.mixture_log_prior(params, task.used))
    covariance = jnp.diag(mean) - mean[:, None] * mean[None] + 1e-3 * jnp.eye(size)
    return basis, Prior(mean, jnp.linalg.inv(covariance)), history


@_minimising
@full_matmul_precision
def _simplex_program(task: FitProblem, basis, mean, weights, tolerance, *, steps, line_search) -> CandidateFit:
    """From the mixture's fit: its directions, and weights that lie a little inside the simplex."""
    shared = jnp.sum(mean[None] * basis, axis=1)
    start = {
        "shared": shared,
        "delta": jnp.where(task.used[None], basis - shared[:, None], 0),
        "tastes": jnp.where(task.used[None], jnp.log(weights + 0.02), 0),
    }
    objective = partial(priors.simplex_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance, line_search=line_search)
    basis, weights = priors.mixture_basis(params), priors.simplex_weights(params, task.used)
    logits = jnp.einsum("unk,uk->un", task.votes(basis), weights)
    real = task.mask.any(1)
    mean = jnp.sum(jnp.where(real[:, None], weights, 0), 0) / jnp.maximum(real.sum(), 1)
    precision = 1e-3 * jnp.eye(len(task.used))
    return CandidateFit(basis, weights, mean, precision, logits, jax.nn.softplus(-logits), history)


@partial(jax.jit, static_argnames=("count",))
@full_matmul_precision
def _clusters_program(features, table: Table, mask, basis, weights, *, count):
    """(prior, clusters, history) of weights on a basis."""
    real = mask.any(1)
    ones, number = real[:, None].astype(weights.dtype), jnp.maximum(real.sum(), 1)
    mean = jnp.sum(ones * weights, 0) / number
    away = ones * (weights - mean[None])
    precision = jnp.linalg.inv(away.T @ away / number + 0.01 * jnp.eye(len(mean)))
    z = priors.votes(features, table, basis)
    users = gaussian_mixture.laplace_likelihood(z, mask, Prior(mean, precision))
    found, history = gaussian_mixture.fit_em(weights, users, real, count=count)
    return gaussian_mixture.moments(found), found, -history


_spectral = jax.jit(full_matmul_precision(priors.spectral_directions), static_argnames=("rank", "steps"))


def _widest(config: LoReConfig) -> int:
    """Directions that the candidates need at most."""
    return max((*config.ranks, *(count - 1 for count in config.components), 1))


def initialize(
    features: Float[Array, "N D"],
    table: Table,
    mask: Bool[Array, "U n"],
    strength: Float[Array, ""],
    config: LoReConfig,
) -> Initialization:
    """The shared direction and the spectral ones of the votes that count."""
    shared, _, history = shared_program(features, table, mask, strength, line_search=config.line_search)
    directions = _spectral(features, table, mask, shared, _widest(config), jax.random.key(config.seed))
    return Initialization(features, table, mask, strength, shared, directions, history)


def _inferred(
    kind: str, start: Initialization, basis: Array, prior: Prior, history: Array, found: Clusters | None = None
) -> CandidateFit:
    """The users' weights on a basis that a program gave."""
    weights, loss, logits = infer_program(kind, start.features, start.table, start.mask, basis, prior, found)
    return CandidateFit(basis, weights, *prior, logits, loss, history, found)


def _personal(
    start: Initialization,
    kind: str,
    rank: int,
    variance: float,
    config: LoReConfig,
    mixture: CandidateFit | None = None,
) -> CandidateFit:
    """A gaussian, mixture or simplex candidate; a simplex one begins at the mixture's fit, which may be given."""
    gaussian = kind == "gaussian"
    size = max(config.ranks if gaussian else config.components)
    # Made by NumPy: JAX would compile a small program for each of these operations.
    strengths = jnp.asarray(np.array([start.strength, start.features.shape[1] / variance], np.float32))
    used = jnp.asarray(np.arange(size) < rank)
    task = FitProblem(start.features, start.table, start.mask, strengths, used)
    tolerance, options = np.float32(config.tolerance), {"steps": config.steps, "line_search": config.line_search}
    if kind == "simplex":
        begun = mixture or _personal(start, "mixture", rank, variance, config)
        return _simplex_program(task, begun.basis, begun.mean, begun.weights, tolerance, **options)
    program = _gaussian_program if gaussian else _mixture_program
    directions = start.directions[:, : size if gaussian else max(size - 1, 1)]
    return _inferred(kind, start, *program(task, start.shared, directions, tolerance, **options))


def num_candidates(config: LoReConfig) -> int:
    """How many candidates of its own basis `search` tries."""
    return len(config.variances) * (len(config.ranks) + len(config.components) * (1 + config.simplex))


def search(start: Initialization, config: LoReConfig, tell: Tell) -> dict[tuple[str, int, float], CandidateFit]:
    """Every gaussian, mixture and simplex candidate by kind, rank and variance."""
    found: dict[tuple[str, int, float], CandidateFit] = {}

    def fit(kind: str, rank: int, variance: float, mixture: CandidateFit | None = None) -> CandidateFit:
        tell(f"{kind}, rank {rank}, variance {variance:g}")
        found[kind, rank, variance] = _personal(start, kind, rank, variance, config, mixture)
        return found[kind, rank, variance]

    for rank, variance in product(config.ranks, config.variances):
        fit("gaussian", rank, variance)
    for rank, variance in product(config.components, config.variances):
        mixture = fit("mixture", rank, variance)
        if config.simplex:
            fit("simplex", rank, variance, mixture)
    return found


def clustered(start: Initialization, begun: CandidateFit, config: LoReConfig) -> CandidateFit:
    """A mixture of Gaussians over the users' weights on the basis of another fit."""
    prior, found, history = _clusters_program(
        start.features, start.table, start.mask, begun.basis, begun.weights, count=config.clusters
    )
    return _inferred("clusters", start, begun.basis, prior, history, found)


def refit(start: Initialization, chosen: dict[str, Any], config: LoReConfig) -> CandidateFit:
    """The chosen candidate from another start."""
    kind = chosen.get("basis", chosen["kind"])
    outcome = _personal(start, kind, chosen["rank"], chosen["variance"], config)
    return clustered(start, outcome, config) if chosen["kind"] == "clusters" else outcome


# --- compiling ahead ---


def _lowered(features: Array, table: Table, config: LoReConfig) -> Iterator[tuple[str, Any]]:
    """Every program of a search on these shapes, traced but not compiled; the slowest to compile first."""
    width, inputs = features.shape[1], (features, table, table.train)
    features, table, mask = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    options = {"steps": config.steps, "line_search": config.line_search}

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    def problem(size: int) -> tuple[FitProblem, Any]:
        return FitProblem(features, table, mask, array(2), array(size, dtype=bool)), array(width)

    def inferring(kind: str, basis: Any, prior: Any, found: Any = None) -> Any:
        return infer_program.lower(kind, features, table, mask, basis, prior, found)

    def clusters(basis: Any, weights: Any) -> Iterator[tuple[str, Any]]:
        program = _clusters_program.lower(features, table, mask, basis, weights, count=config.clusters)
        yield "clusters", program
        yield "clusters' weights", inferring("clusters", basis, *program.out_info[:2])

    yield "shared", shared_program.lower(features, table, mask, array(), line_search=config.line_search)
    if config.ranks:
        size = max(config.ranks)
        task, shared = problem(size)
        program = _gaussian_program.lower(task, shared, array(width, size), array(), **options)
        yield "gaussian", program
        basis, prior, _ = program.out_info
        known = inferring("gaussian", basis, prior)
        yield "gaussian weights", known
        if config.clusters:
            yield from clusters(basis, known.out_info[0])
    if config.components:
        size = max(config.components)
        task, shared = problem(size)
        program = _mixture_program.lower(task, shared, array(width, max(size - 1, 1)), array(), **options)
        yield "mixture", program
        basis, prior, _ = program.out_info
        known = inferring("mixture", basis, prior)
        yield "mixture weights", known
        if config.simplex:
            weights = known.out_info[0]
            yield "simplex", _simplex_program.lower(task, basis, prior.mean, weights, array(), **options)
            yield "simplex weights", inferring("simplex", basis, prior)
            if config.clusters:
                yield from clusters(basis, weights)
    key = jax.eval_shape(lambda: jax.random.key(0))
    yield "directions", _spectral.lower(features, table, mask, array(width), _widest(config), key)


def compile_ahead(features: Array, table: Table, config: LoReConfig, tell: Tell) -> None:
    """Compiles the programs of a search side by side, one per core; JAX's own cache hands them out afterwards.

    One after the other takes about as long as their sum, for most of a compilation runs on one core.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        names = {pool.submit(program.compile): name for name, program in _lowered(features, table, config)}
        for done in as_completed(names):
            done.result()
            tell(f"compiled {names[done]}")
