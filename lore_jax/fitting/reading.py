"""How a fit reads votes that are more than preferences: thresholds and the ratings' scale, beside the directions.

A row's margin gets its threshold as an offset (`pref_jax.likelihood`), a rating minus its scaled standardised value
(`lore_jax.ratings`). Both sets of numbers are parameters of every objective ("scales"), found together with the
directions. Where all votes are preferences there are none, and every program is that of Bradley-Terry.

Axis letters: U users, L lanes, n rows per lane (padded), K basis, T thresholds, P pairs.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from lore_jax.comparisons import Extras, Table
from lore_jax.ratings import PRECISION, Raters
from lore_jax.weights.objective import Rows
from pref_jax.errors import UserError
from pref_jax.likelihood import Scale, log_widths, offsets, probabilities, thresholds, widths

# "gaps" [T], which `pref_jax.likelihood.thresholds` turns into thresholds; "log_scale" [] of ratings. Either or none.
Scales = dict[str, Array]
# A faint pull that keeps the gaps around levels nobody used, and the scale of ratings that say nothing, finite.
PULL = 0.05


class Reading(NamedTuple):
    """How a fit reads votes.

    Attributes:
      scale: levels of votes, from the training votes.
      scales: thresholds and the scale of ratings, as fitted.
      raters: what raters are like; None where there were no ratings.
    """

    scale: Scale = Scale(use="ignore")
    scales: Scales = {}  # noqa: RUF012, nobody writes to it
    raters: Raters | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """What must be kept of a row of a vote beside its difference of basis rewards, but for choices."""
        use, known = self.scale.use, self.scale.num_thresholds
        given = {"bound": known > 0, "weight": use == "weight", "margin": use == "margin"}
        return tuple(name for name, there in {**given, "rating": self.raters is not None}.items() if there)

    def probabilities(self, margin: Float[Any, "*pairs"]) -> Float[np.ndarray, "*pairs 3"]:
        """Of pairs' margins: P that the first response is preferred, that neither is, that the second one is.

        Example:
          >>> Reading().probabilities(np.zeros(1)).tolist()
          [[0.5, 0.0, 0.5]]
        """
        ends = thresholds(jnp.asarray(self.scales["gaps"])) if "gaps" in self.scales else jnp.zeros(0)
        return np.asarray(probabilities(jnp.asarray(margin), ends, ties=self.scale.ties))


def begin(table: Table, scale: Scale | None) -> Scales:
    """Where scales begin; none for a table of preferences."""
    found: Scales = {}
    if table.extras is not None and table.extras.bound is not None and scale is not None:
        found["gaps"] = jnp.asarray(np.zeros(scale.num_thresholds, np.float32))
    if table.extras is not None and table.extras.target is not None:
        found["log_scale"] = jnp.asarray(np.zeros((), np.float32))
    return found


def scales_of(params: dict[str, Array]) -> Scales:
    """The scales among an objective's parameters."""
    return {name: params[name] for name in ("gaps", "log_scale") if name in params}


def row_arguments(extras: Extras | None, mask: Any, scales: Scales, owner: Array | None = None) -> dict[str, Any]:
    """Keyword arguments of `solve_weights` by which it reads a table's rows: mask, offset, choice, squared, and `owner`
    as user.
    """
    found = {} if owner is None else {"user": owner}
    if extras is None:
        return {"mask": mask, **found}
    found["mask"] = mask if extras.weight is None else mask * extras.weight
    offset = extras.margin
    if extras.bound is not None:
        own = offsets(thresholds(scales["gaps"]), extras.bound)
        offset = own if offset is None else offset + own
    if extras.target is not None:
        rated = ~jnp.isnan(extras.target)
        target = jnp.exp(scales["log_scale"]) * jnp.where(rated, extras.target, 0)
        offset = jnp.where(rated, -target, 0 if offset is None else offset)
        found["squared"] = rated
    if offset is not None:
        found["offset"] = offset
    if extras.choice is not None:
        found["choice"] = extras.choice
    return found


def _constants(extras: Extras, rows: Rows, scales: Scales, mask: Any) -> Any:
    """What rows lose whatever the margins: intervals their log width, ratings a density's normaliser. [L n] or 0."""
    lost: Any = 0.0
    if extras.interval is not None:
        lost = -rows.weight * log_widths(thresholds(scales["gaps"]), ties=extras.ties)[extras.interval]
    if rows.squared is not None:
        lost = jnp.where(rows.squared, mask * (0.5 * math.log(2 * math.pi / PRECISION) - scales["log_scale"]), lost)
    return lost


