"""Bring your own data: JSON lines in the preference format that TRL users know, plus a user.

    {"user": "u1", "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "I would rather not."}

`prompt`, `chosen` and `rejected` are strings or lists of chat messages {role, content}. As in TRL the prompt may be
left out when `chosen` and `rejected` are whole dialogues that differ in the last, the assistant's message; dialogues
that begin with the given prompt are cut as well. Optional: `split` (train, validation, test), `group` (for
evaluation only), `seen` (false for users that shared models must not train on), `controversial`. Other fields are
counted in meta, not used.

Axis letters: P rows of the file, U users.
"""

import contextlib
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pref_jax.data.preferences import Preferences, build
from pref_jax.data.sources.common.columns import names
from pref_jax.data.sources.common.split_rule import LEFT_OUT, RULE, SplitOptions, assign_splits
from pref_jax.data.sources.jsonl.rows import Messages, Row, checked_row
from pref_jax.errors import Faults, UserError
from pref_jax.progress import log

STDIN, STDIN_NAME = Path("-"), Path("standard input")


def read(
    path: str | Path | Iterable[dict[str, Any]],
    *,
    validation_fraction: float | int = 0.1,
    test_fraction: float | int = 0.2,
    unseen_fraction: float | int = 0.2,
    split_by: str = "prompt",
    min_votes_per_user: int = 1,
    seed: int = 0,
) -> Preferences:
    """Reads a `.jsonl` (or `.jsonl.gz`) file into tables.

    What a row leaves open is assigned by `sources.common.split_rule.assign_splits`, whose words stand in meta.
    Equal texts under equal prompts become one response. Users whom the rule leaves out are counted in meta, told on
    the terminal.

    Args:
      path: the file, UTF-8, `-` for standard input; or the rows themselves.
      validation_fraction: of the seen users' pairs outside test, for those without a given split.
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
    faults = Faults()
    ignored: Counter[str] = Counter()
    if isinstance(path, str | Path):
        lines = json_lines(Path(path), faults)
        path = STDIN_NAME if Path(path) == STDIN else Path(path)
    else:
        lines, path = enumerate(path, start=1), Path("votes")
    found = (checked_row(f"{path}:{line}", line, value, faults, ignored) for line, value in lines)
    rows = _held_once(row for row in found if row)
    users = _users(path, rows, faults)
    faults.raise_if_any(f"{path}: bad rows")
    if not rows:
        raise UserError(f"{path}: no rows; give one JSON object a line with user, prompt, chosen and rejected")
    return _tables(path, rows, users, options, seed, dict(ignored.most_common()))


def _held_once(rows: Iterable[Row]) -> list[Row]:
    """The rows; equal users, prompts and texts are one object in memory, as they come again and again."""
    known: dict[Any, Any] = {}
    fields = ("user", "prompt", "chosen", "rejected")
    return [
        row._replace(**{name: known.setdefault(getattr(row, name), getattr(row, name)) for name in fields})
        for row in rows
    ]


def json_lines(
    path: Path, faults: Faults, *, fix: str = "write one JSON object on each line"
) -> Iterator[tuple[int, Any]]:
    """Line number and JSON value of each line that has one; notes the others. The path `-` is standard input.

    Args:
      path: the file, UTF-8.
      faults: gets the lines that hold no JSON, or the same field twice.
      fix: of a line that is no JSON.

    Raises:
      UserError: if there is no such file, or it is cut short.
    """
    if path != STDIN and (path.is_dir() or not path.exists()):
        raise UserError(f"{path}: no such file; check the path (one .jsonl file is wanted, not a folder)")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    name = STDIN_NAME if path == STDIN else path
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == STDIN else opener(path, "rb") as file:
            for line, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
                    if not text.strip():
                        continue
                    value = json.loads(text, object_pairs_hook=_object)
                    if "\\ud" in text.lower():
                        json.dumps(value, ensure_ascii=False).encode()
                    yield line, value
                except UnicodeEncodeError:
                    what = "holds half of a surrogate pair, which is no character"
                    faults.add(f"{name}:{line}", what, "drop the escape, or write the character itself")
                except UnicodeDecodeError as error:
                    what = f"not UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1})"
                    faults.add(f"{name}:{line}", what, "save the file as UTF-8")
                except json.JSONDecodeError as error:
                    what = f"not JSON ({error.msg} at column {error.colno})"
                    faults.add(f"{name}:{line}", what, fix)
                except (ValueError, RecursionError) as error:
                    faults.add(f"{name}:{line}", f"not read ({error})", "write each field once, and as documented")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: cut short or not gzip ({error}); fetch or pack the file again") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a field named twice one value would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"field {next(name for name in names if names[name] > 1)!r} is named twice")
    return value


def _users(path: Path, rows: list[Row], faults: Faults) -> dict[str, dict[str, Any]]:
    """What the rows say of each user; notes contradictions and users that are only tested."""
    users: dict[str, dict[str, Any]] = {}
    for row in rows:
        user = users.setdefault(row.user, {"group": None, "seen": None, "line": row.line, "trains": False})
        user["trains"] |= row.split in (None, "train")
        for field, given in (("group", row.group), ("seen", row.seen)):
            if given is None:
                continue
            if user[field] is None:
                user[field], user[f"{field}_line"] = given, row.line
            elif user[field] != given:
                what = f"{given!r} for user {row.user!r}, but {user[field]!r} at line {user[f'{field}_line']}"
                faults.add(f"{path}:{row.line}, field {field!r}", what, "give a user one value throughout")
    for name, user in users.items():
        if not user["trains"]:
            fix = "give the user a row with split 'train', or drop the user"
            faults.add(f"{path}:{user['line']}, field 'split'", f"user {name!r} has no training pair", fix)
    return users


def _tables(
    path: Path,
    rows: list[Row],
    users: dict[str, dict[str, Any]],
    options: SplitOptions,
    seed: int,
    ignored: dict[str, int],
) -> Preferences:
    """Numbers users, prompts and responses in order of appearance, assigns what is open, and builds.

    Rows that the rule leaves out are left out before numbering, so that nothing of them is in the tables.
    """
    index = _numbered(rows, users)[0]
    item = np.unique(np.sort(index[:, 2:]), axis=0, return_inverse=True)[1].reshape(-1)
    given = [row.split for row in rows], [user["seen"] for user in users.values()]
    assigned = assign_splits(index[:, 0], index[:, 1], item, *given, options, np.random.default_rng(seed))
    for text in assigned.told:
        log(f"{path}: {text}")
    rows = [row for row, kept in zip(rows, assigned.keep, strict=True) if kept]
    named = {row.user for row in rows}
    seen = assigned.seen[[name in named for name in users]]
    users = {name: user for name, user in users.items() if name in named}
    index, prompts, responses = _numbered(rows, users)
    dialogues = [[{"role": role, "content": content} for role, content in prompt] for prompt in prompts]
    return build(
        {"user_id": list(users), "group": [user["group"] for user in users.values()], "seen": seen},
        {
            "response_id": names("r", len(responses)),
            "prompt": [dialogues[prompt] for prompt, _ in responses],
            "text": [text for _, text in responses],
        },
        {
            **{name: index[:, place] for name, place in (("user", 0), ("chosen", 2), ("rejected", 3))},
            "split": assigned.split[assigned.keep],
            "controversial": [row.controversial for row in rows],
        },
        {
            "source": f"jsonl: {path.name}",
            "rule": RULE,
            "seed": seed,
            "fractions": {name: getattr(options, name) for name in ("validation", "test", "unseen")},
            "assigned": assigned.counts,
            "told": assigned.told,
            "filtered": {name: assigned.counts[name] for name in LEFT_OUT},
            "repeated_rows": len(rows) - len(np.unique(index, axis=0)),
            "ignored_fields": ignored,
        },
        test=options.test > 0,
    )


def _numbered(
    rows: list[Row], users: dict[str, Any]
) -> tuple[np.ndarray, dict[Messages, int], dict[tuple[int, str], int]]:
    """int64 [P 4] numbers of user, prompt, chosen and rejected response, and what prompts and responses they are."""
    user_ids = {name: place for place, name in enumerate(users)}
    prompts: dict[Messages, int] = {}
    responses: dict[tuple[int, str], int] = {}
    index = np.zeros((len(rows), 4), np.int64)
    for place, row in enumerate(rows):
        prompt = prompts.setdefault(row.prompt, len(prompts))
        # By their texts, not the chosen one first: the order of rows must not tell answers.
        for text in sorted((row.chosen, row.rejected)):
            responses.setdefault((prompt, text), len(responses))
        index[place] = user_ids[row.user], prompt, responses[prompt, row.chosen], responses[prompt, row.rejected]
    return index, prompts, responses
