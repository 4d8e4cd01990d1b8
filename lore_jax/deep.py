"""Deep LoRe: a basis of rewards on an adapted transformer, trained through the solver of the users' weights.

    z_k(x) = v_kᵀ phi(x),    w_u = argmin over w of the support's loss + 1/2 |w - mean|²_precision
    loss   = mean over users and splits of the query's mean of -log sigmoid(w_uᵀ (z_chosen - z_rejected))

phi is the pooled state of a frozen transformer with LoRA adapters. In each step some pairs of each user of the batch
are its support and the others its query (`pref_jax.data.loaders.episodes`). w_u is solved from the support
(`lore_jax.weights.solve`, the precision diagonal), and the query's loss is differentiated through the solution, by the
implicit function theorem, into adapters, heads v, mean and precision. A query pair enters no solve.

After training users' weights, seen and unseen alike, come from all of their pairs by the same solver; without pairs
they are the prior's mean.

Axes: U users, S splits, n pairs per user (padded), P pairs (flat), N responses, B rows, L length, D features of the
transformer, K basis.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from lore_jax.reward import basis_rewards, bradley_terry_loss, differences
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import Posterior, solve_weights
from pref_jax.errors import Faults
from pref_jax.lm import backbone, lora, parameter_files
from pref_jax.lm.config import LMConfig
from pref_jax.lm.pairs import pair_states, text_states
from pref_jax.train.state import LossFn

Params = dict[str, Any]
SOLVERS = ("ridge", "logistic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepConfig:
    """The model; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      lm: the transformer.
      basis: K.
      solver: how weights are solved, one of `SOLVERS`.
      rank: rank of the adapters.
      alpha: the adapters' products are scaled by alpha / rank; None stands for 2 rank.
      targets: the adapted linears, names of `backbone.linear_shapes`.
      remat: what the backward pass keeps of each block, one of `backbone.REMAT`.
    """

    lm: LMConfig
    basis: int = 4
    solver: str = "logistic"
    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    remat: str = "none"

    def __post_init__(self):
        faults = Faults()
        if self.basis < 1 or self.rank < 1:
            faults.add("basis, rank", f"are {self.basis}, {self.rank}", "give whole numbers from 1")
        if self.solver not in SOLVERS:
            faults.add("solver", f"is {self.solver!r}", f"use one of {', '.join(SOLVERS)}")
        known = backbone.linear_shapes(self.lm)
        if not self.targets or set(self.targets) - set(known):
            faults.add("targets", f"are {self.targets}", f"name some of {', '.join(known)}")
        faults.raise_if_any("DeepConfig")

    @property
    def scale(self) -> float:
        """Of the adapters' products."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank


def init(config: DeepConfig, key: Key[Array, ""], head: Float[Array, " D"] | None = None) -> Params:
    """Fresh trainable parameters, float32: {"adapters", "heads": [D K], "prior": {"mean": [K], "log_precision": [K]}}.

    The adapters change nothing yet. Heads are N(0, 1/D), so that rewards of normed states differ by about 1. The mean
    is the first head alone, which therefore begins as the shared reward, and the precision 1.

    Args:
      config: the model.
      key: typed PRNG key.
      head: what the first head begins as, such as a reward model's own.
    """
    adapters_key, heads_key = jax.random.split(key)
    shapes = {name: shape for name, shape in backbone.linear_shapes(config.lm).items() if name in config.targets}
    size, basis = config.lm.hidden_size, config.basis
    heads = jax.random.normal(heads_key, (size, basis)) / jnp.sqrt(jnp.float32(size))
    return {
        "adapters": lora.init(adapters_key, shapes, config.lm.num_layers, config.rank),
        "heads": heads if head is None else heads.at[:, 0].set(head.astype(jnp.float32)),
        "prior": {"mean": jnp.eye(1, basis)[0], "log_precision": jnp.zeros(basis)},
    }


def prior(params: Mapping[str, Any]) -> Prior:
    """The users' prior, its precision diagonal."""
    own = params["prior"]
    return Prior(own["mean"], jnp.diag(jnp.exp(own["log_precision"])))


def text_rewards(
    config: DeepConfig,
    params: Mapping[str, Any],
    base: Mapping[str, Any],
    tokens: Int32[Array, "B L"],
    mask: Bool[Array, "B L"],
) -> Float[Array, "B K"]:
    """Float32 basis rewards of each text: of it alone, whoever asks.

    Args:
      config: the model.
      params: trainable parameters, see `init`.
      base: the frozen transformer's.
      tokens: one text a row.
      mask: True at real tokens.
    """
    apply = functools.partial(lora.apply, scale=config.scale)
    states = text_states(config.lm, base, tokens, mask, params["adapters"], apply, remat=config.remat)
    return basis_rewards(states, params["heads"])


