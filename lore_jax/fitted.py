"""A fitted LoRe: every user's reward, more votes, uncertainty, forgetting, folders.

    reward of a text x for user u:  w_u . z(x),   z(x) = Vᵀ phi(x)

phi: the frozen transformer's state, or the features given, standardised over the training responses, so that the mean
of z over them is 0; V [D K]: the basis; w_u: the user's weights. Source: arXiv 2504.14439, equations 1 and 2.

Axis letters: U users, P votes, N responses, D features, K basis, M users who are solved for.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Int64

from lore_jax.fitting import gaussian_mixture, kept_rows
from lore_jax.fitting.bradley_terry import Fit
from lore_jax.fitting.candidates import infer_weights
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.fitting.reading import Reading, Scales, parse, plain
from lore_jax.known_responses import KnownResponses, marks
from lore_jax.online.questions import select_pairs
from lore_jax.user_votes import UserVotes, per_user
from lore_jax.weights.objective import Prior
from lore_jax.weights.precision import full_matmul_precision
from pref_jax import ragged
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.data.text.token_table import TokenTable
from pref_jax.data.votes import vote_rows
from pref_jax.errors import UserError
from pref_jax.likelihood import thresholds
from pref_jax.lm.text_model import TextModel
from pref_jax.personal import Added, Components, PersonalReward, Question, Read, Saved, Scores
from pref_jax.standardiser import Standardiser

Columns = tuple[str, ...]


class OneUser(NamedTuple):
    """What is kept of a user: weights [K], rows of votes, and what columns these have."""

    weights: np.ndarray
    votes: np.ndarray
    columns: Columns


# Responses whose basis rewards are worked out at a time: it bounds the memory.
ROWS_AT_A_TIME = 1 << 12
# Rows of one matrix product.
ROWS_AT_ONCE = 8


@partial(jax.jit, static_argnames=("kind", "columns"))
@full_matmul_precision
def _weights_program(
    kind: str,
    prior: Prior,
    clusters: Clusters | None,
    scales: Scales,
    columns: tuple[str, ...],
    rows: Array,
    mask: Array,
) -> Array:
    return infer_weights(kind, prior=prior, found=clusters, **kept_rows.arguments(rows, mask, columns, scales))[0]


@partial(jax.jit, static_argnames=("columns",))
def _covariance_program(
    clusters: Clusters, scales: Scales, columns: tuple[str, ...], rows: Array, mask: Array
) -> Array:
    given = kept_rows.arguments(rows, mask, columns, scales)
    return gaussian_mixture.posterior(clusters=clusters, **given).covariance


class LoRe(PersonalReward):
    """A fitted LoRe. Of a user it keeps the weights and for each vote z(chosen) - z(rejected) and its kind
    (`lore_jax.fitting.kept_rows`); no text, no features.

    Attributes:
      kind: "lore".
      text: the base; None for models of features.
      facts: what the fit chose and from what: "chosen", "candidates", "validation_votes", "config".

    Example:
      model = lore_jax.fit("votes.jsonl", base="Qwen/Qwen3-0.6B")
      model.score("ada", "How long?", ["Seven minutes.", "It depends."])
    """

    kind: ClassVar[str] = "lore"

    def __init__(
        self,
        *,
        fit: Fit,
        users: Sequence[str],
        z: Float[np.ndarray, "R KC"],
        counts: Int[np.ndarray, " U"],
        text: TextModel | None = None,
        facts: dict[str, Any],
        columns: tuple[str, ...] = (),
        known: KnownResponses | None = None,
    ):
        """A model of parts that fit together; see `fit`.

        Args:
          fit: basis, prior and the users' weights.
          users: U ids in the order of the weights' rows.
          z: rows of votes, users one after another: differences of basis rewards, and the columns.
          counts: rows of each user.
          text: the base.
          facts: JSON values.
          columns: what the rows hold beside differences, as of `lore_jax.fitting.kept_rows`.
          known: responses with a reward beside that of their features.
        """
        assert fit.reading is not None, "only fits per group have none"
        self._reading, self._columns = fit.reading, columns
        self.text, self.facts, self._known = text, facts, known
        self._fit, self._rows = fit, {user: row for row, user in enumerate(users)}
        # One row more: nobody's weights, the prior's mean, which row -1 so finds.
        self._weights = np.concatenate([np.asarray(fit.weights), np.asarray(fit.mean)[None]]).astype(np.float32)
        self._votes = UserVotes(np.asarray(z, np.float32), counts)

    @property
    def users(self) -> list[str]:
        """Ids of the users that the model knows."""
        return list(self._rows)

    def knows(self, user: str) -> bool:
        """Whether the model knows a user."""
        return user in self._rows

    def __repr__(self) -> str:
        facts, chosen = self.facts, self.facts["chosen"]
        where = f"{self._fit.basis.shape[0]} features" if self.text is None else f"base {self.text.name}"
        where = where if self._known is None else f"{where} and {len(self._known.free)} free parts of responses"
        head = f"LoRe: {self._fit.kind}, rank {self._fit.basis.shape[1]}, {len(self._rows)} users, {where}"
        held = facts["validation_votes"]
        # Of a tie alone, where none was fitted, there is no log-loss.
        if not held or chosen.get("log_loss") is None:
            return f"{head}; no vote could be held out, so the shared reward is taken"
        tried = [row for row in facts["candidates"] if row.get("gain") is not None]
        best = chosen if chosen.get("gain") is not None else max(tried, key=lambda row: row["gain"], default=None)
        if best is None:
            return f"{head}; validation log-loss {chosen['log_loss']:.4f} on {held} votes, nothing else was tried"
        error = "unknown" if best["gain_error"] is None else f"{best['gain_error'] / held:.4f}"
        gain = f"{best['gain'] / held:+.4f} a vote (standard error {error}) on {held} votes"
        what = "" if best is chosen else f"kept, as the best personal one ({best['kind']}) did not beat it clearly; "
        return f"{head}; {what}gain over the shared reward in validation log-loss {gain}"

    # --- scoring ---

    def rewards(self, users: Sequence[str | None], rows: Any, *, uncertainty: bool) -> Scores:
        """Rewards w_u . z(x), and their posterior standard deviations sqrt(z(x)ᵀ Cov(w_u) z(x)).

        z(x) is the basis reward less its mean over the training responses, so a deviation is that of the difference
        to a middling text. Users' None: the prior's mean and covariance. Of kinds of fit, "shared" has deviation 0,
        "mixture" that of the categorical posterior over the basis rewards, "simplex" none.

        Raises:
          UserError: for features of another width or not finite; for the uncertainty of a simplex.
        """
        return self.rewards_of(users, self.read(rows), uncertainty=uncertainty)

    def rewards_of(self, users: Sequence[str | None], read: Float[np.ndarray, "N K"], *, uncertainty: bool) -> Scores:
        """`rewards` from basis rewards."""
        z = read
        place = self._places(users)
        mean = (z * self._weights[place]).sum(1).astype(np.float32)
        if not uncertainty:
            return Scores(mean, np.zeros_like(mean))
        distinct, which = np.unique(place, return_inverse=True)
        covariance = self._covariances(distinct)[which]
        variance = np.einsum("nk,nkl,nl->n", z, covariance.astype(np.float64), z)
        return Scores(mean, np.sqrt(np.maximum(variance, 0)).astype(np.float32))

    def read(self, rows: Any) -> Float64[np.ndarray, "N K"]:
        """Basis rewards z of texts (a table of responses, or tokens) or of features."""
        if self.text is None:
            return self._basis_rewards(np.asarray(rows, np.float32))
        tokens = self.text.tokenize(rows)
        return self._basis_rewards(self.text.states(tokens), tokens)

    def _basis_rewards(
        self, features: Float32[np.ndarray, "N D"], tokens: TokenTable | None = None
    ) -> Float64[np.ndarray, "N K"]:
        """z of features, with the free parts of responses that the fit knew."""
        z = basis_rewards(self._fit, features)
        return z if self._known is None else self._known.add_to(z, marks(features if tokens is None else tokens))

    def _covariances(self, rows: Int[np.ndarray, " M"]) -> Float[np.ndarray, "M K K"]:
        """Posterior covariances of users' weights; -1: the prior's."""
        fit, size = self._fit, self._fit.basis.shape[1]
        if fit.kind == "simplex":
            raise UserError("uncertainty: a fit of kind simplex has no posterior; score without, or fit another kind")
        if fit.kind == "shared":
            return np.zeros((len(rows), size, size), np.float32)
        if fit.kind == "mixture":
            share = self._weights[rows]
            return share[:, :, None] * (np.eye(size, dtype=np.float32) - share[:, None])
        # A single Gaussian is a population of one cluster.
        clusters = fit.clusters or Clusters(jnp.zeros(1), fit.mean[None], fit.precision[None])
        own = [self._votes.of(int(row)) for row in rows]
        program = partial(_covariance_program, clusters, self._reading.scales, self._columns)
        return self._per_user(program, own, (size, size))

    # --- learning and forgetting ---

    def add_votes(self, user: str, votes: Any, *, read: Read | None = None) -> Added:
        """Solves the weights of a user, new or known, from all of the user's votes; nothing is trained.

        Exactly what solving from all of them at once gives.

        Args:
          user: whose votes.
          votes: see `pref_jax.read_votes`; for models of features a pair of arrays [P D], chosen and rejected, or a
            dict of `chosen` and `rejected`, and where known `tie` (bool), `strength` and `choice` [P], all as of
            `pref_jax.comparisons.Comparisons`, and of `rated` [R D] and `rating` [R].
          read: gives the basis rewards of responses in place of `read`.

        Raises:
          UserError: for votes that cannot be read, or are of someone else.
        """
        if not isinstance(user, str) or not user.strip():
            raise UserError(f"user: is {user!r}; give an id, a string that is not empty")
        if self.text is not None:
            return self.add_many(votes, user, read=read)[0]
        features, given, ratings = kept_rows.read_features(votes)
        return self._add([user], self.read(features), given, ratings)[0]

    def add_many(self, votes: Any, user: str | None = None, *, read: Read | None = None) -> list[Added]:
        """`add_votes` of many users at a time, each row naming its own; in one program for each bucket of votes."""
        if self.text is None:
            raise UserError("add_many: reads texts; add votes as features user by user, with add_votes")
        found = vote_rows(votes, user, ties=self._reading.scale.ties)
        names = list(dict.fromkeys(found.users))
        done = self._add(names, (read or self.read)(found.responses), found.comparisons, None)
        return [added._replace(how="; ".join(filter(None, [added.how, found.unused]))) for added in done]

    def _add(
        self,
        names: list[str],
        z: Float64[np.ndarray, "N K"],
        votes: Comparisons,
        ratings: Ratings | None,
        *,
        strict: bool = True,
    ) -> list[Added]:
        """Adds the named users' votes on responses of basis rewards z; `strict` refuses users of whom none is read."""
        columns = kept_rows.columns_for(self._reading, votes)
        if len(columns) > len(self._columns):
            rows, counts = self._votes.flat()
            self._votes = UserVotes(kept_rows.widened(rows, self._columns, columns), counts)
            self._columns = columns
        owner, rows = kept_rows.pack(self._reading, z, votes, ratings, self._columns)
        unread = np.setdiff1d(np.arange(len(names)), owner)
        if strict and len(unread):
            raise UserError(
                f"votes of {', '.join(repr(names[place]) for place in unread)}: all are ties or ratings, of which this "
                "model's fit had none; give preferences too, or fit again with such votes"
            )
        return self._learn([names[place] for place in owner], rows)

    def _learn(self, users: Sequence[str], rows: Float32[np.ndarray, "R KC"]) -> list[Added]:
        """Adds rows of votes and solves again for all who gave them."""
        numbers: dict[str, int] = {}
        owner = np.array([numbers.setdefault(user, len(numbers)) for user in users], np.int64)
        groups = ragged.group_by(owner, len(numbers))
        fresh = [user for user in numbers if user not in self._rows]
        old = np.array([self._rows.get(user, -1) for user in numbers], np.int64)
        parts = np.split(rows[groups.order], groups.starts[1:])
        own = [
            kept_rows.appended(self._votes.of(int(row)), part, self._columns)
            for row, part in zip(old, parts, strict=True)
        ]
        # All is solved before anything changes.
        weights = self._solve(own)
        self._weights = np.insert(self._weights, [len(self._rows)] * len(fresh), np.float32(0), axis=0)
        self._rows |= {user: len(self._rows) + place for place, user in enumerate(fresh)}
        places = [self._rows[user] for user in numbers]
        self._weights[places] = weights
        self._votes.replace(dict(zip(places, own, strict=True)))
        how = "the reward is shared, so votes change nothing" if self._fit.kind == "shared" else "weights solved"
        return [Added(user, self._count(votes), how) for user, votes in zip(numbers, own, strict=True)]

    def _count(self, rows: Float32[np.ndarray, "R KC"]) -> int:
        return kept_rows.count_votes(self._reading, rows, self._columns)

    def _solve(self, own: Sequence[Float32[np.ndarray, "_ KC"]]) -> Float32[np.ndarray, "M K"]:
        """Weights of users from all of their rows."""
        fit = self._fit
        if fit.kind == "shared":
            return np.ones((len(own), 1), np.float32)
        prior, reading = Prior(fit.mean, fit.precision), self._reading
        program = partial(_weights_program, fit.kind, prior, fit.clusters, reading.scales, self._columns)
        return self._per_user(program, own, (fit.basis.shape[1],))

    def _per_user(self, program: Any, own: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        counts = _lengths(own)
        rows = kept_rows.standardised(self._reading, np.concatenate(own), counts, self._columns)
        return per_user(program, rows, counts, shape)

    def probabilities(self, margins: Any) -> Float[np.ndarray, "P 3"]:
        """Of differences of two responses' scores for one user: P that they prefer the first, neither, the second.

        Where the votes of the fit had no ties, neither has probability 0.

        Example:
          first, second = model.score("ada", "How long?", ["Seven minutes.", "It depends."])
          model.probabilities([first - second])
        """
        return self._reading.probabilities(np.asarray(margins, np.float32))

    def remove_user(self, user: str) -> None:
        """Removes a user's id, weights and votes (as differences of basis rewards), from memory and the next `save`.

        What stays: basis and prior were fitted to everyone's votes, those of this user among them if they were there;
        to be rid of that too, fit again without them. Folders saved before keep the user until they are saved again,
        and features in a `workdir` until it is deleted.

        Raises:
          UserError: if the user is not known.
        """
        self._check_users([user])
        row = self._rows.pop(user)
        self._votes.remove(row)
        self._weights = np.delete(self._weights, row, axis=0)
        self._rows = {name: place for place, name in enumerate(self._rows)}

    # --- one user ---

    def snapshot_user(self, user: str) -> OneUser | None:
        """The user's weights and rows of votes."""
        row = self._rows.get(user)
        return None if row is None else OneUser(self._weights[row].copy(), self._votes.of(row), self._columns)

    def restore_user(self, user: str, snapshot: OneUser | None) -> None:
        """Sets both back; a user whom the snapshot has and the model has not is its last one then."""
        if snapshot is None:
            if user in self._rows:
                self.remove_user(user)
            return
        if user not in self._rows:
            self._rows[user] = len(self._rows)
            self._weights = np.insert(self._weights, -1, np.float32(0), axis=0)
        row = self._rows[user]
        self._weights[row] = snapshot.weights
        self._votes.replace({row: kept_rows.widened(snapshot.votes, snapshot.columns, self._columns)})

    def describe_user(self, user: str) -> dict[str, Any]:
        """Weights of the basis rewards with their deviations (null where the fit has no posterior), and nobody's."""
        self._check_users([user])
        row, fit = self._rows[user], self._fit
        deviations = None
        if fit.kind != "simplex":
            deviations = np.sqrt(np.maximum(np.diagonal(self._covariances(np.array([row]))[0]), 0)).tolist()
        return {
            "fit": fit.kind,
            "weights": self._weights[row].tolist(),
            "deviations": deviations,
            "shared_weights": self._weights[-1].tolist(),
        }

    def select_pairs(
        self,
        user: str | None,
        first: Float64[np.ndarray, "P K"],
        second: Float64[np.ndarray, "P K"],
        count: int,
    ) -> list[Question] | None:
        """Pairs by the mutual information between answer and weights; None for kinds of fit without a posterior."""
        self._check_users([user])
        if self._fit.kind in ("shared", "simplex"):
            return None
        row = -1 if user is None else self._rows[user]
        scale, threshold = self._reading.scale, None
        if scale.ties:
            threshold = float(thresholds(jnp.asarray(self._reading.scales["gaps"]))[0])
        covariance = self._covariances(np.array([row]))[0]
        found = select_pairs(self._weights[row], covariance, first - second, count, threshold)
        return [Question(*one) for one in found]

    def margin_deviations(
        self, user: str | None, first: Float64[np.ndarray, "P K"], second: Float64[np.ndarray, "P K"]
    ) -> Float64[np.ndarray, " P"] | None:
        """Those of `z @ weights` for each difference z of basis rewards; None for kinds of fit without a posterior."""
        if self._fit.kind in ("shared", "simplex"):
            return None
        gap = np.asarray(first, np.float64) - second
        covariance = self._covariances(np.array([-1 if user is None else self._rows[user]]))[0]
        return np.sqrt(np.maximum(np.einsum("pk,kl,pl->p", gap, covariance, gap), 0))

    # --- folders ---

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int]]:
        """Facts, arrays and numbers of votes; see `restore`."""
        fit, (z, counts) = self._fit, self._votes.flat()
        reading = {} if self._reading == Reading() and not self._columns else {"reading": plain(self._reading)}
        if self._columns:
            reading |= {"columns": list(self._columns)}
        leaves = {"basis": fit.basis, "mean": fit.mean, "precision": fit.precision}
        leaves |= {f"standardiser_{name}": leaf for name, leaf in fit.standardiser._asdict().items()}
        leaves |= {f"clusters_{name}": leaf for name, leaf in (fit.clusters._asdict() if fit.clusters else {}).items()}
        numbers = {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}
        tensors: dict[str, np.ndarray] = {**numbers, "weights": self._weights[:-1], "z": z}
        if self._known is not None:
            tensors |= {"free": self._known.free, "marks": self._known.marks}
        sizes = {"fit": fit.kind, "features": fit.basis.shape[0], "rank": fit.basis.shape[1]}
        votes = counts.tolist()
        if self._columns:
            tensors["rows"] = np.asarray(counts, np.int64)
            votes = [self._count(own) for own in np.split(z, np.cumsum(counts)[:-1])] if len(counts) else []
        return {**sizes, **reading, **self.facts}, tensors, votes

    @classmethod
    def restore(cls, saved: Saved) -> "LoRe":
        """The model of a saved folder."""
        apart = ("fit", "features", "rank", "reading", "columns")
        facts = {name: value for name, value in saved.model.items() if name not in apart}
        own = {
            name: jnp.asarray(leaf)
            for name, leaf in saved.tensors.items()
            if name not in ("z", "weights", "rows", "marks")
        }
        clusters = Clusters(*(own[f"clusters_{n}"] for n in Clusters._fields)) if "clusters_mean" in own else None
        fit = Fit(
            kind=saved.model["fit"],
            standardiser=Standardiser(*(own[f"standardiser_{name}"] for name in Standardiser._fields)),
            basis=own["basis"],
            weights=jnp.asarray(saved.tensors["weights"]),
            mean=own["mean"],
            precision=own["precision"],
            history=jnp.zeros(0),
            chosen=facts["chosen"],
            candidates=tuple(facts["candidates"]),
            clusters=clusters,
            reading=parse(saved.model["reading"]) if "reading" in saved.model else Reading(),
            free=own.get("free"),
        )
        z, counts = saved.tensors["z"], saved.tensors.get("rows", saved.votes)
        columns = tuple(saved.model.get("columns", ()))
        known = KnownResponses(saved.tensors["marks"], saved.tensors["free"]) if fit.free is not None else None
        more: dict[str, Any] = {"text": saved.text, "facts": facts, "columns": columns, "known": known}
        return cls(fit=fit, users=saved.users, z=z, counts=counts, **more)

    def export(self, folder: str | Path, *, user: str | None = None) -> None:
        """Writes the transformer with the basis as its K labels, or one user's reward as its one label.

        Other engines open the folder without us; see `pref_jax.lm.classifier.save_classifier` for which and how.

        Args:
          folder: replaced if it is there.
          user: whose reward; None: the K basis rewards, of which a user's weights make a reward.

        Raises:
          UserError: for models of features, or with free parts of responses; for an unknown user.
        """
        if self.text is None:
            raise UserError("export: this model was fitted to features and knows no transformer; fit with base=")
        if self._known is not None:
            raise UserError("export: a classifier has no place for free parts of responses; fit with features='text'")
        from pref_jax.lm.classifier import fold_standardiser, save_classifier

        self._check_users([user])
        basis, labels = np.asarray(self._fit.basis), [f"basis_{k}" for k in range(self._fit.basis.shape[1])]
        if user is not None:
            basis, labels = basis @ self._weights[self._rows[user]][:, None], [user]
        weight, offset = fold_standardiser(basis, *self._fit.standardiser)
        text = self.text
        save_classifier(
            folder,
            text.config,
            text.params,
            weight,
            labels=labels,
            tokenizer=text.tokenizer,
            bias=offset,
            layer=text.layer,
            max_length=text.max_length,
        )

    def _places(self, users: Sequence[str | None]) -> Int64[np.ndarray, " N"]:
        """Rows of the users' weights; nobody's is the last one."""
        return np.array([-1 if user is None else self._rows[user] for user in users], np.int64)

    def components(self, users: Sequence[str | None], rows: Any) -> Components:
        """Each user's weights w_u and the basis rewards z(x), of which `rewards` are the products; see there."""
        place = self._places(users)
        return Components(self._weights[place], self.read(rows))


