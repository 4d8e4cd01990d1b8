"""What keeps experts from dying: gates left to themselves may send all users to a few of them (CoPL, arXiv 2503.01658).

Two ways, of which `GateConfig.balance` picks one:

    loss    E sum_e f_e P_e (Switch Transformers, arXiv 2101.03961, equation 4), with f_e the fraction of the batch's
            choices that falls on expert e, and P_e its mean probability. Even use is its least value, 1.
    bias    a number for each gate and expert, added to its logits; each step raises those of experts used less than
            1/E and lowers the others (loss-free balancing, arXiv 2408.15664, algorithm 1)

Two things differ from the cited bias. It enters the weights g_k as well as the choice: here one expert is chosen by a
softmax, and one that is chosen against its probability would have no weight, and so learn nothing. And its steps
shrink to 0 over the training: users are embedded in tight camps, so steps of one size would move whole camps from
expert to expert till the end.

Axes: E experts, Z layers.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from copl_jax.reward.routing import GateConfig, Gates, expert_load

# The optimizer reads signs only. A power of two keeps them exact, and the step's norm of all gradients as it was.
_SMALL = 2.0**-20


def auxiliary_loss(config: GateConfig, params: Mapping[str, Any], gates: Gates) -> Float[Array, ""]:
    """What balancing adds to the loss of a batch.

    For "bias" its value is 0 and its gradient, load - 1/E times a tiny constant, reaches the leaves "balance" alone:
    in this way the loads come to the optimizer as all gradients do, as means over micro-batches and devices.

    Args:
      config: the gates'.
      params: as from `gates.init`.
      gates: decisions for the batch, one row an example; rows that are repeated count as often.
    """
    if config.balance == "loss":
        return config.balance_weight * imbalance(gates)
    if config.balance == "bias":
        return sum(
            (_pull(params[target]["balance"], expert_load(gate)) for target, gate in gates.items()), jnp.zeros(())
        )
    return jnp.zeros(())


def imbalance(gates: Gates) -> Float[Array, ""]:
    """E sum_e f_e P_e, mean over the gates: 1 with even use, up to E. Gradients flow through P_e."""
    values = [
        gate.probabilities.shape[-1] * jnp.sum(expert_load(gate) * jnp.mean(gate.probabilities, axis=1), axis=-1)
        for gate in gates.values()
    ]
    return jnp.mean(jnp.concatenate(values))


def optimizer(
    config: GateConfig, rest: optax.GradientTransformation, *, num_steps: int
) -> optax.GradientTransformation:
    """`rest` for all parameters but the leaves "balance", which move against the sign of their gradient.

    Step t is of size `balance_rate` (1 - t / num_steps)^3: large while gates are undecided, so that all experts come
    into use, and next to nothing while experts learn. Neither weight decay nor clipping nor averages of `rest` see
    those leaves. Without "bias" it is `rest` itself.
    """
    if config.balance != "bias":
        return rest

    def label(path: tuple[Any, ...], _: Any) -> str:
        return "balance" if jax.tree_util.keystr(path[-1:], simple=True) == "balance" else "rest"

    rate = optax.polynomial_schedule(config.balance_rate, 0.0, 3, num_steps)
    return optax.partition(
        {"rest": rest, "balance": optax.sign_sgd(rate)},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def _pull(bias: Float[Array, "Z E"], used: Float[Array, "Z E"]) -> Float[Array, ""]:
    """0, with gradient `_SMALL` (used - 1/E)."""
    excess = jax.lax.stop_gradient(used - 1 / used.shape[-1])
    return _SMALL * jnp.sum((bias - jax.lax.stop_gradient(bias)) * excess)
