"""Which method suits some votes: each is fitted without a part of them and judged by that part.

The part that judges is like the test: votes on prompts that no method has seen, or on pairs where the test is split by
pairs; validation votes that came with the data are taken as they are. Test votes are not read. The log-loss is taken at
each method's best scale (`pref_jax.calibrated`), since rewards of different methods differ in scale.

Axis letters: P votes.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from pref_jax.calibrated import calibrated_loss
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.data.choosing import HeldOut, hold_out_as_tested
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import in_splits
from pref_jax.errors import UserError
from pref_jax.eval.held_out import margins
from pref_jax.methods import AUTO, installed, not_taken
from pref_jax.personal import PersonalReward
from pref_jax.progress import log

# Of the votes, those by which methods are judged.
JUDGED = 0.2
Fit = Callable[..., PersonalReward]


class Trial(NamedTuple):
    """One method on the votes that judge.

    Attributes:
      method: its name.
      log_loss: mean over votes, in nats, at the scale of its margins that suits them best.
      accuracy: mean over votes; equal rewards count half.
      seconds: that its fit took.
    """

    method: str
    log_loss: float
    accuracy: float
    seconds: float


class Chosen(NamedTuple):
    """The best method fitted to all votes, all trials, the best first, and by how many votes they were judged."""

    model: PersonalReward
    trials: list[Trial]
    votes: int
    users: int


def fit(
    votes: Preferences,
    *,
    base: str,
    methods: Mapping[str, Fit] | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    **options: Any,
) -> Chosen:
    """Fits every method without some votes, and the one that predicts those best to all of them.

    Args:
      votes: all tables.
      base: the transformer.
      methods: functions (votes, base=..., seed=..., workdir=..., **options) -> model, by name; None: all installed.
      seed: of all draws.
      workdir: keeps each method's work in a folder of its own; a killed call resumes.
      **options: of the base, such as `max_length`; each method gets those that it takes.

    Raises:
      UserError: if no votes can be held out to judge by, or as the methods do.

    Example:
      chosen = pref_jax.auto.fit(pref_jax.read_votes("votes.jsonl"), base="Qwen/Qwen3-0.6B")
      chosen.model.rank("ada", prompt, candidates)
    """
    fits = methods or {name: point.load() for name, point in installed().items()}
    part, judging = hold_out_judges(votes, seed)
    log(f"{AUTO}: {len(fits)} methods, judged by {len(judging.user)} votes of {len(np.unique(judging.user))} users")
    trials = []
    for name, method in fits.items():
        start = time.perf_counter()
        model = _run(method, part, base, seed, workdir, f"{name}_judged", options)
        trials.append(_judge(name, margins(model, part, judging), time.perf_counter() - start))
        log(f"{AUTO}: {name}: {trials[-1].accuracy:.1%} right, log-loss {trials[-1].log_loss:.4f}")
    trials.sort(key=lambda trial: trial.log_loss)
    best = trials[0].method
    log(f"{AUTO}: {best} is fitted to all votes")
    model = _run(fits[best], votes, base, seed, workdir, best, options)
    return Chosen(model, trials, len(judging.user), len(np.unique(judging.user)))


def hold_out_judges(votes: Preferences, seed: int) -> tuple[Preferences, Comparisons]:
    """The tables without test votes and without those held out to judge; and the decided ones of the latter.

    Raises:
      UserError: if none can be held out.
    """
    held = hold_out_as_tested(votes, JUDGED, np.random.default_rng([seed, 7]))
    known = votes.pairs(("train", "validation"), seen=True)
    judging = known.take(held.pairs(known))
    if not len(judging.user):
        fix = "give more votes, or name a method"
        raise UserError(f"{AUTO}: no vote can be held out to judge the methods by; {fix}")
    part = _without(votes, held)
    return part, judging._replace(row=None)


def _without(votes: Preferences, held: HeldOut) -> Preferences:
    """The tables without test votes and without those held out, nor the ratings that these were made of."""
    learn, table = ("train", "validation"), votes.comparisons
    keep = in_splits(table["split"], learn)
    keep[held.row] = False
    ratings = Ratings(*(votes.ratings[name].to_numpy() for name in Ratings._fields))
    hidden = votes.seen[ratings.user] & held.ratings(ratings, votes)
    left = in_splits(votes.ratings["split"], learn) & ~hidden
    meta = {name: value for name, value in votes.meta.items() if name != "path"}
    kept = {"comparisons": table.filter(pa.array(keep)), "ratings": votes.ratings.filter(pa.array(left))}
    return dataclasses.replace(votes, **kept, meta=meta)


def _run(
    method: Fit, votes: Preferences, base: str, seed: int, workdir: Any, folder: str, options: dict[str, Any]
) -> PersonalReward:
    wanted = {"seed": seed, "workdir": None if workdir is None else Path(workdir) / folder, **options}
    surplus = not_taken(method, wanted)
    return method(votes, base=base, **{name: value for name, value in wanted.items() if name not in surplus})


def _judge(name: str, margin: Float[np.ndarray, " P"], seconds: float) -> Trial:
    size = np.abs(margin).mean()
    loss = calibrated_loss(jnp.asarray(margin / (size or 1), jnp.float32), np.ones(len(margin), np.float32))
    return Trial(name, float(loss), float(np.mean((margin > 0) + 0.5 * (margin == 0))), seconds)


def sentences(chosen: Chosen) -> Sequence[str]:
    """What was tried and chosen, for a report."""
    told = [
        f"{trial.method}: {trial.accuracy:.1%} right, log-loss {trial.log_loss:.4f} (fitted in {trial.seconds:.0f} s)"
        for trial in chosen.trials
    ]
    return [
        f"chosen: {chosen.trials[0].method}, of the lowest log-loss on {chosen.votes} votes of {chosen.users} users "
        "that were held out from the training votes; no test vote was read",
        *told,
    ]
