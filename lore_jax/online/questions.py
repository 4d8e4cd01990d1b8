"""Which of a person's open pairs to show next, given the Gaussian approximation of their posterior.

Axis letters: K basis, P pairs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lore_jax.lanes import bucket
from lore_jax.online.acquisition import select_queries
from lore_jax.online.bayes_filter import GaussianPosterior

_select = partial(jax.jit, static_argnames=("count", "threshold"))(select_queries)


def select_pairs(
    weights: Float[np.ndarray, " K"],
    covariance: Float[np.ndarray, "K K"],
    gaps: Float[np.ndarray, "P K"],
    count: int,
    threshold: float | None = None,
) -> list[tuple[int, float]]:
    """The next `count` pairs, most informative first; see `lore_jax.online.acquisition.select_queries`.

    Args:
      weights: the posterior's mean.
      covariance: and its covariance.
      gaps: differences of the pairs' basis rewards.
      count: how many; all if there are fewer.
      threshold: where ties may be answered, the margin below which they are.

    Returns:
      The number of each pair, and what its answer is expected to tell, in nats.

    Example:
      >>> select_pairs(np.zeros(2), np.eye(2), np.array([[0.1, 0.0], [3.0, 1.0]]), 1)[0][0]
      1
    """
    pairs, size = len(gaps), bucket(len(gaps))
    pool = np.pad(gaps, ((0, size - pairs), (0, 0))).astype(np.float32)
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    factor = vectors * np.sqrt(np.maximum(values, 0))
    belief = GaussianPosterior(
        jnp.asarray(weights, jnp.float32)[None], jnp.asarray(factor, jnp.float32)[None], jnp.zeros(1, jnp.int32)
    )
    # Few programs: pools and numbers of questions are rounded up.
    asked = min(bucket(count), size)
    open_ = (np.arange(size) < pairs)[None]
    choice = _select(belief, jnp.asarray(pool), jnp.asarray(open_), jax.random.key(0), count=asked, threshold=threshold)
    index, score = np.asarray(choice.index)[0], np.asarray(choice.score)[0]
    found = [(int(pair), float(nats)) for pair, nats in zip(index, score, strict=True) if pair >= 0]
    return found[: min(count, pairs)]
