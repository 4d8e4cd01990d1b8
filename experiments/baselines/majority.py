"""The majority of the other raters of the same pair, where several people voted on it; no reward model at all."""

from experiments.stages import Run, load_data, scored, test_pairs
from pref_jax.data.majority import majority_margins

METHOD = "majority of others"


def majority(run: Run) -> None:
    """Scores every test pair by the other users' votes on it; ties and pairs of one rater count half."""
    data = load_data(run)
    scored(run, METHOD, lambda: (majority_margins(data, test_pairs(data)), {}))
