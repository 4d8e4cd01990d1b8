"""Votes of many users as arrays.

A vote of any kind is a row or two (`pref_jax.likelihood`); a rating is one row, which compares its response with the
average one.

Axis letters: U users, n rows per user (padded), P votes (flat), R rows (flat), N responses.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from lore_jax.ratings import PRECISION
from pref_jax import likelihood
from pref_jax.comparisons import Ratings, Votes, check_comparisons, decided
from pref_jax.likelihood import Scale
from pref_jax.ragged import group_by


class Extras(NamedTuple):
    """What rows of votes are beyond preferences, each [U n]; None where the data has none of it.

    Attributes:
      vote: int32 place, among the user's rows, of the first row of the same vote or choice.
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
    """A row per user: rows in responses `chosen`, `rejected` [U n]; masks `train`, `validation` [U n], or padding.

    `extras` is None where all votes are preferences alone.
    """

    chosen: Int[Array, "U n"]
    rejected: Int[Array, "U n"]
    train: Bool[Array, "U n"]
    validation: Bool[Array, "U n"]
    extras: Extras | None = None

    def votes(self, mask: Bool[np.ndarray, "U n"]) -> Bool[np.ndarray, "U n"]:
        """The first rows of the votes in a mask."""
        if self.extras is None:
            return mask
        return mask & (np.asarray(self.extras.vote) == np.arange(mask.shape[1])[None])

    def decided(self, mask: Bool[np.ndarray, "U n"]) -> Bool[np.ndarray, "U n"]:
        """Of the rows in a mask those that say which response was preferred, one of each such pair."""
        if self.extras is None:
            return mask
        mask = mask if self.extras.bound is None else mask & (np.asarray(self.extras.bound) >= 0)
        return mask if self.extras.target is None else mask & np.isnan(np.asarray(self.extras.target))


def bucket(size: int) -> int:
    """Next of 4, 6, 8, 12, 16, 24 ...: few shapes to compile, at most half of padding."""
    power = 4
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


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
) -> Table:
    """Votes in one padded row per user, validation after training; users and row length padded to buckets.

    Args:
      train: votes, as are those of `validation`.
      validation: None for none.
      num_users: U.
      num_responses: N. The average response, with which ratings are compared, is row N.
      scale: how votes are read; None: as preferences alone, ties left out.
      ratings: standardised ones, of training and validation.

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
    shape = (bucket(num_users), bucket(int(groups.counts.max(initial=0))))
    place = rows.user[groups.order], groups.places

    def padded(values: np.ndarray, dtype: Any, padding: Any = 0) -> Array:
        array = np.full(shape, padding, dtype)
        array[place] = values[groups.order]
        return jnp.asarray(array)

    columns = [(rows.chosen, np.int32), (rows.rejected, np.int32), (held == 0, bool), (held == 1, bool)]
    chosen, rejected, first, second = (padded(values, dtype) for values, dtype in columns)
    wanted = _wanted(rows, target, scale)
    if not wanted:
        return Table(chosen, rejected, first, second)
    where = np.empty(len(rows.user), np.int64)
    where[groups.order] = groups.places
    starts = np.cumsum([0, *(len(part.user) for part in parts)])
    vote = where[np.concatenate([first_rows(part) + start for part, start in zip(parts, starts, strict=False)])]
    wanted["choice"] = wanted["choice"] and (np.where(rows.choice < 0, -1, vote), np.int32, -1)
    found = {name: column and padded(*column) for name, column in wanted.items()}
    ties = jnp.asarray(scale is not None and scale.ties)
    return Table(chosen, rejected, first, second, Extras(padded(vote, np.int32), **found, ties=ties))


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
