"""Community Alignment: annotators of several countries choose one of four replies, up to four turns, in five languages.

Source: facebook/community-alignment-dataset, `community_alignment.csv` (arXiv 2507.09650, codebook in its appendix I;
CC-BY-4.0), one row per dialogue:

    annotator_id, assigned_lang (en, fr, hi, it, pt)
    T_turn_prompt, T_turn_response_a to _d, T_turn_preferred_response (response_a to response_d) with T = first,
    second, third, fourth; null where the dialogue has no such turn

Many people answer the same opening prompts with the same four replies; a dialogue goes on with the preferred one. Some
replies end with the marker `<|end_of_text|>` of the model that wrote them: it is removed.

Axis letters: P votes.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.common import dialogues, hub
from pref_jax.data.sources.common.dialogues import DialogueVote, Turn
from pref_jax.data.sources.common.options import SplitOptions, flat_options
from pref_jax.errors import Faults, UserError

ID = "facebook/community-alignment-dataset"
TURNS = ("first", "second", "third", "fourth")
REPLIES = ("response_a", "response_b", "response_c", "response_d")
END = "<|end_of_text|>"
COLUMNS = {"annotator_id": pa.string(), "assigned_lang": pa.string()} | {
    f"{turn}_turn_{what}": pa.string() for turn in TURNS for what in ("prompt", *REPLIES, "preferred_response")
}
RULE = (
    "One pair for each of the three replies that the annotator did not prefer. A user is an annotator, the group the "
    "language of all their dialogues. The topic of a dialogue is its opening prompt."
)


# A turn makes three votes.
@flat_options(split=SplitOptions(unseen_fraction=0.2, test_query_fraction=0.2, min_votes=12, context_pairs=24))
def read(
    path: str | Path = ID,
    *,
    revision: str | None = None,
    languages: tuple[str, ...] = (),
    turns: tuple[int, ...] = (1, 2, 3, 4),
    split: SplitOptions,
    seed: int = 0,
) -> Preferences:
    """Reads the votes by `RULE` and that of `vote_tables`: users are split by annotator, test by opening prompt.

    Every filter's count stands in meta under `filtered`, in votes (pairs) unless the name says otherwise.

    Args:
      path: hub id, or a folder with `community_alignment.csv`.
      revision: on the hub.
      languages: of the dialogues, as in `assigned_lang`; none for all.
      turns: from 1, those whose votes count; the others are history only.
      split: its fields are keyword options, see `SplitOptions`.
      seed: of all draws.

    Raises:
      UserError: if options are bad, the data cannot be read, or is not of the schema above.
    """
    split.check(dialogues.turn_faults(turns, len(TURNS)))
    table = hub.read_columns(path, files=("community_alignment",), columns=COLUMNS, revision=revision)
    dialogues.need_values(table, ("annotator_id", "assigned_lang"), f"{path}: community_alignment")
    there = sorted(set(table["assigned_lang"].to_pylist()))
    if unknown := sorted(set(languages) - set(there)):
        raise UserError(f"languages: no dialogue in {', '.join(unknown)}; there are {', '.join(there)}")
    filtered: Counter[str] = Counter(other_language=0, other_turns=0, no_preference=0, after_gap=0)
    return dialogues.tabulated(
        _votes(dialogues.rows(table), languages or there, turns, filtered),
        filtered,
        groups=_groups(table, languages or there),
        options={"languages": languages, "turns": turns, **dataclasses.asdict(split)},
        seed=seed,
        meta={
            "source": f"Community Alignment, {hub.describe(path, revision)}",
            "licence": "CC-BY-4.0",
            "rule": RULE,
            "votes_in_source": sum(_asked(row, turn) for row in dialogues.rows(table) for turn in TURNS),
        },
    )


def _groups(table: pa.Table, languages: Sequence[str]) -> dict[str, str | None]:
    """The language of each annotator, None for more than one."""
    spoken: dict[str, set[str]] = defaultdict(set)
    for person, language in zip(table["annotator_id"].to_pylist(), table["assigned_lang"].to_pylist(), strict=True):
        if language in languages:
            spoken[person].add(language)
    return {person: known.pop() if len(known) == 1 else None for person, known in spoken.items()}


def _votes(
    rows: Iterable[dict[str, Any]], languages: Sequence[str], turns: tuple[int, ...], filtered: Counter[str]
) -> Iterator[DialogueVote]:
    """The votes of the dialogues in these languages, on these turns."""
    faults = Faults()
    for line, row in enumerate(rows):
        if row["assigned_lang"] not in languages:
            filtered["other_language"] += sum(_asked(row, turn) for turn in TURNS)
            continue
        dialogue = [_turn(row, line, turn, faults, filtered) for turn in TURNS]
        for number, turn in enumerate(dialogue, start=1):
            if number not in turns:
                filtered["other_turns"] += len(turn.rejected)
                dialogue[number - 1] = turn._replace(rejected=())
        yield from dialogues.unroll(row["annotator_id"], dialogue, filtered)
    faults.raise_if_any(f"{ID}: unknown votes")


def _asked(row: dict[str, Any], turn: str) -> int:
    """Votes of a turn: three where it took place, that is, where anything but its prompt is known."""
    return 3 * any(dialogues.plain(row[f"{turn}_turn_{what}"]) for what in (*REPLIES, "preferred_response"))


def _turn(row: dict[str, Any], line: int, turn: str, faults: Faults, filtered: Counter[str]) -> Turn:
    """One turn; where nothing was preferred its three votes are counted, and nothing is known of what comes next."""
    prompt = dialogues.plain(row[f"{turn}_turn_prompt"])
    choice = dialogues.plain(row[f"{turn}_turn_preferred_response"])
    if not choice:
        filtered["no_preference"] += _asked(row, turn)
        return Turn(prompt, "", ())
    if choice not in REPLIES:
        where = f"row {line}, column '{turn}_turn_preferred_response'"
        faults.add(where, f"is {choice!r}, not one of {', '.join(REPLIES)}", "the data may have changed upstream")
        return Turn(prompt, "", ())
    text = {reply: _text(row[f"{turn}_turn_{reply}"]) for reply in REPLIES}
    return Turn(prompt, text[choice], tuple(text[reply] for reply in REPLIES if reply != choice))


def _text(reply: str | None) -> str:
    return dialogues.plain(dialogues.plain(reply).removesuffix(END))
