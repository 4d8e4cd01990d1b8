"""What goes into a store and what comes out."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

# All are kept; the first three teach.
CHOICES = ("first", "second", "tie", "both_bad", "skip")
TEACHING = CHOICES[:3]
SIDES = ("left", "right")
# A text, or chat messages {role, content, ...}.
Prompt = str | list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """What one person said of two responses.

    Attributes:
      id: chosen by who sends it; the same id again is the same vote.
      prompt: a text, or chat messages {role, content, ...}.
      first, second: the two responses, which differ.
      choice: of `CHOICES`.
      strength: of a preference, above 0; None for other choices, or where nobody asked.
      shown: the side on which `first` was shown.
      asked: the rule by which this pair was asked.
      pair: id of the pair in its pool.
      latency: seconds from showing to answer.
      page_version, model_version: what the person saw, and what chose it.
      time: seconds since 1970 by the client's clock.
    """

    id: str
    prompt: Prompt
    first: str
    second: str
    choice: str
    strength: float | None = None
    shown: str | None = None
    asked: str | None = None
    pair: str | None = None
    latency: float | None = None
    page_version: str | None = None
    model_version: str | None = None
    time: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredVote(Vote):
    """A vote in the store.

    Attributes:
      number: place in the order of everything that ever happened in the store; not without gaps.
      received: seconds since 1970 by the server's clock, which decides nothing.
    """

    number: int
    received: float


class Added(NamedTuple):
    """Ids of votes that were stored, and of those that had been stored before."""

    stored: tuple[str, ...]
    repeated: tuple[str, ...]


class Removed(NamedTuple):
    """What went with a user.

    Attributes:
      votes: how many.
      texts: prompts and responses that no other user's vote and no pool names.
      keys: those bound to the user.
      wiped: whether the database's files are free of it as well. False while a reader or the lack of space stands
        against it, see `Store.remove_user`; None for PostgreSQL, which writes over the space after it has vacuumed.
    """

    votes: int
    texts: int
    keys: int
    wiped: bool | None


class User(NamedTuple):
    """A user, the number of their votes, and the revision of what is kept of them."""

    id: str
    votes: int
    revision: int


class History(NamedTuple):
    """A user's revision and votes as of one moment."""

    revision: int
    votes: list[StoredVote]


class Key(NamedTuple):
    """What a key allows, and for which user alone, if for one. The key itself is kept nowhere."""

    name: str
    rights: frozenset[str]
    user: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two responses that can be asked about; `id` is unique in its pool."""

    id: str
    prompt: Prompt
    first: str
    second: str


class Model(NamedTuple):
    """A model version that served, facts of it, and since when (seconds since 1970)."""

    version: str
    facts: Mapping[str, Any]
    since: float


class Day(NamedTuple):
    """Votes of a day, counted in days since 1970 (UTC), by choice; and how many users gave them."""

    day: int
    choices: Mapping[str, int]
    users: int


class Judgement(NamedTuple):
    """What one user said last of one pair, whichever way round it was shown to them.

    Attributes:
      pair: a number for prompt and both responses.
      user: a number for the user, good for this answer alone.
      choice: "first" and "second" mean the same response for everyone.
      times: how often this user voted on the pair.
    """

    pair: int
    user: int
    choice: str
    times: int


class Statistics(NamedTuple):
    """What whoever runs a study looks at: totals, days, and judgements of pairs that several users saw."""

    users: int
    votes: int
    days: list[Day]
    judgements: list[Judgement]


class Mark(NamedTuple):
    """One vote without its texts.

    Attributes:
      pair: a number for prompt and both responses, whichever way round; good for this answer alone.
      user: a number for the user, good for this answer alone; 0 for the one that was asked for.
      choice: "first" and "second" mean the same response in all votes on a pair.
      left: whether what was chosen stood on the left; None where nothing was, or nobody told.
      latency: seconds from showing to answer.
    """

    pair: int
    user: int
    choice: str
    left: bool | None
    latency: float | None
