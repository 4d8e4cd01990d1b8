"""Bradley-Terry directions on features, one for all users or one per group; and what all fits share.

Axis letters: U users, L lanes (`lore_jax.lanes`), n votes per lane (padded), N responses, D features, K basis, G
groups.
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
from lore_jax.fitting.design import width
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.fitting.lbfgs import LineSearch, minimise
from lore_jax.fitting.reading import Reading, Scales, begin, losses, scales_of
from lore_jax.ratings import Raters, fit_raters, standardise_ratings
from lore_jax.weights.precision import full_matmul_precision
from pref_jax.comparisons import Ratings, Votes, check_comparisons, check_ratings, decided
from pref_jax.errors import UserError
from pref_jax.likelihood import StrengthUse, fit_scale
from pref_jax.progress import log
from pref_jax.standardiser import Standardiser, fit_standardiser, standardise

# Prior variance of a logit under the shared reward, where no vote is left by which to choose it.
VARIANCE = 1.0


class Fit(NamedTuple):
    """A fitted LoRe model (float32 arrays).

    kind: what the weights are: "shared" (constant 1), "gaussian" (a MAP under the prior), "factors" (the same of a
    basis fitted jointly with the weights), "mixture" (probabilities of the basis rewards), "simplex" (points between
    the basis rewards, as of the reference recipe), "clusters" (posterior means under `clusters`), "group" (one-hot).
    standardiser: of the features. basis: [D K], on standardised features. weights: of the seen users, [U K].
    mean, precision: [K] and [K K], the prior of an unseen user's weights (its first two moments for "mixture" and
    "clusters").
    history: [steps] values of the objective. chosen: the candidate taken. candidates: all, with validation scores.
    clusters: the population of weights, for "clusters".
    reading: how votes are read that are more than preferences; None for "group", where each group has its own.
    free: [N K], basis rewards of the fit's responses beside those of their features; None for features alone.
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
    reading: Reading | None = Reading()
    free: Array | None = None


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
    # What rewards are made of, one of `lore_jax.fitting.design.FEATURES`: "text", features alone; "response", a free
    # value per response; "both"; or "auto", whichever gives the shared reward the lowest validation log-loss.
    features: str = "text"
    # Of "gaussian" candidates, and of "mixture" and "simplex" ones.
    ranks: tuple[int, ...] = (1, 4)
    # The rank of "gaussian" candidates is doubled up to this while the validation log-loss falls by `min_gain_se`.
    max_rank: int = 32
    # Where responses have free parts "factors" are tried too: at most so many, with these variances, and the shared
    # reward at most with this one, as alone it tells larger ones hardly apart. Each is also looked at after so few
    # steps of L-BFGS, before directions that single votes alone speak for have grown.
    factors: int = 128
    factor_variances: tuple[float, ...] = (0.25, 1.0, 4.0)
    factor_shared_variance: float = 0.3
    factor_steps: tuple[int, ...] = (8, 14, 22, 40, 120)
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
    # What strengths are for ("ignore": nothing), and whether ties and ratings are used where there are any.
    strengths: StrengthUse = "levels"
    ties: bool = True
    ratings: bool = True

    @classmethod
    def quick(cls, **changes: Any) -> "LoReConfig":
        """Fewer kinds of candidates, on programs that compile in a fifth of the time; `changes` replace fields.

        Without "simplex" and "clusters": see results/first_call.json for what that costs.
        """
        return cls(**{"components": (4, 6), "simplex": False, "clusters": 0, "line_search": "bisection"} | changes)


class Prepared(NamedTuple):
    """What a fit begins with: the table, the standardiser, features [N D] (or [N + 1 D], 0 in the last row, where there
    are ratings), and how votes are read; `final` is the table in which validation ratings too say how raters rate.
    """

    table: Table
    standardiser: Standardiser
    features: Array
    reading: Reading
    final: Table


