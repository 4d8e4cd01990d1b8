"""Full-batch L-BFGS inside jit, for all of LoRe's smooth objectives."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

# How a step length is found. "zoom": strong Wolfe conditions with interpolation. "bisection": weak ones; the objective
# is compiled once instead of three times, which for small problems takes far longer than running it.
LineSearch = Literal["zoom", "bisection"]
MEMORY, TRIALS = 10, 12

Objective = Callable[[Any], Array]


def minimise(
    objective: Objective, start: Any, *, steps: int, tolerance: float | Array = 1e-5, line_search: LineSearch = "zoom"
) -> tuple[Any, Array, Array]:
    """L-BFGS from `start`, at most `steps` steps, until the gradient's norm is under `tolerance` times the first one's.

    Safe under vmap: members that have converged stand still. Returns the best parameters, their value, and the history
    of values [steps] (padded with the last one).
    """
    return (_by_zoom if line_search == "zoom" else _by_bisection)(objective, start, steps, tolerance)


def _by_zoom(objective: Objective, start: Any, steps: int, tolerance: float | Array) -> tuple[Any, Array, Array]:
    solver = optax.lbfgs(memory_size=MEMORY, linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=TRIALS))
    first = jax.value_and_grad(objective)(start)
    goal = tolerance * (optax.tree.norm(first[1]) + 1e-30)

    def body(carry):
        step, params, state, value, grad, best, best_value, history = carry
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=objective)
        params = optax.apply_updates(params, updates)
        # The line search leaves value and gradient of where it stopped: another evaluation would be compiled again.
        fresh, grad = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        better = fresh < best_value
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, best)
        best_value = jnp.where(better, fresh, best_value)
        return step + 1, params, state, fresh, grad, best, best_value, history.at[step].set(best_value)

    def going(carry):
        return (carry[0] < steps) & (optax.tree.norm(carry[4]) > goal)

    history = jnp.full((steps,), first[0])
    begin = (jnp.array(0), start, solver.init(start), *first, start, first[0], history)
    taken, _, _, _, _, best, value, history = lax.while_loop(going, body, begin)
    return best, value, jnp.where(jnp.arange(steps) < taken, history, value)


class _Place(NamedTuple):
    """The point reached, its value and gradient, L-BFGS's memory, the move from here and the slope along it."""

    point: Array
    value: Array
    gradient: Array
    memory: Any
    move: Array
    slope: Array


class _Trial(NamedTuple):
    """The place, the length to try next, its bracket, trials so far, steps taken, the goal, and values by step."""

    place: _Place
    length: Array
    low: Array
    high: Array
    trial: Array
    step: Array
    goal: Array
    history: Array


def minimise_along(
    objective: Objective,
    start: Any,
    stops: Int[Array, " S"],
    keep: Callable[[Any], Any],
    *,
    steps: int,
    tolerance: float | Array = 1e-5,
) -> tuple[Any, Array]:
    """The path of `minimise` by bisection: what `keep` makes of the parameters after so many steps, and the history.

    Args:
      objective: of the parameters.
      start: where the path begins.
      stops: rising numbers of steps, none above `steps`.
      keep: what is wanted of parameters.
      steps: the last of them, or more.
      tolerance: as for `minimise`; where the path has ended, later stops give what earlier ones do.

    Returns: a tree of arrays [S ...], and values by step [steps].
    """
    begin, body, going, tree = _bisection(objective, start, steps, tolerance)

    def on(now: _Trial, stop: Array) -> tuple[_Trial, Any]:
        now = lax.while_loop(lambda now: going(now, stop), body, now)
        return now, keep(tree(now.place.point))

    last, kept = lax.scan(on, begin, stops)
    return kept, _values(last, steps)


def _by_bisection(objective: Objective, start: Any, steps: int, tolerance: float | Array) -> tuple[Any, Array, Array]:
    begin, body, going, tree = _bisection(objective, start, steps, tolerance)
    last = lax.while_loop(lambda now: going(now, steps), body, begin)
    return tree(last.place.point), last.place.value, _values(last, steps)


def _values(last: _Trial, steps: int) -> Array:
    """Values by step [steps], padded with the last one."""
    return jnp.where(jnp.arange(steps) < last.step - 1, last.history, last.place.value)


def _bisection(
    objective: Objective, start: Any, steps: int, tolerance: float | Array
) -> tuple[_Trial, Callable[[_Trial], _Trial], Callable[[_Trial, int | Array], Array], Callable[[Array], Any]]:
    """Where the loop begins, its body, whether it goes on to so many steps, and the parameters of a point.

    Each trip evaluates one trial point, so that the objective stands in the program once. A length is taken by the weak
    Wolfe conditions (Lewis & Overton 2013, algorithm 2.6).
    """
    solver = optax.scale_by_lbfgs(memory_size=MEMORY)
    flat, tree = ravel_pytree(start)
    evaluate = jax.value_and_grad(lambda point: objective(tree(point)))
    zero, far = jnp.zeros((), flat.dtype), jnp.full((), jnp.inf, flat.dtype)

    def body(now: _Trial) -> _Trial:
        here = now.place
        point = here.point + now.length * here.move
        value, gradient = evaluate(point)
        lower = value <= here.value + 1e-4 * now.length * here.slope
        taken = lower & (gradient @ here.move >= 0.9 * here.slope)
        updates: Any
        updates, memory = solver.update(gradient, here.memory, point)
        there = _Place(point, value, gradient, memory, -updates, -updates @ gradient)
        low, high = jnp.where(lower, now.length, now.low), jnp.where(lower, now.high, now.length)
        shorter = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2 * low)
        # The first trip evaluates the start itself: a step of no length from nowhere.
        first = jnp.isinf(here.value)
        return _Trial(
            place=jax.tree.map(lambda new, old: jnp.where(taken, new, old), there, here),
            length=jnp.where(taken, 1, shorter),
            low=jnp.where(taken, 0, low),
            high=jnp.where(taken, jnp.inf, high),
            trial=jnp.where(taken, 0, now.trial + 1),
            step=now.step + taken,
            goal=jnp.where(first, tolerance * (jnp.linalg.norm(gradient) + 1e-30), now.goal),
            history=now.history.at[now.step - 1].set(value),
        )

    def going(now: _Trial, stop: int | Array) -> Array:
        moving = (now.trial < TRIALS) & (jnp.linalg.norm(now.place.gradient) > now.goal) & (now.place.slope < 0)
        return (now.step == 0) & (now.trial == 0) | (now.step <= stop) & moving

    nowhere = _Place(flat, far, flat, solver.init(flat), jnp.zeros_like(flat), zero)
    begin = _Trial(nowhere, zero, zero, far, jnp.array(0), jnp.array(0), zero, jnp.zeros(steps, flat.dtype))
    return begin, body, going, tree
