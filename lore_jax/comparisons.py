"""Votes of many users as arrays.

A vote of any kind is a row or two (`pref_jax.likelihood`); a rating is one row, which compares its response with the
average one.

Axis letters: U users, L lanes (`lore_jax.lanes`), n rows per lane (padded), P votes (flat), R rows (flat), N responses.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from lore_jax.lanes import lay_out
from lore_jax.ratings import PRECISION
from pref_jax import likelihood
from pref_jax.comparisons import Ratings, Votes, check_comparisons, decided
from pref_jax.likelihood import Scale
from pref_jax.ragged import group_by, ranges


class Extras(NamedTuple):
    """What rows of votes are beyond preferences, each [L n]; None where the data has none of it.

    Attributes:
      vote: int32 place, in the flattened table, of the first row of the same vote or choice.
      bound, interval: int8, as of `pref_jax.likelihood.Rows`.
      weight, margin: float32, likewise.
      choice: int32, `vote` where the row is of a choice, -1 elsewhere.
      target: float32, the standardised rating; NaN where the row is none.
      ties: bool [], whether the first interval is that of ties.
    """

    vote: Array
    bound: Array | None = None
    interval: Array | None = None
    weight: Array | None = None
    margin: Array | None = None
    choice: Array | None = None
    target: Array | None = None
    ties: Array | None = None


class Table(NamedTuple):
    """Users' lanes: rows in responses `chosen`, `rejected` [L n]; masks `train`, `validation` [L n], or padding; the
    users `owner` of further lanes.

    `extras` is None where all votes are preferences alone.
    """

    chosen: Int[Array, "L n"]
    rejected: Int[Array, "L n"]
    train: Bool[Array, "L n"]
    validation: Bool[Array, "L n"]
    owner: Int[Array, " E"]
    extras: Extras | None = None

    @property
    def num_users(self) -> int:
        """U, padded."""
        return len(self.train) - len(self.owner)

    def per_user(self, values: Shaped[np.ndarray, "L n"]) -> Shaped[np.ndarray, " U"]:
        """Sums over each user's rows, on the host."""
        sums = np.asarray(values).sum(1)
        found = sums[: self.num_users].copy()
        np.add.at(found, np.asarray(self.owner), sums[self.num_users :])
        return found

    def of_users(self, members: Shaped[np.ndarray, " U"]) -> Shaped[np.ndarray, "L 1"]:
        """Each user's value at each of the user's lanes, on the host."""
        return np.concatenate([members, members[np.asarray(self.owner)]])[:, None]

    def votes(self, mask: Bool[np.ndarray, "L n"]) -> Bool[np.ndarray, "L n"]:
        """The first rows of the votes in a mask."""
        if self.extras is None:
            return mask
        return mask & (np.asarray(self.extras.vote) == np.arange(mask.size).reshape(mask.shape))

    def some(self, mask: Bool[np.ndarray, "L n"], count: int, rng: np.random.Generator) -> Bool[np.ndarray, "L n"]:
        """At most `count` votes of each user out of those in a mask, drawn by chance, with all of their rows."""
        chances, firsts = rng.random(mask.shape), np.flatnonzero(self.votes(mask))
        user = np.repeat(self.of_users(np.arange(self.num_users)), mask.shape[1], 1).ravel()[firsts]
        firsts = firsts[np.lexsort((chances.ravel()[firsts], user))]
        drawn = np.zeros(mask.size, bool)
        drawn[firsts[ranges(np.bincount(user, minlength=1)) < count]] = True
        if self.extras is None:
            return drawn.reshape(mask.shape)
        return mask & drawn[np.asarray(self.extras.vote)]

    def decided(self, mask: Bool[np.ndarray, "L n"]) -> Bool[np.ndarray, "L n"]:
        """Of the rows in a mask those that say which response was preferred, one of each such pair."""
        if self.extras is None:
            return mask
        mask = mask if self.extras.bound is None else mask & (np.asarray(self.extras.bound) >= 0)
        return mask if self.extras.target is None else mask & np.isnan(np.asarray(self.extras.target))


def flat_rows(votes: Votes, scale: Scale | None) -> likelihood.Rows:
    """Rows of votes on a scale; without one, of the decided ones as preferences alone."""
    if scale is None:
        return likelihood.logistic_rows(decided(votes), Scale(use="ignore"))
    known = check_comparisons(votes, 1 << 62, 1 << 62, "votes")
    # A scale without ties cannot read them.
    known = known if known.tie is None or scale.ties else known.take(~np.asarray(known.tie, bool))
    return likelihood.logistic_rows(known, scale)


def first_rows(rows: likelihood.Rows) -> Int[np.ndarray, " R"]:
    """The row at which each row's vote begins, or its choice (one user's part of it)."""
    first, of_choices = np.searchsorted(rows.vote, rows.vote), np.flatnonzero(rows.choice >= 0)
    key = rows.choice[of_choices].astype(np.int64) * (int(rows.user.max(initial=0)) + 1) + rows.user[of_choices]
    _, place, which = np.unique(key, return_index=True, return_inverse=True)
    first[of_choices] = of_choices[place[which]]
    return first


