"""Responses that the fit knew, found again by a digest of their tokens or features: no text, no features are kept.

Axis letters: N responses, K basis.
"""

import hashlib
import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float64, UInt8

from pref_jax.data.text.token_table import TokenTable

SIZE = 16


def _marks(rows: Iterable[bytes]) -> UInt8[np.ndarray, "N 16"]:
    every = b"".join(hashlib.blake2b(row, digest_size=SIZE).digest() for row in rows)
    return np.frombuffer(every, np.uint8).reshape(-1, SIZE)


def marks(rows: Float[np.ndarray, "N D"] | TokenTable) -> UInt8[np.ndarray, "N 16"]:
    """Digests of responses, by their tokens or their features (as float32, to the bit).

    Example:
      >>> marks(np.zeros((2, 3), np.float32)).shape
      (2, 16)
    """
    if isinstance(rows, TokenTable):
        return _marks(rows.flat[start:end].tobytes() for start, end in itertools.pairwise(rows.offsets))
    return _marks(np.ascontiguousarray(row, np.float32).tobytes() for row in rows)


class KnownResponses:
    """Free rewards of responses by their digest."""

    def __init__(self, marks: UInt8[np.ndarray, "N 16"], free: Float[np.ndarray, "N K"]):
        """Digests, each once, and free rewards."""
        self.marks, self.free = marks, np.asarray(free, np.float32)
        self._rows = {mark.tobytes(): row for row, mark in enumerate(marks)}

    def add_to(self, z: Float64[np.ndarray, "M K"], own: UInt8[np.ndarray, "M 16"]) -> Float64[np.ndarray, "M K"]:
        """Basis rewards of responses with these digests, the free part of the known ones added."""
        rows = np.array([self._rows.get(mark.tobytes(), -1) for mark in own], np.int64)
        return z + np.where(rows[:, None] < 0, 0, self.free[rows])
