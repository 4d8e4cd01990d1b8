"""Joint fit of a basis and of the seen users' weights; weights of unseen users from a few votes.

Axis letters: U users, L lanes (`lore_jax.lanes`), M unseen users, n votes per lane (padded), N
responses, D features, K basis, P pairs, G groups.

- `fit`: learns a prior over users' tastes around the shared reward (`lore_jax.fitting.priors`,
  `lore_jax.fitting.gaussian_mixture`) and lets validation votes decide its form, rank and shrinkage, "no
  personalisation" among them.
- `lore_jax.fitting.published.fit_published` and `fit_published_anchored`: the published recipes (arXiv 2504.14439);
  `lore_jax.fitting.variable_projection.fit_varpro`: the same loss by variable projection.
- `lore_jax.fitting.bradley_terry.shared`: one Bradley-Terry direction (K = 1); `per_group`: one per group, the oracle
  on the same features.

Everything heavy is jitted once a shape: strengths, ranks and masks are arguments, users and votes padded to buckets.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from lore_jax.comparisons import Table, make_table
from lore_jax.fitting import gaussian_mixture, priors
from lore_jax.fitting.bradley_terry import (
    Fit,
    LoReConfig,
    choosable,
    prepare,
    scores,
    shared_search,
)
from lore_jax.fitting.candidates import (
    PERSONAL,
    CandidateFit,
    Initialization,
    Tell,
    clustered,
    compile_ahead,
    compile_grown,
    grown,
    infer_program,
    initialize,
    num_candidates,
    refit,
    search,
)
from lore_jax.fitting.design import designs, fitted_design, parted, variances, width
from lore_jax.fitting.reading import Scales
from lore_jax.ratings import standardise_ratings
from lore_jax.reward import differences
from lore_jax.weights.objective import Prior
from lore_jax.weights.precision import full_matmul_precision
from pref_jax.comparisons import Ratings, Votes, check_comparisons, check_ratings
from pref_jax.errors import UserError
from pref_jax.standardiser import Standardiser, standardise


class _Leaderboard:
    """What was tried, its scores on the table's held-out votes, and the personal fits by their place in `rows`."""

    def __init__(self, rows: list[dict[str, Any]], best: int, baseline: np.ndarray, table: Table):
        self.rows, self.best, self.fits = rows, best, dict[int, CandidateFit]()
        self._baseline, self._held, self._table = baseline, np.asarray(table.validation), table

    def add(self, outcome: CandidateFit, **what: Any) -> None:
        """A personal fit: its scores, and its gain in log-loss over the shared reward with users as clusters."""
        loss, logits = np.asarray(outcome.loss), np.asarray(outcome.logits)
        gain, error = self._gain(self._baseline, loss)
        self.fits[len(self.rows)] = outcome
        told = scores(loss, logits, self._held, self._table)
        self.rows.append({**what, **told, "gain": gain, "gain_error": error})

    def _gain(self, before: np.ndarray, after: np.ndarray) -> tuple[float, float | None]:
        """The fall in log-loss between losses [L n] of the same rows, and its error with users as clusters."""
        held = self._table.per_user(self._held) > 0
        gains = self._table.per_user((before - after) * self._held)[held]
        return float(gains.sum()), float(np.sqrt(len(gains)) * gains.std(ddof=1)) if len(gains) > 1 else None

    def is_better(self, one: int, other: int, errors: float) -> bool:
        """Whether the log-loss of one fit is so many standard errors below that of another."""
        gain, error = self._gain(np.asarray(self.fits[other].loss), np.asarray(self.fits[one].loss))
        return error is not None and gain > errors * error

    def best_per_kind(self, kinds: Iterable[str], among: Iterable[int]) -> list[int]:
        """The candidate of the lowest log-loss of each kind, where there is one."""
        rising = sorted(among, key=lambda index: self.rows[index]["log_loss"])
        firsts = {self.rows[index]["kind"]: index for index in reversed(rising)}
        return [firsts[kind] for kind in kinds if kind in firsts]

    def score_few_shot(self, start: Initialization, some: np.ndarray, index: int) -> None:
        """Notes the log-loss for users known by `some` of their votes [L n]."""
        if index == self.best:
            loss = self.rows[index]["log_loss"]
        else:
            kind, own = self.rows[index]["kind"], self.fits[index]
            prior = Prior(own.mean, own.precision)
            basis, scales = own.basis, own.scales
            losses = infer_program(kind, start.features, start.table, some, basis, prior, own.clusters, scales)[1]
            loss = scores(np.asarray(losses), self._held, self._held, self._table)["log_loss"]
        self.rows[index]["few_log_loss"] = loss


