"""Whether a reward knows its user, and whether it is right for the right reason: controls of a table of accuracies.

A personal reward is worth something if it is lost when every user gets another's parameters ("shuffled"), turns when a
user's votes are turned round ("reversed"), and does not come from what everyone can see, such as which text is longer
("balanced"). Everything is float64 NumPy on the host.

Axis letters: P pairs, U users, d numbers that a model keeps of a user.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

# What further margins of a method are called: by another user's parameters, and by votes that were turned round.
SHUFFLED, REVERSED = "shuffled", "reversed"
# Of a latent's variance over users: below it the unit says the same of everyone (arXiv 1509.00519).
ACTIVE = 0.005
# Of the users, those that a reward serves worst.
WORST = 0.1


def another_user(seen: Bool[np.ndarray, " U"], seed: int) -> Int64[np.ndarray, " U"]:
    """Whose parameters each user gets: nobody their own, seen ones from seen, unseen from unseen; one alone keeps them.

    Example:
      >>> another_user(np.array([True, True, False]), 0).tolist()
      [1, 0, 2]
    """
    found, rng = np.arange(len(seen)), np.random.default_rng([seed, 31])
    for side in (True, False):
        ring = rng.permutation(np.flatnonzero(seen == side))
        found[ring] = np.roll(ring, 1)
    return found


def removed_share(accuracy: float, shuffled: float, base: float) -> float | None:
    """Which part of the gain over `base` is gone with another user's parameters; None where nothing was gained.

    Example:
      >>> removed_share(0.8, 0.6, 0.6)
      1.0
    """
    return (accuracy - shuffled) / (accuracy - base) if accuracy > base else None


def turned_share(margins: Float[np.ndarray, " P"], reversed_margins: Float[np.ndarray, " P"]) -> float | None:
    """The flip rate: of pairs with a prediction, those that it is the opposite of when the user's votes are turned
    round; None without pairs. Where `reversed_margins` is NaN nothing was turned.
    """
    asked = np.isfinite(reversed_margins) & (margins != 0)
    return float(np.mean(np.sign(margins[asked]) == -np.sign(reversed_margins[asked]))) if asked.any() else None


def balanced_accuracy(
    margins: Float[np.ndarray, " P"], told: Float[np.ndarray, " P"], user: Int[np.ndarray, " P"] | None = None
) -> float | None:
    """Accuracy where the answer that something else gives is right as often as it is wrong.

    The mean of the accuracies on pairs where `told` is positive and where it is negative: 0.5 for a reward that follows
    it, whatever its own accuracy; None where one of the two has no pairs.

    Args:
      margins: of the chosen over the rejected response.
      told: likewise, by what is to be balanced, such as the difference of their lengths.
      user: weighs pairs so that users count alike within both halves; None: pairs count alike.
    """
    parts = []
    right = (margins > 0) + 0.5 * (margins == 0)
    for side in (told > 0, told < 0):
        if not side.any():
            return None
        count = np.ones(len(margins)) if user is None else np.bincount(user[side], minlength=user.max() + 1)[user]
        parts.append(np.average(right[side], weights=1 / count[side]))
    return float(np.mean(parts))


def worst_share(accuracy: Float64[np.ndarray, " U"], share: float = WORST) -> float | None:
    """Mean accuracy of the users that are served worst, at least one; None without users."""
    if not len(accuracy):
        return None
    return float(np.mean(np.sort(accuracy)[: max(1, round(share * len(accuracy)))]))


def active_units(users: Float[np.ndarray, "U d"]) -> float:
    """Share of the latent's numbers that vary over users by more than `ACTIVE`; 0 tells of collapse."""
    return float(np.mean(np.var(np.asarray(users, np.float64), axis=0) > ACTIVE)) if users.size else 0.0


def effective_rank(users: Float[np.ndarray, "U d"]) -> float:
    """In how many directions users differ: exp of the entropy of the covariance's spectrum (Roy and Vetterli, 2007).

    0 where all users are alike.

    Example:
      >>> effective_rank(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
      2.0
    """
    centred = np.asarray(users, np.float64) - np.mean(users, axis=0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    # What rounding leaves of users who are all alike is no direction.
    if not len(values) or values.sum() <= 1e-12 * max(1.0, float(np.sum(np.square(users, dtype=np.float64)))):
        return 0.0
    part = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(part * np.log(part))))
