"""LoRe's front door: `fit`, from votes on texts or from features and comparisons of them, and `load`.

Axis letters: U users, P votes, N responses, D features, K basis.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from lore_jax.fitted import LoRe, basis_rewards
from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import Fit, LoReConfig
from pref_jax import compile_cache, fitting, personal, ragged
from pref_jax.comparisons import Comparisons, Votes, check_comparisons, concatenate
from pref_jax.data.preferences import Preferences
from pref_jax.data.splits import hold_out
from pref_jax.data.text.same_tokens import left_out
from pref_jax.data.text.token_table import TokenTable
from pref_jax.data.votes import as_preferences
from pref_jax.errors import UserError
from pref_jax.lm.text_model import TextModel, open_text
from pref_jax.lm.vote_texts import open_votes
from pref_jax.progress import log

# Of the votes, where none are held out: those by which the fit chooses.
HELD_OUT = 0.1


def fit(
    votes: Any,
    comparisons: Any = None,
    *,
    base: str | None = None,
    text: TextModel | None = None,
    user_ids: Sequence[str] | None = None,
    config: LoReConfig | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    **options: Any,
) -> LoRe:
    """Fits LoRe to votes on texts, or to features and comparisons of them.

    Some votes are held out, by which the fit chooses kind, rank and shrinkage, "no personalisation" among them: the
    validation split of `Preferences`, or a tenth of the votes. Where none can be, the shared reward is returned, which
    `print(model)` says.

    Args:
      votes: `Preferences`, a JSONL file, a folder of saved preferences or rows as dicts; or features [N D].
      comparisons: with features: `user`, `chosen`, `rejected` [P] as attributes; users as strings, or row numbers.
      base: the transformer that reads texts: a folder, a `package:` path or a hub id.
      text: the same, already opened.
      user_ids: with features and users as row numbers: their names; "0", "1" .. if not given.
      config: what is tried; None for a quick search.
      seed: of what is held out and, without `config`, of the fit.
      workdir: keeps features (a killed call resumes) and the model, which the same call returns.
      **options: `max_length`, `pooling`, `batch_size` ..: see `pref_jax.lm.text_model.open_text`.

    Returns:
      The model. Seen users have the fit's weights, unseen ones of `Preferences` are solved from their training votes.

    Raises:
      UserError: for bad votes, features, options, or a workdir of another fit, of other files, or in use.

    Example:
      model = lore_jax.fit("votes.jsonl", base="Qwen/Qwen3-0.6B", workdir="runs/mine")
      model = lore_jax.fit(features, comparisons)
    """
    compile_cache.enable()
    config = config or LoReConfig.quick(seed=seed)
    if comparisons is not None:
        if base or text or workdir or options:
            raise UserError("fit: features take no base, text, workdir or text options; leave them out")
        return _fit_features(votes, comparisons, user_ids, config, seed)
    if (base is None) == (text is None) or (text is not None and options) or user_ids is not None:
        raise UserError("fit: give base= with text options, or text= alone; or features and comparisons")
    text = text or open_text(str(base), **options)
    tables = as_preferences(votes, seed=seed)
    if workdir is None:
        return _fit_votes(tables, text, config, seed, None)
    with fitting.kept(workdir, fitting.inputs(votes, tables, text)) as folder:
        return _fit_votes(tables, text, config, seed, folder)


def load(folder: str | Path, *, base: str | None = None, **options: Any) -> LoRe:
    """Opens a saved LoRe; as `pref_jax.load`, which opens any method.

    Raises:
      UserError: as there; if the model is of another method.
    """
    kind = personal.about(folder)["kind"]
    if kind != LoRe.kind:
        raise UserError(f"{folder}: a model of kind {kind!r}, not {LoRe.kind!r}; open it with pref_jax.load")
    return LoRe.restore(personal.read(folder, base=base, **options))


def _fit_features(
    features: Any, comparisons: Any, user_ids: Sequence[str] | None, config: LoReConfig, seed: int
) -> LoRe:
    features = np.asarray(features, np.float32)
    user = np.asarray(comparisons.user)
    if user.dtype.kind in "OUT":
        if user_ids is not None:
            raise UserError("user_ids: given, and users are strings already; leave it out")
        ids, user = np.unique(user.astype(str), return_inverse=True)
        user_ids = ids.tolist()
    users = [str(name) for name in range(int(user.max(initial=-1)) + 1)] if user_ids is None else list(user_ids)
    if len(set(users)) < len(users):
        raise UserError("user_ids: some stand twice; give each user an id of their own")
    given = Comparisons(user, np.asarray(comparisons.chosen), np.asarray(comparisons.rejected))
    given = check_comparisons(given, len(users), len(features), "comparisons")
    return _fit(features, given, np.zeros(len(given.user), bool), users, config, seed)


def _fit_votes(votes: Preferences, text: TextModel, config: LoReConfig, seed: int, workdir: Path | None) -> LoRe:
    texts, votes = open_votes(text, votes)
    ids, seen = votes.users["user_id"].to_pylist(), votes.seen
    train, validation, context = (
        votes.pairs("train", True),
        votes.pairs("validation", True),
        votes.pairs("train", False),
    )
    given = concatenate(part._replace(controversial=None, row=None) for part in (train, validation, context))
    rows, index = np.unique(np.concatenate([given.chosen, given.rejected]), return_inverse=True)
    chosen, rejected = np.split(index, 2)
    tokens = texts.tokens.select(rows)
    mark = _digest(ids, seen, *given[:3], len(train.user), tokens.flat, tokens.offsets, config, seed)
    if workdir is not None and (workdir / "model" / personal.ABOUT).is_file():
        model = LoRe.restore(personal.read(workdir / "model", text=text))
        if model.facts.get("made_by") != mark:
            raise UserError(f"{workdir}: holds a model of other votes or settings; name another workdir, or delete it")
        log(f"{workdir / 'model'}: fitted before")
        return model
    features = _features(text, tokens, workdir)
    number = np.cumsum(seen) - 1
    fitted = len(train.user) + len(validation.user)
    ours = Comparisons(number[given.user[:fitted]], chosen[:fitted], rejected[:fitted])
    held = np.arange(fitted) >= len(train.user)
    model = _fit(features, ours, held, [ids[u] for u in np.flatnonzero(seen)], config, seed, text=text)
    model.facts |= {"made_by": mark, **left_out(votes)}
    if len(context.user):
        z = _differences(model._fit, features, Comparisons(given.user[fitted:], chosen[fitted:], rejected[fitted:]))
        model._learn([ids[user] for user in given.user[fitted:]], z)
    if workdir is not None:
        model.save(workdir / "model")
    return model


def _features(text: TextModel, tokens: TokenTable, workdir: Path | None) -> Float32[np.ndarray, "N D"]:
    if workdir is None:
        return text.states(tokens)
    (workdir / "features").mkdir(parents=True, exist_ok=True)
    text.write_features(tokens, workdir / "features")
    return np.load(workdir / "features" / "features.npy", mmap_mode="r", allow_pickle=False)


def _digest(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()


def _fit(
    features: np.ndarray,
    votes: Comparisons,
    held: np.ndarray,
    users: list[str],
    config: LoReConfig,
    seed: int,
    text: TextModel | None = None,
) -> LoRe:
    """The model of seen users' votes, of which those in `held` [P] choose; if there are none, some are held out."""
    if not held.any() and len(held):
        everyone, least = np.ones(len(users), bool), 1 / len(held)
        rng = np.random.default_rng(seed)
        held = hold_out(votes.user, ~held, max(HELD_OUT, least), rng, keep=everyone)
    found = model_selection.fit(features, votes.take(~held), votes.take(held), len(users), config=config)
    facts = {
        "chosen": _plain(found.chosen),
        "candidates": [_plain(row) for row in found.candidates],
        "validation_votes": int(held.sum()),
        "config": dataclasses.asdict(config),
    }
    groups = ragged.group_by(votes.user, len(users))
    z = _differences(found, features, votes)[groups.order]
    return LoRe(fit=found, users=users, z=z, counts=groups.counts, text=text, facts=facts)


def _differences(fit: Fit, features: Float32[np.ndarray, "N D"], votes: Votes) -> Float32[np.ndarray, "P K"]:
    """z(chosen) - z(rejected) of votes on rows of features."""
    z = basis_rewards(fit, features)
    return (z[votes.chosen] - z[votes.rejected]).astype(np.float32)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A candidate as JSON has it: None for what is not finite."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
