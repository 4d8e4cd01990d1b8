"""The personal candidates of `lore_jax.fitting.model_selection.fit`: priors over users' tastes, each fitted to the
same votes from the same start.

Axis letters: U users, L lanes (`lore_jax.lanes`), n votes per lane (padded), N responses, D features, K basis.

Strengths, ranks and masks are arguments of the programs, and arrays are as wide as the widest candidate of a kind, so
that one program per kind serves all of its candidates.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import product
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lore_jax.comparisons import Table
from lore_jax.fitting import gaussian_mixture, priors
from lore_jax.fitting.bradley_terry import LoReConfig, shared_program
from lore_jax.fitting.design import Design, Features, width
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.fitting.lbfgs import minimise, minimise_along
from lore_jax.fitting.priors import FitProblem
from lore_jax.fitting.reading import Scales, losses, row_arguments, row_losses, scales_of
from lore_jax.lanes import fold_max, spread
from lore_jax.weights.objective import Prior, together
from lore_jax.weights.precision import full_matmul_precision
from lore_jax.weights.solve import solve_weights

# Kinds of personal candidates: all but the last have a basis of their own, "clusters" stand on another kind's.
PERSONAL = ("gaussian", "factors", "mixture", "simplex", "clusters")
# Called with the name of what is done next.
Tell = Callable[[str], None]


class Initialization(NamedTuple):
    """What every candidate begins from.

    Features [N D] or a design, the table, which votes count [L n], the L2 strength of the shared direction, that
    direction [D], the directions in which users disagree with it [D K], the history of the shared fit, and its scales.
    """

    features: Any
    table: Table
    mask: Array
    strength: Array
    shared: Array
    directions: Array
    history: Array
    scales: Scales


class CandidateFit(NamedTuple):
    """One candidate's fit: basis, weights, prior, logits and losses of every row [L n], history, scales, clusters."""

    basis: Array
    weights: Array
    mean: Array
    precision: Array
    logits: Array
    loss: Array
    history: Array
    scales: Scales
    clusters: Clusters | None = None


def infer_weights(
    kind: str,
    z: Float[Array, "L n K"],
    mask: Bool[Array, "L n"] | Float[Array, "L n"],
    prior: Prior,
    found: Clusters | None,
    **extras: Any,
) -> tuple[Float[Array, "U K"], Float[Array, "U K K"] | None]:
    """Weights of users from their votes in `mask`, as a kind of fit infers them, and their covariance where it has one.

    `extras` are those of `solve_weights`: user, offset, choice, squared.
    """
    if kind == "mixture":
        return solve_weights(z, mask, prior, likelihood="mixture", **extras).weights, None
    if kind == "simplex":
        return solve_weights(z, mask, prior, constraint="simplex", **extras).weights, None
    if kind == "clusters":
        assert found is not None, "fits of this kind have them"
        return gaussian_mixture.posterior(z, mask, found, **extras)
    weights, covariance = solve_weights(z, mask, prior, **extras)
    # A basis at its joint mode with the weights has a length that says nothing of how they spread.
    return weights, None if kind == "factors" else covariance


def _mixture_losses(table: Table, z: Float[Array, "L n K"], weights: Array, scales: Scales) -> Float[Array, "L n"]:
    """-log of the votes' probabilities, mixed by the users' weights; a vote's stands in its first row."""
    every, share = jnp.ones(z.shape[:2], bool), jnp.log(spread(weights, table.owner) + 1e-30)[:, None]
    if table.extras is None:
        return -jax.nn.logsumexp(jax.nn.log_sigmoid(z) + share, axis=-1)
    extras = table.extras
    rows = jax.vmap(lambda own: row_losses(extras, every, scales, own), in_axes=-1, out_axes=-1)(z)
    whole = -jax.nn.logsumexp(share - together(rows, extras.vote), axis=-1)
    return jnp.where(extras.vote == jnp.arange(extras.vote.size).reshape(extras.vote.shape), whole, 0)


