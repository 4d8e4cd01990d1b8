"""Votes on replies in dialogues, as tables need them: prompts and replies get names, what is no vote is left out and
counted.

Chosen and rejected replies go through the same hands, so that no text tells by its form which it is.

Axis letters: P votes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.common.vote_tables import Messages, Vote, build_preferences, once_each
from pref_jax.errors import Faults

RULE = (
    "A reply is plain text without the white space around it; its prompt is the dialogue before it, as the voter led "
    "it. Votes on empty replies or prompts and on equal replies are left out."
)


class Turn(NamedTuple):
    """What a person wrote, the reply with which the dialogue went on ("" if that is not known), and those turned down.

    Replies that are neither are not in it.
    """

    prompt: str
    chosen: str
    rejected: tuple[str, ...]


class DialogueVote(NamedTuple):
    """One reply preferred over another one, after the messages of `prompt`."""

    worker: str
    prompt: Messages
    chosen: str
    rejected: str


class Named(NamedTuple):
    """Arguments of `vote_tables.build_preferences`.

    Attributes:
      votes: P votes.
      texts: response -> text.
      queries: query -> dialogue.
      topics: query -> how the dialogue began.
    """

    votes: list[Vote]
    texts: dict[str, str]
    queries: dict[str, Messages]
    topics: dict[str, str]


def plain(text: str | None) -> str:
    """A text without the white space around it; null is empty."""
    return (text or "").strip()


def unroll(worker: str, turns: Iterable[Turn], filtered: Counter[str]) -> Iterator[DialogueVote]:
    """The votes of one dialogue, each under all that was said before.

    After a turn whose prompt or reply is not known the rest of the dialogue has no known beginning: its votes are left
    out and counted as `after_gap`.
    """
    history: Messages = ()
    broken = False
    for turn in turns:
        if broken:
            filtered["after_gap"] += len(turn.rejected)
            continue
        prompt = (*history, ("user", turn.prompt))
        for rejected in turn.rejected:
            yield DialogueVote(worker, prompt, turn.chosen, rejected)
        broken = not (turn.prompt and turn.chosen)
        history = (*prompt, ("assistant", turn.chosen))


def name(votes: Iterable[DialogueVote], filtered: Counter[str]) -> Named:
    """Names the prompts by number in order of appearance, their replies by number within; those of a vote by their
    texts' order, not the chosen one first, as names decide the order of rows, which must not tell answers.

    Equal texts under equal prompts are one response. Left out and counted in `filtered`: `missing_text`, `same_text`
    and what `once_each` finds.
    """
    filtered.update(dict.fromkeys(("missing_text", "same_text"), 0))
    queries: dict[Messages, str] = {}
    replies: dict[Messages, dict[str, str]] = {}
    known_votes = []
    for vote in votes:
        if not (vote.chosen and vote.rejected and all(content for _, content in vote.prompt)):
            filtered["missing_text"] += 1
        elif vote.chosen == vote.rejected:
            filtered["same_text"] += 1
        else:
            query = queries.setdefault(vote.prompt, str(len(queries)))
            known = replies.setdefault(vote.prompt, {})
            for text in sorted((vote.chosen, vote.rejected)):
                known.setdefault(text, f"{query}/{len(known)}")
            known_votes.append(Vote(vote.worker, "", query, known[vote.chosen], known[vote.rejected]))
    return Named(
        once_each(known_votes, filtered),
        texts={response: text for known in replies.values() for text, response in known.items()},
        queries={query: prompt for prompt, query in queries.items()},
        topics={query: prompt[0][1] for prompt, query in queries.items()},
    )


def tabulated(
    votes: Iterable[DialogueVote],
    filtered: Counter[str],
    *,
    options: dict[str, Any],
    seed: int,
    meta: dict[str, Any],
    groups: Mapping[str, str | None] | None = None,
) -> Preferences:
    """Names the votes and splits them by `vote_tables.build_preferences`, dialogues that begin alike on one side.

    Args:
      votes: read once; what they leave out they count in `filtered`.
      filtered: so far.
      options, seed, groups: as for `vote_tables.build_preferences`.
      meta: source, licence, votes_in_source, and as `rule` what is the source's own.

    Raises:
      UserError: if no vote is left, or a split is empty.
    """
    named = name(votes, filtered)
    meta = {**meta, "rule": f"{RULE} {meta['rule']}", "filtered": dict(filtered)}
    return build_preferences(**named._asdict(), options=options, seed=seed, meta=meta, groups=groups)


def rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table, a batch at a time in memory."""
    for batch in table.to_batches():
        yield from batch.to_pylist()


def need_values(table: pa.Table, columns: Sequence[str], where: str) -> None:
    """Raises one `UserError` naming every one of the columns that holds a null, and its first row."""
    faults = Faults()
    for column in columns:
        if count := table[column].null_count:
            row = table[column].is_null().to_pylist().index(True)
            faults.add(f"column {column!r}", f"null in {count} rows, first row {row}", "fetch the data again")
    faults.raise_if_any(where)


def turn_faults(turns: tuple[int, ...], most: int) -> Faults:
    """What is wrong with the option `turns`, which names some of 1 to `most`."""
    faults = Faults()
    if not turns or not set(turns) <= set(range(1, most + 1)):
        faults.add("turns", f"is {turns}", f"give some of 1 to {most}")
    return faults
