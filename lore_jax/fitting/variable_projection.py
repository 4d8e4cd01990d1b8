"""The fast joint fit: the minimum of the published recipe's loss, with the weights eliminated.

Axis letters: U users, L lanes (`lore_jax.lanes`), n votes per lane
(padded), P votes (flat), N responses, D features, K basis.

The loss (LoRe's joint one, arXiv 2504.14439, with the factor 1/100 of its code) is, with w_u on the simplex and
d = phi_chosen - phi_rejected,  F(W, V) = sum_u mean_i softplus(-w_uᵀ Vᵀ d_ui / 100).  Two facts make it cheap:

- The simplex costs nothing. A user's taste V w_u / 100 lies in the affine hull of K points, and any users in an affine
  space of K - 1 dimensions fit inside a simplex of K vertices. So F is minimised over tastes  c + B a_u  with free
  a_u, and vertices are put around the users afterwards (`enclosing_simplex`), at the same loss.
- Given [c, B], each user's a_u is a logistic regression in K - 1 unknowns, which Newton's method solves exactly
  (`lore_jax.weights.newton`). What is left, min over a of F, depends on [c, B] only, and has the gradient of F at the
  solution (variable projection; the envelope theorem). L-BFGS minimises it.

One iteration reads the differences of features twice: responses Z = X [c, B] of a new direction, and the gradient Xᵀ S.
The line search between them works on Z alone.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from lore_jax.fitting import priors
from lore_jax.fitting.bradley_terry import Fit
from lore_jax.fitting.layout import Data, Layout, layout
from lore_jax.lanes import fold, fold_max, spread
from lore_jax.weights import newton
from lore_jax.weights.objective import Problem, Rows
from lore_jax.weights.precision import full_matmul_precision
from pref_jax.comparisons import Votes, check_comparisons, decided
from pref_jax.errors import UserError
from pref_jax.standardiser import identity_standardiser

TRIALS = 12
# Iterations of too little gain that end the fit.
STALLED = 3
# Votes, about, that give features their units.
SAMPLE = 4096


class Solved(NamedTuple):
    """The problem given [c, B]: weights a [K-1 U], the value with the ridge, the loss F without, force [n L] =
    -dF/dmargin.
    """

    weights: Array
    value: Array
    loss: Array
    force: Array


class _State(NamedTuple):
    """Matrix [c, B] and its responses, what was solved there, the gradient; L-BFGS's memory; progress."""

    matrix: Array
    z: Array
    here: Solved
    gradient: Array
    memory: optax.OptState
    step: Array
    stalled: Array
    history: Array


class _Search(NamedTuple):
    """The next length to try, the bracket, the length tried last and what was solved there."""

    next: Array
    low: Array
    high: Array
    length: Array
    there: Solved
    done: Array
    trial: Array


def _eliminate(z: Float[Array, "n K L"], votes: Layout, start: Array, ridge: float) -> Solved:
    """Minimum over a [K-1 U] of  sum_ui share softplus(-(z_0 + z_1.a)) + ridge/2 |a|^2, exactly."""
    share = votes.share
    offset, free = z[:, 0], z[:, 1:]
    size = free.shape[1]
    weights = start
    if size > 0:
        mean, precision = jnp.zeros(size, z.dtype), ridge * jnp.eye(size, dtype=z.dtype)
        pairs = Rows(jnp.moveaxis(free, 2, 0), share.T, votes.owner, offset.T)
        weights = newton.in_blocks(_minimum, Problem(pairs, mean, precision), start)
    loss, force, _ = newton.logistic_terms(offset + jnp.sum(free * spread(weights, votes.owner, axis=1)[None], 1))
    total = jnp.sum(share * loss)
    return Solved(weights, total + 0.5 * ridge * jnp.sum(weights**2), total, share * force)


def _minimum(problem: Problem, start: Array) -> Array:
    return newton.newton(newton.logistic_model(problem), start)


def _with_one(weights: Array) -> Array:
    return jnp.concatenate([jnp.ones((1, weights.shape[1]), weights.dtype), weights])


