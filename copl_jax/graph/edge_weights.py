"""How much each edge of the signed graph weighs: votes of every kind as edges.

    a preference      1 for the chosen and the rejected response; of strength s, s / mean(s) within [1/4, 4]
    a tie             a positive and a negative edge of 1/2 to either response
    a choice of k+1   1 for the chosen response, 1/k for each of the k others: a long ranking weighs no more than a pair

A "distinct" edge weighs as much as the strongest of the user's votes that made it, so that repeating a vote changes
nothing; a "counted" one as much as all of them together, where a choice counts once for the chosen response as well.
With plain preferences, none of them repeated, all weights are 1.

Axis letters: P pairs, R rows.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from copl_jax.graph import signed_graph
from copl_jax.graph.signed_graph import SignedGraph
from pref_jax.comparisons import Comparisons
from pref_jax.graded import choice_sizes
from pref_jax.likelihood import Scale

# A strength counts at most so much more, or less, than the mean one: one loud vote must not drown a user's others.
MOST = 4.0


class EdgeVotes(NamedTuple):
    """Rows that make edges, and what their positive and negative edges weigh; ties stand both ways round."""

    user: Int[np.ndarray, "R"]
    chosen: Int[np.ndarray, "R"]
    rejected: Int[np.ndarray, "R"]
    weight: Float32[np.ndarray, "R 2"]


def edge_votes(votes: Comparisons, scale: Scale, *, edges: str = "distinct") -> EdgeVotes:
    """The rows of votes, whose strengths are read as `scale` says, for `edges` as in `signed_graph.build`.

    Example:
      >>> votes = Comparisons(np.zeros(1, int), np.zeros(1, int), np.ones(1, int), tie=np.array([True]))
      >>> edge_votes(votes, Scale(ties=True)).chosen
      array([0, 1])
    """
    count = len(votes.user)
    weight = np.ones((count, 2))
    if votes.strength is not None and scale.use != "ignore":
        ratio = np.clip(np.asarray(votes.strength, np.float64) / scale.mean, 1 / MOST, MOST)
        weight *= np.where(np.isfinite(ratio), ratio, 1)[:, None]
    sides = slice(None) if edges == "counted" else slice(1, 2)
    weight[:, sides] /= choice_sizes(votes)[:, None]
    tie = np.zeros(count, bool) if votes.tie is None else np.asarray(votes.tie, bool)
    weight[tie] = 0.5
    return EdgeVotes(
        user=np.concatenate([votes.user, votes.user[tie]]),
        chosen=np.concatenate([votes.chosen, votes.rejected[tie]]),
        rejected=np.concatenate([votes.rejected, votes.chosen[tie]]),
        weight=np.concatenate([weight, weight[tie]]).astype(np.float32),
    )


def build(
    votes: Comparisons, scale: Scale, *, num_users: int, num_responses: int, edges: str = "distinct"
) -> SignedGraph:
    """`signed_graph.build` of votes of every kind; of plain preferences the same to the bit."""
    rows = edge_votes(votes, scale, edges=edges)
    weight = None if (rows.weight == 1).all() else rows.weight
    return signed_graph.build(*rows[:3], num_users=num_users, num_responses=num_responses, weight=weight, edges=edges)
