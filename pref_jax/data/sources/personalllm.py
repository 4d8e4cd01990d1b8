"""PersonalLLM: eight answers per prompt, scored by ten reward models; a user is a mixture of these (arXiv 2409.20296).

Schema of namkoong-lab/PersonalLLM (CC-BY 4.0), data/train-*.parquet and data/test-*.parquet:

    prompt              string
    response_1 ... _8   string
    response_1_gemma_2b ... response_8_mistral_weqweasdas   float64, the score of each answer by each of `MODELS`

A user weighs the models' raw scores with w ~ Dirichlet(alpha). Two protocols: `copl` (arXiv 2503.01658): four models,
pairs among answers 5, 6 and 7, dominated pairs left out; `lore` (arXiv 2504.14439): ten models, a user's best against
the worst of all eight answers to a prompt, all test prompts.

Axis letters: Q prompts, A answers per prompt, M reward models, U users, P pairs, N distinct answers.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.common import columns, hub, simulated_users
from pref_jax.data.sources.common.options import flat_options
from pref_jax.errors import UserError

ID = "namkoong-lab/PersonalLLM"
MODELS = (
    *("gemma_2b", "gemma_7b", "mistral_raft", "llama3_sfairx", "oasst_deberta_v3"),
    *("beaver_7b", "oasst_pythia_7b", "oasst_pythia_1b", "mistral_ray", "mistral_weqweasdas"),
)
RULES: dict[str, dict[str, Any]] = {
    "copl": {
        "models": ("gemma_7b", "mistral_weqweasdas", "llama3_sfairx", "oasst_deberta_v3"),
        "answers": (5, 6, 7),
        "sizes": {"seen_users": 10_000, "unseen_users": 100, "pairs_per_user": 16, "test_pairs_per_user": 100},
    },
    # 48: one of a seen user's pairs is for validation.
    "lore": {
        "models": MODELS,
        "answers": (1, 2, 3, 4, 5, 6, 7, 8),
        "sizes": {
            "seen_users": 1000,
            "unseen_users": 500,
            "pairs_per_user": 48,
            "context_pairs": 9,
            "test_pairs_per_user": None,
        },
    },
}
WORDS = {
    "copl": (
        "Pairs among the answers named; left out where one is scored at least as high by every model. A user prefers "
        "the larger weighted score, and of equal ones draws."
    ),
    "lore": "A user's pair on a prompt is the best against the worst of the answers named, by weighted score.",
}
RULE = (
    "{} Weights are Dirichlet(alpha) over the models, scores as published. Test prompts are the source's; a training "
    "prompt that is a test prompt too is left out. Controversial: the models do not all agree on the pair."
)


class Scored(NamedTuple):
    """Prompts with all answers and scores.

    Attributes:
      found: all answers.
      row: int64 [Q, A] place in `found`.
      score: float64 [Q, A, M].
      test: bool [Q].
    """

    found: columns.Answers
    row: Int[np.ndarray, "Q A"]
    score: Float[np.ndarray, "Q A M"]
    test: Bool[np.ndarray, "Q"]


@flat_options(survey=simulated_users.SimulationConfig(seen_users=None, unseen_users=None, test_pairs_per_user=None))
def read(
    path: str | Path = ID,
    *,
    rule: str = "copl",
    revision: str | None = None,
    alpha: float | int = 0.1,
    survey: simulated_users.SimulationConfig,
    seed: int = 0,
) -> Preferences:
    """Reads the scores and asks simulated users.

    Args:
      path: hub id, or folder with `data/train-*.parquet` and `data/test-*.parquet`.
      rule: `copl` or `lore`, see module.
      revision: on the hub.
      alpha: concentration of the users' weights; small is diverse.
      survey: its fields are keyword options, see `SimulationConfig`; what is None is the protocol's own, `sizes` in
        `RULES`.
      seed: of all draws.

    Raises:
      UserError: if options are bad, the data cannot be read, their schema is another, or too little is left.
    """
    if rule not in RULES:
        raise UserError(f"config.source.rule is {rule!r}; give copl or lore")
    if not 0 < alpha < np.inf:
        raise UserError(f"config.source.alpha is {alpha}; give a number above 0")
    survey = survey.filled(**RULES[rule]["sizes"])
    models, which = RULES[rule]["models"], RULES[rule]["answers"]
    scored, meta = _scored(path, revision, models, which)
    meta |= {
        "source": f"PersonalLLM, {hub.describe(path, revision)}",
        "licence": "CC-BY-4.0",
        "rule": RULE.format(WORDS[rule]),
        "seed": seed,
        "options": {**dataclasses.asdict(survey), "alpha": alpha, "models": models, "answers": which},
    }
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(len(models), alpha), len(survey.seen))
    return (_copl if rule == "copl" else _lore)(scored, survey, weights, meta, rng)


def _scored(
    path: str | Path, revision: str | None, models: tuple[str, ...], which: tuple[int, ...]
) -> tuple[Scored, dict[str, Any]]:
    """Numbers the texts, and leaves out prompts that lack an answer or a score, or that train and test."""
    texts = [f"response_{place}" for place in which]
    scores = [f"{text}_{model}" for text in texts for model in models]
    schema = dict.fromkeys(("prompt", *texts), pa.string()) | dict.fromkeys(scores, pa.float64())
    table, test = hub.read_halves(path, train="data/train*", test="data/test*", columns=schema, revision=revision)
    prompts = columns.number(table["prompt"])
    numbered = columns.number(pa.chunked_array([chunk for text in texts for chunk in table[text].chunks], pa.string()))
    score = np.stack([table[name].to_numpy() for name in scores], axis=1)
    score = score.reshape(table.num_rows, len(which), len(models))

    tested = np.bincount(prompts.code[test & (prompts.code >= 0)], minlength=len(prompts.distinct) + 1) > 0
    sieve = columns.Sieve(table.num_rows)
    sieve.drop("prompts_empty", prompts.empty)
    sieve.drop("prompts_with_an_empty_answer", np.asarray(numbered.empty.reshape(len(which), -1).any(axis=0)))
    sieve.drop("prompts_without_a_score", np.asarray(~np.isfinite(score).all(axis=(1, 2))))
    sieve.drop("training_prompts_in_test", ~test & tested[prompts.code])
    kept = np.flatnonzero(sieve.keep)
    found, row = columns.answers(prompts, np.tile(prompts.code, len(which)), numbered, numbered.code)
    row = row.reshape(len(which), -1).T[kept]
    meta = {"prompts_in_source": table.num_rows, "filtered": sieve.counts}
    return Scored(found, row, score[kept], test[kept]), meta


def _copl(
    scored: Scored,
    survey: simulated_users.SimulationConfig,
    weights: Float[np.ndarray, "U M"],
    meta: dict[str, Any],
    rng: np.random.Generator,
) -> Preferences:
    """Fixed pairs, each user by the larger weighted score."""
    first, second = np.triu_indices(scored.row.shape[1], k=1)
    ends = np.stack([scored.row[:, first], scored.row[:, second]], axis=-1).reshape(-1, 2)
    gain = (scored.score[:, first] - scored.score[:, second]).reshape(len(ends), -1)
    test = np.repeat(scored.test, len(first))
    sieve = columns.Sieve(len(ends))
    sieve.drop("pairs_of_same_text", ends[:, 0] == ends[:, 1])
    pair = columns.unordered(ends[:, 0], ends[:, 1], len(scored.found.text))
    sieve.drop("pairs_again", columns.repeated(pair, sieve.keep))
    sieve.drop("pairs_dominated", _dominated(gain))
    kept = np.flatnonzero(sieve.keep)
    asked = simulated_users.sample_comparisons(survey, test[kept], rng)
    rows = kept[asked.item]
    preferred = np.einsum("pm,pm->p", weights[asked.user], gain[rows])
    coin = rng.integers(2, size=len(rows))
    loser = np.where(preferred == 0, coin, preferred > 0).astype(np.int64)
    chosen, rejected = (np.take_along_axis(ends[rows], end[:, None], 1)[:, 0] for end in (1 - loser, loser))
    # Neither of a pair that is left dominates: its models disagree.
    return _build(scored, survey, asked, chosen, rejected, np.ones(len(rows), bool), meta, sieve.counts)


def _lore(
    scored: Scored,
    survey: simulated_users.SimulationConfig,
    weights: Float[np.ndarray, "U M"],
    meta: dict[str, Any],
    rng: np.random.Generator,
) -> Preferences:
    """Each user's best against the worst answer."""
    asked = simulated_users.sample_comparisons(survey, scored.test, rng)
    best, worst = _extremes(scored.score, weights, asked)
    row, score = scored.row[asked.item], scored.score
    chosen, rejected = (np.take_along_axis(row, end[:, None], 1)[:, 0] for end in (best, worst))
    gain = score[asked.item, best] - score[asked.item, worst]
    controversial = ~_dominated(gain)
    sieve = columns.Sieve(len(best))
    sieve.drop("pairs_of_same_text", chosen == rejected)
    keep = sieve.keep
    asked = simulated_users.Asked(*(column[keep] for column in asked))
    return _build(scored, survey, asked, chosen[keep], rejected[keep], controversial[keep], meta, sieve.counts)