def _search(z: Array, change: Array, votes: Layout, here: Solved, slope: Array, ridge: float) -> tuple[Array, Solved]:
    """A step length by the weak Wolfe conditions (Lewis & Overton 2013), 0 if none is found, and what it leads to."""

    def body(now: _Search) -> _Search:
        there = _eliminate(z + now.next * change, votes, here.weights, ridge)
        steep = -jnp.sum(there.force * jnp.sum(change * spread(_with_one(there.weights), votes.owner, axis=1)[None], 1))
        low_enough = there.value <= here.value + 1e-4 * now.next * slope
        low = jnp.where(low_enough, now.next, now.low)
        high = jnp.where(low_enough, now.high, now.next)
        further = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2 * low)
        done = low_enough & (steep >= 0.9 * slope)
        return _Search(further, low, high, now.next, there, done, now.trial + 1)

    def going(now: _Search) -> Array:
        return ~now.done & (now.trial < TRIALS)

    zero = jnp.zeros_like(slope)
    begin = _Search(zero + 1, zero, zero + jnp.inf, zero, here, jnp.array(False), jnp.array(0))
    last = lax.while_loop(going, body, begin)
    good = last.there.value < here.value
    there = jax.tree.map(lambda new, old: jnp.where(good, new, old), last.there, here)
    return jnp.where(good, last.length, 0), there


def spectral_start(features: Array, votes: Layout, rank: int, key: Array) -> Float[Array, "D K"]:
    """[c, B]: the users' mean pull (their average difference), and the directions in which their pulls differ most."""

    def add(total: Array, slot: tuple[Array, Array]) -> tuple[Array, None]:
        place, share = slot
        index = jnp.minimum(place, len(votes.user) - 1)
        pull = features[votes.chosen[index]] - features[votes.rejected[index]]
        return total + share[:, None] * pull, None

    begin = jnp.zeros((votes.place.shape[1], features.shape[1]), features.dtype)
    pulls, _ = lax.scan(add, begin, (votes.place, votes.share))
    pulls, voted = fold(pulls, votes.owner), fold_max(votes.share.sum(0)[:, None] > 0, votes.owner)
    mean = pulls.sum(0, keepdims=True) / jnp.maximum(voted.sum(), 1)
    pulls = jnp.where(voted, pulls - mean, 0)

    def iterate(block: Array, _) -> tuple[Array, None]:
        return jnp.linalg.qr(pulls.T @ (pulls @ block))[0], None

    width = min(rank + 3, features.shape[1])
    block, _ = lax.scan(iterate, jax.random.normal(key, (features.shape[1], width)), None, length=6)
    _, rotation = jnp.linalg.eigh(jnp.matmul((pulls @ block).T, pulls @ block))
    found = (block @ rotation)[:, ::-1][:, : rank - 1]
    return jnp.concatenate([mean.T, jnp.pad(found, ((0, 0), (0, rank - 1 - found.shape[1])))], 1)


