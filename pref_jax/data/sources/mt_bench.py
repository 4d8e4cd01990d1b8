"""MT-Bench human judgments: experts compare the answers of two language models to 80 questions of two turns.

Source: lmsys/mt_bench_human_judgments, split `human` (arXiv 2306.05685; CC-BY-4.0), columns as on its card:

    question_id, model_a, model_b, winner (model_a, model_b or tie), judge, turn (1 or 2)
    conversation_a, conversation_b: [{content, role}], user and assistant in turn, both turns

Of a vote on turn 2 each model's dialogue has its own first reply. A pair has one prompt, so this is what the two
dialogues have in common, and a text is the rest of one up to the judged reply, later messages behind `User:` and
`Assistant:`.

Axis letters: P votes.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.common import dialogues, hub
from pref_jax.data.sources.common.dialogues import DialogueVote
from pref_jax.data.sources.common.options import SplitOptions, flat_options
from pref_jax.data.sources.common.vote_tables import Messages
from pref_jax.errors import Faults

_DIALOGUE = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
ID = "lmsys/mt_bench_human_judgments"
COLUMNS = {
    "winner": pa.string(),
    "judge": pa.string(),
    "conversation_a": _DIALOGUE,
    "conversation_b": _DIALOGUE,
    "turn": pa.int64(),
}
RULE = (
    "A user is a judge. The prompt is what the two dialogues have in common up to the judged reply, a text the rest. "
    "The topic is the question, with both of its turns."
)


@flat_options(split=SplitOptions())
def read(
    path: str | Path = ID,
    *,
    revision: str | None = None,
    turns: tuple[int, ...] = (1, 2),
    split: SplitOptions,
    seed: int = 0,
) -> Preferences:
    """Reads the votes by `RULE` and that of `vote_tables`: users are split by judge, test by question.

    Every filter's count stands in meta under `filtered`, in votes unless the name says otherwise.

    Args:
      path: hub id, or a folder with `data/human-*.parquet`.
      revision: on the hub.
      turns: 1, 2 or both.
      split: its fields are keyword options, see `SplitOptions`.
      seed: of all draws.

    Raises:
      UserError: if options are bad, the data cannot be read, or is not of the schema above.
    """
    split.check(dialogues.turn_faults(turns, 2))
    table = hub.read_columns(path, files=("data/human*",), columns=COLUMNS, revision=revision)
    dialogues.need_values(table, tuple(COLUMNS), f"{path}: human")
    filtered: Counter[str] = Counter(ties=0, other_turns=0)
    meta = {"source": f"MT-Bench human judgments, {hub.describe(path, revision)}", "licence": "CC-BY-4.0"}
    return dialogues.tabulated(
        _votes(dialogues.rows(table), turns, filtered),
        filtered,
        options={"turns": turns, **dataclasses.asdict(split)},
        seed=seed,
        meta={**meta, "rule": RULE, "votes_in_source": table.num_rows},
    )


def _votes(rows: Iterable[dict[str, Any]], turns: tuple[int, ...], filtered: Counter[str]) -> Iterator[DialogueVote]:
    """The decided votes on these turns."""
    faults = Faults()
    for line, row in enumerate(rows):
        winner, turn = row["winner"], row["turn"]
        sides = [_upto(row[f"conversation_{side}"], turn) for side in "ab"]
        if winner not in ("model_a", "model_b", "tie"):
            faults.add(f"row {line}, column 'winner'", f"is {winner!r}", "the data may have changed upstream")
        elif turn not in (1, 2):
            faults.add(f"row {line}, column 'turn'", f"is {turn}, not 1 or 2", "the data may have changed upstream")
        elif any([role for role, _ in side] != ["user", "assistant"] * turn for side in sides):
            what = f"no dialogues of {turn} turns of user and assistant"
            faults.add(f"row {line}, columns 'conversation_a', 'conversation_b'", what, "fetch the data again")
        elif sides[0][0] != sides[1][0]:
            what = "two questions, where a vote is on two answers to one"
            faults.add(f"row {line}, columns 'conversation_a', 'conversation_b'", what, "fetch the data again")
        elif turn not in turns:
            filtered["other_turns"] += 1
        elif winner == "tie":
            filtered["ties"] += 1
        else:
            prompt, texts = _branch(*sides)
            chosen, rejected = texts if winner == "model_a" else texts[::-1]
            yield DialogueVote(row["judge"], prompt, chosen, rejected)
    faults.raise_if_any(f"{ID}: unknown votes")


def _upto(dialogue: list[dict[str, str | None] | None], turn: int) -> Messages:
    """The messages up to the reply of this turn; a null one is of nobody."""
    messages = [message or {} for message in dialogue[: 2 * turn]]
    return tuple((message.get("role") or "", dialogues.plain(message.get("content"))) for message in messages)


def _branch(one: Messages, other: Messages) -> tuple[Messages, tuple[str, str]]:
    """What two dialogues have in common before their last messages, and the rest of each as text."""
    pairs = zip(one[:-1], other[:-1], strict=True)
    common = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return one[:common], (_rest(one[common:]), _rest(other[common:]))


def _rest(messages: Messages) -> str:
    """A reply, and what was said after it; nothing if one of the messages is empty."""
    (_, first), *more = messages
    if not all(content for _, content in messages):
        return ""
    return "\n\n".join([first, *(f"{role.capitalize()}: {content}" for role, content in more)])