def _try_all(start: Initialization, tried: _Leaderboard, config: LoReConfig, tell: Tell) -> None:
    """Every personal candidate, more ranks, then clusters on the best gaussian and the best simplex basis."""
    for settings, outcome in search(start, config, tell).items():
        tried.add(outcome, **settings.row())
    first = list(tried.fits)
    _grow(start, tried, config, tell)
    for index in tried.best_per_kind(("gaussian", "simplex"), first) if config.clusters else ():
        own = tried.rows[index]
        tell(f"clusters on {own['kind']}, rank {own['rank']}")
        what = {"kind": "clusters", "basis": own["kind"], "rank": own["rank"], "variance": own["variance"]}
        tried.add(clustered(start, tried.fits[index], config), **what)


def _grow(start: Initialization, tried: _Leaderboard, config: LoReConfig, tell: Tell) -> None:
    """Twice the rank of the best gaussian candidate, as long as the last doubling clearly lowered the log-loss.

    Each is fitted with the variance of the last rank's best, three times that and a third, in an order in which
    directions that one left short are not what the next begins with.
    """

    def best(rank: int) -> int:
        found = [i for i in tried.fits if (tried.rows[i]["kind"], tried.rows[i]["rank"]) == ("gaussian", rank)]
        return min(found, key=lambda index: tried.rows[index]["log_loss"])

    ranks, limit = sorted(config.ranks), min(config.max_rank, start.features.shape[1])
    while config.variances and len(ranks) > 1 and 2 * ranks[-1] <= limit:
        last, rank = best(ranks[-1]), 2 * ranks[-1]
        if not tried.is_better(last, best(ranks[-2]), config.min_gain_se):
            return
        compile_grown(start, rank, config, tell)
        found, variance = tried.fits[last], tried.rows[last]["variance"]
        for own in (variance, 3 * variance, variance / 3):
            tell(f"gaussian, rank {rank}, variance {own:g}")
            found = grown(start, found, rank, own, config)
            tried.add(found, kind="gaussian", rank=rank, variance=own)
        ranks.append(rank)


def _choose(start: Initialization, tried: _Leaderboard, config: LoReConfig) -> int:
    """The candidate to take, for people of all their answers and of few alike."""
    # Of one user's votes a gain has no error that would tell it from chance.
    errors = {i: error for i in tried.fits if (error := tried.rows[i]["gain_error"]) is not None}
    able = [i for i, error in errors.items() if tried.rows[i]["gain"] > config.min_gain_se * error]
    last = tried.best_per_kind(PERSONAL, able if config.allow_shared else tried.fits)
    if config.allow_shared or not last:
        last.append(tried.best)
    some = start.table.some(np.asarray(start.mask), config.few_shot_context, np.random.default_rng(config.seed))
    for index in last:
        tried.score_few_shot(start, some, index)
    if len(last) == 1:
        return last[0]
    return min(last, key=lambda index: tried.rows[index]["log_loss"] + tried.rows[index]["few_log_loss"])