def _predictive_losses(
    kind: str, table: Table, z: Array, weights: Array, covariance: Array | None, scales: Scales
) -> Float[Array, "L n"]:
    """The log-loss of all rows: that of the predictive probability.

    Where a posterior covariance is known it moderates the probability (MacKay 1992), which changes no order of two
    responses.
    """
    if kind == "mixture":
        return _mixture_losses(table, z, weights, scales)
    owner = table.owner
    variance = None if covariance is None else jnp.einsum("unk,ukl,unl->un", z, spread(covariance, owner), z)
    every = jnp.ones(z.shape[:2], bool)
    return losses(table.extras, every, scales, jnp.einsum("unk,uk->un", z, spread(weights, owner)), variance)


def _size(shared: Any) -> Any:
    """How far from the shared direction the personal ones begin: its length.

    Where opposite tastes cancel out it is 0, a saddle point that no descent leaves: hence the least value.
    """
    return (shared**2).sum().clip(1e-4) ** 0.5


@partial(jax.jit, static_argnames=("kind",))
@full_matmul_precision
def infer_program(kind: str, features, table: Table, mask, basis, prior: Prior, found: Clusters | None, scales: Scales):
    """`infer_weights` on a basis [D K]: (weights [U K], log-losses [L n], logits [L n])."""
    z = priors.votes(features, table, basis)
    rows = row_arguments(table.extras, mask, scales, table.owner)
    weights, covariance = infer_weights(kind, z, prior=prior, found=found, **rows)
    loss = _predictive_losses(kind, table, z, weights, covariance, scales)
    return weights, loss, jnp.einsum("unk,uk->un", z, spread(weights, table.owner))


_minimising = partial(jax.jit, static_argnames=("steps", "line_search"))


@_minimising
@full_matmul_precision
def _gaussian_program(task: FitProblem, shared, spread, scales: Scales, tolerance, *, steps, line_search):
    """(basis, prior, history, scales)."""
    start = {"shared": shared, "spread": spread, **scales}
    objective = partial(priors.gaussian_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance, line_search=line_search)
    basis, prior = priors.gaussian_basis(params, task.used), priors.gaussian_prior(len(task.used))
    return basis, prior, history, scales_of(params)


@_minimising
@full_matmul_precision
def _mixture_program(task: FitProblem, shared, directions, scales: Scales, tolerance, *, steps, line_search):
    """(basis, prior, history, scales)."""
    size = len(task.used)
    spots = priors.corners(size, task.used.sum())[:, : size - 1]
    start = {
        "shared": shared,
        "delta": _size(shared) * directions[:, : size - 1] @ spots.T,
        "logits": jnp.zeros(size),
        **scales,
    }
    objective = partial(priors.mixture_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance, line_search=line_search)
    basis, mean = priors.mixture_basis(params), jnp.exp(priors.mixture_log_prior(params, task.used))
    covariance = jnp.diag(mean) - mean[:, None] * mean[None] + 1e-3 * jnp.eye(size)
    return basis, Prior(mean, jnp.linalg.inv(covariance)), history, scales_of(params)


@partial(jax.jit, static_argnames="steps")
@full_matmul_precision
def _factor_program(task: FitProblem, shared, begin, tastes, scales: Scales, tolerance, stops, *, steps):
    """(bases [S D K], prior, history, scales [S ...]) after each number of steps."""
    start = {"shared": shared, "spread": begin, "tastes": tastes, **scales}

    def keep(params: dict[str, Array]) -> tuple[Array, Scales]:
        return priors.gaussian_basis(params, task.used), scales_of(params)

    objective = partial(priors.factor_objective, task)
    (bases, scales), history = minimise_along(objective, start, stops, keep, steps=steps, tolerance=tolerance)
    return bases, priors.gaussian_prior(len(task.used)), history, scales


