"""Votes that were read, numbered as they come, and the tables they become.

Axis letters: V votes, P comparisons, R ratings.
"""

import itertools
from array import array
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from pref_jax.data.preferences import Preferences, build
from pref_jax.data.schema import OUTCOMES, TIME
from pref_jax.data.sources.common.columns import names
from pref_jax.data.sources.common.rating_pairs import rating_pairs
from pref_jax.data.sources.common.split_rule import LEFT_OUT, RULE, Assigned, NoTestError, SplitOptions, assign_splits
from pref_jax.data.sources.jsonl.dialogues import Answer, Messages
from pref_jax.data.sources.jsonl.rows import Row, note_field
from pref_jax.errors import Faults
from pref_jax.progress import log
from pref_jax.ragged import last_rows, starts

KINDS = (*OUTCOMES, "ranking", "rating")
_RANKING, _RATING = KINDS.index("ranking"), KINDS.index("rating")
_OF_VOTES = ("user", "prompt", "kind", "value", "time", "count", "item")
_NO_TIME = np.iinfo(np.int64).min


class User(NamedTuple):
    """What rows say of a user, and where they said it; `first` is the first row."""

    first: str
    group: tuple[str, str] | None = None
    seen: tuple[bool, str] | None = None
    trains: bool = False


class Votes(NamedTuple):
    """Votes as numbers.

    Attributes:
      user, prompt, kind (of `KINDS`), time (microseconds), line: int64 [V].
      value: float64 [V], NaN where there is none.
      count: int64 [V] responses of each vote; answers: their numbers, one vote after the other, best first.
      item: int64 [V], equal where the responses are the same set.
      split, controversial: lists [V], None where not given.
    """

    user: Any
    prompt: Any
    kind: Any
    value: Any
    time: Any
    count: Any
    answers: Any
    item: Any
    split: Any
    controversial: Any


class Collector:
    """Numbers users, prompts and responses of rows in order of appearance; holds texts once and votes as numbers.

    Args:
      faults: gets rows that contradict earlier ones about their user.
    """

    def __init__(self, faults: Faults):
        self._faults = faults
        self.users: dict[str, User] = {}
        self.prompts: dict[Messages, int] = {}
        self.responses: dict[tuple[int, Answer], int] = {}
        self._numbers: dict[str, int] = {}
        self._items: dict[tuple[int, ...], int] = {}
        self._columns = {name: array("d" if name == "value" else "q") for name in Votes._fields[:-2]}
        self._split, self._controversial = list[str | None](), list[bool | None]()

    def __len__(self) -> int:
        return len(self._split)

    def add(self, row: Row) -> None:
        """Takes a row in, or notes what it contradicts."""
        user = self._user(row)
        if user is None:
            return
        self.users[row.user] = user
        prompt = self.prompts.setdefault(row.prompt, len(self.prompts))
        # By their texts, not the chosen one first: the order of rows must not tell answers.
        for answer in sorted(row.answers, key=_order):
            self.responses.setdefault((prompt, answer), len(self.responses))
        answers = [self.responses[prompt, answer] for answer in row.answers]
        item = tuple(sorted(answers))
        numbers = {
            "user": self._numbers.setdefault(row.user, len(self._numbers)),
            "prompt": prompt,
            "kind": KINDS.index(row.outcome),
            "value": np.nan if row.value is None else row.value,
            "time": _NO_TIME if row.time is None else row.time,
            "count": len(answers),
            "item": self._items.setdefault(item, len(self._items)),
        }
        for name, number in numbers.items():
            self._columns[name].append(number)
        self._columns["answers"].extend(answers)
        self._split.append(row.split)
        self._controversial.append(row.controversial)

    def votes(self) -> Votes:
        """All of them."""
        kinds = {"d": np.float64, "q": np.int64}
        columns = {name: np.array(column, kinds[column.typecode]) for name, column in self._columns.items()}
        return Votes(**columns, split=self._split, controversial=self._controversial)

    def _user(self, row: Row) -> User | None:
        """The row's user as known with it; None, and notes, if the row says otherwise than an earlier one."""
        user = self.users.get(row.user) or User(row.where)
        before = len(self._faults)
        for field, given in (("group", row.group), ("seen", row.seen)):
            known = getattr(user, field)
            if given is not None and known is None:
                user = user._replace(**{field: (given, row.where)})
            elif given is not None and known[0] != given:
                what = f"{given!r} for user {row.user!r}, but {known[0]!r} at {_place(known[1])}"
                note_field(self._faults, row.where, field, what, "give a user one value throughout")
        trains = user.trains or row.split in (None, "train")
        return user._replace(trains=trains) if len(self._faults) == before else None


