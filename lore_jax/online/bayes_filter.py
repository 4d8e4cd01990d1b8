"""A user's weights kept up to date: one answer, one rank-one step.

Axis letters: U users, K basis, P events, B events of one block.

A user is a Gaussian, w ~ N(weights, factor factorᵀ); an answer is z, the basis rewards of the chosen response minus
those of the rejected one. A log-likelihood that is quadratic in the margin z.w changes that Gaussian by a rank-one step
(Potter's square root of the Kalman step: a covariance kept as a product cannot lose its positivity to rounding):

- `update` with "ridge": exact. Equals `solve_weights` on all answers so far.
- `update` with "logistic": the exact mode of the current Gaussian times the new likelihood, then Laplace's
  approximation there. Exact for the first answer; later ones inherit the approximation (assumed-density filtering).

An answer may also say that the noisy margin lies between two bounds: a tie between -t and t, a preference of a
data set with ties above t (`pref_jax.likelihood`). Its log-likelihood is concave in the same one margin, so that one
step takes it too.

`lore_jax.online.sliding_window` keeps the last answers and is exact for "logistic" too;
`lore_jax.online.change_detection` finds sudden changes.

Forgetting: with `forgetting_factor` < 1 the taste is an autoregressive process whose stationary law is the prior,
w' - mean = forgetting_factor (w - mean) + noise. What was learned fades towards the prior, and never beyond it. Under
"ridge" this is the exact posterior of that process.

All functions are pure and meant to be jitted by the caller, the old state donated: one program updates one user as well
as a million. `in_order` takes events as they arrive, several of one user among them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lore_jax.weights.objective import Prior
from pref_jax.errors import UserError

# Newton's method for one margin takes 4 steps as a rule and about log(spread) for absurd features.
MARGIN_STEPS = 100

State = TypeVar("State")


class GaussianPosterior(NamedTuple):
    """What is known of users: weights [U K], factor [U K K] with covariance = factor factorᵀ, answers [U] so far."""

    weights: Array
    factor: Array
    answers: Array


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """How an answer counts; hashable, so that it can be a static argument.

    likelihood: "logistic" (Bradley-Terry) or "ridge" (squared distance of the margin from 1, unit noise).
    forgetting_factor: share of the deviation from the prior's mean that is left one answer later; 1 forgets nothing.
    """

    likelihood: Literal["ridge", "logistic"] = "logistic"
    forgetting_factor: float = 1.0

    def __post_init__(self) -> None:
        """Raises UserError for values that mean nothing."""
        if self.likelihood not in ("ridge", "logistic"):
            raise UserError(f"likelihood: {self.likelihood!r}; give 'ridge' or 'logistic'")
        if not 0 < self.forgetting_factor <= 1:
            raise UserError(
                f"forgetting_factor: {self.forgetting_factor}; give a number in (0, 1], where 1 forgets nothing"
            )


class View(NamedTuple):
    """A belief seen along an answer z: margin z.w [U], pulled = factorᵀ z [U K], spread = the margin's variance [U]."""

    margin: Array
    pulled: Array
    spread: Array


class Site(NamedTuple):
    """A quadratic log-likelihood of the margin, told by slope and (negated) curvature at one margin; all [U]."""

    margin: Array
    slope: Array
    curvature: Array


def start(prior: Prior, num_users: int) -> GaussianPosterior:
    """Users of whom nothing is known but the prior: mean [K], precision [K K]; the float type is the prior's."""
    lower = jnp.linalg.cholesky(jnp.asarray(prior.precision))
    size = len(lower)
    factor = jax.scipy.linalg.solve_triangular(lower, jnp.eye(size, dtype=lower.dtype), lower=True).T
    return GaussianPosterior(
        jnp.broadcast_to(jnp.asarray(prior.mean, lower.dtype), (num_users, size)),
        jnp.broadcast_to(factor, (num_users, size, size)),
        jnp.zeros(num_users, jnp.int32),
    )


