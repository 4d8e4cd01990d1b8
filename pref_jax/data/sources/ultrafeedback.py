"""UltraFeedback-P: pairs of answers on which four rated qualities disagree, asked of users who care for one of them.

Ratings: openbmb/UltraFeedback (MIT), six .jsonl files, of which these fields are used:

    instruction  string
    completions  list of structs: response string; annotations struct of helpfulness, honesty, instruction_following,
                 truthfulness, each a struct with Rating, a string of 1 to 5 or `N/A`

Pairs: argilla/ultrafeedback-binarized-preferences-cleaned (MIT), data/train-*.parquet, of which these are used:

    prompt  string
    chosen, rejected  lists of structs {content, role}; the last message is the assistant's answer

The second set lacks rows of the first and need not keep its order: the two are joined by the texts of prompt and
answer, without white space around them. Which answer argilla chose is not used. Rule and protocols: CoPL, arXiv
2503.01658, after VPL, arXiv 2408.10075 (UltraFeedback-P).

Axis letters: P pairs, M completions, N distinct answers, A attributes (4), U users.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import pc
from pref_jax.data.sources.common import columns, hub, simulated_users
from pref_jax.data.sources.common.options import flat_options
from pref_jax.data.sources.synthetic.lexicon import ATTRIBUTES
from pref_jax.data.splits import check_options, draw
from pref_jax.data.text.tokenization import load_tokenizer, tokenize_responses
from pref_jax.errors import UserError

RATINGS_ID = "openbmb/UltraFeedback"
# The commit that HuggingFaceH4/ultrafeedback_binarized was made from, after overall scores had been corrected.
RATINGS_REVISION = "40b436560ca83a8dba36114c22ab3c66e43f6d5e"
PAIRS_ID = "argilla/ultrafeedback-binarized-preferences-cleaned"
FILES = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
_RATING = pa.struct([("Rating", pa.string())])
_ANNOTATIONS = pa.struct([(name, _RATING) for name in ATTRIBUTES])
RATINGS = {
    "instruction": pa.string(),
    "completions": pa.list_(pa.struct([("response", pa.string()), ("annotations", _ANNOTATIONS)])),
}
_MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
PAIRS = {"prompt": pa.string(), "chosen": _MESSAGES, "rejected": _MESSAGES}
RULE = (
    "A user cares for one attribute, as many users for each, and prefers the answer rated higher on it; equal ratings "
    "are broken at random by seed, once for each answer and attribute. Kept are distinct pairs with all eight ratings, "
    "of at most max_tokens tokens if they are counted, on which the four attributes do not all agree. The test "
    "fraction of their prompts is drawn. Controversial: the users' attributes do not all agree on the pair."
)


class Pool(NamedTuple):
    """Pairs that can be asked.

    Attributes:
      ends: int64 [P, 2] rows of the answers.
      votes: bool [P, A], True where an attribute's ratings, ties broken, are for the first.
      prompt: int64 [P].
    """

    ends: Int[np.ndarray, "P 2"]
    votes: Bool[np.ndarray, "P A"]
    prompt: Int[np.ndarray, "P"]


@flat_options(survey=simulated_users.SimulationConfig())
def read(
    path: str | Path = RATINGS_ID,
    *,
    pairs_path: str | Path = PAIRS_ID,
    revision: str | None = RATINGS_REVISION,
    pairs_revision: str | None = None,
    attributes: int = 2,
    tokenizer: str = "",
    max_tokens: int = 1024,
    test_fraction: float | int = 0.1,
    survey: simulated_users.SimulationConfig,
    seed: int = 0,
) -> Preferences:
    """Reads ratings and pairs, and asks simulated users.

    Args:
      path: the ratings, hub id or folder with the six `.jsonl` files of `FILES`.
      pairs_path: the pairs, hub id or folder with `data/train-*.parquet`.
      revision: of the ratings on the hub.
      pairs_revision: of the pairs on the hub.
      attributes: 2 (UF-P-2: users care for helpfulness or honesty) or 4 (UF-P-4).
      tokenizer: a model folder whose tokenizer counts tokens (`prepare` takes a package or hub id as well); "" leaves
        no pair out for length, which is not the papers' rule, and meta says so.
      max_tokens: the most tokens of prompt and answer together, rendered by the tokenizer's chat template if it has
        one, for either answer of a pair.
      test_fraction: of the prompts.
      survey: its fields are keyword options, see `SimulationConfig`; `pairs_per_user` is 8 for two attributes and 16
        for four if None.
      seed: of all draws.

    Raises:
      UserError: if options are bad, the data cannot be read, their schema is another, or too little is left.
    """
    if attributes not in (2, 4):
        raise UserError(f"config.source.attributes is {attributes}; give 2 (UF-P-2) or 4 (UF-P-4)")
    check_options(fractions={"test_fraction": test_fraction})
    survey = survey.filled(pairs_per_user=4 * attributes)
    rated = hub.read_columns(path, files=FILES, columns=RATINGS, revision=revision)
    pairs = hub.read_columns(
        pairs_path, files=["data/train*"], columns=PAIRS, revision=pairs_revision, flag="--config.source.pairs_path"
    )
    options = {
        **dataclasses.asdict(survey),
        "attributes": list(ATTRIBUTES[:attributes]),
        "test_fraction": test_fraction,
    }
    meta = {
        "source": f"UltraFeedback, {hub.describe(path, revision)}; {hub.describe(pairs_path, pairs_revision)}",
        "licence": "MIT",
        "rule": RULE,
        "seed": seed,
        "options": {**options, "max_tokens": max_tokens if tokenizer else None},
        "pairs_in_source": pairs.num_rows,
        "counted": f"tokens of {tokenizer}"
        if tokenizer
        else "nothing: no tokenizer given, no pair left out for length",
    }
    rng = np.random.default_rng(seed)
    found, pool, counts = _pool(rated, pairs, tokenizer, max_tokens, rng)
    return _asked(found, pool, survey, attributes, test_fraction, {**meta, **counts}, rng)


def _pool(
    rated: pa.Table, pairs: pa.Table, tokenizer: str, max_tokens: int, rng: np.random.Generator
) -> tuple[columns.Answers, Pool, dict[str, Any]]:
    """Joins pairs and ratings; returns all answers, the pairs that are kept, and counts for meta."""
    completions = rated["completions"]
    flat, parent = pc.list_flatten(completions), pc.list_parent_indices(completions)
    given = [_last(pairs[name]) for name in ("chosen", "rejected")]
    # Numbered together, so that equal strings of the two sources have equal numbers.
    prompts = columns.number(_joined(rated["instruction"], pairs["prompt"]))
    texts = columns.number(_joined(pc.struct_field(flat, "response"), *(text for text, _ in given)))
    of_rated, of_pairs = prompts.code[: rated.num_rows], prompts.code[rated.num_rows :]
    prompt = np.concatenate([of_rated[parent.to_numpy()], of_pairs, of_pairs])
    found, row = columns.answers(prompts, prompt, texts, texts.code)
    done, ends = row[: len(flat)], row[len(flat) :].reshape(2, -1).T
    ratings, counts = _ratings(flat, done, len(found.text))

    sieve = columns.Sieve(pairs.num_rows)
    sieve.drop("not_answered_by_assistant", ~(given[0][1] & given[1][1]))
    sieve.drop("empty_prompt", prompts.empty[rated.num_rows :])
    sieve.drop("empty_text", np.logical_or(*texts.empty[len(flat) :].reshape(2, -1)))
    sieve.drop("same_text", ends[:, 0] == ends[:, 1])
    sieve.drop(
        "same_pair_again", columns.repeated(columns.unordered(ends[:, 0], ends[:, 1], len(found.text)), sieve.keep)
    )
    sieve.drop("not_in_ratings", ~np.logical_and(*np.isin(ends, done).T))
    sieve.drop("without_rating", np.isnan(ratings[ends].sum(axis=(1, 2))))
    tied = np.asarray((ratings[ends[:, 0]] == ratings[ends[:, 1]]).any(axis=1))
    # Far less than one step of the ratings: ties are broken alike for everyone, and no rating is reversed.
    ratings = ratings + rng.uniform(0, 1e-3, ratings.shape)
    votes = ratings[ends[:, 0]] > ratings[ends[:, 1]]
    sieve.drop("attributes_agree", columns.unanimous(votes))
    if tokenizer:
        sieve.drop("too_long", _too_long(found, ends, sieve.keep, tokenizer, max_tokens))
    kept = np.flatnonzero(sieve.keep)
    if not len(kept):
        raise UserError(f"no pair is left of {pairs.num_rows}: {sieve.counts}; are these two versions of one data set?")
    counts |= {"filtered": sieve.counts, "pairs_with_tied_ratings": int(tied[kept].sum())}
    return found, Pool(ends[kept], votes[kept], of_pairs[kept]), counts


def _joined(*parts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Columns of text end to end, without white space around each."""
    return pa.chunked_array([chunk for part in parts for chunk in pc.utf8_trim_whitespace(part).chunks])


