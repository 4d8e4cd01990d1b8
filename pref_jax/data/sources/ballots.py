"""Votes by name into tables: splits by voter and by query, with every vote that is left out counted.

Axis letters: P votes, K votes that are kept, U users.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from pref_jax.data.majority import GROUPS_ARE_QUESTIONS
from pref_jax.data.preferences import Preferences, build
from pref_jax.data.splits import at_most, draw, hold_out
from pref_jax.data.validate import COMPARISONS, RESPONSES, USERS
from pref_jax.errors import UserError

RULE = (
    "Ties, repeated and self-contradicting votes and votes without texts are left out. A user is a worker, or a worker "
    "on one dimension if there are several. Users with fewer than min_votes votes are left out; of the workers still "
    "there the unseen fraction is drawn, of their queries the test fraction; users without a vote on another query are "
    "left out. Unseen users keep at most context_pairs training pairs, drawn at random. Of the seen users' training "
    "pairs the validation fraction is drawn, leaving each user one. Controversial: the raters of a pair, on that "
    "dimension, disagree; null for a single rater."
)


class Ballot(NamedTuple):
    """One decided vote; responses by name."""

    worker: str
    dimension: str
    query: str
    chosen: str
    rejected: str


def tabulate(
    ballots: list[Ballot],
    *,
    texts: dict[str, str],
    queries: dict[str, str],
    options: dict[str, Any],
    seed: int,
    meta: dict[str, Any],
) -> Preferences:
    """Splits the votes by `RULE` and builds the tables.

    Args:
      ballots: at most one for each worker, dimension and pair.
      texts: response -> text; no two of one query are equal.
      queries: query -> its text.
      options: dimensions, unseen_fraction, test_query_fraction, validation_fraction, min_votes, context_pairs.
      seed: of all draws.
      meta: source, licence and `filtered` so far; the counts of this step are added there.

    Raises:
      UserError: if no vote is left, or a split is empty.
    """
    rng = np.random.default_rng(seed)
    several = len(options["dimensions"]) > 1
    names, user = _number([f"{vote.worker}/{vote.dimension}" if several else vote.worker for vote in ballots])
    controversial = _controversial(ballots)

    keep = np.bincount(user, minlength=len(names))[user] >= options["min_votes"]
    few_users, few_votes = len(names) - len(np.unique(user[keep])), int((~keep).sum())
    if not keep.any():
        raise UserError("no votes are left after filtering; lower min_votes, or name more dimensions")
    unseen = _drawn([vote.worker for vote in ballots], keep, options["unseen_fraction"], rng)
    test = _drawn([vote.query for vote in ballots], keep, options["test_query_fraction"], rng)

    trained = np.bincount(user[keep & ~test], minlength=len(names)) > 0
    lost = keep & ~trained[user]
    keep &= ~lost
    context = at_most(user, keep & ~test & unseen, options["context_pairs"], rng)
    unused = keep & ~test & unseen & ~context
    keep &= ~unused
    validation = hold_out(
        user, keep & ~test & ~unseen, options["validation_fraction"], rng, keep=np.ones(len(names), bool)
    )
    split = np.where(test, "test", np.where(validation, "validation", "train"))

    left_out = {
        "users_under_min_votes": few_users,
        "votes_under_min_votes": few_votes,
        "users_without_training": len(np.unique(user[lost])),
        "votes_of_users_without_training": int(lost.sum()),
        "unused_context": int(unused.sum()),
    }
    tested = len(np.unique(user[keep & test]))
    meta = {
        **meta,
        "rule": RULE,
        "seed": seed,
        "options": options,
        "filtered": {**meta["filtered"], **left_out},
        "users_without_test": len(np.unique(user[keep])) - tested,
        "test_queries": sorted({vote.query for vote, here in zip(ballots, keep & test, strict=True) if here}),
        GROUPS_ARE_QUESTIONS: several,
    }
    rows = np.flatnonzero(keep)
    users = _users(ballots, names, user, unseen, rows, several=several)
    responses, index = _responses([ballots[row] for row in rows], texts, queries)
    comparisons = pa.table(
        {
            "user": np.unique(user[rows], return_inverse=True)[1],
            "chosen": index[:, 0],
            "rejected": index[:, 1],
            "split": split[rows],
            "controversial": controversial.take(rows),
        },
        schema=COMPARISONS,
    )
    return build(users, responses, comparisons, meta)


def _number(names: list[str]) -> tuple[list[str], Int[np.ndarray, "P"]]:
    """Sorted distinct names and the place of each."""
    distinct = sorted(set(names))
    place = {name: number for number, name in enumerate(distinct)}
    return distinct, np.array([place[name] for name in names], np.int64)


def _drawn(
    names: list[str], keep: Bool[np.ndarray, "P"], fraction: float | int, rng: np.random.Generator
) -> Bool[np.ndarray, "P"]:
    """Votes whose name is drawn, out of the names that are kept."""
    distinct, number = _number(names)
    alive = np.unique(number[keep])
    chosen = np.zeros(len(distinct), bool)
    chosen[alive[draw(len(alive), fraction, rng)]] = True
    return chosen[number]


def _controversial(ballots: list[Ballot]) -> pa.Array:
    """True where the raters of a pair and dimension disagree, False where two or more agree, null for one rater."""
    _, item = _number([f"{vote.dimension}/{'/'.join(sorted((vote.chosen, vote.rejected)))}" for vote in ballots])
    sign = np.array([1 if vote.chosen < vote.rejected else -1 for vote in ballots])
    votes = np.bincount(item)[item]
    agree = np.abs(np.bincount(item, weights=sign))[item] == votes
    return pa.array(~agree, mask=votes < 2)


def _users(
    ballots: list[Ballot],
    names: list[str],
    user: Int[np.ndarray, "P"],
    unseen: Bool[np.ndarray, "P"],
    rows: Int[np.ndarray, "K"],
    *,
    several: bool,
) -> pa.Table:
    """Rows of the users that are left, in the order of their names."""
    left, first = np.unique(user[rows], return_index=True)
    first = rows[first]
    return pa.table(
        {
            "user_id": [names[number] for number in left],
            "group": [ballots[row].dimension if several else None for row in first],
            "seen": ~unseen[first],
        },
        schema=USERS,
    )


def _responses(
    ballots: list[Ballot], texts: dict[str, str], queries: dict[str, str]
) -> tuple[pa.Table, Int[np.ndarray, "P 2"]]:
    """Table of the responses voted on, by name, and the rows of each vote's chosen and rejected one."""
    query = {name: vote.query for vote in ballots for name in (vote.chosen, vote.rejected)}
    names, rows = _number([name for vote in ballots for name in (vote.chosen, vote.rejected)])
    table = pa.table(
        {
            "response_id": names,
            "prompt": [[{"role": "user", "content": queries[query[name]]}] for name in names],
            "text": [texts[name] for name in names],
        },
        schema=RESPONSES,
    )
    return table, rows.reshape(-1, 2)
