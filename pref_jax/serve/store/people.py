"""Users: a row each, which a writing transaction holds, so that a user's votes become visible in their order."""

import sqlalchemy as sa

from pref_jax.serve.store import tables
from pref_jax.serve.store.engine import owe_wiping
from pref_jax.serve.store.records import Removed, User
from pref_jax.serve.store.texts import draw, insert_new, remove_unnamed

_PEOPLE = tables.people.c
# Statements that every vote needs are built once.
_HOLD = sa.select(_PEOPLE.number).where(_PEOPLE.id == sa.bindparam("user")).with_for_update()
_TOUCH = sa.update(tables.people).where(_PEOPLE.number == sa.bindparam("person")).values(revision=sa.bindparam("new"))
_REVISION = sa.select(_PEOPLE.revision).where(_PEOPLE.id == sa.bindparam("user"))


def hold(connection: sa.Connection, user: str) -> int | None:
    """The user's number, held until the transaction ends; None if there is no such user."""
    return connection.scalar(_HOLD, {"user": user})


def hold_or_make(connection: sa.Connection, user: str) -> int:
    """The number of a known or new user, held until the transaction ends."""
    while (number := hold(connection, user)) is None:
        # One that is removed meanwhile is created again.
        connection.execute(insert_new(connection, tables.people), [{"id": user, "revision": 0}])
    return number


def touch(connection: sa.Connection, person: int, revision: int) -> None:
    """Sets the revision."""
    connection.execute(_TOUCH, {"person": person, "new": revision})


def revision(connection: sa.Connection, user: str) -> int:
    """The number of the last change; 0 for who has never voted, or is not there."""
    return connection.scalar(_REVISION, {"user": user}) or 0


def users(connection: sa.Connection, after: str, limit: int) -> list[User]:
    """Users whose ids come after `after` in the order of code points."""
    count = sa.select(sa.func.count()).where(tables.votes.c.person == _PEOPLE.number).scalar_subquery()
    query = sa.select(_PEOPLE.id, count, _PEOPLE.revision).where(_PEOPLE.id > after)
    return [User(*row) for row in connection.execute(query.order_by(_PEOPLE.id).limit(limit))]


def remove_vote(connection: sa.Connection, user: str, vote_id: str) -> bool:
    """Removes one vote, and its texts if nothing else names them."""
    person, votes = hold(connection, user), tables.votes.c
    named = (votes.prompt, votes.first, votes.second)
    gone = sa.delete(tables.votes).where(votes.id == vote_id, votes.person == person).returning(*named)
    row = None if person is None else connection.execute(gone).one_or_none()
    if row is None or person is None:
        return False
    remove_unnamed(connection, set(row))
    touch(connection, person, *draw(connection, 1))
    return True


def remove_user(connection: sa.Connection, user: str) -> Removed:
    """Removes all that is kept of a user; `wiped` is not known yet."""
    person, votes = hold(connection, user), tables.votes.c
    if person is None:
        return Removed(0, 0, 0, None)
    owe_wiping(connection)
    named = (votes.prompt, votes.first, votes.second)
    rows = connection.execute(sa.delete(tables.votes).where(votes.person == person).returning(*named)).all()
    keys = connection.execute(sa.delete(tables.keys).where(tables.keys.c.person == person)).rowcount
    connection.execute(sa.delete(tables.people).where(_PEOPLE.number == person))
    return Removed(len(rows), remove_unnamed(connection, {text for row in rows for text in row}), keys, None)
