"""Jester: how funny 25 000 people and more find a hundred jokes, from -10 to 10.

Source: data set 1 of goldberg.berkeley.edu/jester-data (free for research that cites Goldberg et al., Eigentaste: A
Constant Time Collaborative Filtering Algorithm, 2001), as downloaded or unpacked:

    jester-data-1.zip, -2, -3 (or the .csv in them)      a row a person: number rated, 100 ratings (99: none)
    jester_dataset_1_joke_texts.zip (or its init*.html)  one page a joke, the text between two comments

Ratings stand in the table of ratings, and as comparisons of one person's ratings within one split.

Axis letters: M persons, J jokes, R ratings, U users.
"""

import dataclasses
import html.parser
import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from jaxtyping import Bool, Float32, Int

from pref_jax.data.preferences import Preferences, build
from pref_jax.data.schema import OUTCOMES, pc
from pref_jax.data.sources.common.options import RowSplitOptions, flat_options
from pref_jax.data.sources.common.rating_pairs import rating_pairs
from pref_jax.data.sources.common.split_rule import LEFT_OUT, RULE, assign_splits
from pref_jax.data.sources.common.vote_tables import disputed
from pref_jax.data.splits import check_options
from pref_jax.errors import Faults, UserError
from pref_jax.progress import log

PAGE = "https://goldberg.berkeley.edu/jester-data"
PROMPT = "Tell me a joke."
JOKES, UNRATED, BOUND = 100, 99.0, 10.0
# What two cores fit in minutes and 2 GB; all of the first file have 1.8 million ratings.
USERS = 2000
# Far above the real files, which have 12 MB: what a damaged or hostile archive may unpack to.
LARGEST = 1 << 28
OWN_RULE = (
    "A user is a row of a file; all jokes answer one prompt. Of the users all but `users`, drawn at random, are left "
    "out if there are more. Ratings are split, and compared with ratings of the same user and split only, each with "
    "per_response others that come after it in an order drawn at random; pairs less than min_difference apart are left "
    "out, equal ratings are ties."
)
_NAME = re.compile(r"jester-data-(\d)\.(?:zip|csv|xlsx?)")
_BREAKS = {"br": 1, "p": 2, "ul": 1, "li": 1, "div": 1, "tr": 1}
_FIX = f"fetch it again from {PAGE}"


class Ratings(NamedTuple):
    """Ratings of the files.

    Attributes:
      names: M of the persons: number of the file and line.
      values: float32 [M J], NaN where a person did not rate a joke.
      counts: what the files hold, for meta.
    """

    names: np.ndarray
    values: Float32[np.ndarray, "M J"]
    counts: dict[str, int]


@flat_options(split=RowSplitOptions())
def read(
    path: str | Path,
    *,
    users: int | None = USERS,
    min_difference: float | int = 0,
    per_response: int = 1,
    split: RowSplitOptions,
    seed: int = 0,
) -> Preferences:
    """Reads the ratings of all files that are there, and the jokes.

    Args:
      path: folder of the files.
      users: at most so many, drawn at random; None: all.
      min_difference: between two ratings that are compared.
      per_response: a rating is compared with twice so many of the same user's at most.
      split: its fields are keyword options, see `RowSplitOptions`; they split ratings. Of one prompt, jokes are drawn.
      seed: of all draws.

    Raises:
      UserError: for bad options, missing files, or files of another layout.
    """
    faults = Faults()
    if not 0 <= min_difference <= 2 * BOUND:
        faults.add("min_difference", f"is {min_difference}", f"give a number from 0 to {2 * BOUND:g}")
    counts = {"per_response": per_response, "users": 1 if users is None else users}
    check_options(fractions={}, counts=counts, faults=faults)
    rule, texts, found = split.rule(), joke_texts(Path(path)), read_ratings(Path(path))
    rng = np.random.default_rng(seed)
    open_rows, filtered = _kept(found, texts, users, rng)
    person, joke = np.nonzero(open_rows)
    if not len(person):
        raise UserError(f"{path}: no ratings of jokes whose texts are there ({filtered}); {_FIX}")
    nobody = [None] * len(found.names)
    made = assign_splits(person, np.zeros_like(person), joke, [None] * len(person), nobody, rule, rng)
    if over := filtered["users_over_the_limit"]:
        log(f"Jester: {over} of {len(nobody)} users are left out; users={users} drawn at random are read")
    for sentence in made.told:
        log(f"Jester: {sentence}")
    options = {"users": users, "min_difference": min_difference, "per_response": per_response}
    meta = {
        "source": f"Jester data set 1, {PAGE}",
        "licence": "free for research that cites Goldberg et al., Eigentaste, 2001",
        "rule": f"{OWN_RULE} {RULE}",
        "seed": seed,
        "options": options | dataclasses.asdict(split),
        "in_source": found.counts,
        "filtered": filtered | {name: made.counts[name] for name in LEFT_OUT},
        "assigned": made.counts,
        "told": made.told,
    }
    parts = _Parts(*(column[made.keep] for column in (person, joke, found.values[person, joke], made.split)))
    return _tables(parts, made.seen, found.names, texts, meta, rng)


