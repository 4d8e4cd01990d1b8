"""The methods on frozen features as those of a run: its data as a task, its backbone's head, each model fitted once."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from experiments import linear
from experiments.copl import group_numbers
from experiments.linear import Model, Task
from experiments.runner.cli import freeze
from experiments.runner.test_labels import load_test_labels, test_signs
from experiments.runner.workspace import Workspace
from lore_jax.fitting.bradley_terry import LoReConfig
from lore_jax.fitting.settings import PublishedConfig
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.data.choosing import FRACTION
from pref_jax.data.preferences import Preferences
from pref_jax.lm import checkpoint

METHOD, SHARED, ORACLE = "LoRe", "shared (features)", "oracle (features)"
HEAD, SINGLE, PUBLISHED, PRINCIPAL = "pretrained head", "per-user model", "LoRe (published)", "LoRe (principal)"
PERSONAL = (SINGLE, PUBLISHED, PRINCIPAL, METHOD)
# Those that learn from votes and need nothing else.
LEARNED = (SHARED, SINGLE, PUBLISHED, METHOD)


class Models:
    """The methods of one run on its features (of `experiments.embed`); each is fitted once, when asked for."""

    def __init__(self, work: Workspace):
        self.work = work
        self._fitted: dict[str, Model] = {}

    @cached_property
    def data(self) -> Preferences:
        """The run's tables."""
        return self.work.data

    @cached_property
    def groups(self) -> np.ndarray | None:
        """int32 [U] for the oracle alone; None unless every user has a group."""
        return group_numbers(self.work, ORACLE)

    @cached_property
    def truth(self) -> tuple[Preferences, np.ndarray]:
        """For studies, which score at once: the tables with test answers, and what turns margins as users answered."""
        whole = load_test_labels(self.work, "studies")
        return whole, test_signs(self.work, whole)

    @cached_property
    def task(self) -> Task:
        """The run's data on its features, with the backbone's head where it has one."""
        return make_task(self.work)

    @property
    def config(self) -> LoReConfig:
        """How LoRe and the shared reward are fitted."""
        return self.work.lore

    @property
    def recipe(self) -> PublishedConfig:
        """How the published recipe is run; its defaults where the config has no section `published`."""
        return freeze(PublishedConfig, self.work.config.get("published", {}), "published")

    def able(self, name: str) -> bool:
        """Whether the run has what the method needs: groups for the oracle, a score head for the pretrained head."""
        if name == ORACLE:
            return self.groups is not None
        return name != HEAD or score_head(self.work) is not None

    def needs(self, name: str) -> dict[str, int | float]:
        """What the method keeps of each user, and how many pairs an unseen one brings to it."""
        if name not in PERSONAL:
            return {"parameters_per_user": 0, "context_pairs": 0}
        facts = self(name).facts
        rank = self.task.features.shape[1] if name == SINGLE else facts["rank"]
        if name == METHOD and facts["chosen"]["kind"] == "shared":
            rank = 0
        return {"parameters_per_user": rank, "context_pairs": self.work.context_pairs}

    def __call__(self, name: str) -> Model:
        """The method's model."""
        if name not in self._fitted:
            self._fitted[name] = FITS[name](self)
        return self._fitted[name]


def _oracle(models: Models) -> Model:
    assert models.groups is not None, "asked for only where there are groups"
    return linear.per_group(models.task, models.groups[seen_first(models.data)], models.config)


FITS: dict[str, Callable[[Models], Model]] = {
    HEAD: lambda models: linear.given(models.task),
    SHARED: lambda models: linear.shared(models.task, models.config),
    ORACLE: _oracle,
    SINGLE: lambda models: linear.single(models.task),
    PUBLISHED: lambda models: linear.published(models.task, models.recipe, models.work.seed),
    PRINCIPAL: lambda models: linear.principal(models.task, models.config),
    METHOD: lambda models: linear.hierarchical(models.task, models.config),
}


def seen_first(data: Preferences) -> np.ndarray:
    """Rows of the users [U], the seen ones first: a task's user i is row `seen_first(data)[i]` of the table."""
    return np.argsort(~data.seen, kind="stable")


def make_task(work: Workspace) -> Task:
    """The workspace's data as a task; its test pairs in the order of `Workspace.test_pairs`."""
    data = work.data
    order = seen_first(data)
    number = np.argsort(order)
    seen = data.seen[order]

    def numbered(pairs: Comparisons, first: int = 0) -> Comparisons:
        return pairs._replace(user=number[pairs.user] - first, row=None)

    def rated(ratings: Ratings, first: int = 0) -> Ratings:
        return ratings._replace(user=number[ratings.user] - first)

    learn = ("train", "validation")
    known, late, count = data.rated(learn, seen=True), data.rated("train", seen=False), int(seen.sum())
    use = work.lore.ratings and len(known.user) > 0
    votes = data.pairs(learn, seen=True, ties=True, rated=not use)
    # Ties are among what is chosen by: without them, a likelihood that expects ties would look worse than it is.
    chooses = work.held_out(votes, FRACTION)
    train, validation = votes.take(~chooses), votes.take(chooses)
    held = work.held_out_ratings(known, FRACTION)
    context = data.pairs("train", seen=False, ties=True, rated=not use)
    return Task(
        features=np.asarray(work.features),
        train=numbered(train),
        validation=numbered(validation),
        context=numbered(context, count),
        test=numbered(work.test_pairs),
        seen=seen,
        head=score_head(work),
        ratings=(rated(known.take(~held)), rated(known.take(held))) if use else None,
        context_ratings=rated(late, count) if use else None,
    )


def score_head(work: Workspace) -> np.ndarray | None:
    """float32 [D], the reward that the backbone was trained to give; None if it has none that reads the features.

    The features have to be those that the head of a sequence classifier of one label reads, of the last layer.
    """
    lm = work.text.config
    if lm.num_labels != 1 or work.config.backbone.layer != -1 or not lm.reads_score:
        return None
    return np.asarray(checkpoint.tensor(work.text.folder, "score.weight"), np.float32)[0]
