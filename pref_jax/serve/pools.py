"""Pools of pairs as a service keeps them: read and digested once, and again when the store has other pairs."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from pref_jax.serve.store.records import Pair
from pref_jax.serve.store.store import Store
from pref_jax.serve.texts import Text, texts_of

# Characters of responses that are kept at most; a larger pool is read for each question.
MOST = 64 << 20


class TextPair(NamedTuple):
    """A pair, and its two responses as texts to be read."""

    pair: Pair
    first: Text
    second: Text


def text_pairs(pairs: Sequence[Pair]) -> list[TextPair]:
    """The pairs with their texts.

    Raises:
      UserError: for empty texts, or messages that are none.
    """
    if not pairs:
        return []
    prompts = [pair.prompt for pair in pairs]
    texts = texts_of([*prompts, *prompts], [pair.first for pair in pairs] + [pair.second for pair in pairs])
    return [TextPair(*row) for row in zip(pairs, texts[: len(pairs)], texts[len(pairs) :], strict=True)]


class _Kept(NamedTuple):
    state: tuple[int, int]
    pairs: list[TextPair]
    characters: int


class Pools:
    """The pools of a store that were asked for last; any thread may call it.

    Example:
      pools = Pools(store)
      pools.get("jokes")[0].first.response
    """

    def __init__(self, store: Store, most: int = MOST):
        """Keeps at most so many characters."""
        self._store, self._most, self._lock = store, most, threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def get(self, pool: str) -> list[TextPair]:
        """All pairs of a pool in the order in which they were added; none if there is no such pool."""
        # Asked before the pairs: should some be added in between, they are read once more, and never missed.
        state = self._store.pool_state(pool)
        with self._lock:
            kept = self._kept.pop(pool, None)
            if kept is not None and kept.state == state:
                self._kept[pool] = kept
                return kept.pairs
        pairs = text_pairs(self._store.pairs(pool))
        characters = sum(len(pair.first.response) + len(pair.second.response) for pair in pairs)
        if pairs and characters <= self._most:
            with self._lock:
                self._kept[pool] = _Kept(state, pairs, characters)
                while sum(one.characters for one in self._kept.values()) > self._most:
                    self._kept.popitem(last=False)
        return pairs

    def drop(self, pool: str) -> None:
        """Lets go of a pool."""
        with self._lock:
            self._kept.pop(pool, None)
