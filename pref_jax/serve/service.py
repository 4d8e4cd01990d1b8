"""A model and a store together: scores, votes, questions, removal; every replica of one store gives the same answers.

Before a user is scored, the store is asked for the revision of their votes; where it is another one than the model was
given, the user is computed again from all votes. So a vote that one replica has acknowledged is in the next score of
every other. What is asked of the store runs in threads of its own, what is asked of the model in one.
"""

import asyncio
import functools
import random
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32

from pref_jax.errors import UserError
from pref_jax.personal import PersonalReward
from pref_jax.serve.faults import unknown_user
from pref_jax.serve.metrics import Metrics
from pref_jax.serve.pools import Pools, TextPair, text_pairs
from pref_jax.serve.reading import Reader
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.errors import StoreUnavailableError
from pref_jax.serve.store.records import Added, Pair, Removed, StoredVote, Vote
from pref_jax.serve.store.store import Store
from pref_jax.serve.texts import ReadText, Text, texts_of
from pref_jax.serve.user_states import Removal, UserStates

T = TypeVar("T")
# Threads for the store, and pairs of which texts that nobody has read yet are read for one question.
STORE_THREADS, NEW_PAIRS = 8, 32
INFORMATION, RANDOM = "expected_information", "random"


class Scored(NamedTuple):
    """Rewards of texts.

    Attributes:
      rewards: float32 [N].
      deviations: float32 [N]; without `uncertainty` they mean nothing.
      read: what was read of each text.
      unknown: of each text, whether its user is not known, so that the reward is that of nobody in particular.
    """

    rewards: Float32[np.ndarray, " N"]
    deviations: Float32[np.ndarray, " N"]
    read: list[ReadText]
    unknown: list[bool]


class Asked(NamedTuple):
    """A pair to show next: what its answer is expected to tell in nats, None where that is not known, and the rule."""

    pair: Pair
    information: float | None
    rule: str


class Questions(NamedTuple):
    """Pairs to show, why these, how many were looked at and how many the user has not voted on."""

    pairs: list[Asked]
    why: str
    considered: int
    left: int


