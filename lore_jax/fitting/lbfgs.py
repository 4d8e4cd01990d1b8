"""Full-batch minimisation inside jit: one L-BFGS for all of LoRe's smooth objectives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax


def minimise(
    objective: Callable[[Any], jax.Array], start: Any, *, steps: int, tolerance: float | jax.Array = 1e-5
) -> tuple[Any, jax.Array, jax.Array]:
    """L-BFGS from `start`, at most `steps` steps, until the gradient's norm is under `tolerance` times the first one's.

    Safe under vmap: members that have converged stand still. Returns the best parameters, their value, and the history
    of values [steps] (padded with the last one).
    """
    solver = optax.lbfgs(memory_size=10, linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=12))
    first = jax.value_and_grad(objective)(start)
    goal = tolerance * (optax.tree.norm(first[1]) + 1e-30)

    def body(carry):
        step, params, state, value, grad, best, best_value, history = carry
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=objective)
        params = optax.apply_updates(params, updates)
        # The line search leaves value and gradient of where it stopped; to compute them anew would compile them twice.
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
    history = jnp.where(jnp.arange(steps) < taken, history, value)
    return best, value, history
