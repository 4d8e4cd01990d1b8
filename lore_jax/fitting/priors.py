"""What the seen users teach about tastes: likelihoods of three populations, and a spectral start.

Axis letters: U users, L lanes (`lore_jax.lanes`), n pairs per lane (padded), N responses, D features, K basis.

A user's taste is a direction in feature space. The first two populations integrate the users out, so that a handful of
pairs per user cannot overfit as it does when W and V are both point estimates:

- gaussian: taste = shared + spread eps, eps ~ N(0, I_K). In LoRe's words V = [shared, spread] and
  w ~ N((1, 0..), diag(1/PINNED_PRECISION, 1..)). The integral over eps is Laplace's (the exact MAP, and its Hessian's
  determinant).
- mixture: taste is one of K directions shared + delta_k with probability pi_k: V = those directions, w = the posterior
  probabilities, a point of the simplex. The sum is exact.
- simplex: taste is any point between the mixture's directions, from whose fit it starts; W and V are point estimates,
  for users with votes enough, who care for more than one thing.

Votes that are more than preferences bring parameters of their own, the scales of `lore_jax.fitting.reading`, which
stand among every objective's parameters as "gaps" and "log_scale".

All hold "no personalisation" at the origin (spread = 0, delta = 0), and the strengths shrink towards it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lore_jax.comparisons import Table
from lore_jax.fitting.design import Features
from lore_jax.fitting.reading import Scales, as_rows, pull, row_arguments, row_losses, scales_of, total_constants
from lore_jax.lanes import fold, spread
from lore_jax.weights import objective, solve
from pref_jax.triangular import log_determinant

# The shared direction's own weight is held at 1 by this precision (a finite one, so that every solver takes it).
PINNED_PRECISION = 1e4


def votes(features: Features, table: Table, directions: Float[Array, "D K"]) -> Float[Array, "L n K"]:
    """Differences of basis rewards of every vote."""
    rewards = features @ directions
    return rewards[table.chosen] - rewards[table.rejected]


class FitProblem(NamedTuple):
    """What a personal population is fitted to.

    Features [N D] or a `lore_jax.fitting.design.Design`, the table, which votes count [L n], the
    L2 strengths [2] of the shared direction and of the personal ones, and which of those [K] are in use: the others
    count as zero, so that one program serves all ranks.
    """

    features: Any
    table: Table
    mask: Array
    strengths: Array
    used: Array

    def votes(self, directions: Float[Array, "D K"]) -> Float[Array, "L n K"]:
        """As the function of this name."""
        return votes(self.features, self.table, directions)

    def problem(self, basis: Float[Array, "D K"], prior: objective.Prior, params: dict[str, Array]):
        """The users' problem on a basis, and how many users there are."""
        rows = row_arguments(self.table.extras, self.mask, scales_of(params), self.table.owner)
        return objective.problem(self.votes(basis), prior=prior, **rows)

    def complete(self, lost: Float[Array, ""], params: dict[str, Array]) -> Float[Array, ""]:
        """An objective and what the votes lose whatever their margins, and the pull on the scales."""
        more = total_constants(self.table.extras, self.mask, scales_of(params), self.features.dtype)
        return lost if more is None else lost + more

    def penalty(self, shared: Float[Array, " D"], personal: Float[Array, "D K"]) -> Float[Array, ""]:
        """Half the strengths times the squared lengths."""
        return 0.5 * (self.strengths[0] * jnp.sum(shared**2) + self.strengths[1] * jnp.sum(personal**2))


def shared_objective(
    features: Features,
    table: Table,
    mask: Bool[Array, "L n"],
    strength: Array,
    direction: Float[Array, " D"],
    scales: Scales | None = None,
) -> Array:
    """-log likelihood of the votes (Bradley-Terry: softplus(-logit)) + strength/2 |direction|^2."""
    logits = votes(features, table, direction[:, None])[..., 0]
    if table.extras is None:
        loss = jnp.sum(jnp.where(mask, jax.nn.softplus(-logits), 0))
    else:
        loss = jnp.sum(row_losses(table.extras, mask, scales or {}, logits)) + pull(scales or {})
    return loss + 0.5 * strength * jnp.sum(direction**2)


