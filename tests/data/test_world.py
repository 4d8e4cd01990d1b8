"""The synthetic world: what its texts, tastes and protocols promise."""

import collections
import dataclasses

import numpy as np
import pytest

from pref_jax.data import preferences
from pref_jax.data.sources.synthetic import lexicon, world
from pref_jax.data.sources.synthetic.world import WorldConfig
from pref_jax.errors import UserError

SMALL = WorldConfig(seen_users=30, unseen_users=8, train_prompts=20, test_prompts=10, pairs_per_user=6)


def _levels(text: str, marker_level: dict[str, tuple[int, int]]) -> np.ndarray:
    """Mean level of the markers of each attribute that a text shows, read word by word."""
    found = collections.defaultdict(list)
    for word in text.split():
        if word in marker_level:
            attribute, level = marker_level[word]
            found[attribute].append(level)
    return np.array([np.mean(found[attribute]) for attribute in range(len(lexicon.ATTRIBUTES))])


def _marker_levels() -> dict[str, tuple[int, int]]:
    markers = lexicon.invent().markers
    _, attributes, levels, _ = markers.shape
    return {str(w): (a, k) for a in range(attributes) for k in range(levels) for w in markers[:, a, k].ravel()}


def test_words_are_distinct_and_no_english():
    words = lexicon.invent()
    everything = [str(w) for role in dataclasses.asdict(words).values() for w in role.ravel()]
    assert len(set(everything)) == len(everything)
    assert not set(everything) & set(" ".join(lexicon.QUESTIONS).split())


def test_same_seed_same_world_and_another_seed_another():
    first, second = world.generate(SMALL), world.generate(SMALL)
    assert first.comparisons.equals(second.comparisons)
    assert first.responses.equals(second.responses)
    assert not first.responses.equals(world.generate(dataclasses.replace(SMALL, seed=1)).responses)


@pytest.mark.parametrize("tastes", ["uf_p_2", "uf_p_4"])
def test_users_choose_by_their_attribute(tastes):
    # Without marker noise the words give the levels away exactly, so every choice can be checked from the text alone.
    data = world.generate(dataclasses.replace(SMALL, tastes=tastes, marker_noise=0.0))
    marker_level = _marker_levels()
    levels = np.array([_levels(text, marker_level) for text in data.responses["text"].to_pylist()])
    pairs = data.pairs(("train", "validation", "test"))
    attribute = np.array([lexicon.ATTRIBUTES.index(str(name)) for name in data.groups])[pairs.user]
    gap = levels[pairs.chosen, attribute] - levels[pairs.rejected, attribute]
    assert (gap >= 0).all()
    assert (gap == 0).any()  # ties there are, broken at random
    used = 2 if tastes == "uf_p_2" else 4
    decided = (levels[pairs.chosen, :used] != levels[pairs.rejected, :used]).all(axis=1)
    wins = (levels[pairs.chosen, :used] > levels[pairs.rejected, :used])[decided]
    expected = wins.any(axis=1) & ~wins.all(axis=1)
    np.testing.assert_array_equal(pairs.controversial[decided] == 1, expected)


def test_equal_ratings_are_broken_alike_for_all_users_of_a_taste():
    data = world.generate(dataclasses.replace(SMALL, seen_users=200))
    pairs = data.pairs(("train", "validation", "test"))
    votes = collections.defaultdict(set)
    for user, chosen, rejected in zip(pairs.user, pairs.chosen, pairs.rejected, strict=True):
        votes[data.groups[user], min(chosen, rejected), max(chosen, rejected)].add(chosen)
    assert max(map(len, votes.values())) == 1


def test_words_of_test_prompts_occur_in_no_training_prompt():
    data = world.generate(SMALL)
    texts, prompts = data.responses["text"].to_pylist(), data.responses["prompt"].to_pylist()
    by_split = {"train": set(), "test": set()}
    for split, rows in by_split.items():
        pairs = data.pairs(("train", "validation") if split == "train" else "test")
        for row in np.unique([*pairs.chosen, *pairs.rejected]):
            rows |= set(texts[row].split()) | set(prompts[row][0]["content"].split())
    words = lexicon.invent()
    for own, other in ((words.choose("train"), "test"), (words.choose("test"), "train")):
        assert not {str(w) for role in dataclasses.asdict(own).values() for w in role.ravel()} & by_split[other]


