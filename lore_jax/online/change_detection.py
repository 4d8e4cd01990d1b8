"""Users whose taste changes suddenly: Page's test on their answers, and alternatives that replace the posterior.

Axis letters: U users, K basis.

Beside the posterior from all answers two alternatives are kept: `reset`, which starts from the prior, and `flipped`,
which starts from the posterior with its weights negated. Each starts where its `evidence` was last zero, and learns
from then on. `evidence` is the log of how much better the alternative has predicted the answers since; when it falls
below zero, it and the alternative start again. An alternative that passes the threshold becomes the posterior: answers
before the change no longer count (or count for the opposite), those after it count as they should.

As long as the posterior's predictions are right, exp(evidence) is, between two restarts, a martingale that begins at 1.
Each alternative therefore raises a false alarm at most once in exp(threshold) answers on average (Page 1954; Lorden
1971).
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
    """The users after one answer each; arguments and refusals as `bayes_filter.update`.

    threshold: alarm when the answers since the presumed change are exp(threshold) times as likely under a rival.
    """
    # A rival may know less than the belief: an answer too large for one of them is refused by all.
    all_three = (tracker.belief, tracker.reset.belief, tracker.flipped.belief)
    belief, reset, flipped = (update(old, z, mask, origin, rule) for old in all_three)
    taken = jnp.ones(len(z), bool)
    for old, new in zip(all_three, (belief, reset, flipped), strict=True):
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