def _last(messages: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Bool[np.ndarray, "P"]]:
    """Each dialogue's last text (null if there is none), and whether it is the assistant's."""
    lengths = pc.fill_null(pc.list_value_length(messages), 0).to_numpy()
    place = pa.array(np.cumsum(lengths) - 1, mask=lengths == 0)
    last = pc.list_flatten(messages).take(place)
    by_assistant = pc.equal(pc.struct_field(last, "role"), "assistant")
    return pc.struct_field(last, "content"), pc.fill_null(by_assistant, False).to_numpy()


def _ratings(
    completions: pa.ChunkedArray, row: Int[np.ndarray, "M"], count: int
) -> tuple[Float[np.ndarray, "N A"], dict[str, Any]]:
    """Ratings of each answer in the order of `ATTRIBUTES`, NaN where there is none, and counts for meta."""
    rated = []
    for name in ATTRIBUTES:
        words = columns.number(pc.struct_field(completions, ["annotations", name, "Rating"]))
        values = [float(word) if word in {"1", "2", "3", "4", "5"} else np.nan for word in words.distinct.to_pylist()]
        rated.append(np.array([*values, np.nan])[words.code])
    values = np.stack(rated, axis=1)
    ratings = np.full((count, len(ATTRIBUTES)), np.nan)
    # Of an answer that is rated twice the first counts.
    rows, first = np.unique(row, return_index=True)
    there = rows >= 0
    ratings[rows[there]] = values[first[there]]
    return ratings, {
        "completions_in_source": len(row),
        "completions_repeated": int((row >= 0).sum() - there.sum()),
        "completions_without_rating": int(np.isnan(values.sum(axis=1)).sum()),
    }


