"""TL;DR: human votes on pairs of summaries (openai/summarize_from_feedback, configuration `comparisons`).

Schema (the repository's `summarize_from_feedback.py`; the hub's own parquet copy of it is what is read, because the
script is code), parts `train` and `validation`:

    info       struct: id, post, title, subreddit (Reddit posts), site, article (news, in the validation part)
    summaries  list of two structs: text, policy (the model that wrote it), note
    choice     int32, place of the preferred summary in `summaries`
    worker, batch, split (strings), extra struct: confidence

Both protocols learn from the part `train` and test on the part `validation`. `copl` (arXiv 2503.01658, pairs as in
arXiv 2402.05133): pairs of supervised models' summaries that the ten busiest workers saw, asked of simulated users,
half of whom prefer the shorter and half the longer summary, in characters. `lore` (arXiv 2504.14439): the real workers
who voted in both parts, as annotated, halved into seen and unseen.

Axis letters: P votes, W workers, U users, K votes or pairs that are kept.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import pc
from pref_jax.data.sources.common import columns, hub, simulated_users
from pref_jax.data.sources.common.options import flat_options
from pref_jax.data.sources.common.simulated_users import TEST, TRAIN, VALIDATION
from pref_jax.data.splits import at_most, check_options, draw, hold_out
from pref_jax.errors import UserError
from pref_jax.ragged import starts

ID = "openai/summarize_from_feedback"
REVISION = "refs/convert/parquet"
LICENCE = "Reddit posts CC-BY-4.0 (TL;DR corpus); votes as published by OpenAI, without a licence on the hub"
COLUMNS = {
    "info": pa.struct([("post", pa.string()), ("article", pa.string())]),
    "summaries": pa.list_(pa.struct([("text", pa.string()), ("policy", pa.string())])),
    "choice": pa.int32(),
    "worker": pa.string(),
}
COPL_RULE = (
    "Distinct pairs of two summaries by supervised models (`sup` and not `ppo` in the policy's name) on which the "
    "workers voted who have most such votes in the training part; the votes themselves are not used. Half of the "
    "simulated users prefer the shorter summary, half the longer one, in characters; pairs of equal length are left "
    "out. The validation part tests; training votes on its prompts are left out. Every pair is controversial."
)
LORE_RULE = (
    "A user is a worker with votes in both parts, a vote is a pair. Votes that a worker repeated or contradicted are "
    "left out, as are training votes on prompts of the validation part, which tests. The unseen fraction of the "
    "workers is drawn. Seen workers keep at most train_pairs pairs of the training part, unseen ones context_pairs, "
    "drawn at random. Of the seen workers' pairs the validation fraction is drawn, leaving each one. Controversial: "
    "the workers who voted on a pair disagree; null for a single one."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Options of `lore`.

    Attributes:
      unseen_fraction: of the workers.
      validation_fraction: of the seen workers' training pairs.
      train_pairs: at most so many pairs of a seen worker, validation included.
      context_pairs: at most so many training pairs of an unseen worker.
    """

    unseen_fraction: float | int = 0.5
    validation_fraction: float | int = 0.1
    train_pairs: int = 150
    context_pairs: int = 50

    def __post_init__(self):
        check_options(
            fractions={"unseen_fraction": self.unseen_fraction, "validation_fraction": self.validation_fraction},
            counts={"train_pairs": self.train_pairs, "context_pairs": self.context_pairs},
        )


class Votes(NamedTuple):
    """Usable votes.

    Attributes:
      found: all summaries.
      workers: [W] names.
      worker: int64 [P] place in `workers`.
      chosen: int64 [P] place in `found`.
      rejected: int64 [P] place in `found`.
      test: bool [P], True in the validation part.
      supervised: bool [P], True where supervised models wrote both summaries.
      counts: votes left out by each filter.
    """

    found: columns.Answers
    workers: pa.Array
    worker: Int[np.ndarray, "P"]
    chosen: Int[np.ndarray, "P"]
    rejected: Int[np.ndarray, "P"]
    test: Bool[np.ndarray, "P"]
    supervised: Bool[np.ndarray, "P"]
    counts: dict[str, int]


