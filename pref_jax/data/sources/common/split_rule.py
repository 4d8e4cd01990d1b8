"""The rule that splits bring-your-own votes which name no split, and users who are not said to be seen or unseen.

Axis letters: P votes, U users, Q units (prompts, pairs, or one user's votes on one pair).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

from pref_jax.data.splits import at_most, check_options, draw
from pref_jax.errors import Faults, UserError
from pref_jax.ragged import group_by

RULE = (
    "A given split or seen stays. Users with fewer than min_votes_per_user votes are left out. Of the users not said "
    "to be seen or unseen, the unseen fraction is drawn, never all. Votes without a split: those on a prompt that "
    "given votes only test are test; of the prompts without any given split the test fraction is drawn, small and "
    "large ones alike, so that about that share of the votes is test too; users whose votes would all be test are "
    "left out. Where no vote could be tested so, or more of the drawn votes would be lost with such users than "
    "tested, pairs are drawn instead of prompts, and failing that, votes of users who keep others. By time the latest "
    "votes are test, or failing that each user's latest. Unless validation votes of seen users are given, the "
    "validation fraction of their other votes is drawn, at least one where possible, leaving each user one for "
    "training; the rest is train (context, for unseen users). One user's votes on one pair always stay together."
)
# What is drawn, from the strongest test to the weakest; a split by time comes first only where it is asked for.
ORDER = ("time", "time of each user", "prompt", "pair", "vote")
UNITS = {"prompt": "prompts", "pair": "pairs"}
NOBODY_SEEN = "no user is seen: nobody to learn from; mark some as seen"
# Count of the seen users' given validation votes: where there are any, methods choose by them.
GIVEN_VALIDATION = "rows_with_given_validation"
# Counts of what is left out.
LEFT_OUT = (
    "users_under_min_votes",
    "rows_under_min_votes",
    "users_without_training",
    "rows_of_users_without_training",
)
# Of so many stratified draws the one is taken that comes nearest to the fraction and loses the fewest votes.
_DRAWS = 16


class NoTestError(UserError):
    """A test is asked for and none is possible."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How votes are split (`RULE`).

    Attributes:
      validation: fraction of the seen users' votes outside the test.
      test: fraction of the prompts (of the pairs, of the votes).
      unseen: fraction of the users.
      by: what is new in a test: its "prompt", its "pair" or its "time".
      min_votes_per_user: users with fewer votes are left out.
    """

    validation: float | int = 0.1
    test: float | int = 0.2
    unseen: float | int = 0.2
    by: str = "prompt"
    min_votes_per_user: int = 1

    def check(self) -> None:
        """Raises one `UserError` with all options out of range, by the names that readers give them."""
        faults = Faults()
        if self.by not in ("prompt", "pair", "time"):
            faults.add("split_by", f"is {self.by!r}", "use prompt, pair or time")
        fractions = {f"{name}_fraction": getattr(self, name) for name in ("validation", "test", "unseen")}
        counts = {"min_votes_per_user": self.min_votes_per_user}
        check_options(fractions=fractions, counts=counts, faults=faults)


class Assigned(NamedTuple):
    """What the rule made.

    Attributes:
      split: [P] words, empty for votes that are left out.
      seen: bool [U].
      keep: bool [P], False for votes of users who are left out. A user with a vote that is kept has one in training.
      counts: what was asked, given, drawn and left out, for meta.
      told: sentences for the terminal: what is left out, and which split was not possible.
    """

    split: np.ndarray
    seen: Bool[np.ndarray, " U"]
    keep: Bool[np.ndarray, " P"]
    counts: dict[str, int | str]
    told: list[str]


class _Votes(NamedTuple):
    """Votes that take part: numbers of their user, prompt, pair and own pair (a user's pair), and what is known."""

    user: Int[np.ndarray, " P"]
    prompt: Int[np.ndarray, " P"]
    item: Int[np.ndarray, " P"]
    own: Int[np.ndarray, " P"]
    time: Float64[np.ndarray, " P"]
    words: np.ndarray
    learnable: Bool[np.ndarray, " P"]
    testable: Bool[np.ndarray, " P"]
    seen: Bool[np.ndarray, " U"]

    def trained(self, rows: Bool[np.ndarray, " P"]) -> Bool[np.ndarray, " U"]:
        """Which users have something to learn from among `rows`."""
        return np.bincount(self.user[rows & self.learnable], minlength=len(self.seen)) > 0


class _Draw(NamedTuple):
    """Test votes of one draw: which are test, which are of users without training votes; units that were drawn."""

    test: Bool[np.ndarray, " P"]
    lost: Bool[np.ndarray, " P"]
    drawn: int
    possible: bool


def assign_splits(
    user: Int[np.ndarray, " P"],
    prompt: Int[np.ndarray, " P"],
    item: Int[np.ndarray, " P"],
    split: Sequence[str | None],
    seen: Sequence[bool | None],
    options: SplitOptions,
    rng: np.random.Generator,
    time: Float64[np.ndarray, " P"] | None = None,
    *,
    learnable: Bool[np.ndarray, " P"] | None = None,
    testable: Bool[np.ndarray, " P"] | None = None,
) -> Assigned:
    """Fills in splits and seen flags by `RULE`.

    Args:
      user: number of each vote's user.
      prompt: number of each vote's prompt.
      item: number of the unordered pair, or set, of responses that were judged, or of the response that was rated.
      split: given word of each vote, or None.
      seen: given flag of each user, or None.
      options: fractions and the rest.
      rng: of all draws.
      time: of each vote in seconds, NaN where unknown; None: of no vote.
      learnable: False for votes that teach nothing (skipped); None: all do.
      testable: True for votes that a test can score (preferences); None: all are.

    Raises:
      UserError: if no user is seen, nobody has enough votes, or a test is asked for and none is possible.

    Example:
      >>> votes = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1]), np.array([0, 1, 2, 0, 1])
      >>> found = assign_splits(*votes, [None] * 5, [None] * 2, SplitOptions(unseen=0), np.random.default_rng(0))
      >>> sorted(found.split)
      ['test', 'train', 'train', 'train', 'validation']
    """
    options.check()
    words = np.array([word or "" for word in split], dtype="U10")
    given, count = int((words != "").sum()), len(seen)
    learnable, testable = (np.ones(len(user), bool) if mask is None else mask for mask in (learnable, testable))
    per_user = np.bincount(user[learnable], minlength=count)
    enough = per_user >= options.min_votes_per_user
    if not enough[user].any():
        least = options.min_votes_per_user
        if least <= 1:
            raise UserError("no user has a vote that says which response is better; skipped votes say nothing")
        raise UserError(f"no user has {least} votes; lower min_votes_per_user (now {least}) or give more votes")
    flags, undecided = _seen(seen, enough, options.unseen, rng)
    here = np.flatnonzero(enough[user])
    own = np.unique(user[here] * (np.int64(item.max(initial=0)) + 1) + item[here], return_inverse=True)[1].reshape(-1)
    times = np.full(len(user), np.nan) if time is None else np.asarray(time, np.float64)
    columns = {"user": user, "prompt": prompt, "item": item, "time": times, "words": words}
    columns |= {"learnable": learnable, "testable": testable}
    votes = _Votes(**{name: column[here] for name, column in columns.items()}, own=own, seen=flags)

    by, found, told = _drawn(votes, options, rng)
    part = np.where(found.test, "test", votes.words)
    part = np.where(_validation(votes, part, found.lost, options.validation, rng), "validation", part)
    part = np.where(found.lost, "", np.where(part == "", "train", part))
    words[:], keep = "", np.zeros(len(user), bool)
    words[here], keep[here] = part, ~found.lost
    few = len(np.unique(user[~enough[user]]))
    counts: dict[str, int | str] = {
        "split_asked": options.by,
        "split_by": by,
        "rows_with_given_split": given,
        "rows_assigned": len(words) - given,
        GIVEN_VALIDATION: int((~found.lost & (votes.words == "validation") & flags[votes.user]).sum()),
        "users_with_given_seen": count - undecided,
        "users_assigned": undecided,
        f"{UNITS.get(by, 'votes')}_drawn_for_test": found.drawn,
        "prompts_in_test_and_training": _on_both(votes.prompt, part),
        "users_under_min_votes": few,
        "rows_under_min_votes": len(user) - len(here),
        "users_without_training": len(np.unique(votes.user[found.lost])),
        "rows_of_users_without_training": int(found.lost.sum()),
    }
    return Assigned(words, flags, keep, counts, [*_left_out(counts, options), *told])


def _seen(
    given: Sequence[bool | None], enough: Bool[np.ndarray, " U"], fraction: float | int, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, " U"], int]:
    """Flags of all users, and for how many nothing was given; at least one user with enough votes is seen."""
    flags = np.array([flag is not False for flag in given])
    undecided = np.array([flag is None for flag in given])
    free = np.flatnonzero(undecided & enough)
    flags[free[draw(len(free), fraction, rng)]] = False
    if not (flags & enough).any():
        raise UserError(NOBODY_SEEN)
    return flags, int(undecided.sum())


