"""The majority of the other raters of the same pair, where several people voted on it; no reward model at all."""

from experiments.runner.test_labels import load_test_labels, test_signs
from experiments.runner.workspace import Run, scored, test_pairs
from pref_jax.data.checks.majority import majority_margins

METHOD = "leave-one-out majority"


def majority(run: Run) -> None:
    """Scores every test pair by the other users' votes on it; ties and pairs of one rater count half."""

    def score():
        truth = load_test_labels(run, METHOD)
        margins = majority_margins(truth, test_pairs(truth)) * test_signs(run, truth)
        return margins, {"parameters_per_user": 0, "context_pairs": 0}

    scored(run, METHOD, score)
