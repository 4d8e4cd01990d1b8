"""Votes from a file or from memory, as the tables that both methods are fitted to."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pref_jax.data import preferences
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import MESSAGE
from pref_jax.data.sources.jsonl import reader
from pref_jax.data.sources.jsonl.rows import Row, checked_row
from pref_jax.errors import Faults, UserError

Votes = str | Path | Iterable[dict[str, Any]]


def read_votes(
    votes: Votes,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    unseen_fraction: float = 0.0,
    split_by: str = "prompt",
    min_votes_per_user: int = 1,
    seed: int = 0,
) -> Preferences:
    """Reads votes; by default everyone is trained on and no vote is kept for a test.

    Args:
      votes: a JSONL file of the format in `pref_jax.data.sources.jsonl.reader`, or such rows as dicts.
      validation_fraction: of the pairs, by which methods choose.
      test_fraction: of the prompts.
      unseen_fraction: of the users.
      split_by: "prompt", "pair" or "time", see `reader.read`.
      min_votes_per_user: users with fewer votes are left out.
      seed: of all draws.

    Raises:
      UserError: with all bad rows at once, each with its file, line, field and fix.

    Example:
      >>> rows = [{"user": "ada", "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}]
      >>> read_votes(rows).num_users
      1
    """
    return reader.read(
        votes,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        unseen_fraction=unseen_fraction,
        split_by=split_by,
        min_votes_per_user=min_votes_per_user,
        seed=seed,
    )


def as_preferences(votes: Preferences | Votes, *, seed: int = 0) -> Preferences:
    """Tables as they are, from a folder that `Preferences` were saved in, or by `read_votes`.

    Raises:
      UserError: as `read_votes`, or as `pref_jax.data.preferences.load` for a folder.
    """
    if isinstance(votes, Preferences):
        return votes
    if isinstance(votes, str | Path) and Path(votes).is_dir():
        return preferences.load(votes)
    return read_votes(votes, seed=seed)


class VoteRows(NamedTuple):
    """Votes one by one.

    Attributes:
      users: who gave each of P votes.
      responses: 2 P rows of `prompt` and `text`: the chosen responses, then the rejected ones.
    """

    users: list[str]
    responses: pa.Table


def vote_rows(votes: Votes, user: str | None = None) -> VoteRows:
    """Reads votes in their order, without splits or tables of users.

    Args:
      votes: as `read_votes` takes them.
      user: whose they are; rows may then leave their `user` out. None: each row names its own.

    Raises:
      UserError: with all bad rows at once; for a row of another user.

    Example:
      >>> vote_rows([{"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}], "ada").users
      ['ada']
    """
    faults, found = Faults(), list[Row]()
    if isinstance(votes, str | Path):
        where, lines = str(votes), reader.json_lines(Path(votes), faults)
    else:
        where, lines = "votes", enumerate(votes, start=1)
    for line, given in lines:
        value = {"user": user, **given} if user is not None and isinstance(given, dict) else given
        row = checked_row(f"{where}:{line}", line, value, faults, Counter())
        if row is not None and user not in (None, row.user):
            faults.add(f"{where}:{line}, field 'user'", f"is {row.user!r}, not {user!r}", "give votes of one user")
        elif row is not None:
            found.append(row)
    faults.raise_if_any(f"{where}: bad rows")
    if not found:
        raise UserError(f"{where}: no votes; give prompt, chosen and rejected of at least one")
    prompts = [[{"role": role, "content": content} for role, content in row.prompt] for row in found]
    texts = [row.chosen for row in found] + [row.rejected for row in found]
    table = {"prompt": pa.array(prompts + prompts, pa.list_(MESSAGE)), "text": pa.array(texts, pa.string())}
    return VoteRows([row.user for row in found], pa.table(table))