def _order(answer: Answer) -> tuple[str, str]:
    return answer[0], answer[1] or ""


def _place(where: str) -> str:
    """'line 3' or 'row 3' of a place as rows have it."""
    return where.rpartition(", ")[2] if ", row " in where else f"line {where.rpartition(':')[2]}"


def tables(found: Collector, options: SplitOptions, seed: int, meta: dict[str, Any], where: str) -> Preferences:
    """Assigns splits where none is given, and builds; votes that the rule leaves out leave nothing in the tables.

    Args:
      found: all votes.
      options: of the rule.
      seed: of all draws.
      meta: what the reader knows.
      where: names the votes on the terminal.

    Raises:
      UserError: if no split is possible.
    """
    rng = np.random.default_rng(seed)
    votes = found.votes()
    assigned = _assigned(votes, [user.seen and user.seen[0] for user in found.users.values()], options, rng)
    for text in assigned.told:
        log(f"{where}: {text}")
    here = np.repeat(assigned.keep, votes.count)
    users, user = np.unique(votes.user[assigned.keep], return_inverse=True)
    rows, answers = np.unique(votes.answers[here], return_inverse=True)
    whole = {name: getattr(votes, name)[assigned.keep] for name in _OF_VOTES}
    lists = {name: list(itertools.compress(getattr(votes, name), assigned.keep)) for name in ("split", "controversial")}
    kept = Votes(**{**whole, **lists, "user": user.reshape(-1), "answers": answers.reshape(-1)})
    comparisons, ratings = columns_of(kept, assigned.split[assigned.keep], rng)
    if options.test > 0 and not _tested(comparisons):
        raise NoTestError(
            "no vote can be kept for a test: those of the test prefer nothing; give more votes a user, or do without a "
            "test (test_fraction=0)"
        )
    names_of, dialogues = list(found.users.items()), [as_messages(prompt) for prompt in found.prompts]
    of_row = list(found.responses)
    return build(
        {
            "user_id": [names_of[number][0] for number in users],
            "group": [names_of[number][1].group and names_of[number][1].group[0] for number in users],
            "seen": assigned.seen[users],
        },
        {
            "response_id": names("r", len(rows)),
            "prompt": [dialogues[of_row[row][0]] for row in rows],
            "text": [of_row[row][1][0] for row in rows],
            "extra": [of_row[row][1][1] for row in rows],
        },
        comparisons,
        {
            **meta,
            "rule": RULE,
            "seed": seed,
            "fractions": {name: getattr(options, name) for name in ("validation", "test", "unseen")},
            "assigned": assigned.counts,
            "told": assigned.told,
            "filtered": {name: assigned.counts[name] for name in LEFT_OUT},
            "votes": {KINDS[kind]: count for kind, count in sorted(Counter(kept.kind.tolist()).items())},
            "repeated_rows": _repeated(kept),
        },
        ratings=ratings,
        test=options.test > 0,
    )


def _tested(comparisons: dict[str, Any]) -> bool:
    """Whether a test has a preference to score."""
    words, outcome = (np.asarray(comparisons[name]) for name in ("split", "outcome"))
    return bool(((words == "test") & (outcome == OUTCOMES[0])).any())


def as_messages(prompt: Messages) -> list[dict[str, str | None]]:
    """A prompt as a table holds it."""
    return [{"role": role, "content": content, "extra": extra} for role, content, extra in prompt]


def _assigned(votes: Votes, seen: list[bool | None], options: SplitOptions, rng: np.random.Generator) -> Assigned:
    """A ranking or rating is one vote. A rating can be tested where its user rated the prompt's responses unequally."""
    testable = (votes.kind == 0) | (votes.kind == _RANKING)
    testable[_rated_unequally(votes)] = True
    time = np.where(votes.time == _NO_TIME, np.nan, votes.time / 1e6)
    given = votes.user, votes.prompt, votes.item, votes.split, seen, options, rng, time
    return assign_splits(*given, learnable=votes.kind != OUTCOMES.index("skipped"), testable=testable)