def prepare(
    features: Any,
    train: Votes,
    validation: Votes | None,
    num_users: int,
    config: LoReConfig,
    ratings: tuple[Ratings, Ratings | None] | None = None,
) -> Prepared:
    """The arguments of a fit, checked; `ratings` of training and validation."""
    features = np.asarray(features, np.float32)
    if features.ndim != 2:
        raise UserError(f"features: shape {features.shape}; give one row a response, [N D]")
    checked = check_comparisons(train, num_users, len(features), "training votes")
    checked = checked if config.ties else decided(checked, keep=True)
    scale = fit_scale(checked, config.strengths)
    if not config.ratings or ratings is None or not len(ratings[0].user):
        table, raters, final = make_table(train, validation, num_users, len(features), scale=scale), None, None
    else:
        raters, first, last = _standardised(ratings, num_users, len(features))
        table, final = (
            make_table(train, validation, num_users, len(features), scale=scale, ratings=both) for both in (first, last)
        )
    rows = [np.asarray(train.chosen), np.asarray(train.rejected)]
    rows = np.unique(np.concatenate(rows if raters is None or ratings is None else [*rows, ratings[0].response]))
    standardiser = fit_standardiser(features[rows])
    phi = standardise(standardiser, jnp.asarray(features))
    if raters is not None:
        phi = jnp.concatenate([phi, jnp.zeros_like(phi[:1])])
    reading = Reading(scale, begin(table, scale), raters)
    return Prepared(table, standardiser, phi, reading, table if final is None else final)


def _standardised(ratings: tuple[Ratings, Ratings | None], num_users: int, num_responses: int):
    """What raters are like; both parts standardised as the training ratings say; and as all ratings say."""
    parts = [
        check_ratings(part, num_users, num_responses, what)
        for part, what in zip(ratings, ("training ratings", "validation ratings"), strict=True)
        if part is not None
    ]
    both = Ratings(*map(np.concatenate, zip(*parts, strict=True)))
    count = len(parts[0].user)

    def split(known: np.ndarray, raters: Raters) -> tuple[Ratings, Ratings]:
        own = both._replace(rating=standardise_ratings(raters, both.user, both.rating, known=known))
        return own.take(slice(None, count)), own.take(slice(count, None))

    training, every = np.arange(len(both.user)) < count, np.ones(len(both.user), bool)
    raters = fit_raters(both.user, both.rating)
    return raters, split(training, fit_raters(*both.take(training)[::2])), split(every, raters)


@partial(jax.jit, static_argnames=("line_search",))
@full_matmul_precision
def shared_program(features, table: Table, mask, strength, scales: Scales, *, line_search: LineSearch):
    """One Bradley-Terry direction [D] by L-BFGS to its optimum; the logit of every row; the history; the scales."""
    start = {"shared": jnp.zeros(features.shape[1]), **scales}

    def objective(params):
        return priors.shared_objective(features, table, mask, strength, params["shared"], scales_of(params))

    params, _, history = minimise(objective, start, steps=150, tolerance=1e-5, line_search=line_search)
    logits = priors.votes(features, table, params["shared"][:, None])[..., 0]
    return params["shared"], logits, history, scales_of(params)


def scores(loss: np.ndarray, logits: np.ndarray, mask: np.ndarray, table: Table) -> dict[str, float | None]:
    """Mean log-loss of the masked votes [L n], and accuracy of the decided ones, None without any.

    A tied prediction is half right.
    """
    mask = np.asarray(mask)
    count, right = int(table.votes(mask).sum()), (logits > 0) + 0.5 * (logits == 0)
    sides = table.decided(mask)
    return {
        "log_loss": float((loss * mask).sum() / count) if count else None,
        "accuracy": float((right * sides).sum() / sides.sum()) if sides.any() else None,
    }


