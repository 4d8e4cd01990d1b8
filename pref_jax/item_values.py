"""One Bradley-Terry value per response: what everyone likes, without a model of texts or of people.

Axis letters: N responses, P comparisons.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy import optimize, special

from pref_jax.comparisons import Comparisons, decided

PRECISIONS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


def item_values(votes: Comparisons, num_responses: int, *, precision: float) -> Float64[np.ndarray, " N"]:
    """The values b of highest posterior, where log P(votes) = sum of log sigmoid(b_chosen - b_rejected).

    Args:
      votes: ties are left out, strengths not read.
      num_responses: N; responses that nobody voted on get 0.
      precision: of the Gaussian prior N(0, 1 / precision) of each value.

    Example:
      >>> votes = Comparisons(np.zeros(2, int), np.array([0, 0]), np.array([1, 1]))
      >>> item_values(votes, 3, precision=1.0).round(2)
      array([ 0.49, -0.49,  0.  ])
    """
    votes = decided(votes)

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        margin = values[votes.chosen] - values[votes.rejected]
        pull = special.expit(-margin)
        slope = np.bincount(votes.rejected, pull, num_responses) - np.bincount(votes.chosen, pull, num_responses)
        return float(-log_likelihoods(margin).sum() + precision / 2 * values @ values), slope + precision * values

    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-6}
    return optimize.minimize(objective, np.zeros(num_responses), jac=True, method="L-BFGS-B", options=options).x


def choose_item_values(
    votes: Comparisons, validation: Comparisons, num_responses: int, *, precisions: Sequence[float] = PRECISIONS
) -> tuple[Float64[np.ndarray, " N"], float]:
    """`item_values` under the precision that explains validation votes best, and this precision.

    Without decided validation votes the precision is 1.
    """
    validation = decided(validation)
    if not len(validation.user):
        return item_values(votes, num_responses, precision=1.0), 1.0
    found = {precision: item_values(votes, num_responses, precision=precision) for precision in precisions}
    loss = {
        precision: -log_likelihoods(values[validation.chosen] - values[validation.rejected]).mean()
        for precision, values in found.items()
    }
    best = min(precisions, key=lambda precision: loss[precision])
    return found[best], best


def log_likelihoods(margin: Float64[np.ndarray, " P"]) -> Float64[np.ndarray, " P"]:
    """log sigmoid of margins."""
    return -np.logaddexp(0, -margin)
