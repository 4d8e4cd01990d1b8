"""PersonalRewardBench: filtered votes of Chatbot Arena's and PRISM's most active people (arXiv 2506.05598, ACL 2025).

Source: MichaelR207/chatbot_arena_personalized_0125 and MichaelR207/prism_personalized_0125. The hub's splits train, val
and test are of people: models learn from the first and meet the others' people with some of their votes alone. Within a
person, the column `split` says what may be known (train), chosen by (val) and asked (test):

    user_id, split (train, val or test)
    context: [{role, content}]; chosen, rejected: a message {role, content}, a list of one, or its text

Further columns (judgements by language models among them) are not read. The benchmark asks of each test pair in both
orders; a reward of single texts gives the same either way, so each pair counts once, a tie one half, and its figure is
the mean over the people of the hub's test split, here `unseen/accuracy`. People of val are left out, unless asked for.

Axis letters: P votes.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pref_jax.data.preferences import Preferences, build
from pref_jax.data.sources.common import dialogues, hub
from pref_jax.data.sources.common.dialogues import DialogueVote
from pref_jax.data.sources.common.vote_tables import Messages
from pref_jax.errors import Faults, UserError

PARTS = {
    "arena": "MichaelR207/chatbot_arena_personalized_0125",
    "prism": "MichaelR207/prism_personalized_0125",
}
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
# The replies as their text, as a message, or as a list of one.
REPLIES = (pa.string(), _MESSAGE, pa.list_(_MESSAGE))
WITHIN = {"train": "train", "val": "validation", "test": "test"}
RULE = (
    "A user is a person, seen if the hub's split of people is train. Of seen people `split` is kept; of unseen ones "
    "val is known too, as nothing is chosen by it. Votes on equal or empty replies are left out."
)


class _Row(NamedTuple):
    """A vote, the hub's split of its person, and its own."""

    vote: DialogueVote
    people: str
    within: str


def read(
    path: str | Path = PARTS["prism"],
    *,
    revision: str | None = None,
    unseen: tuple[str, ...] = ("test",),
    seed: int = 0,
) -> Preferences:
    """Reads one part of the benchmark, its splits as they are.

    Args:
      path: hub id of `PARTS`, or a folder with `data/{train,val,test}*.parquet`.
      revision: on the hub.
      unseen: which of the hub's splits of people are unseen users, of val and test.
      seed: stands in meta; nothing is drawn.

    Raises:
      UserError: if options are bad, the data cannot be read, or is of another schema.
    """
    if not unseen or set(unseen) - {"val", "test"}:
        raise UserError(f"unseen is {unseen}; name the hub's splits of people, ('test',) or ('val', 'test')")
    filtered: Counter[str] = Counter(missing_text=0, same_text=0)
    rows = list(_rows(path, ("train", *unseen), revision, filtered))
    if not rows:
        raise UserError(f"{path}: no vote is left; {dict(filtered)}")
    prompts: dict[tuple[Messages, str], int] = {}

    def place(prompt: Messages, text: str) -> int:
        return prompts.setdefault((prompt, text), len(prompts))

    # By their texts' order: numbers must not tell which was chosen.
    for row in rows:
        for text in sorted((row.vote.chosen, row.vote.rejected)):
            place(row.vote.prompt, text)
    people = {row.vote.worker: row.people for row in rows}
    names = list(people)
    number = {name: index for index, name in enumerate(names)}
    seen = {name: split == "train" for name, split in people.items()}
    return build(
        {"user_id": names, "group": [None] * len(names), "seen": [seen[name] for name in names]},
        {
            "response_id": [str(index) for index in range(len(prompts))],
            "prompt": [[{"role": role, "content": text} for role, text in prompt] for prompt, _ in prompts],
            "text": [text for _, text in prompts],
        },
        {
            "user": np.array([number[row.vote.worker] for row in rows], np.int32),
            "chosen": np.array([place(row.vote.prompt, row.vote.chosen) for row in rows], np.int32),
            "rejected": np.array([place(row.vote.prompt, row.vote.rejected) for row in rows], np.int32),
            "split": [row.within if row.within == "test" or seen[row.vote.worker] else "train" for row in rows],
            "controversial": pa.nulls(len(rows), pa.bool_()),
        },
        {
            "source": f"PersonalRewardBench, {hub.describe(path, revision)}",
            "licence": "see the hub: PRISM's replies are CC-BY-NC-4.0",
            "rule": RULE,
            "seed": seed,
            "options": {"unseen": unseen},
            "filtered": dict(filtered),
            "votes_in_source": len(rows) + sum(filtered.values()),
        },
    )


def _rows(path: str | Path, splits: tuple[str, ...], revision: str | None, filtered: Counter[str]) -> Iterator[_Row]:
    faults = Faults()
    for people in splits:
        table = _table(path, people, revision)
        dialogues.need_values(table, ("user_id", "split", "context"), f"{path}: {people}")
        for line, row in enumerate(dialogues.rows(table)):
            prompt = tuple((turn["role"] or "", dialogues.plain(turn["content"])) for turn in row["context"])
            chosen, rejected = (_text(row[side]) for side in ("chosen", "rejected"))
            if row["split"] not in WITHIN:
                what = f"is {row['split']!r}, not {', '.join(WITHIN)}"
                faults.add(f"{people}, row {line}, column 'split'", what, "the data may have changed upstream")
            elif not (chosen and rejected and prompt and all(text for _, text in prompt)):
                filtered["missing_text"] += 1
            elif chosen == rejected:
                filtered["same_text"] += 1
            else:
                yield _Row(DialogueVote(row["user_id"], prompt, chosen, rejected), people, WITHIN[row["split"]])
    faults.raise_if_any(f"{path}: unknown votes")


def _table(path: str | Path, people: str, revision: str | None) -> pa.Table:
    """The rows of one split of people, replies in whichever form they have."""
    plain = {"user_id": pa.string(), "split": pa.string(), "context": pa.list_(_MESSAGE)}
    for last, reply in enumerate(REPLIES, 1):
        try:
            columns = {**plain, "chosen": reply, "rejected": reply}
            return hub.read_columns(path, files=(f"data/{people}*",), columns=columns, revision=revision)
        except UserError as error:
            # Another form may fit; what is missing, or cannot be fetched, is so in all of them.
            if last == len(REPLIES) or "not the known schema" not in str(error):
                raise
    raise AssertionError("one of the forms has been read or refused")


def _text(reply: Any) -> str:
    """The text of a reply in any of its forms; of several messages none, as one is asked for."""
    if isinstance(reply, list):
        reply = reply[0] if len(reply) == 1 else None
    if isinstance(reply, dict):
        reply = reply.get("content")
    return dialogues.plain(reply)
