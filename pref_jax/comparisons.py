"""Who preferred which response to which, as arrays of row numbers; the one type that all methods take.

Axis letters: P comparisons.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from pref_jax.errors import UserError


@runtime_checkable
class Votes(Protocol):
    """Anything with int arrays `user`, `chosen`, `rejected` [P]: rows of users and of responses."""

    @property
    def user(self) -> Any:
        """Rows of users."""
        ...

    @property
    def chosen(self) -> Any:
        """Rows of the preferred responses."""
        ...

    @property
    def rejected(self) -> Any:
        """Rows of the other responses."""
        ...


class Comparisons(NamedTuple):
    """Some comparisons as arrays.

    Attributes:
      user: int [P] row in users.
      chosen: int [P] row in responses.
      rejected: int [P] row in responses.
      controversial: int8 [P], 1 where users disagree on the pair, 0 where they agree, -1 unknown; None: not known.
      row: int64 [P] row in the table of comparisons; None where they come from no table.
      tie: bool [P], neither was preferred (both good, or both bad); None: all were decided.
      strength: float32 [P] how much more `chosen` was preferred, above 0; NaN where it was not said. None: nowhere.
      choice: int32 [P], rows of one number are one choice out of several responses, -1 for a pair alone; None: pairs.

    Example:
      >>> votes = Comparisons(np.array([0, 1]), np.array([2, 3]), np.array([3, 2]))
      >>> votes.take(votes.user == 1).chosen
      array([3])
    """

    user: Int[np.ndarray, "P"]
    chosen: Int[np.ndarray, "P"]
    rejected: Int[np.ndarray, "P"]
    controversial: Any = None
    row: Any = None
    tie: Any = None
    strength: Any = None
    choice: Any = None

    def take(self, rows: Any) -> "Comparisons":
        """The comparisons at `rows`: a mask, a slice or row numbers."""
        columns: Any = (None if column is None else column[rows] for column in self)
        return Comparisons(*columns)

    def reversed(self) -> "Comparisons":
        """Each vote for the other side; a choice out of several becomes votes against what was chosen.

        Example:
          >>> Comparisons(np.array([0]), np.array([2]), np.array([3])).reversed().chosen
          array([3])
        """
        return self._replace(chosen=self.rejected, rejected=self.chosen, choice=None)


class Ratings(NamedTuple):
    """Ratings of single responses.

    Attributes:
      user: int [R] row in users.
      response: int [R] row in responses.
      rating: float32 [R], in whatever unit each user rates.
    """

    user: Int[np.ndarray, "R"]
    response: Int[np.ndarray, "R"]
    rating: Float32[np.ndarray, "R"]

    def take(self, rows: Any) -> "Ratings":
        """The ratings at `rows`: a mask, a slice or row numbers."""
        return Ratings(*(column[rows] for column in self))


# What a vote is where its table lacks the column.
_UNSAID = {"tie": False, "strength": np.float32(np.nan), "choice": np.int32(-1)}


def concatenate(parts: Iterable[Comparisons]) -> Comparisons:
    """One table after the other.

    Where some part lacks ties, strengths or choices it has none; other columns that some part lacks are left out.
    Choices of different parts stay different.
    """
    parts = list(parts)
    columns: dict[str, Any] = {}
    for name in Comparisons._fields:
        own: list[Any] = [getattr(part, name) for part in parts]
        if name in _UNSAID and any(column is not None for column in own):
            own = [
                np.full(len(part.user), _UNSAID[name]) if column is None else np.asarray(column)
                for part, column in zip(parts, own, strict=True)
            ]
        if name == "choice" and all(column is not None for column in own):
            first = np.cumsum([0, *(int(column.max(initial=-1)) + 1 for column in own)])
            own = [np.where(column < 0, -1, column + start) for column, start in zip(own, first, strict=False)]
        columns[name] = None if any(column is None for column in own) else np.concatenate(own)
    return Comparisons(**columns)


def decided(votes: Votes, *, keep: bool = False) -> Comparisons:
    """The votes of which one response was preferred, ties left out; as pairs alone, or with strengths and choices."""
    tie: Any = getattr(votes, "tie", None)
    rows = slice(None) if tie is None else ~np.asarray(tie, bool)
    names = ("user", "chosen", "rejected", *(("strength", "choice") if keep else ()))
    found: list[tuple[str, Any]] = [(name, getattr(votes, name, None)) for name in names]
    columns: dict[str, Any] = {name: None if column is None else np.asarray(column)[rows] for name, column in found}
    return Comparisons(**columns)


def check_comparisons(votes: Votes, num_users: int, num_responses: int, what: str) -> Comparisons:
    """The votes with their three columns of rows as int64 arrays, and ties, strengths and choices where they have them.

    Args:
      votes: any integer type.
      num_users: rows of users are below it.
      num_responses: rows of responses are below it.
      what: names the votes in errors.

    Raises:
      UserError: for unequal lengths, indices out of range, or strengths that are not above 0.
    """
    columns = {name: np.asarray(getattr(votes, name), np.int64) for name in ("user", "chosen", "rejected")}
    shapes = {column.shape for column in columns.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        found = ", ".join(str(column.shape) for column in columns.values())
        raise UserError(f"{what}: user, chosen, rejected have shapes {found}; give three 1-D arrays of one length")
    for name, rows in columns.items():
        limit = num_users if name == "user" else num_responses
        bad = np.flatnonzero((rows < 0) | (rows >= limit))
        if len(bad):
            raise UserError(
                f"{what}: {name} of row {bad[0]} is {rows[bad[0]]} ({len(bad)} such rows); "
                f"indices run from 0 to {limit - 1}"
            )
    said = {name: getattr(votes, name, None) for name in _UNSAID}
    said = {name: None if values is None else np.asarray(values) for name, values in said.items()}
    for name, values in said.items():
        if values is not None and values.shape != columns["user"].shape:
            raise UserError(f"{what}: {name} has shape {values.shape}; give one value for each of the votes, or None")
    if said["strength"] is not None:
        _check_strengths(said["strength"], said["tie"], what)
    return Comparisons(**columns, **said)


def _check_strengths(strength: np.ndarray, tie: np.ndarray | None, what: str) -> None:
    """Raises UserError for a preference of strength 0 or below, or infinite; what stands at a tie is not read."""
    bad = (strength <= 0) | np.isinf(strength)
    rows = np.flatnonzero(bad if tie is None else bad & ~tie.astype(bool))
    if len(rows):
        raise UserError(
            f"{what}: strength of row {rows[0]} is {strength[rows[0]]} ({len(rows)} such rows); give numbers above 0, "
            "NaN where it was not said, and a tie for a strength of 0"
        )


def check_ratings(ratings: Ratings, num_users: int, num_responses: int, what: str) -> Ratings:
    """The ratings as int64 rows and float64 numbers.

    Raises:
      UserError: for unequal lengths, indices out of range or ratings that are not finite.
    """
    user, response, rating = (np.asarray(column) for column in ratings)
    check_comparisons(Comparisons(user, response, response), num_users, num_responses, what)
    if rating.shape != user.shape or not np.isfinite(rating).all():
        raise UserError(f"{what}: rating has shape {rating.shape}; give a finite number for each of {len(user)} users")
    return Ratings(user.astype(np.int64), response.astype(np.int64), rating.astype(np.float64))