class _Parts(NamedTuple):
    """Ratings that have their splits."""

    person: Int[np.ndarray, "R"]
    joke: Int[np.ndarray, "R"]
    rating: Float32[np.ndarray, "R"]
    split: np.ndarray


def _kept(
    found: Ratings, texts: dict[int, str], users: int | None, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "M J"], dict[str, int]]:
    """Which ratings are read, and counts of those that are not."""
    rated, here = np.isfinite(found.values), np.ones(len(found.names), bool)
    told = np.array([bool(texts.get(joke)) for joke in range(1, JOKES + 1)])
    if users is not None:
        here = _drawn(len(here), users, rng)
    return rated & here[:, None] & told, {
        "users_over_the_limit": int((~here).sum()),
        "ratings_of_users_over_the_limit": int(rated[~here].sum()),
        "missing_text": int(rated[here][:, ~told].sum()),
    }


def _drawn(count: int, limit: int, rng: np.random.Generator) -> Bool[np.ndarray, " M"]:
    mask = np.zeros(count, bool)
    mask[rng.permutation(count)[:limit]] = True
    return mask


def _tables(
    parts: _Parts,
    seen: Bool[np.ndarray, " M"],
    names: np.ndarray,
    texts: dict[int, str],
    meta: dict[str, Any],
    rng: np.random.Generator,
) -> Preferences:
    people, user = np.unique(parts.person, return_inverse=True)
    jokes, response = np.unique(parts.joke, return_inverse=True)
    columns = {"user": user, "response": response, "rating": parts.rating, "split": parts.split}
    options = meta["options"]
    pairs = rating_pairs(**columns, prompt=np.zeros_like(user), rng=rng, per_response=options["per_response"])
    close = pc.less(pairs["strength"].fill_null(0), options["min_difference"]).to_numpy(zero_copy_only=False)
    pairs = {
        name: column.filter(pa.array(~close)) if name == "strength" else column[~close]
        for name, column in pairs.items()
    }
    meta["filtered"]["pairs_under_min_difference"] = int(close.sum())
    low, high = np.sort(np.stack([pairs["chosen"], pairs["rejected"]]), axis=0)
    sign = np.where(pairs["outcome"] == OUTCOMES[0], np.where(pairs["chosen"] == low, 1, -1), 0)
    return build(
        {"user_id": names[people], "group": [None] * len(people), "seen": seen[people]},
        {
            "response_id": [f"joke {joke + 1}" for joke in jokes],
            "prompt": [[{"role": "user", "content": PROMPT}]] * len(jokes),
            "text": [texts[joke + 1] for joke in jokes.tolist()],
        },
        pairs | {"controversial": disputed(low * JOKES + high, sign)},
        meta,
        ratings=columns,
        test=options["test_fraction"] > 0,
    )


def read_ratings(folder: Path) -> Ratings:
    """All files of ratings in a folder.

    Raises:
      UserError: if there are none, or one is not as the data set is known.
    """
    found = [(file, match) for file in sorted(folder.glob("*")) if (match := _NAME.fullmatch(file.name))]
    files = {int(match[1]): file for file, match in found}
    if len(files) < len(found):
        some = ", ".join(file.name for file, _ in found)
        raise UserError(f"{folder}: holds {some}; keep one of each number, or users would come twice")
    if not files:
        raise UserError(f"{folder}: no jester-data-1.zip or jester-data-1.csv there; get it from {PAGE}")
    parts = {number: _csv(file) for number, file in files.items()}
    values = np.concatenate([part[:, 1:] for part in parts.values()])
    names = np.array([f"{number}-{line}" for number, part in parts.items() for line in range(1, len(part) + 1)])
    rated, said = values != UNRATED, np.concatenate([part[:, 0] for part in parts.values()])
    least = np.min(values, axis=1, where=rated, initial=np.inf)
    most = np.max(values, axis=1, where=rated, initial=-np.inf)
    counts = {
        "files": len(files),
        "users": len(values),
        "ratings": int(rated.sum()),
        "unrated": int((~rated).sum()),
        "rows_that_miscount_their_ratings": int((rated.sum(axis=1) != said).sum()),
        "users_of_one_rating_throughout": int((least == most).sum()),
    }
    return Ratings(names, np.where(rated, values, np.nan).astype(np.float32), counts)