def _with_ratings(rows: likelihood.Rows, ratings: Ratings | None, num_responses: int) -> tuple[likelihood.Rows, Any]:
    """The rows and after them those of ratings (standardised); targets of all, NaN where a row is no rating."""
    if ratings is None:
        return rows, np.full(len(rows.user), np.nan, np.float32)
    count = len(ratings.user)
    more = {
        "user": np.asarray(ratings.user, np.int64),
        "chosen": np.asarray(ratings.response, np.int64),
        "rejected": np.full(count, num_responses),
        "vote": int(rows.vote.max(initial=-1)) + 1 + np.arange(count),
        "weight": np.full(count, PRECISION, np.float32),
        "choice": np.full(count, -1, np.int32),
    }
    zeros = np.zeros(count, np.int8)
    both: list[Any] = [np.concatenate([getattr(rows, name), more.get(name, zeros)]) for name in rows._fields]
    target = np.concatenate([np.full(len(rows.user), np.nan), ratings.rating]).astype(np.float32)
    return likelihood.Rows(*both), target


def make_table(
    train: Votes,
    validation: Votes | None,
    num_users: int,
    num_responses: int,
    *,
    scale: Scale | None = None,
    ratings: tuple[Ratings, Ratings | None] | None = None,
    split: bool = True,
) -> Table:
    """Votes by user, validation after training; users, lanes and their length padded to buckets.

    Args:
      train: votes, as are those of `validation`.
      validation: None for none.
      num_users: U.
      num_responses: N. The average response, with which ratings are compared, is row N.
      scale: how votes are read; None: as preferences alone, ties left out.
      ratings: standardised ones, of training and validation.
      split: whether users of many votes have several lanes; otherwise a table is as wide as the busiest user's votes.

    Raises: UserError for indices out of range or arrays of different lengths.
    """
    parts, targets = list[likelihood.Rows](), list[np.ndarray]()
    for place, (votes, what) in enumerate(((train, "training votes"), (validation, "validation votes"))):
        if votes is not None:
            rows = flat_rows(check_comparisons(votes, num_users, num_responses, what), scale)
            rows, target = _with_ratings(rows, None if ratings is None else ratings[place], num_responses)
            parts.append(rows)
            targets.append(target)
    held = np.repeat(np.arange(len(parts)), [len(part.user) for part in parts])
    joined: Any = map(np.concatenate, zip(*parts, strict=True))
    rows = likelihood.Rows(*joined)
    target = np.concatenate(targets)
    groups = group_by(rows.user, num_users)
    lanes = lay_out(groups.counts, split=split)
    place = lanes.lane, lanes.place

    def padded(values: np.ndarray, dtype: Any, padding: Any = 0) -> Array:
        array = np.full(lanes.shape, padding, dtype)
        array[place] = values[groups.order]
        return jnp.asarray(array)

    columns = [(rows.chosen, np.int32), (rows.rejected, np.int32), (held == 0, bool), (held == 1, bool)]
    chosen, rejected, first, second = (padded(values, dtype) for values, dtype in columns)
    wanted, owner = _wanted(rows, target, scale), jnp.asarray(lanes.owner)
    if not wanted:
        return Table(chosen, rejected, first, second, owner)
    where = np.empty(len(rows.user), np.int64)
    where[groups.order] = lanes.lane * lanes.shape[1] + lanes.place
    starts = np.cumsum([0, *(len(part.user) for part in parts)])
    vote = where[np.concatenate([first_rows(part) + start for part, start in zip(parts, starts, strict=False)])]
    wanted["choice"] = wanted["choice"] and (np.where(rows.choice < 0, -1, vote), np.int32, -1)
    found = {name: column and padded(*column) for name, column in wanted.items()}
    ties = jnp.asarray(scale is not None and scale.ties)
    # Padding is a vote of its own.
    votes = np.arange(np.prod(lanes.shape), dtype=np.int32).reshape(lanes.shape)
    votes[place] = vote[groups.order]
    return Table(chosen, rejected, first, second, owner, Extras(jnp.asarray(votes), **found, ties=ties))


def _wanted(rows: likelihood.Rows, target: np.ndarray, scale: Scale | None) -> dict[str, Any]:
    """The columns of `Extras` that the data needs, with their types and padding; {} if it needs none."""
    bounds = scale is not None and scale.num_thresholds > 0
    found = {
        "bound": (rows.bound, np.int8) if bounds else None,
        "interval": (rows.interval, np.int8) if bounds else None,
        "weight": (rows.weight, np.float32, 1) if (rows.weight != 1).any() else None,
        "margin": (rows.margin, np.float32) if rows.margin.any() else None,
        "choice": (rows.choice, np.int32, -1) if (rows.choice >= 0).any() else None,
        "target": (target, np.float32, np.nan) if not np.isnan(target).all() else None,
    }
    return found if any(found.values()) else {}
