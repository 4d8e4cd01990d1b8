"""Who preferred which answer: users, responses and comparisons as memory-mapped Arrow tables in one folder.

    users.arrow        user_id, group or null, seen                        one row per user
    responses.arrow    response_id, prompt [{role, content, extra}], text, extra: other fields of a message as JSON
                       text, or null                                       one row for each distinct answer to a prompt
    comparisons.arrow  user, chosen, rejected (row numbers), split, controversial or null,
                       outcome: preferred, tie, both_bad or skipped,
                       strength: how much more it was preferred, above 0, in the source's unit, or null,
                       choice: rows of one number are one choice out of several responses, or null,
                       rated: whether the row was made of two ratings, time (UTC) or null
    ratings.arrow      user, response (row numbers), rating in the source's unit, split, time or null
    meta.json          format version, source, licence, rule, seed, counts

A ranking a > b > c is two choices: a out of {a, b, c} (rows a-b and a-c, one number) and b out of {b, c}. Ratings of
one person on one prompt also stand as comparisons, `rated`: what knows of ratings leaves these out.

Seen users have train, validation and test pairs. An unseen user's train pairs are the few known when the user
arrives (context), never to be trained on by a shared model. The files are uncompressed Arrow IPC (Feather v2):
`pandas.read_feather(file)` and `datasets.load_dataset("arrow", data_files=file)` read them, and
`datasets.Dataset(preferences.responses)` wraps a loaded table without a copy.

Axis letters: U users, N responses, P pairs.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.feather as feather
from jaxtyping import Bool, Int

from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.data.schema import (
    DEFAULTS,
    OUTCOMES,
    RATINGS,
    SCHEMAS,
    SPLITS,
    check_tables,
    in_splits,
    kind,
    prompt_ids,
)
from pref_jax.errors import UserError
from pref_jax.files import atomic_folder, read_json, write_json

# Arrow makes these functions at import, out of sight of a static type checker.
pc: Any = pyarrow.compute

Columns = pa.Table | Mapping[str, Any]
FORMAT_VERSION = 2
_ROWS_PER_BATCH = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences:
    """The four tables and their `meta`; made by `build` and `load`, which check them."""

    users: pa.Table
    responses: pa.Table
    comparisons: pa.Table
    meta: dict[str, Any]
    ratings: pa.Table = dataclasses.field(default_factory=RATINGS.empty_table)

    @property
    def num_users(self) -> int:
        """U, seen and unseen together."""
        return self.users.num_rows

    @property
    def num_responses(self) -> int:
        """N."""
        return self.responses.num_rows

    @property
    def seen(self) -> Bool[np.ndarray, "U"]:
        """True for users that shared models train on."""
        return self.users["seen"].to_numpy()

    @property
    def groups(self) -> list[str | None]:
        """Group of each user, for evaluation only."""
        return self.users["group"].to_pylist()

    def pairs(
        self, split: str | tuple[str, ...], seen: bool | None = None, *, ties: bool = False, rated: bool = True
    ) -> Comparisons:
        """The comparisons of one split or several, in table order.

        Args:
          split: 'train', 'validation', 'test' or a tuple of them.
          seen: only seen users (True), only unseen ones (False), or both (None).
          ties: also ties and pairs of which both are bad. Skipped pairs are never among them.
          rated: also comparisons that were made of ratings.

        Raises:
          UserError: on an unknown split.
        """
        table = self.comparisons
        outcome = pc.index_in(table["outcome"], value_set=pa.array(OUTCOMES)).to_numpy()
        mask = self._of(table, split, seen) & (outcome <= (OUTCOMES.index("both_bad") if ties else 0))
        if not rated:
            mask &= ~table["rated"].to_numpy()
        row = np.flatnonzero(mask)
        known = table["controversial"].cast(pa.int8())
        return Comparisons(
            user=table["user"].to_numpy()[row],
            chosen=table["chosen"].to_numpy()[row],
            rejected=table["rejected"].to_numpy()[row],
            controversial=known.fill_null(-1).to_numpy()[row],
            row=row,
            tie=outcome[row] > 0,
            strength=pc.fill_null(table["strength"], np.float32(np.nan)).to_numpy()[row],
            choice=pc.fill_null(table["choice"], -1).to_numpy()[row],
        )

    def rated(self, split: str | tuple[str, ...], seen: bool | None = None) -> Ratings:
        """The ratings of one split or several, in table order; arguments as for `pairs`.

        Raises:
          UserError: on an unknown split.
        """
        row = np.flatnonzero(self._of(self.ratings, split, seen))
        return Ratings(*(self.ratings[name].to_numpy()[row] for name in Ratings._fields))

    def _of(self, table: pa.Table, split: str | tuple[str, ...], seen: bool | None) -> Bool[np.ndarray, " R"]:
        """Which rows are of these splits and users."""
        words = (split,) if isinstance(split, str) else split
        if unknown := [word for word in words if word not in SPLITS]:
            raise UserError(f"pairs: unknown split {', '.join(map(repr, unknown))}; use {', '.join(SPLITS)}")
        mask = in_splits(table["split"], words)
        return mask if seen is None else mask & (self.seen[table["user"].to_numpy()] == seen)


def build(
    users: Columns,
    responses: Columns,
    comparisons: Columns,
    meta: dict[str, Any],
    *,
    ratings: Columns | None = None,
    test: bool = True,
) -> Preferences:
    """Makes checked preferences from tables, or from columns by name.

    Harmless differences of type are fixed (other integer widths, large or dictionary-coded strings); further columns
    of tables are kept. The schemas stand in `pref_jax.data.schema`.

    Args:
      users: U rows.
      responses: N rows; extra may be left out, of the responses and of their prompts' messages.
      comparisons: P rows; outcome, strength, choice, rated and time may be left out.
      meta: JSON values; `source`, `licence`, `rule` and `seed` should be there. `format_version` and `counts` are set.
      ratings: of single responses, if there are any; time may be left out.
      test: whether there must be pairs to test on.

    Raises:
      UserError: with all faults of the tables at once.
      TypeError: if `meta` holds something that JSON has not.
    """
    given = {"users": users, "responses": responses, "comparisons": comparisons}
    given["ratings"] = RATINGS.empty_table() if ratings is None else ratings
    tables = {name: _conform(table, SCHEMAS[name]) for name, table in given.items()}
    check_tables(**tables, test=test)
    known = {"source": "unknown", "licence": "unknown", "rule": "unknown", "seed": None, **meta}
    # Through JSON and back, so that what is built equals what will be loaded (tuples become lists).
    known = json.loads(json.dumps({"format_version": FORMAT_VERSION, **known, "counts": {}}, allow_nan=False))
    known["format_version"] = FORMAT_VERSION
    preferences = Preferences(**tables, meta=known)
    known["counts"].update(_counts(preferences))
    return preferences


def validate(preferences: Preferences) -> None:
    """Checks preferences that did not come through `build` or `load`.

    Raises:
      UserError: with all faults at once.
    """
    check_tables(preferences.users, preferences.responses, preferences.comparisons, preferences.ratings)


def save(preferences: Preferences, folder: str | Path) -> None:
    """Writes the five files; `folder` holds all of them or is as before. An older data set there is replaced.

    Raises:
      UserError: if `folder` holds something other than preferences.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "meta.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: holds something else, and saving would replace it; name a new folder")
    with atomic_folder(folder) as part:
        for name in SCHEMAS:
            table = getattr(preferences, name)
            # Row numbers stay in one piece, so that they are read without a copy; texts go in smaller ones.
            numbers = name in ("comparisons", "ratings")
            rows = max(table.num_rows, 1) if numbers else _ROWS_PER_BATCH
            table = table.combine_chunks() if numbers else table
            feather.write_feather(table, str(part / f"{name}.arrow"), compression="uncompressed", chunksize=rows)
        write_json(part / "meta.json", preferences.meta)


