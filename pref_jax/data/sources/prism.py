"""PRISM: dialogues of people of 75 countries with 21 language models, every reply rated by the person.

Source: HannahRoseKirk/prism-alignment (arXiv 2404.16019; human texts CC-BY-4.0, replies CC-BY-NC-4.0), columns as in
its codebook (github.com/HannahKirk/prism-alignment):

    utterances.jsonl  one row per reply: user_id, conversation_id, turn (from 0), user_prompt, model_response ("EMPTY
                      STRING" for an empty one), score (1 to 100), if_chosen (the highest rated of its turn, at random
                      in case of a tie)
    survey.jsonl      one row per person: user_id, age, gender, education, study_locale, ...; read for groups only

LoRe's protocol (arXiv 2504.14439): people with more than 5 dialogues in which a choice was made, 80 % of them seen,
half of each one's dialogues to learn from, one pair for each reply turned down. LoRe's code hands those replies on as
Python lists, whose printed form betrays the label; here all are plain text.

Axis letters: P votes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.common import dialogues, hub
from pref_jax.data.sources.common.dialogues import DialogueVote, Named, Turn
from pref_jax.data.sources.common.vote_tables import build_tables, controversial_pairs, numbered
from pref_jax.data.splits import check_options, draw, hold_out
from pref_jax.errors import Faults, UserError
from pref_jax.ragged import group_by

ID = "HannahRoseKirk/prism-alignment"
COLUMNS = {
    "user_id": pa.string(),
    "conversation_id": pa.string(),
    "turn": pa.int64(),
    "user_prompt": pa.string(),
    "model_response": pa.string(),
    "score": pa.float64(),
    "if_chosen": pa.bool_(),
}
EMPTY = "EMPTY STRING"
RULE = (
    "One pair for each reply of a turn that the person did not choose; ties in the person's rating are left out unless "
    "keep_ties. Turns in which not one text alone is chosen are left out. People with fewer than min_dialogues "
    "dialogues in which a reply was chosen and another was not are left out, of the others the unseen fraction is "
    "drawn. Of each one's dialogues the test fraction is drawn, those that open alike together, and test pairs under a "
    "prompt of someone's other dialogues are left out. Of the seen users' dialogues that are left the validation "
    "fraction is drawn, leaving each user one."
)


def read(
    path: str | Path = ID,
    *,
    revision: str | None = None,
    unseen_fraction: float | int = 0.2,
    test_fraction: float | int = 0.5,
    validation_fraction: float | int = 0.1,
    min_dialogues: int = 6,
    keep_ties: bool = False,
    group: str = "",
    seed: int = 0,
) -> Preferences:
    """Reads PRISM by `RULE`; the defaults are LoRe's protocol, but for ties, which are coin flips.

    All dialogues of an unseen user outside of test are context. Every filter's count stands in meta under `filtered`,
    in votes unless the name says otherwise.

    Args:
      path: hub id, or a folder with `utterances.jsonl`.
      revision: on the hub.
      unseen_fraction: of the people.
      test_fraction: of each one's dialogues.
      validation_fraction: of the seen users' dialogues outside of test.
      min_dialogues: people with fewer are left out.
      keep_ties: keep pairs of equal scores, as published.
      group: a column of the survey that holds words, such as gender; "" for none.
      seed: of all draws.

    Raises:
      UserError: if options are bad, the data cannot be read, or is not of the schema above.
    """
    fractions = {
        "unseen_fraction": unseen_fraction,
        "test_fraction": test_fraction,
        "validation_fraction": validation_fraction,
    }
    # One dialogue to learn from and one for test.
    check_options(fractions=fractions, counts={"min_dialogues": min_dialogues}, least=2)
    table = hub.read_columns(path, files=("utterances",), columns=COLUMNS, revision=revision)
    ids = ("user_id", "conversation_id", "turn", "if_chosen")
    dialogues.need_values(table, ids, f"{path}: utterances")
    filtered: Counter[str] = Counter(ties=0, unclear_choice=0, after_gap=0)
    people, votes = _votes(dialogues.rows(table), keep_ties, filtered)
    named = dialogues.name(votes, filtered)
    few = np.array([people[vote.worker] < min_dialogues for vote in named.votes], bool)
    if few.all():
        raise UserError(f"{path}: nobody has {min_dialogues} dialogues with votes; lower min_dialogues")
    filtered["users_under_min_dialogues"] = sum(count < min_dialogues for count in people.values())
    filtered["votes_under_min_dialogues"] = int(few.sum())
    split, seen, known = _split(named, ~few, fractions, np.random.default_rng(seed))
    filtered["test_on_training_prompts"] = int(known.sum())
    keep = ~few & ~known
    return build_tables(
        [vote for vote, kept in zip(named.votes, keep, strict=True) if kept],
        names=[vote.worker for vote, kept in zip(named.votes, keep, strict=True) if kept],
        split=split[keep],
        seen=seen[keep],
        controversial=controversial_pairs(named.votes).filter(pa.array(keep)),
        texts=named.texts,
        queries=named.queries,
        groups=_groups(path, revision, group) if group else None,
        meta={
            "source": f"PRISM, {hub.describe(path, revision)}",
            "licence": "CC-BY-4.0 (human texts), CC-BY-NC-4.0 (replies)",
            "rule": f"{dialogues.RULE} {RULE}",
            "seed": seed,
            "options": {**fractions, "min_dialogues": min_dialogues, "keep_ties": keep_ties, "group": group},
            "filtered": dict(filtered),
            "votes_in_source": table.num_rows - int(np.sum(table["if_chosen"].to_numpy())),
        },
    )


def _votes(
    rows: Iterable[dict[str, Any]], keep_ties: bool, filtered: Counter[str]
) -> tuple[Counter[str], Iterator[DialogueVote]]:
    """How many dialogues with a choice each person led, and their votes."""
    replies: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        replies[row["user_id"], row["conversation_id"]][row["turn"]].append(row)

    def votes() -> Iterator[DialogueVote]:
        faults = Faults()
        for (person, _), turns in replies.items():
            yield from dialogues.unroll(person, _dialogue(turns, keep_ties, filtered, faults), filtered)
        faults.raise_if_any(f"{ID}: a turn has one prompt")

    people = Counter({person: 0 for person, _ in replies})
    people.update(person for (person, _), turns in replies.items() if any(map(_decided, turns.values())))
    return people, votes()


def _decided(rows: list[dict[str, Any]]) -> bool:
    """Whether a turn has a reply that was chosen and one that was not."""
    return {row["if_chosen"] for row in rows if _text(row)} == {True, False}


def _dialogue(
    turns: dict[int, list[dict[str, Any]]], keep_ties: bool, filtered: Counter[str], faults: Faults
) -> Iterator[Turn]:
    """The turns in order, from 0, after one of which nothing is known where turns are missing."""
    for place, number in enumerate(sorted(turns)):
        if place != number:
            yield Turn("", "", ())
        yield _turn(turns[number], keep_ties, filtered, faults)


def _turn(rows: list[dict[str, Any]], keep_ties: bool, filtered: Counter[str], faults: Faults) -> Turn:
    """One turn of its replies."""
    prompts = {dialogues.plain(row["user_prompt"]) for row in rows}
    if len(prompts) > 1:
        where = f"conversation {rows[0]['conversation_id']}, turn {rows[0]['turn']}"
        faults.add(where, f"{len(prompts)} values in column 'user_prompt'", "fetch the data again")
    prompt = min(prompts)
    chosen = {_text(row): row["score"] for row in reversed(rows) if row["if_chosen"]}
    others = [row for row in rows if not row["if_chosen"]]
    if len(chosen) != 1:
        filtered["unclear_choice"] += len(others)
        return Turn(prompt, "", ())
    ((text, score),) = chosen.items()
    apart = [row for row in others if keep_ties or score is None or row["score"] != score]
    filtered["ties"] += len(others) - len(apart)
    return Turn(prompt, text, tuple(_text(row) for row in apart))


def _text(row: dict[str, Any]) -> str:
    text = dialogues.plain(row["model_response"])
    return "" if text == EMPTY else text


def _split(
    named: Named, keep: Bool[np.ndarray, "P"], fractions: dict[str, float | int], rng: np.random.Generator
) -> tuple[np.ndarray, Bool[np.ndarray, "P"], Bool[np.ndarray, "P"]]:
    """Split of each vote to keep, whether its user is seen, and whether it is a test under a prompt learned from."""
    user, dialogue, query = (
        numbered(names)[1]
        for names in (
            [vote.worker for vote in named.votes],
            [f"{vote.worker}\n{named.topics[vote.query]}" for vote in named.votes],
            [vote.query for vote in named.votes],
        )
    )
    owner = np.zeros(dialogue.max() + 1, np.int64)
    owner[dialogue] = user
    alive, used = np.unique(user[keep]), np.unique(dialogue[keep])
    unseen, drawn, open_ = np.zeros(user.max() + 1, bool), np.zeros(len(owner), bool), np.zeros(len(owner), bool)
    unseen[alive[draw(len(alive), fractions["unseen_fraction"], rng)]] = True
    groups = group_by(owner[used], len(unseen))
    for own in np.split(used[groups.order], groups.starts[alive[1:]]):
        drawn[own[draw(len(own), fractions["test_fraction"], rng)]] = True
    open_[used] = ~drawn[used] & ~unseen[owner[used]]
    held = hold_out(owner, open_, fractions["validation_fraction"], rng, keep=np.ones(len(unseen), bool))
    test = drawn[dialogue]
    known = keep & test & np.isin(query, query[keep & ~test])
    return np.where(test, "test", np.where(held[dialogue], "validation", "train")), ~unseen[user], known


def _groups(path: str | Path, revision: str | None, column: str) -> dict[str, str | None]:
    """What the survey says of each person."""
    columns = {"user_id": pa.string(), column: pa.string()}
    table = hub.read_columns(path, files=("survey",), columns=columns, revision=revision)
    return dict(zip(table["user_id"].to_pylist(), table[column].to_pylist(), strict=True))