def basis_rewards(fit: Fit, features: Float32[np.ndarray, "N D"]) -> Float64[np.ndarray, "N K"]:
    """z of features, in double precision; a row is the same to the bit whichever others there are."""
    basis, mean, scale = (np.asarray(leaf, np.float64) for leaf in (fit.basis, *fit.standardiser))
    if features.ndim != 2 or features.shape[1] != len(basis) or not np.isfinite(features).all():
        raise UserError(f"features: shape {features.shape}; give finite numbers, [N, {len(basis)}]")
    basis, found = basis / scale[:, None], np.empty((len(features), basis.shape[1]))
    # Products of one shape: how a matrix product sums depends on the number of its rows.
    padded = np.pad(features, ((0, -len(features) % ROWS_AT_ONCE), (0, 0)))
    for start in range(0, len(features), ROWS_AT_A_TIME):
        here = slice(start, start + ROWS_AT_A_TIME)
        blocks = (padded[here].astype(np.float64) - mean).reshape(-1, ROWS_AT_ONCE, len(mean)) @ basis
        found[here] = blocks.reshape(-1, basis.shape[1])[: len(found[here])]
    return found


def _lengths(parts: Sequence[np.ndarray]) -> Int[np.ndarray, " M"]:
    return np.array([len(part) for part in parts], np.int64)