def gaussian_prior(rank: int) -> objective.Prior:
    """Prior of w over [shared, spread]: mean (1, 0 ...), precision diag(PINNED_PRECISION, 1 ...)."""
    return objective.Prior(jnp.eye(1, rank + 1)[0], jnp.diag(jnp.ones(rank + 1).at[0].set(PINNED_PRECISION)))


def gaussian_basis(params: dict[str, Array], used: Bool[Array, " K"]) -> Float[Array, "D K1"]:
    """[shared, spread], D x (K + 1), with unused columns zero."""
    return jnp.concatenate([params["shared"][:, None], jnp.where(used[None], params["spread"], 0)], 1)


def mixture_basis(params: dict[str, Array]) -> Float[Array, "D K"]:
    """The components' directions."""
    return params["shared"][:, None] + params["delta"]


def mixture_log_prior(params: dict[str, Array], used: Bool[Array, " K"]) -> Float[Array, " K"]:
    """Log-probabilities of the components; unused ones have (as good as) none."""
    return jax.nn.log_softmax(jnp.where(used, params["logits"], -1e9))


def gaussian_objective(task: FitProblem, params: dict[str, Array]) -> Float[Array, ""]:
    """-log of the Laplace marginal likelihood, plus penalties.

    Args: params `shared [D]`, `spread [D K]`.
    """
    prior = gaussian_prior(len(task.used))
    problem, users = task.problem(gaussian_basis(params, task.used), prior, params)
    weights = solve.logistic_weights(problem, users)
    volume = 0.5 * (log_determinant(objective.logistic_hessian(problem, weights)) - jnp.log(PINNED_PRECISION))
    penalty = task.penalty(params["shared"], params["spread"])
    return task.complete(jnp.sum(objective.logistic_objective(problem, weights) + volume) + penalty, params)


def mixture_objective(task: FitProblem, params: dict[str, Array]) -> Float[Array, ""]:
    """-log of the exact marginal likelihood, plus penalties.

    Args: params `shared [D]`, `delta [D K]`, `logits [K]` of the components' probabilities.
    """
    if task.table.extras is None:
        loss = jax.nn.softplus(-task.votes(mixture_basis(params)))
        loglik = -fold(jnp.sum(jnp.where(task.mask[..., None], loss, 0), 1), task.table.owner)
    else:
        prior = objective.Prior(params["logits"], jnp.eye(len(task.used)))
        problem, users = task.problem(mixture_basis(params), prior, params)
        loglik = -problem.rows.total(solve.component_losses(problem.rows), users)
    evidence = jax.nn.logsumexp(loglik + mixture_log_prior(params, task.used)[None], axis=-1)
    penalty = task.penalty(params["shared"], params["delta"])
    # A faint pull to equal shares keeps the logits of emptied components finite.
    return task.complete(-jnp.sum(evidence) + penalty + 0.05 * jnp.sum(params["logits"] ** 2), params)


def simplex_weights(params: dict[str, Array], used: Bool[Array, " K"]) -> Float[Array, "U K"]:
    """Each user's point of the simplex."""
    return jax.nn.softmax(jnp.where(used[None], params["tastes"], -1e9))


def simplex_objective(task: FitProblem, params: dict[str, Array]) -> Float[Array, ""]:
    """-log of the likelihood at each user's own weights, plus penalties.

    Args: params `shared [D]`, `delta [D K]`, `tastes [U K]`, logits of the weights.
    """
    loss = _loss_at(task, mixture_basis(params), simplex_weights(params, task.used), params)
    # A faint pull to equal weights, which keeps the logits of a user who cares for one direction alone finite.
    faint = 0.003 * jnp.sum(jnp.where(task.used[None], params["tastes"], 0) ** 2)
    return loss + task.penalty(params["shared"], params["delta"]) + faint


