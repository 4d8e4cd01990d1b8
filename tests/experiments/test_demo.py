"""What `make serve` makes: a world in English, pairs of new prompts, people who voted; or pairs of given votes."""

import json

import numpy as np
import pytest
import tiny

import pref_jax
from experiments import demo
from pref_jax.data.sources.synthetic import lexicon, world
from pref_jax.errors import UserError
from pref_jax.serve.store.store import Store


def test_the_world_is_spoken_in_english():
    found, invented = demo.from_world(), lexicon.invent().choose("all")
    unreadable = {*invented.markers.ravel(), *invented.topics, *invented.verbs}
    texts = [text for pair in found.pairs for text in (str(pair.prompt), pair.first, pair.second)]
    texts += [vote[name] for vote in found.votes for name in ("prompt", "chosen", "rejected")]
    assert not {word.strip(".,?").lower() for text in texts for word in text.split()} & unreadable
    assert len(found.pairs) > 100
    assert len({pair.id for pair in found.pairs}) == len(found.pairs)
    assert all(pair.first != pair.second for pair in found.pairs)
    assert demo.from_world().pairs == found.pairs, "the same each time"


def test_simulated_people_vote_by_their_tastes():
    """Most preferences are those of the true utility of the person who is simulated."""
    found = demo.from_world()
    truth, right = world.truth(demo.WORLD), []
    for person, (_, votes) in enumerate(found.given.items()):
        assert len({vote.pair for vote in votes}) < len(votes), "some pairs come again"
        for vote in votes:
            if vote.choice in ("first", "second"):
                a, b = map(int, str(vote.pair).split("-"))
                gain = truth.tastes[person] @ (truth.levels[a] - truth.levels[b])
                right.append((gain > 0) == (vote.choice == "first") if gain else True)
    assert np.mean(right) > 0.85


def test_votes_of_a_file_become_a_model_and_a_pool_once(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MAX_LENGTH", 48)
    base, words = str(tiny.reward_model(tmp_path / "base")), ("rain", "sun", "no", "a long walk")
    rows = []
    for n in range(60):
        chosen, rejected = words[n % 4], words[(n + 1 + n % 2) % 4]
        rows.append({"user": f"u{n % 5}", "prompt": f"What of {n % 7}?", "chosen": chosen, "rejected": rejected})
    path, folder = tmp_path / "votes.jsonl", tmp_path / "demo"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    demo.prepare(folder, str(path), base)
    with Store.open(f"{folder}/votes.db") as store:
        pairs = store.pairs(demo.POOL)
    voted = {(row["prompt"], *sorted((row["chosen"], row["rejected"]))) for row in rows}
    assert {(pair.prompt, *sorted((pair.first, pair.second))) for pair in pairs} == voted
    assert len(pairs) == len(voted), "each once"
    assert pref_jax.load(folder / "model").knows("u1")
    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    demo.prepare(folder, str(path), base)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()} == made
    with pytest.raises(UserError):
        demo.prepare(tmp_path / "other", str(tmp_path / "missing.jsonl"), base)
