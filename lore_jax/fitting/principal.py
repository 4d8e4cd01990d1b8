"""A basis that no vote is fitted to: principal directions of the differences between chosen and rejected features.

Decomposed reward models (arXiv 2502.13131, "DRM") take the basis from a principal component analysis of e_c - e_r, not
centred, as the sign of a difference is what it tells, and fit each user's weights on it to a few votes. Here weights
are solved as LoRe's are, under a Gaussian prior around the population's own direction on the same basis, whose variance
is chosen, with the rank, by held-out votes.

Axis letters: U users, P votes, N responses, D features, K basis.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lore_jax.fitting.bradley_terry import Fit, LoReConfig, choosable, prepare, scores, shared_program, shared_search
from lore_jax.fitting.candidates import infer_program
from lore_jax.weights.objective import Prior
from lore_jax.weights.precision import full_matmul_precision
from pref_jax.comparisons import Ratings, Votes

RANKS = (4, 8, 16, 32, 64)
# Of a logit, by what users differ in.
VARIANCES = (0.03, 0.1, 0.3, 1.0, 3.0)


@jax.jit
@full_matmul_precision
def principal_directions(
    features: Float[Array, "N D"], chosen: Array, rejected: Array, real: Array
) -> Float[Array, "D D"]:
    """Unit columns, the direction of the largest mean square difference first; votes with `real` False do not count."""

    def add(total: Array, vote: tuple[Array, Array, Array]) -> tuple[Array, None]:
        one, two, there = vote
        difference = jnp.where(there[:, None], features[one] - features[two], 0)
        return total + difference.T @ difference, None

    size = features.shape[1]
    total, _ = jax.lax.scan(add, jnp.zeros((size, size)), (chosen, rejected, real))
    return jnp.linalg.eigh(total)[1][:, ::-1]


def fit_principal(
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    train: Votes,
    validation: Votes,
    num_users: int,
    *,
    config: LoReConfig | None = None,
    ratings: tuple[Ratings, Ratings | None] | None = None,
    ranks: tuple[int, ...] = RANKS,
    variances: tuple[float, ...] = VARIANCES,
) -> Fit:
    """Users' weights on principal directions, as a `Fit` of kind "gaussian".

    Args:
      features: of the responses.
      train: votes of the seen users.
      validation: other votes of theirs, by which rank and variances are chosen; without any the first of each.
      num_users: users are numbered 0 to num_users - 1.
      config: of the shared reward, which stands for the prior's mean, and of how votes are read.
      ratings: as of `lore_jax.fitting.model_selection.fit`.
      ranks: K to choose from; larger ones than there are features are left out.
      variances: of a logit, by what users differ in, to choose from.

    Raises:
      UserError: for bad indices or features.

    Example:
      >>> found = fit_principal(features, train, validation, num_users)
      >>> weights = model_selection.adapt(found, features, context, new_users)
    """
    config = config or LoReConfig.quick()
    table, standardiser, phi, reading, final = prepare(features, train, validation, num_users, config, ratings)
    able = choosable(table, config) is config
    everyone = np.ones(table.num_users, bool)
    found, best, _ = shared_search(phi, table, everyone, config, reading.scales)
    strength = jnp.float32(phi.shape[1] / found[best]["variance"])
    ordered = principal_directions(phi, table.chosen, table.rejected, table.train)
    sizes = [rank for rank in ranks if rank <= phi.shape[1]] or [phi.shape[1]]
    tried = list(itertools.product(sizes, variances)) if able else [(sizes[0], variances[0])]
    options: dict[str, Any] = {"line_search": config.line_search}

    def solved(rank: int, variance: float, votes: Any, mask: Any) -> tuple[Array, Prior, Array, Any, Any]:
        """Basis, prior, weights, losses and scales; the prior's mean is the population's direction on the basis."""
        basis = ordered[:, :rank]
        mean, _, _, scales = shared_program(phi @ basis, votes, mask, strength, reading.scales, **options)
        prior = Prior(mean, phi.shape[1] / variance * jnp.eye(rank))
        weights, losses, logits = infer_program("gaussian", phi, votes, mask, basis, prior, None, scales)
        return basis, prior, weights, (losses, logits), scales

    rows = []
    for rank, variance in tried:
        losses, logits = solved(rank, variance, table, table.train)[3]
        told = scores(np.asarray(losses), np.asarray(logits), np.asarray(table.validation), table)
        rows.append({"kind": "gaussian", "basis": "principal", "rank": rank, "variance": variance, **told})
    taken = min(range(len(rows)), key=lambda index: rows[index]["log_loss"] or 0)
    everything = table.train | table.validation if config.refit else table.train
    basis, prior, weights, _, scales = solved(*tried[taken], final if config.refit else table, everything)
    reading = reading._replace(scales=scales)
    parts: tuple[Any, ...] = (basis, weights[:num_users], prior.mean, prior.precision, jnp.zeros(0))
    known: tuple[Any, ...] = (*parts, rows[taken], tuple(rows))
    return Fit("gaussian", standardiser, *known)._replace(reading=reading)
