"""UKPConvArg1: which of two arguments for one side of a debate crowd workers find the more convincing.

Source: github.com/UKPLab/acl2016-convincing-arguments (CC-BY 4.0; Habernal and Gurevych, ACL 2016), the full corpus
of `data/UKPConvArg1-full-XML`: a file for each debate and side, plain or gzipped, of elements

    list / annotatedArgumentPair: id; arg1 and arg2: id, stance, text; debateMetaData: title;
           mTurkAssignments / mTurkAssignment: turkID, assignmentSubmitTime, value (a1, a2 or equal)

Others are not read, `goldLabel` among them, which 846 pairs lack. Document types are refused, so no entity is expanded.

Axis letters: P judgements.
"""

import dataclasses
import datetime
import gzip
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import OUTCOMES, SPLITS, TIME, pc
from pref_jax.data.sources.common.columns import Answers, Sieve, answers, assemble, number, repeated, unordered
from pref_jax.data.sources.common.options import RowSplitOptions, flat_options
from pref_jax.data.sources.common.split_rule import LEFT_OUT, RULE, assign_splits
from pref_jax.data.sources.common.vote_tables import disputed
from pref_jax.data.splits import at_most, check_options
from pref_jax.errors import Faults, UserError
from pref_jax.progress import log

REPOSITORY = "https://github.com/UKPLab/acl2016-convincing-arguments"
FOLDERS = ("", "UKPConvArg1-full-XML", "data/UKPConvArg1-full-XML")
FILES = 32
SIGNS = {"a1": 1, "a2": -1, "equal": 0}
PROMPT = "Debate: {title}\nArgue for this side: {side}"
OWN_RULE = (
    "A user is a worker. The prompt is the debate's title and the side; equal texts under one prompt are one response, "
    "whatever their ids. Left out: pairs of two sides, of one text twice or without a text; of a worker's repeated "
    "judgements of one pair all but the first, and all where they differ; of a worker's judgements those beyond "
    "max_votes_per_user, drawn at random. 'equal' is a tie. Controversial: those who "
    "preferred one of a pair disagree; null for fewer than two."
)
_FIX = "fetch the file again, or restore it: other versions of the corpus are not known to this program"


class Judgement(NamedTuple):
    """What one worker said of one pair; None where the file says nothing."""

    worker: str
    sign: int
    time: str | None
    prompt: str
    texts: tuple[str | None, str | None]
    one_side: bool


@flat_options(split=RowSplitOptions())
def read(
    path: str | Path, *, max_votes_per_user: int | None = None, split: RowSplitOptions, seed: int = 0
) -> Preferences:
    """Reads the corpus: all files that are there.

    Args:
      path: folder of the XML files, or a clone of the repository.
      max_votes_per_user: of workers with more, so many are drawn at random; None: all. A few have thousands.
      split: its fields are keyword options, see `RowSplitOptions`.
      seed: of all draws.

    Raises:
      UserError: for bad options, no files, or files of another layout, naming every pair at fault.
    """
    split.rule()
    check_options(fractions={}, counts={"max_votes_per_user": max_votes_per_user or 1})
    files = xml_files(Path(path))
    facts: Counter[str] = Counter(files=len(files))
    given = [judgement for file in files for judgement in _judgements(file, facts)]
    if not given:
        raise UserError(f"{path}: the {len(files)} files hold no judgements; {_FIX}")
    if len(files) < FILES:
        log(f"{path}: {len(files)} of the {FILES} files of the whole corpus are here; they are read")
    return _tables(given, facts, max_votes_per_user, split, seed)


def xml_files(folder: Path) -> list[Path]:
    """The corpus's files in a folder or below it, where a clone has them.

    Raises:
      UserError: if there are none, or one is there plain and gzipped.
    """
    for inside in FOLDERS:
        if found := sorted(file for end in (".xml", ".xml.gz") for file in (folder / inside).glob(f"*{end}")):
            names = Counter(file.name.removesuffix(".gz") for file in found)
            if twice := [name for name, count in names.items() if count > 1]:
                raise UserError(f"{folder / inside}: {', '.join(twice)} stands there plain and gzipped; keep one")
            return found
    raise UserError(f"{folder}: no XML files there; give a clone of {REPOSITORY}, or its data/UKPConvArg1-full-XML")


