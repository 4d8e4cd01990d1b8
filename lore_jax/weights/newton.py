"""Newton's method for many small logistic problems at once.

Axis letters: U users and L lanes (last: vector instructions go across them), E further lanes (`lore_jax.lanes`), n
pairs per lane (padded), K basis.

Every user has a step length and a convergence test of their own, and stays put once converged: no user's answer depends
on the users solved with them.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lore_jax.lanes import fold, fold_max, spread
from lore_jax.weights.batched_cholesky import UNROLLED, cholesky, factor_entries, solve_entries
from lore_jax.weights.objective import Problem, Rows, logistic_gradient, logistic_hessian, logistic_objective

# Ordinary users take about ten; features of 1e5 that contradict each other some hundreds.
MAX_STEPS = 500
# Longest row of pairs that is summed by a written-out sum, which XLA turns into one vectorised loop over users.
WRITTEN_OUT = 64
# Users who are solved at a time where there are many: what a step reads of them stays in the processor's caches, and
# a block ends once its own users have converged.
BLOCK = 512


class Local(NamedTuple):
    """What is known at a point: value [U], gradient [K U], Hessian (in the form that the model's `aim` takes)."""

    value: Array
    gradient: Array
    hessian: Any


class Model(NamedTuple):
    """One convex problem per user.

    local: weights [K U] -> Local. aim: (weights [K U], Local) -> the move [K U] to the minimum of the quadratic model.
    change: move [K U] -> the largest change of a margin along it, [U] (or a bound). Rows whose curvature is constant
      do not count.
    """

    local: Callable[[Array], Local]
    aim: Callable[[Array, Local], Array]
    change: Callable[[Array], Array]


class _State(NamedTuple):
    """The point reached, its value, the move pending there, its trial length, size and decrement; steps taken."""

    weights: Array
    value: Array
    move: Array
    length: Array
    size: Array
    decrement: Array
    step: Array


def _safe(size: Array) -> Array:
    """A step length that always descends, from the largest change s of a margin along the move.

    The curvature changes by at most e^s along it, so log(1 + s)/s is safe (Sun & Tran-Dinh, generalised
    self-concordance, 2019). It tends to 1 at the solution.
    """
    return jnp.where(size > 1e-3, jnp.log1p(size) / jnp.where(size > 1e-3, size, 1), 1)


def newton(model: Model, start: Array) -> Array:
    """Minima [K U] from `start [K U]`, exact to the float's precision.

    The full step is tried first; where the value does not fall enough, an eighth, and so on down to the length that is
    safe by theory. Ends when every user's Newton decrement has vanished, at the latest after MAX_STEPS trials.
    """
    tolerance = jnp.finfo(start.dtype).eps ** 0.75

    def arrive(weights: Array, step: Array) -> _State:
        here = model.local(weights)
        move = model.aim(weights, here)
        decrement = -jnp.sum(here.gradient * move, 0)
        return _State(weights, here.value, move, jnp.ones_like(decrement), model.change(move), decrement, step)

    def body(now: _State) -> _State:
        there = arrive(now.weights + now.length[None] * now.move, now.step + 1)
        safe = _safe(now.size)
        lower = there.value <= now.value - 0.1 * now.length * now.decrement
        taken = lower | (now.length * now.size <= 0.5) | (now.length <= safe)
        shorter = now._replace(length=jnp.maximum(now.length / 8, safe), step=there.step)
        return _choose(now.decrement > tolerance, _choose(taken, there, shorter), now._replace(step=there.step))

    def going(now: _State) -> Array:
        return jnp.any(now.decrement > tolerance) & (now.step < MAX_STEPS)

    # The first trial is the start itself, as a step of no length from nowhere: so all is compiled once.
    zero = jnp.zeros_like(start[0])
    nowhere = _State(start, zero + jnp.inf, jnp.zeros_like(start), zero, zero, zero + jnp.inf, jnp.array(0))
    last = lax.while_loop(going, body, nowhere)
    # The step pending at the end is taken too: near the solution it squares the error that the test saw.
    return last.weights + jnp.where(last.size <= 0.5, 1, _safe(last.size))[None] * last.move


def in_blocks(solve: Callable[[Problem, Array], Array], problem: Problem, start: Array) -> Array:
    """`solve(problem, start)`, weights [K U] from `start [K U]`, for `BLOCK` users at a time where it can be cut so.

    It can where each user has one lane and none of their rows are one choice. Users of a padded block have no pairs.
    """
    rows, (size, users) = problem.rows, start.shape
    whole = rows.z.ndim == 2 or rows.choice is not None or (rows.user is not None and rows.user.size > 0)
    if whole or users <= 2 * BLOCK:
        return solve(problem, start)
    count = -(-users // BLOCK)

    def cut(leaf: Array) -> Array:
        padding = ((0, count * BLOCK - users), *((0, 0) for _ in leaf.shape[1:]))
        return jnp.pad(leaf, padding).reshape(count, BLOCK, *leaf.shape[1:])

    def block(part: tuple[Rows, Array]) -> Array:
        return solve(problem._replace(rows=part[0]), part[1].T).T

    found = lax.map(block, (jax.tree.map(cut, rows._replace(user=None)), cut(start.T)))
    return found.reshape(-1, size)[:users].T


def _choose(condition: Array, one: _State, other: _State) -> _State:
    """One state or the other, user by user; the count of steps is common."""

    def pick(a: Array, b: Array) -> Array:
        return a if a.ndim == 0 else jnp.where(condition[None] if a.ndim == 2 else condition, a, b)

    return jax.tree.map(pick, one, other)


def logistic_terms(margins: Array) -> tuple[Array, Array, Array]:
    """softplus(-m), sigmoid(-m) and sigmoid(m) sigmoid(-m), from one exponential, without loss of digits."""
    small = jnp.exp(-jnp.abs(margins))
    share = 1 / (1 + small)
    loss = jnp.maximum(-margins, 0) + jnp.log1p(small)
    return loss, jnp.where(margins > 0, small, 1) * share, small * share * share


def _sum(terms: Iterable[Array]) -> Array:
    return reduce(add, terms)


def unrolled_logistic(
    z: Array,
    weight: Array,
    mean: Array,
    precision: Array,
    offset: Array | None = None,
    squared: Array | None = None,
    owner: Array | None = None,
) -> Model:
    """The logistic problem of few unknowns, written out: sum_i weight_i softplus(-(offset_i + z_i.w)) + the prior's.

    Args: z [n K L], weight [n L], mean [K], precision [K K], offset [n L] (None: zero), squared [n L] (None: nowhere),
      owner [E] of further lanes.
    """
    pairs, size = z.shape[:2]

    def over_pairs(term: Callable[[Any], Array]) -> Array:
        """Sum of term(i) over pairs i; term also takes a slice of all, with the pairs' axis first."""
        sums = _sum(term(i) for i in range(pairs)) if 0 < pairs <= WRITTEN_OUT else term(slice(None)).sum(0)
        return fold(sums, owner, axis=-1)

    def along(weights: Array) -> Array:
        weights = spread(weights, owner, axis=-1)
        return _sum(z[:, k] * weights[k][None] for k in range(size))

    def local(weights: Array) -> Local:
        margins = along(weights) if offset is None else along(weights) + offset
        loss, force, curvature = logistic_terms(margins)
        if squared is not None:
            loss, force = jnp.where(squared, 0.5 * margins**2, loss), jnp.where(squared, -margins, force)
            curvature = jnp.where(squared, 1, curvature)
        force, curvature = weight * force, weight * curvature
        away = weights - mean[:, None]
        pulled = _sum(precision[:, k][:, None] * away[k][None] for k in range(size))
        value = over_pairs(lambda i: weight[i] * loss[i]) + 0.5 * _sum(away[k] * pulled[k] for k in range(size))
        pull = over_pairs(lambda i: z[i] * force[i][..., None, :])
        bent = z * curvature[:, None]
        gram = over_pairs(lambda i: bent[i][..., :, None, :] * z[i][..., None, :, :])
        return Local(value, pulled - pull, gram + precision[:, :, None])

    def aim(_, here: Local) -> Array:
        hessian = [list(row) for row in here.hessian]
        return -jnp.stack(solve_entries(factor_entries(hessian), list(here.gradient)))

    def change(move: Array) -> Array:
        bent = weight > 0 if squared is None else (weight > 0) & ~squared
        return fold_max(jnp.max(jnp.abs(along(move)) * bent, 0, initial=0.0), owner)

    return Model(local, aim, change)


def rows(problem: Problem) -> Model:
    """The logistic problem of any size, from padded or flat pairs."""

    def local(weights: Array) -> Local:
        here = weights.T
        gradient, hessian = logistic_gradient(problem, here), logistic_hessian(problem, here)
        return Local(logistic_objective(problem, here), gradient.T, hessian)

    def aim(_, here: Local) -> Array:
        return -cholesky(here.hessian).divide(here.gradient.T).T

    def change(move: Array) -> Array:
        pairs = problem.rows._replace(offset=None)
        bent = pairs.weight > 0 if pairs.squared is None else (pairs.weight > 0) & ~pairs.squared
        largest = pairs.largest(jnp.abs(pairs.margins(move.T)) * bent, move.shape[1])
        # Of a choice what counts is the largest change of a difference of two rewards, of which two margins make one.
        return largest if pairs.choice is None else 2 * largest

    return Model(local, aim, change)


def logistic_model(problem: Problem) -> Model:
    """The faster form for the problem's shape."""
    pairs, mean = problem.rows, problem.mean
    if pairs.z.ndim == 2 or len(mean) > UNROLLED or pairs.choice is not None:
        return rows(problem)
    offset, squared = (None if part is None else part.T for part in (pairs.offset, pairs.squared))
    # Transposed once and kept: otherwise every loop that reads the pairs transposes them again.
    z = lax.optimization_barrier(jnp.transpose(pairs.z, (1, 2, 0)))
    return unrolled_logistic(z, pairs.weight.T, mean, problem.precision, offset, squared, pairs.user)
