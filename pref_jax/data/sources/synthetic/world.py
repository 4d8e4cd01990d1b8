"""A small language world: texts whose qualities are known, and users who weigh these qualities differently.

Every response has a level from 1 to 5 of four attributes (those of UltraFeedback) which its words express
(see `lexicon`). A user is a weight vector over the attributes and prefers the response of the larger weighted level;
equal ratings are broken at random, once for each response and attribute, by seed. Tastes are those of the papers' data
sets: one attribute per user out of two (UF-P-2) or four (UF-P-4; CoPL, arXiv 2503.01658), or Dirichlet weights over all
four (PersonalLLM, arXiv 2409.20296). Cost is linear in responses and in comparisons.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int

from pref_jax.data import preferences
from pref_jax.data.schema import COMPARISONS
from pref_jax.data.sources.common.columns import names, unanimous
from pref_jax.data.sources.common.options import flat_options
from pref_jax.data.sources.synthetic import lexicon
from pref_jax.data.splits import answers_a_user, draw_pairs
from pref_jax.errors import Faults

RULE = (
    "synthetic language world: responses carry levels 1-5 of four attributes, a user prefers the larger weighted "
    "level, equal ratings broken at random once per response; topics and marker words of test prompts occur in no "
    "other prompt"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Size and rules of a world.

    Attributes:
      tastes: `uf_p_2`, `uf_p_4` (one attribute per user), or `dirichlet` (weights over all four).
      dirichlet_alpha: concentration of `dirichlet` tastes; small is diverse.
      protocol: `ALL` or `AVG`, see `pref_jax.data.splits.answers_a_user`.
      pairs_per_user: n, of which one is for validation; unseen users get all n as context.
      contested_only: keep only pairs on which the four attributes do not all agree.
      label_noise: probability that a training or validation answer is flipped; test answers never are.
      answer_noise: scale of logistic noise on the difference of weighted levels by which such an answer is given.
      ties: share of these answers, those of the smallest noisy differences, that are ties.
      strengths: levels of strength of the other answers, as many of each; 1: strengths are not told.
      marker_noise: probability that a marker word is drawn from a neighbouring level.
    """

    tastes: Literal["uf_p_2", "uf_p_4", "dirichlet"] = "uf_p_2"
    dirichlet_alpha: float = 0.1
    protocol: Literal["ALL", "AVG"] = "ALL"
    seen_users: int = 400
    unseen_users: int = 100
    pairs_per_user: int = 8
    test_pairs_per_user: int = 20
    train_prompts: int = 250
    test_prompts: int = 100
    responses_per_prompt: int = 4
    contested_only: bool = True
    label_noise: float = 0.0
    answer_noise: float = 0.0
    ties: float = 0.0
    strengths: int = 1
    marker_noise: float = 0.15
    seed: int = 0


class _Texts:
    """Prompts and responses of one half of the vocabulary, with the levels behind them."""

    def __init__(self, words: lexicon.Lexicon, prompts: int, each: int, noise: float, rng: np.random.Generator):
        self.prompt_of = np.repeat(np.arange(prompts), each)
        self.topic = rng.choice(words.topics, prompts)
        shapes = np.asarray(lexicon.QUESTIONS)[rng.integers(len(lexicon.QUESTIONS), size=prompts)]
        verbs = rng.choice(words.verbs, prompts)
        self.prompts = [shape.format(verb, topic) for shape, verb, topic in zip(shapes, verbs, self.topic, strict=True)]
        self.levels = rng.integers(lexicon.NUM_LEVELS, size=(prompts * each, len(lexicon.ATTRIBUTES)))
        self.responses = _responses(words, self.levels, self.topic[self.prompt_of], noise, rng)


def generate(config: WorldConfig) -> preferences.Preferences:
    """Builds the tables of a world; equal configs give equal tables, bit for bit.

    Raises:
      UserError: naming every field of `config` that is out of range.
    """
    halves, tastes, groups, rng = _drawn(config)
    comparisons, counts = _comparisons(config, halves, tastes, rng["ask"])
    count = len(tastes)
    columns = {"user_id": names("user-", count), "group": groups, "seen": np.arange(count) < config.seen_users}
    meta = {
        "source": "synthetic",
        "licence": "Apache-2.0",
        "rule": RULE,
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        "counts": counts,
    }
    return preferences.build(columns, _responses_of(halves), comparisons, meta)


read = flat_options(config=WorldConfig())(generate)


class Truth(NamedTuple):
    """What lies behind the tables of a world, which no method is told.

    Attributes:
      levels: int64 [N 4] of every response, 1 to 5, in the attributes' order.
      tastes: float64 [U 4], the weight of each attribute to every user; levels times weights is what users prefer.
      prompt: int64 [N], each response's prompt.
      test: bool [N], whether it is a prompt of the test.
    """

    levels: Int[np.ndarray, "N 4"]
    tastes: Float64[np.ndarray, "U 4"]
    prompt: Int[np.ndarray, " N"]
    test: Bool[np.ndarray, " N"]


