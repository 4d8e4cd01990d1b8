"""What a vote says of a margin: preferences of several strengths, ties and choices as logistic rows.

Axis letters: P votes, R rows, T thresholds, S levels of strength.

The margin m of a vote is the reward of `chosen` less that of `rejected`. A person answers by a noisy margin, m plus
logistic noise, and says how much they prefer (a cumulative logit: McCullagh 1980). With thresholds
0 < t_1 < t_2 < ..., a tie says that it lies in [-t_1, t_1] (of three answers this is Rao & Kupper 1967), a
preference of level s that it lies in [t_s, t_{s+1}), the last level having no end. Where nobody could give a tie, the
first level begins at 0. So every vote is one bound or two, and

    -log P(low <= noisy m < high) = softplus(-(m - low)) + softplus(-(high - m)) - log(1 - exp(low - high)):

one or two Bradley-Terry losses with an offset, convex in m and the thresholds together, and a constant of the
thresholds. All solvers of logistic losses therefore take all votes. One level and no ties are Bradley-Terry itself.

A choice of one response out of several (of a ranking: Plackett 1975, Luce 1959) is log(1 + sum exp(-m)) over the rows
of one number in `choice`, where m are the margins of the chosen response over each of the others.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int8, Int64

from pref_jax.comparisons import Comparisons

# levels: as above. weight: a vote counts as much as it is strong. margin: the offset grows with the strength.
# ignore: all preferences are alike.
StrengthUse = Literal["levels", "weight", "margin", "ignore"]
MAX_LEVELS = 4
# Least distance of two thresholds, in units of the logistic noise: an interval of no width would have no likelihood.
_SMALLEST = 1e-4


class Scale(NamedTuple):
    """How a data set's votes are read: fixed by the training votes, the same for all others.

    Attributes:
      ties: whether a tie is one of the answers.
      edges: strengths from which levels 2, 3 .. begin; () for one level.
      use: what strengths are for.
      mean: mean strength of the training votes, 1 where none is known.
    """

    ties: bool = False
    edges: tuple[float, ...] = ()
    use: StrengthUse = "levels"
    mean: float = 1.0

    @property
    def num_thresholds(self) -> int:
        """T."""
        return len(self.edges) + self.ties


class Rows(NamedTuple):
    """Logistic rows of votes; see the module.

    Attributes:
      user, chosen, rejected: int64 [R]. Where a vote bounds the margin from above, the two responses change places.
      vote: int64 [R] the vote each row is of, ascending.
      bound: int8 [R], k > 0: the margin lies above t_k; k < 0: t_|k| is added to it; 0: it lies above 0.
      interval: int8 [R], entry of `log_widths` that is subtracted from the row's loss; 0: nothing is.
      weight: float32 [R].
      margin: float32 [R], a fixed part of the margin, 0 but for strengths used as margins.
      choice: int32 [R] rows of one number are one choice; -1 for a row alone.
    """

    user: Int64[np.ndarray, "R"]
    chosen: Int64[np.ndarray, "R"]
    rejected: Int64[np.ndarray, "R"]
    vote: Int64[np.ndarray, "R"]
    bound: Int8[np.ndarray, "R"]
    interval: Int8[np.ndarray, "R"]
    weight: Float32[np.ndarray, "R"]
    margin: Float32[np.ndarray, "R"]
    choice: Int[np.ndarray, "R"]


def fit_scale(votes: Comparisons, use: StrengthUse = "levels") -> Scale:
    """The scale of some training votes: whether there are ties, and levels of about as many votes each.

    Strengths of few distinct values (a Likert scale) are levels as they are; others are cut at their quantiles.

    Example:
      >>> rows = np.zeros(3, int), np.zeros(3, int), np.ones(3, int)
      >>> fit_scale(Comparisons(*rows, strength=np.array([1.0, 3.0, 3.0]))).edges
      (3.0,)
    """
    ties = votes.tie is not None and bool(np.any(votes.tie))
    alone = np.ones(len(votes.user), bool) if votes.choice is None else np.asarray(votes.choice) < 0
    strength = np.zeros(0) if votes.strength is None else np.asarray(votes.strength, np.float64)[alone]
    strength = strength[np.isfinite(strength)]
    if use == "ignore" or not len(strength):
        return Scale(ties, (), "ignore")
    distinct = np.unique(strength)
    if len(distinct) > MAX_LEVELS:
        distinct = np.unique(np.quantile(strength, np.arange(MAX_LEVELS) / MAX_LEVELS, method="higher"))
    edges = tuple(float(edge) for edge in distinct[1:]) if use == "levels" else ()
    return Scale(ties, edges, use, float(strength.mean()))


def logistic_rows(votes: Comparisons, scale: Scale) -> Rows:
    """The rows of votes on a scale: two of a tie and of a preference of any but the last level, otherwise one.

    A preference whose strength is not known has no upper bound, and rows of a choice have no thresholds. Ties on a
    scale without ties get weight 0.
    """
    count = len(votes.user)
    tie = np.zeros(count, bool) if votes.tie is None else np.asarray(votes.tie, bool)
    choice = np.full(count, -1, np.int32) if votes.choice is None else np.asarray(votes.choice, np.int32)
    strength = np.full(count, np.nan) if votes.strength is None else np.asarray(votes.strength, np.float64)
    known = np.isfinite(strength) & ~tie & (choice < 0) & (scale.use != "ignore")
    level = np.where(known, np.searchsorted(np.asarray(scale.edges), strength, side="right"), 0)
    first = np.where(choice < 0, int(scale.ties), 0)
    low = np.where(tie, -first, level + first)
    # Its end is the next level's beginning; only votes of a known level have one.
    ends = known & (level < len(scale.edges)) & (len(scale.edges) > 0)
    both = tie & scale.ties | ends
    high = np.where(tie, first, low + 1)
    vote = np.concatenate([np.arange(count), np.flatnonzero(both)])
    upper = np.arange(len(vote)) >= count
    order = np.lexsort((upper, vote))
    vote, upper = vote[order], upper[order]
    ratio = np.where(known, strength / scale.mean, 1.0)
    chosen, rejected = np.asarray(votes.chosen, np.int64)[vote], np.asarray(votes.rejected, np.int64)[vote]
    weight = np.where(known, ratio, 1.0) if scale.use == "weight" else np.ones(count)
    weight = np.where(tie & (not scale.ties), 0, weight)
    return Rows(
        user=np.asarray(votes.user, np.int64)[vote],
        chosen=np.where(upper, rejected, chosen),
        rejected=np.where(upper, chosen, rejected),
        vote=vote,
        bound=np.where(upper, -high[vote], low[vote]).astype(np.int8),
        interval=np.where(upper, high[vote], 0).astype(np.int8),
        weight=weight[vote].astype(np.float32),
        margin=(np.where(known, -ratio, 0.0) if scale.use == "margin" else np.zeros(count))[vote].astype(np.float32),
        choice=choice[vote],
    )


def thresholds(gaps: Float[Array, " T"]) -> Float[Array, " T"]:
    """Rising positive thresholds of any numbers: running sums of softplus(gap)."""
    return jnp.cumsum(jax.nn.softplus(gaps) + _SMALLEST)


def offsets(thresholds: Float[Array, " T"], bound: Int[Any, "*rows"]) -> Float[Array, "*rows"]:
    """What is added to each row's margin before its softplus: -t_k for k > 0, t_|k| for k < 0, 0 for 0."""
    return -jnp.sign(bound) * jnp.concatenate([jnp.zeros(1, thresholds.dtype), thresholds])[jnp.abs(bound)]