@_minimising
@full_matmul_precision
def _simplex_program(
    task: FitProblem, basis, mean, weights, scales: Scales, tolerance, *, steps, line_search
) -> CandidateFit:
    """From the mixture's fit: its directions, and weights that lie a little inside the simplex."""
    shared = jnp.sum(mean[None] * basis, axis=1)
    start = {
        "shared": shared,
        "delta": jnp.where(task.used[None], basis - shared[:, None], 0),
        "tastes": jnp.where(task.used[None], jnp.log(weights + 0.02), 0),
        **scales,
    }
    objective = partial(priors.simplex_objective, task)
    params, _, history = minimise(objective, start, steps=steps, tolerance=tolerance, line_search=line_search)
    basis, weights, scales = (
        priors.mixture_basis(params),
        priors.simplex_weights(params, task.used),
        scales_of(params),
    )
    logits = jnp.einsum("unk,uk->un", task.votes(basis), spread(weights, task.table.owner))
    real = fold_max(task.mask.any(1), task.table.owner)
    mean = jnp.sum(jnp.where(real[:, None], weights, 0), 0) / jnp.maximum(real.sum(), 1)
    precision = 1e-3 * jnp.eye(len(task.used))
    every = jnp.ones(task.mask.shape, bool)
    loss = losses(task.table.extras, every, scales, logits)
    return CandidateFit(basis, weights, mean, precision, logits, loss, history, scales)


@partial(jax.jit, static_argnames=("count",))
@full_matmul_precision
def _clusters_program(features, table: Table, mask, basis, weights, scales: Scales, *, count):
    """(prior, clusters, history) of weights on a basis."""
    real = fold_max(mask.any(1), table.owner)
    ones, number = real[:, None].astype(weights.dtype), jnp.maximum(real.sum(), 1)
    mean = jnp.sum(ones * weights, 0) / number
    away = ones * (weights - mean[None])
    precision = jnp.linalg.inv(away.T @ away / number + 0.01 * jnp.eye(len(mean)))
    z = priors.votes(features, table, basis)
    rows = row_arguments(table.extras, mask, scales, table.owner)
    users = gaussian_mixture.laplace_likelihood(z, prior=Prior(mean, precision), **rows)
    found, history = gaussian_mixture.fit_em(weights, users, real, count=count)
    return gaussian_mixture.moments(found), found, -history


_spectral = jax.jit(full_matmul_precision(priors.spectral_directions), static_argnames=("rank", "steps"))


def _widest(config: LoReConfig) -> int:
    """Directions that the candidates need at most."""
    return max((*config.ranks, *(count - 1 for count in config.components), 1))


def initialize(
    features: Features,
    table: Table,
    mask: Bool[Array, "L n"],
    strength: Float[Array, ""],
    config: LoReConfig,
    scales: Scales,
) -> Initialization:
    """The shared direction and the spectral ones of the votes that count, from where the scales begin."""
    found = shared_program(features, table, mask, strength, scales, line_search=config.line_search)
    shared, logits, history, scales = found
    directions = _spectral(features, table, mask, logits, _widest(config), jax.random.key(config.seed), scales=scales)
    return Initialization(features, table, mask, strength, shared, directions, history, scales)


def _inferred(
    kind: str,
    start: Initialization,
    basis: Array,
    prior: Prior,
    history: Array,
    scales: Scales,
    found: Clusters | None = None,
) -> CandidateFit:
    """The users' weights on a basis that a program gave."""
    weights, loss, logits = infer_program(kind, start.features, start.table, start.mask, basis, prior, found, scales)
    return CandidateFit(basis, weights, *prior, logits, loss, history, scales, found)


def has_factors(features: Any, config: LoReConfig) -> bool:
    """Whether "factors" are tried: where responses have free parts, and there is something to choose.

    `features` may be shapes alone, here and in `num_factors`.
    """
    return isinstance(features, Design) and bool(config.factor_variances) and bool(config.variances)


def num_factors(features: Any, config: LoReConfig) -> int:
    """As many as the config has, and no more than there are responses."""
    return min(config.factors, features.shape[0])