def _drawn(votes: _Votes, options: SplitOptions, rng: np.random.Generator) -> tuple[str, _Draw, list[str]]:
    """The strongest split that is possible, its draw, and a sentence for each stronger one that was asked for."""
    is_open, told = votes.words == "", list[str]()
    untested = _judged(votes, np.zeros(len(is_open), bool), 0)
    if not untested.possible:
        raise UserError("no seen user has a vote to learn from; give some users votes with split 'train'")
    if not is_open.any():
        return "given", untested, told
    for by in ORDER[ORDER.index(options.by) :]:
        draws = [_judged(votes, *one) for one in _candidates(votes, by, options.test, rng)]
        found = min(draws, key=lambda one: _cost(one, options.test))
        tested, lost = (int((found.test & part & votes.testable).sum()) for part in (~found.lost, found.lost))
        needed = options.test > 0 and not (votes.testable & (votes.words == "test") & ~found.lost).any()
        if found.possible and tested >= (lost if options.test > 0 else 0) and (tested or not needed):
            return by, found, [f"split by {by} instead: {text}" for text in told]
        lacks = f", and {lost} votes are of people without others" if lost else ""
        told.append(f"by {by}, only {tested} votes could be tested{lacks}")
    raise NoTestError(
        "no vote can be kept for a test: nobody has votes on two different pairs; give more votes a user, or do "
        "without a test (test_fraction=0)"
    )