def test_pretraining_text_uses_all_words_and_states_levels():
    text = world.pretraining_text(dialogues=400, glossaries=300, marker_noise=0.0, seed=3)
    marker_level = _marker_levels()
    seen = {word for turns in text for turn in turns for word in turn.split()}
    assert set(marker_level) <= seen
    plain = {w: (a, k) for a, name in enumerate(lexicon.ATTRIBUTES) for k, w in enumerate(lexicon.PLAIN_WORDS[name])}
    for turns in text:
        if turns[0] == lexicon.GLOSSARY_QUESTION:
            for entry in turns[1].split(" .")[:-1]:
                word, meaning = entry.split(" : ")
                assert marker_level[word.strip()] == plain[meaning]
        else:
            remarked = dict(plain[word] for word in turns[2].split())
            np.testing.assert_array_equal(_levels(turns[1], marker_level), [remarked[a] for a in range(4)])


def test_all_gives_everybody_n_pairs_and_one_for_validation():
    data = world.generate(SMALL)

    def count(split, seen):
        return np.bincount(data.pairs(split, seen=seen).user, minlength=data.num_users)[data.seen == seen]

    assert (count("train", True) == SMALL.pairs_per_user - 1).all()
    assert (count("validation", True) == 1).all()
    assert (count("train", False) == SMALL.pairs_per_user).all()
    assert (count("validation", False) == 0).all()
    assert (count("test", True) == SMALL.test_pairs_per_user).all()


def test_avg_draws_numbers_with_the_same_mean():
    data = world.generate(dataclasses.replace(SMALL, protocol="AVG", seen_users=2000, train_prompts=100))
    asked = np.bincount(data.pairs(("train", "validation"), seen=True).user, minlength=data.num_users)[data.seen]
    held = np.bincount(data.pairs("validation", seen=True).user, minlength=data.num_users)[data.seen]
    n = SMALL.pairs_per_user
    assert set(np.unique(asked)) == set(range(1, 2 * n))
    assert abs(asked.mean() - n) < 0.4
    np.testing.assert_array_equal(held, asked >= n)


def test_no_user_answers_a_pair_twice():
    data = world.generate(SMALL)
    pairs = data.pairs(("train", "validation", "test"))
    low, high = np.minimum(pairs.chosen, pairs.rejected), np.maximum(pairs.chosen, pairs.rejected)
    asked = np.stack([pairs.user, low, high])
    assert len(np.unique(asked, axis=1).T) == asked.shape[1]


def test_label_noise_flips_training_answers_alone():
    clean = world.generate(dataclasses.replace(SMALL, seen_users=500)).comparisons.to_pandas()
    noisy = world.generate(dataclasses.replace(SMALL, seen_users=500, label_noise=0.2)).comparisons.to_pandas()
    flipped = clean["chosen"] != noisy["chosen"]
    assert not flipped[clean["split"] == "test"].any()
    assert abs(flipped[clean["split"] != "test"].mean() - 0.2) < 0.03


def test_dirichlet_users_have_no_group():
    data = world.generate(dataclasses.replace(SMALL, tastes="dirichlet"))
    assert set(data.groups) == {None}


@pytest.mark.parametrize("users", [1, 10])
def test_smallest_worlds(users):
    data = world.generate(
        WorldConfig(seen_users=users, unseen_users=0, train_prompts=6, test_prompts=6, pairs_per_user=2)
    )
    assert preferences.summarise(data)["users"]
    assert data.num_users == users


def test_all_faults_of_a_config_come_at_once():
    with pytest.raises(UserError) as error:
        world.generate(dataclasses.replace(SMALL, seen_users=0, label_noise=0.9, responses_per_prompt=1))
    assert all(name in str(error.value) for name in ("seen_users", "label_noise", "responses_per_prompt"))


def test_too_small_a_pool_is_an_error_that_names_the_mend():
    with pytest.raises(UserError, match=r"train_prompts.*pool of"):
        world.generate(dataclasses.replace(SMALL, train_prompts=1, pairs_per_user=30))


def test_ties_and_strengths_are_of_the_smallest_and_largest_differences():
    told = world.generate(WorldConfig(ties=0.4, strengths=3, seed=1))
    votes = told.pairs(("train", "validation"), ties=True)
    assert np.mean(votes.tie) == pytest.approx(0.4, abs=0.01)
    assert np.isnan(votes.strength[votes.tie]).all()
    assert np.bincount(votes.strength[~votes.tie].astype(int))[1:].min() > 0.3 * np.sum(~votes.tie)
    assert not told.pairs("test", ties=True).tie.any()
    plain = world.generate(WorldConfig(seed=1))
    same = plain.pairs(("train", "validation"))
    np.testing.assert_array_equal(same.chosen[~votes.tie], votes.chosen[~votes.tie])
