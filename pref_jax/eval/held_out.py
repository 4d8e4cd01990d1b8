"""A fitted reward on the votes that were held out from it: accuracies beside baselines, as rows of a results file.

Axis letters: P test pairs, U users, N responses.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from pref_jax.comparisons import Comparisons
from pref_jax.data.checks import formatting
from pref_jax.data.checks.majority import majority_margins
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import prompt_ids
from pref_jax.eval.bootstrap import paired_difference
from pref_jax.eval.metrics import Interval, group_metrics, user_accuracy
from pref_jax.eval.reporting.results import result_row

# Texts scored in one call, so that memory does not grow with their number.
AT_A_TIME = 4096
FITTED = 20_000
NOBODY, MAJORITY, FORMATTING = "shared reward", "leave-one-out majority", "formatting-only"
MEANINGS = {
    NOBODY: "the same model for nobody in particular: one reward for all users",
    MAJORITY: "what the other users who judged the very pair chose; a pair nobody else judged counts half",
    FORMATTING: "a logistic regression on lengths, marks and digits, which reads no word",
}


@runtime_checkable
class Scored(Protocol):
    """What is asked of a `pref_jax.personal.PersonalReward`; `kind` names the method."""

    kind: ClassVar[str]

    def knows(self, user: str) -> bool:
        """Whether it knows a user."""
        ...

    def rewards(self, users: Sequence[str | None], rows: Any, *, uncertainty: bool) -> Any:
        """Rewards of a table of responses, as `mean`."""
        ...


class HeldOut(NamedTuple):
    """Rows of `results.json` for the model and the baselines, the gains over the shared reward, and counts.

    Attributes:
      rows: see `pref_jax.eval.reporting.results`.
      gains: "seen" and "unseen" -> mean over users of the accuracy less that of the shared reward.
      scored: how many test pairs the model and the shared reward were scored on.
      pairs: how many there are.
    """

    rows: list[dict[str, Any]]
    gains: dict[str, Interval]
    scored: int
    pairs: int


def score_held_out(model: Scored, votes: Preferences, *, most: int, seed: int = 0) -> HeldOut:
    """Scores the test pairs of seen and unseen users; ties and skipped pairs are no test pairs.

    Args:
      model: fitted without the test pairs.
      votes: all tables.
      most: test pairs scored at most, drawn at random: a reward that adapts the transformer reads each text for each
        user.
      seed: of that draw.
    """
    every = votes.pairs("test")
    drawn = np.random.default_rng(seed).permutation(len(every.user))[:most]
    pairs = every.take(np.sort(drawn))
    methods: dict[str, Callable[[], Any]] = {
        model.kind: lambda: margins(model, votes, pairs),
        NOBODY: lambda: margins(model, votes, pairs, shared=True),
        MAJORITY: lambda: majority_margins(votes, pairs),
        FORMATTING: lambda: _formatting(votes, pairs, seed),
    }
    found, rows = {}, []
    for name, run in methods.items():
        start = time.perf_counter()
        margin = run() if len(pairs.user) else None
        if margin is None:
            continue
        found[name] = np.asarray(margin, np.float64)
        metrics = group_metrics(found[name], pairs.user, pairs.controversial, votes.seen, votes.groups)
        rows.append(result_row(method=name, seed=seed, metrics=metrics, seconds=time.perf_counter() - start))
    gains = _gains(found[model.kind], found[NOBODY], votes, pairs) if rows else {}
    return HeldOut(rows, gains, len(pairs.user), len(every.user))


def margins(
    model: Scored, votes: Preferences, pairs: Comparisons, *, shared: bool = False
) -> Float64[np.ndarray, " P"]:
    """Rewards of the chosen less those of the rejected responses, each for its user, or with `shared` for nobody.

    Every text is read once for each of its users, texts side by side. A user whom the model does not know is nobody.
    """
    ids = votes.users["user_id"].to_pylist()
    user = np.full(len(pairs.user), -1) if shared else np.asarray(pairs.user, np.int64)
    keys = np.stack([np.concatenate([pairs.chosen, pairs.rejected]), np.concatenate([user, user])])
    distinct, which = np.unique(keys, axis=1, return_inverse=True)
    found = np.empty(distinct.shape[1])
    for start in range(0, len(found), AT_A_TIME):
        response, owner = distinct[:, start : start + AT_A_TIME]
        names = [ids[one] if one >= 0 and model.knows(ids[one]) else None for one in owner]
        found[start : start + AT_A_TIME] = model.rewards(names, votes.responses.take(response), uncertainty=False).mean
    chosen, rejected = found[which.reshape(2, -1)]
    return chosen - rejected


def _formatting(votes: Preferences, pairs: Comparisons, seed: int) -> Float64[np.ndarray, " P"] | None:
    """Margins by formatting alone, fitted to training votes; None where there are not two prompts to fit it on."""
    train = votes.pairs(("train", "validation"), seen=True)
    train = train.take(np.sort(np.random.default_rng(seed).permutation(len(train.user))[:FITTED]))
    prompt = prompt_ids(votes.responses["prompt"])[train.chosen]
    if len(np.unique(prompt)) < 2:
        return None
    judge = formatting.fit(formatting.differences(votes.responses, train), prompt, seed=seed)
    return formatting.differences(votes.responses, pairs) @ judge.weights


def _gains(ours: np.ndarray, shared: np.ndarray, votes: Preferences, pairs: Comparisons) -> dict[str, Interval]:
    accuracy = [user_accuracy(margin, pairs.user, votes.num_users) for margin in (ours, shared)]
    gains = {}
    for side, members in (("seen", votes.seen), ("unseen", ~votes.seen)):
        counted = members & (accuracy[0].pairs > 0)
        gain = paired_difference(*(one.accuracy[counted] for one in accuracy))
        if gain is not None:
            gains[side] = gain
    return gains
