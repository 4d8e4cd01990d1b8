"""Votes going in and coming out."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from pref_jax.serve.store import people, tables
from pref_jax.serve.store.errors import VoteConflictError
from pref_jax.serve.store.records import Added, StoredVote, Vote
from pref_jax.serve.store.texts import Text, draw, in_parts, numbers_of, text_of, value_of

DAY = 86400
_NUMBERS = ("strength", "latency", "time")
_PROVENANCE = ("shown", "asked", "pair", "page_version", "model_version")
_MOST = 1000
_VOTES, _PEOPLE = tables.votes.c, tables.people.c
_PROMPT, _FIRST, _SECOND = (tables.texts.alias(name) for name in ("prompt_text", "first_text", "second_text"))
_JOINED = (
    tables.votes.join(_PROMPT, _PROMPT.c.number == _VOTES.prompt)
    .join(_FIRST, _FIRST.c.number == _VOTES.first)
    .join(_SECOND, _SECOND.c.number == _VOTES.second)
)
# Of a stored vote, in the order of the columns of a query; before them come the prompt, and whether it is JSON.
_FIELDS = ("first", "second", "number", "id", "choice", "received", *_NUMBERS, *_PROVENANCE)
_COLUMNS = (_PROMPT.c.chat, _PROMPT.c.text, _FIRST.c.text, _SECOND.c.text, *(_VOTES[name] for name in _FIELDS[2:]))
# Statements that every vote needs are built once.
_KNOWN = (
    sa.select(
        _VOTES.id, _VOTES.person, _PROMPT.c.digest, _FIRST.c.digest, _SECOND.c.digest, _VOTES.choice, _VOTES.strength
    )
    .select_from(_JOINED)
    .where(_VOTES.id.in_(sa.bindparam("ids", expanding=True)))
)
_AFTER: Any = sa.select(*_COLUMNS).where(_VOTES.number > sa.bindparam("after")).order_by(_VOTES.number)
_WHOSE = sa.select(_PEOPLE.number).where(_PEOPLE.id == sa.bindparam("user")).scalar_subquery()
_OF_USER = _AFTER.select_from(_JOINED).where(_VOTES.person == _WHOSE)
_WITH_USERS = _JOINED.join(tables.people, _PEOPLE.number == _VOTES.person)
_PAGE = _AFTER.select_from(_WITH_USERS).add_columns(_PEOPLE.id.label("user")).limit(_MOST)


class Ballot(NamedTuple):
    """A vote with the texts that it names."""

    vote: Vote
    prompt: Text
    first: Text
    second: Text

    def says(self) -> tuple[Any, ...]:
        """What makes two votes of the same id the same vote: all but where it came from."""
        strength = None if self.vote.strength is None else float(self.vote.strength)
        return self.prompt.digest, self.first.digest, self.second.digest, self.vote.choice, strength


def ballots(votes: Sequence[Vote]) -> list[Ballot]:
    """Votes with their texts, each id once.

    Raises:
      VoteConflictError: if two of them have one id and say something else.
    """
    found: dict[str, Ballot] = {}
    for vote in votes:
        ballot = Ballot(vote, text_of(vote.prompt), text_of(vote.first), text_of(vote.second))
        if found.setdefault(vote.id, ballot).says() != ballot.says():
            raise _conflict([vote.id])
    return list(found.values())


def add(connection: sa.Connection, user: str, given: Sequence[Ballot], received: float) -> Added:
    """Stores what is new.

    Raises:
      VoteConflictError: if an id is taken by another vote.
    """
    person = people.hold_or_make(connection, user)
    known = _known(connection, [ballot.vote.id for ballot in given])
    taken = [b.vote.id for b in given if known.get(b.vote.id, (person, *b.says())) != (person, *b.says())]
    if taken:
        raise _conflict(taken)
    new = [ballot for ballot in given if ballot.vote.id not in known]
    if new:
        numbers = draw(connection, len(new))
        texts = numbers_of(connection, (text for ballot in new for text in ballot[1:]))
        rows = [_row(number, person, ballot, texts, received) for number, ballot in zip(numbers, new, strict=True)]
        connection.execute(sa.insert(tables.votes), rows)
        people.touch(connection, person, numbers[-1])
    return Added(tuple(ballot.vote.id for ballot in new), tuple(known))


def _conflict(ids: Sequence[str]) -> VoteConflictError:
    some = ", ".join(map(repr, ids[:5])) + (", ..." if len(ids) > 5 else "")
    return VoteConflictError(f"nothing was stored: another vote has the id {some}; give each vote an id of its own")


def _known(connection: sa.Connection, ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """What votes of these ids say, after whose they are."""
    found: dict[str, tuple[Any, ...]] = {}
    for some in in_parts(ids):
        rows: Any = connection.execute(_KNOWN, {"ids": some})
        found |= {name: (who, bytes(a), bytes(b), bytes(c), *said) for name, who, a, b, c, *said in rows}
    return found


def _row(number: int, person: int, ballot: Ballot, texts: dict[bytes, int], received: float) -> dict[str, Any]:
    given = {name: getattr(ballot.vote, name) for name in (*_NUMBERS, *_PROVENANCE)}
    numbers = {name: None if given[name] is None else float(given[name]) for name in _NUMBERS}
    named = {name: texts[getattr(ballot, name).digest] for name in ("prompt", "first", "second")}
    own = {"number": number, "id": ballot.vote.id, "person": person, "choice": ballot.vote.choice}
    return {**own, **given, **numbers, **named, "received": received, "day": int(received // DAY)}


def votes_of(connection: sa.Connection, user: str, after: int) -> list[StoredVote]:
    """A user's votes with higher numbers than `after`, in order."""
    return [_stored(row) for row in connection.execute(_OF_USER, {"user": user, "after": after})]


def all_votes(connection: sa.Connection) -> Iterator[tuple[str, StoredVote]]:
    """Every vote with its user, in order of number, some at a time."""
    last = 0
    while rows := connection.execute(_PAGE, {"after": last}).all():
        yield from ((row.user, _stored(row[:-1])) for row in rows)
        last = rows[-1].number


def _stored(row: Sequence[Any]) -> StoredVote:
    chat, prompt, *rest = row
    return StoredVote(prompt=value_of(chat, prompt), **dict(zip(_FIELDS, rest, strict=True)))
