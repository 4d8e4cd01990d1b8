"""The state of a training run and the step that moves it on.

Axis letters: B batch, A micro-batches of one step.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from pref_jax.errors import UserError

Metrics = dict[str, Array]
# loss_fn(params, frozen, batch, key) -> (mean loss over the rows of the batch, float scalars to log)
LossFn = Callable[[Any, Any, Any, Array], tuple[Array, Metrics]]


class TrainState(NamedTuple):
    """All that changes while training; the frozen parameters are handed to the step beside it."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    key: Key[Array, ""]


StepFn = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to zero.

    Attributes:
      lr: the highest learning rate, reached at the end of the warm-up.
      num_steps: optimizer steps of the whole run.
      weight_decay: decoupled weight decay, times the learning rate, on every parameter.
      warmup_fraction: part of `num_steps` spent on warming up, from 0 to below 1.
      clip: the global gradient norm is cut to this; None leaves it alone.
      b1: decay of AdamW's mean of gradients.
      b2: decay of AdamW's mean of squared gradients.
    """

    lr: float
    num_steps: int
    weight_decay: float = 0.0
    warmup_fraction: float = 0.0
    clip: float | None = None
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self):
        wrong = {
            "lr": not self.lr >= 0,
            "num_steps": self.num_steps < 1,
            "weight_decay": not self.weight_decay >= 0,
            "warmup_fraction": not 0 <= self.warmup_fraction < 1,
            "clip": self.clip is not None and not self.clip > 0,
        }
        if any(wrong.values()):
            names = ", ".join(f"{name}={getattr(self, name)}" for name, bad in wrong.items() if bad)
            raise UserError(
                f"OptimizerConfig: out of range: {names}; lr and weight_decay are at least 0, num_steps at least 1, "
                "warmup_fraction in [0, 1), clip above 0 or None"
            )


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate of step i (from 0), of N steps with W = round(warmup_fraction N) of warm-up.

    lr (i + 1) / (W + 1) for i < W, then lr (1 + cos(pi (i - W) / (N - W))) / 2: no step has rate zero, and the
    step after the last one would.
    """
    warmup = round(config.warmup_fraction * config.num_steps)

    def rate(count):
        i = jnp.minimum(jnp.asarray(count, jnp.float32), config.num_steps)
        rising = (i + 1) / (warmup + 1)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * (i - warmup) / max(1, config.num_steps - warmup)))
        return config.lr * jnp.where(i < warmup, rising, falling)

    return rate


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) by `config`, after clipping by the global norm if asked."""
    adamw = optax.adamw(schedule(config), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    return adamw if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), adamw)


def optimizer_by_group(
    config: OptimizerConfig, fast: Collection[str], *, lr_mult: float
) -> optax.GradientTransformation:
    """`optimizer`; parameters under a key in `fast` learn at `lr_mult` times the rate and without weight decay.

    Adam moves every number by about its learning rate a step, but a user's row only in the few steps that meet it, and
    numbers of size 1 would hardly move at a rate made for small ones.
    """
    own = dataclasses.replace(config, lr=lr_mult * config.lr, weight_decay=0.0)

    def label(path: tuple[Any, ...], _: Any) -> str:
        return "fast" if any(getattr(key, "key", None) in fast for key in path) else "rest"

    return optax.partition(
        {"fast": optimizer(own), "rest": optimizer(config)},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def init_state(params: Any, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Step 0: `params` as they are, a fresh optimizer state placed like them, and the key of `seed`.

    Optimizer moments take the sharding of the parameter they belong to; all else is replicated on its mesh.
    """

    def rest(params):
        return jnp.zeros((), jnp.int32), optimizer.init(params), jax.random.key(seed)

    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
    mesh = next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)
    if mesh is None:
        step, opt_state, key = rest(params)
    else:
        everywhere = NamedSharding(mesh, PartitionSpec())
        places = optax.tree_utils.tree_map_params(
            optimizer,
            # An optimizer for some of the parameters has gaps where the others would be.
            lambda own, param: own if isinstance(own, optax.MaskedNode) else param.sharding,
            jax.eval_shape(optimizer.init, params),
            params,
            transform_non_params=lambda _: everywhere,
            is_leaf=lambda own: isinstance(own, optax.MaskedNode),
        )
        step, opt_state, key = jax.jit(rest, out_shardings=(everywhere, places, everywhere))(params)
    return TrainState(step=step, params=params, opt_state=opt_state, key=key)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    axis_name: str | tuple[str, ...] | None = None,
) -> StepFn:
    """One training step as a pure function `step(state, frozen, batch) -> (state, metrics)`.

    Step i draws its randomness from fold_in(state.key, i), micro-batch j of it from fold_in(that, j). If the loss or
    the gradient is not finite, parameters and optimizer state stay as they were and `step` alone moves on.

    Args:
      loss_fn: mean loss over the batch's rows and a dict of scalars, also means over rows.
      optimizer: the optax transformation.
      accumulate: micro-batches a step; all batch arrays lead with B, a multiple of it. Loss, metrics and gradients
        are means over them, so a loss without randomness gives what the whole batch gives. Micro-batch j holds
        the rows j, j + A, ...: each device keeps its own rows.
      axis_name: mapped axes to average over, for use inside `jax.shard_map` or `jax.pmap`; None under `jax.jit`,
        where the compiler adds the collectives.

    Returns:
      The step. Its metrics, all float32 []: those of `loss_fn`, `loss`, `grad_norm` (global, before clipping) and
      `skipped` (1 if the update was left out, else 0).

    Raises:
      UserError: from the step's tracing, if `accumulate` does not divide B.
    """

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        loss, metrics, grads = _gradients(loss_fn, state.params, frozen, batch, key, accumulate)
        if axis_name is not None:
            loss, metrics, grads = jax.lax.pmean((loss, metrics, grads), axis_name)
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        # The optimizer sees zeros instead of NaN, and its answer is thrown away.
        grads = jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(
            step=state.step + 1,
            params=_select(finite, params, state.params),
            opt_state=_select(finite, opt_state, state.opt_state),
            key=state.key,
        )
        metrics = {**metrics, "loss": loss, "grad_norm": norm, "skipped": 1 - finite}
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return step


def _select(which: Bool[Array, ""], yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), yes, no)


def _gradients(
    loss_fn: LossFn, params: Any, frozen: Any, batch: Any, key: Key[Array, ""], accumulate: int
) -> tuple[Float[Array, ""], Metrics, Any]:
    """Mean loss, mean metrics and mean gradients over `accumulate` micro-batches, one after another."""
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (loss, metrics), grads = value_and_grad(params, frozen, batch, jax.random.fold_in(key, 0))
        return loss, metrics, grads

    def micro(number, rows):
        (loss, metrics), grads = value_and_grad(params, frozen, rows, jax.random.fold_in(key, number))
        return loss, metrics, grads

    def add(total, numbered):
        # Sums are kept in float32 at least: bfloat16 would lose small micro-batches.
        return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, micro(*numbered)), None

    micro_batches = jax.tree.map(lambda x: _split(x, accumulate), batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(micro, 0, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro_batches))
    return jax.tree.map(lambda t, s: (t / accumulate).astype(s.dtype), total, shapes)


def _split(x: Array | np.ndarray, parts: int) -> Array | np.ndarray:
    """[B, ...] -> [A, B/A, ...], rows j, j + A, ... in part j."""
    if x.ndim == 0 or x.shape[0] % parts:
        raise UserError(
            f"accumulate={parts}: a batch entry has shape {x.shape}; make the batch size a multiple of accumulate"
        )
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