def _csv(path: Path) -> np.ndarray:
    """[m 1 + J] numbers of one file."""
    where, raw = str(path), path.read_bytes()
    if path.suffix == ".zip":
        members = _members(path)
        names = [name for name in members if _NAME.fullmatch(name.rsplit("/", 1)[-1])]
        if len(names) != 1:
            raise UserError(f"{path}: holds {', '.join(members) or 'nothing'}, not one table of ratings; {_FIX}")
        where, raw = f"{path}: {names[0]}", members[names[0]]
    if where.endswith((".xls", ".xlsx")):
        raise UserError(
            f"{where}: is a spreadsheet; save it as CSV without a head beside it, with a spreadsheet program or "
            "pandas.read_excel(file, header=None).to_csv('jester-data-1.csv', header=False, index=False)"
        )
    names = [str(column) for column in range(1 + JOKES)]
    read = pa_csv.ReadOptions(column_names=names)
    convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64()), null_values=[])
    try:
        table = pa_csv.read_csv(io.BytesIO(raw), read_options=read, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise UserError(f"{where}: not a table of a count and {JOKES} ratings ({error}); {_FIX}") from None
    values = np.stack([column.to_numpy() for column in table.columns], axis=1)
    faults, ratings = Faults(), values[:, 1:]
    for line in np.flatnonzero(~((np.abs(ratings) <= BOUND) | (ratings == UNRATED)).all(axis=1)):
        faults.add(f"{where}, line {line + 1}", f"a rating that is not -{BOUND:g} to {BOUND:g} or {UNRATED:g}", _FIX)
    faults.raise_if_any(f"{where}: not as the data set is known")
    return values


def _members(path: Path) -> dict[str, bytes]:
    """Files of an archive by name, without what macOS adds."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename]
            if (size := sum(info.file_size for info in infos)) > LARGEST:
                raise UserError(f"{path}: unpacks to {size} bytes, the data set does not; {_FIX}")
            return {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_FIX}") from None


def joke_texts(folder: Path) -> dict[int, str]:
    """Texts of the jokes by number, from 1; a page without the two comments, or with nothing between, has ''.

    Raises:
      UserError: if there are no pages.
    """
    files = {path.name: path.read_bytes() for inside in (".", "jokes") for path in (folder / inside).glob("init*.html")}
    for path in sorted(folder.glob("*joke*.zip")):
        files |= {name.rsplit("/", 1)[-1]: raw for name, raw in _members(path).items()}
    pages = {int(found[1]): raw for name, raw in files.items() if (found := re.fullmatch(r"init(\d+)\.html", name))}
    if not pages:
        raise UserError(f"{folder}: no init1.html .. there, nor jester_dataset_1_joke_texts.zip; get it from {PAGE}")
    return {number: joke_text(raw.decode("utf-8", errors="replace")) for number, raw in sorted(pages.items())}


def joke_text(page: str) -> str:
    """The text between the comments 'begin of joke' and 'end of joke': entities decoded, lines where the page breaks.

    Example:
      >>> joke_text("<title>1</title><!--begin of joke --> Knock,<br>\nknock &amp; go. <!--end of joke -->")
      'Knock,\\nknock & go.'
    """
    reader = _Page()
    reader.feed(page)
    reader.close()
    lines = ["\n" if part is None else re.sub(r"\s+", " ", part) for part in reader.parts]
    text = "\n".join(line.strip() for line in "".join(lines).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class _Page(html.parser.HTMLParser):
    """Collects text between the two comments; None where a line breaks."""

    def __init__(self):
        super().__init__()
        self.parts: list[str | None] = []
        self._inside = False

    def handle_comment(self, data: str) -> None:
        mark = data.strip().lower()
        self._inside = mark == "begin of joke" or (self._inside and mark != "end of joke")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if self._inside and tag in _BREAKS:
            self.parts += [None] * _BREAKS[tag]
