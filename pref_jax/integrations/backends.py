"""Where rewards come from: a model in this process, or the service. Both answer rows of user, prompt and answer.

Axis letters: N rows, K basis rewards.
"""

import abc
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from pref_jax import saved
from pref_jax.data.messages import Chat
from pref_jax.errors import UserError
from pref_jax.integrations.coalescing import Coalescer
from pref_jax.integrations.service import Ask, Service
from pref_jax.lm.text_model import as_responses
from pref_jax.personal import Components, PersonalReward, load

# Answers of a request; the service takes 256.
MOST_ANSWERS = 128


class Row(NamedTuple):
    """An answer to be scored; user None: nobody in particular."""

    user: str | None
    prompt: str | Chat
    answer: str


class Found(NamedTuple):
    """What is known of N rows.

    Attributes:
      reward: float64 [N].
      deviation: float64 [N], the posterior standard deviation of each; 0 where it was not asked for.
      known: bool [N], whether the user is known; True for None.
      components: where asked for.
    """

    reward: Float[np.ndarray, " N"]
    deviation: Float[np.ndarray, " N"]
    known: Bool[np.ndarray, " N"]
    components: Components | None = None


class Backend(abc.ABC):
    """Scores rows; unknown users get the reward of nobody in particular, or are an error where `unknown` says so."""

    @abc.abstractmethod
    def score(self, rows: Sequence[Row], *, uncertainty: bool, unknown: str, vector: bool) -> Found:
        """What is known of the rows.

        Raises:
          UserError: for rows that cannot be scored.
        """

    @abc.abstractmethod
    def of_one(self, user: str | None, rows: Sequence[Row]) -> Float[np.ndarray, " N"]:
        """Rewards of rows for one user, whoever they name; for the same rows again and again."""


class Local(Backend):
    """A model in this process. Calls of several threads are read in one batch, and one at a time.

    Raises:
      UserError: for models of features, which read no texts.
    """

    def __init__(self, model: PersonalReward):
        if model.text is None:
            raise UserError("reward_function: this model reads features, not texts; fit one with base=")
        self.model = model
        self._calls: dict[tuple[bool, bool], Coalescer] = {}
        for uncertainty, vector in itertools.product((False, True), repeat=2):
            read = self._reader(uncertainty, vector)
            self._calls[uncertainty, vector] = Coalescer(read)
        self._reference: tuple[tuple[Row, ...], Components | pa.Table] | None = None

    def score(self, rows: Sequence[Row], *, uncertainty: bool, unknown: str, vector: bool) -> Found:
        """See `Backend`."""
        known = {user: user is None or self.model.knows(user) for user in {row.user for row in rows}}
        if unknown == "error" and (strangers := sorted(user for user, there in known.items() if user and not there)):
            raise UserError(
                f"users {', '.join(map(repr, strangers[:3]))} are not known to the model; add their votes, or let "
                'them have the shared reward with unknown="shared"'
            )
        found = self._calls[uncertainty, vector]([row if known[row.user] else row._replace(user=None) for row in rows])
        there = np.array([known[row.user] for row in rows], bool)
        reward, deviation = (np.array([one[place] for one in found], np.float64) for place in (0, 1))
        parts = [one[2] for one in found if one[2] is not None]
        components = Components(*(np.stack(leaf) for leaf in zip(*parts, strict=True))) if parts else None
        return Found(reward, deviation, there, components)

    def of_one(self, user: str | None, rows: Sequence[Row]) -> Float[np.ndarray, " N"]:
        """See `Backend`; texts are read once where the model has basis rewards."""
        user = user if user is None or self.model.knows(user) else None
        kept = self._reference
        if kept is None or kept[0] != tuple(rows):
            table = as_table(rows)
            kept = self._reference = (tuple(rows), self.model.components([None] * len(rows), table) or table)
        if isinstance(kept[1], Components):
            own = self.model.components([user], as_table(rows[:1]))
            assert own is not None
            return kept[1].basis @ own.weights[0].astype(np.float64)
        scores = self.model.rewards([user] * len(rows), kept[1], uncertainty=False)
        return scores.mean.astype(np.float64)

    def _reader(self, uncertainty: bool, vector: bool):
        def read(rows: list[Row]) -> list[tuple[float, float, tuple[np.ndarray, np.ndarray] | None]]:
            users, table = [row.user for row in rows], as_table(rows)
            deviation, parts = np.zeros(len(rows)), self.model.components(users, table) if vector else None
            if parts is not None and not uncertainty:
                reward = (parts.weights * parts.basis).sum(1)
            else:
                reward, sd = self.model.rewards(users, table, uncertainty=uncertainty)
                deviation = sd if uncertainty else deviation
            own = [None] * len(rows) if parts is None else list(zip(*parts, strict=True))
            return list(zip(reward.tolist(), deviation.tolist(), own, strict=True))

        return read


class Remote(Backend):
    """The service: rows of the same user and prompt become one request, or a few."""

    def __init__(self, service: Service):
        self.service = service

    def score(self, rows: Sequence[Row], *, uncertainty: bool, unknown: str, vector: bool) -> Found:
        """See `Backend`."""
        if vector:
            raise UserError("vector: the service tells rewards, not their basis; give the model or its folder instead")
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(json.dumps([row.user, row.prompt], sort_keys=True), []).append(place)
        runs = [
            own[start : start + MOST_ANSWERS] for own in places.values() for start in range(0, len(own), MOST_ANSWERS)
        ]
        asks = [Ask(rows[run[0]].user, rows[run[0]].prompt, [rows[place].answer for place in run]) for run in runs]
        found = Found(np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows), bool))
        for run, reply in zip(runs, self.service.score(asks, uncertainty=uncertainty, unknown=unknown), strict=True):
            found.reward[run], found.deviation[run], found.known[run] = reply
        return found

    def of_one(self, user: str | None, rows: Sequence[Row]) -> Float[np.ndarray, " N"]:
        """See `Backend`."""
        own = [row._replace(user=user) for row in rows]
        return self.score(own, uncertainty=False, unknown="shared", vector=False).reward


def as_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as the table of responses that models read."""
    return as_responses([row.prompt for row in rows], [row.answer for row in rows])


def open_backend(source: Any, service: dict[str, Any]) -> Backend:
    """The backend of a model, of the folder of a saved one, or of a service's URL.

    Args:
      source: one of these.
      service: options of `Service`, for URLs.

    Raises:
      UserError: for anything else.
    """
    if isinstance(source, PersonalReward):
        return Local(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return Remote(Service(url=source, **service))
    if isinstance(source, str | Path):
        saved.about(source)
        return Local(load(source))
    kind = type(source).__name__
    raise UserError(f"reward_function: got a {kind}; give a model, the folder of a saved one, or a service's URL")
