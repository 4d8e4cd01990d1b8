"""Bradley-Terry directions on features, one for all users or one per group; and what all fits share.

Axis letters: U users, n votes per user (padded), N responses, D features, K basis, G groups.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lore_jax.comparisons import Table, make_table
from lore_jax.fitting import priors
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.fitting.lbfgs import LineSearch, minimise
from lore_jax.weights.precision import full_matmul_precision
from pref_jax.comparisons import Votes
from pref_jax.errors import UserError
from pref_jax.progress import log
from pref_jax.standardiser import Standardiser, fit_standardiser, standardise

# Prior variance of a logit under the shared reward, where no vote is left by which to choose it.
VARIANCE = 1.0


class Fit(NamedTuple):
    """A fitted LoRe model (float32 arrays).

    kind: what the weights are: "shared" (constant 1), "gaussian" (a MAP under the prior), "mixture" (probabilities of
    the basis rewards), "simplex" (points between the basis rewards, as of the reference recipe), "clusters" (posterior
    means under `clusters`), "group" (one-hot).
    standardiser: of the features. basis: [D K], on standardised features. weights: of the seen users, [U K].
    mean, precision: [K] and [K K], the prior of an unseen user's weights (its first two moments for "mixture" and
    "clusters").
    history: [steps] values of the objective. chosen: the candidate taken. candidates: all, with validation scores.
    clusters: the population of weights, for "clusters".
    """

    kind: str
    standardiser: Standardiser
    basis: Array
    weights: Array
    mean: Array
    precision: Array
    history: Array
    chosen: dict[str, Any]
    candidates: tuple[dict[str, Any], ...]
    clusters: Clusters | None = None


@dataclass(frozen=True, kw_only=True)
class LoReConfig:
    """The candidates that `lore_jax.fitting.model_selection.fit` tries, and how it chooses among them.

    Variances are prior variances of a logit, so they mean the same for any number of features:
    the L2 strength of a direction is D / variance. The default is the full search.

    Example:
      >>> LoReConfig.quick(seed=1).components
      (4, 6)
    """

    shared_variances: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    variances: tuple[float, ...] = (0.3, 3.0, 30.0)
    # Of "gaussian" candidates, and of "mixture" and "simplex" ones.
    ranks: tuple[int, ...] = (1, 4)
    components: tuple[int, ...] = (2, 3, 4, 5, 6)
    # Whether a "simplex" candidate is tried beside every "mixture".
    simplex: bool = True
    # Gaussian clusters of the weights, tried on the best gaussian and the best simplex basis; 0: none.
    clusters: int = 16
    # Half of the score is that of users known by this many of their training votes.
    few_shot_context: int = 5
    # A personal candidate must beat the shared reward by this many standard errors of the validation log-loss.
    min_gain_se: float = 1.0
    # Whether the shared reward may be chosen; without it, only if there are no personal candidates.
    allow_shared: bool = True
    # After the choice, fit once more on training and validation votes together.
    refit: bool = True
    steps: int = 120
    tolerance: float = 5e-4
    line_search: LineSearch = "zoom"
    seed: int = 0

    @classmethod
    def quick(cls, **changes: Any) -> "LoReConfig":
        """Fewer kinds of candidates, on programs that compile in a fifth of the time; `changes` replace fields.

        Without "simplex" and "clusters": see results/first_call.json for what that costs.
        """
        return cls(**{"components": (4, 6), "simplex": False, "clusters": 0, "line_search": "bisection"} | changes)


def prepare(features, train: Votes, validation: Votes | None, num_users: int):
    """(table, standardiser, standardised features [N D]) of checked arguments."""
    features = np.asarray(features, np.float32)
    if features.ndim != 2:
        raise UserError(f"features: shape {features.shape}; give one row a response, [N D]")
    table = make_table(train, validation, num_users, len(features))
    rows = np.unique(np.concatenate([np.asarray(train.chosen), np.asarray(train.rejected)]))
    standardiser = fit_standardiser(features[rows])
    return table, standardiser, standardise(standardiser, jnp.asarray(features))


@partial(jax.jit, static_argnames=("line_search",))
@full_matmul_precision
def shared_program(features, table: Table, mask, strength, *, line_search: LineSearch):
    """One Bradley-Terry direction [D] by L-BFGS to its optimum; the logit of every vote; the history."""
    start = jnp.zeros(features.shape[1])
    objective = partial(priors.shared_objective, features, table, mask, strength)
    direction, _, history = minimise(objective, start, steps=150, tolerance=1e-5, line_search=line_search)
    return direction, priors.votes(features, table, direction[:, None])[..., 0], history


def scores(loss: np.ndarray, logits: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Mean log-loss and accuracy of the masked votes [U n], None without any; a tie, logit 0, is half right."""
    if not (count := int(mask.sum())):
        return {"log_loss": None, "accuracy": None}
    right = (logits > 0) + 0.5 * (logits == 0)
    return {"log_loss": float((loss * mask).sum() / count), "accuracy": float((right * mask).sum() / count)}