def _candidates(
    votes: _Votes, by: str, fraction: float | int, rng: np.random.Generator
) -> Iterator[tuple[Bool[np.ndarray, " P"], int]]:
    """Draws of test votes, and how many units each takes: one draw by time or vote, several by prompt or pair."""
    is_open, given_test = votes.words == "", votes.words == "test"
    repeats = np.isin(votes.own, votes.own[given_test])
    if by in ("time", "time of each user"):
        late = is_open & (_latest(votes, by, fraction, rng) if fraction > 0 else False)
        known = np.isin(votes.own, votes.own[~late & ~given_test])
        yield (late & ~known) | (is_open & repeats), int(late.sum())
        return
    unit = {"prompt": votes.prompt, "pair": votes.item, "vote": votes.own}[by]
    size = int(unit.max()) + 1
    tested, trained = (np.bincount(unit[rows], minlength=size) > 0 for rows in (given_test, ~is_open & ~given_test))
    fixed = is_open & ((tested & ~trained)[unit] | repeats)
    weight = np.bincount(unit[is_open & votes.testable], minlength=size) * ~(tested | trained)
    if by == "vote":
        trains = votes.trained(votes.words == "train")
        kept = at_most(votes.user, (weight > 0)[unit] & votes.learnable & ~trains[votes.user], 1, rng)
        weight[unit[kept]] = 0
    free = np.flatnonzero(weight)
    spare = len(free) if by == "vote" else len(free) - 1
    number = min(max(round(fraction * len(free)), 1), spare) if fraction > 0 else 0
    free = free[np.lexsort((rng.random(len(free)), weight[free]))]
    for _ in range(_DRAWS if number > 0 else 1):
        drawn = np.zeros(size, bool)
        # One of each stratum of equal numbers of units, from those with few votes to those with many.
        ends = np.arange(max(number, 0) + 1) * len(free) // max(number, 1)
        drawn[free[rng.integers(ends[:-1], ends[1:])] if number > 0 else []] = True
        yield fixed | (is_open & drawn[unit]), max(number, 0)


