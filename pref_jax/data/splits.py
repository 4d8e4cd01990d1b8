"""Draws that sources share when they split users, prompts and pairs; every draw comes from the generator given.

Axis letters: P pairs, C items (users, prompts).
"""

import math

import numpy as np
from jaxtyping import Bool, Int

from pref_jax.errors import Faults


def check_fractions(**fractions: float | int) -> None:
    """Raises one `UserError` naming every fraction outside [0, 1)."""
    faults = Faults()
    for name, value in fractions.items():
        if not (math.isfinite(value) and 0 <= value < 1):
            faults.add(name, f"is {value}", "give a fraction from 0 to below 1")
    faults.raise_if_any("bad options")


def draw(count: int, fraction: float | int, rng: np.random.Generator) -> Bool[np.ndarray, "C"]:
    """Marks about `fraction` of `count` items: none if 0, otherwise at least one, and always leaves one unmarked."""
    wanted = max(round(fraction * count), 1) if fraction > 0 else 0
    mask = np.zeros(count, bool)
    mask[rng.permutation(count)[: min(wanted, max(count - 1, 0))]] = True
    return mask


def at_most(
    owner: Int[np.ndarray, "P"], candidates: Bool[np.ndarray, "P"], limit: int, rng: np.random.Generator
) -> Bool[np.ndarray, "P"]:
    """Marks up to `limit` candidates of each owner, drawn at random."""
    rows = rng.permutation(np.flatnonzero(candidates))
    rows = rows[np.argsort(owner[rows], kind="stable")]
    owners = owner[rows]
    place = np.arange(len(rows)) - np.searchsorted(owners, owners)
    mask = np.zeros(len(owner), bool)
    mask[rows[place < limit]] = True
    return mask


def hold_out(
    owner: Int[np.ndarray, "P"],
    candidates: Bool[np.ndarray, "P"],
    fraction: float | int,
    rng: np.random.Generator,
    *,
    keep: Bool[np.ndarray, "C"],
) -> Bool[np.ndarray, "P"]:
    """Marks about `fraction` of the candidates, but leaves owners with `keep` at least one of theirs unmarked."""
    kept = at_most(owner, candidates & keep[owner], 1, rng)
    spare = rng.permutation(np.flatnonzero(candidates & ~kept))
    mask = np.zeros(len(owner), bool)
    mask[spare[: round(fraction * int(candidates.sum()))]] = True
    return mask
