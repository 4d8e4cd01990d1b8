"""What the three tables must hold, and one check that reports everything wrong with them at once.

Axis letters: U users, N responses, P comparisons.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Int

from pref_jax.errors import Faults
from pref_jax.ragged import starts

# Arrow makes these functions at import, out of sight of a static type checker.
pc: Any = pyarrow.compute

SPLITS = ("train", "validation", "test")
ROLES = ("system", "user", "assistant", "tool")
# What a comparison can end in; of a tie and of two bad responses, `chosen` and `rejected` are merely the two.
OUTCOMES = ("preferred", "tie", "both_bad", "skipped")
TIME = pa.timestamp("us", tz="UTC")

# `extra`: JSON text of a message's other fields (tool_calls, name, ...), or null; see pref_jax.data.messages.
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])
USERS = pa.schema([pa.field("user_id", pa.string()), pa.field("group", pa.string()), pa.field("seen", pa.bool_())])
RESPONSES = pa.schema(
    [("response_id", pa.string()), ("prompt", pa.list_(MESSAGE)), ("text", pa.string()), ("extra", pa.string())]
)
COMPARISONS = pa.schema(
    [
        ("user", pa.int32()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("split", pa.string()),
        ("controversial", pa.bool_()),
        ("outcome", pa.string()),
        ("strength", pa.float32()),
        ("choice", pa.int32()),
        ("rated", pa.bool_()),
        ("time", TIME),
    ]
)
RATINGS = pa.schema(
    [("user", pa.int32()), ("response", pa.int32()), ("rating", pa.float32()), ("split", pa.string()), ("time", TIME)]
)
SCHEMAS = {"users": USERS, "responses": RESPONSES, "comparisons": COMPARISONS, "ratings": RATINGS}
MAY_BE_NULL = {"group", "extra", "controversial", "strength", "choice", "time"}
# What a table that lacks these columns is taken to say.
DEFAULTS = {"extra": None, "outcome": OUTCOMES[0], "strength": None, "choice": None, "rated": False, "time": None}
_SHOWN_ROWS = 5


def check_tables(
    users: pa.Table,
    responses: pa.Table,
    comparisons: pa.Table,
    ratings: pa.Table,
    *,
    where: str = "preferences",
    test: bool = True,
) -> None:
    """Checks the four tables of one data set, each on its own and against one another.

    Row numbers in messages count from 0. Every check is vectorised; nothing loops over rows.

    Args:
      users: columns of `USERS`; others may stand beside them.
      responses: columns of `RESPONSES`.
      comparisons: columns of `COMPARISONS`.
      ratings: columns of `RATINGS`.
      where: name of the data set for the message.
      test: whether there must be pairs to test on.

    Raises:
      UserError: one message with every kind of fault found, the first rows of each, and the fix.
    """
    faults = Faults(show=40)
    tables = {"users": users, "responses": responses, "comparisons": comparisons, "ratings": ratings}
    sound = {name: _check_columns(faults, name, table) for name, table in tables.items()}
    if sound["users"]:
        _check_ids(faults, "users", "user_id", users["user_id"])
    prompts = _check_responses(faults, responses) if sound["responses"] else None
    rater = _check_ratings(faults, ratings, users.num_rows, responses.num_rows) if sound["ratings"] else None
    if sound["comparisons"]:
        _check_comparisons(faults, comparisons, users, responses.num_rows, prompts, test, rater)
    faults.raise_if_any(where)


def prompt_ids(prompts: pa.ChunkedArray) -> Int[np.ndarray, "N"]:
    """Numbers the prompts: two rows have the same number if and only if all their messages are equal.

    Exact (no hashing). The loop runs over the places of a dialogue, not over rows.

    Args:
      prompts: N lists of `MESSAGE`; a null counts as an empty list.

    Returns:
      int64 [N], values from 0 to the number of distinct prompts less one.
    """
    lengths = pc.fill_null(pc.list_value_length(prompts), 0).to_numpy().astype(np.int64)
    flat = pc.list_flatten(prompts)
    message = _codes(pc.struct_field(flat, MESSAGE.names[0]))
    for field in MESSAGE.names[1:]:
        message = _join(message, _codes(pc.struct_field(flat, field)))
    start = starts(lengths)
    ids = np.zeros(len(lengths), np.int64)
    fresh = 1
    for place in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > place)
        joined = _join(ids[rows], message[start[rows] + place])
        # Ids of this place start above all earlier ones, so that a dialogue never equals its own beginning.
        ids[rows] = fresh + joined
        fresh += int(joined.max()) + 1
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


def in_splits(split: pa.ChunkedArray, words: tuple[str, ...]) -> Bool[np.ndarray, "P"]:
    """True where the column `split` holds one of `words`; a null holds none."""
    return pc.is_in(split, value_set=pa.array(words, pa.string())).to_numpy()


def _codes(strings: pa.ChunkedArray) -> Int[np.ndarray, "n"]:
    """Equal strings get equal numbers; null is its own string (number 0)."""
    encoded = strings.dictionary_encode().unify_dictionaries()
    codes = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate([np.zeros(0, np.int64), *codes]).astype(np.int64) + 1


def _join(left: Int[np.ndarray, "n"], right: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Numbers the distinct pairs (left, right) of non-negative numbers."""
    key = left * (right.max(initial=0) + 1) + right
    return np.unique(key, return_inverse=True)[1].astype(np.int64)


