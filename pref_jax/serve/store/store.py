"""The store of a service: durable votes, users that can be removed, keys, model versions, pools of pairs."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pref_jax.serve.store import ballots, checks, keys, people, pools, study
from pref_jax.serve.store.engine import WAIT, Database
from pref_jax.serve.store.records import (
    Added,
    History,
    Key,
    Mark,
    Model,
    Pair,
    Removed,
    Statistics,
    StoredVote,
    User,
    Vote,
)
from pref_jax.serve.store.upgrade import upgrade, version

DAY = ballots.DAY


class Store:
    """Votes and users in SQLite or PostgreSQL; any thread of any process may call it, each method is one transaction.

    What a method has returned is durable. Methods raise `UserError` for values that are not let in,
    `VoteConflictError` for ids that are taken, and `StoreUnavailableError` while the database cannot answer; the same
    call can then be made again.

    Example:
      >>> import tempfile
      >>> store = Store.open(f"{tempfile.mkdtemp()}/votes.db")
      >>> vote = Vote(id="1", prompt="How long?", first="Seven minutes.", second="It depends.", choice="first")
      >>> store.add("ada", [vote])
      Added(stored=('1',), repeated=())
      >>> store.add("ada", [vote])
      Added(stored=(), repeated=('1',))
      >>> [vote.choice for vote in store.votes("ada")]
      ['first']
      >>> store.remove_user("ada")
      Removed(votes=1, texts=3, keys=0, wiped=True)
      >>> store.revision("ada")
      0
      >>> store.close()
    """

    def __init__(self, database: Database):
        self._database = database

    @classmethod
    def open(cls, url: str, *, wait: float = WAIT, connections: int = 16, make: bool = True) -> "Store":
        """Opens a database, makes it if it is a file that is not there, and brings its tables to this version.

        Args:
          url: a file, which must lie on a disk of this machine, or "sqlite:///" and its path; or
            "postgresql://user:password@host/database".
          wait: seconds to wait for another writer.
          connections: at most, of this process.
          make: whether a file, or tables, that are not there are made.

        Raises:
          UserError: for another kind of URL, a missing folder, tables of something else or of a newer version.
          StoreUnavailableError: if the database cannot be reached.
        """
        database = Database(url, wait=wait, connections=connections, make=make)
        try:
            upgrade(database, make=make)
            database.wipe()
        except BaseException:
            database.engine.dispose()
            raise
        return cls(database)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self._database.name!r})"

    def close(self) -> None:
        """Lets go of all connections."""
        self._database.engine.dispose()

    def ready(self) -> None:
        """Returns if the database answers.

        Raises:
          StoreUnavailableError: if it does not.
        """
        with self._database.read() as connection:
            version(connection)

    def add(self, user: str, votes: Sequence[Vote]) -> Added:
        """Stores votes of a known or new user, all or none; one that is there already is left as it is.

        Two votes are the same if they have the same id and say the same of the same texts; where a repeated one came
        from (side shown, time, ...) is not compared.

        Raises:
          UserError: for votes that cannot be trained on, with all faults at once.
          VoteConflictError: if an id is taken, by whomever.
        """
        checks.check_id(user, "user")
        checks.check_votes(votes)
        given = ballots.ballots(votes)
        if not given:
            return Added((), ())
        return self._database.write(lambda connection: ballots.add(connection, user, given, time.time()))

    def votes(self, user: str, after: int = 0) -> list[StoredVote]:
        """A user's votes in order, those with numbers above `after`: once one was seen, none comes before it."""
        return self.history(user, after).votes

    def history(self, user: str, after: int = 0) -> History:
        """The revision and the votes of one moment."""
        checks.check_id(user, "user")
        checks.check_number(after, "after")
        with self._database.read(snapshot=True) as connection:
            return History(people.revision(connection, user), ballots.votes_of(connection, user, after))

    def revision(self, user: str) -> int:
        """A number that changes with every change of a user's votes, and never becomes one that it was; 0: no votes.

        A removed user has 0, and, on coming back, a number above all before.
        """
        checks.check_id(user, "user")
        with self._database.read() as connection:
            return people.revision(connection, user)

    def remove_vote(self, user: str, vote_id: str) -> bool:
        """Takes one vote back, with its texts if nothing else names them; whether there was one.

        Its id is free then.
        """
        checks.check_id(user, "user")
        checks.check_id(vote_id, "id")
        return self._database.write(lambda connection: people.remove_vote(connection, user, vote_id))

    def remove_user(self, user: str) -> Removed:
        """Removes all that is kept of a user, and the keys bound to them.

        SQLite's file is then rewritten, since deleted rows leave copies in it: other writers wait meanwhile. Where
        that cannot be done now, `wiped` is false, and the next removal or the next `open` does it.
        """
        checks.check_id(user, "user")
        gone = self._database.write(lambda connection: people.remove_user(connection, user))
        return gone._replace(wiped=self._database.wipe())

    def users(self, after: str = "", limit: int = 1000) -> list[User]:
        """Users in the order of their ids' code points, those after `after`."""
        if after:
            checks.check_id(after, "after")
        checks.check_number(limit, "limit", 1)
        with self._database.read() as connection:
            return people.users(connection, after, limit)

    def export(self) -> Iterator[tuple[str, StoredVote]]:
        """Every vote with its user, in order, as of the moment of the first."""
        with self._database.read(snapshot=True) as connection:
            yield from ballots.all_votes(connection)

    def add_key(self, name: str, rights: Iterable[str], user: str | None = None) -> str:
        """A new key, shown this once.

        Args:
          name: by which it is listed and removed.
          rights: words; what they allow is for the service to say.
          user: the only user for whom it is good.

        Raises:
          UserError: if the name is taken.
        """
        checks.check_id(name, "name")
        rights = sorted(set(rights))
        checks.check_rights(rights)
        if user is not None:
            checks.check_id(user, "user")
        key = keys.new_key()
        self._database.write(lambda connection: keys.add_key(connection, key, name, rights, user))
        return key

    def key(self, key: str) -> Key | None:
        """What a key allows; None if there is no such key."""
        with self._database.read() as connection:
            return keys.find_key(connection, key)

    def keys(self) -> list[Key]:
        """All keys by name."""
        with self._database.read() as connection:
            return keys.keys(connection)

    def remove_key(self, name: str) -> bool:
        """Removes a key; whether there was one."""
        checks.check_id(name, "name")
        return self._database.write(lambda connection: keys.remove_key(connection, name))

    def use_model(self, version: str, facts: Mapping[str, Any]) -> None:
        """Notes that a model version serves, with facts of it that name no user."""
        checks.check_id(version, "version")
        self._database.write(lambda connection: keys.use_model(connection, version, facts, time.time()))

    def models(self) -> list[Model]:
        """Model versions that served, by since when."""
        with self._database.read() as connection:
            return keys.models(connection)

    def add_pairs(self, pool: str, pairs: Sequence[Pair]) -> int:
        """Adds pairs to a pool that can be asked; returns how many were new.

        Raises:
          UserError: for pairs that cannot be asked, with all faults at once.
          VoteConflictError: if the pool has another pair of the same id; nothing is added.
        """
        checks.check_id(pool, "pool")
        checks.check_pairs(pairs)
        return self._database.write(lambda connection: pools.add_pairs(connection, pool, pairs))

    def pairs(self, pool: str, after: str = "", limit: int | None = None) -> list[Pair]:
        """Pairs of a pool in the order in which they were added, those after the pair `after`."""
        checks.check_id(pool, "pool")
        if after:
            checks.check_id(after, "after")
        if limit is not None:
            checks.check_number(limit, "limit", 1)
        with self._database.read() as connection:
            return pools.pairs(connection, pool, after, limit)

    def pool_state(self, pool: str) -> tuple[int, int]:
        """Two numbers that are other ones whenever the pool has other pairs; (0, 0) where there is none."""
        checks.check_id(pool, "pool")
        with self._database.read() as connection:
            return pools.state(connection, pool)

    def pools(self) -> dict[str, int]:
        """Names of pools, and how many pairs each has."""
        with self._database.read() as connection:
            return pools.pools(connection)

    def remove_pool(self, pool: str) -> int:
        """Removes a pool; returns how many pairs it had. Votes on them stay."""
        checks.check_id(pool, "pool")
        return self._database.write(lambda connection: pools.remove_pool(connection, pool))

    def statistics(self, *, days: int = 90, raters: int = 2) -> Statistics:
        """Figures of a study: totals, the last days, and judgements of pairs by at least `raters` users."""
        checks.check_number(raters, "raters", 1)
        since = max(0, int(time.time() // DAY) - days + 1)
        with self._database.read(snapshot=True) as connection:
            return study.statistics(connection, since, raters)

    def marks(self, *, most: int, user: str | None = None) -> list[Mark]:
        """The last votes in their order, at most so many, without texts; of a user: on pairs that the user voted on."""
        checks.check_number(most, "most", 1)
        if user is not None:
            checks.check_id(user, "user")
        with self._database.read(snapshot=True) as connection:
            return study.marks(connection, most, user)
