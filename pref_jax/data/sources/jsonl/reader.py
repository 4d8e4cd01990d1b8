"""Bring your own votes: rows with a user, in any of these forms and in the formats of `sources.formats`.

    {"user": "u1", "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "I would rather not."}
    {"user": "u1", "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No.", "strength": 2}
    {"user": "u1", "prompt": "Name a colour.", "responses": ["Blue.", "No."], "preference": -2}
    {"user": "u1", "prompt": "Name a colour.", "responses": ["Blue.", "Red."], "outcome": "tie"}
    {"user": "u1", "prompt": "Name a colour.", "ranking": ["Blue.", "Red.", "No."]}
    {"user": "u1", "prompt": "Name a colour.", "response": "Blue.", "rating": 4}

`strength` is above 0; TRL's `margin` may be 0, which tells no strength. `preference` is signed, as in HelpSteer3: below
0 the first response is better, above 0 the second, 0 is a tie, and its size is the strength. In its place `winner` may
be a, b, left, right, model_a, response_b and the like, tie, both_bad or skipped; `outcome` (tie, both_bad, skipped) may
also stand beside chosen and rejected. A ranking is best first. A rating is a number in whatever unit, true or false, up
or down.

`prompt` and responses are strings or lists of chat messages {role, content}, of which every other field (tool_calls,
name, reasoning_content, ...) is kept for the chat template. As in TRL the prompt may be left out when the responses are
whole dialogues that differ in the last, the assistant's message; dialogues that begin with the given prompt are cut as
well. Whole dialogues may also be texts: "\\n\\nHuman: ... \\n\\nAssistant: ...", or texts with common first lines.

Optional: `time` (ISO 8601, or seconds or milliseconds since 1970), `split` (train, validation, test), `group` (for
evaluation only), `seen` (false for users that shared models must not train on), `controversial`. Other fields are
counted in meta and told, not used. Columns with other names are given by option or guessed, the guess told.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources import exports
from pref_jax.data.sources.common.split_rule import SplitOptions
from pref_jax.data.sources.formats.places import open_sources
from pref_jax.data.sources.formats.recognise import Source
from pref_jax.data.sources.formats.streams import STDIN, STDIN_NAME
from pref_jax.data.sources.jsonl import columns as naming
from pref_jax.data.sources.jsonl.bad_rows import RowFaults
from pref_jax.data.sources.jsonl.rows import Notes, checked_row, note_field
from pref_jax.data.sources.jsonl.tables import Collector, tables
from pref_jax.errors import Faults, UserError
from pref_jax.progress import log

Given = str | Path | Iterable[dict[str, Any]]
# Rows by which columns and tools are recognised.
_SAMPLE = 100


def read(
    path: Given,
    *,
    columns: Mapping[str, str] | str | None = None,
    on_bad_row: str = "error",
    bad_rows: str | Path = "",
    validation_fraction: float | int = 0.1,
    test_fraction: float | int = 0.2,
    unseen_fraction: float | int = 0.2,
    split_by: str = "prompt",
    min_votes_per_user: int = 1,
    seed: int = 0,
) -> Preferences:
    """Reads votes into tables.

    What a row leaves open is assigned by `sources.common.split_rule.assign_splits`, whose words stand in meta.
    Equal texts under equal prompts become one response. Users whom the rule leaves out are counted in meta, told on
    the terminal.

    Args:
      path: a file of any format in `sources.formats.recognise.READ`, `-` for standard input; a folder; a hub id; or
        the rows themselves.
      columns: field -> column, or a text "user=annotator,prompt=question", where columns have other names.
      on_bad_row: "error", or "drop": rows with faults are left out, counted in meta by reason and told.
      bad_rows: a `.jsonl` file that then lists all of them, without their texts; empty: no list.
      validation_fraction: of the seen users' votes outside test, for those without a given split.
      test_fraction: of the prompts (of the pairs, of the votes).
      unseen_fraction: of the users without a given `seen`.
      split_by: what is new in a test: its prompts ("prompt"), its pairs ("pair"), or its time ("time"), the latest
        votes. Where that is not possible, the next weaker split is taken and named.
      min_votes_per_user: users with fewer votes are left out.
      seed: of all draws.

    Raises:
      UserError: with all bad rows at once, each with file, line, field and fix.
    """
    options = SplitOptions(
        validation=validation_fraction,
        test=test_fraction,
        unseen=unseen_fraction,
        by=split_by,
        min_votes_per_user=min_votes_per_user,
    )
    options.check()
    faults = RowFaults(on_bad_row)
    reading = Reading(path, columns, faults)
    found = Collector(faults)
    for where, value in reading.rows():
        row = checked_row(where, value, reading.notes)
        if row is not None:
            found.add(row)
    if on_bad_row == "error":
        _check_training(found, faults)
    dropped = faults.settle(reading.name, len(found), Path(bad_rows) if bad_rows else None)
    if not len(found):
        raise UserError(f"{reading.name}: no rows; give one JSON object a line with user, prompt, chosen and rejected")
    return tables(found, options, seed, {**reading.meta(), **dropped}, reading.name)


def _check_training(found: Collector, faults: Faults) -> None:
    for name, user in found.users.items():
        if not user.trains:
            fix = "give the user a row with split 'train', or drop the user"
            note_field(faults, user.first, "split", f"user {name!r} has no training pair", fix)


class Reading:
    """Rows of a place under the fields' own names, and what was noted on the way.

    Args:
      given: as for `read`.
      columns: as for `read`.
      faults: gets rows that cannot be read.

    Attributes:
      name: of the place, for messages.
      notes: faults, and what is told at the end.
    """

    def __init__(self, given: Given, columns: Mapping[str, str] | str | None, faults: Faults):
        self.name = str(given) if isinstance(given, str | Path) else "votes"
        self.name = str(STDIN_NAME) if self.name == str(STDIN) else self.name
        self.notes = Notes(faults, Counter(), Counter())
        self._columns = naming.parse_option(columns) if isinstance(columns, str) else dict(columns or {})
        naming.check_given(self._columns)
        self._given, self._formats, self._left_out = given, dict[str, None](), Counter[str]()
        self._read_as = dict[str, str]()

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Where each row is, and its value.

        Raises:
          UserError: if the place cannot be read, or its columns are none of a vote's.
        """
        if isinstance(self._given, str | Path):
            sources = open_sources(self._given, self.notes.faults)
        else:
            lines = ((f"votes:{line}", value) for line, value in enumerate(self._given, start=1))
            sources = iter([Source("votes", "JSON lines", lines)])
        for source in sources:
            for where, value in self._named(source):
                if source.split and isinstance(value, dict) and value.get("split") is None:
                    value = {**value, "split": source.split}
                yield where, value
        for text, count in (self.notes.told + self._left_out).items():
            log(f"{self.name}: {text} ({count})")
        if self.notes.ignored:
            fields = ", ".join(f"{field} ({count})" for field, count in self.notes.ignored.most_common(10))
            log(f"{self.name}: fields that nobody reads: {fields}")

    def meta(self) -> dict[str, Any]:
        """What was read, as JSON values."""
        formats = ", ".join("jsonl" if format == "JSON lines" else format for format in self._formats)
        return {
            "source": f"{formats}: {Path(self.name).name}",
            "columns": self._read_as,
            "ignored_fields": dict(self.notes.ignored.most_common()),
            "guessed": dict(self.notes.told),
            "left_out": {what: count for what, count in self._left_out.items() if count},
        }

    def _named(self, source: Source) -> Iterator[tuple[str, Any]]:
        start = list(itertools.islice(source.rows, _SAMPLE))
        records = [value for _, value in start if isinstance(value, dict)]
        rows = itertools.chain(start, source.rows)
        tool = exports.recognised(records)
        self._formats[source.format if tool is None else f"{tool.name} as {source.format}"] = None
        if source.format != "JSON lines" or tool:
            log(f"{source.name}: read as {source.format}{f', an export of {tool.name}' if tool else ''}")
        if tool is None:
            yield from self._plain(source, rows, records)
            return
        for where, value in rows:
            if not isinstance(value, dict):
                yield where, value
                continue
            note = functools.partial(note_field, self.notes.faults, where)
            for row in tool.votes(value, self._columns, note, self._left_out):
                yield where, row

    def _plain(self, source: Source, rows: Iterable[Any], records: list[Any]) -> Iterator[tuple[str, Any]]:
        columns: dict[str, str] = {}
        if records:
            names = dict.fromkeys(name for record in records for name in record)
            columns = naming.choose(names, self._columns, source.name, records[0])
            self._read_as |= columns
            guessed = [f"{column!r} as {field}" for field, column in columns.items() if field not in self._columns]
            if guessed:
                log(f"{source.name}: reads {', '.join(guessed)}; name others by columns (--columns user=NAME,...)")
        for where, value in rows:
            yield where, naming.renamed(value, columns, source.cells) if isinstance(value, dict) else value