@flat_options(limits=Limits(), survey=simulated_users.SimulationConfig(pairs_per_user=8))
def read(
    path: str | Path = ID,
    *,
    rule: str = "copl",
    revision: str | None = REVISION,
    seed: int = 0,
    workers: int = 10,
    limits: Limits,
    survey: simulated_users.SimulationConfig,
) -> Preferences:
    """Reads the votes and builds the tables of one protocol.

    Args:
      path: hub id, or a folder with `comparisons/train/*.parquet` and `comparisons/validation/*.parquet` (or .jsonl,
        .jsonl.gz).
      rule: `copl` or `lore`, see module.
      revision: on the hub.
      seed: of all draws.
      workers: `copl`: how many of the busiest workers' pairs are taken.
      limits: for `lore`; its fields are keyword options.
      survey: for `copl`; its fields are keyword options, but for `context_pairs`, which `lore` alone has.

    Raises:
      UserError: if options are bad, the data cannot be read, their schema is another, or too little is left.
    """
    if rule not in ("copl", "lore"):
        raise UserError(f"config.source.rule is {rule!r}; give copl or lore")
    check_options(fractions={}, counts={"workers": workers})
    table, test = hub.read_halves(
        path, train="comparisons/train/*", test="comparisons/validation/*", columns=COLUMNS, revision=revision
    )
    votes = _votes(table, test)
    meta = {
        "source": f"TL;DR, {hub.describe(path, revision)}",
        "licence": LICENCE,
        "seed": seed,
        "votes_in_source": table.num_rows,
    }
    rng = np.random.default_rng(seed)
    return _copl(votes, survey, workers, meta, rng) if rule == "copl" else _lore(votes, limits, meta, rng)


def _votes(table: pa.Table, test: Bool[np.ndarray, "R"]) -> Votes:
    """Numbers all texts and leaves out what is no vote between two different texts on a prompt by a known worker.

    Training votes on prompts that are tested are left out too.
    """
    info = table["info"]
    post, article = (pc.struct_field(info, name) for name in ("post", "article"))
    prompts, worker = _either(post, article), columns.number(table["worker"])
    lengths = pc.fill_null(pc.list_value_length(table["summaries"]), 0).to_numpy()
    start = starts(lengths).astype(np.int64)
    flat = pc.list_flatten(table["summaries"])
    texts, supervised = columns.number(pc.struct_field(flat, "text")), _supervised(pc.struct_field(flat, "policy"))
    choice = pc.fill_null(table["choice"], -1).to_numpy()

    sieve = columns.Sieve(table.num_rows)
    sieve.drop("not_two_summaries", lengths != 2)
    sieve.drop("no_choice", (choice != 0) & (choice != 1))
    sieve.drop("no_worker", worker.empty)
    sieve.drop("empty_prompt", prompts.empty)
    two = np.where((lengths == 2)[:, None], start[:, None] + np.arange(2)[None], -1)
    text, empty = np.append(texts.code, -1)[two], np.append(texts.empty, True)[two]
    sieve.drop("empty_text", np.logical_or(*empty.T))
    sieve.drop("same_text", text[:, 0] == text[:, 1])
    sieve.drop("training_prompts_in_test", ~test & np.isin(prompts.code, prompts.code[sieve.keep & test]))
    kept = np.flatnonzero(sieve.keep)
    prompt, best = prompts.code[kept], choice[kept].astype(np.int64)
    found, row = columns.answers(prompts, np.repeat(prompt, 2), texts, text[kept].ravel())
    places = row.reshape(-1, 2)
    return Votes(
        found=found,
        workers=worker.distinct,
        worker=worker.code[kept],
        chosen=np.take_along_axis(places, best[:, None], 1)[:, 0],
        rejected=np.take_along_axis(places, 1 - best[:, None], 1)[:, 0],
        test=test[kept],
        supervised=np.asarray(supervised[two[kept]].all(axis=1)),
        counts=sieve.counts,
    )


def _either(first: pa.ChunkedArray, second: pa.ChunkedArray) -> columns.Numbered:
    """Numbers the first column's strings, where they are null the second's, without a copy of either."""
    both = columns.number(pa.chunked_array([*first.chunks, *second.chunks], pa.string()))
    one, other = both.code.reshape(2, -1)
    return columns.Numbered(both.distinct, np.where(one >= 0, one, other))


def _supervised(policies: pa.ChunkedArray) -> Bool[np.ndarray, "M"]:
    """True for models trained on demonstrations alone, by their names, such as sup2, but not sup4_ppo_rm4."""
    by_name = [pc.fill_null(pc.match_substring(policies, word), False).to_numpy() for word in ("sup", "ppo")]
    return by_name[0] & ~by_name[1]