def covariance(belief: GaussianPosterior) -> Float[Array, "U K K"]:
    """factor factorᵀ."""
    return jnp.einsum("ukm,ulm->ukl", belief.factor, belief.factor)


def view(belief: GaussianPosterior, z: Float[Array, "U K"]) -> View:
    """Margin, pulled and spread of one pair for each user."""
    # Sums of products, not einsum: XLA fuses them, while a batched product of tiny matrices is one call per user.
    pulled = jnp.sum(belief.factor * z[:, :, None], 1)
    return View(jnp.sum(belief.weights * z, -1), pulled, jnp.sum(pulled**2, -1))


def predict(belief: GaussianPosterior, z: Float[Array, "U K"], rule: UpdateRule) -> Float[Array, " U"]:
    """Logit that each user gives this answer and not the opposite one, uncertainty of the weights included.

    "logistic": margin / sqrt(1 + pi/8 spread) (MacKay 1992). "ridge": the log odds of 1 to -1 under
    N(margin, 1 + spread).
    """
    seen = view(belief, z)
    if rule.likelihood == "ridge":
        return 2 * seen.margin / (1 + seen.spread)
    return seen.margin * lax.rsqrt(1 + jnp.pi / 8 * seen.spread)


def relaxed_cholesky(matrix: Float[Array, "U K K"]) -> Float[Array, "U K K"]:
    """Lower factors; a few roundings more on the diagonal, in each coordinate's own unit, keep them real."""
    grow = 1 + _slack(matrix) * jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    return jnp.linalg.cholesky(matrix * grow[None])


def _slack(matrix: Array) -> float:
    return 8 * matrix.shape[-1] * float(jnp.finfo(matrix.dtype).eps)


def forget(belief: GaussianPosterior, origin: GaussianPosterior, forgetting_factor: float) -> GaussianPosterior:
    """One answer's worth of forgetting towards `origin` (`start(prior, 1)`): the process in the module's docstring."""
    if forgetting_factor == 1:
        return belief
    known, fresh = covariance(belief), covariance(origin)
    # Less what the factor adds: it must not add up, answer by answer, to more than the prior.
    blend = forgetting_factor**2 * (1 - _slack(known)) * known + (1 - forgetting_factor**2) * fresh
    weights = origin.weights + forgetting_factor * (belief.weights - origin.weights)
    return belief._replace(weights=weights, factor=relaxed_cholesky(blend))


def posterior_margin(margin: Float[Array, " U"], spread: Float[Array, " U"]) -> Float[Array, " U"]:
    """The t with t = margin + spread * sigmoid(-t): the margin of the mode of N(t; margin, spread) * sigmoid(t).

    f(t) = t - margin - spread * sigmoid(-t) rises, is convex below 0 and concave above. Newton's method that starts
    on the root's side of 0, between 0 and the root, therefore never oversteps.
    """
    tolerance = 4 * jnp.finfo(margin.dtype).eps
    begin = jnp.where(margin + spread / 2 > 0, jnp.maximum(margin, 0), jnp.minimum(margin + spread, 0))

    def body(carry):
        step, t, _ = carry
        up, down = jax.nn.sigmoid(t), jax.nn.sigmoid(-t)
        move = (margin - t + spread * down) / (1 + spread * up * down)
        return step + 1, t + move, jnp.any(jnp.abs(move) > tolerance * (1 + jnp.abs(t)))

    return lax.while_loop(lambda carry: carry[2] & (carry[0] < MARGIN_STEPS), body, (0, begin, jnp.array(True)))[1]


