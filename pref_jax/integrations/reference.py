"""Centre and spread of a user's reward over reference responses, which depend neither on the policy nor on any order.

Axis letters: R reference responses.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pref_jax.data.messages import answer, as_chat
from pref_jax.data.preferences import Preferences
from pref_jax.data.votes import as_preferences
from pref_jax.errors import UserError
from pref_jax.integrations.backends import Backend, Row

# Reference responses at most.
MOST = 256


class Unit(NamedTuple):
    """Mean and standard deviation of a user's reward over the reference responses."""

    centre: float
    spread: float


class Reference:
    """The units of users' rewards; each is worked out when its user first comes, and kept.

    Args:
      given: votes in any form that `pref_jax.read_votes` takes, of which the responses are meant, or pairs of prompt
        and response. Of more than `MOST` different ones those with the smallest digests are taken: which they are
        depends on the texts alone.

    Raises:
      UserError: if there are fewer than 2.
    """

    def __init__(self, given: Any):
        self.rows = _rows(given)
        self._units: dict[str | None, Unit] = {}
        self._lock = threading.Lock()

    def of(self, user: str | None, backend: Backend) -> Unit:
        """A user's unit; None: of the reward of nobody in particular.

        Raises:
          UserError: if all reference responses have the same reward.
        """
        with self._lock:
            if user not in self._units:
                rewards = backend.of_one(user, self.rows)
                spread = float(rewards.std())
                if not spread > 1e-6 * float(np.abs(rewards).max()):
                    who = "nobody in particular" if user is None else repr(user)
                    raise UserError(
                        f"reference: its {len(rewards)} responses all have the reward {rewards[0]:.4g} for {who}; "
                        "give responses that differ"
                    )
                self._units[user] = Unit(float(rewards.mean()), spread)
            return self._units[user]


def _rows(given: Any) -> list[Row]:
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(one, tuple) for one in given):
        found = [Row(None, prompt, text) for prompt, text in given]
    else:
        found = [Row(None, *one) for one in responses_of(as_preferences(given))]
    distinct = {_digest(row): row for row in found if row.answer.strip()}
    if len(distinct) < 2:
        raise UserError(f"reference: {len(distinct)} different responses; give at least 2, better 100")
    return [distinct[name] for name in sorted(distinct)[:MOST]]


def responses_of(tables: Preferences) -> list[tuple[Any, str]]:
    """Prompt (chat messages) and text of every response."""
    return [(as_chat(row["prompt"]), as_chat([answer(row)])[0]["content"]) for row in tables.responses.to_pylist()]


def _digest(row: Row) -> bytes:
    return hashlib.sha256(json.dumps([row.prompt, row.answer], sort_keys=True).encode()).digest()
