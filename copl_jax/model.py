"""CoPL's front door: `fit`, from votes to user embeddings and the experts that they choose, and `load`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from copl_jax.fitted import CoPL, Known, digests, every_kind
from copl_jax.graph.embedding import embed_users
from copl_jax.graph.settings import GCFConfig, linear_config
from copl_jax.reward.linear_experts import LinearExperts
from copl_jax.reward.training import HeadStart, RewardSettings, fit_reward
from pref_jax import fitting, personal
from pref_jax.data.preferences import Preferences
from pref_jax.data.text.same_tokens import left_out
from pref_jax.errors import UserError
from pref_jax.lm.pair_batches import Texts
from pref_jax.lm.text_model import TextModel
from pref_jax.progress import log


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoPLConfig:
    """How CoPL is fitted.

    Attributes:
      graph: model and recipe of the user embeddings, and whether they are made of ties and strengths too.
      reward: experts, gates and their training; None: a few passes over the votes, see `default_reward`, read as the
        graph reads them.
      reembed: seen users are embedded from their own votes, as new users are; it helps people of few votes.
    """

    graph: GCFConfig = dataclasses.field(default_factory=linear_config)
    reward: RewardSettings | None = None
    reembed: bool = True


def default_reward(num_votes: int, **votes: Any) -> RewardSettings:
    """The paper's experts and some in the head, with as many steps as make a few passes over the votes.

    `votes`: `ties` and `strengths` of `TrainingConfig`.
    """
    head = LinearExperts(steps=int(np.clip(20 * num_votes // 256, 100, 1000)))
    return RewardSettings(training=dataclasses.replace(fitting.default_training(num_votes), **votes), head=head)


def fit(
    votes: Any,
    *,
    base: str | None = None,
    text: TextModel | None = None,
    config: CoPLConfig | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    **options: Any,
) -> CoPL:
    """Fits CoPL: embeds users by the graph of their votes, then trains experts that the embeddings choose.

    Args:
      votes: `Preferences`, a JSONL file, a folder of saved preferences or rows as dicts. Users who are not seen are
        embedded from their training votes afterwards.
      base: the transformer: a folder, a `package:` path or a hub id.
      text: the same, already opened.
      config: how it is fitted.
      seed: of all draws.
      workdir: keeps checkpoints (a killed call resumes) and the model, which the same call returns.
      **options: `max_length`, `pooling`, `batch_size` ..: see `pref_jax.lm.text_model.open_text`.

    Raises:
      UserError: for bad votes or options, or a workdir of another fit.

    Example:
      model = copl_jax.fit("votes.jsonl", base="Qwen/Qwen3-0.6B", workdir="runs/mine")
    """
    chosen = config or CoPLConfig()

    def make(tables: Preferences, texts: Texts, folder: Path) -> CoPL:
        return _fit(tables, texts, chosen, seed, folder)

    how: dict[str, Any] = {"base": base, "text": text, "seed": seed, "workdir": workdir, "options": options}
    return fitting.fit(CoPL, make, votes, config=chosen, **how)


def _fit(votes: Preferences, texts: Texts, config: CoPLConfig, seed: int, folder: Path) -> CoPL:
    text, seen, ties = texts.model, votes.seen, config.graph.ties
    train = votes.pairs("train", seen=True, ties=ties)
    log(f"CoPL: graph of {len(train.user)} votes by {int(seen.sum())} users")
    embedded = embed_users(
        config.graph,
        train,
        votes.pairs("validation", seen=True, ties=ties),
        seen=seen,
        num_responses=votes.num_responses,
        seed=seed,
        folder=folder / "graph_training",
        mesh=text.mesh,
        reembed=config.reembed,
        features=lambda: fitting.features(text, texts.tokens, folder),
    )
    everyone = votes.pairs(("train", "validation"), seen=True, ties=ties)
    settings = config.reward or default_reward(len(everyone.user), ties=ties, strengths=config.graph.strengths)
    learn = votes.pairs(("train", "validation"), seen=True, ties=settings.training.ties)
    model = settings.model(text.config)
    log(f"CoPL: experts, {settings.training.optimizer.num_steps} steps")
    start = None
    if settings.head is not None:
        parts = (votes.pairs(split, seen=True) for split in ("train", "validation"))
        start = HeadStart(settings.head, lambda: fitting.features(text, texts.tokens, folder), *parts)
    place: dict[str, Any] = {"folder": folder / "reward", "seed": seed, "start": start}
    trained = fit_reward(model, texts, learn, embedded.users, settings.training, **place)
    ids = votes.users["user_id"].to_pylist()
    known = Known(
        ids=[ids[row] for row in np.flatnonzero(seen)],
        users=embedded.users[seen].astype(np.float32),
        responses=embedded.responses.astype(np.float32),
        digests=digests(votes.responses),
        pairs=every_kind(everyone._replace(user=(np.cumsum(seen) - 1)[everyone.user])),
        graph=np.ones(int(seen.sum()), bool),
        table=embedded.table,
    )
    facts = {name: embedded.facts[name] for name in ("validation_accuracy", "best_step", "config")}
    facts |= {**trained.facts, "scale": embedded.scale.about(), "reward_scale": trained.facts.get("scale")}
    facts |= left_out(votes)
    found = CoPL(text=text, config=model, params=trained.params, known=known, facts=facts)
    context = votes.pairs("train", seen=False, ties=ties)
    for row in np.unique(context.user):
        found.learn(ids[row], context.take(context.user == row), unread=0)
    return found


def load(folder: str | Path, *, base: str | None = None, **options: Any) -> CoPL:
    """`pref_jax.load` of a CoPL.

    Raises:
      UserError: as there, and for a model of another method.
    """
    model = personal.load(folder, base=base, **options)
    if not isinstance(model, CoPL):
        raise UserError(f"{folder}: holds a {model.kind}, not a CoPL; open it with pref_jax.load")
    return model
