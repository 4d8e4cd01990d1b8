"""Normalise-then-sum with each user's own weights: basis rewards normalised in their group, then weighted and summed.

    R_i = sum_k w_uk (z_ik - mean_g z_k) / (std_g z_k + 1e-4)

g: the group of completions of one prompt for one user. Source: GDPO, arXiv 2601.05242, as TRL's `normalize_then_sum`
has it, with a user's weights in place of `reward_weights`. Weights cannot be put into rewards before a trainer
normalises them: dividing w z by its own spread leaves nothing of w but its sign.

Axis letters: N completions, K basis rewards.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from pref_jax.errors import UserError
from pref_jax.integrations.scoring import Options, Scored
from pref_jax.personal import Components

_SMALL = 1e-4


def normalised_sum(
    parts: Components, groups: Int[np.ndarray, " N"], there: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """R of every completion.

    Args:
      parts: weights and basis rewards.
      groups: number of each completion's group.
      there: which completions take part; R of the others is 0.

    Example:
      >>> parts = Components(np.array([[2.0], [2.0]]), np.array([[0.0], [1.0]]))
      >>> normalised_sum(parts, np.array([0, 0]), np.array([True, True])).round(2).tolist()
      [-1.41, 1.41]
    """
    found = np.zeros(len(groups))
    for group in np.unique(groups[there]):
        rows = there & (groups == group)
        z = parts.basis[rows]
        spread = z.std(axis=0, ddof=1) if len(z) > 1 else np.zeros(z.shape[1])
        found[rows] = (parts.weights[rows] * (z - z.mean(axis=0)) / (spread + _SMALL)).sum(axis=1)
    return found


def group_numbers(keys: Sequence[Any], size: int | None = None) -> Int[np.ndarray, " N"]:
    """Numbers of groups: runs of equal keys, or `size` completions each.

    Raises:
      UserError: if `size` does not divide them, or a group holds different keys.

    Example:
      >>> group_numbers(["a", "a", "b"]).tolist()
      [0, 0, 1]
    """
    if size is not None:
        if size < 1 or len(keys) % size:
            raise UserError(
                f"group_size: {len(keys)} completions are no groups of {size}; give the number of generations, and let "
                "each process have whole groups"
            )
        found = np.arange(len(keys)) // size
        if any(keys[place] != keys[place - place % size] for place in range(len(keys))):
            raise UserError(f"group_size: {size} completions in a row are not of one prompt and user; give another")
        return found
    new = [place > 0 and key != keys[place - 1] for place, key in enumerate(keys)]
    return np.cumsum(new) if new else np.zeros(0, np.int64)


def check_vector(options: Options) -> None:
    """Raises `UserError` where `vector` is asked for with what it has no place for."""
    if options.vector and (options.centre or options.scale):
        raise UserError("vector: normalises basis rewards in their group, so centre and scale have no place there")


def in_groups(scored: Scored, users: Sequence[Any], prompts: Sequence[Any], group_size: int | None) -> list[float]:
    """Rewards as a trainer takes them: with components their normalised sum in groups; empty answers keep theirs."""
    if scored.components is None:
        return scored.reward.tolist()
    groups = group_numbers(list(zip(users, prompts, strict=True)), group_size)
    found = normalised_sum(scored.components, groups, ~scored.empty)
    return np.where(scored.empty, scored.reward, found).tolist()
