"""What a table of votes holds, in numbers, before anything is trained on it: kinds, users, sharing, agreement, biases.

Axis letters: P votes, U users, N responses.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from pref_jax.comparisons import Comparisons
from pref_jax.data.checks import formatting
from pref_jax.data.checks.agreement import SplitHalf, agreement, opposite_votes, split_half
from pref_jax.data.checks.majority import majority_margins
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import OUTCOMES, SPLITS, pc, prompt_ids

# Formatting is judged on so many votes at most, drawn at random: texts are read one by one.
FORMATTED = 20_000
# Raters of so many votes are halved; of the largest number that leaves so many raters.
LEAST_VOTES, ENOUGH_RATERS = (20, 8, 4), 20


def overview(preferences: Preferences, *, seed: int = 0) -> dict[str, Any]:
    """All figures as JSON values, None where there is nothing to take them from.

    Args:
      preferences: the tables; splits are not looked at.
      seed: of the halvings of raters' votes and of the sample by which formatting is judged.

    Example:
      >>> from pref_jax.data.votes import read_votes
      >>> votes = [{"user": "ada", "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}]
      >>> overview(read_votes(votes))["votes"]["preferred"]
      1
    """
    table, ratings = preferences.comparisons, preferences.ratings
    decided, told = preferences.pairs(SPLITS), preferences.pairs(SPLITS, ties=True)
    per_user = np.bincount(table["user"].to_numpy()[~table["rated"].to_numpy()], minlength=preferences.num_users)
    per_user += np.bincount(ratings["user"].to_numpy(), minlength=preferences.num_users)
    found = {
        "source": preferences.meta.get("source", "unknown"),
        "users": preferences.num_users,
        "prompts": len(np.unique(prompt_ids(preferences.responses["prompt"]))),
        "responses": preferences.num_responses,
        "votes": _kinds(preferences),
        "votes_per_user": _spread(per_user),
        "sharing": _sharing(preferences),
        "time": _span(preferences),
        "agreement": _agreement(preferences, decided, told),
        "raters": _raters(preferences, decided, seed),
        "length": _length(preferences, decided),
        "formatting": _formatting(preferences, decided, seed),
        "left_out": {name: count for name, count in preferences.meta.get("filtered", {}).items() if count},
    }
    return _plain(found)


def histogram(counts: Int[np.ndarray, " n"]) -> dict[str, int]:
    """How many of the counts are 1, 2, 3-4, 5-8 and so on, and 0 if there are any.

    Example:
      >>> histogram(np.array([1, 3, 4, 9]))
      {'1': 1, '2': 0, '3-4': 2, '5-8': 0, '9-16': 1}
    """
    place = np.where(counts > 0, np.ceil(np.log2(np.maximum(counts, 1))).astype(int), -1)
    found = {}
    for number in range(int(place.min(initial=0)), int(place.max(initial=-1)) + 1):
        low, high = 2 ** (number - 1) + 1 if number > 0 else number + 1, 2**number if number >= 0 else 0
        found[f"{low}-{high}" if low < high else f"{low}"] = int((place == number).sum())
    return found


def _kinds(preferences: Preferences) -> dict[str, Any]:
    table = preferences.comparisons
    own = ~table["rated"].to_numpy()
    outcome = pc.index_in(table["outcome"], value_set=pa.array(OUTCOMES)).to_numpy()
    strength, choice = table["strength"].filter(pa.array(own)).drop_null(), table["choice"].drop_null()
    return {
        **{word: int((own & (outcome == number)).sum()) for number, word in enumerate(OUTCOMES)},
        "with_strength": len(strength),
        "strengths": [pc.min(strength).as_py(), pc.max(strength).as_py()] if len(strength) else None,
        "choices": len(choice.unique()),
        "ratings": preferences.ratings.num_rows,
        "comparisons_of_ratings": int((~own).sum()),
    }


def _spread(counts: np.ndarray) -> dict[str, Any]:
    middle = {name: measure(counts) for name, measure in (("least", np.min), ("median", np.median), ("most", np.max))}
    return {**middle, "histogram": histogram(counts)}


def _sharing(preferences: Preferences) -> dict[str, float]:
    """How many responses and pairs more than one user judged, and how many users share a response with somebody."""
    table, ratings = preferences.comparisons, preferences.ratings
    user = np.concatenate([table["user"].to_numpy()] * 2 + [ratings["user"].to_numpy()]).astype(np.int64)
    response = np.concatenate([*(table[name].to_numpy() for name in ("chosen", "rejected")), ratings["response"]])
    met = np.unique(user * preferences.num_responses + response)
    judges = np.bincount(met % preferences.num_responses, minlength=preferences.num_responses)
    shared = np.bincount(met // preferences.num_responses, weights=judges[met % preferences.num_responses] > 1)
    used = judges > 0
    return {
        "responses_of_two_users": float((judges > 1)[used].mean()),
        "users_per_response": float(judges[used].mean()),
        "users_who_share_a_response": float((shared > 0).sum() / preferences.num_users),
    }


def _span(preferences: Preferences) -> dict[str, Any] | None:
    times = pa.chunked_array([*preferences.comparisons["time"].chunks, *preferences.ratings["time"].chunks])
    if times.null_count == len(times):
        return None
    ends = pc.min_max(times).as_py()
    return {"first": ends["min"].isoformat(), "last": ends["max"].isoformat(), "without": times.null_count}


def _agreement(preferences: Preferences, decided: Comparisons, told: Comparisons) -> dict[str, Any]:
    margin = majority_margins(preferences, decided)
    known, size = margin != 0, preferences.num_responses
    item, sign = _sides(decided, size)
    people = agreement(item, sign)
    tie_item, tie_sign = _sides(told, size)
    return {
        **people._asdict(),
        "majority": float((margin > 0).sum() + 0.5 * (~known).sum()) / max(len(margin), 1),
        "majority_where_known": float((margin[known] > 0).mean()) if known.any() else math.nan,
        "majority_known": float(known.mean()) if len(known) else math.nan,
        **opposite_votes(told.user, tie_item, np.where(told.tie, 0, tie_sign))._asdict(),
    }


def _sides(pairs: Comparisons, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The unordered pair of each comparison as a number, and 1 where its lower response was chosen, else -1."""
    low, high = np.minimum(pairs.chosen, pairs.rejected), np.maximum(pairs.chosen, pairs.rejected)
    return low.astype(np.int64) * size + high, np.where(pairs.chosen == low, 1, -1)


def _lengths(preferences: Preferences) -> np.ndarray:
    return pc.utf8_length(preferences.responses["text"]).to_numpy().astype(np.int64)


def _raters(preferences: Preferences, decided: Comparisons, seed: int) -> dict[str, Any]:
    """Split-half reliability of how much users favour length, and of how often they choose as the others do."""
    length, margin = _lengths(preferences), majority_margins(preferences, decided)
    longer = np.sign(length[decided.chosen] - length[decided.rejected]).astype(np.float64)
    known = margin != 0
    return {
        "length": _halved(decided.user, longer, seed),
        "agreement_with_others": _halved(decided.user[known], np.sign(margin[known]).astype(np.float64), seed),
    }


def _halved(user: np.ndarray, value: np.ndarray, seed: int) -> dict[str, Any]:
    counts = np.unique(user, return_counts=True)[1]
    least = next((least for least in LEAST_VOTES if (counts >= least).sum() >= ENOUGH_RATERS), LEAST_VOTES[-1])
    found: SplitHalf = split_half(user, value, least=least, seed=seed)
    return {**found._asdict(), "least_votes": least}


def _length(preferences: Preferences, decided: Comparisons) -> dict[str, Any]:
    length = _lengths(preferences)
    longer = np.sign(length[decided.chosen] - length[decided.rejected])
    characters = {name: measure(length) for name, measure in (("median", np.median), ("most", np.max))}
    differ = longer != 0
    return {"longer_chosen": float((longer[differ] > 0).mean()) if differ.any() else math.nan, "characters": characters}


def _formatting(preferences: Preferences, decided: Comparisons, seed: int) -> dict[str, Any] | None:
    """Accuracy of `formatting.fit`; None where there are not two prompts to judge it on."""
    rows = np.random.default_rng(seed).permutation(len(decided.user))[:FORMATTED]
    pairs = decided.take(np.sort(rows))
    prompt = prompt_ids(preferences.responses["prompt"])[pairs.chosen]
    if len(np.unique(prompt)) < 2:
        return None
    differences = formatting.differences(preferences.responses, pairs)
    found = formatting.fit(differences, prompt, seed=seed)
    share = found.weights * differences.std(axis=0)
    order = np.argsort(-np.abs(share))[:3]
    return {
        "accuracy": found.accuracy,
        "low": found.interval[0],
        "high": found.interval[1],
        "votes": len(rows),
        "most": [formatting.NAMES[number] for number in order if share[number]],
    }


def _plain(value: Any) -> Any:
    """The same as JSON has it: numbers of Python, None for what is not finite."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
