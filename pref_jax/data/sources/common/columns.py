"""Columns of text into numbers, rows left out by filters, and the three tables from numbers; no loop over rows.

Axis letters: M texts, N distinct answers, P pairs or votes, U users, Q distinct strings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from pref_jax.data.preferences import Preferences, build
from pref_jax.data.schema import MESSAGE, RESPONSES, SPLITS, blank, pc

_ROWS_PER_CHUNK = 1 << 16


class Numbered(NamedTuple):
    """Strings by number.

    Attributes:
      distinct: [Q] each string once, in order of appearance.
      code: int64 [M] place in `distinct` of each string, -1 for null.
    """

    distinct: pa.Array
    code: Int[np.ndarray, "M"]

    def flags(self, of_distinct: pa.Array, *, null: bool) -> Bool[np.ndarray, "M"]:
        """A boolean column over `distinct`, told of each of the M strings; `null` for those without one."""
        known = np.append(pc.fill_null(of_distinct, False).to_numpy(zero_copy_only=False), null)
        return known[self.code]

    @property
    def empty(self) -> Bool[np.ndarray, "M"]:
        """True where a string is null, empty or only white space."""
        return self.flags(blank(self.distinct), null=True)


class Answers(NamedTuple):
    """Distinct answers: the same text under the same prompt is one.

    Attributes:
      prompts: [Q] distinct prompts.
      texts: [Q] distinct texts.
      prompt: int64 [N] place in `prompts`.
      text: int64 [N] place in `texts`.
    """

    prompts: pa.Array
    texts: pa.Array
    prompt: Int[np.ndarray, "N"]
    text: Int[np.ndarray, "N"]

    def table(self, rows: Int[np.ndarray, "n"]) -> pa.Table:
        """Some answers as a table of responses, each prompt one message of the user."""
        parts = [rows[start : start + _ROWS_PER_CHUNK] for start in range(0, len(rows), _ROWS_PER_CHUNK)]
        return pa.Table.from_batches([self._batch(part) for part in parts], schema=RESPONSES).set_column(
            0, "response_id", names("r", len(rows))
        )

    def _batch(self, rows: Int[np.ndarray, "n"]) -> pa.RecordBatch:
        role = pa.array(["user"]).take(pa.array(np.zeros(len(rows), np.int64)))
        content = self.prompts.take(pa.array(self.prompt[rows])).cast(pa.string())
        none = pa.nulls(len(rows), pa.string())
        messages = pa.StructArray.from_arrays([role, content, none], fields=list(MESSAGE))
        prompt = pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1, dtype=np.int32)), messages)
        text = self.texts.take(pa.array(self.text[rows])).cast(pa.string())
        return pa.record_batch([none, prompt.cast(RESPONSES.field("prompt").type), text, none], schema=RESPONSES)


class Sieve:
    """Which of P rows are still there, and how many each filter left out."""

    def __init__(self, rows: int):
        self.keep = np.ones(rows, bool)
        self.counts: dict[str, int] = {}

    def drop(self, name: str, mask: Bool[np.ndarray, "P"]) -> None:
        """Leaves the rows of `mask` out, and counts those that were still there under `name`."""
        self.counts[name] = self.counts.get(name, 0) + int((self.keep & mask).sum())
        self.keep = self.keep & ~mask


def number(strings: pa.Array | pa.ChunkedArray) -> Numbered:
    """Numbers strings in order of appearance. Their total may pass the 2 GB that plain Arrow strings hold."""
    chunked = strings if isinstance(strings, pa.ChunkedArray) else pa.chunked_array([strings])
    chunked = chunked.cast(pa.large_string())
    # Not dictionary_encode: every chunk would bring the whole dictionary along, and files come in many chunks.
    distinct = chunked.unique().drop_null()
    code = pc.index_in(chunked, value_set=distinct).fill_null(-1)
    return Numbered(distinct, code.to_numpy().astype(np.int64))


def answers(
    prompts: Numbered, prompt: Int[np.ndarray, "M"], texts: Numbered, text: Int[np.ndarray, "M"]
) -> tuple[Answers, Int[np.ndarray, "M"]]:
    """Merges equal texts under equal prompts.

    Args:
      prompts: where prompts have their numbers.
      prompt: number of each answer's prompt; -1 for none.
      texts: where texts have their numbers.
      text: number of each answer's text; -1 for none.

    Returns:
      The distinct answers, ordered by prompt and text, and the row of each of the M, -1 where either has none.
    """
    there = (prompt >= 0) & (text >= 0)
    key, row = np.unique(prompt[there] * (len(texts.distinct) + 1) + text[there], return_inverse=True)
    rows = np.full(len(prompt), -1)
    rows[there] = row
    by = len(texts.distinct) + 1
    return Answers(prompts.distinct, texts.distinct, key // by, key % by), rows


def unordered(first: Int[np.ndarray, "P"], second: Int[np.ndarray, "P"], count: int) -> Int[np.ndarray, "P"]:
    """A number for each pair, the same whichever of the two comes first. `count`: all values are below it."""
    return np.minimum(first, second) * count + np.maximum(first, second)


def repeated(keys: Int[np.ndarray, "P"], among: Bool[np.ndarray, "P"]) -> Bool[np.ndarray, "P"]:
    """True at each row of `among` whose key stood in an earlier row of `among`."""
    rows = np.flatnonzero(among)
    mask = np.zeros(len(keys), bool)
    mask[rows] = True
    mask[rows[np.unique(keys[rows], return_index=True)[1]]] = False
    return mask


def unanimous(votes: Bool[np.ndarray, "P C"]) -> Bool[np.ndarray, "P"]:
    """True for rows in which all agree."""
    return np.asarray((votes == votes[:, :1]).all(axis=1))


def names(stem: str, count: int) -> pa.Array:
    """stem0, stem1, ..."""
    return pc.binary_join_element_wise(stem, pa.array(np.arange(count)).cast(pa.string()), "")


def assemble(
    found: Answers,
    *,
    user: Int[np.ndarray, "P"],
    chosen: Int[np.ndarray, "P"],
    rejected: Int[np.ndarray, "P"],
    split: Int[np.ndarray, "P"],
    controversial: pa.Array | Bool[np.ndarray, "P"],
    user_ids: Sequence[str] | pa.Array,
    groups: Sequence[str | None] | pa.Array,
    seen: Bool[np.ndarray, "U"],
    meta: dict[str, Any],
    more: Mapping[str, Any] | None = None,
    ratings: Mapping[str, Any] | None = None,
    test: bool = True,
) -> Preferences:
    """Builds the tables; answers that no pair and no rating uses are left away.

    Args:
      found: all answers.
      user: place in `user_ids`.
      chosen: place in `found`.
      rejected: place in `found`.
      split: place in `SPLITS`.
      controversial: True, False, or null where unknown.
      user_ids: [U].
      groups: [U].
      seen: [U].
      meta: for `build`.
      more: further columns of comparisons, such as `outcome`.
      ratings: columns of ratings, `response` as place in `found`.
      test: as for `build`.

    Raises:
      UserError: as `build` does.
    """
    rated = np.zeros(0, np.int64) if ratings is None else np.asarray(ratings["response"])
    used, place = np.unique(np.concatenate([chosen, rejected, rated]), return_inverse=True)
    pairs = len(chosen)
    columns = {"user": user, "chosen": place[:pairs], "rejected": place[pairs : 2 * pairs]}
    words = pa.array(SPLITS).take(pa.array(split))
    return build(
        {"user_id": user_ids, "group": groups, "seen": seen},
        found.table(used),
        {**columns, "split": words, "controversial": controversial, **(more or {})},
        meta,
        ratings=None if ratings is None else {**ratings, "response": place[2 * pairs :]},
        test=test,
    )
