"""Where a user's reward differs from that of nobody in particular, as pairs that people can read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pref_jax.serve.pools import TextPair
from pref_jax.serve.service import Service
from pref_jax.serve.store.records import Pair

_BOUND = 1.96


class Contrast(NamedTuple):
    """A pair and the chance, by the reward, that its first answer is preferred, where one of the two is.

    Attributes:
      pair: the pair.
      own: by the user's reward.
      low, high: where it is believed to be with 95 %; None where the method has no posterior.
      everyone: by the reward of nobody in particular.
    """

    pair: Pair
    own: float
    low: float | None
    high: float | None
    everyone: float


class Contrasts(NamedTuple):
    """The pairs of most difference, the greatest first, each of another prompt; and how many pairs were compared."""

    pairs: list[Contrast]
    considered: int


async def contrasts(service: Service, user: str, pairs: Sequence[TextPair], count: int) -> Contrasts:
    """Pairs on which the user's reward and that of nobody in particular differ most.

    Chances are by Bradley and Terry's model, the logistic function of a difference of rewards. Methods that read texts
    with their user have none. A large pool is read little by little, as by `Service.questions`.

    Raises:
      RefusedError: if too many texts wait.
    """
    if not service.reader.apart or not await service.current(user):
        return Contrasts([], 0)
    places, first, second = await service.read_pairs(pairs)
    own, everyone, deviations = await service.reader.worker.run(service.states.margins, user, first, second)
    gaps = np.abs(_chance(own) - _chance(everyone))
    found: dict[str, Contrast] = {}
    for place in np.argsort(-gaps, kind="stable"):
        pair = pairs[places[place]].pair
        if len(found) < count and str(pair.prompt) not in found:
            spread = None if deviations is None else _BOUND * deviations[place]
            low, high = (None if spread is None else float(_chance(own[place] + end * spread)) for end in (-1, 1))
            chances = float(_chance(own[place])), low, high, float(_chance(everyone[place]))
            found[str(pair.prompt)] = Contrast(pair, *chances)
    return Contrasts(list(found.values()), len(places))


def _chance(margin: Any) -> Any:
    """The logistic function."""
    small = np.clip(np.asarray(margin, np.float64), -60, 60)
    return 1 / (1 + np.exp(-small))
