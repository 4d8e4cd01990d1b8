"""The look of the texts alone: one regression on lengths, lines, marks, quotes and capitals, no word and no user.

No rival but a check: where it is far above chance, the data's answers can be told by their format.
"""

import numpy as np

from experiments.runner.workspace import Run, load_data, scored, test_pairs
from pref_jax.comparisons import Comparisons
from pref_jax.data.checks import formatting
from pref_jax.data.schema import prompt_ids

METHOD = "formatting-only"


def formatting_alone(run: Run) -> None:
    """Fits on all seen users' pairs, its ridge chosen on prompts held out, and scores, unless that is done."""

    def score():
        data = load_data(run)
        table = formatting.features(data.responses["text"].to_pylist())

        def differences(pairs: Comparisons) -> np.ndarray:
            return table[pairs.chosen] - table[pairs.rejected]

        known = data.pairs(("train", "validation"), seen=True)
        prompt = prompt_ids(data.responses["prompt"])[known.chosen]
        found = formatting.fit(differences(known), prompt, seed=run.seed)
        facts = {"ridge": found.strength, "accuracy_on_held_out_prompts": found.accuracy}
        margins = differences(test_pairs(data)) @ found.weights
        return margins, {"parameters_per_user": 0, "context_pairs": 0, **facts}

    scored(run, METHOD, score)
