"""Texts to be read, and what was read of them: kept by digest, within bounds.

Axis letters: N texts, F numbers of a text.
"""

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pref_jax.data.schema import MESSAGE
from pref_jax.data.text.token_table import TokenTable
from pref_jax.lm.text_model import Prompt, as_responses

# What an entry takes beside its row.
OVERHEAD = 300
# Digests say nothing to whoever does not have this process's key.
_KEY = secrets.token_bytes(32)


class Text(NamedTuple):
    """One response under its prompt, or a text that is rendered already.

    Attributes:
      prompt: messages as tables hold them.
      response: the answer.
      digest: of both.
      tokens: int32 [L] in place of both, of a rendered text.
      cut: it is rendered and lost its beginning.
    """

    prompt: list[dict[str, Any]]
    response: str
    digest: bytes
    tokens: np.ndarray | None = None
    cut: bool = False


class ReadText(NamedTuple):
    """What is known of a text once it was read.

    Attributes:
      row: float [F] of `PersonalReward.read`; None where the method reads each text with its user.
      tokens: how many were read.
      truncated: the text was longer and lost its beginning.
    """

    row: np.ndarray | None
    tokens: int
    truncated: bool


def texts_of(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Text]:
    """Responses, each under its prompt.

    Raises:
      UserError: for empty texts, or messages that are none.
    """
    return table_texts(as_responses(prompts, responses))


def table_texts(table: pa.Table) -> list[Text]:
    """The rows of a table of responses."""
    return [Text(row["prompt"], row["text"], _digest(row)) for row in table.to_pylist()]


def token_text(tokens: np.ndarray, *, cut: bool) -> Text:
    """A rendered text by its tokens."""
    digest = hashlib.blake2b(b"tokens" + bytes([cut]) + tokens.tobytes(), key=_KEY, digest_size=16).digest()
    return Text([], "", digest, tokens, cut)


def _digest(row: Mapping[str, Any]) -> bytes:
    prompt = [[message["role"], message["content"], message["extra"]] for message in row["prompt"]]
    said = json.dumps([prompt, row["text"], row.get("extra")])
    return hashlib.blake2b(said.encode(), key=_KEY, digest_size=16).digest()


def as_rows(texts: Sequence[Text]) -> pa.Table | TokenTable:
    """What a model reads; either all texts are rendered or none is."""
    if texts[0].tokens is not None:
        own = [text.tokens for text in texts if text.tokens is not None]
        ends = np.cumsum([0, *(len(tokens) for tokens in own)], dtype=np.int64)
        return TokenTable(np.concatenate(own).astype(np.int32), ends, 0)
    prompts = pa.array([text.prompt for text in texts], pa.list_(MESSAGE))
    return pa.table({"prompt": prompts, "text": pa.array([text.response for text in texts], pa.string())})


class ReadCache:
    """What was read, by digest; the least recently used goes first. Any thread may call it.

    Example:
      >>> cache = ReadCache(1000)
      >>> cache.put(b"a", ReadText(np.zeros(4), 3, False))
      >>> cache.get(b"a").tokens
      3
    """

    def __init__(self, most: int):
        """At most so many bytes."""
        self._most, self.bytes, self._lock = most, 0, threading.Lock()
        self._found: OrderedDict[bytes, ReadText] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, digest: bytes) -> ReadText | None:
        """What was read of a text, if it is still there."""
        with self._lock:
            found = self._found.get(digest)
            if found is not None:
                self._found.move_to_end(digest)
            return found

    def put(self, digest: bytes, found: ReadText) -> None:
        """Keeps it, and lets go of the oldest where there is too much."""
        with self._lock:
            self._drop(digest)
            self._found[digest] = found
            self.bytes += _size(found)
            while self.bytes > self._most and len(self._found) > 1:
                self._drop(next(iter(self._found)))

    def drop(self, digests: Sequence[bytes]) -> None:
        """Lets go of these."""
        with self._lock:
            for digest in digests:
                self._drop(digest)

    def _drop(self, digest: bytes) -> None:
        old = self._found.pop(digest, None)
        self.bytes -= 0 if old is None else _size(old)


def _size(found: ReadText) -> int:
    return OVERHEAD + (0 if found.row is None else found.row.nbytes)