def _spread(features: Array, votes: Layout) -> Array:
    """Root mean square of each feature's differences over a few thousand of the votes, 1 where they are all zero.

    It only sets L-BFGS's units, for which a sample does; all votes would cost as much as an iteration.
    """
    some = slice(None, None, max(1, len(votes.user) // SAMPLE))
    spread = jnp.sqrt(jnp.mean((features[votes.chosen[some]] - features[votes.rejected[some]]) ** 2, 0))
    return jnp.where(spread > 0, spread, 1)


@partial(jax.jit, static_argnames=("rank", "steps", "ridge", "differences"))
@full_matmul_precision
def _program(features, votes: Layout, key, goal, tolerance, *, rank: int, steps: int, ridge: float, differences: bool):
    """(basis of margins [D K], weights [U K], history [steps], steps taken)."""
    rows = features[votes.chosen] - features[votes.rejected] if differences else features
    data = Data(rows, _spread(features, votes), votes)
    solver = optax.scale_by_lbfgs(memory_size=10)
    start = spectral_start(features, votes, rank, key) * data.scale[:, None]
    z = data.responses(start)
    # Responses of unit size: the line search starts from the right order of magnitude.
    size = jnp.sqrt(jnp.mean(z**2, (0, 2))) + 1e-30
    start, z = start / size[None], z / size[None, :, None]

    def gradient(here: Solved) -> Array:
        return -data.pull(here.force, _with_one(here.weights))

    def body(now: _State) -> _State:
        toward: Any
        toward, memory = solver.update(now.gradient, now.memory, now.matrix)
        slope = -jnp.sum(toward * now.gradient)
        change = -data.responses(toward)
        length, there = _search(now.z, change, votes, now.here, slope, ridge)
        gain = now.here.value - there.value
        stalled = jnp.where(gain <= tolerance * there.value, now.stalled + 1, 0)
        # Without a step the next direction would be the same.
        stalled = jnp.where(length > 0, stalled, STALLED)
        matrix, z = now.matrix - length * toward, now.z + length * change
        history = now.history.at[now.step].set(there.loss)
        return _State(matrix, z, there, gradient(there), memory, now.step + 1, stalled, history)

    here = _eliminate(z, votes, jnp.zeros((rank - 1, z.shape[2] - len(votes.owner))), ridge)
    # Separable votes have no minimum: the loss falls for ever, and a basis that grows with it loses its digits.
    enough = jnp.maximum(goal, jnp.finfo(z.dtype).eps * here.loss)

    def going(now: _State) -> Array:
        return (now.step < steps) & (now.stalled < STALLED) & (now.here.loss > enough)

    history = jnp.full((steps,), here.loss)
    begin = _State(start, z, here, gradient(here), solver.init(start), jnp.array(0), jnp.array(0), history)
    last = lax.while_loop(going, body, begin)
    weights, vertices = enclosing_simplex(last.here.weights)
    history = jnp.where(jnp.arange(steps) < last.step, last.history, last.here.loss)
    matrix = last.matrix / data.scale[:, None]
    return matrix[:, :1] + matrix[:, 1:] @ vertices, weights, history, last.step


def enclosing_simplex(points: Float[Array, "J U"]) -> tuple[Float[Array, "U K"], Float[Array, "J K"]]:
    """A simplex around points of J = K - 1 dimensions: (barycentric weights [U K], vertices [J K]).

    Its faces are those of a regular simplex in coordinates where the points are white, each moved in until it touches a
    point: vertices @ weights.T = points, and no vertex is further out than its faces need.
    """
    size = len(points) + 1
    if size == 1:
        return jnp.ones((points.shape[1], 1), points.dtype), jnp.zeros((0, 1), points.dtype)
    mean = points.mean(1, keepdims=True)
    spread = jnp.cov(points, bias=True).reshape(size - 1, size - 1)
    slack = 1e-6 * jnp.trace(spread) + jnp.finfo(points.dtype).tiny * 1e8
    root = jnp.linalg.cholesky(spread + slack * jnp.eye(size - 1, dtype=points.dtype))
    white = jax.scipy.linalg.solve_triangular(root, points - mean, lower=True)
    normals = priors.corners(size, jnp.asarray(size))[:, : size - 1]
    heights = normals @ white
    # With h_j = max(-n_j.x), weights (h_j + n_j.x) / sum(h) are barycentric: none is negative, they sum to one.
    reach = jnp.maximum(-heights.min(1), 1e-3)
    weights = (reach[:, None] + heights) / reach.sum()
    ratio = (size - 1) / size
    vertices = ratio * (reach.sum() * normals.T - (reach @ normals)[:, None])
    return weights.T, root @ vertices + mean


def fit_varpro(
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    train: Votes,
    num_users: int,
    *,
    rank: int,
    seed: int = 0,
    steps: int = 300,
    tolerance: float = 1e-4,
    goal: float = 0.0,
    ridge: float = 1e-3,
) -> Fit:
    """The published recipe's loss minimised by variable projection, in one jitted loop; a `Fit` as of `fit_published`.

    Args:
      features: [N D], taken as they are.
      train: votes of seen users; ties are left out.
      num_users: users are numbered 0 to num_users - 1; who has no votes gets the taste c, near the others' middle.
      rank: K.
      seed: of the subspace iteration that finds the first directions.
      steps: iterations at most.
      tolerance: the fit ends after three iterations that gain less than this share of the value.
      goal: it also ends once the loss is at most this, or a rounding of what it was at the start.
      ridge: pulls a_u to zero, so that a separable user has an answer. Not part of the loss; [c, B] can outgrow it.
    Returns: basis (of margins: the recipe's V / 100), weights on the simplex, history of the recipe's loss [steps].
    Raises: UserError for bad indices, no votes, or a rank below 1.
    Source: the joint loss of LoRe (arXiv 2504.14439); the method is this project's.
    """
    phi = jnp.asarray(features, jnp.float32)
    triples = check_comparisons(decided(train), num_users, len(phi), "training votes")
    if len(triples.user) == 0 or rank < 1:
        raise UserError(
            f"fit_varpro: {len(triples.user)} votes, rank {rank}; give at least one vote and a rank of 1 or more"
        )
    basis, weights, history, _ = _program(
        phi,
        layout(triples, num_users),
        jax.random.key(seed),
        jnp.float32(goal),
        jnp.float32(tolerance),
        rank=rank,
        steps=steps,
        ridge=ridge,
        differences=len(triples.user) <= len(phi),
    )
    chosen = {"kind": "simplex", "rank": rank}
    mean, precision = weights.mean(0), 1e-3 * jnp.eye(rank)
    return Fit(
        "simplex", identity_standardiser(phi.shape[1]), basis, weights, mean, precision, history, chosen, (chosen,)
    )
