"""Rows of votes as a fitted model keeps them: the difference of basis rewards, then what else reading them takes.

The further columns are `Reading.columns`, and "choice" once someone has ranked: bound, weight and margin as of
`pref_jax.likelihood.Rows`; rating as it was given, NaN where the row is none; choice: the place, among the user's rows,
of the first one of the same choice, or -1. Where all votes are preferences there are none of them.

Axis letters: N responses, R rows, U users, n rows per user (padded), K basis, C columns.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int

from lore_jax.comparisons import Extras, first_rows, flat_rows
from lore_jax.fitting.reading import Reading, Scales, row_arguments
from lore_jax.ratings import PRECISION, standardise_ratings
from pref_jax import ragged
from pref_jax.comparisons import Comparisons, Ratings, check_comparisons, check_ratings
from pref_jax.errors import UserError

CHOICE = "choice"
# Of a row that is a preference and nothing else.
_PLAIN = {"bound": 0.0, "weight": 1.0, "margin": 0.0, "rating": np.nan, CHOICE: -1.0}


def columns_for(reading: Reading, votes: Comparisons) -> tuple[str, ...]:
    """The columns that these votes take."""
    ranked = votes.choice is not None and bool(np.any(np.asarray(votes.choice) >= 0))
    return (*reading.columns, CHOICE) if ranked else reading.columns


def widened(rows: Float32[np.ndarray, "R KC"], have: tuple[str, ...], want: tuple[str, ...]) -> np.ndarray:
    """The rows with further columns, as of plain preferences."""
    more = [_PLAIN[name] for name in want[len(have) :]]
    return np.concatenate([rows, np.tile(np.array(more, np.float32), (len(rows), 1))], 1) if more else rows


def pack(
    reading: Reading,
    z: Float64[np.ndarray, "N K"],
    votes: Comparisons,
    ratings: Ratings | None,
    columns: tuple[str, ...],
) -> tuple[Int[np.ndarray, " R"], Float32[np.ndarray, "R KC"]]:
    """Rows of votes and then of ratings, and whose each is; users are those of the votes.

    Args:
      reading: as the fit reads votes; ties and ratings that it does not know are left out.
      z: basis rewards of responses, 0 for the average one.
      votes: rows of users from 0, and of responses.
      ratings: likewise.
      columns: of the result, behind K.
    """
    rows = flat_rows(votes, reading.scale)
    first = first_rows(rows)
    rated = ratings if ratings is not None and reading.raters is not None else None
    count = 0 if rated is None else len(rated.user)
    gap = z[rows.chosen] - z[rows.rejected]
    user = rows.user if rated is None else np.concatenate([rows.user, np.asarray(rated.user, np.int64)])
    places = np.empty(len(user), np.int64)
    groups = ragged.group_by(user, int(user.max(initial=-1)) + 1)
    places[groups.order] = groups.places
    known: dict[str, Any] = {name: getattr(rows, name) for name in ("bound", "weight", "margin")}
    known |= {"rating": np.full(len(rows.user), np.nan), CHOICE: np.where(rows.choice < 0, -1, places[first])}
    table = np.concatenate([gap, *(known[name][:, None] for name in columns)], 1)
    if rated is not None:
        own = [np.full(count, _PLAIN[name]) if name != "rating" else rated.rating for name in columns]
        table = np.concatenate([table, np.concatenate([z[rated.response], np.stack(own, 1)], 1)])
    return user, table.astype(np.float32)


def appended(old: np.ndarray, new: np.ndarray, columns: tuple[str, ...]) -> Float32[np.ndarray, "R KC"]:
    """A user's rows and then more of theirs."""
    if CHOICE in columns and len(old):
        at, new = columns.index(CHOICE) - len(columns), new.copy()
        new[:, at] = np.where(new[:, at] < 0, -1, new[:, at] + len(old))
    return np.concatenate([old, new])


