"""The store's promises, on SQLite and on a real PostgreSQL."""

import dataclasses

from pref_jax.serve.store.records import Vote

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How löng? 🐈"}]


def vote(name="1", choice="first", **given):
    texts = {"prompt": "How long?", "first": "Seven minutes.", "second": "It depends."}
    return Vote(**{"id": name, "choice": choice, **texts, **given})


FULL = vote(
    "full", "second", prompt=CHAT, strength=2.5, shown="right", asked="bald", pair="p7", latency=3.25,
    page_version="1", model_version="m", time=1.7e9,
)  # fmt: skip


def given(stored):
    """A stored vote as it was given."""
    return Vote(**{field.name: getattr(stored, field.name) for field in dataclasses.fields(Vote)})


def test_votes_come_back_as_they_were_given(store):
    votes = [FULL, vote("1"), *(vote(choice, choice) for choice in ("tie", "both_bad", "skip"))]
    assert store.add("ada", votes).stored == tuple(each.id for each in votes)
    stored = store.votes("ada")
    assert [given(each) for each in stored] == votes
    numbers = [each.number for each in stored]
    assert numbers == sorted(set(numbers))
    assert store.votes("ada", after=numbers[2]) == stored[3:]
    assert store.revision("ada") == numbers[-1]
    assert (store.votes("bo"), store.revision("bo")) == ([], 0)
