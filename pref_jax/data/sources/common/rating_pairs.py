"""Comparisons that follow from ratings: of two responses to one prompt that a person rated, the better one.

Axis letters: R ratings, P pairs.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, Shaped

from pref_jax.data.schema import OUTCOMES
from pref_jax.ragged import last_rows, starts


def rating_pairs(
    user: Int[np.ndarray, "R"],
    response: Int[np.ndarray, "R"],
    prompt: Int[np.ndarray, "R"],
    rating: Float[np.ndarray, "R"],
    split: Shaped[np.ndarray, "R"],
    *,
    rng: np.random.Generator,
    per_response: int = 4,
) -> dict[str, Any]:
    """Columns of comparisons between ratings of one user, one prompt and one split.

    Up to 2 `per_response` + 1 ratings are compared each with each. More are laid in a ring at random, and each is
    compared with the `per_response` that follow it: a response is then in 2 `per_response` pairs. No pair comes twice.
    Where a user rated a response more than once in a split, the last row counts.

    Args:
      user: rows of users.
      response: rows of responses.
      prompt: number of each response's prompt.
      rating: finite; compared and subtracted as float32, as tables hold them.
      split: words.
      rng: of the rings.
      per_response: see above.

    Returns:
      `user`, `chosen`, `rejected` int64 [P]; `split`, `outcome` [P]: "preferred", or "tie" where equal; `strength`
      [P], an Arrow array: the difference of the ratings, null for ties; `rated` bool [P], all True.

    Example:
      >>> one, rating, split = np.zeros(2, int), np.array([3.0, 5.0]), np.array(["train", "train"])
      >>> rating_pairs(one, np.arange(2), one, rating, split, rng=np.random.default_rng(0))["chosen"]
      array([1])
    """
    words, part = np.unique(np.asarray(split, dtype=str), return_inverse=True)
    key = np.stack([np.asarray(user), np.asarray(prompt), part.ravel()])
    same, group = np.unique(key, axis=1, return_inverse=True)
    place = group.ravel() * (int(np.max(response, initial=0)) + 1) + response
    last = last_rows(place)
    group = group.ravel()[last]
    ring = last[np.lexsort((rng.random(len(last)), group))]
    sizes = np.bincount(group, minlength=same.shape[1])
    size, start = np.repeat(sizes, sizes), np.repeat(starts(sizes), sizes)
    here = np.arange(len(ring)) - start
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for step in range(1, per_response + 1):
        # Across an even ring each pair would be met from both ends.
        reach = (2 * step < size) | ((2 * step == size) & (here < step))
        left.append(ring[reach])
        right.append(ring[(start + (here + step) % np.maximum(size, 1))[reach]])
    return _columns(np.concatenate(left), np.concatenate(right), user, response, rating, words[part.ravel()])


def _columns(left: Any, right: Any, user: Any, response: Any, rating: Any, split: Any) -> dict[str, Any]:
    value = np.asarray(rating, np.float32).astype(np.float64)
    better = value[left] >= value[right]
    chosen, rejected = np.where(better, left, right), np.where(better, right, left)
    difference = value[chosen] - value[rejected]
    # Two finite float32 numbers may lie further apart than the largest of them.
    strength = np.minimum(difference, np.finfo(np.float32).max).astype(np.float32)
    return {
        "user": np.asarray(user, np.int64)[chosen],
        "chosen": np.asarray(response, np.int64)[chosen],
        "rejected": np.asarray(response, np.int64)[rejected],
        "split": split[chosen],
        "outcome": np.where(difference > 0, OUTCOMES[0], OUTCOMES[1]),
        "strength": pa.array(strength, mask=difference == 0),
        "rated": np.ones(len(left), bool),
    }
