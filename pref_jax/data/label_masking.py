"""What a method is shown of a data set: no groups, and test pairs without their answers.

Axis letters: U users, P comparisons.
"""

import dataclasses

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import in_splits


def mask_labels(preferences: Preferences, seed: int) -> Preferences:
    """The same tables, every group null, the two responses of each test pair in an order drawn by `seed`.

    The draw knows nothing of the answers: turning test answers round gives the same tables. Row numbers stay, so that
    margins of these pairs become margins of the real ones by `signs`.

    Args:
      preferences: with answers.
      seed: of the draw.
    """
    chosen, rejected = (preferences.comparisons[name].to_numpy() for name in ("chosen", "rejected"))
    test = in_splits(preferences.comparisons["split"], ("test",))
    turned = np.random.default_rng([seed, 17]).random(len(test)) < 0.5
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    shown = {
        "chosen": np.where(test, np.where(turned, high, low), chosen),
        "rejected": np.where(test, np.where(turned, low, high), rejected),
    }
    comparisons = preferences.comparisons
    for name, column in shown.items():
        place = comparisons.schema.get_field_index(name)
        comparisons = comparisons.set_column(place, comparisons.schema.field(place), pa.array(column, pa.int32()))
    users = preferences.users
    place = users.schema.get_field_index("group")
    users = users.set_column(place, users.schema.field(place), pa.nulls(users.num_rows, pa.string()))
    return dataclasses.replace(preferences, users=users, comparisons=comparisons)


def label_signs(shown: Preferences, truth: Preferences) -> Float32[np.ndarray, "P"]:
    """+1 for each test pair that `shown` has the way round that the user answered, -1 for the others.

    Raises:
      ValueError: if the two are not of the same data set.
    """
    ours, theirs = shown.pairs("test"), truth.pairs("test")
    same = np.array_equal(ours.row, theirs.row) and np.array_equal(ours.user, theirs.user)
    straight = (ours.chosen == theirs.chosen) & (ours.rejected == theirs.rejected) if same else np.zeros(0, bool)
    turned = (ours.chosen == theirs.rejected) & (ours.rejected == theirs.chosen) if same else np.zeros(0, bool)
    if not same or not (straight | turned).all():
        raise ValueError("the two tables are not of the same data set")
    return np.where(straight, 1, -1).astype(np.float32)
