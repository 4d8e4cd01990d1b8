"""Votes and graphs that several tests use."""

from typing import Any

import numpy as np

from copl_jax import graph
from pref_jax.data.preferences import Pairs


def as_pairs(user, chosen, rejected) -> Pairs:
    user, chosen, rejected = (np.asarray(rows, np.int32) for rows in (user, chosen, rejected))
    return Pairs(user, chosen, rejected, np.full(len(user), -1, np.int8), np.arange(len(user)))


def build(pairs: Pairs, num_users: int, num_responses: int, dtype: Any = np.float32) -> Any:
    return graph.build(
        pairs.user, pairs.chosen, pairs.rejected, num_users=num_users, num_responses=num_responses, dtype=dtype
    )


def random_pairs(rng, count, num_users, num_responses) -> Pairs:
    chosen = rng.integers(0, num_responses, count)
    rejected = (chosen + rng.integers(1, num_responses, count)) % num_responses
    return as_pairs(rng.integers(0, num_users, count), chosen, rejected)
