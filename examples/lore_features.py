"""LoRe on features of your own: fit, score, a new user, save and load.

    python examples/lore_features.py

Here 12 users of two opposite tastes compare responses of 8 features; bring your own arrays instead.
"""

import tempfile

import numpy as np

import lore_jax
from pref_jax.comparisons import Comparisons


def made_up(users: int = 12, votes: int = 20) -> tuple[np.ndarray, Comparisons]:
    """Features [N D] of responses, and who preferred which row to which."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 8)).astype(np.float32)
    user = np.repeat(np.arange(users), votes)
    first, second = rng.integers(0, 200, (2, len(user)))
    likes_first = (features[first, 0] > features[second, 0]) == (user % 2 == 0)
    names = np.array([f"user-{number:02d}" for number in user])
    return features, Comparisons(names, np.where(likes_first, first, second), np.where(likes_first, second, first))


def main() -> None:
    """What the README shows."""
    features, comparisons = made_up()
    model = lore_jax.fit(features, comparisons)  # holds out some votes, by which it chooses
    print(model)  # kind, rank, gain over the shared reward with its standard error
    print(model.score("user-03", None, features[:4]))
    liked, disliked = features[features[:, 0] > 1], features[features[:, 0] < -1]
    model.add_votes("you", (liked[:5], disliked[:5]))  # a new user: solved, nothing is trained
    print(model.score("you", None, features[:4], uncertainty=True))
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/mine")
        print(lore_jax.load(f"{folder}/mine").rank("you", None, features[:4]))


if __name__ == "__main__":
    main()