def factor_stops(config: LoReConfig) -> list[int]:
    """After how many steps "factors" are looked at."""
    return sorted({min(steps, config.steps) for steps in config.factor_steps})


def _factors(
    start: Initialization, rank: int, variance: float, config: LoReConfig, stops: list[int]
) -> list[CandidateFit]:
    """A basis and weights on the way to their joint mode, from small random ones, after each number of steps."""
    rng, counts = np.random.default_rng(config.seed), (start.features.shape[1], start.table.num_users)
    begin, tastes = (rng.normal(scale=0.1, size=(count, rank)).astype(np.float32) for count in counts)
    task, at = _problem(start, rank, rank, variance), np.array(stops, np.int32)
    least = np.array([width(start.features) / config.factor_shared_variance, 0], np.float32)
    task = task._replace(strengths=jnp.maximum(task.strengths, jnp.asarray(least)))
    options: Any = {"tolerance": np.float32(config.tolerance), "stops": at, "steps": config.steps}
    bases, prior, history, scales = _factor_program(task, start.shared, begin, tastes, start.scales, **options)
    parts = ((bases[place], jax.tree.map(itemgetter(place), scales)) for place in range(len(stops)))
    return [_inferred("factors", start, basis, prior, history, own) for basis, own in parts]


def _personal(
    start: Initialization,
    kind: str,
    rank: int,
    variance: float,
    config: LoReConfig,
    mixture: CandidateFit | None = None,
) -> CandidateFit:
    """A candidate of a basis of its own; a simplex one begins at the mixture's fit, which may be given."""
    gaussian = kind == "gaussian"
    size = max(config.ranks if gaussian else config.components)
    task = _problem(start, size, rank, variance)
    tolerance, options = _options(config)
    if kind == "simplex":
        begun = mixture or _personal(start, "mixture", rank, variance, config)
        return _simplex_program(task, begun.basis, begun.mean, begun.weights, begun.scales, tolerance, **options)
    if gaussian:
        shared, directions = np.asarray(start.shared), np.asarray(start.directions)[:, :size]
        begin = 0.5 * _size(shared) * np.where(np.arange(size) < rank, directions, 0)
        program = _gaussian_program
    else:
        begin, program = start.directions[:, : max(size - 1, 1)], _mixture_program
    return _inferred(kind, start, *program(task, start.shared, begin, start.scales, tolerance, **options))


def _problem(start: Initialization, size: int, rank: int, variance: float) -> FitProblem:
    # Made by NumPy: JAX would compile a small program for each of these operations.
    strengths = jnp.asarray(np.array([start.strength, width(start.features) / variance], np.float32))
    return FitProblem(start.features, start.table, start.mask, strengths, jnp.asarray(np.arange(size) < rank))


def _options(config: LoReConfig) -> tuple[np.float32, dict[str, Any]]:
    return np.float32(config.tolerance), {"steps": config.steps, "line_search": config.line_search}