def truth(config: WorldConfig) -> Truth:
    """The truth behind `generate(config)`, to judge by.

    Raises:
      UserError: as there.
    """
    halves, tastes, _, _ = _drawn(config)
    levels = np.concatenate([half.levels + 1 for half in halves])
    prompt = np.concatenate(
        [half.prompt_of + first for half, first in zip(halves, (0, config.train_prompts), strict=True)]
    )
    return Truth(levels, tastes.astype(np.float64), prompt, prompt >= config.train_prompts)


def _drawn(config: WorldConfig) -> tuple[list["_Texts"], np.ndarray, list[str | None], dict[str, np.random.Generator]]:
    """Texts of both halves, tastes and groups of the users, and what further draws are made with."""
    _check(config)
    words = lexicon.invent()
    rng = {name: np.random.default_rng([config.seed, i]) for i, name in enumerate(("train", "test", "users", "ask"))}
    sizes: dict[lexicon.Half, int] = {"train": config.train_prompts, "test": config.test_prompts}
    halves = [
        _Texts(words.choose(half), prompts, config.responses_per_prompt, config.marker_noise, rng[half])
        for half, prompts in sizes.items()
    ]
    return halves, *_tastes(config, rng["users"]), rng


def pretraining_text(*, dialogues: int, glossaries: int, marker_noise: float, seed: int) -> list[tuple[str, ...]]:
    """Text for next-token prediction over the whole vocabulary, as turns of user and assistant; shuffled.

    It stands for what a pretrained model has read, and holds no user's comparison. There are dialogues (question,
    answer, reader's remark), whose remark names the levels of the answer in a random order in plain words, so that a
    language model comes to sum up an answer at its end; and glossaries, which explain ten words each.
    """
    rng = np.random.default_rng([seed, 11])
    words = lexicon.invent().choose("all")
    texts = _Texts(words, dialogues, 1, marker_noise, rng)
    plain = np.array([lexicon.PLAIN_WORDS[attribute] for attribute in lexicon.ATTRIBUTES])
    orders = rng.permuted(np.tile(np.arange(len(lexicon.ATTRIBUTES)), (dialogues, 1)), axis=1)
    said = plain[orders, np.take_along_axis(texts.levels, orders, 1)]
    turns: list[tuple[str, ...]] = [
        (p, r, " ".join(s)) for p, r, s in zip(texts.prompts, texts.responses, said, strict=True)
    ]
    attribute, level, marker = np.unravel_index(
        rng.integers(words.markers.size, size=(glossaries, lexicon.GLOSSARY_SIZE)), words.markers.shape
    )
    entries = zip(words.markers[attribute, level, marker], plain[attribute, level], strict=True)
    turns += [
        (lexicon.GLOSSARY_QUESTION, " ".join(f"{word} : {meaning} ." for word, meaning in zip(w, m, strict=True)))
        for w, m in entries
    ]
    return [turns[i] for i in rng.permutation(len(turns))]


def _check(config: WorldConfig) -> None:
    faults = Faults()
    least = {"unseen_users": 0, "pairs_per_user": 2, "responses_per_prompt": 2}
    least |= dict.fromkeys(("seen_users", "test_pairs_per_user", "train_prompts", "test_prompts", "strengths"), 1)
    least["answer_noise"] = 0
    for name, bound in least.items():
        if (value := getattr(config, name)) < bound:
            faults.add(f"world.{name}", f"is {value}", f"give {bound} or more")
    for name in ("label_noise", "marker_noise", "ties"):
        if not 0 <= (value := getattr(config, name)) <= 0.5:
            faults.add(f"world.{name}", f"is {value}", "give a share from 0 to 0.5")
    for name, words in (("tastes", ("uf_p_2", "uf_p_4", "dirichlet")), ("protocol", ("ALL", "AVG"))):
        if (value := getattr(config, name)) not in words:
            faults.add(f"world.{name}", f"is {value!r}", f"give {', '.join(words)}")
    if not config.dirichlet_alpha > 0:
        faults.add("world.dirichlet_alpha", f"is {config.dirichlet_alpha}", "give a number above 0")
    faults.raise_if_any("the world's config does not fit")


def _responses(words, levels: np.ndarray, topics: np.ndarray, noise: float, rng: np.random.Generator) -> list[str]:
    """Writes one answer for each row of levels [N, 4]: a sentence an attribute, in a random order."""
    count, attributes = levels.shape
    shift = rng.choice([-1, 1], (count, attributes, 2)) * (rng.random((count, attributes, 2)) < noise)
    shown = np.clip(levels[:, :, None] + shift, 0, lexicon.NUM_LEVELS - 1)
    which = rng.integers(words.markers.shape[-1], size=shown.shape)
    markers = words.markers[np.arange(attributes)[None, :, None], shown, which]
    shapes = np.array([lexicon.SENTENCES[attribute] for attribute in lexicon.ATTRIBUTES])
    sentences = shapes[np.arange(attributes)[None], rng.integers(shapes.shape[1], size=(count, attributes))]
    orders = rng.permuted(np.tile(np.arange(attributes), (count, 1)), axis=1)
    return [" ".join(sentences[i, a].format(*markers[i, a], topic=topics[i]) for a in orders[i]) for i in range(count)]