def shared_search(features, table: Table, members: np.ndarray, config: LoReConfig, scales: Scales):
    """Tries every strength on the members' votes; (candidates, index of the best, its loss of every row).

    Where none of these is a validation vote, `VARIANCE` alone.
    """
    known, seen = (np.asarray(part) & table.of_users(members) for part in (table.train, table.validation))
    candidates, lost = [], []
    for variance in config.shared_variances if seen.any() else (VARIANCE,):
        strength = np.float32(width(features) / variance)
        options = {"line_search": config.line_search}
        _, logits, _, found = shared_program(features, table, known, strength, scales, **options)
        logits = np.asarray(logits)
        if table.extras is None:
            lost.append(np.logaddexp(0, -logits))
        else:
            lost.append(np.asarray(losses(table.extras, np.ones_like(known), found, jnp.asarray(logits))))
        told = scores(lost[-1], logits, seen, table)
        candidates.append({"kind": "shared", "rank": 1, "variance": variance, **told})
    best = min(range(len(candidates)), key=lambda index: candidates[index]["log_loss"])
    return candidates, best, lost[best]


def choosable(table: Table, config: LoReConfig) -> LoReConfig:
    """The config; or one of the shared reward alone, which is told, without a vote to choose by or a second user."""
    train, validation = np.asarray(table.train), np.asarray(table.validation)
    if validation.any() and (table.per_user(train | validation) > 0).sum() > 1:
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
    ratings: tuple[Ratings, Ratings | None] | None = None,
) -> Fit:
    """Bradley-Terry on features (K = 1), with the L2 strength of the lowest validation log-loss; exact (L-BFGS).

    Without validation votes the prior variance of a logit is `VARIANCE`.

    Args: features [N D]; votes of seen users; num_users; ratings of theirs, of training and of validation.
    Raises: UserError for bad indices or features.
    """
    group = np.zeros(num_users, np.int32)
    return per_group(features, train, validation, group, config=config, ratings=ratings)._replace(kind="shared")


def per_group(
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    train: Votes,
    validation: Votes,
    group: Int[np.ndarray, " U"],
    *,
    config: LoReConfig | None = None,
    ratings: tuple[Ratings, Ratings | None] | None = None,
) -> Fit:
    """One Bradley-Terry direction a group: the oracle on the same features, K = G; as `shared` otherwise.

    `weights [U G]` are one-hot; an unseen user's are the one-hot of their group. A group without votes has reward 0.
    """
    config = config or LoReConfig()
    group = np.asarray(group)
    num_users, num_groups = len(group), int(group.max(initial=0)) + 1
    table, standardiser, phi, reading, table_of_all = prepare(features, train, validation, num_users, config, ratings)
    padded = np.concatenate([group, np.full(table.num_users - num_users, -1)])
    directions, taken, everything, history, scales = [], [], [], jnp.zeros(0), reading.scales
    for index in range(num_groups):
        members = padded == index
        candidates, best, _ = shared_search(phi, table, members, config, reading.scales)
        everything += [{**candidate, "group": index} for candidate in candidates]
        taken.append(candidates[best])
        final = np.asarray(table.train | table.validation if config.refit else table.train) & table.of_users(members)
        strength = np.float32(phi.shape[1] / candidates[best]["variance"])
        votes = table_of_all if config.refit else table
        direction, _, history, scales = shared_program(
            phi, votes, final, strength, reading.scales, line_search=config.line_search
        )
        directions.append(direction)
    basis = jnp.stack(directions, 1)
    share = np.bincount(group, minlength=num_groups) / max(num_users, 1)
    chosen = taken[0] if num_groups == 1 else {"kind": "group", "rank": num_groups, "groups": taken}
    weights = jax.nn.one_hot(jnp.asarray(group), num_groups)
    precision = priors.PINNED_PRECISION * jnp.eye(num_groups)
    mean = jnp.asarray(share, jnp.float32)
    found = Fit("group", standardiser, basis, weights, mean, precision, history, chosen, tuple(everything))
    return found._replace(reading=reading._replace(scales=scales) if num_groups == 1 else None)