def _half(config: LoReConfig) -> LoReConfig:
    """With half of the steps: what begins at another fit has less far to go."""
    return dataclasses.replace(config, steps=-(-config.steps // 2))


def grown(start: Initialization, found: CandidateFit, rank: int, variance: float, config: LoReConfig) -> CandidateFit:
    """A gaussian candidate that begins at another's fit of a lower rank, or the same one on fewer votes.

    Further directions are those in which users still disagree with it, as long as the shortest that it has. It takes
    half of the steps.
    """
    basis = np.asarray(found.basis)
    used = int((basis[:, 1:] != 0).any(0).sum())
    spread = np.zeros((len(basis), rank), np.float32)
    spread[:, :used] = basis[:, 1 : used + 1]
    if rank > used:
        # As many as the search began with, if these are enough: their program is compiled.
        more = max(rank - used, _widest(config)), jax.random.key(config.seed)
        directions = _spectral(start.features, start.table, start.mask, found.logits, *more, scales=found.scales)
        least = np.sqrt((spread[:, :used] ** 2).sum(0)).min(initial=1.0)
        spread[:, used:] = max(least, 0.01) * np.asarray(directions)[:, : rank - used]
    tolerance, options = _options(_half(config))
    task = _problem(start, rank, rank, variance)
    program = _gaussian_program(task, basis[:, 0], spread, found.scales, tolerance, **options)
    return _inferred("gaussian", start, *program)


def num_candidates(config: LoReConfig) -> int:
    """How many candidates of their own basis `search` tries, but for "factors"."""
    return len(config.variances) * (len(config.ranks) + len(config.components) * (1 + config.simplex))


class Settings(NamedTuple):
    """What a candidate is fitted with; `steps` where it is stopped early."""

    kind: str
    rank: int
    variance: float
    steps: int | None = None

    def row(self) -> dict[str, Any]:
        """Those that it has, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def search(start: Initialization, config: LoReConfig, tell: Tell) -> dict[Settings, CandidateFit]:
    """Every candidate of a basis of its own."""
    found: dict[Settings, CandidateFit] = {}

    def fit(kind: str, rank: int, variance: float, mixture: CandidateFit | None = None) -> CandidateFit:
        tell(f"{kind}, rank {rank}, variance {variance:g}")
        outcome = _personal(start, kind, rank, variance, config, mixture)
        found[Settings(kind, rank, variance)] = outcome
        return outcome

    for rank, variance in product(config.ranks, config.variances):
        fit("gaussian", rank, variance)
    for variance in config.factor_variances if has_factors(start.features, config) else ():
        rank, stops = num_factors(start.features, config), factor_stops(config)
        tell(f"factors, rank {rank}, variance {variance:g}")
        made = _factors(start, rank, variance, config, stops)
        found |= {Settings("factors", rank, variance, steps): own for steps, own in zip(stops, made, strict=True)}
    for rank, variance in product(config.components, config.variances):
        mixture = fit("mixture", rank, variance)
        if config.simplex:
            fit("simplex", rank, variance, mixture)
    return found


def clustered(start: Initialization, begun: CandidateFit, config: LoReConfig) -> CandidateFit:
    """A mixture of Gaussians over the users' weights on the basis of another fit."""
    prior, found, history = _clusters_program(
        start.features, start.table, start.mask, begun.basis, begun.weights, begun.scales, count=config.clusters
    )
    return _inferred("clusters", start, begun.basis, prior, history, begun.scales, found)


def refit(start: Initialization, chosen: dict[str, Any], found: CandidateFit, config: LoReConfig) -> CandidateFit:
    """The chosen candidate from another start; one whose rank has grown, from its own fit."""
    if chosen["kind"] == "gaussian" and chosen["rank"] > max(config.ranks):
        return grown(start, found, chosen["rank"], chosen["variance"], config)
    kind = chosen.get("basis", chosen["kind"])
    if kind == "factors":
        # As many stops as the search had, so that its program serves.
        stops = [chosen["steps"]] * len(factor_stops(config))
        return _factors(start, chosen["rank"], chosen["variance"], config, stops)[-1]
    outcome = _personal(start, kind, chosen["rank"], chosen["variance"], config)
    return clustered(start, outcome, config) if chosen["kind"] == "clusters" else outcome


# --- compiling ahead ---


class _Tracing(NamedTuple):
    """Shapes of what every program of a search takes: features, table, which votes count, scales."""

    features: Any
    table: Any
    mask: Any
    scales: Any

    @property
    def length(self) -> int:
        return self.features.shape[1]

    def problem(self, size: int) -> tuple[FitProblem, Any]:
        """A candidate's problem of as many directions, and the shared direction."""
        used = _array(size, dtype=bool)
        return FitProblem(self.features, self.table, self.mask, _array(2), used), _array(self.length)

    def inferring(self, kind: str, basis: Any, prior: Any, found: Any = None) -> Any:
        return infer_program.lower(kind, self.features, self.table, self.mask, basis, prior, found, self.scales)

    def directions(self, count: int) -> Any:
        key = jax.eval_shape(lambda: jax.random.key(0))
        return _spectral.lower(
            self.features, self.table, self.mask, _array(*self.mask.shape), count, key, scales=self.scales
        )


def _array(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _tracing(features: Features, table: Table, scales: Scales) -> _Tracing:
    inputs = (features, table, table.train, scales)
    return _Tracing(*jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs))


def _lowered(known: _Tracing, config: LoReConfig) -> Iterator[tuple[str, Any]]:
    """Every program of a search on these shapes, traced but not compiled; the slowest to compile first."""
    features, table, mask, scales = known
    options = {"steps": config.steps, "line_search": config.line_search}

    def clusters(basis: Any, weights: Any) -> Iterator[tuple[str, Any]]:
        program = _clusters_program.lower(features, table, mask, basis, weights, scales, count=config.clusters)
        yield "clusters", program
        yield "clusters' weights", known.inferring("clusters", basis, *program.out_info[:2])

    yield "shared", shared_program.lower(features, table, mask, _array(), scales, line_search=config.line_search)
    if config.ranks:
        size = max(config.ranks)
        programs = dict(_lowered_gaussian(known, size, options))
        yield from programs.items()
        if config.clusters:
            basis, weights = programs["gaussian"].out_info[0], programs["gaussian weights"].out_info[0]
            yield from clusters(basis, weights)
    if has_factors(features, config):
        size = num_factors(features, config)
        task, shared = known.problem(size)
        tastes = _array(table.num_users, size)
        stops = _array(len(factor_stops(config)), dtype=jnp.int32)
        begin = _array(known.length, size)
        yield "factors", _factor_program.lower(task, shared, begin, tastes, scales, _array(), stops, steps=config.steps)
        # The shared direction stands before the others.
        basis = _array(known.length, size + 1)
        yield (
            "factors' weights",
            known.inferring("factors", basis, jax.eval_shape(partial(priors.gaussian_prior, size))),
        )
    if config.components:
        size = max(config.components)
        task, shared = known.problem(size)
        directions = _array(known.length, max(size - 1, 1))
        program = _mixture_program.lower(task, shared, directions, scales, _array(), **options)
        yield "mixture", program
        basis, prior = program.out_info[:2]
        inferred = known.inferring("mixture", basis, prior)
        yield "mixture weights", inferred
        if config.simplex:
            weights = inferred.out_info[0]
            yield "simplex", _simplex_program.lower(task, basis, prior.mean, weights, scales, _array(), **options)
            yield "simplex weights", known.inferring("simplex", basis, prior)
            if config.clusters:
                yield from clusters(basis, weights)
    yield "directions", known.directions(_widest(config))


def _lowered_gaussian(known: _Tracing, size: int, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    task, shared = known.problem(size)
    spread = _array(known.length, size)
    program = _gaussian_program.lower(task, shared, spread, known.scales, _array(), **options)
    yield "gaussian", program
    yield "gaussian weights", known.inferring("gaussian", *program.out_info[:2])


def compile_ahead(features: Features, table: Table, config: LoReConfig, scales: Scales, tell: Tell) -> None:
    """Compiles the programs of a search side by side, one per core; JAX's own cache hands them out afterwards.

    One after the other takes about as long as their sum, for most of a compilation runs on one core.
    """
    _compile(_lowered(_tracing(features, table, scales), config), tell)


def compile_grown(start: Initialization, rank: int, config: LoReConfig, tell: Tell) -> None:
    """The same of what `grown` runs for a rank."""
    options = _options(_half(config))[1]
    _compile(_lowered_gaussian(_tracing(start.features, start.table, start.scales), rank, options), tell)


def _compile(programs: Iterator[tuple[str, Any]], tell: Tell) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        names = {pool.submit(program.compile): name for name, program in programs}
        for done in as_completed(names):
            done.result()
            tell(f"compiled {names[done]}")
