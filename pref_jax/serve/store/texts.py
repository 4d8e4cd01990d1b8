"""Texts, each stored once by its digest, and let go of when nothing names it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from pref_jax.errors import UserError
from pref_jax.serve.store import tables
from pref_jax.serve.store.records import Prompt

T = TypeVar("T")
# Values named in one statement: databases limit them.
MOST_VALUES = 500
_NAMES = ("prompt", "first", "second")
_TEXTS = tables.texts.c
# Statements that every vote needs are built once.
_LOCKED = (
    sa.select(_TEXTS.digest, _TEXTS.number)
    .where(_TEXTS.digest.in_(sa.bindparam("digests", expanding=True)))
    .order_by(_TEXTS.number)
    .with_for_update(read=True, key_share=True)
)
_SEQUENCE = sa.text("SELECT nextval('numbers') FROM generate_series(1, :count)")
_LAST = tables.counter.c.last
_COUNT = sa.update(tables.counter).values(last=_LAST + sa.bindparam("count")).returning(_LAST)


class Text(NamedTuple):
    """A text as it is stored."""

    digest: bytes
    chat: bool
    text: str


def text_of(value: Prompt) -> Text:
    """A text, or chat messages as JSON whose fields are in order, with its digest (SHA-256).

    Raises:
      UserError: for messages that are no JSON.
    """
    chat = not isinstance(value, str)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True) if chat else value
    except (ValueError, TypeError, RecursionError):
        raise UserError("prompt: messages are no JSON, or too deep; give {role, content}") from None
    return Text(hashlib.sha256(b"%d" % chat + text.encode()).digest(), chat, text)


def value_of(chat: bool, text: str) -> Any:
    """What `text_of` was given."""
    return json.loads(text) if chat else text


def numbers_of(connection: sa.Connection, wanted: Iterable[Text]) -> dict[bytes, int]:
    """Digest -> number of each text, stored if it is new; none can go before this transaction ends."""
    texts = {text.digest: text for text in wanted}
    found = _locked(connection, texts)
    while missing := sorted(texts.keys() - found.keys()):
        # In one order everywhere, so that two who store the same texts do not wait for each other.
        connection.execute(insert_new(connection, tables.texts), [texts[digest]._asdict() for digest in missing])
        found |= _locked(connection, missing)
    return found


def _locked(connection: sa.Connection, digests: Iterable[bytes]) -> dict[bytes, int]:
    found = {}
    for some in in_parts(sorted(digests)):
        rows = connection.execute(_LOCKED, {"digests": some})
        found |= {bytes(digest): number for digest, number in rows}
    return found


def remove_unnamed(connection: sa.Connection, numbers: Iterable[int]) -> int:
    """Removes those texts that no vote and no pair names; returns how many."""
    table, removed = tables.texts, 0
    unnamed = [
        ~sa.exists().where(other.c[name] == table.c.number) for other in (tables.votes, tables.pairs) for name in _NAMES
    ]
    for some in in_parts(sorted(numbers)):
        here = table.c.number.in_(some)
        # Whoever is about to name one has locked it; the next statement then sees that it is named.
        connection.execute(sa.select(table.c.number).where(here).order_by(table.c.number).with_for_update())
        removed += connection.execute(sa.delete(table).where(here, *unnamed)).rowcount
    return removed


def insert_new(connection: sa.Connection, table: sa.Table) -> Any:
    """An insertion that leaves out rows that are there."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing()


def in_parts(values: Sequence[T]) -> Iterator[list[T]]:
    """Values in lists short enough for one statement."""
    return (list(values[start : start + MOST_VALUES]) for start in range(0, len(values), MOST_VALUES))


def draw(connection: sa.Connection, count: int) -> list[int]:
    """New numbers, rising, above all that were drawn before; nobody gets one of them again."""
    if connection.dialect.name == "postgresql":
        return sorted(connection.scalars(_SEQUENCE, {"count": count}))
    end = connection.execute(_COUNT, {"count": count}).scalar_one()
    return list(range(end - count + 1, end + 1))
