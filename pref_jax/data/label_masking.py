"""What a method is shown of a data set: no groups, and test pairs without their answers.

Axis letters: U users, P comparisons.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Float32

from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import in_splits

# Arrow makes these functions at import, out of sight of a static type checker.
pc: Any = pyarrow.compute


def mask_labels(preferences: Preferences, seed: int) -> Preferences:
    """The same tables, every group null, the two responses of each test pair in an order drawn by `seed`.

    Strengths and choices of test pairs become null. Test ratings are left out.

    The draw does not depend on the answers: flipping test answers gives the same tables. Row numbers stay, so that
    `label_signs` turns margins of these pairs into margins of the real ones.

    Args:
      preferences: with answers.
      seed: of the draw.
    """
    chosen, rejected = (preferences.comparisons[name].to_numpy() for name in ("chosen", "rejected"))
    test = in_splits(preferences.comparisons["split"], ("test",))
    turned = np.random.default_rng([seed, 17]).random(len(test)) < 0.5
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    comparisons = _replaced(preferences.comparisons, "chosen", np.where(test, np.where(turned, high, low), chosen))
    comparisons = _replaced(comparisons, "rejected", np.where(test, np.where(turned, low, high), rejected))
    for name in ("strength", "choice"):
        told = pc.if_else(pa.array(test), pa.scalar(None, comparisons[name].type), comparisons[name])
        comparisons = comparisons.set_column(comparisons.schema.get_field_index(name), name, told)
    users = _replaced(preferences.users, "group", [None] * preferences.num_users)
    ratings = preferences.ratings.filter(pa.array(~in_splits(preferences.ratings["split"], ("test",))))
    return dataclasses.replace(preferences, users=users, comparisons=comparisons, ratings=ratings)


def _replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def label_signs(shown: Preferences, truth: Preferences) -> Float32[np.ndarray, "P"]:
    """+1 for each test pair that `shown` has the way round that the user answered, -1 for the others.

    Raises:
      ValueError: if the two are not of the same data set.
    """
    ours, theirs = shown.pairs("test"), truth.pairs("test")
    if np.array_equal(ours.row, theirs.row) and np.array_equal(ours.user, theirs.user):
        same = (ours.chosen == theirs.chosen) & (ours.rejected == theirs.rejected)
        flipped = (ours.chosen == theirs.rejected) & (ours.rejected == theirs.chosen)
        if (same | flipped).all():
            return np.where(same, 1, -1).astype(np.float32)
    raise ValueError("the two tables are not of the same data set")
