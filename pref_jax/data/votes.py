"""Votes from a file or from memory, as the tables that both methods are fitted to."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from pref_jax.comparisons import Comparisons
from pref_jax.data import preferences
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import MESSAGE, OUTCOMES
from pref_jax.data.sources.common.split_rule import NOBODY_SEEN
from pref_jax.data.sources.jsonl import reader
from pref_jax.data.sources.jsonl.bad_rows import RowFaults
from pref_jax.data.sources.jsonl.rows import checked_row
from pref_jax.data.sources.jsonl.tables import Collector, as_messages, columns_of
from pref_jax.errors import UserError

Votes = str | Path | Iterable[dict[str, Any]]


def read_votes(
    votes: Votes,
    *,
    columns: Mapping[str, str] | str | None = None,
    on_bad_row: str = "error",
    bad_rows: str | Path = "",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    unseen_fraction: float = 0.0,
    split_by: str = "prompt",
    min_votes_per_user: int = 1,
    seed: int = 0,
) -> Preferences:
    """Reads votes; by default everyone is trained on and no vote is kept for a test.

    Args:
      votes: a file, folder or hub id of votes in any form of `pref_jax.data.sources.jsonl.reader`, or rows as dicts.
      columns: field -> column where names differ, also "user=annotator,prompt=question".
      on_bad_row: "error", or "drop", which counts and tells them.
      bad_rows: a `.jsonl` file that then lists them.
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
    found = reader.read(
        votes,
        columns=columns,
        on_bad_row=on_bad_row,
        bad_rows=bad_rows,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        unseen_fraction=unseen_fraction,
        split_by=split_by,
        min_votes_per_user=min_votes_per_user,
        seed=seed,
    )
    # Standard input and hub ids are no paths whose files could change behind a workdir.
    if not isinstance(votes, str | Path) or not Path(votes).exists():
        return found
    return dataclasses.replace(found, meta={**found.meta, "path": str(votes)})


def as_preferences(votes: Preferences | Votes, *, seed: int = 0) -> Preferences:
    """Tables as they are, from a folder that `Preferences` were saved in, or by `read_votes`.

    Raises:
      UserError: as `read_votes`, or as `pref_jax.data.preferences.load` for a folder; if no user is seen.
    """
    if isinstance(votes, Preferences):
        return need_seen(votes)
    if isinstance(votes, str | Path) and (Path(votes) / "comparisons.arrow").exists():
        return need_seen(preferences.load(votes))
    return read_votes(votes, seed=seed)


def need_seen(tables: Preferences) -> Preferences:
    """The same tables.

    Raises:
      UserError: if no user is seen.
    """
    if not tables.seen.any():
        raise UserError(NOBODY_SEEN)
    return tables


class VoteRows(NamedTuple):
    """Votes one by one.

    Attributes:
      users: who made each of P comparisons.
      responses: 2 P rows of `prompt`, `text` and `extra`: the chosen responses, then the rejected ones.
      comparisons: the same, `user` by number in order of appearance, rows of `responses`, with tie, strength, choice.
      rated: bool [P], made of two ratings.
      unused: what else there was, in words: "not used: 2 ties and 1 skipped pairs"; empty if there was nothing.
    """

    users: list[str]
    responses: pa.Table
    comparisons: Comparisons
    rated: Bool[np.ndarray, "P"]
    unused: str = ""


def vote_rows(
    votes: Votes, user: str | None = None, *, ties: bool = False, columns: Mapping[str, str] | str | None = None
) -> VoteRows:
    """Reads votes in their order, without splits or tables of users; comparisons of ratings are last.

    Args:
      votes: as `read_votes` takes them.
      user: whose they are; rows may then leave their `user` out. None: each row names its own.
      ties: also ties and pairs of which both are bad. Skipped pairs are never among them.
      columns: as for `read_votes`.

    Raises:
      UserError: with all bad rows at once; for a row of another user; if nothing is left.

    Example:
      >>> vote_rows([{"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}], "ada").users
      ['ada']
    """
    faults = RowFaults()
    reading, found = reader.Reading(votes, columns, faults), Collector(faults)
    for where, value in reading.rows():
        value = {"user": user, **value} if user is not None and isinstance(value, dict) else value
        row = checked_row(where, value, reading.notes)
        if row is not None and user not in (None, row.user):
            faults.add(f"{where}, field 'user'", f"is {row.user!r}, not {user!r}", "give votes of one user")
        elif row is not None:
            found.add(row)
    faults.raise_if_any(f"{reading.name}: bad rows")
    if not len(found):
        raise UserError(f"{reading.name}: no votes; give prompt, chosen and rejected of at least one")
    kept, unused = _compared(found, ties)
    if not len(kept.user):
        raise UserError(f"{reading.name}: no comparison to learn from: {unused}; give a preference, or two ratings")
    rated = kept.row
    responses = list(found.responses)
    rows = [responses[row] for row in np.concatenate([kept.chosen, kept.rejected])]
    prompts = [as_messages(prompt) for prompt in found.prompts]
    columns_of_text = {
        "prompt": pa.array([prompts[prompt] for prompt, _ in rows], pa.list_(MESSAGE)),
        "text": pa.array([answer[0] for _, answer in rows], pa.string()),
        "extra": pa.array([answer[1] for _, answer in rows], pa.string()),
    }
    names = list(found.users)
    count = np.arange(len(kept.user))
    comparisons = kept._replace(chosen=count, rejected=count + len(count), row=None)
    return VoteRows([names[who] for who in kept.user], pa.table(columns_of_text), comparisons, rated, unused)


def _compared(found: Collector, ties: bool) -> tuple[Comparisons, str]:
    """Comparisons by numbers of responses, in whose `row` is whether they were rated, and what is left out."""
    votes = found.votes()
    made, _ = columns_of(votes, np.full(len(votes.user), "train"), np.random.default_rng(0))
    outcome = np.asarray(made["outcome"])
    here = (outcome == OUTCOMES[0]) | (ties & np.isin(outcome, OUTCOMES[1:3]))
    left = Counter(outcome[~here].tolist())
    words = {"tie": "ties", "both_bad": "pairs with both bad", "skipped": "skipped pairs"}
    said = [f"{left[name]} {words[name]}" for name in words if left[name]]
    strength, choice = (pa.array(made[name]) for name in ("strength", "choice"))
    kept = Comparisons(
        **{name: np.asarray(made[name])[here] for name in ("user", "chosen", "rejected")},
        row=np.asarray(made["rated"])[here],
        tie=outcome[here] != OUTCOMES[0],
        strength=strength.to_numpy(zero_copy_only=False)[here],
        choice=choice.fill_null(-1).to_numpy(zero_copy_only=False)[here],
    )
    return kept, f"not used: {' and '.join(said)}" if said else ""
