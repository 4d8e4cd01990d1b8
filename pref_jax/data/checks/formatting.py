"""What the look of a text alone tells about which response was chosen: a logistic regression that reads no word.

Axis letters: P pairs, N responses, F features.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int
from scipy import optimize, special

from pref_jax.comparisons import Comparisons

FOLDS = 5
STRENGTHS = (0.3, 3.0, 30.0, 300.0)
RESAMPLES = 1000


def _counts(pattern: str) -> Callable[[str], float]:
    search = re.compile(pattern)
    return lambda text: float(np.log1p(len(search.findall(text))))


def _share(test: Callable[[str], bool]) -> Callable[[str], float]:
    # Each distinct character is tested once.
    return lambda text: sum(text.count(c) for c in set(text) if test(c)) / max(len(text), 1)


# Name -> number of a text. Counts are logarithms, so that one long text does not outweigh all others.
FEATURES: dict[str, Callable[[str], float]] = {
    "length": lambda text: float(np.log1p(len(text))),
    "words": lambda text: float(np.log1p(len(text.split()))),
    "line breaks": _counts(r"\n"),
    "empty lines": _counts(r"\n\s*\n"),
    "list marks": _counts(r"(?m)^\s*(?:[-*•]|\d+[.)])\s"),
    "headings": _counts(r"(?m)^\s*#{1,6}\s"),
    "emphasis": _counts(r"\*\*|__"),
    "code marks": _counts(r"`"),
    "square brackets": _counts(r"[\[\]]"),
    "other brackets": _counts(r"[(){}<>]"),
    "double quotes": _counts('["“”«»]'),
    "single quotes": _counts("['‘’]"),
    "written escapes": _counts(r"\\[nrt\"']"),
    "opens as a list": lambda text: float(text[:1] in "[({" and bool(text)),
    "closes as a list": lambda text: float(text[-1:] in "])}" and bool(text)),
    "white space at the ends": lambda text: float(text != text.strip()),
    "sentence ends": _counts(r"[.!?]"),
    "ends in a sentence's end": lambda text: float(text.rstrip()[-1:] in (".", "!", "?")),
    "commas and colons": _counts(r"[,;:]"),
    "digits": _share(str.isdigit),
    "capitals": _share(str.isupper),
    "opens with a capital": lambda text: float(text[:1].isupper()),
    "beyond ASCII": _share(lambda c: not c.isascii()),
}
NAMES = tuple(FEATURES)


class Judge(NamedTuple):
    """A fit on formatting-only.

    Attributes:
      weights: float64 [F], of raw features' differences (chosen less rejected).
      strength: of the ridge, that of the best log-loss on prompts held out.
      accuracy: part of the pairs that are right when their prompt is held out; a tie counts half.
      interval: 95 %, by bootstrap over prompts.
    """

    weights: Float64[np.ndarray, "F"]
    strength: float
    accuracy: float
    interval: tuple[float, float]


def features(texts: Sequence[str]) -> Float64[np.ndarray, "N F"]:
    """Lengths, lines, marks, quotes, digits and capitals of each text, one column for each of `NAMES`."""
    rows = [[measure(text) for measure in FEATURES.values()] for text in texts]
    return np.asarray(rows, np.float64).reshape(len(rows), len(NAMES))


def differences(responses: pa.Table, pairs: Comparisons) -> Float64[np.ndarray, "P F"]:
    """Features of the chosen less those of the rejected responses; each text is read once."""
    rows, place = np.unique(np.concatenate([pairs.chosen, pairs.rejected]), return_inverse=True)
    table = features(responses["text"].take(pa.array(rows)).to_pylist())
    chosen, rejected = table[place.reshape(2, -1)]
    return chosen - rejected


def fit(differences: Float64[np.ndarray, "P F"], prompt: Int[np.ndarray, "P"], *, seed: int) -> Judge:
    """Fits which response is chosen to differences of features, judged on prompts held out in turn.

    Args:
      differences: features of the chosen less those of the rejected response.
      prompt: number of each pair's prompt; pairs of one prompt stay together.
      seed: of the folds and the bootstrap.

    Raises:
      ValueError: if there are fewer than two prompts.
    """
    distinct, number = np.unique(prompt, return_inverse=True)
    if len(distinct) < 2:
        raise ValueError("formatting is judged on prompts held out, so there must be two at least")
    rng = np.random.default_rng([seed, 19])
    fold = (rng.permutation(len(distinct)) % min(FOLDS, len(distinct)))[number]
    scale = np.sqrt(np.mean(differences**2, axis=0))
    x = differences / np.where(scale > 0, scale, 1)

    def held_out(strength: float) -> np.ndarray:
        margins = np.empty(len(x))
        for one in range(fold.max() + 1):
            margins[fold == one] = x[fold == one] @ _regression(x[fold != one], strength)
        return margins

    tried = {strength: held_out(strength) for strength in STRENGTHS}
    best = min(tried, key=lambda strength: float(np.logaddexp(0, -tried[strength]).mean()))
    right = (tried[best] > 0) + 0.5 * (tried[best] == 0)
    total, pairs = np.bincount(number, weights=right), np.bincount(number)
    # One draw at a time: all of them would take RESAMPLES numbers for each prompt.
    evenly = np.full(len(distinct), 1 / len(distinct))
    draws = (rng.multinomial(len(distinct), evenly) for _ in range(RESAMPLES))
    low, high = np.quantile([(times @ total) / (times @ pairs) for times in draws], [0.025, 0.975])
    weights = _regression(x, best) / np.where(scale > 0, scale, 1)
    return Judge(weights, best, float(right.mean()), (float(low), float(high)))


def fit_unjudged(differences: Float64[np.ndarray, "P F"]) -> Float64[np.ndarray, "F"]:
    """Weights of raw features' differences by the strongest ridge, where all is on one prompt and none held out."""
    scale = np.sqrt(np.mean(differences**2, axis=0)) if len(differences) else np.zeros(len(NAMES))
    scale = np.where(scale > 0, scale, 1)
    return _regression(differences / scale, STRENGTHS[-1]) / scale


def _regression(x: Float64[np.ndarray, "P F"], strength: float) -> Float64[np.ndarray, "F"]:
    """argmin of sum log(1 + exp(-x w)) + strength |w|² / 2."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = x @ w
        value = np.logaddexp(0, -margins).sum() + strength / 2 * w @ w
        return float(value), strength * w - x.T @ special.expit(-margins)

    def curvature(w: np.ndarray) -> np.ndarray:
        right = special.expit(x @ w)
        return (x * (right * (1 - right))[:, None]).T @ x + strength * np.eye(len(w))

    tolerance = 1e-8 * max(len(x), 1)
    start = np.zeros(x.shape[1])
    return optimize.minimize(loss, start, jac=True, hess=curvature, method="trust-exact", tol=tolerance).x
