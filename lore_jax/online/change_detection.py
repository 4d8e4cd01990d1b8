"""Users whose taste changes at once: Page's test on the answers, and second opinions that replace the first.

Axis letters: U users, K basis.

Beside the belief from all answers stand two rivals: somebody who began `reset`, with the prior, and somebody who
`flipped` round, with the opposite of the belief. Each rival starts where its `evidence` was last zero, and learns from
then on. `evidence` is the logarithm of how much better the rival has predicted the answers since; it restarts at zero,
and the rival with it, when it falls below. Where one passes the threshold, that rival becomes the belief: the answers
before the change count no more (or for the contrary), those after it count as they should.

As long as the belief's predictions are right, exp(evidence) is between two restarts a martingale that begins at 1. Each
rival therefore gives a false alarm once in exp(threshold) answers at most, on average (Page 1954; Lorden 1971).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lore_jax.online.bayes_filter import GaussianPosterior, UpdateRule, predict, select, start, update
from lore_jax.weights.objective import Prior

# log of the answers between two false alarms of one rival, at least and on average.
THRESHOLD = 4.0


class Alternative(NamedTuple):
    """Another belief, and the evidence [U] for it: log of its likelihood over the belief's since they parted."""

    belief: GaussianPosterior
    evidence: Array


class Tracker(NamedTuple):
    """Users under watch: belief, rivals, alarms [U] so far."""

    belief: GaussianPosterior
    reset: Alternative
    flipped: Alternative
    alarms: Array


def opposite(belief: GaussianPosterior) -> GaussianPosterior:
    """Users who want the contrary, known as well."""
    return belief._replace(weights=-belief.weights)


def start_tracker(prior: Prior, num_users: int) -> Tracker:
    """Users of whom nothing is known but the prior."""
    belief = start(prior, num_users)
    none = jnp.zeros(num_users, belief.weights.dtype)
    return Tracker(
        belief, Alternative(belief, none), Alternative(opposite(belief), none), jnp.zeros_like(belief.answers)
    )


def track(
    tracker: Tracker,
    z: Float[Array, "U K"],
    mask: Bool[Array, " U"] | None,
    origin: GaussianPosterior,
    rule: UpdateRule,
    threshold: float = THRESHOLD,
) -> Tracker:
    """The users after one answer each; arguments and refusals as `online.observe`.

    threshold: alarm when the answers since the presumed change are exp(threshold) times as likely under a rival.
    """
    # A rival may know less than the belief: an answer too large for one of them is refused by all.
    everybody = (tracker.belief, tracker.reset.belief, tracker.flipped.belief)
    belief, reset, flipped = (update(old, z, mask, origin, rule) for old in everybody)
    taken = jnp.ones(len(z), bool)
    for old, new in zip(everybody, (belief, reset, flipped), strict=True):
        taken &= new.answers > old.answers
    known = jax.nn.log_sigmoid(predict(tracker.belief, z, rule))

    def weigh(rival: Alternative) -> Array:
        return rival.evidence + jax.nn.log_sigmoid(predict(rival.belief, z, rule)) - known

    first, second = weigh(tracker.reset), weigh(tracker.flipped)
    alarm = jnp.maximum(first, second) > threshold
    belief = select(alarm, select(first >= second, reset, flipped), belief)

    def carry_on(learned: GaussianPosterior, evidence: Array, seed: GaussianPosterior) -> Alternative:
        over = alarm | (evidence <= 0)
        return Alternative(select(over, seed, learned), jnp.where(over, 0, evidence))

    rivals = carry_on(reset, first, origin), carry_on(flipped, second, opposite(belief))
    return select(taken, Tracker(belief, *rivals, tracker.alarms + alarm), tracker)