def _rows(mask: Bool[np.ndarray, "n"], names: pa.ChunkedArray | None = None) -> str:
    """'row 3', 'rows 3, 5' or 'rows 3, 5, 7, 8, 9 and 20 more', with the names of the rows if there are any."""
    rows = np.flatnonzero(mask)
    shown = [str(row) if names is None else f"{row} ({names[int(row)].as_py()!r})" for row in rows[:_SHOWN_ROWS]]
    more = f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(shown)}{more}"


def _note(faults: Faults, table: str, mask: pa.ChunkedArray | np.ndarray, what: str, fix: str, names=None) -> None:
    mask = mask if isinstance(mask, np.ndarray) else pc.fill_null(mask, False).to_numpy()
    if mask.any():
        faults.add(f"{table} {_rows(mask, names)}", what, fix)


def _check_columns(faults: Faults, name: str, table: pa.Table) -> bool:
    """Notes missing columns, wrong types, nulls and empty tables; True if further checks can read all columns."""
    sound = True
    for field in SCHEMAS[name]:
        where = f"{name}, column {field.name!r}"
        if field.name not in table.column_names:
            faults.add(where, "missing", f"add it as {field.type}")
            sound = False
            continue
        column = table[field.name]
        if column.type != field.type:
            holes = ""
            if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
                holes = " and holds NaN, pandas' way of saying empty"
            faults.add(where, f"has type {column.type}{holes}", f"give it as {field.type}")
            sound = False
        elif field.name not in MAY_BE_NULL:
            _note(faults, name, pc.is_null(column), f"column {field.name!r} is null", "fill it or drop these rows")
    if not table.num_rows and name in ("users", "responses"):
        faults.add(name, "no rows", f"give at least one of the {name}")
    return sound


def _check_ids(faults: Faults, name: str, column: str, ids: pa.ChunkedArray) -> None:
    _note(faults, name, blank(ids), f"{column} is empty", "give every row a name")
    _note(faults, name, _repeats(_codes(ids)), f"{column} used before", "make ids unique or merge rows", ids)


