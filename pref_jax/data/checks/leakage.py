"""Checks that no answer reaches a model by a way round: prompts, users, the order of rows, and the look of texts.

All are pure functions of the tables. What is certainly wrong raises; what may be meant so (a data set whose prompts
occur on both sides by its own rule) or may be a real taste (people who like lists) is told.

Axis letters: P pairs, N responses, F features of formatting, U users.
"""

import unicodedata
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Float64, Int

from pref_jax.comparisons import Comparisons
from pref_jax.data.checks import formatting
from pref_jax.data.messages import as_text
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import prompt_ids
from pref_jax.errors import Faults

# Of the answers of which chosen rows stand before rejected ones, beyond which part (or under the rest) it is a rule.
ORDERED = 0.75


class Leak(NamedTuple):
    """What one check found.

    Attributes:
      name: of the check.
      found: whether something may leak.
      text: a sentence for the report.
      numbers: JSON values behind the sentence.
    """

    name: str
    found: bool
    text: str
    numbers: dict[str, Any]


def check(preferences: Preferences, edges: Comparisons, *, seed: int) -> list[Leak]:
    """Every check on the tables of one run.

    Args:
      preferences: the whole tables, with test answers.
      edges: the comparisons that the graph of users and responses is built from.
      seed: of the folds by which formatting is judged.

    Raises:
      UserError: for what is certainly wrong: a test pair that its own user answers in training too, or an edge of an
        unseen user.
    """
    again, edge = answered_before(preferences), unseen_edges(edges, preferences.seen)
    faults = Faults()
    if again.any():
        where = f"comparisons, rows {', '.join(map(str, preferences.pairs('test').row[again][:5]))}"
        what = f"{again.sum()} test pairs are among the same user's training or validation pairs"
        faults.add(where, what, "leave them out on one side, or split by prompt")
    if edge.any():
        faults.add("graph", f"{edge.sum()} edges are of unseen users", "build it from seen users' training pairs")
    faults.raise_if_any("answers leak into training")
    return [_prompts(preferences), _users(edges), _order(preferences), _formatting(preferences, seed)]


def answered_before(preferences: Preferences) -> Bool[np.ndarray, "P"]:
    """True for each test pair that the same user answers in training or validation too, either way round."""

    def keys(pairs: Comparisons) -> np.ndarray:
        sides = np.sort(np.stack([pairs.chosen, pairs.rejected], axis=1), axis=1)
        return np.concatenate([pairs.user[:, None], sides], axis=1)

    test, known = keys(preferences.pairs("test")), keys(preferences.pairs(("train", "validation")))
    number = np.unique(np.concatenate([test, known]), axis=0, return_inverse=True)[1].reshape(-1)
    return np.isin(number[: len(test)], number[len(test) :])


def unseen_edges(edges: Comparisons, seen: Bool[np.ndarray, "U"]) -> Bool[np.ndarray, "P"]:
    """True for each comparison of a user who is not seen."""
    return ~seen[edges.user]


def known_prompts(preferences: Preferences, *, normalised: bool) -> Bool[np.ndarray, "P"]:
    """True for each test pair whose prompt occurs in training or validation pairs, context of unseen users included.

    With `normalised` also where prompts differ in case, accents' encoding, punctuation and white space alone.
    """
    prompt = preferences.responses["prompt"]
    number = _text_numbers(prompt) if normalised else prompt_ids(prompt)
    test, known = preferences.pairs("test"), preferences.pairs(("train", "validation"))
    return np.isin(number[test.chosen], number[known.chosen])


def _text_numbers(prompts: pa.ChunkedArray) -> Int[np.ndarray, "N"]:
    """Equal numbers for prompts of the same words in the same order; each distinct prompt is normalised once."""
    exact = prompt_ids(prompts)
    first = np.unique(exact, return_index=True)[1]
    texts = [normalise(" ".join(as_text(m) for m in (prompts[int(row)].as_py() or []))) for row in first]
    names: dict[str, int] = {}
    return np.array([names.setdefault(text, len(names)) for text in texts], np.int64)[exact]


def normalise(text: str) -> str:
    """The text's letters and digits in small letters (NFKC), one blank between words; others have no say."""
    small = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in small).split())


def _prompts(preferences: Preferences) -> Leak:
    total = len(preferences.pairs("test").row)
    exact, near = (int(known_prompts(preferences, normalised=flag).sum()) for flag in (False, True))
    text = (
        f"{near} of {total} test pairs are on prompts of training pairs"
        + (f" ({near - exact} of them by normalised text)" if near > exact else "")
        if near
        else f"none of {total} test pairs is on a prompt of training pairs, by normalised text either"
    )
    return Leak("test prompts in training", near > 0, text, {"exact": exact, "normalised": near, "pairs": total})


def _users(edges: Comparisons) -> Leak:
    users = len(np.unique(edges.user))
    text = f"the graph's {len(edges.user)} comparisons are of {users} users, all of them seen"
    return Leak("unseen users in the graph", False, text, {"comparisons": len(edges.user), "users": users})


def _order(preferences: Preferences) -> Leak:
    """Whether rows of responses were numbered by their answers, as where each chosen one is written down first.

    Judged by known answers: methods see the rows of test pairs, too, and must not be able to read them off.
    """
    pairs = preferences.pairs(("train", "validation"))
    share = float(np.mean(pairs.chosen < pairs.rejected)) if len(pairs.row) else 0.5
    text = f"the chosen response has the lower row number in {share:.1%} of {len(pairs.row)} known answers"
    numbers = {"lower": share, "comparisons": len(pairs.row)}
    return Leak("order of rows", not 1 - ORDERED <= share <= ORDERED, text, numbers)


def _formatting(preferences: Preferences, seed: int) -> Leak:
    pairs = preferences.pairs(("train", "validation"), seen=True)
    prompt = prompt_ids(preferences.responses["prompt"])[pairs.chosen]
    if len(np.unique(prompt)) < 2:
        return Leak("formatting", False, "formatting-only was not judged: there is one training prompt", {})
    found = formatting.fit(formatting.differences(preferences.responses, pairs), prompt, seed=seed)
    low, high = found.interval
    share = f"{found.accuracy:.1%} [{low:.1%}, {high:.1%}]"
    numbers = {"accuracy": found.accuracy, "low": low, "high": high, "weights": _weights(found.weights)}
    told = [name for name, weight in sorted(numbers["weights"].items(), key=lambda item: -abs(item[1]))[:3] if weight]
    most = f"; what tells most: {', '.join(told)}" if low > 0.5 and told else ""
    text = f"formatting-only predicts {share} of the training answers on prompts that it was not fitted to{most}"
    return Leak("formatting", low > 0.5, text, numbers)


def _weights(weights: Float64[np.ndarray, "F"]) -> dict[str, float]:
    return dict(zip(formatting.NAMES, map(float, weights), strict=True))
