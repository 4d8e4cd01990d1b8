"""Votes of a store as lines of the project's own format of votes, see `pref_jax.data.sources.jsonl.reader`."""

from typing import Any

from pref_jax.serve.store.records import StoredVote

_OUTCOMES = {"tie": "tie", "both_bad": "both_bad", "skip": "skipped"}
_PROVENANCE = ("id", "shown", "asked", "pair", "latency", "page_version", "model_version", "received")


def as_line(user: str, vote: StoredVote, *, provenance: bool = False) -> dict[str, Any]:
    """One vote; its time is the client's, or the server's where the client told none.

    Args:
      user: who gave it.
      vote: as it is stored.
      provenance: whether fields that nothing is trained on are told too.

    Example:
      >>> texts = {"prompt": "How long?", "first": "A minute.", "second": "It depends."}
      >>> as_line("ada", StoredVote(id="1", choice="second", **texts, number=1, received=1.7e9))
      {'user': 'ada', 'prompt': 'How long?', 'chosen': 'It depends.', 'rejected': 'A minute.', 'time': 1700000000.0}
    """
    line: dict[str, Any] = {"user": user, "prompt": vote.prompt}
    if vote.choice in _OUTCOMES:
        line |= {"responses": [vote.first, vote.second], "outcome": _OUTCOMES[vote.choice]}
    else:
        pair = (vote.first, vote.second) if vote.choice == "first" else (vote.second, vote.first)
        line |= dict(zip(("chosen", "rejected"), pair, strict=True))
    if vote.strength is not None:
        line["strength"] = vote.strength
    line["time"] = vote.received if vote.time is None else vote.time
    if provenance:
        own = {name: getattr(vote, name) for name in _PROVENANCE}
        line |= {name: value for name, value in own.items() if value is not None}
    return line
