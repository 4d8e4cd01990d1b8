"""The group oracle: the same transformer, told every user's true group, with an expert for each group.

No method can know more about users than their group where groups are all that tastes depend on; so this is what
CoPL could reach at best.
"""

import numpy as np

from experiments import reward_model
from experiments.runner.test_labels import load_groups
from experiments.runner.workspace import Run, method_folder, scored

METHOD = "group oracle"


def group_numbers(run: Run, reader: str) -> np.ndarray | None:
    """int32 [U] number of each user's group in alphabetical order; None unless every user has one."""
    groups = load_groups(run, reader)
    if not groups or any(name is None for name in groups):
        return None
    return np.unique(np.array(groups, str), return_inverse=True)[1].astype(np.int32)


def oracle(run: Run) -> None:
    """Trains on all seen users' pairs and scores, unless that is done or the data has no groups."""
    groups = group_numbers(run, METHOD)
    if groups is None:
        return
    scored(
        run,
        METHOD,
        lambda: reward_model.train_and_score(
            run,
            method_folder(run, METHOD),
            routing="groups",
            num_experts=int(groups.max()) + 1,
            table=groups,
        ),
    )