def bounded_margin(
    margin: Float[Array, " U"], spread: Float[Array, " U"], bounds: Float[Array, "U 2"]
) -> Float[Array, " U"]:
    """The margin of the mode of N(t; margin, spread) * P(t + logistic noise lies within the bounds).

    It is the root of t - margin - spread * slope(t), which rises, and |slope| < 1: Newton's method, held by a bracket.
    """
    tolerance = 4 * jnp.finfo(margin.dtype).eps

    def body(carry):
        step, t, low, high, _ = carry
        site = bounded_site(t, bounds)
        gap = margin - t + spread * site.slope
        low, high = jnp.where(gap > 0, t, low), jnp.where(gap > 0, high, t)
        fresh = t + gap / (1 + spread * site.curvature)
        fresh = jnp.where((fresh > low) & (fresh < high), fresh, 0.5 * (low + high))
        moving = (jnp.abs(fresh - t) > tolerance * (1 + jnp.abs(t))) & (gap != 0)
        return step + 1, jnp.where(gap == 0, t, fresh), low, high, jnp.any(moving)

    begin = (0, margin, margin - spread, margin + spread, jnp.array(True))
    return lax.while_loop(lambda carry: carry[4] & (carry[0] < MARGIN_STEPS), body, begin)[1]


def bounded_site(margin: Float[Array, "*answers"], bounds: Float[Array, "*answers 2"]) -> Site:
    """The log-likelihood that margin plus logistic noise lies within the bounds (which may be infinite), around it."""
    low, high = bounds[..., 0] - margin, margin - bounds[..., 1]
    one, other = jax.nn.sigmoid(low), jax.nn.sigmoid(high)
    return Site(margin, one - other, one * jax.nn.sigmoid(-low) + other * jax.nn.sigmoid(-high))


def tie_bounds(threshold: float | Array, tied: Bool[Array, " U"]) -> Float[Array, "U 2"]:
    """Bounds of answers where ties may be given: within the threshold of 0 for a tie, above it for a preference.

    Example:
      >>> tie_bounds(0.5, jnp.array([True, False])).tolist()
      [[-0.5, 0.5], [0.5, inf]]
    """
    threshold = jnp.asarray(threshold, float)
    return jnp.stack([jnp.where(tied, -threshold, threshold), jnp.where(tied, threshold, jnp.inf)], -1)


def logistic_site(margin: Float[Array, "*answers"]) -> Site:
    """Bradley-Terry's log-likelihood around a margin."""
    # Not p * (1 - p): that loses its digits where p rounds to 1.
    return Site(margin, jax.nn.sigmoid(-margin), jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin))


def shrink(
    factor: Float[Array, "U K K"], pulled: Float[Array, "U K"], strength: Float[Array, " U"]
) -> tuple[Float[Array, "U K K"], Float[Array, "U K"]]:
    """factor' with factor' factor'ᵀ = (covariance^-1 + strength z zᵀ)^-1, where pulled = factorᵀ z; and covariance z.

    factor' = factor - strength (factor pulled) pulledᵀ / (r (r + 1)), r² = 1 + strength |pulled|² (Potter 1963).
    """
    reach = jnp.sum(factor * pulled[:, None, :], -1)
    length = jnp.sqrt(1 + strength * jnp.sum(pulled**2, -1))
    part = (strength / (length * (length + 1)))[:, None] * reach
    return factor - part[:, :, None] * pulled[:, None, :], reach


def absorb(belief: GaussianPosterior, site: Site, seen: View) -> GaussianPosterior:
    """The Gaussian times a site along the answer of the view: exact."""
    factor, reach = shrink(belief.factor, seen.pulled, site.curvature)
    force = site.slope + site.curvature * (site.margin - seen.margin)
    weights = belief.weights + (force / (1 + site.curvature * seen.spread))[:, None] * reach
    return GaussianPosterior(weights, factor, belief.answers + 1)


def _ridge_step(belief: GaussianPosterior, z: Array) -> GaussianPosterior:
    seen = view(belief, z)
    return absorb(belief, Site(seen.margin, 1 - seen.margin, jnp.ones_like(seen.margin)), seen)


def logistic_step(
    belief: GaussianPosterior, z: Float[Array, "U K"], bounds: Float[Array, "U 2"] | None = None
) -> GaussianPosterior:
    """One answer of each user under Bradley-Terry, as in the module's docstring; for finite z."""
    seen = view(belief, z)
    if bounds is not None:
        return absorb(belief, bounded_site(bounded_margin(seen.margin, seen.spread, bounds), bounds), seen)
    return absorb(belief, logistic_site(posterior_margin(seen.margin, seen.spread)), seen)