_KINDS = {
    "string": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "list": (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    "struct": (pa.types.is_struct,),
    "whole number": (pa.types.is_integer,),
    "number": (pa.types.is_floating,),
}


def kind(of: pa.DataType) -> str:
    """What a type holds, whatever its width or coding."""
    of = of.value_type if pa.types.is_dictionary(of) else of
    return next((name for name, tests in _KINDS.items() if any(test(of) for test in tests)), str(of))


def blank(strings: pa.Array | pa.ChunkedArray) -> Any:
    """True where a string is empty or only white space."""
    return pc.or_(pc.equal(pc.binary_length(strings), 0), pc.utf8_is_space(strings))


def _repeats(codes: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """True at every value that stood in an earlier row."""
    mask = np.ones(len(codes), bool)
    mask[np.unique(codes, return_index=True)[1]] = False
    return mask


def _check_responses(faults: Faults, responses: pa.Table) -> Int[np.ndarray, "N"]:
    """Notes faults of the responses; returns their prompt numbers."""
    _check_ids(faults, "responses", "response_id", responses["response_id"])
    empty = pc.and_(blank(responses["text"]), pc.is_null(responses["extra"]))
    _note(faults, "responses", empty, "text is empty", "drop the pairs that use it")
    prompt = responses["prompt"]
    empty = pc.equal(pc.list_value_length(prompt), 0)
    _note(faults, "responses", empty, "prompt has no message", "give at least one {role, content}")
    flat = pc.list_flatten(prompt)
    parents = pc.list_parent_indices(prompt).to_numpy()
    role, content = pc.struct_field(flat, "role"), pc.struct_field(flat, "content")
    for bad, what, fix in (
        (pc.invert(pc.is_in(role, value_set=pa.array(ROLES))), "prompt has an unknown role", f"use {', '.join(ROLES)}"),
        (pc.is_null(content), "prompt has a message without content", "fill the content in"),
    ):
        mask = np.zeros(responses.num_rows, bool)
        mask[parents[pc.fill_null(bad, False).to_numpy()]] = True
        _note(faults, "responses", mask, what, fix)
    ids = prompt_ids(prompt)
    same = _repeats(_join(_join(ids, _codes(responses["text"])), _codes(responses["extra"])))
    _note(faults, "responses", same, "same text under the same prompt as an earlier row", "merge them into one row")
    return ids


def _check_index(faults: Faults, name: str, table: pa.Table, limits: dict[str, int]) -> tuple[dict, dict]:
    """Row numbers by column, -1 where null, and which are in range; notes those that are out of it."""
    index = {column: pc.fill_null(table[column], -1).to_numpy() for column in limits}
    inside = {column: (index[column] >= 0) & (index[column] < limit) for column, limit in limits.items()}
    for column, limit in limits.items():
        outside = ~inside[column] & pc.is_valid(table[column]).to_numpy()
        fix = f"use row numbers of {'users' if column == 'user' else 'responses'}, 0 to {limit - 1}"
        _note(faults, name, outside, f"column {column!r} out of range", fix)
    return index, inside


def _check_split(faults: Faults, name: str, split: pa.ChunkedArray) -> None:
    unknown = pc.invert(pc.is_in(split, value_set=pa.array([*SPLITS, None], pa.string())))
    _note(faults, name, unknown, "unknown split", f"use one of {', '.join(SPLITS)}", split)


def _check_ratings(faults: Faults, ratings: pa.Table, num_users: int, num_responses: int) -> Int[np.ndarray, " R"]:
    """Notes faults of the ratings; the users of training ratings."""
    index, inside = _check_index(faults, "ratings", ratings, {"user": num_users, "response": num_responses})
    _note(faults, "ratings", pc.invert(pc.is_finite(ratings["rating"])), "rating is not finite", "give a number")
    _check_split(faults, "ratings", ratings["split"])
    return index["user"][inside["user"] & in_splits(ratings["split"], ("train",))]


def _check_outcomes(faults: Faults, comparisons: pa.Table) -> None:
    """Notes unknown outcomes, strengths that are no strengths, and choices that are not one person's one choice."""
    outcome, strength = comparisons["outcome"], comparisons["strength"]
    unknown = pc.invert(pc.is_in(outcome, value_set=pa.array([*OUTCOMES, None], pa.string())))
    _note(faults, "comparisons", unknown, "unknown outcome", f"use one of {', '.join(OUTCOMES)}", outcome)
    preferred = pc.equal(outcome, OUTCOMES[0])
    bad = pc.invert(pc.and_(pc.is_finite(strength), pc.greater(strength, 0)))
    _note(faults, "comparisons", bad, "strength is not above 0", "give a finite number above 0, or null")
    idle = pc.and_(pc.is_valid(strength), pc.invert(preferred))
    _note(faults, "comparisons", idle, "strength without a preference", "leave it null for ties and skipped pairs")
    choice = pc.fill_null(comparisons["choice"], -1).to_numpy()
    _note(faults, "comparisons", pc.less(comparisons["choice"], 0), "choice is negative", "number choices from 0")
    rows = np.flatnonzero(choice >= 0)
    rows = rows[np.argsort(choice[rows], kind="stable")]
    same = choice[rows][1:] == choice[rows][:-1]
    apart = np.zeros(len(choice), bool)
    for name in ("user", "chosen", "split", "outcome"):
        column = comparisons[name]
        codes = _codes(column) if name in ("split", "outcome") else pc.fill_null(column, -1).to_numpy()
        apart[rows[1:][same & (codes[rows][1:] != codes[rows][:-1])]] = True
    apart[rows[~preferred.to_numpy()[rows]]] = True
    fix = "give rows of one choice one user, one chosen response, one split and the outcome 'preferred'"
    _note(faults, "comparisons", apart, "rows of one choice differ", fix)


def _check_comparisons(
    faults: Faults,
    comparisons: pa.Table,
    users: pa.Table,
    num_responses: int,
    prompts: Int[np.ndarray, "N"] | None,
    test: bool,
    rater: Int[np.ndarray, " R"] | None,
) -> None:
    """Notes faults of the comparisons; rows whose indices are null or out of range are left out of later checks."""
    limits = {"user": users.num_rows, "chosen": num_responses, "rejected": num_responses}
    index, inside = _check_index(faults, "comparisons", comparisons, limits)
    _check_outcomes(faults, comparisons)
    chosen, rejected = index["chosen"], index["rejected"]
    ok = inside["chosen"] & inside["rejected"]
    _note(
        faults,
        "comparisons",
        ok & (chosen == rejected),
        "chosen equals rejected",
        "drop these rows: they compare nothing",
    )
    if prompts is not None:
        apart = np.zeros(len(ok), bool)
        apart[ok] = prompts[chosen[ok]] != prompts[rejected[ok]]
        fix = "compare answers to one prompt only"
        _note(faults, "comparisons", apart, "chosen and rejected answer different prompts", fix)
    _check_split(faults, "comparisons", comparisons["split"])
    told = pc.not_equal(comparisons["outcome"], "skipped").fill_null(False).to_numpy()
    trains = in_splits(comparisons["split"], ("train",)) & told
    decided = pc.equal(comparisons["outcome"], OUTCOMES[0]).fill_null(False).to_numpy()
    tests = in_splits(comparisons["split"], ("test",)) & decided
    rated = np.zeros(0, np.int64) if rater is None else rater
    _check_presence(faults, users, np.concatenate([index["user"][inside["user"] & trains], rated]))
    for word, found in {"train": trains.any() or len(rated) > 0, **({"test": tests.any()} if test else {})}.items():
        if not found:
            fix = "mark some rows, or use a source's rule that assigns splits"
            faults.add("comparisons", f"no pair has split {word!r}", fix)


def _check_presence(faults: Faults, users: pa.Table, trained: Int[np.ndarray, " T"]) -> None:
    """Notes users without a training vote (unseen users need theirs as context)."""
    idle = np.bincount(trained, minlength=users.num_rows) == 0
    names = users["user_id"] if "user_id" in users.column_names else None
    fix = "give each user a pair with split 'train', or drop the user"
    _note(faults, "users", idle, "no training pair", fix, names)
