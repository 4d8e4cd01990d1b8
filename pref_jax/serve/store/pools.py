"""Pools of pairs that can be asked."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from pref_jax.serve.store import tables
from pref_jax.serve.store.errors import VoteConflictError
from pref_jax.serve.store.records import Pair
from pref_jax.serve.store.texts import draw, in_parts, numbers_of, remove_unnamed, text_of, value_of

_PAIRS = tables.pairs.c
_NAMES = ("prompt", "first", "second")
_TEXTS = {name: tables.texts.alias(f"{name}_text") for name in _NAMES}


def add_pairs(connection: sa.Connection, pool: str, given: Sequence[Pair]) -> int:
    """Adds pairs to a pool, new or old; returns how many were new.

    Raises:
      VoteConflictError: if an id is taken by another pair of the pool; nothing is added then.
    """
    told = [(pair.id, [text_of(getattr(pair, name)) for name in _NAMES]) for pair in given]
    texts = numbers_of(connection, (text for _, own in told for text in own))
    known = {}
    for some in in_parts([name for name, _ in told]):
        query = sa.select(_PAIRS.id, *(_PAIRS[name] for name in _NAMES))
        rows = connection.execute(query.where(_PAIRS.pool == pool, _PAIRS.id.in_(some)))
        known |= {name: tuple(own) for name, *own in rows}
    new: dict[str, tuple[int, ...]] = {}
    for name, own in told:
        numbers = tuple(texts[text.digest] for text in own)
        if known.get(name, new.get(name, numbers)) != numbers:
            raise VoteConflictError(f"nothing was added: pool {pool!r} has another pair of the id {name!r}; rename it")
        if name not in known:
            new[name] = numbers
    if new:
        drawn = zip(draw(connection, len(new)), new.items(), strict=True)
        rows = [
            {"number": number, "pool": pool, "id": name, **dict(zip(_NAMES, own, strict=True))}
            for number, (name, own) in drawn
        ]
        connection.execute(sa.insert(tables.pairs), rows)
    return len(new)


def pairs(connection: sa.Connection, pool: str, after: str, limit: int | None) -> list[Pair]:
    """Pairs of a pool in the order in which they were added, those after the pair of id `after`."""
    texts = [column for alias in _TEXTS.values() for column in (alias.c.chat, alias.c.text)]
    joined: Any = tables.pairs
    for name, alias in _TEXTS.items():
        joined = joined.join(alias, alias.c.number == _PAIRS[name])
    query = sa.select(_PAIRS.id, *texts).select_from(joined).where(_PAIRS.pool == pool)
    if after:
        place = sa.select(tables.pairs.c.number).where(tables.pairs.c.pool == pool, tables.pairs.c.id == after)
        query = query.where(_PAIRS.number > place.correlate(None).scalar_subquery())
    rows = connection.execute(query.order_by(_PAIRS.number).limit(limit))
    return [
        Pair(id=name, prompt=value_of(*own[:2]), first=value_of(*own[2:4]), second=value_of(*own[4:]))
        for name, *own in rows
    ]


def state(connection: sa.Connection, pool: str) -> tuple[int, int]:
    """How many pairs a pool has, and the number of the last: both together are other ones after every change.

    Pairs come one by one and go all together, and no number is drawn again.
    """
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.max(_PAIRS.number), 0)).where(_PAIRS.pool == pool)
    count, last = connection.execute(query).one()
    return count, last


def pools(connection: sa.Connection) -> dict[str, int]:
    """Names of pools, in order, and how many pairs each has."""
    query = sa.select(_PAIRS.pool, sa.func.count()).group_by(_PAIRS.pool).order_by(_PAIRS.pool)
    return {pool: count for pool, count in connection.execute(query)}


def remove_pool(connection: sa.Connection, pool: str) -> int:
    """Removes a pool, and texts that nothing else names; returns how many pairs it had. Votes on them stay."""
    gone = sa.delete(tables.pairs).where(_PAIRS.pool == pool).returning(*(_PAIRS[name] for name in _NAMES))
    rows = connection.execute(gone).all()
    remove_unnamed(connection, {text for row in rows for text in row})
    return len(rows)
