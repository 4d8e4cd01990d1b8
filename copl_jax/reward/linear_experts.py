"""CoPL on frozen features: the graph's user embeddings gate linear experts, and no transformer is adapted.

    r_u(h) = (w_0 + sum over gates z and chosen experts k of g_zk(e_u) w_zk)·h

The gates are those of `copl_jax.reward.routing` (arXiv 2503.01658), one for each of Z independent groups of experts, as
the transformer has one for each adapted linear. It tells apart what the graph knows of people and what the transformer
learns of texts, and costs seconds.

Axis letters: B pairs of a batch, P pairs, U users, N responses, D features, C features of a user embedding, Z gates, E
experts of each, K chosen ones.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from copl_jax.reward import routing
from copl_jax.reward.routing import GateConfig
from pref_jax.comparisons import Comparisons, concatenate, decided
from pref_jax.data.loaders.batches import pair_batches
from pref_jax.errors import UserError
from pref_jax.mesh import make_mesh
from pref_jax.train.method import Trained, stopwatch
from pref_jax.train.method import train as _train
from pref_jax.train.state import LossFn, OptimizerConfig, optimizer

Params = dict[str, Any]
_GATE = "head"
# Of these gates, smaller ones than those of the transformer: there are more of them, and linear experts to choose.
HIDDEN = 64
# A weight under which experts stay where they begin, at zero.
_NOBODY = 1e4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearExperts:
    """Sizes and recipe; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      num_gates: Z.
      num_experts: E.
      gate: sizes, noise and K of each gate.
      steps, batch_size, lr: of the training.
      variances: prior variances of a logit of everyone's reward; the validation votes choose.
      shrink: weights of |w_u - w_0|² / 2 in the loss of each pair of a user, features divided by the root of D, in
        rising order; the validation votes choose.

    Raises:
      UserError: for sizes below 1, or a gate that balances its experts, which is for the transformer's.
    """

    num_gates: int = 24
    num_experts: int = 8
    gate: GateConfig = dataclasses.field(default_factory=lambda: GateConfig(hidden=HIDDEN))
    steps: int = 1000
    batch_size: int = 256
    lr: float = 2e-2
    variances: tuple[float, ...] = (0.01, 0.1, 1.0)
    shrink: tuple[float, ...] = (1e-3, 5e-3, 2e-2, 1.0)

    def __post_init__(self):
        if min(self.num_gates, self.num_experts, self.steps, self.batch_size) < 1 or self.gate.balance != "none":
            raise UserError(f"{self}: sizes are whole numbers from 1, and the gates do not balance their experts")
        if not self.variances or not min(self.variances) > 0:
            raise UserError(f"{self}: variances are numbers above 0, at least one")
        if not self.shrink or list(self.shrink) != sorted(self.shrink) or self.shrink[0] < 0:
            raise UserError(f"{self}: shrink is a rising tuple of numbers from 0")


def init(config: LinearExperts, key: Key[Array, ""], *, dim: int, embedding_dim: int) -> Params:
    """{"shared": [D], "own": as of `init_own`}, float32."""
    sizes = {"num_gates": config.num_gates, "num_experts": config.num_experts}
    return {"shared": jnp.zeros(dim), "own": init_own(config.gate, key, dim=dim, embedding_dim=embedding_dim, **sizes)}


def init_own(
    gate: GateConfig, key: Key[Array, ""], *, num_gates: int, num_experts: int, dim: int, embedding_dim: int
) -> Params:
    """{"gates", "experts": [Z E D]}; experts begin at zero, so that users begin alike.

    With `embedding_dim` 0 there are no gates: users come as numbers of experts.
    """
    gates: Params = {}
    if embedding_dim:
        sizes = {"num_layers": num_gates, "dim": embedding_dim, "num_experts": num_experts}
        gates = routing.init(gate, key, (_GATE,), **sizes)
    return {"gates": gates, "experts": jnp.zeros((num_gates, num_experts, dim))}


def deviations(
    gate: GateConfig,
    own: Mapping[str, Any],
    users: Float[Array, "B C"] | Int[Array, " B"],
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B D"]:
    """By how much each user's direction differs from everyone's; a `key` adds the noise of training.

    Args:
      gate: noise and K.
      own: as from `init_own`.
      users: embeddings, or each one's expert of all gates.
      key: typed PRNG key.
    """
    num_gates, num_experts = own["experts"].shape[:2]
    if jnp.issubdtype(users.dtype, jnp.floating):
        found = routing.route(gate, own["gates"], users, key)[_GATE]
    else:
        found = routing.one_hot_routing(users, (_GATE,), num_layers=num_gates, num_experts=num_experts)[_GATE]
    # One-hot over experts, so that nothing of size Z B D is gathered and the gradient is a product too.
    sent = jnp.einsum("zbke,zbk->zbe", jax.nn.one_hot(found.choice, num_experts), found.weight)
    return jnp.einsum("zbe,zed->bd", sent, own["experts"])


def directions(
    config: LinearExperts, params: Mapping[str, Any], users: Float[Array, "B C"] | Int[Array, " B"]
) -> Float[Array, "B D"]:
    """Each user's direction, whose product with a text's features is its reward.

    Example:
      >>> params = init(LinearExperts(), jax.random.key(0), dim=3, embedding_dim=2)
      >>> directions(LinearExperts(), params, jnp.ones((1, 2))).tolist()  # nothing is learned yet
      [[0.0, 0.0, 0.0]]
    """
    return params["shared"][None] + deviations(config.gate, params["own"], users)


def make_loss(gate: GateConfig) -> LossFn:
    """The loss of batches of pairs, for `pref_jax.train`.

    Bradley-Terry, mean of -log sigmoid(margin) + shrink/2 |w_u - w_0|², plus prior/2 |w_0|². `frozen` is {"features":
    [N D], "users": [U C] or int32 [U], "shrink": [], "prior": []}; the last two are no constants, so that a choice
    among them compiles once.
    """

    def loss(params, frozen, batch, key):
        own = deviations(gate, params["own"], frozen["users"][batch["user"]], key)
        differences = frozen["features"][batch["chosen"]] - frozen["features"][batch["rejected"]]
        margin = jnp.sum((params["shared"][None] + own) * differences, axis=1)
        size = jnp.sum(own**2, axis=1)
        metrics = {"accuracy": jnp.mean((margin > 0).astype(jnp.float32)), "margin": jnp.mean(margin)}
        common = frozen["prior"] * jnp.sum(params["shared"] ** 2)
        return jnp.mean(jax.nn.softplus(-margin) + 0.5 * frozen["shrink"] * size) + 0.5 * common, metrics

    return loss


def fit_linear(
    config: LinearExperts,
    features: Float[np.ndarray, "N D"],
    users: Float[np.ndarray, "U C"] | Int[np.ndarray, " U"],
    train: Comparisons,
    validation: Comparisons,
    *,
    folder: Path,
    seed: int,
) -> Trained:
    """Gates and experts from all votes, under the prior that the validation votes choose; a killed call is resumed.

    Args:
      config: sizes and recipe.
      features: of the responses, standardised.
      users: their embeddings, rows of length 1, or each one's expert. They must not know the validation votes.
      train: who preferred what; ties teach nothing here.
      validation: further votes, to choose priors by: first that of everyone's reward, without experts, then that of the
        experts. Without any the middle variance is taken and the strongest `shrink`.
      folder: gets checkpoints and logs.
      seed: of parameters, batches and noise.

    Returns:
      Parameters as of `init`, for `features`; facts with "variance" and "shrink", and "validation_losses" of each value
      that was tried of either.
    """
    spent = stopwatch(folder)
    train, validation = decided(train), decided(validation)
    # Recipes are for features of length 1, however many there are.
    size = np.float32(features.shape[1] ** 0.5)
    frozen = {"features": jnp.asarray(features, jnp.float32) / size, "users": jnp.asarray(users)}
    choosing = len(validation.user) > 0
    losses: dict[str, list[float]] = {}

    def choose(name: str, base: LinearExperts) -> float:
        values = getattr(base, name)
        if not choosing or len(values) == 1:
            return values[len(values) // 2] if name == "variances" else values[-1]
        losses[name] = []
        for value in values:
            own = dataclasses.replace(base, **{name: (value,)})
            params = _fit(own, frozen, train, folder=folder / f"{name}_{value:g}", seed=seed).params
            losses[name].append(_mean_loss(own, params, frozen, validation))
        return values[int(np.argmin(losses[name]))]

    alone = dataclasses.replace(config, num_gates=1, num_experts=1, steps=max(1, config.steps // 2), shrink=(_NOBODY,))
    variance = choose("variances", dataclasses.replace(alone, gate=dataclasses.replace(config.gate, top_k=1)))
    config = dataclasses.replace(config, variances=(variance,))
    shrink = choose("shrink", dataclasses.replace(config, steps=max(1, config.steps // 2)))
    config = dataclasses.replace(config, shrink=(shrink,))
    trained = _fit(config, frozen, concatenate([train, validation]), folder=folder, seed=seed)
    shared, own = trained.params["shared"], trained.params["own"]
    params = {"shared": shared / size, "own": {**own, "experts": own["experts"] / size}}
    return Trained(
        params, {**trained.facts, "variance": variance, "shrink": shrink, "validation_losses": losses, **spent()}
    )


def _fit(config: LinearExperts, frozen: Mapping[str, Array], votes: Comparisons, *, folder: Path, seed: int) -> Trained:
    recipe = OptimizerConfig(lr=config.lr, num_steps=config.steps, weight_decay=0.0, warmup_fraction=0.05, clip=1.0)
    users = frozen["users"]
    sizes = {"dim": frozen["features"].shape[1], "embedding_dim": users.shape[1] if users.ndim > 1 else 0}
    # A prior variance v of a logit is a strength of 1/v beside the sum over all pairs.
    priors = {"shrink": config.shrink[0], "prior": 1 / (len(votes.user) * config.variances[0])}
    return _train(
        params=init(config, jax.random.key(seed), **sizes),
        frozen={**frozen, **{name: jnp.float32(value) for name, value in priors.items()}},
        loss=make_loss(config.gate),
        optimizer=optimizer(recipe),
        batches=pair_batches(votes, batch_size=config.batch_size, num_steps=config.steps, seed=seed),
        folder=folder,
        mesh=make_mesh(devices=jax.devices()[:1]),
        seed=seed,
        log_every=50,
    )


def _mean_loss(config: LinearExperts, params: Params, frozen: Mapping[str, Array], votes: Comparisons) -> float:
    """Mean of -log sigmoid(margin) in nats."""
    own, rewards = directions(config, params, frozen["users"]), frozen["features"]
    margins = jnp.sum(own[votes.user] * (rewards[votes.chosen] - rewards[votes.rejected]), axis=1)
    return float(jnp.mean(jax.nn.softplus(-margins)))