class Service:
    """A personalised reward as a service.

    Example:
      service = Service(pref_jax.load("mine"), Store.open("sqlite:///votes.db"), Limits())
      await service.start()
      await service.score(["ada"], texts_of(["How long?"], ["Seven minutes."]))
    """

    def __init__(self, model: PersonalReward, store: Store, limits: Limits, folder: Path | None = None):
        """Serves a model.

        Args:
          model: as loaded; it belongs to the service from now on.
          store: votes and users; the service closes it when it stops.
          limits: see there.
          folder: where the model was loaded from; removed users are removed there too.

        Raises:
          UserError: for a model of features.
        """
        if model.text is None:
            raise UserError("this model scores features, not texts; use pref_jax.load(...).score in Python")
        self.model, self.text, self.store, self.limits = model, model.text, store, limits
        self.metrics = Metrics()
        self.reader = Reader(model, model.text, limits, self.metrics)
        self.states = UserStates(model, folder)
        self.pools = Pools(store)
        self.ready = False
        self._threads = ThreadPoolExecutor(STORE_THREADS, "store")
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._random = random.Random()
        self.metrics.waiting.set_function(lambda: self.reader.worker.queued)
        self.metrics.kept_bytes.set_function(lambda: self.reader.cache.bytes)

    async def start(self) -> None:
        """Starts the model's thread, in the running event loop."""
        self.reader.worker.start()

    async def stop(self) -> None:
        """Ends all threads once what they do is done, and closes the store."""
        await self.reader.worker.stop()
        self._threads.shutdown(wait=True)
        self.store.close()

    async def ask_store(self, job: Callable[..., T], *arguments: Any, patient: bool = False, **options: Any) -> T:
        """Runs something of the store in a thread.

        Raises:
          StoreUnavailableError: also if the store is silent for too long, as a database is that hangs with its
            connections open, unless the caller is patient; what was asked for may still come to pass.
        """
        run, seconds = functools.partial(job, *arguments, **options), self.limits.store_seconds
        answer = asyncio.get_running_loop().run_in_executor(self._threads, run)
        if patient:
            return await answer
        done, _ = await asyncio.wait({answer}, timeout=seconds)
        if not done:
            answer.cancel()
            raise StoreUnavailableError("silent", f"the store has not answered for {seconds:g} s; try again")
        return answer.result()

    # --- users ---

    async def current(self, user: str) -> bool:
        """Brings what the model knows of a user up to the votes in the store; whether the user is known."""
        if self.states.folder_changed:
            await self.reader.worker.run(self.states.sync)
        if await self.ask_store(self.store.revision, user) != self._revision(user):
            async with self._locks.setdefault(user, asyncio.Lock()):
                # Whoever came first may have done it. Within the lock revisions only grow.
                if await self.ask_store(self.store.revision, user) != self._revision(user):
                    await self._refresh(user)
        return self.states.known(user)

    def _revision(self, user: str) -> int:
        applied = self.states.applied(user)
        return 0 if applied is None else applied.revision

    async def _refresh(self, user: str) -> None:
        found = await self.ask_store(self.store.history, user)
        votes = await self._readable(found.votes)
        read = self.reader.read_votes if self.reader.apart else None
        await self.reader.worker.run(self.states.apply, user, found.revision, votes, read)
        self.metrics.refreshed.inc()

    async def _readable(self, votes: Sequence[StoredVote]) -> Sequence[StoredVote]:
        """Votes of which the model can read both texts, which are read."""
        if not votes:
            return votes
        texts = _texts_of_votes(votes)
        try:
            await self.reader.read(texts)
        except UserError:
            fine = await self.reader.readable(texts)
            keep = [fine[place] and fine[place + len(votes)] for place in range(len(votes))]
            self.metrics.unread_votes.inc(keep.count(False))
            return [vote for vote, good in zip(votes, keep, strict=True) if good]
        return votes

    # --- scores ---

    async def score(
        self, users: Sequence[str | None], texts: Sequence[Text], *, uncertainty: bool = False, shared: bool = False
    ) -> Scored:
        """Rewards of texts, each for its user; to the bit those of `PersonalReward.score`.

        Args:
          users: one for each text; None for nobody in particular.
          texts: at least one.
          uncertainty: also deviations.
          shared: unknown users get the reward of nobody in particular, and are counted.

        Raises:
          UserError: for texts that cannot be read, or where the method has no uncertainty.
          RefusedError: for an unknown user; if too many texts wait.
        """
        known = {user: await self.current(user) for user in dict.fromkeys(users) if user is not None}
        unknown = [user is not None and not known[user] for user in users]
        if any(unknown):
            if not shared:
                raise unknown_user()
            self.metrics.unknown_users.inc(sum(unknown))
        who = [None if strange else user for user, strange in zip(users, unknown, strict=True)]
        read = await self.reader.read(texts)
        if self.reader.apart:
            rows = [one.row for one in read]
            found = await self.reader.worker.run(self.states.rewards, who, rows, uncertainty=uncertainty)
        else:
            named = await self.reader.worker.run(lambda: [self.states.whose(user) for user in who])
            found = await self.reader.rewards(named, texts, read, uncertainty=uncertainty)
        return Scored(found.mean, found.deviation, read, unknown)

    # --- votes ---

    async def add_votes(self, user: str, votes: Sequence[Vote]) -> Added:
        """Stores votes; when it returns they are durable, and in every later score.

        Raises:
          UserError: for texts that the model cannot read; see also `Store.add`.
        """
        await self.reader.check(_texts_of_votes(votes))
        added = await self.ask_store(self.store.add, user, votes)
        choices = {vote.id: vote.choice for vote in votes}
        for name in added.stored:
            self.metrics.votes.labels(choices[name]).inc()
        return added

    async def remove_user(self, user: str) -> tuple[Removed, Removal]:
        """Removes a user from the store, the model and its folder, and what was read of the texts they voted on."""
        await self.current(user)
        async with self._locks.setdefault(user, asyncio.Lock()):
            votes = await self.ask_store(self.store.votes, user)
            # Rewriting a large file takes its time.
            removed = await self.ask_store(self.store.remove_user, user, patient=True)
            if votes:
                self.reader.cache.drop([text.digest for text in _texts_of_votes(votes)])
            return removed, await self.reader.worker.run(self.states.remove, user)

    async def describe(self, user: str) -> dict[str, Any]:
        """What is known of a user.

        Raises:
          RefusedError: if the user is not known.
        """
        if not await self.current(user):
            raise unknown_user()
        belief = await self.reader.worker.run(self.states.describe, user)
        applied = self.states.applied(user)
        votes, how = (0, "as the model was loaded") if applied is None else (applied.votes, applied.how)
        return {"user": user, "votes": votes, "how": how, "belief": belief}

    # --- questions ---

    async def check_pairs(self, pairs: Sequence[Pair]) -> None:
        """Raises `UserError` for pairs whose texts cannot be read."""
        await self.reader.check([text for _, *both in text_pairs(pairs) for text in both])

    async def questions(self, user: str, pairs: Sequence[TextPair], count: int) -> Questions:
        """The pairs to show a user next, by what their answers are expected to tell.

        Pairs that the user has voted on, by their ids, are left out. Of pairs whose texts nobody has read yet, some are
        drawn at random each time, so that a large pool is read little by little.
        """
        await self.current(user)
        answered = {vote.pair for vote in await self.ask_store(self.store.votes, user)}
        left = [one for one in pairs if one.pair.id not in answered]
        if not left:
            return Questions([], "the user has voted on every pair", 0, 0)
        if not self.reader.apart:
            return self._drawn(left, count, "the method reads texts with their user, and has no posterior to go by")
        places, *halves = await self.read_pairs(left)
        found = await self.reader.worker.run(self.states.questions, user, *halves, count)
        if found is None:
            return self._drawn(left, count, "the method has no posterior of this user's taste")
        asked = [Asked(left[places[one.pair]].pair, one.information, INFORMATION) for one in found]
        return Questions(
            asked, "these answers are expected to tell most about the user's taste", len(places), len(left)
        )

    async def read_pairs(self, pairs: Sequence[TextPair]) -> tuple[list[int], list[Any], list[Any]]:
        """Places of the pairs whose texts are read, some at random of those that were not yet; rows of both sides."""
        kept = [all(self.reader.cache.get(text.digest) for text in both) for _, *both in pairs]
        new = [place for place, is_kept in enumerate(kept) if not is_kept]
        some = set(self._random.sample(new, min(len(new), NEW_PAIRS)))
        places = [place for place in range(len(pairs)) if kept[place] or place in some]
        chosen = [pairs[place] for place in places]
        read = await self.reader.read([one.first for one in chosen] + [one.second for one in chosen])
        rows = [one.row for one in read]
        return places, rows[: len(places)], rows[len(places) :]

    def _drawn(self, pairs: Sequence[TextPair], count: int, why: str) -> Questions:
        some = self._random.sample(list(pairs), min(count, len(pairs)))
        return Questions([Asked(one.pair, None, RANDOM) for one in some], f"at random: {why}", len(pairs), len(pairs))


def _texts_of_votes(votes: Sequence[Vote]) -> list[Text]:
    """First responses of all votes, then second ones."""
    prompts = [vote.prompt for vote in votes]
    return texts_of([*prompts, *prompts], [vote.first for vote in votes] + [vote.second for vote in votes])
