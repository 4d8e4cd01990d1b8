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
from jaxtyping import UInt8

from lore_jax.fitted import LoRe, basis_rewards
from lore_jax.fitting import kept_rows, model_selection
from lore_jax.fitting.bradley_terry import Fit, LoReConfig
from lore_jax.known_responses import KnownResponses, marks
from pref_jax import compile_cache, fitting, personal, ragged
from pref_jax.comparisons import Comparisons, Ratings, check_comparisons, check_ratings, concatenate
from pref_jax.data.choosing import FRACTION, hold_out_as_tested
from pref_jax.data.preferences import Preferences
from pref_jax.data.splits import hold_out, whole_choices
from pref_jax.data.text.same_tokens import left_out
from pref_jax.data.text.token_table import TokenTable
from pref_jax.data.votes import as_preferences
from pref_jax.errors import UserError
from pref_jax.lm.text_model import TextModel, open_text
from pref_jax.lm.vote_texts import open_votes
from pref_jax.progress import log

# Of votes on features, which nothing is known of that a test could be new in: those by which the fit chooses.
HELD_OUT = 0.1


def fit(
    votes: Any,
    comparisons: Any = None,
    *,
    base: str | None = None,
    text: TextModel | None = None,
    user_ids: Sequence[str] | None = None,
    config: LoReConfig | None = None,
    features: str | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    ratings: Ratings | None = None,
    **options: Any,
) -> LoRe:
    """Fits LoRe to votes on texts, or to features and comparisons of them.

    Some votes are held out, by which the fit chooses kind, rank and shrinkage, "no personalisation" among them: given
    validation votes, or those on a fifth of the prompts (`pref_jax.data.choosing`), or a tenth of the votes on
    features. Where none can be, the shared reward is returned, which `print(model)` says.

    Args:
      votes: `Preferences`, a JSONL file, a folder of saved preferences or rows as dicts; or features [N D].
      comparisons: with features: `user`, `chosen`, `rejected` [P] as attributes, and where known `tie`, `strength` and
        `choice`, as of `pref_jax.comparisons.Comparisons`; users as strings, or row numbers.
      base: the transformer that reads texts: a folder, a `package:` path or a hub id.
      text: the same, already opened.
      user_ids: with features and users as row numbers: their names; "0", "1" .. if not given.
      config: what is tried; None for a quick search.
      features: in place of the config's: "text", by which new responses are scored; "response", a free value of each
        response that was voted on, where the same ones come again, such as items of a catalogue; "both"; or "auto",
        whichever suits held-out votes on responses of the fit.
      seed: of what is held out and, without `config`, of the fit.
      workdir: keeps features (a killed call resumes) and the model, which the same call returns.
      ratings: with features: of single responses, by users as the comparisons name them.
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
    config = config if features is None else dataclasses.replace(config, features=features)
    if comparisons is not None:
        if base or text or workdir or options:
            raise UserError("fit: features take no base, text, workdir or text options; leave them out")
        return _fit_features(votes, comparisons, user_ids, config, seed, ratings)
    if ratings is not None:
        raise UserError("fit: ratings go with features; of texts they are read from the votes")
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
    features: Any,
    comparisons: Any,
    user_ids: Sequence[str] | None,
    config: LoReConfig,
    seed: int,
    ratings: Ratings | None,
) -> LoRe:
    features = np.asarray(features, np.float32)
    user = np.asarray(comparisons.user)
    count = len(user)
    user = user if ratings is None else np.concatenate([user, np.asarray(ratings.user)])
    if user.dtype.kind in "OUT":
        if user_ids is not None:
            raise UserError("user_ids: given, and users are strings already; leave it out")
        ids, user = np.unique(user.astype(str), return_inverse=True)
        user_ids = ids.tolist()
    users = [str(name) for name in range(int(user.max(initial=-1)) + 1)] if user_ids is None else list(user_ids)
    if len(set(users)) < len(users):
        raise UserError("user_ids: some stand twice; give each user an id of their own")
    said = {name: getattr(comparisons, name, None) for name in ("tie", "strength", "choice")}
    given = Comparisons(user[:count], np.asarray(comparisons.chosen), np.asarray(comparisons.rejected), **said)
    given = check_comparisons(given, len(users), len(features), "comparisons")
    rated = None
    if ratings is not None:
        own = check_ratings(ratings._replace(user=user[count:]), len(users), len(features), "ratings")
        rated = own, _none_of(own)
    return _fit(features, given, np.zeros(count, bool), users, config, seed, rated)


def _none_of(ratings: Ratings) -> Ratings:
    return ratings.take(slice(0, 0))


def _fit_votes(votes: Preferences, text: TextModel, config: LoReConfig, seed: int, workdir: Path | None) -> LoRe:
    texts, votes = open_votes(text, votes)
    ids, seen = votes.users["user_id"].to_pylist(), votes.seen
    use = config.ratings and len(votes.rated(("train", "validation")).user) > 0
    train, validation, ratings = _chosen_by(votes, use, seed)
    context, late_ratings = votes.pairs("train", seen=False, ties=True, rated=not use), votes.rated("train", seen=False)
    rated = [*ratings, late_ratings]
    rated = rated if use else [_none_of(part) for part in rated]
    given = concatenate(part._replace(controversial=None, row=None) for part in (train, validation, context))
    responses = [given.chosen, given.rejected, *(part.response for part in rated)]
    rows, index = np.unique(np.concatenate(responses), return_inverse=True)
    chosen, rejected, *rated_rows = np.split(index, np.cumsum([len(part) for part in responses])[:-1])
    given = given._replace(chosen=chosen, rejected=rejected)
    rated = [part._replace(response=own) for part, own in zip(rated, rated_rows, strict=True)]
    tokens = texts.tokens.select(rows)
    mark = _digest(ids, seen, *given, *rated, len(train.user), tokens.flat, tokens.offsets, config, seed)
    if workdir is not None and (workdir / "model" / personal.ABOUT).is_file():
        model = LoRe.restore(personal.read(workdir / "model", text=text))
        if model.facts.get("made_by") != mark:
            raise UserError(f"{workdir}: holds a model of other votes or settings; name another workdir, or delete it")
        log(f"{workdir / 'model'}: fitted before")
        return model
    features = fitting.features(text, tokens, workdir)
    number = np.cumsum(seen) - 1
    fitted = len(train.user) + len(validation.user)
    ours, context = given.take(slice(fitted)), given.take(slice(fitted, None))
    ours = ours._replace(user=number[ours.user])
    known = [part._replace(user=number[part.user]) for part in rated[:2]]
    held = np.arange(fitted) >= len(train.user)
    seen_ids = [ids[u] for u in np.flatnonzero(seen)]
    model = _fit(features, ours, held, seen_ids, config, seed, (known[0], known[1]) if use else None, text, tokens)
    model.facts |= {"made_by": mark, **left_out(votes)}
    late = np.concatenate([context.user, rated[2].user])
    if len(late):
        # In the order in which they come.
        _, first, which = np.unique(late, return_index=True, return_inverse=True)
        names, place = [ids[user] for user in late[np.sort(first)]], np.argsort(np.argsort(first))[which]
        count = len(context.user)
        z = model._basis_rewards(features, tokens)
        context, rating = context._replace(user=place[:count]), rated[2]._replace(user=place[count:])
        model._add(names, z, context, rating, strict=False)
    if workdir is not None:
        model.save(workdir / "model")
    return model


def _chosen_by(
    votes: Preferences, use_ratings: bool, seed: int
) -> tuple[Comparisons, Comparisons, tuple[Ratings, Ratings]]:
    """Votes of seen users to fit, those that choose, and the ratings of either."""
    learn = ("train", "validation")
    pairs, ratings = votes.pairs(learn, seen=True, ties=True, rated=not use_ratings), votes.rated(learn, seen=True)
    held = hold_out_as_tested(votes, FRACTION, np.random.default_rng([seed, 5]))
    ours, rated = held.pairs(pairs), held.ratings(ratings, votes)
    return pairs.take(~ours), pairs.take(ours), (ratings.take(~rated), ratings.take(rated))


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
    ratings: tuple[Ratings, Ratings] | None = None,
    text: TextModel | None = None,
    tokens: TokenTable | None = None,
) -> LoRe:
    """The model of seen users' votes, of which those in `held` [P] choose; if there are none, some are held out.

    `ratings` are those to fit and those that choose; `tokens` those that features were made from.
    """
    own = None
    if config.features != "text":
        own, features, votes, ratings = _merged(features, votes, ratings, tokens)
    if not held.any() and len(held):
        everyone, least = np.ones(len(users), bool), 1 / len(held)
        rng = np.random.default_rng(seed)
        held = hold_out(votes.user, ~held, max(HELD_OUT, least), rng, keep=everyone)
        held = held if votes.choice is None else whole_choices(np.asarray(votes.choice), held)
    if not held.any() and ratings is not None and not len(ratings[1].user):
        ratings = _held_ratings(ratings[0], len(users), seed)
    found = model_selection.fit(
        features, votes.take(~held), votes.take(held), len(users), config=config, ratings=ratings
    )
    validation_votes = int(held.sum()) + (0 if ratings is None else len(ratings[1].user))
    every = None if ratings is None else Ratings(*map(np.concatenate, zip(*ratings, strict=True)))
    more: dict[str, Any] = {"ratings": every, "text": text, "marks": own}
    return from_fit(found, features, votes, users, config=config, validation_votes=validation_votes, **more)


def from_fit(
    found: Fit,
    features: np.ndarray,
    votes: Comparisons,
    users: Sequence[str],
    *,
    config: LoReConfig,
    validation_votes: int,
    ratings: Ratings | None = None,
    text: TextModel | None = None,
    marks: UInt8[np.ndarray, "N 16"] | None = None,
) -> LoRe:
    """The model of a fit of `lore_jax.fitting.model_selection.fit`, for whoever has made one: saved and scored with.

    Args:
      found: the fit.
      features: of the responses [N D], as the fit had them.
      votes: all that it was fitted to, by which the users are known from now on.
      users: their ids, in the order of the fit's numbers.
      config: of the fit.
      validation_votes: how many of the votes and ratings chose.
      ratings: of responses, as votes.
      text: the base that the features are of; None: the model scores features.
      marks: of responses, where the fit gave each a free part.

    Example:
      found = model_selection.fit(features, train, validation, len(users), config=config)
      model = from_fit(found, features, votes, users, config=config, validation_votes=len(validation.user), text=text)
      model.save("mine")
    """
    assert found.reading is not None, "only fits per group have none"
    facts = {
        "chosen": _plain(found.chosen),
        "candidates": [_plain(row) for row in found.candidates],
        "validation_votes": validation_votes,
        "config": dataclasses.asdict(config),
    }
    columns = kept_rows.columns_for(found.reading, votes)
    known, z = None, basis_rewards(found, features)
    if marks is not None and found.free is not None:
        known = KnownResponses(marks, np.asarray(found.free))
        z = z + known.free
    owner, rows = kept_rows.pack(found.reading, z, votes, ratings, columns)
    groups = ragged.group_by(owner, len(users))
    counts, rows = groups.counts, rows[groups.order]
    more: dict[str, Any] = {"text": text, "facts": facts, "columns": columns, "known": known}
    return LoRe(fit=found, users=users, z=rows, counts=counts, **more)


def _merged(
    features: np.ndarray, votes: Comparisons, ratings: tuple[Ratings, Ratings] | None, tokens: TokenTable | None
) -> tuple[UInt8[np.ndarray, "N 16"], np.ndarray, Comparisons, tuple[Ratings, Ratings] | None]:
    """Digests of the distinct responses, their features, votes and ratings of them: equal texts are one response."""
    found = np.unique(marks(features if tokens is None else tokens), axis=0, return_index=True, return_inverse=True)
    own, first, number = found[0], found[1], found[2].reshape(-1)
    votes = votes._replace(chosen=number[votes.chosen], rejected=number[votes.rejected])
    if ratings is not None:
        known, held = (part._replace(response=number[part.response]) for part in ratings)
        ratings = known, held
    return own, features[first], votes, ratings


def _held_ratings(ratings: Ratings, num_users: int, seed: int) -> tuple[Ratings, Ratings]:
    """Ratings to fit, and some that choose."""
    rng, everyone = np.random.default_rng(seed), np.ones(num_users, bool)
    share = max(HELD_OUT, 1 / max(len(ratings.user), 1))
    held = hold_out(ratings.user, np.ones(len(ratings.user), bool), share, rng, keep=everyone)
    return ratings.take(~held), ratings.take(held)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A candidate as JSON has it: None for what is not finite."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