def widths(thresholds: Float[Array, " T"], *, ties: Any) -> Float[Array, " T"]:
    """Width of the interval that ends at t_k, for k = 1 .. T.

    The first interval is [-t_1, t_1] with ties (a bool, or a traced one) and [0, t_1] without.
    """
    width = jnp.diff(thresholds, prepend=0.0)
    return width.at[:1].mul(jnp.where(ties, 2, 1).astype(width.dtype))


def log_widths(thresholds: Float[Array, " T"], *, ties: Any) -> Float[Array, " T1"]:
    """log(1 - exp(-width)) of the interval that ends at t_k, for k = 0 .. T; 0 for k = 0."""
    width = widths(thresholds, ties=ties)
    return jnp.concatenate([jnp.zeros(1, thresholds.dtype), jnp.log(-jnp.expm1(-width))])


def probabilities(
    margin: Float[Any, "*pairs"], thresholds: Float[Any, " T"], *, ties: bool
) -> Float[Array, "*pairs 3"]:
    """Of a margin: that the first response wins, that neither does, that the second one does; strengths aside.

    Example:
      >>> np.round(probabilities(np.zeros(1), np.array([1.0]), ties=True), 2).tolist()[0][1]
      0.46...
    """
    band = thresholds[0] if ties else 0.0
    win, lose = jax.nn.sigmoid(margin - band), jax.nn.sigmoid(-margin - band)
    # sigmoid(b - m) - sigmoid(-b - m) = (1 - exp(-2 b)) sigmoid(b - m) sigmoid(b + m), in which no digits cancel.
    tie = -jnp.expm1(-2 * band) * jax.nn.sigmoid(band - margin) * jax.nn.sigmoid(band + margin)
    return jnp.stack([win, tie, lose], -1)
