"""Users who vote, take votes back and score over HTTP while a service is killed or loses its database, and a judge who
compares what they were told with what is stored."""

import asyncio
import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pref_jax
from experiments.benchmarks.load_client import PROMPT, Connection, text, vote
from experiments.benchmarks.served import scores_differ
from experiments.benchmarks.store_crash import as_given, strays, torn
from pref_jax.lm.text_model import FEW
from pref_jax.serve.store.lines import as_line
from pref_jax.serve.store.records import CHOICES, TEACHING, StoredVote, Vote
from pref_jax.serve.store.store import Store

# Seconds until the same is sent again after a refusal.
AGAIN = 0.02
GONE = (OSError, asyncio.IncompleteReadError)


@dataclasses.dataclass
class Voter:
    """One user: what was sent and what was told, over all lives of a service.

    Attributes:
      user: the name.
      calls: votes of each call that was sent.
      pending: the call whose answer is not known; it is sent again before anything else.
      stored: ids that were acknowledged.
      undoing, removed: ids that were asked to be taken back, and of which that was acknowledged.
      statuses: how often each was answered, by ("vote", "take back" or "score", status).
    """

    user: str
    calls: list[list[dict[str, Any]]] = dataclasses.field(default_factory=list)
    pending: list[dict[str, Any]] | None = None
    stored: set[str] = dataclasses.field(default_factory=set)
    undoing: set[str] = dataclasses.field(default_factory=set)
    removed: set[str] = dataclasses.field(default_factory=set)
    statuses: Counter[tuple[str, int]] = dataclasses.field(default_factory=Counter)

    async def live(self, where: tuple[str, int], rng: random.Random, known: Sequence[str], stop: asyncio.Event) -> None:
        """Votes and scores until the service has gone, or until `stop`."""
        connection = Connection(*where)
        try:
            while not stop.is_set():
                if not await self._vote(connection, rng, known):
                    await asyncio.sleep(AGAIN)
                    continue
                if len(self.calls) > 1 and rng.random() < 0.2:
                    await self._take_back(connection, self.calls[-1][0]["id"])
                body = {"user": self.user, "prompt": PROMPT, "responses": [*rng.sample(known, 2), text(rng)]}
                await self._ask(connection, "score", "POST", "/v1/score", body)
        except GONE:
            pass
        finally:
            connection.close()

    async def _vote(self, connection: Connection, rng: random.Random, known: Sequence[str]) -> bool:
        if self.pending is None:
            self.pending = [vote(rng, known) for _ in range(rng.choice((1, 1, 3)))]
            # The first one teaches something, and stays.
            self.pending[0]["choice"] = rng.choice(CHOICES) if self.calls else "first"
            self.calls.append(self.pending)
        path, names = f"/v1/users/{quote(self.user)}/votes", {one["id"] for one in self.pending}
        status, answer = await self._ask(connection, "vote", "POST", path, {"votes": self.pending})
        if status == 200 and {*answer["stored"], *answer["repeated"]} == names:
            self.stored |= names
            self.pending = None
        return status == 200

    async def _take_back(self, connection: Connection, name: str) -> None:
        self.undoing.add(name)
        status, _ = await self._ask(connection, "take back", "DELETE", f"/v1/users/{quote(self.user)}/votes/{name}")
        if status == 200:
            self.removed.add(name)

    async def _ask(self, connection: Connection, kind: str, *what: Any) -> tuple[int, Any]:
        status, answer = await connection.ask(*what)
        self.statuses[kind, status] += 1
        return status, answer


def told(voters: Sequence[Voter]) -> dict[str, int]:
    """Counts of what users were told: a refusal is a 503, an error anything else that is not 200."""
    statuses = Counter[int]()
    for one in voters:
        for (_, status), number in one.statuses.items():
            statuses[status] += number
    counts = {"requests": statuses.total(), "acknowledged": sum(len(one.stored) for one in voters)}
    return counts | {"refused": statuses[503], "errors": statuses.total() - statuses[200] - statuses[503]}


def judge(url: str, voters: Sequence[Voter]) -> Counter[str]:
    """What is wrong in a store: every count must be 0.

    Returns:
      "lost": acknowledged votes that are not there, and those that were taken back and are. "half": votes of a call
      that are there without the others, or say something else than was sent. "doubled": votes that are there twice.
      "stray": texts that nothing names.
    """
    with Store.open(url) as store:
        there, stray = list(store.export()), strays(store)
    names = {found.id for _, found in there}
    undoing = set[str]().union(*(one.undoing for one in voters))
    acknowledged = set[str]().union(*(one.stored for one in voters)) - undoing
    removed = set[str]().union(*(one.removed for one in voters))
    sent = {given["id"]: (one.user, Vote(**given)) for one in voters for call in one.calls for given in call}
    half = {found.id for user, found in there if sent.get(found.id) != (user, as_given(found))}
    for call in (call for one in voters for call in one.calls):
        half |= torn({given["id"] for given in call}, names, undoing)
    lost = (acknowledged - names) | (removed & names)
    return Counter(lost=len(lost), half=len(half), doubled=len(there) - len(names), stray=stray)


def different_scores(folder: Path, store: str, where: str, responses: Sequence[str]) -> int:
    """Users whose scores by a service are not, to the bit, those of a fresh model that was given the stored votes.

    Args:
      folder: of the model.
      store: its address.
      where: the service's address.
      responses: that are scored.
    """
    votes: dict[str, list[StoredVote]] = {}
    with Store.open(store) as opened:
        for user, found in opened.export():
            votes.setdefault(user, []).append(found)
    model = pref_jax.load(folder, batch_size=FEW)
    rows = {user: [as_line(user, one) for one in own if one.choice in TEACHING] for user, own in votes.items()}
    return sum(scores_differ(model, user, own, responses, [where]) for user, own in rows.items())