def standardised(
    reading: Reading, rows: Float32[np.ndarray, "R KC"], counts: Int[np.ndarray, " U"], columns: tuple[str, ...]
) -> Float32[np.ndarray, "R KC"]:
    """Rows of users, one after another, with each user's ratings standardised."""
    if reading.raters is None:
        return rows
    at, rows = columns.index("rating") - len(columns), rows.copy()
    rated = ~np.isnan(rows[:, at])
    owner = np.repeat(np.arange(len(counts)), counts)[rated]
    rows[rated, at] = standardise_ratings(reading.raters, owner, rows[rated, at])
    return rows


def arguments(
    rows: Float[Array, "U n KC"], mask: Bool[Array, "U n"], columns: tuple[str, ...], scales: Scales
) -> dict[str, Any]:
    """Keyword arguments of `solve_weights`, z among them, from standardised rows."""
    size = rows.shape[-1] - len(columns)
    if not columns:
        return {"z": rows, "mask": mask}
    given: dict[str, Any] = {name: rows[..., size + place] for place, name in enumerate(columns)}
    target = given.pop("rating", None)
    for name in {"bound", CHOICE} & given.keys():
        given[name] = given[name].astype(jnp.int32)
    if target is not None:
        given["weight"] = jnp.where(jnp.isnan(target), given.get("weight", 1.0), PRECISION)
    extras = Extras(jnp.zeros(mask.shape, jnp.int32), target=target, **given)
    return {"z": rows[..., :size], **row_arguments(extras, mask, scales)}


def count_votes(reading: Reading, rows: Float32[np.ndarray, "R KC"], columns: tuple[str, ...]) -> int:
    """How many votes and ratings the rows are of; each pair of a choice counts."""
    if "bound" not in columns:
        return len(rows)
    bound = rows[:, columns.index("bound") - len(columns)]
    # A tie's two rows, and nothing else, are bounded by the first threshold from above.
    return int((bound >= 0).sum()) + (int((bound == -1).sum()) // 2 if reading.scale.ties else 0)


def read_features(votes: Any) -> tuple[Float32[np.ndarray, "N D"], Comparisons, Ratings | None]:
    """Features, and one user's votes and ratings of their rows, as `lore_jax.fitted.LoRe.add_votes` takes them."""
    given: dict[str, Any] = dict(
        votes if isinstance(votes, Mapping) else zip(("chosen", "rejected"), votes, strict=False)
    )
    pair = [np.asarray(given.pop(name, np.zeros((0, 0))), np.float32) for name in ("chosen", "rejected")]
    rated, rating = np.asarray(given.pop("rated", pair[0][:0]), np.float32), np.asarray(given.pop("rating", ()))
    count, several = len(pair[0]), not isinstance(votes, Mapping) and len(votes) != 2
    if several or pair[0].ndim != 2 or pair[0].shape != pair[1].shape or not count + len(rated):
        raise UserError("votes: give a pair of arrays [P, D], features of the chosen and of the rejected responses")
    if unknown := given.keys() - {"tie", "strength", "choice"}:
        raise UserError(f"votes: unknown {', '.join(sorted(unknown))}; give chosen, rejected, tie, strength, choice ..")
    found = Comparisons(np.zeros(count, np.int64), np.arange(count), np.arange(count, 2 * count), **given)
    found = check_comparisons(found, 1, 2 * count, "votes")
    ratings = Ratings(np.zeros(len(rating), np.int64), 2 * count + np.arange(len(rating)), rating)
    parts = [part for part in (*pair, rated) if len(part)]
    if rated.ndim != 2 or len({part.shape[1] for part in parts}) > 1 or len(rated) != len(rating):
        raise UserError(f"votes: rated has shape {rated.shape}, rating {rating.shape}; give features [R D] and [R]")
    return np.concatenate(parts), found, check_ratings(ratings, 1, 2 * count + len(rated), "ratings")