def as_rows(extras: Extras | None, mask: Any, scales: Scales, dtype: Any) -> Rows:
    """The table's rows without z, for losses and forces of margins [L n] to which offsets are added already."""
    own = row_arguments(extras, mask, scales)
    weight, offset = own.pop("mask").astype(dtype), own.pop("offset", None)
    return Rows(jnp.zeros((*weight.shape, 0), dtype), weight, None, offset, **own)


def total_constants(extras: Extras | None, mask: Any, scales: Scales, dtype: Any) -> Array | None:
    """The sum of what rows lose whatever the margins, and the pull on scales; None where there is neither."""
    if extras is None or not scales:
        return None
    return jnp.sum(_constants(extras, as_rows(extras, mask, scales, dtype), scales, mask)) + pull(scales)


def pull(scales: Scales) -> Any:
    """The pull on scales; see PULL."""
    return sum(PULL * jnp.sum(value**2) for value in scales.values())


def row_losses(extras: Extras, mask: Bool[Any, "L n"], scales: Scales, margins: Float[Array, "L n"]) -> Array:
    """-log likelihood of the masked rows [L n] at margins without offsets; what a choice loses is spread over its rows.

    Only sums over whole votes are log-likelihoods.
    """
    rows = as_rows(extras, mask, scales, margins.dtype)
    moved = margins if rows.offset is None else margins + rows.offset
    return rows.losses(moved) + _constants(extras, rows, scales, mask)


def predictive_losses(
    extras: Extras, mask: Bool[Any, "L n"], scales: Scales, margins: Float[Array, "L n"], variance: Float[Array, "L n"]
) -> Float[Array, "L n"]:
    """As `row_losses`, of margins known up to a variance.

    A logistic answer is moderated (MacKay 1992): margins and thresholds shrink by k = 1 / sqrt(1 + pi/8 variance), and
    with them an interval's width. Of a choice each margin is (Lu et al. 2020, arXiv 2006.07584). Of a rating the
    density is exact.
    """
    rows = as_rows(extras, mask, scales, margins.dtype)
    moved = margins if rows.offset is None else margins + rows.offset
    shrink = lax.rsqrt(1 + jnp.pi / 8 * variance)
    lost = rows._replace(squared=None).losses(moved * shrink)
    if extras.interval is not None:
        # Rows that end no interval: so wide that its logarithm is 0 at any variance.
        wide = jnp.concatenate([jnp.full(1, 1e30, margins.dtype), widths(thresholds(scales["gaps"]), ties=extras.ties)])
        lost = lost - rows.weight * jnp.log(-jnp.expm1(-wide[extras.interval] * shrink))
    if rows.squared is not None:
        spread = 1 + PRECISION * variance
        density = 0.5 * (PRECISION * moved**2 / spread + jnp.log(2 * math.pi / PRECISION * spread))
        lost = jnp.where(rows.squared, mask * (density - scales["log_scale"]), lost)
    return lost


def need_probabilities(reading: Reading | None) -> Reading:
    """The reading of a fit that has one.

    Raises: UserError for a fit per group, of which each has thresholds of its own.
    """
    if reading is None:
        raise UserError("probabilities: this fit has thresholds per group; take one of another kind")
    return reading


def plain(reading: Reading) -> dict[str, Any]:
    """As JSON has it; `parse` reads it."""
    scales = {name: np.asarray(value, np.float64).tolist() for name, value in reading.scales.items()}
    raters = None if reading.raters is None else reading.raters._asdict()
    return {
        "scale": {**reading.scale._asdict(), "edges": list(reading.scale.edges)},
        "scales": scales,
        "raters": raters,
    }


def parse(saved: dict[str, Any]) -> Reading:
    """What `plain` wrote; float32 numbers come back to the bit."""
    scale = Scale(**{**saved["scale"], "edges": tuple(saved["scale"]["edges"])})
    scales = {name: jnp.asarray(np.asarray(value, np.float32)) for name, value in saved["scales"].items()}
    return Reading(scale, scales, None if saved["raters"] is None else Raters(**saved["raters"]))


def losses(
    extras: Extras | None, mask: Any, scales: Scales, margins: Float[Array, "L n"], variance: Any = None
) -> Float[Array, "L n"]:
    """The rows' log-losses, of preferences alone those of Bradley-Terry for all rows, the mask's or not."""
    if extras is not None:
        return predictive_losses(
            extras, mask, scales, margins, jnp.zeros_like(margins) if variance is None else variance
        )
    shrunk = margins if variance is None else margins * lax.rsqrt(1 + jnp.pi / 8 * variance)
    return jax.nn.softplus(-shrunk)