class _Builder(ET.TreeBuilder):
    """Builds elements; a document type, which alone can declare entities, ends the parsing before they are read."""

    def doctype(self, *_: Any) -> None:
        raise UserError("has a document type, which the corpus has not and may hide anything")


def _root(path: Path) -> ET.Element:
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        return ET.fromstring(raw, ET.XMLParser(target=_Builder()))
    except (OSError, EOFError, zlib.error, ET.ParseError, ValueError, LookupError, UserError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_FIX}") from None


def _judgements(path: Path, facts: Counter[str]) -> Iterator[Judgement]:
    """All judgements of a file; what is not as the corpus is known is raised after the last of them."""
    faults = Faults()
    for place, pair in enumerate(_root(path), start=1):
        where = f"{path}, pair {place} ({pair.findtext('id', 'no id')})"
        sides = [_text(pair, f"arg{side}/stance") for side in (1, 2)]
        title, cast = _text(pair, "debateMetaData/title"), pair.findall("mTurkAssignments/mTurkAssignment")
        if pair.tag != "annotatedArgumentPair" or title is None or sides[0] is None or not cast:
            faults.add(where, f"a {pair.tag!r} without title, stance or mTurkAssignment", _FIX)
            continue
        facts.update(pairs=1, pairs_without_gold_label=pair.find("goldLabel") is None, judgements=len(cast))
        facts[f"pairs_of_{len(cast)}_judgements"] += 1
        texts = (_text(pair, "arg1/text"), _text(pair, "arg2/text"))
        for one in cast:
            worker, value = _text(one, "turkID"), _text(one, "value")
            if worker is None or value not in SIGNS:
                faults.add(where, f"turkID {worker!r}, value {value!r}", f"values are {', '.join(SIGNS)}; {_FIX}")
                continue
            facts["ties" if value == "equal" else "preferences"] += 1
            time = _text(one, "assignmentSubmitTime")
            prompt = PROMPT.format(title=title, side=sides[0])
            yield Judgement(worker, SIGNS[value], time, prompt, texts, sides[0] == sides[1])
    faults.raise_if_any(f"{path}: not as the corpus is known")


def _text(element: ET.Element, path: str) -> str | None:
    return (element.findtext(path) or "").strip() or None


class _Coded(NamedTuple):
    """Judgements as numbers: places in the table of answers, and 1, -1 or 0 for the left, the right and neither."""

    user: Int[np.ndarray, "P"]
    left: Int[np.ndarray, "P"]
    right: Int[np.ndarray, "P"]
    sign: Int[np.ndarray, "P"]
    item: Int[np.ndarray, "P"]

    def take(self, rows: Any) -> "_Coded":
        return _Coded(*(column[rows] for column in self))


def _tables(
    given: list[Judgement], facts: Counter[str], limit: int | None, split: RowSplitOptions, seed: int
) -> Preferences:
    rng = np.random.default_rng(seed)
    workers = number(pa.array([judgement.worker for judgement in given], pa.string()))
    prompts = number(pa.array([judgement.prompt for judgement in given], pa.string()))
    texts = number(pa.array([text for judgement in given for text in judgement.texts], pa.string()))
    found, rows = answers(prompts, np.repeat(prompts.code, 2), texts, texts.code)
    left, right = rows.reshape(-1, 2).T
    sign = np.array([judgement.sign for judgement in given], np.int64)
    # One direction for each pair, so that equal judgements are equal numbers.
    low, high = np.minimum(left, right), np.maximum(left, right)
    item = unordered(left, right, len(found.text))
    coded = _Coded(workers.code, low, high, np.where(left < right, sign, -sign), item)
    sieve = _sieve(given, coded)
    if limit is not None:
        over = sieve.keep & ~at_most(coded.user, sieve.keep, limit, rng)
        sieve.drop("over_max_votes_per_user", over)
        if over.any():
            some = len(np.unique(coded.user[over]))
            log(f"UKPConvArg1: {over.sum()} judgements of {some} workers are left out, max_votes_per_user={limit}")
    if not sieve.keep.any():
        raise UserError(f"no judgements are left after filtering ({sieve.counts}); {_FIX}")
    kept = np.flatnonzero(sieve.keep)
    facts.update(workers=len(workers.distinct), arguments=len(found.text))
    facts["preferences_of_one_text"] = int(((low == high) & (low >= 0) & (sign != 0)).sum())
    meta = {
        "source": f"UKPConvArg1, {REPOSITORY}",
        "licence": "CC-BY-4.0",
        "rule": f"{OWN_RULE} {RULE}",
        "seed": seed,
        "options": {"max_votes_per_user": limit, **dataclasses.asdict(split)},
        "in_source": dict(facts),
        "filtered": sieve.counts,
    }
    time = np.array([_time(given[row].time) for row in kept], "datetime64[us]")
    meta["in_source"]["without_time"] = int(np.isnat(time).sum())
    return _split(found, workers.distinct, coded.take(kept), time, meta, split, rng)


