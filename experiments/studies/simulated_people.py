"""Simulated people who vote through a service's endpoints, as its page does, on pairs of a pool.

Axis letters: U people, n pairs of the pool, S points at which weights are looked at, K basis.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float64

from pref_jax.data.sources.synthetic.world import Truth, WorldConfig, voted_margins
from pref_jax.errors import UserError
from pref_jax.serve.store.records import Pair

POOL = "study"
# Of one request that makes a pool.
PAIRS_AT_A_TIME = 500


class Client(Protocol):
    """What is needed of `httpx.Client` and `starlette.testclient.TestClient`."""

    def get(self, url: str) -> Any:
        """A request."""

    def post(self, url: str, *, json: Any) -> Any:
        """A request with a body."""


def opinions(
    settings: WorldConfig, truth: Truth, pairs: Sequence[Pair], rng: np.random.Generator
) -> Bool[np.ndarray, "U n"]:
    """Whether each of the unseen users of a world says that the first of a pair is better, should they be asked.

    By their tastes and with the world's noise, equal ratings broken at random once for each response. Whatever else a
    person is asked, they say the same of a pair.

    Args:
      settings: of the world.
      truth: behind it.
      pairs: by ids, the rows of both responses (`experiments.demo.voted_pairs`).
      rng: of the noise.
    """
    rows = np.array([pair.id.split("-") for pair in pairs], np.int64)
    ratings = truth.levels + rng.uniform(0, 1e-3, truth.levels.shape)
    margins = truth.tastes[settings.seen_users :] @ (ratings[rows[:, 0]] - ratings[rows[:, 1]]).T
    return (voted_margins(settings, margins.ravel(), rng) > 0).reshape(margins.shape)


def make_pool(client: Client, pairs: Sequence[Pair]) -> None:
    """Puts the pairs into the service's pool."""
    for start in range(0, len(pairs), PAIRS_AT_A_TIME):
        some = [
            {"id": pair.id, "prompt": pair.prompt, "first": pair.first, "second": pair.second}
            for pair in pairs[start : start + PAIRS_AT_A_TIME]
        ]
        _body(client.post(f"/v1/pools/{POOL}", json={"pairs": some}))


def answer_asked(
    client: Client,
    user: str,
    pairs: Sequence[Pair],
    says: Bool[np.ndarray, " n"],
    points: Sequence[int],
    *,
    ahead: int = 0,
) -> Float64[np.ndarray, "S K"]:
    """Weights that the service believes in after so many answers, each to a pair that it asks about.

    Args:
      client: of the service, which has the pairs in its pool.
      user: a new user of the service.
      pairs: of the pool.
      says: of each pair, whether the user prefers its first response.
      points: numbers of answers, rising, from 1.
      ahead: pairs that are fetched at a time, as by the service's page: the next one is shown while the last answer is
        on its way, so that it was chosen before that; then others are fetched. 0: each is chosen after the last answer.

    Raises:
      UserError: if the service asks nothing more.
    """
    places, found = {pair.id: place for place, pair in enumerate(pairs)}, []
    queue = _asked(client, user, max(ahead, 1))
    shown, done = next(iter(queue), None), set[str]()
    for number in range(1, points[-1] + 1):
        if shown is None:
            raise UserError(f"the pool has no pair left after {number - 1} answers; give it more, or ask less")
        place = places[shown["id"]]
        done.add(shown["id"])
        _vote(client, user, [(pairs[place], bool(says[place]))], shown["asked"])
        if number in points:
            found.append(weights(client, user))
        # On the page the next one is there before the service has answered.
        shown = next((one for one in queue if one["id"] not in done), None) if ahead else None
        queue = _asked(client, user, max(ahead, 1)) if number < points[-1] else []
        shown = shown or next(iter(queue), None)
    return np.stack(found)


def _asked(client: Client, user: str, count: int) -> list[dict[str, Any]]:
    return _body(client.post(f"/v1/users/{user}/ask", json={"pool": POOL, "count": count}))["pairs"]


def answer_drawn(
    client: Client,
    user: str,
    pairs: Sequence[Pair],
    says: Bool[np.ndarray, " n"],
    points: Sequence[int],
    rng: np.random.Generator,
) -> Float64[np.ndarray, "S K"]:
    """`answer_asked`, but to pairs that are drawn at random."""
    order, found = rng.permutation(len(pairs)), []
    if len(order) < points[-1]:
        raise UserError(f"the pool has {len(order)} pairs; give it {points[-1]} or more, or ask less")
    for start, stop in zip((0, *points), points, strict=False):
        _vote(client, user, [(pairs[place], bool(says[place])) for place in order[start:stop]], "random")
        found.append(weights(client, user))
    return np.stack(found)


def weights(client: Client, user: str) -> Float64[np.ndarray, " K"]:
    """Those of the basis rewards, as the service believes in them."""
    return np.array(_body(client.get(f"/v1/users/{user}"))["belief"]["weights"], np.float64)


def _vote(client: Client, user: str, given: Sequence[tuple[Pair, bool]], rule: str) -> None:
    votes = [
        {"prompt": pair.prompt, "first": pair.first, "second": pair.second, "pair": pair.id, "asked": rule}
        | {"choice": "first" if says_first else "second"}
        for pair, says_first in given
    ]
    _body(client.post(f"/v1/users/{user}/votes", json={"votes": votes}))


def _body(answer: Any) -> Any:
    """What was answered."""
    if answer.status_code != 200:
        raise UserError(f"the service answered {answer.status_code}: {answer.text}")
    return answer.json()
