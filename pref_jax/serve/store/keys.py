"""Keys and model versions. Of a key only its hash is kept: 256 random bits cannot be guessed from it."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from pref_jax.errors import UserError
from pref_jax.serve.store import people, tables
from pref_jax.serve.store.records import Key, Model
from pref_jax.serve.store.texts import insert_new

_KEYS, _PEOPLE = tables.keys.c, tables.people.c
_BYTES = 32


def new_key() -> str:
    """A key of 256 random bits."""
    return f"pref_{secrets.token_urlsafe(_BYTES)}"


def _digest(key: str) -> bytes:
    # Whatever a stranger sends is hashed, halves of characters too.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def add_key(connection: sa.Connection, key: str, name: str, rights: Iterable[str], user: str | None) -> None:
    """Stores a key's hash.

    Raises:
      UserError: if the name is taken.
    """
    person = None if user is None else people.hold_or_make(connection, user)
    row = {"name": name, "digest": _digest(key), "rights": " ".join(sorted(set(rights))), "person": person}
    if connection.scalar(insert_new(connection, tables.keys).values(row).returning(_KEYS.name)) is None:
        raise UserError(f"a key has the name {name!r}; remove it, or give this one another name")


def find_key(connection: sa.Connection, key: str) -> Key | None:
    """What a key allows; None for one that is not known."""
    digest = _digest(key)
    row: Any = connection.execute(_query().add_columns(_KEYS.digest).where(_KEYS.digest == digest)).one_or_none()
    if row is None or not hmac.compare_digest(bytes(row[3]), digest):
        return None
    return _key(row)


def keys(connection: sa.Connection) -> list[Key]:
    """All keys by name."""
    return [_key(row) for row in connection.execute(_query().order_by(_KEYS.name))]


def remove_key(connection: sa.Connection, name: str) -> bool:
    """Removes a key; whether it was there."""
    return connection.execute(sa.delete(tables.keys).where(_KEYS.name == name)).rowcount == 1


def _query() -> Any:
    return sa.select(_KEYS.name, _KEYS.rights, _PEOPLE.id).outerjoin_from(
        tables.keys, tables.people, _KEYS.person == _PEOPLE.number
    )


def _key(row: Any) -> Key:
    return Key(row[0], frozenset(row[1].split()), row[2])


def use_model(connection: sa.Connection, version: str, facts: Mapping[str, Any], now: float) -> None:
    """Notes a model version; of a known one the facts become these, and `since` stays.

    Raises:
      UserError: for facts that are no JSON.
    """
    try:
        text = json.dumps(dict(facts), allow_nan=False, sort_keys=True)
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"facts of model version {version!r} are no JSON; give texts and finite numbers") from None
    rows = [{"version": version, "facts": text, "since": now}]
    connection.execute(insert_new(connection, tables.models), rows)
    connection.execute(sa.update(tables.models).where(tables.models.c.version == version).values(facts=text))


def models(connection: sa.Connection) -> list[Model]:
    """All model versions in order of since when they served."""
    table = tables.models.c
    query = sa.select(table.version, table.facts, table.since).order_by(table.since, table.version)
    return [Model(version, json.loads(facts), since) for version, facts, since in connection.execute(query)]
