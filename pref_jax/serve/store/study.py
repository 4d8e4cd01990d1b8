"""Figures for whoever runs a study, and nobody's id among them."""

from typing import Any

import sqlalchemy as sa

from pref_jax.serve.store import tables
from pref_jax.serve.store.records import Day, Judgement, Mark, Statistics

_VOTES = tables.votes.c
_TURNED: dict[str, str] = {"first": "second", "second": "first"}


def statistics(connection: sa.Connection, since: int, raters: int) -> Statistics:
    """Totals, days from `since` on, and judgements of pairs that at least `raters` users voted on."""
    users = connection.scalar(sa.select(sa.func.count(sa.distinct(_VOTES.person)))) or 0
    votes = connection.scalar(sa.select(sa.func.count()).select_from(tables.votes)) or 0
    return Statistics(users, votes, _days(connection, since), _judgements(connection, raters))


def _days(connection: sa.Connection, since: int) -> list[Day]:
    where = _VOTES.day >= since
    counts = sa.select(_VOTES.day, _VOTES.choice, sa.func.count()).where(where).group_by(_VOTES.day, _VOTES.choice)
    choices: dict[int, dict[str, int]] = {}
    for day, choice, count in connection.execute(counts.order_by(_VOTES.day, _VOTES.choice)):
        choices.setdefault(day, {})[choice] = count
    who = sa.select(_VOTES.day, sa.func.count(sa.distinct(_VOTES.person))).where(where).group_by(_VOTES.day)
    users = {day: count for day, count in connection.execute(who)}
    return [Day(day, found, users[day]) for day, found in choices.items()]


def marks(connection: sa.Connection, most: int, user: str | None) -> list[Mark]:
    """The last votes in their order, without texts; of a user: those on pairs that the user voted on."""
    low, high, turned = _sides()
    columns = (_VOTES.prompt, low, high, _VOTES.person, _VOTES.choice, turned, _VOTES.shown, _VOTES.latency)
    query = sa.select(*columns)
    people: dict[int, int] = {}
    if user is not None:
        person = connection.scalar(sa.select(tables.people.c.number).where(tables.people.c.id == user))
        if person is None:
            return []
        people[person] = 0
        own = sa.select(_VOTES.prompt, low.label("low"), high.label("high")).where(_VOTES.person == person)
        mine = own.distinct().subquery()
        pair = sa.and_(mine.c.prompt == _VOTES.prompt, mine.c.low == low, mine.c.high == high)
        query = query.join_from(tables.votes, mine, pair)
    rows: Any = connection.execute(query.order_by(_VOTES.number.desc()).limit(most)).all()
    pairs: dict[Any, int] = {}
    found = []
    for prompt, one, other, who, choice, is_turned, shown, latency in reversed(rows):
        place = pairs.setdefault((prompt, one, other), len(pairs)), people.setdefault(who, len(people))
        seen = _TURNED[choice] if is_turned and choice in _TURNED else choice
        left = None if shown is None or choice not in _TURNED else (choice == "first") == (shown == "left")
        found.append(Mark(*place, seen, left, latency))
    return found


def _sides() -> tuple[Any, Any, Any]:
    """Of a vote: the response of the lower number, that of the higher one, and whether the second has the lower one."""
    turned = _VOTES.first > _VOTES.second
    low = sa.case((turned, _VOTES.second), else_=_VOTES.first)
    return low, sa.case((turned, _VOTES.first), else_=_VOTES.second), turned


def _judgements(connection: sa.Connection, raters: int) -> list[Judgement]:
    low, high, turned = _sides()
    several = (
        sa.select(_VOTES.prompt, low.label("low"), high.label("high"))
        .group_by(_VOTES.prompt, low, high)
        .having(sa.func.count(sa.distinct(_VOTES.person)) >= raters)
        .subquery()
    )
    pair = sa.and_(several.c.prompt == _VOTES.prompt, several.c.low == low, several.c.high == high)
    columns = (_VOTES.prompt, several.c.low, several.c.high, _VOTES.person, _VOTES.choice, turned)
    rows: Any = connection.execute(sa.select(*columns).join_from(tables.votes, several, pair).order_by(_VOTES.number))
    pairs: dict[Any, int] = {}
    people: dict[int, int] = {}
    found: dict[tuple[int, int], Judgement] = {}
    for prompt, one, other, person, choice, is_turned in rows:
        place = pairs.setdefault((prompt, one, other), len(pairs)), people.setdefault(person, len(people))
        times = found[place].times if place in found else 0
        seen = _TURNED[choice] if is_turned and choice in _TURNED else choice
        found[place] = Judgement(*place, choice=seen, times=times + 1)
    return sorted(found.values())
