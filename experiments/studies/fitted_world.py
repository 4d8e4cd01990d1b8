"""A synthetic world as a transformer reads it, and what fits to its votes learn from."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from experiments import linear
from experiments.linear import Task
from experiments.prepare import prepare
from experiments.runner.cli import Config, check_workdir, freeze
from experiments.runner.workspace import Workspace, log
from experiments.studies.english_world import in_english
from lore_jax.fitting.bradley_terry import Fit, LoReConfig
from pref_jax.data.choosing import FRACTION, hold_out_as_tested
from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.synthetic import world
from pref_jax.data.sources.synthetic.world import WorldConfig
from pref_jax.eval.reporting import results
from pref_jax.lm.vote_texts import open_votes


class ReadWorld(NamedTuple):
    """A world of a seed.

    Attributes:
      settings: of which it was made.
      tables: users, in the order seen, unseen; responses; votes on those that the transformer can tell apart.
      features: float32 [N D], of all responses.
    """

    settings: WorldConfig
    tables: Preferences
    features: Float32[np.ndarray, "N D"]


def seeds_to_do(config: Config, workdir: Path, methods: Sequence[str]) -> Iterator[tuple[Workspace, int]]:
    """Seeds that the workdir's results lack methods of, each with a workspace whose transformer is there.

    Raises:
      UserError: if the workdir is that of another config.
    """
    check_workdir(workdir, config)
    reader = Workspace(config, 0, workdir / "reader")
    for seed in config.seeds:
        if results.missing(workdir / "results.json", methods, seed):
            prepare(reader)
            log(f"seed {seed}: a world, its features, and a fit")
            yield reader, seed


def read_world(config: Config, reader: Workspace, seed: int) -> ReadWorld:
    """Makes the world of `config.source` and reads it with the transformer of `reader`.

    With `config.english` it is spoken in English, else in the world's own words.
    """
    options = {name: value for name, value in config.source.to_dict().items() if name != "name"}
    settings = freeze(WorldConfig, options, "source", seed=seed)
    tables = world.generate(settings)
    tables = in_english(tables) if config.get("english", False) else tables
    texts, tables = open_votes(reader.text, tables)
    return ReadWorld(settings, tables, reader.text.states(texts.tokens))


def task_of(read: ReadWorld) -> Task:
    """What fits to the votes of a world learn from; votes on some prompts are held out, to choose by."""
    tables, seed = read.tables, read.settings.seed
    votes, count = tables.pairs(("train", "validation"), seen=True), int(tables.seen.sum())
    held = hold_out_as_tested(tables, FRACTION, np.random.default_rng([seed, 5])).pairs(votes)
    context = tables.pairs("train", seen=False)
    return Task(
        features=read.features,
        train=votes.take(~held),
        validation=votes.take(held),
        context=context._replace(user=context.user - count, row=None),
        test=tables.pairs("test"),
        seen=tables.seen,
    )


class Fits(NamedTuple):
    """What was fitted to a world, and from what: one linear reward for everyone, and LoRe."""

    task: Task
    shared: Fit
    lore: Fit


def fit_world(read: ReadWorld, config: LoReConfig) -> Fits:
    """Both fits to the votes of the world's seen users; says of what kind LoRe's is."""
    task = task_of(read)
    shared, lore = linear.shared(task, config).found, linear.hierarchical(task, config).found
    assert shared is not None, "a fit has a basis"
    assert lore is not None, "a fit has a basis"
    log(f"  LoRe: {lore.kind}, rank {lore.basis.shape[1]}")
    return Fits(task, shared, lore)


def others(count: int, rng: np.random.Generator) -> np.ndarray:
    """For each user another one, nobody twice."""
    order = rng.permutation(count)
    found = np.empty(count, np.int64)
    found[order] = np.roll(order, 1)
    return found
