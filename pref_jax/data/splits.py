"""Draws that sources share when they split users, prompts and pairs; every draw comes from the generator given.

Axis letters: P pairs, C items (users, prompts), U users.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pref_jax.errors import Faults, UserError
from pref_jax.ragged import group_by, starts


class Drawn(NamedTuple):
    """Which pairs users answer, sorted by user.

    Attributes:
      user: int64 [P].
      pick: int64 [P] number of the pair.
      last: bool [P], True at a user's last pair.
    """

    user: Int[np.ndarray, "P"]
    pick: Int[np.ndarray, "P"]
    last: Bool[np.ndarray, "P"]


def check_options(
    *,
    fractions: Mapping[str, float | int],
    counts: Mapping[str, int] | None = None,
    least: int = 1,
    faults: Faults | None = None,
) -> None:
    """Raises one `UserError` naming every option out of range.

    Args:
      fractions: options from 0 to below 1.
      counts: options of `least` or more.
      least: see `counts`.
      faults: what else is wrong, told with these.
    """
    faults = Faults() if faults is None else faults
    for name, value in fractions.items():
        if not (math.isfinite(value) and 0 <= value < 1):
            faults.add(name, f"is {value}", "give a fraction from 0 to below 1")
    for name, value in (counts or {}).items():
        if value < least:
            faults.add(name, f"is {value}", f"give {least} or more")
    faults.raise_if_any("bad options")


def draw(count: int, fraction: float | int, rng: np.random.Generator) -> Bool[np.ndarray, "C"]:
    """Marks about `fraction` of `count` items: none if 0, otherwise at least one, and always leaves one unmarked."""
    wanted = max(round(fraction * count), 1) if fraction > 0 else 0
    mask = np.zeros(count, bool)
    mask[rng.permutation(count)[: min(wanted, max(count - 1, 0))]] = True
    return mask


def at_most(
    owner: Int[np.ndarray, "P"],
    candidates: Bool[np.ndarray, "P"],
    limit: int | Int[np.ndarray, "P"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "P"]:
    """Marks up to `limit` (one for all, or that of each pair's owner) candidates of each owner, drawn at random."""
    rows = rng.permutation(np.flatnonzero(candidates))
    groups = group_by(owner[rows], 0)
    rows = rows[groups.order]
    mask = np.zeros(len(owner), bool)
    mask[rows[groups.places < np.broadcast_to(limit, len(owner))[rows]]] = True
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


def hold_out_new(
    pair: Int[np.ndarray, "P"], user: Int[np.ndarray, "P"], fraction: float | int, rng: np.random.Generator
) -> Bool[np.ndarray, "P"]:
    """Marks the votes on a fraction of the pairs, at least one and never all.

    Votes that are all on one pair are held out one by one, of users who have others. Where nobody has, none is marked.

    Example:
      >>> hold_out_new(np.array([0, 0, 1, 2]), np.zeros(4, int), 0.2, np.random.default_rng(0)).sum()
      1
    """
    distinct = np.unique(pair)
    if len(distinct) > 1:
        return np.isin(pair, distinct[draw(len(distinct), fraction, rng)])
    every = np.ones(len(user), bool)
    keep = np.ones(int(user.max(initial=-1)) + 1, bool)
    return hold_out(user, every, max(fraction, 1 / max(len(user), 1)), rng, keep=keep)


def whole_choices(choice: Int[np.ndarray, "P"], held: Bool[np.ndarray, "P"]) -> Bool[np.ndarray, "P"]:
    """What is held out, where the rows of a choice (-1: of none) go where its first one goes.

    Example:
      >>> whole_choices(np.array([5, 5, -1]), np.array([True, False, False])).tolist()
      [True, True, False]
    """
    _, first, which = np.unique(choice, return_index=True, return_inverse=True)
    return np.where(choice < 0, held, held[first[which]])


def answers_a_user(
    seen: Bool[np.ndarray, "U"], pairs: int, protocol: str, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "U"], Bool[np.ndarray, "U"]]:
    """How many pairs each user answers, and whether the last is held out for validation (CoPL, arXiv 2503.01658).

    ALL: everyone answers n = `pairs`, of which a seen user's last is held out. AVG: a seen user answers
    n_u ~ U{1..2n-1}, and the last is held out if n_u >= n. Unseen users answer n in both, none held out.
    """
    counts = np.full(len(seen), pairs) if protocol == "ALL" else rng.integers(1, 2 * pairs, size=len(seen))
    counts = np.where(seen, counts, pairs)
    return counts, seen & (counts >= pairs)


def draw_pairs(counts: Int[np.ndarray, "U"], pool: int, rng: np.random.Generator, *, fix: str) -> Drawn:
    """Draws counts[u] distinct ones of `pool` pairs for each user.

    Args:
      counts: pairs of each user.
      pool: number of pairs.
      rng: of all draws.
      fix: what to do where the pool is too small.

    Raises:
      UserError: if a user is to answer more pairs than there are.
    """
    if counts.max(initial=0) > pool:
        raise UserError(f"{fix}: a user is to answer {counts.max()} of a pool of {pool} pairs")
    user = np.repeat(np.arange(len(counts)), counts)
    pick = rng.integers(pool, size=len(user))
    start = starts(counts)
    for one in np.flatnonzero(4 * counts > 3 * pool):  # what is free would be hit ever more seldom by redrawing
        pick[start[one] : start[one] + counts[one]] = rng.permutation(pool)[: counts[one]]
    while True:  # redraw what a user has twice: geometric, so linear in all
        order = np.lexsort((pick, user))
        twice = np.zeros(len(user), bool)
        again = (user[order][1:] == user[order][:-1]) & (pick[order][1:] == pick[order][:-1])
        twice[order[1:][again]] = True
        if not twice.any():
            break
        pick[twice] = rng.integers(pool, size=int(twice.sum()))
    return Drawn(user, pick, np.diff(user, append=-1) != 0)
