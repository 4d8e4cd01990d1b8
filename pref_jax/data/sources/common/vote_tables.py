"""Votes by name into tables: splits by voter and by query, with every vote that is left out counted.

Axis letters: P votes, K votes that are kept, U users.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from pref_jax.data.checks.majority import GROUPS_ARE_QUESTIONS
from pref_jax.data.preferences import Preferences, build
from pref_jax.data.splits import at_most, draw, hold_out
from pref_jax.errors import UserError

# (role, content) of each.
Messages = tuple[tuple[str, str], ...]
RULE = (
    "Ties, repeated and self-contradicting votes and votes without texts are left out. A user is a worker, or a worker "
    "on one dimension if there are several. Users with fewer than min_votes votes are left out; of the workers still "
    "there the unseen fraction is drawn, of their queries the test fraction (queries of one topic together); users "
    "without a vote on another query are left out. Unseen users keep at most context_pairs training pairs, drawn at "
    "random. Of the seen users' training pairs the validation fraction is drawn, leaving each user one. Controversial: "
    "the raters of a pair, on that dimension, disagree; null for a single rater."
)


class Vote(NamedTuple):
    """One decided vote; responses by name."""

    worker: str
    dimension: str
    query: str
    chosen: str
    rejected: str


def once_each(votes: list[Vote], filtered: Counter[str]) -> list[Vote]:
    """One vote for each worker, dimension and pair, in order of appearance.

    Of repeated votes the first stays. Where a worker has chosen both, none does. Both are counted in `filtered`.
    """
    cast: dict[tuple[str, str, frozenset[str]], list[Vote]] = defaultdict(list)
    for vote in votes:
        cast[vote.worker, vote.dimension, frozenset((vote.chosen, vote.rejected))].append(vote)
    steady = [group for group in cast.values() if len({vote.chosen for vote in group}) == 1]
    filtered["repeated"] += sum(map(len, steady)) - len(steady)
    filtered["self_contradicting"] += len(votes) - sum(map(len, steady))
    return [group[0] for group in steady]


def build_preferences(
    votes: list[Vote],
    *,
    texts: Mapping[str, str],
    queries: Mapping[str, str | Messages],
    options: dict[str, Any],
    seed: int,
    meta: dict[str, Any],
    topics: Mapping[str, str] | None = None,
    groups: Mapping[str, str | None] | None = None,
) -> Preferences:
    """Splits the votes by `RULE` and builds the tables.

    Args:
      votes: at most one for each worker, dimension and pair.
      texts: response -> text; no two of one query are equal.
      queries: query -> its text, or a dialogue up to the answer.
      options: unseen_fraction, test_query_fraction, validation_fraction, min_votes, context_pairs; dimensions, if
        there are several.
      seed: of all draws.
      meta: source, licence and `filtered` so far; the counts of this step are added there. What `rule` says of the
        source stands before `RULE`.
      topics: query -> what is tested or trained on together, such as all turns of a dialogue; None: each its own.
      groups: worker -> group, where the dimensions are not the groups.

    Raises:
      UserError: if no vote is left, or a split is empty.
    """
    rng = np.random.default_rng(seed)
    several = len(options.get("dimensions", ())) > 1
    names, user = numbered([f"{vote.worker}/{vote.dimension}" if several else vote.worker for vote in votes])
    controversial = controversial_pairs(votes)

    keep = np.bincount(user, minlength=len(names))[user] >= options["min_votes"]
    few_users, few_votes = len(names) - len(np.unique(user[keep])), int((~keep).sum())
    if not keep.any():
        left_out = {
            name: count for name, count in {**meta["filtered"], "votes_under_min_votes": len(keep)}.items() if count
        }
        raise UserError(
            f"no votes are left after filtering ({left_out}); lower min_votes, or take in more of the source"
        )
    unseen = _drawn([vote.worker for vote in votes], keep, options["unseen_fraction"], rng)
    topic = [vote.query if topics is None else topics[vote.query] for vote in votes]
    test = _drawn(topic, keep, options["test_query_fraction"], rng)

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
    meta = {
        **meta,
        "rule": f"{meta.get('rule', '')} {RULE}".strip(),
        "seed": seed,
        "options": options,
        "filtered": {**meta["filtered"], **left_out},
        GROUPS_ARE_QUESTIONS: several,
    }
    if topics is None:
        meta["test_queries"] = sorted({vote.query for vote, here in zip(votes, keep & test, strict=True) if here})
    of_user = {name: group for name, group in (groups or {}).items() if not several}
    if several:
        of_user = dict(zip((names[number] for number in user), (vote.dimension for vote in votes), strict=True))
    return build_tables(
        [vote for vote, here in zip(votes, keep, strict=True) if here],
        names=[names[number] for number in user[keep]],
        split=split[keep],
        seen=~unseen[keep],
        groups=of_user,
        texts=texts,
        queries=queries,
        controversial=controversial.filter(pa.array(keep)),
        meta=meta,
    )


def build_tables(
    votes: list[Vote],
    *,
    names: list[str],
    split: np.ndarray,
    seen: Bool[np.ndarray, "K"],
    controversial: pa.Array,
    texts: Mapping[str, str],
    queries: Mapping[str, str | Messages],
    meta: dict[str, Any],
    groups: Mapping[str, str | None] | None = None,
) -> Preferences:
    """The tables of votes that have their splits; users are in the order of their names.

    Args:
      votes: K votes.
      names: of each vote's user.
      split: [K] words.
      seen: bool [K], of each vote's user.
      controversial: bool or null [K].
      texts, queries: as for `tabulate`.
      meta: as for `build`; `users_without_test` is added.
      groups: user -> group.

    Raises:
      UserError: if a split is empty or a user has no training pair.
    """
    user_id, user = numbered(names)
    first = np.unique(user, return_index=True)[1]
    group = [(groups or {}).get(name) for name in user_id]
    responses, index = _responses(votes, texts, queries)
    comparisons = {"chosen": index[:, 0], "rejected": index[:, 1], "split": split, "controversial": controversial}
    return build(
        {"user_id": user_id, "group": group, "seen": seen[first]},
        responses,
        {"user": user, **comparisons},
        {**meta, "users_without_test": len(user_id) - len(np.unique(user[split == "test"]))},
    )


def numbered(names: list[str]) -> tuple[list[str], Int[np.ndarray, "P"]]:
    """Sorted distinct names and the place of each."""
    distinct = sorted(set(names))
    place = {name: number for number, name in enumerate(distinct)}
    return distinct, np.array([place[name] for name in names], np.int64)


def _drawn(
    names: list[str], keep: Bool[np.ndarray, "P"], fraction: float | int, rng: np.random.Generator
) -> Bool[np.ndarray, "P"]:
    """Votes whose name is drawn, out of the names that are kept."""
    distinct, place = numbered(names)
    alive = np.unique(place[keep])
    chosen = np.zeros(len(distinct), bool)
    chosen[alive[draw(len(alive), fraction, rng)]] = True
    return chosen[place]


def controversial_pairs(votes: list[Vote]) -> pa.Array:
    """True where the raters of a pair and dimension disagree, False where two or more agree, null for one rater."""
    _, item = numbered([f"{vote.dimension}/{'/'.join(sorted((vote.chosen, vote.rejected)))}" for vote in votes])
    return disputed(item, np.array([1 if vote.chosen < vote.rejected else -1 for vote in votes], np.int64))


def disputed(item: Int[np.ndarray, "P"], sign: Int[np.ndarray, "P"]) -> pa.Array:
    """For each vote whether those who decided on its item disagree; null where fewer than two did.

    Args:
      item: number of what is voted on.
      sign: 1 or -1 for either answer, 0 for no decision.
    """
    count = np.bincount(item, weights=sign != 0)[item]
    agree = np.abs(np.bincount(item, weights=sign))[item] == count
    return pa.array(~agree, mask=count < 2)


def _responses(
    votes: list[Vote], texts: Mapping[str, str], queries: Mapping[str, str | Messages]
) -> tuple[dict[str, list[Any]], Int[np.ndarray, "P 2"]]:
    """Columns of the responses voted on, by name, and the rows of each vote's chosen and rejected one."""
    query = {name: vote.query for vote in votes for name in (vote.chosen, vote.rejected)}
    names, rows = numbered([name for vote in votes for name in (vote.chosen, vote.rejected)])
    prompts = {name: _prompt(queries[name]) for name in set(query.values())}
    columns = {"prompt": [prompts[query[name]] for name in names], "text": [texts[name] for name in names]}
    return {"response_id": names, **columns}, rows.reshape(-1, 2)


def _prompt(query: str | Messages) -> list[dict[str, str]]:
    messages = (("user", query),) if isinstance(query, str) else query
    return [{"role": role, "content": content} for role, content in messages]