def _dominated(gain: Float[np.ndarray, "P M"]) -> Bool[np.ndarray, "P"]:
    """True where one answer is scored at least as high as the other by every model."""
    return np.asarray((gain >= 0).all(axis=1) | (gain <= 0).all(axis=1))


def _extremes(
    score: Float[np.ndarray, "Q A M"],
    weights: Float[np.ndarray, "U M"],
    asked: simulated_users.Asked,
    chunk: int = 1 << 16,
) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
    """Best and worst answer of each (user, prompt) by weighted score, the first of equal ones."""
    best, worst = np.zeros(len(asked.user), np.int64), np.zeros(len(asked.user), np.int64)
    for start in range(0, len(best), chunk):
        some = slice(start, start + chunk)
        value = np.einsum("pam,pm->pa", score[asked.item[some]], weights[asked.user[some]])
        best[some], worst[some] = value.argmax(axis=1), value.argmin(axis=1)
    return best, worst


def _build(
    scored: Scored,
    survey: simulated_users.SimulationConfig,
    asked: simulated_users.Asked,
    chosen: Int[np.ndarray, "P"],
    rejected: Int[np.ndarray, "P"],
    controversial: Bool[np.ndarray, "P"],
    meta: dict[str, Any],
    counts: dict[str, int],
) -> Preferences:
    return columns.assemble(
        scored.found,
        user=asked.user,
        chosen=chosen,
        rejected=rejected,
        split=asked.split,
        controversial=controversial,
        user_ids=columns.names("user-", len(survey.seen)),
        groups=[None] * len(survey.seen),
        seen=survey.seen,
        meta={
            **meta,
            "filtered": {**meta["filtered"], **counts},
            "prompts_tested": len(np.unique(scored.found.prompt[chosen[asked.split == simulated_users.TEST]])),
        },
    )