def shared_search(features, table: Table, members: np.ndarray, config: LoReConfig):
    """Tries every strength on the members' votes; (candidates, index of the best, its loss of every vote).

    Where none of these is a validation vote, `VARIANCE` alone.
    """
    known, seen = (np.asarray(part) & members[:, None] for part in (table.train, table.validation))
    candidates, losses = [], []
    for variance in config.shared_variances if seen.any() else (VARIANCE,):
        strength = np.float32(features.shape[1] / variance)
        _, logits, _ = shared_program(features, table, known, strength, line_search=config.line_search)
        logits = np.asarray(logits)
        losses.append(np.logaddexp(0, -logits))
        told = scores(losses[-1], logits, seen)
        candidates.append({"kind": "shared", "rank": 1, "variance": variance, **told})
    best = min(range(len(candidates)), key=lambda index: candidates[index]["log_loss"])
    return candidates, best, losses[best]


def choosable(table: Table, config: LoReConfig) -> LoReConfig:
    """The config; or one of the shared reward alone, which is told, without a vote to choose by or a second user."""
    train, validation = np.asarray(table.train), np.asarray(table.validation)
    if validation.any() and (train | validation).any(1).sum() > 1:
        return config
    lacking = "there is one user" if validation.any() else f"no vote is held out (prior variance {VARIANCE:g})"
    log(f"LoRe: nothing to choose by, as {lacking}: the shared reward is fitted")
    return replace(config, variances=(), ranks=(), components=(), clusters=0)


def shared(
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    train: Votes,
    validation: Votes,
    num_users: int,
    *,
    config: LoReConfig | None = None,
) -> Fit:
    """Bradley-Terry on features (K = 1), with the L2 strength of the lowest validation log-loss; exact (L-BFGS).

    Without validation votes the prior variance of a logit is `VARIANCE`.

    Args: features [N D]; votes of seen users; num_users.
    Raises: UserError for bad indices or features.
    """
    return per_group(features, train, validation, np.zeros(num_users, np.int32), config=config)._replace(kind="shared")


def per_group(
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    train: Votes,
    validation: Votes,
    group: Int[np.ndarray, " U"],
    *,
    config: LoReConfig | None = None,
) -> Fit:
    """One Bradley-Terry direction a group: the oracle on the same features, K = G; as `shared` otherwise.

    `weights [U G]` are one-hot; an unseen user's are the one-hot of their group. A group without votes has reward 0.
    """
    config = config or LoReConfig()
    group = np.asarray(group)
    num_users, num_groups = len(group), int(group.max(initial=0)) + 1
    table, standardiser, phi = prepare(features, train, validation, num_users)
    padded = np.concatenate([group, np.full(table.train.shape[0] - num_users, -1)])
    directions, taken, everything, history = [], [], [], jnp.zeros(0)
    for index in range(num_groups):
        members = padded == index
        candidates, best, _ = shared_search(phi, table, members, config)
        everything += [{**candidate, "group": index} for candidate in candidates]
        taken.append(candidates[best])
        final = np.asarray(table.train | table.validation if config.refit else table.train) & members[:, None]
        strength = np.float32(phi.shape[1] / candidates[best]["variance"])
        direction, _, history = shared_program(phi, table, final, strength, line_search=config.line_search)
        directions.append(direction)
    basis = jnp.stack(directions, 1)
    share = np.bincount(group, minlength=num_groups) / max(num_users, 1)
    chosen = taken[0] if num_groups == 1 else {"kind": "group", "rank": num_groups, "groups": taken}
    weights = jax.nn.one_hot(jnp.asarray(group), num_groups)
    precision = priors.PINNED_PRECISION * jnp.eye(num_groups)
    mean = jnp.asarray(share, jnp.float32)
    return Fit("group", standardiser, basis, weights, mean, precision, history, chosen, tuple(everything))