def select(which: Bool[Array, " U"], yes: State, no: State) -> State:
    """For each user the row of one state or of the other; any trees of arrays that lead with U (or 1)."""
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), yes, no)


def update(
    belief: GaussianPosterior,
    z: Float[Array, "U K"],
    mask: Bool[Array, " U"] | None,
    origin: GaussianPosterior,
    rule: UpdateRule,
    bounds: Float[Array, "U 2"] | None = None,
) -> GaussianPosterior:
    """The belief after one answer of each user.

    Args:
      belief: of U users.
      z: basis rewards of the chosen response minus those of the rejected one.
      mask: true where there is an answer; None for all. The others' rows of z may hold anything.
      origin: `start(prior, 1)`, towards which is forgotten.
      rule: likelihood and forgetting; static.
      bounds: between which the noisy margin lies, as of `tie_bounds`, for "logistic"; None: above 0, a preference.
    Returns: the new belief. A z that is not finite, or too large for its square to be, is refused: that user's row
      stays as it was, `answers` too.
    """
    usable = jnp.isfinite(z).all(-1) if mask is None else mask & jnp.isfinite(z).all(-1)
    z = jnp.where(usable[:, None], z, 0).astype(belief.weights.dtype)
    faded = forget(belief, origin, rule.forgetting_factor)
    fresh = _ridge_step(faded, z) if rule.likelihood == "ridge" else logistic_step(faded, z, bounds)
    return select(usable & jnp.isfinite(view(faded, z).spread), fresh, belief)


# --- events as they arrive ---


def _turns(user: Array, real: Array) -> Array:
    """How many real events of the same user came before each: [P]; 0 for events that are not real."""
    order = jnp.argsort(user, stable=True)
    place = jnp.arange(len(user))
    first = jnp.concatenate([jnp.ones(1, bool), user[order][1:] != user[order][:-1]])
    turn = place - lax.cummax(jnp.where(first, place, 0))
    return jnp.where(real, jnp.zeros_like(turn).at[order].set(turn), 0)


def in_order(
    step: Callable[[State, Array, Array], State],
    state: State,
    user: Int[Array, " P"],
    z: Float[Array, "P K"],
    mask: Bool[Array, " P"] | None = None,
    *,
    width: int = 1024,
) -> State:
    """Events of many users in one program; those of one user take effect in the order in which they stand.

    Args:
      step: (rows of the state, z [B K], mask [B]) -> rows, such as `update` with its last two arguments bound.
      state: tree of arrays that lead with U.
      user: whose answer each event is; events with users outside [0, U) are left out.
      z: the answers.
      mask: true where an event is real; None for all.
      width: B, of the blocks in which events are taken. All of a block's users differ; P / B + R blocks are taken if
        one user has at most R events.
    """
    if len(user) == 0:
        return state
    num_users = len(jax.tree.leaves(state)[0])
    width = min(width, len(user))
    real = (user >= 0) & (user < num_users)
    real = real if mask is None else real & mask
    user = jnp.where(real, user, num_users)
    turn = _turns(user, real)
    order = jnp.argsort(turn, stable=True)
    tail = (0, width)
    turn, rows = jnp.pad(turn[order], tail, constant_values=-1), jnp.pad(user[order], tail, constant_values=num_users)
    z = jnp.pad(z[order], (tail, (0, 0)))

    def body(carry):
        begin, state = carry
        turns, row, block = (lax.dynamic_slice_in_dim(x, begin, width) for x in (turn, rows, z))
        now = turns == turns[0]
        # Rows of a later turn, and those of no user, are read from user U - 1 and written nowhere.
        row = jnp.where(now, row, num_users)
        fresh = step(jax.tree.map(lambda x: x.at[row].get(mode="clip"), state), block, row < num_users)
        state = jax.tree.map(lambda x, y: x.at[row].set(y, mode="drop"), state, fresh)
        return begin + now.sum(), state

    return lax.while_loop(lambda carry: carry[0] < len(user), body, (jnp.zeros((), turn.dtype), state))[1]