def _too_long(
    found: columns.Answers, ends: Int[np.ndarray, "P 2"], keep: Bool[np.ndarray, "P"], tokenizer: str, max_tokens: int
) -> Bool[np.ndarray, "P"]:
    """True where either answer of a kept pair has more than `max_tokens` tokens together with its prompt."""
    rows, counter, long = np.unique(ends[keep]), load_tokenizer(tokenizer), np.zeros(len(found.text), bool)
    told = tokenize_responses(counter, found.table(rows), max_length=max_tokens + 1, pairs=not counter.chat_template)
    long[rows] = told.lengths > max_tokens
    return np.logical_or(*long[ends].T)


def _asked(
    found: columns.Answers,
    pool: Pool,
    survey: simulated_users.SimulationConfig,
    attributes: int,
    test_fraction: float | int,
    meta: dict[str, Any],
    rng: np.random.Generator,
) -> Preferences:
    """Draws prompts to test on, users and what they are asked; everyone answers by one attribute."""
    prompts, prompt = np.unique(pool.prompt, return_inverse=True)
    test = draw(len(prompts), test_fraction, rng)[prompt]
    cares = simulated_users.tastes(survey, attributes, rng)
    asked = simulated_users.sample_comparisons(survey, test, rng)
    second = 1 - pool.votes[asked.item, cares[asked.user]].astype(np.int64)
    ends = pool.ends[asked.item]
    rows = np.arange(len(ends))
    return columns.assemble(
        found,
        user=asked.user,
        chosen=ends[rows, second],
        rejected=ends[rows, 1 - second],
        split=asked.split,
        controversial=~columns.unanimous(pool.votes[:, :attributes])[asked.item],
        user_ids=columns.names("user-", len(cares)),
        groups=[ATTRIBUTES[place] for place in cares],
        seen=survey.seen,
        meta={**meta, "pairs_asked_of": {"train": int((~test).sum()), "test": int(test.sum())}},
    )