def load(folder: str | Path, *, validate: bool = True) -> Preferences:
    """Opens saved preferences, memory-mapped: texts are read from disk when they are used.

    Args:
      folder: where `save` wrote.
      validate: False skips the checks of the tables' content, for huge tables that are trusted.

    Raises:
      UserError: if a file is missing or cut short, the format is newer than this program, or a table is at fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; prepare the data first, or check the path")
    meta = read_json(folder / "meta.json")
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{folder / 'meta.json'}: no format_version, so these are no preferences; prepare them again")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{folder / 'meta.json'}: format version {version} is newer than {FORMAT_VERSION}, the newest this program "
            "reads; update pref_jax, or prepare the data with this version"
        )
    names = [name for name in SCHEMAS if version > 1 or name != "ratings"]
    tables = {name: _conform(_map(folder / f"{name}.arrow"), SCHEMAS[name]) for name in names}
    tables.setdefault("ratings", RATINGS.empty_table())
    counts = meta.get("counts", {})
    for name, table in tables.items():
        if name in counts and counts[name] != table.num_rows:
            raise UserError(
                f"{folder / name}.arrow: {table.num_rows} rows where meta.json counts {counts[name]}; the files are of "
                "different data sets, prepare them again"
            )
    if validate:
        check_tables(**tables, where=str(folder), test=counts.get("test") != 0)
    return Preferences(**tables, meta=meta)


def summarise(preferences: Preferences) -> dict[str, Any]:
    """Figures of a data set, as JSON values; what does not exist (a median of nothing) is 0, an unknown share None.

    Returns:
      `users` {total, seen, unseen}; `responses`; `prompts`; `pairs` {total, train, validation, test};
      `pairs_a_user` {all, train, seen, unseen: {min, median, max}}; `sharing` {mean_users: users a compared response,
      shared: share of compared responses with two users or more}; `controversial` {share: of the pairs where it is
      known, known: number of these}; `groups` {name: users}, the null group under "".
    """
    pairs = preferences.pairs(SPLITS)
    seen = preferences.seen
    a_user = np.bincount(pairs.user, minlength=preferences.num_users)
    train = np.bincount(preferences.pairs("train").user, minlength=preferences.num_users)
    edges = np.concatenate([pairs.user.astype(np.int64) * preferences.num_responses + r for r in pairs[1:3]])
    # Asking for the counts makes NumPy sort; without them it hashes, which takes twenty times as long (2.4).
    edges = np.unique(edges, return_counts=True)[0]
    a_response = np.bincount(edges % max(preferences.num_responses, 1))
    a_response = a_response[a_response > 0]
    known = pairs.controversial[pairs.controversial >= 0]
    counts = _counts(preferences)
    groups = preferences.users["group"].fill_null("").value_counts().to_pylist()
    return {
        "users": {"total": counts["users"], "seen": counts["seen_users"], "unseen": counts["unseen_users"]},
        "responses": counts["responses"],
        "prompts": int(prompt_ids(preferences.responses["prompt"]).max(initial=-1)) + 1,
        "pairs": {"total": counts["comparisons"], **{word: counts[word] for word in SPLITS}},
        "pairs_a_user": {
            "all": _spread(a_user),
            "train": _spread(train),
            "seen": _spread(a_user[seen]),
            "unseen": _spread(a_user[~seen]),
        },
        "sharing": {
            "mean_users": float(a_response.mean()) if len(a_response) else 0.0,
            "shared": float((a_response >= 2).mean()) if len(a_response) else 0.0,
        },
        "controversial": {"share": float(known.mean()) if len(known) else None, "known": len(known)},
        "groups": {entry["values"]: entry["counts"] for entry in sorted(groups, key=lambda entry: entry["values"])},
    }


def _spread(values: Int[np.ndarray, "n"]) -> dict[str, int | float]:
    if not len(values):
        return {"min": 0, "median": 0.0, "max": 0}
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _counts(preferences: Preferences) -> dict[str, int]:
    split = preferences.comparisons["split"]
    seen = int(preferences.seen.sum())
    return {
        "users": preferences.num_users,
        "seen_users": seen,
        "unseen_users": preferences.num_users - seen,
        "responses": preferences.num_responses,
        "comparisons": preferences.comparisons.num_rows,
        **{word: int(in_splits(split, (word,)).sum()) for word in SPLITS},
        "ratings": preferences.ratings.num_rows,
    }


def _map(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the folder is not whole, prepare the data again") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cut short or no Arrow file ({error}); prepare the data again") from None


def _conform(given: Columns, schema: pa.Schema) -> pa.Table:
    """Casts columns whose type differs harmlessly; leaves the others for the check to report."""
    if isinstance(given, Mapping):
        rows = len(next(iter(given.values()), ()))
        given = {**{name: pa.nulls(rows) for name in _absent(given, schema)}, **given}
        return _filled(pa.table(given, schema=schema))
    table: Any = given
    for name in _absent(table.column_names, schema):
        table = table.append_column(schema.field(name), pa.nulls(table.num_rows, schema.field(name).type))
    table = _filled(table)
    for field in schema:
        place = table.schema.get_field_index(field.name)
        if place < 0 or table.schema.field(place).type == field.type:
            continue
        column = table.column(place)
        if kind(column.type) not in (kind(field.type), "null"):
            continue
        try:
            table = table.set_column(place, field, column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return table


def _absent(names: Any, schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name in DEFAULTS and name not in names]


def _filled(table: pa.Table) -> pa.Table:
    """Nulls of columns that have a default replaced by it."""
    for name in set(DEFAULTS) & set(table.column_names):
        place, column = table.schema.get_field_index(name), table[name]
        if DEFAULTS[name] is not None and column.null_count:
            filled = pc.fill_null(column, pa.scalar(DEFAULTS[name], column.type))
            table = table.set_column(place, table.schema.field(place), filled)
    return table