@contextlib.contextmanager
def _progress(config: LoReConfig) -> Iterator[Tell]:
    """A bar on standard error, where that is a terminal, that says what is being done."""
    programs = 3 + 2 * bool(config.ranks) + (2 + 2 * config.simplex) * bool(config.components)
    bases = bool(config.ranks) + (config.simplex and bool(config.components))
    total = programs + bases * 3 * bool(config.clusters) + num_candidates(config) + 2
    with tqdm(total=total, desc="LoRe", disable=None) as bar:

        def tell(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.total = max(bar.total, bar.n + 1)
            bar.update()

        yield tell


def fit(
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    train: Votes,
    validation: Votes,
    num_users: int,
    *,
    config: LoReConfig | None = None,
    ratings: tuple[Ratings, Ratings | None] | None = None,
) -> Fit:
    """A basis, the users' weights and their prior; or the shared reward, unless held-out votes speak for more.

    1. the shared Bradley-Terry direction, exactly, its strength, and where there is a choice what rewards are made of
       (`lore_jax.fitting.design`), chosen on the validation votes;
    2. the directions in which users disagree with it, from products of a user's residuals (`spectral_directions`);
    3. from there each candidate (gaussian, mixture or simplex, rank, shrinkage) by L-BFGS on the users' likelihood;
       where responses have free parts also "factors", basis and weights on the way to their joint mode: biased matrix
       factorisation, better than the others on Jester's known jokes (results/jester_warm), and for new users best where
       the way is not gone to its end;
    4. twice the rank of the best gaussian, from its fit, as long as the last doubling lowered the validation log-loss
       by `min_gain_se` standard errors;
    5. on the best gaussian and the best simplex basis, Gaussian clusters of the users' weights
       (`lore_jax.fitting.gaussian_mixture`);
    6. of those whose validation log-loss beats the shared reward's by `min_gain_se` standard errors (clustered by
       user), the best of each kind, and the shared reward: the one of the lowest validation log-loss, half of it for
       users known by all of their training votes and half for users known by `few_shot_context` of them;
    7. the choice, fitted again on training and validation votes together (`refit`).

    Args:
      features: [N D] of the responses.
      train: votes of the seen users.
      validation: other votes of theirs.
      num_users: users are numbered 0 to num_users - 1.
      config: what to try; None: `LoReConfig.quick()`.
      ratings: of single responses, of training and of validation, which count beside the votes.
    Returns: a `Fit` of kind "gaussian", "factors", "mixture", "simplex", "clusters" or "shared", the last without
      validation votes.
    Raises: UserError for bad indices or features.
    Source: the reward of LoRe (arXiv 2504.14439, eq. 1) under an empirical-Bayes prior, which is this project's.

    Example:
      >>> found = fit(features, train, validation, num_users)
      >>> margins = predict(found, features, found.weights, test)
    """
    config = config or LoReConfig.quick()
    table, standardiser, phi, reading, final = prepare(features, train, validation, num_users, config, ratings)
    config = choosable(table, config)
    with _progress(config) as tell:
        design, rows, best, baseline = _shared(phi, len(features), table, config, reading.scales, tell)
        config = dataclasses.replace(config, variances=variances(design, config.variances))
        strength = jnp.asarray(np.float32(width(design) / rows[best]["variance"]))
        start = initialize(design, table, table.train, strength, config, reading.scales)
        tried = _Leaderboard(rows, best, baseline, table)
        _try_all(start, tried, config, tell)
        index = _choose(start, tried, config)
        chosen, outcome = tried.rows[index], tried.fits.get(index)
        tell(f"chosen: {chosen['kind']}")
        if config.refit:
            everything = jnp.asarray(np.asarray(table.train) | np.asarray(table.validation))
            start = initialize(design, final, everything, strength, config, reading.scales)
            outcome = outcome and refit(start, chosen, outcome, config)
    told = tuple(tried.rows)
    if outcome is None:
        ones, precision = jnp.ones((num_users, 1)), priors.PINNED_PRECISION * jnp.eye(1)
        basis, scales = start.shared[:, None], start.scales
        found = Fit("shared", standardiser, basis, ones, ones[0], precision, start.history, chosen, told)
    else:
        found, scales = _trimmed(outcome, num_users, standardiser, chosen, told), outcome.scales
    basis, free = parted(design, found.basis, phi.shape[1], len(features))
    return found._replace(basis=basis, free=free, reading=reading._replace(scales=scales))


def _shared(phi: Array, num_responses: int, table: Table, config: LoReConfig, scales: Scales, tell: Tell):
    """What rewards are made of, and `shared_search` on it, with the other choices among its candidates."""
    choices, everyone = designs(config.features, phi, num_responses), np.ones(table.num_users, bool)
    if len(choices) == 1:
        compile_ahead(choices[0][1], table, config, scales, tell)
    found = []
    for what, design in choices:
        tell(f"shared reward{', {features}'.format(**what) if what else ''}")
        rows, best, loss = shared_search(design, table, everyone, config, scales)
        found.append(([{**row, **what} for row in rows], best, loss))
    lost = [rows[best]["log_loss"] for rows, best, _ in found]
    taken = 0 if None in lost else min(range(len(lost)), key=lambda index: lost[index])
    if len(choices) > 1:
        compile_ahead(choices[taken][1], table, config, scales, tell)
    place = sum(len(rows) for rows, _, _ in found[:taken]) + found[taken][1]
    return choices[taken][1], [row for rows, _, _ in found for row in rows], place, found[taken][2]


def _trimmed(outcome: CandidateFit, num_users: int, standardiser: Standardiser, chosen: Any, told: Any) -> Fit:
    """The fit without padded users and unused columns."""
    has_shared = chosen.get("basis", chosen["kind"]) in ("gaussian", "factors")
    keep, found = chosen["rank"] + has_shared, outcome.clusters
    basis, weights, mean, precision = (np.asarray(x) for x in outcome[:4])
    clusters = found and gaussian_mixture.Clusters(
        found.log_share, found.mean[:, :keep], found.precision[:, :keep, :keep]
    )
    parts: Any = basis[:, :keep], weights[:num_users, :keep], mean[:keep], precision[:keep, :keep]
    known: tuple[Any, ...] = (*map(jnp.asarray, parts), outcome.history, chosen, told, clusters)
    return Fit(chosen["kind"], standardiser, *known)


# --- using a fit ---


def adapt(
    fit: Fit,
    features: Float[np.ndarray, "N D"] | Float[Array, "N D"],
    context: Votes,
    num_users: int,
    *,
    ratings: Ratings | None = None,
) -> Float[Array, "M K"]:
    """Weights of unseen users from their context votes, in the fit's own way; without votes, the prior's mean.

    Args: features [M D] of the responses that `context` indexes (raw, as in fitting; where the fit has free parts, of
      its own responses first); users numbered from 0; ratings of theirs, which count where the fit had some.
    Raises: UserError for a per-group fit (an unseen user's group must be told: use a one-hot) and for bad indices.
    """
    if fit.kind == "group":
        raise UserError("adapt: a per-group fit solves no weights; give the one-hot of the user's group")
    if fit.kind == "shared":
        return jnp.ones((num_users, 1))
    phi, reading = standardise(fit.standardiser, jnp.asarray(features, jnp.float32)), fit.reading
    if reading is None or reading.raters is None or ratings is None:
        ratings = None
    else:
        known = check_ratings(ratings, num_users, len(features), "ratings")
        ratings = known._replace(rating=standardise_ratings(reading.raters, known.user, known.rating))
        phi = jnp.concatenate([phi, jnp.zeros_like(phi[:1])])
    scale, rated = reading and reading.scale, None if ratings is None else (ratings, None)
    table = make_table(context, None, num_users, len(features), scale=scale, ratings=rated)
    scales = reading.scales if reading is not None and table.extras is not None else {}
    prior = Prior(fit.mean, fit.precision)
    design, directions = fitted_design(fit.basis, fit.free, phi)
    known = infer_program(fit.kind, design, table, table.train, directions, prior, fit.clusters, scales)
    return known[0][:num_users]


@jax.jit
@full_matmul_precision
def _logits_program(standardiser, basis, free, features, weights, user, chosen, rejected):
    design, directions = fitted_design(basis, free, standardise(standardiser, features))
    rewards = design @ directions
    return jnp.einsum("pk,pk->p", differences(rewards, chosen, rejected), weights[user])


def predict(
    fit: Fit, features: Float[np.ndarray, "N D"] | Float[Array, "N D"], weights: Float[Array, "U K"], votes: Votes
) -> Float[Array, " P"]:
    """Logits of votes [P] for users with these weights: positive where the prediction is right, 0 for a tie.

    Where the fit has free parts, the features are those of its own responses first.
    """
    triples = check_comparisons(votes, len(weights), len(features), "votes")
    indices = (jnp.asarray(x, jnp.int32) for x in triples[:3])
    return _logits_program(fit.standardiser, fit.basis, fit.free, jnp.asarray(features, jnp.float32), weights, *indices)