def _rated_unequally(votes: Votes) -> Int[np.ndarray, " R"]:
    """Places of ratings whose user rated the prompt's responses unequally, by the last rating of each."""
    rated = np.flatnonzero(votes.kind == _RATING)
    rated = rated[np.argsort(votes.time[rated], kind="stable")]
    response = votes.answers[starts(votes.count)[rated]]
    last = rated[last_rows(votes.user[rated] * (int(response.max(initial=0)) + 1) + response)]
    both, own = np.unique(np.stack([votes.user, votes.prompt])[:, rated], axis=1, return_inverse=True)
    place = np.empty(len(votes.kind), np.int64)
    place[rated] = own.reshape(-1)
    high, low = np.full(both.shape[1], -np.inf), np.full(both.shape[1], np.inf)
    np.maximum.at(high, place[last], votes.value[last])
    np.minimum.at(low, place[last], votes.value[last])
    return rated[(high > low)[place[rated]]]


def columns_of(
    votes: Votes, split: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Columns of comparisons, those of one vote side by side and the ones from ratings last, and columns of ratings."""
    vote, chosen, rejected, choice = _choices(votes)
    plain = votes.kind[vote] != _RANKING
    strength = np.where(votes.kind[vote] == 0, votes.value[vote], np.nan)
    outcome = np.array(KINDS)[np.where(plain, votes.kind[vote], 0)]
    columns: dict[str, Any] = {
        "user": votes.user[vote],
        "chosen": chosen,
        "rejected": rejected,
        "split": split[vote],
        "controversial": pa.array([votes.controversial[place] for place in vote], pa.bool_()),
        "outcome": outcome,
        "strength": pa.array(strength.astype(np.float32), from_pandas=True),
        "choice": pa.array(choice.astype(np.int32), mask=plain),
        "rated": np.zeros(len(vote), bool),
        "time": _times(votes.time[vote]),
    }
    rated = np.flatnonzero(votes.kind == _RATING)
    if not len(rated):
        return columns, None
    response = votes.answers[starts(votes.count)[rated]]
    ratings = {
        "user": votes.user[rated],
        "response": response,
        "rating": votes.value[rated].astype(np.float32),
        "split": split[rated],
        "time": _times(votes.time[rated]),
    }
    # The last rating of a response counts: by its time, where that is known.
    order = np.argsort(votes.time[rated], kind="stable")
    given = votes.user[rated], response, votes.prompt[rated], votes.value[rated], split[rated]
    pairs = rating_pairs(*(column[order] for column in given), rng=rng)
    pairs |= {name: pa.nulls(len(pairs["user"]), kind) for name, kind in _NULLS.items()}
    both = {name: pa.concat_arrays([_arrow(columns[name]), _arrow(pairs[name])]) for name in columns}
    return both, ratings


_NULLS = {"controversial": pa.bool_(), "choice": pa.int32(), "time": TIME}


def _arrow(column: Any) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.array(column)


def _times(time: Int[np.ndarray, "n"]) -> pa.Array:
    return pa.array(time, mask=time == _NO_TIME).cast(TIME)


def _choices(votes: Votes) -> tuple[Any, Any, Any, Any]:
    """Of each comparison its vote, chosen and rejected response and choice; in the order of votes.

    A ranking of m responses is m - 1 choices: the best out of all, the second out of the rest, and so on.
    """
    start = starts(votes.count)
    number = starts(np.where(votes.kind == _RANKING, votes.count - 1, 0))
    parts = []
    for size in np.unique(votes.count[votes.kind != _RATING]):
        own = np.flatnonzero((votes.kind != _RATING) & (votes.count == size))
        best, later = np.triu_indices(int(size), 1)
        places = start[own][:, None]
        columns = own[:, None] + 0 * best, places + best, places + later, number[own][:, None] + best
        parts.append([column.reshape(-1) for column in columns])
    nothing = [np.zeros(0, np.int64)] * 4
    vote, chosen, rejected, choice = (np.concatenate(column) for column in zip(nothing, *parts, strict=True))
    order = np.argsort(vote, kind="stable")
    return vote[order], votes.answers[chosen[order]], votes.answers[rejected[order]], choice[order]


def _repeated(votes: Votes) -> int:
    """Votes of a user that say again of the same responses what an earlier one said."""
    first = votes.answers[starts(votes.count)] if len(votes.count) else votes.count
    key = np.stack([votes.user, votes.kind, votes.item, first])
    return len(votes.count) - np.unique(key, axis=1).shape[1]
