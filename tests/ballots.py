"""Votes for the tests of the store."""

import dataclasses
from typing import Any

from pref_jax.serve.store.records import StoredVote, Vote

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How löng? 🐈"}]
_TEXTS: dict[str, Any] = {"prompt": "How long?", "first": "Seven minutes.", "second": "It depends."}


def vote(name: str = "1", choice: str = "first", **given: Any) -> Vote:
    """A vote on the same pair as all others, but for what is given."""
    return Vote(**{"id": name, "choice": choice, **_TEXTS, **given})


FULL = vote(
    "full", "second", prompt=CHAT, strength=2.5, shown="right", asked="bald", pair="p7", latency=3.25,
    page_version="1", model_version="m", time=1.7e9,
)  # fmt: skip


def given(stored: StoredVote) -> Vote:
    """A stored vote as it was given."""
    return Vote(**{field.name: getattr(stored, field.name) for field in dataclasses.fields(Vote)})
