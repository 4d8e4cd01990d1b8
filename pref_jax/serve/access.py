"""Who may do what: keys with rights, bound to one user or to none; and how often a user may vote."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from pref_jax.serve.faults import RefusedError, unknown_user
from pref_jax.serve.store.records import Key

# score: ask for scores and what the model is. vote: votes, questions and what is known of users. admin: everything,
# pools and the removal of users among it.
RIGHTS = ("score", "vote", "admin")
# Users of whom it is remembered when they voted.
_REMEMBERED = 100_000


class Client(NamedTuple):
    """Who asks.

    Attributes:
      name: of the key; empty without keys.
      rights: of `RIGHTS`.
      user: the only one whom the key is for; None: all.
    """

    name: str
    rights: frozenset[str]
    user: str | None

    def need(self, right: str) -> None:
        """Raises `RefusedError` without a right; `admin` is every right."""
        if right not in self.rights and "admin" not in self.rights:
            raise RefusedError(403, f"the key has no right {right!r}; ask whoever gave it")

    def may_touch(self, user: str) -> bool:
        """Whether the user exists for this client."""
        return self.user is None or self.user == user

    def need_user(self, user: str) -> None:
        """Raises `RefusedError`, as for a user who is not there, if the user is not the client's."""
        if not self.may_touch(user):
            raise unknown_user()


ANYONE = Client("", frozenset(RIGHTS), None)


def client_of(key: Key) -> Client:
    """The client who has a key."""
    return Client(key.name, frozenset(key.rights), key.user)


def bearer(header: str | None) -> str:
    """The key of an Authorization header.

    Raises:
      RefusedError: if there is none.
    """
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise RefusedError(401, "no key; send the header Authorization: Bearer KEY")
    return key.strip()


class Pace:
    """How often each user may vote, as a bucket that fills steadily; to be used from one thread.

    Example:
      >>> pace = Pace(60, clock=lambda: 0.0)
      >>> pace.wait("ada", 60), pace.wait("ada", 1)
      (0.0, 1.0)
    """

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic):
        """So many votes a minute, and at once."""
        self._most, self._clock = float(a_minute), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, user: str, votes: int) -> float:
        """Takes votes of a user from the bucket; if there are too few left, seconds until there are enough."""
        now = self._clock()
        left, since = self._left.pop(user, (self._most, now))
        left = min(self._most, left + (now - since) * self._most / 60)
        short = min(votes, self._most) - left
        self._left[user] = (left if short > 0 else left - votes, now)
        while len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        return max(0.0, short * 60 / self._most)

    def forget(self, user: str) -> None:
        """Forgets a user."""
        self._left.pop(user, None)
