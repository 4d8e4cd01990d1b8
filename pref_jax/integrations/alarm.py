"""An alarm for rewards that never change: a policy learns nothing from them, and nothing fails.

A template that prefills the answer, a prompt that fills the whole window, or a broken extraction of answers do that.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pref_jax.progress import log

# Different answers for one user by which rewards are judged, and users that are watched at a time.
ENOUGH, MOST_USERS = 8, 4096


class _Watch(NamedTuple):
    texts: set[int]
    rewards: list[float]


class ConstantAlarm:
    """Watches each user's rewards; told once, on standard error, and in `raised`.

    Attributes:
      raised: whether `ENOUGH` different answers in a row had one reward for some user.
    """

    def __init__(self) -> None:
        self.raised = False
        self._seen: dict[str | None, _Watch] = {}
        self._lock = threading.Lock()

    def watch(
        self, users: Sequence[str | None], answers: Sequence[str], rewards: Float[np.ndarray, " N"]
    ) -> list[str | None]:
        """Notes rewards of completions as they were generated; returns users for whom they are constant."""
        with self._lock:
            if len(self._seen) > MOST_USERS:
                self._seen.clear()
            found = [
                user
                for user, text, reward in zip(users, answers, rewards.tolist(), strict=True)
                if self._constant(user, text, reward)
            ]
            told, self.raised = self.raised, self.raised or bool(found)
        if found and not told:
            log(
                f"warning: {ENOUGH} different answers in a row have the same reward, so nothing can be learned from "
                "it; look at what is scored: is the answer cut off, empty but for a template, or beyond max_length?"
            )
        return found

    def _constant(self, user: str | None, text: str, reward: float) -> bool:
        watch = self._seen.setdefault(user, _Watch(set(), []))
        watch.texts.add(hash(text.strip()))
        watch.rewards.append(reward)
        if len(watch.texts) < ENOUGH and len(watch.rewards) < 64 * ENOUGH:
            return False
        del self._seen[user]
        low, high = min(watch.rewards), max(watch.rewards)
        return len(watch.texts) >= ENOUGH and high - low <= 1e-6 * max(abs(low), abs(high))
