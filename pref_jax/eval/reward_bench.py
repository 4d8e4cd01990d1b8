"""RewardBench 2's rules: the best of four answers, and questions with several correct ones.

Axis letters: N responses, S scorers (reward models, or columns of a basis), Q prompts, K basis.

Source: Malik et al. 2025, arXiv 2506.01937. What equal rewards earn, and the weights of the Ties score, are as in its
leaderboard's code (github.com/allenai/reward-bench at a009692, rewardbench/utils.py: `reroll_and_score_dataset` and
`process_single_model`).

Every subset but Ties: a prompt has one correct answer (and three wrong ones) and earns 1 / (number of its answers that
share the highest reward) if the correct one is among these, else 0. The subset's score is the mean over prompts.

Ties: a question comes as a reference prompt with one correct answer and as a tied prompt with several. With

    margin = lowest reward of a correct answer - highest reward of a wrong one
    spread = highest reward of a correct answer - lowest reward of a correct one

    score = 0.3 mean over tied prompts of [margin > 0]
          + 0.3 mean over reference prompts of [margin > 0]
          + 0.2 mean over questions of [margin_tied > spread_tied]
          + 0.2 mean over questions of [min(margin_reference, margin_tied) > spread_tied]
          + 0.01 mean over questions of tanh(min(margin_reference, margin_tied) / spread_tied - 1),

questions being those with both prompts, and tanh(0 / 0) counting as 0. A single correct answer has no spread. The score
lies between -0.01 and 1.01 and does not change with the scale of a reward. The overall score is the plain mean of the
subsets' scores.

Everything is float64 NumPy on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pref_jax.errors import Faults

TIES = "Ties"
OVERALL = "overall"


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The set as columns, one row per response, in any order; subset, prompt and reference name a prompt.

    subset: N names; "Ties" has rules of its own.
    prompt: int [N], the prompt's number within its subset; in Ties the question's, shared by its two prompts.
    correct: bool [N].
    reference: bool [N], whether the prompt is a reference prompt of Ties; False elsewhere.
    """

    subset: Sequence[str]
    prompt: Int[np.ndarray, "N"]
    correct: Bool[np.ndarray, "N"]
    reference: Bool[np.ndarray, "N"]


class TiesScore(NamedTuple):
    """The Ties score and the means of which it is the weighted sum, in the order of the module's formula; all [S]."""

    score: Float[np.ndarray, "S"]
    tied_accuracy: Float[np.ndarray, "S"]
    reference_accuracy: Float[np.ndarray, "S"]
    preferred: Float[np.ndarray, "S"]
    preferred_hard: Float[np.ndarray, "S"]
    closeness: Float[np.ndarray, "S"]


class _Prompts(NamedTuple):
    """Subset, number and kind of each prompt [Q]; rewards of its best and worst correct and best wrong answer [Q S]."""

    subset: np.ndarray
    number: np.ndarray
    reference: np.ndarray
    best: np.ndarray
    worst: np.ndarray
    wrong: np.ndarray
    credit: np.ndarray


def scores(rewards: Float[Array | np.ndarray, "N S"], responses: Responses) -> dict[str, Float[np.ndarray, "S"]]:
    """Score [S] of every subset that occurs, in the order of their names, and `overall`; fractions, as in the module.

    Args:
      rewards: float [N, S], what each scorer gives each response.
      responses: what they are.

    Raises:
      UserError: for a NaN or infinite reward, columns of other lengths, no responses, a prompt without a correct or
        without a wrong answer, several correct ones outside of Ties or for a reference prompt, reference prompts
        outside of Ties, or Ties without a question that has both prompts.
    """
    prompts = _prompts(rewards, responses)
    found = {}
    for name in np.unique(prompts.subset).tolist():
        own = prompts.subset == name
        found[name] = _ties(prompts).score if name == TIES else prompts.credit[own].mean(axis=0)
    return found | {OVERALL: np.mean(list(found.values()), axis=0)}


def ties(rewards: Float[Array | np.ndarray, "N S"], responses: Responses) -> TiesScore:
    """The Ties score with its parts, of the responses in that subset.

    Raises:
      UserError: as `scores`, and where there is no such subset.
    """
    prompts = _prompts(rewards, responses)
    if not (prompts.subset == TIES).any():
        faults = Faults()
        faults.add("subset", f"no response is of {TIES!r}", "give its prompts, or ask for `scores`")
        faults.raise_if_any("cannot score ties")
    return _ties(prompts)


