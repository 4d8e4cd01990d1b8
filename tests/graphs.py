"""Votes and graphs that several tests use."""

from typing import Any

import numpy as np

from copl_jax.graph import signed_graph
from pref_jax.comparisons import Comparisons


def as_pairs(user, chosen, rejected) -> Comparisons:
    user, chosen, rejected = (np.asarray(rows, np.int32) for rows in (user, chosen, rejected))
    return Comparisons(user, chosen, rejected, np.full(len(user), -1, np.int8), np.arange(len(user)))


def build(
    pairs: Comparisons, num_users: int, num_responses: int, dtype: Any = np.float32, edges: str = "distinct"
) -> Any:
    sizes: Any = {"num_users": num_users, "num_responses": num_responses}
    return signed_graph.build(*pairs[:3], **sizes, dtype=dtype, edges=edges)


def random_pairs(rng, count, num_users, num_responses) -> Comparisons:
    chosen = rng.integers(0, num_responses, count)
    rejected = (chosen + rng.integers(1, num_responses, count)) % num_responses
    return as_pairs(rng.integers(0, num_users, count), chosen, rejected)
