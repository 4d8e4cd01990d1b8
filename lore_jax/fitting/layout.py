"""Where the votes of a joint fit stand, and the two products with their features that
`lore_jax.fitting.variable_projection` takes.

Axis letters: U users, L lanes (`lore_jax.lanes`), E further lanes, n votes per lane
(padded), P votes (flat), N responses, D features, K basis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lore_jax.lanes import lay_out
from pref_jax.comparisons import Comparisons
from pref_jax.ragged import group_by


class Layout(NamedTuple):
    """Votes sorted by user, and where each stands: `user`, `lane`, `slot`, `chosen`, `rejected` [P]; `place [n L]`, P
    for none; `share [n L]`, 1 / the user's votes, 0 for none; `owner [E]` of further lanes.
    """

    user: Array
    lane: Array
    slot: Array
    chosen: Array
    rejected: Array
    place: Array
    share: Array
    owner: Array


def layout(votes: Comparisons, num_users: int) -> Layout:
    """Arrays of a `Layout` from checked votes."""
    groups = group_by(votes.user, num_users)
    user, chosen, rejected = (values[groups.order].astype(np.int32) for values in votes[:3])
    lanes = lay_out(groups.counts, rows=num_users)
    lane, slot = lanes.lane.astype(np.int32), lanes.place.astype(np.int32)
    width = lanes.shape[1] if len(lanes.owner) else int(groups.counts.max(initial=1))
    place = np.full((width, lanes.shape[0]), len(user), np.int32)
    place[slot, lane] = np.arange(len(user))
    counts = np.append(groups.counts, groups.counts[lanes.owner])
    share = ((place < len(user)) / np.maximum(counts, 1)).astype(np.float32)
    return Layout(*map(jnp.asarray, (user, lane, slot, chosen, rejected, place, share, lanes.owner)))


class Data(NamedTuple):
    """Differences of the votes' features `rows [P D]`, or the responses' features [N D] where those are fewer;
    the scale [D] that they are divided by; the layout.
    """

    rows: Array
    scale: Array
    votes: Layout

    def responses(self, matrix: Float[Array, "D K"]) -> Float[Array, "n K L"]:
        """(phi_chosen - phi_rejected)ᵀ matrix of every vote, zero where there is none."""
        flat = self.rows @ (matrix / self.scale[:, None])
        if not self._differences:
            flat = flat[self.votes.chosen] - flat[self.votes.rejected]
        padded = jnp.concatenate([flat, jnp.zeros_like(flat[:1])])
        return jnp.moveaxis(padded[self.votes.place], 2, 1)

    def pull(self, force: Float[Array, "n L"], weights: Float[Array, "K U"]) -> Float[Array, "D K"]:
        """The transpose: sum over votes of force times the difference, to each of the user's weights."""
        flat = force[self.votes.slot, self.votes.lane][:, None] * weights.T[self.votes.user]
        if not self._differences:
            count = len(self.rows)
            flat = jax.ops.segment_sum(flat, self.votes.chosen, count) - jax.ops.segment_sum(
                flat, self.votes.rejected, count
            )
        return (self.rows.T @ flat) / self.scale[:, None]

    @property
    def _differences(self) -> bool:
        return len(self.rows) == len(self.votes.user)
