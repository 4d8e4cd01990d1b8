"""Votes from a file or from memory, as the tables that both methods are fitted to."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.jsonl import reader


def read_votes(
    votes: str | Path | Iterable[dict[str, Any]],
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    unseen_fraction: float = 0.0,
    seed: int = 0,
) -> Preferences:
    """Reads votes; by default everybody is trained on and no vote is kept for a test.

    Args:
      votes: a JSONL file of the format in `pref_jax.data.sources.jsonl.reader`, or such rows as dicts.
      validation_fraction: of the pairs, by which methods choose.
      test_fraction: of the prompts.
      unseen_fraction: of the users.
      seed: of all draws.

    Raises:
      UserError: with all bad rows at once, each with its file, line, field and fix.

    Example:
      >>> rows = [{"user": "ada", "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}]
      >>> read_votes(rows).num_users
      1
    """
    fractions = {
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "unseen_fraction": unseen_fraction,
    }
    return reader.read(votes, **fractions, seed=seed)
