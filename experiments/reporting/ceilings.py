"""What nobody could beat: other people's votes, a person's own on the very pair, and how far raters are themselves.

Beside it, what personal methods gain for the people of whom something can be known: of many votes, and a taste that one
half of their votes and the other agree on.

Axis letters: P test pairs, U users.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.methods import METHODS, compared_with
from experiments.runner.test_labels import Answered
from pref_jax.comparisons import Comparisons
from pref_jax.data.checks.majority import majority_margins
from pref_jax.data.preferences import SPLITS
from pref_jax.eval.metrics import Interval, student_interval, user_accuracy
from pref_jax.eval.reporting import report
from pref_jax.eval.reporting.report import Section
from pref_jax.eval.split_half import FEWEST, Reliability, split_half, taste_reliability
from pref_jax.standardiser import fit_standardiser

LONGER, WITH_OTHERS = "choosing the longer text", "agreeing with the others"
RELIABLE = f"people of {FEWEST} votes and more, whose halves agree"
GAINS_NOTE = (
    f"Gains over the shared reward on the same states, in points, ± half of the 95 % interval over seeds, for "
    f"{RELIABLE}: the mean difference of features between what they chose and what they did not, less everyone's, "
    "points the same way in both halves of their training votes."
)


def sections(every: Sequence[Answered]) -> list[Section]:
    """The chapter of a run's report; none without test pairs."""
    if not all(len(one.pairs.user) for one in every):
        return []
    parts = [report.bullets(_sentences(every))]
    if gains := reliable_gains(every):
        lines = [["method", "gain", "people"]]
        lines += [[name, report.plus_minus(gain, scale=100, sign="+"), f"{count:.0f}"] for name, gain, count in gains]
        parts += [report.grid(lines), GAINS_NOTE]
    return [Section("Ceilings", "\n\n".join(parts))]


def as_json(every: Sequence[Answered]) -> dict[str, Any]:
    """The same as JSON values, of each seed; the gains over all seeds."""
    found: dict[str, Any] = {str(one.work.seed): _of(one) for one in every}
    gains = [
        {"method": name, "gain": dataclasses.asdict(gain), "people": count}
        for name, gain, count in reliable_gains(every)
    ]
    return {**found, "gains of reliable people": gains}


def reliable_gains(every: Sequence[Answered]) -> list[tuple[str, Interval, float]]:
    """(method, gain over its shared reward, mean number of people) of seen people whose halves agree.

    None where some seed has no such people, or no features.
    """
    members = [_reliable(one) for one in every]
    if not all(own.any() for own in members):
        return []
    methods = [name for name in every[0].margins if all(name in one.margins for one in every)]
    found = []
    for name in methods:
        base = compared_with(name, methods) if name in METHODS else ""
        if not base or METHODS[name].reads:
            continue
        means = [
            [
                user_accuracy(one.margins[which], one.pairs.user, one.data.num_users).accuracy[own].mean()
                for which in (name, base)
            ]
            for one, own in zip(every, members, strict=True)
        ]
        ours, theirs = np.array(means).T
        found.append(
            (name, student_interval(ours - theirs, over="seeds"), float(np.mean([own.sum() for own in members])))
        )
    return found


def _reliable(one: Answered) -> np.ndarray:
    """bool [U]: seen users with test pairs and at least `FEWEST` training votes, whose halves agree."""
    nobody = np.zeros(one.data.num_users, bool)
    if not (one.work.folder / "features").is_dir():
        return nobody
    votes, features = one.data.pairs("train", seen=True), np.asarray(one.work.features)
    if not len(votes.user):
        return nobody
    scale = fit_standardiser(features[np.unique(np.concatenate([votes.chosen, votes.rejected]))])
    differences = (features[votes.chosen] - features[votes.rejected]) / np.asarray(scale.scale)
    agree = taste_reliability(differences, votes.user, one.data.num_users, seed=one.work.seed)
    return (np.nan_to_num(agree) > 0) & (np.bincount(one.pairs.user, minlength=one.data.num_users) > 0)


def _of(one: Answered) -> dict[str, Any]:
    """Ceilings of one seed: shares of test pairs and accuracies on them, and reliabilities of raters."""
    others, own = majority_margins(one.data, one.pairs), _own_votes(one)
    every = one.data.pairs(SPLITS)
    lengths = np.array([len(text) for text in one.data.responses["text"].to_pylist()], np.float64)
    longer = np.sign(lengths[every.chosen] - lengths[every.rejected])
    agreeing = np.sign(majority_margins(one.data, every))
    return {
        "others": _share(others),
        "own": _share(own),
        LONGER: split_half(longer, every.user, seed=one.work.seed)._asdict(),
        WITH_OTHERS: split_half(agreeing, every.user, seed=one.work.seed)._asdict(),
    }


def _share(margins: np.ndarray) -> dict[str, float | int | None]:
    """Pairs on which something is said, and how often it is right there."""
    told = margins != 0
    right = float(np.mean(margins[told] > 0)) if told.any() else None
    return {"pairs": int(told.sum()), "share": float(np.mean(told)), "accuracy": right}


def _own_votes(one: Answered) -> np.ndarray:
    """What the same person's other votes on the very pair say of each test pair; 0 where there are none."""
    every, pairs = one.data.pairs(SPLITS), one.pairs

    def key(votes: Comparisons) -> np.ndarray:
        low, high = (pick(votes.chosen, votes.rejected).astype(np.int64) for pick in (np.minimum, np.maximum))
        return (votes.user.astype(np.int64) * one.data.num_responses + low) * one.data.num_responses + high

    def sign(votes: Comparisons) -> np.ndarray:
        return np.where(votes.chosen < votes.rejected, 1, -1)

    keys, place = np.unique(key(every), return_inverse=True)
    balance = np.bincount(place, weights=sign(every), minlength=len(keys))
    # Its own vote is one of them.
    return sign(pairs) * (balance[np.searchsorted(keys, key(pairs))] - sign(pairs))


def _sentences(every: Sequence[Answered]) -> list[str]:
    told = [_of(one) for one in every]
    names = {
        "others": "leave-one-out majority of the others",
        "own": "the same person's other votes on the very pair",
    }
    lines = []
    for key, name in names.items():
        found = [own[key] for own in told if own[key]["accuracy"] is not None]
        share = np.mean([own[key]["share"] for own in told])
        right = f"{100 * np.mean([own['accuracy'] for own in found]):.1f} % right on" if found else "says something of"
        lines.append(f"{name}: {right} {100 * share:.1f} % of the test pairs")
    for key in (LONGER, WITH_OTHERS):
        found = Reliability(**told[0][key])
        if found.halves is None or found.low is None or found.high is None or found.whole is None:
            lines.append(f"split-half reliability of {key}: {found.users} people of {FEWEST} votes, too few to tell")
            continue
        lines.append(
            f"split-half reliability of {key}: halves correlate by {found.halves:.2f} [{found.low:.2f}, "
            f"{found.high:.2f}] over {found.users} people of {FEWEST} votes and more; of all votes {found.whole:.2f}"
        )
    return lines
