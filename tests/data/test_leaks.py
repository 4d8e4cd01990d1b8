"""Planted leaks are found, clean tables pass; formatting-only finds a format that tells and nothing in noise."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import optimize

from pref_jax.data import preferences
from pref_jax.data.checks import formatting, leakage
from pref_jax.data.label_masking import label_signs, mask_labels
from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.synthetic.world import WorldConfig, generate
from pref_jax.errors import UserError

WORLD = WorldConfig(seen_users=20, unseen_users=5, pairs_per_user=6, train_prompts=12, test_prompts=8, seed=3)


def _world(**changes: Any) -> Preferences:
    return generate(dataclasses.replace(WORLD, **changes))


def _tables(prompts: list[str], rows: list[tuple[int, int, int, str]], seen: list[bool]) -> Preferences:
    """Two answers to each prompt (rows 2i, 2i + 1); `rows` are user, chosen, rejected, split."""
    user, chosen, rejected, split = (list(column) for column in zip(*rows, strict=True))
    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts for _ in range(2)]
    texts = [f"answer {i}" for i in range(len(asked))]
    return preferences.build(
        pa.table({"user_id": [f"u{i}" for i in range(len(seen))], "group": ["a"] * len(seen), "seen": seen}),
        pa.table({"response_id": texts, "prompt": pa.array(asked, message), "text": texts}),
        pa.table(
            {
                "user": pa.array(user, pa.int32()),
                "chosen": pa.array(chosen, pa.int32()),
                "rejected": pa.array(rejected, pa.int32()),
                "split": split,
                "controversial": pa.array([None] * len(user), pa.bool_()),
            }
        ),
        {},
    )


def _check(data: Preferences) -> dict[str, leakage.Leak]:
    return {leak.name: leak for leak in leakage.check(data, data.pairs("train", seen=True), seed=0)}


def test_a_clean_table_passes():
    found = _check(_world())
    assert [leak.found for leak in found.values()][:3] == [False, False, False]
    assert found["test prompts in training"].numbers == {"exact": 0, "normalised": 0, "pairs": 25 * 20}
    assert found["unseen users in the graph"].numbers["users"] == 20


def test_prompts_on_both_sides_are_counted_by_normalised_text_too():
    prompts = ["Why is  it?", "why is IT", "Other", "Café.", "Cafe\u0301"]
    rows = [(0, 0, 1, "train"), (0, 2, 3, "test"), (0, 4, 5, "test"), (0, 6, 7, "validation"), (1, 8, 9, "test")]
    rows += [(1, 4, 5, "train"), (0, 1, 0, "train")]
    found = _check(_tables(prompts, rows, [True, True]))["test prompts in training"]
    # "Other" is another user's training prompt; the other two are the same words, written otherwise.
    assert found.found
    assert found.numbers == {"exact": 1, "normalised": 3, "pairs": 3}
    assert "2 of them by normalised text" in found.text


def test_a_users_test_pair_in_training_is_refused_either_way_round():
    rows = [(0, 0, 1, "train"), (0, 3, 2, "train"), (1, 2, 3, "train"), (0, 2, 3, "test"), (1, 1, 0, "test")]
    data = _tables(["a", "b"], rows, [True, True])
    assert leakage.answered_before(data).tolist() == [True, False]
    with pytest.raises(UserError, match=r"rows 3: 1 test pairs are among the same user's training"):
        _check(data)


@pytest.mark.parametrize("first", ["chosen", "rejected"])
def test_rows_numbered_by_answers_are_told(first):
    sides = (0, 1) if first == "chosen" else (1, 0)
    rows = [(0, 2 * i + sides[0], 2 * i + sides[1], "test" if i == 3 else "train") for i in range(4)]
    found = _check(_tables(["a", "b", "c", "d"], rows, [True]))["order of rows"]
    assert found.found
    assert found.numbers == {"lower": float(first == "chosen"), "comparisons": 3}
    mixed = [(0, *((0, 1) if i % 2 else (1, 0)), "train") for i in range(2)] + [(0, 2, 3, "test")]
    assert not _check(_tables(["a", "b"], mixed, [True]))["order of rows"].found


def test_an_unseen_users_edge_is_refused():
    data = _world()
    with pytest.raises(UserError, match=r"graph: 30 edges are of unseen users"):
        leakage.check(data, data.pairs("train"), seed=0)


# --- what methods are shown ---


def test_methods_are_shown_neither_groups_nor_test_answers():
    data = _world()
    shown = mask_labels(data, 5)
    preferences.validate(shown)
    assert set(shown.groups) == {None}
    assert set(data.groups) == {"helpfulness", "honesty"}
    for split in ("train", "validation"):
        for ours, theirs in zip(shown.pairs(split), data.pairs(split), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    turn, test, real = label_signs(shown, data), shown.pairs("test"), data.pairs("test")
    assert 0.4 < (turn > 0).mean() < 0.6
    np.testing.assert_array_equal(np.where(turn > 0, test.chosen, test.rejected), real.chosen)
    np.testing.assert_array_equal(np.where(turn > 0, test.rejected, test.chosen), real.rejected)
    # Neither the order of rows nor the seed's draw tells the answer.
    assert 0.4 < (test.chosen < test.rejected).mean() < 0.6


def test_turning_test_answers_round_shows_methods_the_same_tables():
    data = _world()
    table = data.comparisons.to_pandas()
    turned = (table["split"] == "test") & (np.random.default_rng(0).random(len(table)) < 0.5)
    table.loc[turned, ["chosen", "rejected"]] = table.loc[turned, ["rejected", "chosen"]].to_numpy()
    other = dataclasses.replace(
        data, comparisons=pa.Table.from_pandas(table, schema=data.comparisons.schema, preserve_index=False)
    )
    ours, theirs = mask_labels(data, 1), mask_labels(other, 1)
    assert ours.comparisons.equals(theirs.comparisons)
    assert not np.array_equal(label_signs(ours, data), label_signs(theirs, other))
    with pytest.raises(ValueError, match="same data set"):
        label_signs(ours, _world(seed=4))


# --- formatting ---


def test_features_are_counts_and_shares():
    text = '# Head\n\n- one\n2) two\n"I\'m" [x] (y), `z`: **B**!\n'
    found = dict(zip(formatting.NAMES, formatting.features([text, ""])[0], strict=True))
    counts = {
        "line breaks": 5,
        "empty lines": 1,
        "list marks": 2,
        "headings": 1,
        "emphasis": 2,
        "code marks": 2,
        "square brackets": 2,
        "other brackets": 3,
        "double quotes": 2,
        "single quotes": 1,
        "commas and colons": 2,
        "sentence ends": 1,
        "written escapes": 0,
        "length": len(text),
        "words": len(text.split()),
    }
    assert {name: round(float(np.expm1(found[name]))) for name in counts} == counts
    assert found["capitals"] == pytest.approx(3 / len(text))
    assert found["digits"] == pytest.approx(1 / len(text))
    assert (found["white space at the ends"], found["ends in a sentence's end"], found["opens as a list"]) == (1, 1, 0)
    assert formatting.features(["['rendered']"])[0][formatting.NAMES.index("opens as a list")] == 1
    assert not formatting.features([""])[0].any()


def _noise(rng: np.random.Generator, pairs: int, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(pairs, len(formatting.NAMES))), rng.integers(prompts, size=pairs)


def test_a_planted_format_is_found_and_noise_is_not():
    rng = np.random.default_rng(7)
    x, prompt = _noise(rng, 1500, 60)
    noise = formatting.fit(x, prompt, seed=0)
    assert noise.interval[0] < 0.5 < noise.interval[1]
    turned = np.where(x[:, 3] > 0, 1, -1) * np.where(rng.random(1500) < 0.8, 1, -1)
    found = formatting.fit(x * turned[:, None], prompt, seed=0)
    assert 0.75 < found.accuracy < 0.85
    assert found.interval[0] > 0.7
    assert int(np.abs(found.weights).argmax()) == 3


def test_a_data_set_whose_rejected_texts_are_rendered_lists_is_told():
    data = _world()
    rejected = set(data.pairs("train").rejected.tolist()) - set(data.pairs("train").chosen.tolist())
    texts = data.responses["text"].to_pylist()
    texts = [f"['{text}']" if row in rejected else text for row, text in enumerate(texts)]
    place = data.responses.schema.get_field_index("text")
    other = dataclasses.replace(data, responses=data.responses.set_column(place, "text", pa.array(texts, pa.string())))
    clean, leaky = (_check(one)["formatting"] for one in (data, other))
    assert leaky.found
    assert leaky.numbers["accuracy"] > max(clean.numbers["accuracy"], 0.6)
    assert any(name in leaky.text for name in ("square brackets", "single quotes", "as a list"))


def test_labels_shuffled_leave_formatting_at_chance():
    data = _world(seen_users=60, train_prompts=30)
    pairs = data.pairs("train", seen=True)
    table = formatting.features(data.responses["text"].to_pylist())
    turn = np.random.default_rng(1).choice([-1, 1], len(pairs.user))
    found = formatting.fit((table[pairs.chosen] - table[pairs.rejected]) * turn[:, None], pairs.chosen // 4, seed=2)
    assert found.interval[0] < 0.5 < found.interval[1]


def test_the_fit_is_the_ridge_optimum():
    rng = np.random.default_rng(3)
    x, prompt = _noise(rng, 200, 5)
    x[:, 4] = 0  # a feature that no pair differs in
    x[:, 2] += 0.5
    found = formatting.fit(x, prompt, seed=0)
    scale = np.sqrt((x**2).mean(0))
    scale[4] = 1

    def loss(w: np.ndarray) -> float:
        return float(np.log1p(np.exp(-(x / scale) @ w)).sum() + found.strength / 2 * (w**2).sum())

    best = optimize.minimize(loss, np.zeros(x.shape[1]), method="BFGS", options={"gtol": 1e-6}).x
    np.testing.assert_allclose(found.weights * scale, best, atol=1e-4)
    assert found.weights[4] == 0
    assert found.strength in formatting.STRENGTHS


def test_prompts_stay_together_in_folds():
    """With one prompt answered by one rule and each other prompt by its own, held-out prompts cannot be predicted."""
    rng = np.random.default_rng(11)
    prompt = np.repeat(np.arange(10), 60)
    rules = rng.normal(size=(10, len(formatting.NAMES)))
    x = rng.normal(size=(600, len(formatting.NAMES)))
    x *= np.sign(np.einsum("pf,pf->p", x, rules[prompt]))[:, None]
    found = formatting.fit(x, prompt, seed=0)
    fitted = (x @ found.weights > 0).mean()
    assert fitted > found.accuracy + 0.03
    with pytest.raises(ValueError, match="two at least"):
        formatting.fit(x, np.zeros(600, int), seed=0)
    assert (x @ formatting.fit_unjudged(x) > 0).mean() > 0.5
    assert not formatting.fit_unjudged(x[:0]).any()


def test_one_prompt_is_told_not_judged():
    rows = list(itertools.chain([(0, 0, 1, "train"), (0, 2, 3, "test")]))
    assert "not judged" in _check(_tables(["a", "b"], rows, [True]))["formatting"].text