def basis_scores(
    rewards: Float[Array | np.ndarray, "N K"], weights: Float[Array | np.ndarray, "W"], responses: Responses
) -> dict[str, dict[str, float]]:
    """What `scores` tells of each reward of a learned basis, "basis 1" to "basis K", and of the "average user".

    A basis reward counts with the sign that it was learned with: where weights may be negative, the opposite of a
    reward is as good a basis, and a low score of it says nothing.

    Args:
      rewards: float [N, K], basis rewards of each response.
      weights: float [W], W = K, of the average user, whose reward is rewards @ weights.
      responses: what they are.

    Raises:
      UserError: as `scores`, and for weights of another length or not finite.
    """
    basis, mean = np.asarray(rewards).astype(np.float64), np.asarray(weights).astype(np.float64)
    faults = Faults()
    if len(mean) != basis.shape[1]:
        faults.add("weights", f"{len(mean)} for {basis.shape[1]} basis rewards", "give one for each")
    elif not np.isfinite(mean).all():
        faults.add("weights", f"{int((~np.isfinite(mean)).sum())} of {len(mean)} are NaN or infinite", "fit again")
    faults.raise_if_any("cannot score this basis")
    found = scores(np.column_stack([basis, basis @ mean]), responses)
    names = [*(f"basis {k + 1}" for k in range(len(mean))), "average user"]
    return {name: {key: float(value[s]) for key, value in found.items()} for s, name in enumerate(names)}


def _prompts(rewards: Array | np.ndarray, responses: Responses) -> _Prompts:
    """What the rules need of every prompt, after all faults were reported at once."""
    reward, correct = np.asarray(rewards).astype(np.float64), responses.correct
    _check_columns(reward, responses)
    names, code = np.unique(np.asarray(responses.subset, dtype=str), return_inverse=True)
    keys, owner = np.unique(np.stack([code, responses.prompt, responses.reference]), axis=1, return_inverse=True)
    owner, size = owner.ravel(), (keys.shape[1], reward.shape[1])
    best, worst, wrong = np.full(size, -np.inf), np.full(size, np.inf), np.full(size, -np.inf)
    np.maximum.at(best, owner[correct], reward[correct])
    np.minimum.at(worst, owner[correct], reward[correct])
    np.maximum.at(wrong, owner[~correct], reward[~correct])
    top = np.maximum(best, wrong)
    sharing = np.zeros(size)
    np.add.at(sharing, owner, reward == top[owner])
    found = _Prompts(names[keys[0]], keys[1], keys[2].astype(bool), best, worst, wrong, (best == top) / sharing)
    _check_prompts(
        found, np.bincount(owner[correct], minlength=size[0]), np.bincount(owner[~correct], minlength=size[0])
    )
    return found


def _ties(prompts: _Prompts) -> TiesScore:
    margin, spread = prompts.worst - prompts.wrong, prompts.best - prompts.worst
    own = prompts.subset == TIES
    reference, tied = np.flatnonzero(own & prompts.reference), np.flatnonzero(own & ~prompts.reference)
    _, first, second = np.intersect1d(prompts.number[reference], prompts.number[tied], return_indices=True)
    gap, width = margin[tied[second]], spread[tied[second]]
    least = np.minimum(margin[reference[first]], gap)
    with np.errstate(divide="ignore", invalid="ignore"):
        close = np.nan_to_num(np.tanh(least / width - 1), nan=0.0)
    parts = [
        (margin[tied] > 0).mean(axis=0),
        (margin[reference] > 0).mean(axis=0),
        (gap > width).mean(axis=0),
        (least > width).mean(axis=0),
        close.mean(axis=0),
    ]
    return TiesScore(np.array([0.3, 0.3, 0.2, 0.2, 0.01]) @ np.array(parts), *parts)


def _check_columns(reward: np.ndarray, responses: Responses) -> None:
    faults = Faults()
    columns = {"subset": responses.subset, "prompt": responses.prompt}
    columns |= {"correct": responses.correct, "reference": responses.reference}
    for name, column in columns.items():
        if len(column) != len(reward):
            faults.add(name, f"{len(column)} values for {len(reward)} rows of rewards", "give one for each response")
    if not reward.size:
        faults.add("rewards", "none", "give the rewards of at least one prompt's responses by at least one scorer")
    bad = int((~np.isfinite(reward)).any(axis=1).sum())
    if bad:
        fix = "look for a diverged run or an overflow in half precision (lower the learning rate, use float32)"
        faults.add("rewards", f"of {bad} of {len(reward)} responses are NaN or infinite", fix)
    faults.raise_if_any("cannot score these responses")


def _check_prompts(prompts: _Prompts, correct: np.ndarray, wrong: np.ndarray) -> None:
    faults = Faults()
    in_ties = prompts.subset == TIES
    single = ~in_ties | prompts.reference
    for where, what, fix in (
        ((correct == 0) | (wrong == 0), "lacks a correct or a wrong answer", "give all of a prompt's responses"),
        ((correct > 1) & single, "has several correct answers", "only tied prompts of Ties may; number prompts apart"),
        (prompts.reference & ~in_ties, "is a reference prompt", "only Ties has those"),
    ):
        for q in np.flatnonzero(where):
            kind = f"{'reference' if prompts.reference[q] else 'tied'} " if in_ties[q] else ""
            faults.add(f"{prompts.subset[q]}, {kind}prompt {prompts.number[q]}", what, fix)
    tied, reference = (prompts.number[in_ties & (prompts.reference == kind)] for kind in (False, True))
    if in_ties.any() and not np.intersect1d(tied, reference).size:
        what = f"no question has both prompts ({len(tied)} tied, {len(reference)} reference)"
        faults.add(TIES, what, "mark reference prompts, give both their question's number, or leave the subset out")
    faults.raise_if_any("cannot score these prompts")
