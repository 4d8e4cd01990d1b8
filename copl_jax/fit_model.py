"""Fitting a `CoPL`: from votes to the graph's embeddings, and from these to experts inside the transformer."""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from copl_jax.graph.embedding import embed_users
from copl_jax.graph.settings import GCFConfig, fast_config
from copl_jax.model import CoPL, Known, digests
from copl_jax.reward.training import RewardSettings, fit_reward
from pref_jax import compile_cache, personal
from pref_jax.data.preferences import Preferences
from pref_jax.data.votes import as_preferences
from pref_jax.errors import UserError
from pref_jax.files import read_json, write_json
from pref_jax.lm.pair_batches import open_texts
from pref_jax.lm.text_model import TextModel, open_text
from pref_jax.progress import log
from pref_jax.train.method import TrainingConfig
from pref_jax.train.state import OptimizerConfig

# Steps that see each vote about so often, between these bounds.
EPOCHS, FEWEST, MOST = 3, 24, 1500


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoPLConfig:
    """How CoPL is fitted.

    Attributes:
      graph: model and recipe of the user embeddings.
      reward: experts, gates and their training; None: a few passes over the votes, see `default_reward`.
      reembed: seen users are embedded from their own votes, as new users are; it helps people of few votes.
    """

    graph: GCFConfig = dataclasses.field(default_factory=lambda: fast_config(dim=64))
    reward: RewardSettings | None = None
    reembed: bool = True


def default_reward(num_votes: int) -> RewardSettings:
    """The paper's experts, with as many steps of 32 votes as make a few passes over the votes."""
    steps = int(np.clip(EPOCHS * num_votes // 32, FEWEST, MOST))
    recipe = OptimizerConfig(lr=5e-4, num_steps=steps, weight_decay=1e-3, warmup_fraction=0.03, clip=1.0)
    return RewardSettings(training=TrainingConfig(optimizer=recipe))


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
    compile_cache.enable()
    if (base is None) == (text is None) or (text is not None and options):
        raise UserError("fit: give base= with text options, or text= alone")
    text = text or open_text(str(base), **options)
    tables, config = as_preferences(votes, seed=seed), config or CoPLConfig()
    with _kept(workdir) as folder:
        mark = _mark(folder, tables, text, config, seed)
        if (folder / "model" / personal.ABOUT).is_file():
            log(f"{folder / 'model'}: fitted before")
            return CoPL.restore(personal.read(folder / "model", text=text))
        model = _fit(tables, text, config, seed, folder)
        if workdir is not None:
            model.save(folder / "model")
            log(f"{folder / 'model'}: saved ({mark[:8]})")
    return model


@contextlib.contextmanager
def _kept(workdir: str | Path | None) -> Iterator[Path]:
    """The workdir, or a folder that goes when the fit is done."""
    if workdir is not None:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        yield Path(workdir)
        return
    with tempfile.TemporaryDirectory(prefix="copl_") as folder:
        yield Path(folder)


def _mark(folder: Path, votes: Preferences, text: TextModel, config: CoPLConfig, seed: int) -> str:
    """A digest of all that the fit depends on, kept in the folder.

    Raises:
      UserError: if the folder is another fit's.
    """
    digest = hashlib.sha256(repr((config, seed, sorted(text.about().items()))).encode())
    for table in (votes.users, votes.responses, votes.comparisons):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
    path, mark = folder / "fit.json", digest.hexdigest()
    if not path.exists():
        write_json(path, {"made_by": mark})
    elif read_json(path).get("made_by") != mark:
        raise UserError(f"{folder}: holds a fit of other votes or settings; name another workdir, or delete it")
    return mark


def _fit(votes: Preferences, text: TextModel, config: CoPLConfig, seed: int, folder: Path) -> CoPL:
    train, seen = votes.pairs("train", seen=True), votes.seen
    log(f"CoPL: graph of {len(train.user)} votes by {int(seen.sum())} users")
    embedded = embed_users(
        config.graph,
        train,
        votes.pairs("validation", seen=True),
        seen=seen,
        num_responses=votes.num_responses,
        seed=seed,
        folder=folder / "graph_training",
        mesh=text.mesh,
        reembed=config.reembed,
    )
    learn = votes.pairs(("train", "validation"), seen=True)
    settings = config.reward or default_reward(len(learn.user))
    model, texts = settings.model(text.config), open_texts(text, votes.responses)
    log(f"CoPL: experts, {settings.training.optimizer.num_steps} steps")
    trained = fit_reward(model, texts, learn, embedded.users, settings.training, folder=folder / "reward", seed=seed)
    ids = votes.users["user_id"].to_pylist()
    everyone = votes.pairs(("train", "validation"), seen=True)
    known = Known(
        ids=[ids[row] for row in np.flatnonzero(seen)],
        users=embedded.users[seen].astype(np.float32),
        responses=embedded.responses.astype(np.float32),
        digests=digests(votes.responses),
        pairs=everyone._replace(user=(np.cumsum(seen) - 1)[everyone.user], controversial=None, row=None),
        graph=np.ones(int(seen.sum()), bool),
    )
    facts = {name: embedded.facts[name] for name in ("validation_accuracy", "best_step", "config")}
    found = CoPL(text=text, config=model, params=trained.params, known=known, facts={**facts, **trained.facts})
    context = votes.pairs("train", seen=False)
    for row in np.unique(context.user):
        found.learn(ids[row], context.chosen[context.user == row], context.rejected[context.user == row], unread=0)
    return found