def _tastes(config: WorldConfig, rng: np.random.Generator) -> tuple[np.ndarray, list[str | None]]:
    """Weights of every user over the attributes [U, 4], and the names of their groups."""
    count = config.seen_users + config.unseen_users
    if config.tastes == "dirichlet":
        weights = rng.dirichlet(np.full(len(lexicon.ATTRIBUTES), config.dirichlet_alpha), count)
        return weights, [None] * count
    camp = rng.integers(2 if config.tastes == "uf_p_2" else 4, size=count)
    return np.eye(len(lexicon.ATTRIBUTES))[camp], [lexicon.ATTRIBUTES[i] for i in camp]


def _pool(config: WorldConfig, texts: _Texts, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs under one prompt: (a, b) rows [P, 2], jittered ratings [N, 4], whether users can disagree [P]."""
    # A jitter below half a level breaks ties at random, alike for everyone, and never reverses a rating.
    ratings = texts.levels + 1 + rng.uniform(0, 1e-3, texts.levels.shape)
    each = config.responses_per_prompt
    first, second = np.triu_indices(each, k=1)
    starts = np.arange(len(texts.prompts))[:, None] * each
    pairs = np.stack([starts + first[None], starts + second[None]], axis=-1).reshape(-1, 2)
    votes = ratings[pairs[:, 0]] > ratings[pairs[:, 1]]
    used = votes[:, :2] if config.tastes == "uf_p_2" else votes
    contested = ~unanimous(votes)
    written = np.asarray(texts.responses, object)
    keep = (written[pairs[:, 0]] != written[pairs[:, 1]]) & (contested | (not config.contested_only))
    return pairs[keep], ratings, ~unanimous(used[keep])


def _comparisons(config, halves: list[_Texts], tastes: np.ndarray, rng) -> tuple[dict[str, Any], dict[str, int]]:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COMPARISONS.names[:7]}
    seen = np.arange(len(tastes)) < config.seen_users
    counts, held_out = answers_a_user(seen, config.pairs_per_user, config.protocol, rng)
    filtered, offset = {}, 0
    tests = np.full(len(tastes), config.test_pairs_per_user)
    for half, texts, asked in zip(("train", "test"), halves, (counts, tests), strict=True):
        pairs, ratings, contested = _pool(config, texts, rng)
        choose = len(texts.prompts) * config.responses_per_prompt * (config.responses_per_prompt - 1) // 2
        filtered[f"{half}_pairs_filtered"] = choose - len(pairs)
        user, pick, last = draw_pairs(asked, len(pairs), rng, fix=f"raise world.{half}_prompts")
        a, b = pairs[pick].T
        margin = np.einsum("pk,pk->p", tastes[user], ratings[a] - ratings[b])
        margin = voted_margins(config, margin, rng) if half == "train" else margin
        prefers_a = margin > 0
        told = _told(config, np.abs(margin)) if half == "train" else _told(WorldConfig(), margin)
        split = np.where(last & held_out[user], "validation", "train") if half == "train" else np.full(len(user), half)
        values = (
            user,
            offset + np.where(prefers_a, a, b),
            offset + np.where(prefers_a, b, a),
            split,
            contested[pick],
            *told,
        )
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
        offset += len(texts.responses)
    return {name: _joined(parts) for name, parts in columns.items()}, filtered


def voted_margins(
    config: WorldConfig, margins: Float64[np.ndarray, " P"], rng: np.random.Generator
) -> Float64[np.ndarray, " P"]:
    """Differences of weighted levels by which votes are given: with the world's noise of answers and of labels.

    Example:
      >>> voted_margins(WorldConfig(label_noise=0.0), np.array([0.5, -2.0]), np.random.default_rng(0)).tolist()
      [0.5, -2.0]
    """
    if config.answer_noise:
        margins = margins + rng.logistic(scale=config.answer_noise, size=len(margins))
    return np.where(rng.random(len(margins)) < config.label_noise, -margins, margins)


def _joined(parts: list[Any]) -> Any:
    return pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)


def _told(config: WorldConfig, size: np.ndarray) -> tuple[np.ndarray, pa.Array]:
    """Outcome and strength (NaN: not told) of each answer, by the size of its noisy difference."""
    tie = size < np.quantile(size, config.ties)
    edges = np.quantile(size[~tie], np.arange(1, config.strengths) / config.strengths)
    strength = np.where(tie | (config.strengths == 1), np.nan, 1 + np.searchsorted(edges, size, side="right"))
    return np.where(tie, "tie", "preferred"), pa.array(strength, pa.float32(), from_pandas=True)


def _responses_of(halves: list[_Texts]) -> dict[str, Any]:
    prompts = [text for texts in halves for text in np.asarray(texts.prompts, object)[texts.prompt_of]]
    texts = [text for half in halves for text in half.responses]
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return {"response_id": names("response-", len(texts)), "prompt": messages, "text": texts}