def user_weights(
    config: DeepConfig,
    params: Mapping[str, Any],
    rewards: Float[Array, "N K"],
    user: Int[Array, " P"],
    chosen: Int[Array, " P"],
    rejected: Int[Array, " P"],
    num_users: int,
) -> Posterior:
    """Weights [U K] and covariance [U K K] of users, seen in training or not, from all that is known of them.

    Args:
      config: the model.
      params: trainable parameters; heads and adapters are already in the rewards.
      rewards: of all responses, as from `text_rewards`.
      user: whose each vote is, in [0, num_users), in any order; who has none gets the prior's mean.
      chosen: rows of the preferred responses.
      rejected: rows of the other ones.
      num_users: U.
    """
    z = differences(rewards, chosen, rejected)
    return solve_weights(z, None, prior(params), likelihood=config.solver, user=user, num_users=num_users)


def split_weights(
    config: DeepConfig, z: Float[Array, "U n K"], support: Bool[Array, "U S n"], belief: Prior
) -> Float[Array, "U S K"]:
    """Weights of each user for each of its splits, solved from the support's pairs alone."""
    users, splits, pairs = support.shape
    each = jnp.broadcast_to(z[:, None], (users, splits, *z.shape[1:]))
    rows = each.reshape(-1, *z.shape[1:]), support.reshape(-1, pairs)
    found = solve_weights(*rows, belief, likelihood=config.solver)
    return found.weights.reshape(users, splits, -1)


def query_loss(
    config: DeepConfig,
    z: Float[Array, "U n K"],
    mask: Bool[Array, "U n"],
    support: Bool[Array, "U S n"],
    belief: Prior,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Bradley-Terry loss of the query pairs under weights solved from the support pairs, and metrics.

    The mean over users and splits of means over query pairs: users count alike, however many pairs they have.

    Args:
      config: the model.
      z: differences of basis rewards, chosen minus rejected; what stands at padding is of no matter.
      mask: True at real pairs.
      support: True at real pairs of each split's support; of the query are the other real ones.
      belief: the prior.

    Returns:
      The loss; and "accuracy" and "margin" of the query, and "shared_loss" and "shared_accuracy", those of the prior's
      mean on the same pairs.
    """
    z = jnp.where(mask[..., None], z, 0)
    query = mask[:, None] & ~support
    logits = jnp.einsum("unk,usk->usn", z, split_weights(config, z, support, belief))
    shared = jnp.broadcast_to((z @ belief.mean)[:, None], logits.shape)

    def mean(values: Array) -> Array:
        return jnp.mean(jnp.sum(jnp.where(query, values, 0), -1) / jnp.maximum(jnp.sum(query, -1), 1))

    metrics = {
        "accuracy": mean((logits > 0).astype(z.dtype)),
        "margin": mean(logits),
        "shared_loss": mean(bradley_terry_loss(shared)),
        "shared_accuracy": mean((shared > 0).astype(z.dtype)),
    }
    return mean(bradley_terry_loss(logits)), metrics


def make_loss(config: DeepConfig) -> LossFn:
    """`query_loss` on the transformer, for `pref_jax.train`.

    Of the returned `loss(params, frozen, batch, key)`:

      params: trainable, see `init`.
      frozen: {"base": transformer}.
      batch: {"mask": bool [U n], "support": bool [U S n]}, and the texts as `pref_jax.lm.pairs.pair_states` takes them,
        with leading axes U n instead of B.
      key: not read; there is no noise.
    """

    def loss(params, frozen, batch, key):
        del key
        texts = dict(batch)
        mask, support = texts.pop("mask"), texts.pop("support")
        rows = {name: leaf.reshape(-1, leaf.shape[-1]) for name, leaf in texts.items()}
        apply = functools.partial(lora.apply, scale=config.scale)
        states = pair_states(config.lm, frozen["base"], rows, params["adapters"], apply, remat=config.remat)
        z = (states[:, 0] - states[:, 1]) @ params["heads"]
        return query_loss(config, z.reshape(*mask.shape, -1), mask, support, prior(params))

    return loss


def save(folder: str | Path, config: DeepConfig, params: Mapping[str, Any]) -> None:
    """Writes adapters, heads and prior, in place of what was there; if killed, the folder is whole or absent.

    Files are those of `pref_jax.lm.parameter_files`.

    Raises:
      UserError: if the parameters do not fit the config.
    """
    tensors = parameter_files.as_tensors(params)
    parameter_files.check(tensors, parameter_files.kinds(_shapes(config)), where=f"Adapters for {folder}")
    own = {name: value for name, value in dataclasses.asdict(config).items() if name != "lm"}
    parameter_files.write(folder, {"model": own}, tensors)


def load(folder: str | Path, lm: LMConfig) -> tuple[DeepConfig, Params]:
    """Reads what `save` wrote, bit for bit; `lm` is the transformer that the model was trained on.

    Raises:
      UserError: if a file is missing or damaged, with every field of the config and every tensor that does not fit.
    """
    folder, faults = Path(folder), Faults()
    raw = parameter_files.read_about(folder).get("model")
    own = parameter_files.fields(DeepConfig, raw, f"{folder / parameter_files.CONFIG}: model", faults)
    faults.raise_if_any("Adapters")
    config = DeepConfig(lm=lm, **own)
    tensors = parameter_files.read_tensors(folder)
    parameter_files.check(tensors, parameter_files.kinds(_shapes(config)), where=str(folder / parameter_files.TENSORS))
    return config, parameter_files.as_tree(tensors, _shapes(config))


def _shapes(config: DeepConfig) -> Any:
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))
