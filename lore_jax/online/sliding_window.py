"""A user's weights kept up to date by Bradley-Terry, exactly: the last answers are kept and solved together.

Axis letters: U users, K basis, M answers kept.

`lore_jax.online.bayes_filter` uses an answer once, at the weights of that moment. Here the last M answers are kept and
solved again with each new one, to the exact MAP; an answer that leaves becomes the Gaussian that matches its likelihood
to second order at the current weights. Up to M answers this equals `solve_weights` on all of them; with M = 1 it equals
`bayes_filter.update`. It costs M * K numbers of memory per user and one Newton solve of M pairs per answer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lore_jax.online import bayes_filter
from lore_jax.online.bayes_filter import (
    GaussianPosterior,
    absorb,
    bounded_site,
    logistic_site,
    logistic_step,
    relaxed_cholesky,
    select,
    view,
)
from lore_jax.weights.objective import Prior
from lore_jax.weights.precision import full_matmul_precision
from lore_jax.weights.solve import solve_weights
from pref_jax.errors import UserError
from pref_jax.triangular import inverse, solve_lower


class Window(NamedTuple):
    """Users with their last M answers.

    belief: everything answered. base: the prior and the answers that have left the window. z [U M K]: the answers in
    it, the n-th of a user in place n mod M. bounds [U M 2]: of the answers' noisy margins; None: all are preferences.
    """

    belief: GaussianPosterior
    base: GaussianPosterior
    z: Array
    bounds: Array | None = None


def start(prior: Prior, num_users: int, size: int, *, bounded: bool = False) -> Window:
    """Users of whom nothing is known, with room for `size` answers (at least one), `bounded` ones or preferences."""
    if size < 1:
        raise UserError(f"window: size {size}; give room for one answer at least")
    belief = bayes_filter.start(prior, num_users)
    z = jnp.zeros((num_users, size, belief.weights.shape[1]), belief.weights.dtype)
    # The whole line: what is certain has no slope and no curvature.
    line = jnp.broadcast_to(jnp.array([-jnp.inf, jnp.inf], z.dtype), (num_users, size, 2))
    return Window(belief, belief, z, line if bounded else None)


@full_matmul_precision
def refit(
    base: GaussianPosterior,
    z: Float[Array, "U M K"],
    mask: Bool[Array, "U M"],
    bounds: Float[Array, "U M 2"] | None = None,
) -> GaussianPosterior:
    """The exact logistic mode of users whose prior is `base` and who gave the masked answers; covariance by Laplace."""

    def mode(weights: Array, factor: Array, z: Array, mask: Array, *offset: Array) -> Array:
        # F Fᵀ = Rᵀ R, without squaring the condition of F.
        prior = Prior(weights, inverse(jnp.linalg.qr(factor.T, mode="r").T))
        return solve_weights(z[None], mask[None], prior, offset=offset[0][None] if offset else None).weights[0]

    if bounds is None:
        weights = jax.vmap(mode)(base.weights, base.factor, z, mask)
    else:
        ends = jnp.concatenate([-bounds[..., 0], bounds[..., 1]], 1)
        real = jnp.concatenate([mask, mask], 1) & jnp.isfinite(ends)
        both = jnp.concatenate([z, -z], 1)
        weights = jax.vmap(mode)(base.weights, base.factor, both, real, jnp.where(real, ends, 0))
    margin = jnp.einsum("umk,uk->um", z, weights)
    site = logistic_site(margin) if bounds is None else bounded_site(margin, bounds)
    curvature = jnp.where(mask, site.curvature, 0)
    # In the coordinates in which the base is N(0, I): no eigenvalue is below 1.
    pulled = jnp.einsum("umk,ukl->uml", z, base.factor)
    eye = jnp.eye(z.shape[-1], dtype=z.dtype)[None]
    lower = relaxed_cholesky(eye + jnp.einsum("umk,um,uml->ukl", pulled, curvature, pulled))
    root = solve_lower(lower, jnp.broadcast_to(eye, lower.shape))
    factor = jnp.einsum("ukl,uml->ukm", base.factor, root)
    return GaussianPosterior(weights, factor, base.answers + mask.sum(-1, dtype=jnp.int32))


def update(
    window: Window,
    z: Float[Array, "U K"],
    mask: Bool[Array, " U"] | None,
    bounds: Float[Array, "U 2"] | None = None,
) -> Window:
    """The window after one answer of each user; arguments and refusals as `bayes_filter.update`.

    A window that was started `bounded` takes bounds with each answer, another one takes none.

    An answer that leaves goes into `base` as the quadratic that touches its log-likelihood at the present weights:
    leaving changes neither the mode nor the curvature there.
    """
    size, answers = window.z.shape[1], window.belief.answers
    usable = jnp.isfinite(z).all(-1) if mask is None else mask & jnp.isfinite(z).all(-1)
    z = jnp.where(usable[:, None], z, 0).astype(window.z.dtype)
    usable &= jnp.isfinite(view(window.base, z).spread)
    place = answers % size
    oldest = jnp.take_along_axis(window.z, place[:, None, None], 1)[:, 0]
    margin, here = jnp.sum(oldest * window.belief.weights, -1), jnp.arange(size)[None] == place[:, None]
    if (bounds is None) != (window.bounds is None):
        raise UserError("window: bounds go with each answer of a window started with bounded=True, and with no other")
    if bounds is None or window.bounds is None:
        site, ends = logistic_site(margin), None
    else:
        site = bounded_site(margin, jnp.take_along_axis(window.bounds, place[:, None, None], 1)[:, 0])
        ends = jnp.where(here[..., None], bounds[:, None].astype(z.dtype), window.bounds)
    base = select(answers >= size, absorb(window.base, site, view(window.base, oldest)), window.base)
    kept = jnp.where(here[..., None], z[:, None], window.z)
    filled = jnp.arange(size)[None] <= answers[:, None]
    found = refit(base, kept, filled, ends)
    # Where answers of absurd size leave the base without an inverse, a single step has to do.
    single = logistic_step(window.belief, z, bounds)
    belief = select(jnp.isfinite(found.weights).all(-1), found, single)
    return select(usable, Window(belief, base, kept, ends), window)