def factor_objective(task: FitProblem, params: dict[str, Array]) -> Float[Array, ""]:
    """-log of the likelihood at each user's own weights and of their prior N(0, 1), plus penalties.

    Where every response has a free value this is biased matrix factorisation.

    Args: params `shared [D]`, `spread [D K]`, `tastes [U K]`, the weights of the spread.
    """
    tastes = jnp.where(task.used[None], params["tastes"], 0)
    weights = jnp.concatenate([jnp.ones_like(tastes[:, :1]), tastes], 1)
    loss = _loss_at(task, gaussian_basis(params, task.used), weights, params)
    return loss + task.penalty(params["shared"], params["spread"]) + 0.5 * jnp.sum(tastes**2)


def _loss_at(
    task: FitProblem, basis: Float[Array, "D K"], weights: Float[Array, "U K"], params: dict[str, Array]
) -> Float[Array, ""]:
    """-log of the likelihood of users' weights, and the pull on the scales."""
    logits = jnp.einsum("unk,uk->un", task.votes(basis), spread(weights, task.table.owner))
    if task.table.extras is None:
        return jnp.sum(jnp.where(task.mask, jax.nn.softplus(-logits), 0))
    scales = scales_of(params)
    return jnp.sum(row_losses(task.table.extras, task.mask, scales, logits)) + pull(scales)


def spectral_directions(
    features: Features,
    table: Table,
    mask: Bool[Array, "L n"],
    logits: Float[Array, "L n"],
    rank: int,
    key: Array,
    steps: int = 30,
    scales: Scales | None = None,
) -> Float[Array, "D K"]:
    """Orthonormal directions in which users disagree most with these logits of the rows, strongest first.

    With residuals e = sigmoid(-logit) they are the top eigenvectors of
    sum_u (sum_i e_i d_i)(sum_i e_i d_i)ᵀ - sum_i e_i^2 d_i d_iᵀ: the score test's statistic for random effects
    (only products of different votes of one user count). Found by subspace iteration, never forming the D x D matrix.
    """
    extras = table.extras
    if extras is None:
        residual = jnp.where(mask, jax.nn.sigmoid(-logits), 0)
    else:
        rows = as_rows(extras, mask, scales or {}, logits.dtype)
        residual = rows.forces(logits if rows.offset is None else logits + rows.offset)

    def quadratic(block):
        pulled = votes(features, table, block) * residual[..., None]
        # Rows of one vote pull as one.
        own = pulled if extras is None else objective.together(pulled, extras.vote)
        return 0.5 * (jnp.sum(fold(pulled.sum(1), table.owner) ** 2) - jnp.sum(pulled * own))

    apply = jax.grad(quadratic)

    def iterate(block, _):
        return jnp.linalg.qr(apply(block))[0], None

    # The subspace is wider than asked: iteration finds large negative eigenvalues too, and they are put last.
    start = jnp.linalg.qr(jax.random.normal(key, (features.shape[1], min(2 * rank + 2, features.shape[1]))))[0]
    block, _ = lax.scan(iterate, start, None, length=steps)
    _, rotation = jnp.linalg.eigh(block.T @ apply(block))
    found = (block @ rotation)[:, ::-1][:, :rank]
    return jnp.pad(found, ((0, 0), (0, rank - found.shape[1])))


def corners(size: int, used: Int[Array, ""]) -> Float[Array, "size size"]:
    """`used` corners of a regular simplex around the origin, one a row, unit length; unused rows are zero."""
    index = jnp.arange(size)
    # Helmert's rows: corner k has sqrt entries in dimensions before k and one positive entry at k.
    ahead = used - 1 - index
    along = jnp.sqrt(jnp.maximum(ahead, 0) / jnp.maximum(ahead + 1, 1))
    below = -along / jnp.maximum(ahead, 1)
    rows = jnp.where(
        index[:, None] == index[None], along[None], jnp.where(index[:, None] > index[None], below[None], 0)
    )
    rows = rows * ((index[:, None] < used) & (index[None] < used - 1))
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
