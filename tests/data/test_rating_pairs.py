"""Comparisons from ratings, against a slow loop over all pairs."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pref_jax.data.sources.common.rating_pairs import rating_pairs


def slow(user, response, prompt, rating, split):
    """All pairs of the last rating of each response, as {(user, split, {a, b}): (chosen or None, strength)}."""
    last = {}
    for row in zip(user, prompt, split, response, rating, strict=True):
        last[row[:4]] = np.float32(row[4])
    found = {}
    for (a, one), (b, other) in itertools.combinations(last.items(), 2):
        if a[:3] == b[:3]:
            chosen = None if one == other else (a[3] if one > other else b[3])
            found[a[0], a[2], frozenset((a[3], b[3]))] = chosen, abs(float(one) - float(other))
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("per_response", [1, 2, 4])
def test_pairs_are_true_bounded_and_all_there_where_few(seed, per_response):
    rng = np.random.default_rng(seed)
    count, responses = int(rng.integers(0, 120)), int(rng.integers(1, 40))
    of_prompt = rng.integers(0, rng.integers(1, 4), responses)
    user, response = rng.integers(0, 3, count), rng.integers(0, responses, count)
    rating = rng.choice([1.0, 2.0, 3.5, -7.0], count)
    split = rng.choice(["train", "test", "validation"], count)
    given = user, response, of_prompt[response], rating, split
    got = rating_pairs(*given, rng=rng, per_response=per_response)
    want, seen, degree = slow(*given), set(), Counter()
    size = Counter((u, s, of_prompt[r]) for u, s, r in set(zip(user, split, response, strict=True)))
    for u, a, b, word, outcome, strength, rated in zip(*got.values(), strict=True):
        key = u, word, frozenset((a, b))
        chosen, difference = want[key]
        assert key not in seen
        assert a != b
        assert rated
        seen.add(key)
        degree.update({(u, word, a): 1, (u, word, b): 1})
        assert outcome == ("tie" if chosen is None else "preferred")
        assert strength.as_py() == (None if chosen is None else difference)
        assert chosen in (None, a)
    assert max(degree.values(), default=0) <= 2 * per_response
    few = {k for k in want if size[k[0], k[1], of_prompt[min(k[2])]] <= 2 * per_response + 1}
    assert few <= seen
    for (u, word, place), number in size.items():
        own = [k for k in seen if k[:2] == (u, word) and of_prompt[min(k[2])] == place]
        assert len(own) == min(number * per_response, number * (number - 1) // 2)


def test_ratings_far_apart_keep_a_finite_strength():
    one = np.zeros(2, int)
    got = rating_pairs(
        one, np.arange(2), one, np.array([3e38, -3e38]), np.array(["train"] * 2), rng=np.random.default_rng(0)
    )
    assert got["chosen"].tolist() == [0]
    assert np.isfinite(got["strength"][0].as_py())