def _time(text: str | None) -> datetime.datetime | None:
    """Such as '2016-01-31 16:59:52.0 UTC'; None for what is none."""
    try:
        return datetime.datetime.strptime(text or "", "%Y-%m-%d %H:%M:%S.%f UTC")
    except ValueError:
        return None


def _sieve(given: list[Judgement], coded: _Coded) -> Sieve:
    """Which judgements are used."""
    sieve = Sieve(len(given))
    sieve.drop("missing_text", coded.left < 0)
    sieve.drop("two_sides", ~np.array([judgement.one_side for judgement in given], bool))
    sieve.drop("same_text", coded.left == coded.right)
    own = np.unique(np.stack([coded.user, coded.item]), axis=1, return_inverse=True)[1].ravel()
    rows = np.flatnonzero(sieve.keep)
    least, most = np.full(len(own), 2), np.full(len(own), -2)
    np.minimum.at(least, own[rows], coded.sign[rows])
    np.maximum.at(most, own[rows], coded.sign[rows])
    sieve.drop("self_contradicting", (least != most)[own])
    sieve.drop("repeated", repeated(own, sieve.keep))
    return sieve


def _split(
    found: Answers,
    workers: pa.Array,
    votes: _Coded,
    time: np.ndarray,
    meta: dict[str, Any],
    split: RowSplitOptions,
    rng: np.random.Generator,
) -> Preferences:
    seconds = np.where(np.isnat(time), np.nan, time.astype(np.int64) / 1e6)
    nobody = [None] * len(workers)
    prompt = found.prompt[votes.left]
    made = assign_splits(
        votes.user, prompt, votes.item, [None] * len(time), nobody, split.rule(), rng, seconds, testable=votes.sign != 0
    )
    for sentence in made.told:
        log(f"UKPConvArg1: {sentence}")
    kept = np.flatnonzero(made.keep)
    people, user = np.unique(votes.user[kept], return_inverse=True)
    item = np.unique(votes.item, return_inverse=True)[1].ravel()
    return assemble(
        found,
        user=user,
        chosen=np.where(votes.sign < 0, votes.right, votes.left)[kept],
        rejected=np.where(votes.sign < 0, votes.left, votes.right)[kept],
        split=pc.index_in(pa.array(made.split[kept]), pa.array(SPLITS)).to_numpy(),
        controversial=disputed(item, votes.sign).filter(pa.array(made.keep)),
        user_ids=workers.take(pa.array(people)).cast(pa.string()),
        groups=[None] * len(people),
        seen=made.seen[people],
        meta={
            **meta,
            "assigned": made.counts,
            "told": made.told,
            "filtered": meta["filtered"] | {name: made.counts[name] for name in LEFT_OUT},
        },
        more={
            "outcome": np.where(votes.sign == 0, OUTCOMES[1], OUTCOMES[0])[kept],
            "time": pa.array(time[kept]).cast(TIME),
        },
        test=split.test_fraction > 0,
    )