def _latest(votes: _Votes, by: str, fraction: float | int, rng: np.random.Generator) -> Bool[np.ndarray, " P"]:
    """The latest votes of all, or of each user; of equal times all or none."""
    timed = np.flatnonzero((votes.words == "") & np.isfinite(votes.time) & votes.testable)
    late = np.zeros(len(votes.user), bool)
    if by == "time":
        ranked = np.sort(votes.time[timed])
        number = min(max(round(fraction * len(timed)), 1), len(timed) - 1)
        late[timed] = votes.time[timed] > ranked[-number - 1] if number > 0 else False
        return late
    timed = timed[np.lexsort((votes.time[timed], votes.user[timed]))]
    groups = group_by(votes.user[timed], len(votes.seen))
    number = np.minimum(np.floor(fraction * groups.counts + rng.random(len(groups.counts))), groups.counts - 1)
    late[timed] = groups.places >= np.repeat(groups.counts - number, groups.counts)
    # A user's votes of one time, as of one session saved at once, are not told apart.
    same = (np.diff(votes.user[timed]) == 0) & (np.diff(votes.time[timed]) == 0)
    first = np.concatenate([[True], ~same])[: len(timed)]
    late[timed] &= late[timed][first][np.cumsum(first) - 1]
    return late


def _judged(votes: _Votes, test: Bool[np.ndarray, " P"], drawn: int) -> _Draw:
    """A draw, and what it costs: users without a training vote are lost, and with them their votes."""
    trains = (votes.words == "train") | ((votes.words == "") & ~test)
    trained = votes.trained(trains)
    return _Draw(test, ~trained[votes.user], drawn, bool((trained & votes.seen).any()))


def _cost(draw: _Draw, fraction: float | int) -> float:
    kept = ~draw.lost
    share = (draw.test & kept).sum() / max(kept.sum(), 1)
    return abs(share - fraction) + draw.lost.mean() + 2 * (not draw.possible)


def _validation(
    votes: _Votes, part: np.ndarray, lost: Bool[np.ndarray, " P"], fraction: float | int, rng: np.random.Generator
) -> Bool[np.ndarray, " P"]:
    """A fraction of the seen users' votes without a split, at least one where possible; each user keeps one."""
    ours = votes.seen[votes.user] & ~lost
    rest = ours & (part == "")
    if not fraction or (ours & (part == "validation")).any():
        return np.zeros(len(rest), bool)
    trains = votes.trained(part == "train")
    # Votes on a pair that the user also trains on would be chosen by what was learnt.
    known = np.isin(votes.own, votes.own[part == "train"])
    first = at_most(votes.user, rest & votes.learnable & ~trains[votes.user], 1, rng)
    spare = rest & ~known & ~np.isin(votes.own, votes.own[first])
    units = rng.permutation(np.unique(votes.own[spare]))
    wanted = max(round(fraction * int(rest.sum())), 1)
    size = np.bincount(votes.own[spare], minlength=int(votes.own.max()) + 1)[units]
    return rest & np.isin(votes.own, units[: int(np.searchsorted(np.cumsum(size), wanted)) + 1])


def _on_both(prompt: Int[np.ndarray, " P"], part: np.ndarray) -> int:
    """Prompts with votes both in the test and outside it."""
    return len(np.intersect1d(prompt[part == "test"], prompt[np.isin(part, ("train", "validation"))]))


def _left_out(counts: dict[str, Any], options: SplitOptions) -> list[str]:
    told = []
    if few := counts["users_under_min_votes"]:
        rows = counts["rows_under_min_votes"]
        told.append(f"users left out: {few} with fewer than {options.min_votes_per_user} votes each, {rows} in all")
    if lost := counts["users_without_training"]:
        rows = counts["rows_of_users_without_training"]
        told.append(f"users left out: {lost} whose votes all fell into the test, {rows} in all")
    return told