def _copl(
    votes: Votes, survey: simulated_users.SimulationConfig, workers: int, meta: dict[str, Any], rng: np.random.Generator
) -> Preferences:
    """Pairs of the busiest workers, asked of simulated users who prefer the shorter or the longer summary."""
    length = pc.utf8_length(votes.found.texts).to_numpy(zero_copy_only=False)[votes.found.text]
    pair = columns.unordered(votes.chosen, votes.rejected, len(votes.found.text))
    sieve = columns.Sieve(len(pair))
    sieve.drop("other_policies", ~votes.supervised)
    at_work = votes.worker[sieve.keep & ~votes.test]
    busiest = np.argsort(-np.bincount(at_work, minlength=len(votes.workers)), kind="stable")[:workers]
    sieve.drop("other_workers", ~np.isin(votes.worker, busiest))
    sieve.drop("same_pair_again", columns.repeated(pair, sieve.keep))
    sieve.drop("equal_length", length[votes.chosen] == length[votes.rejected])
    kept = np.flatnonzero(sieve.keep)
    test = votes.test[kept]
    longer = simulated_users.tastes(survey, 2, rng).astype(bool)
    asked = simulated_users.sample_comparisons(survey, test, rng)

    ends = np.stack([votes.chosen[kept], votes.rejected[kept]], axis=1)
    ends = np.take_along_axis(ends, np.argsort(length[ends], axis=1), 1)[asked.item]  # the shorter one first
    prefers = longer[asked.user].astype(np.int64)[:, None]
    return columns.assemble(
        votes.found,
        user=asked.user,
        chosen=np.take_along_axis(ends, prefers, 1)[:, 0],
        rejected=np.take_along_axis(ends, 1 - prefers, 1)[:, 0],
        split=asked.split,
        controversial=np.ones(len(asked.user), bool),
        user_ids=columns.names("user-", len(longer)),
        groups=np.where(longer, "longer", "shorter").tolist(),
        seen=survey.seen,
        meta={
            **meta,
            "rule": COPL_RULE,
            "options": {**dataclasses.asdict(survey), "workers": workers},
            "filtered": {**votes.counts, **sieve.counts},
            "workers_in_source": len(np.unique(votes.worker)),
            "pairs_asked_of": {"train": int((~test).sum()), "test": int(test.sum())},
        },
    )


def _lore(votes: Votes, limits: Limits, meta: dict[str, Any], rng: np.random.Generator) -> Preferences:
    """The votes as annotated."""
    worker, test, count = votes.worker, votes.test, len(votes.workers)
    pair = columns.unordered(votes.chosen, votes.rejected, len(votes.found.text))
    _, pair = np.unique(pair, return_inverse=True)
    sign = np.where(votes.chosen < votes.rejected, 1, -1)
    _, own = np.unique(pair * count + worker, return_inverse=True)
    sieve = columns.Sieve(len(pair))
    sieve.drop("self_contradicting", ~_agree(own, sign))
    sieve.drop("repeated", columns.repeated(own, sieve.keep))
    everyone = len(np.unique(worker[sieve.keep]))
    for name, part in (("training", ~test), ("test", test)):
        there = np.bincount(worker[sieve.keep & part], minlength=count) > 0
        sieve.drop(f"votes_of_workers_without_{name}", ~there[worker])
    alive = np.unique(worker[sieve.keep])
    if not len(alive):
        raise UserError("TL;DR: no worker has votes in both parts, train and validation; fetch both whole")
    unseen = np.zeros(count, bool)
    unseen[alive[draw(len(alive), limits.unseen_fraction, rng)]] = True

    most = np.where(unseen, limits.context_pairs, limits.train_pairs)[worker]
    training = at_most(worker, sieve.keep & ~test, most, rng)
    sieve.drop("over_train_pairs", ~test & ~training & ~unseen[worker])
    sieve.drop("over_context_pairs", ~test & ~training & unseen[worker])
    candidates = sieve.keep & ~test & ~unseen[worker]
    held_out = hold_out(worker, candidates, limits.validation_fraction, rng, keep=np.ones(count, bool))

    known = np.bincount(pair[sieve.keep], minlength=len(pair))[pair]
    kept = np.flatnonzero(sieve.keep)
    agree = np.ones(len(pair), bool)
    agree[kept] = _agree(pair[kept], sign[kept])
    users, user = np.unique(worker[kept], return_inverse=True)
    return columns.assemble(
        votes.found,
        user=user,
        chosen=votes.chosen[kept],
        rejected=votes.rejected[kept],
        split=np.where(test, TEST, np.where(held_out, VALIDATION, TRAIN))[kept],
        controversial=pa.array(~agree[kept], mask=known[kept] < 2),
        user_ids=votes.workers.take(pa.array(users)).cast(pa.string()),
        groups=[None] * len(users),
        seen=~unseen[users],
        meta={
            **meta,
            "rule": LORE_RULE,
            "options": dataclasses.asdict(limits),
            "filtered": {**votes.counts, **sieve.counts, "workers_of_one_part": everyone - len(alive)},
        },
    )


def _agree(item: Int[np.ndarray, "K"], sign: Int[np.ndarray, "K"]) -> Bool[np.ndarray, "K"]:
    """True where all votes on an item have the same sign."""
    votes = np.bincount(item)
    return (np.abs(np.bincount(item, weights=sign)) == votes)[item]
