"""What a run leaves on disk and where: stages that are done or not, never half; and one seed's data, opened once.

WORKDIR/config.json, inputs.json (digests of the files that it was made from), results.json, report.md, plots/
WORKDIR/studies/            results of studies              (experiments.studies)
WORKDIR/seed_S/data/        tables                         (experiments.prepare)
               backbone/    a pretrained decoder, if made and not shared (experiments.prepare)
               same_tokens/ rows of votes that the transformer cannot tell the sides of (experiments.prepare)
               features/    features.npy, one row a response (experiments.embed)
               prompt_features/  the same of every prompt alone (experiments.embed)
               reward_bench/  features and scores on RewardBench 2 (experiments.reward_bench)
               graph_training/  checkpoints of the graph's training
               graph/       seen users' and all responses' embeddings (experiments.copl --stage=graph)
               adapted/     unseen users' embeddings          (experiments.copl --stage=adapt)
               worlds/      data and features of further worlds (experiments.studies.lore_studies)
               leaks.json   what the leakage checks say      (experiments.reporting.checks)
               test_reads.jsonl  who read groups or test answers (experiments.runner.test_labels)
               METHOD/      metrics.jsonl, checkpoints/, model/: the trained reward model without its transformer,
                            scores/: margins of the test pairs (every method)

What is there is not made again. To repeat a stage, delete its folder and those of the stages that read it.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from copl_jax.graph.settings import GCFConfig
from copl_jax.reward.linear_experts import LinearExperts
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.routing import GateConfig
from copl_jax.reward.training import RewardSettings
from experiments.runner.cli import Config, check_workdir, freeze, plain
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.baselines.shared import SharedConfig
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.data import preferences
from pref_jax.data.choosing import HeldOut, hold_out_as_tested, validation_is_given
from pref_jax.data.label_masking import mask_labels
from pref_jax.data.preferences import Preferences
from pref_jax.data.text.same_tokens import without
from pref_jax.digests import check_inputs
from pref_jax.errors import UserError
from pref_jax.eval.controls import REVERSED, SHUFFLED, another_user
from pref_jax.files import atomic_folder, read_json, write_json
from pref_jax.lm import hub
from pref_jax.lm.lora import LoRAConfig
from pref_jax.lm.pair_batches import Texts
from pref_jax.lm.text_model import TextModel, TextSettings
from pref_jax.lm.vote_texts import open_vote_texts
from pref_jax.mesh import make_mesh
from pref_jax.train.logging import read_metrics
from pref_jax.train.method import TrainingConfig
from pref_jax.train.state import OptimizerConfig

# Stands in the facts of scores whose method did not know which response of a test pair was chosen.
HIDDEN = "hidden"
# Folders of a seed that no transformer of the user's was read for.
UNREAD = ("data", "backbone", "pretrain", "graph_training", "graph", "adapted", "worlds")


class Scored(NamedTuple):
    """What a method gives for its scores.

    Attributes:
      margins: float [P] of the test pairs.
      facts: JSON values, see `Workspace.scored`.
      controls: further margins [P] by name: `SHUFFLED`, with every user's parameters those of another; `REVERSED`, with
        the votes of the user turned round, NaN where that was not tried.
    """

    margins: np.ndarray
    facts: dict[str, Any]
    controls: Mapping[str, np.ndarray] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Workspace:
    """One seed of an experiment: config, seed, folder, and what lies there, opened when it is first asked for."""

    config: Config
    seed: int
    folder: Path

    @cached_property
    def tables(self) -> Preferences:
        """The tables of `experiments.prepare`, without groups and test answers."""
        return mask_labels(preferences.load(require(self.folder / "data", "prepare")), self.seed)

    @cached_property
    def data(self) -> Preferences:
        """The tables as methods get them: the votes that the transformer can tell the sides of."""
        return self.distinct(self.tables)

    def distinct(self, tables: Preferences) -> Preferences:
        """Tables of this seed without the votes on equal tokens that `experiments.prepare` found."""
        path = self.folder / "same_tokens" / "rows.npy"
        if not path.is_file():
            return tables
        same = np.zeros(tables.comparisons.num_rows, bool)
        same[np.load(path, allow_pickle=False)] = True
        return without(tables, same)

    @cached_property
    def text(self) -> TextModel:
        """The transformer: made by `experiments.prepare`, or named by the config."""
        section = self.config.backbone.to_dict()
        name, batch_size, packing = (section.pop(key) for key in ("name", "batch_size", "packing"))
        name = str(require(self.pretrain_folders[0], "prepare")) if name == "pretrain" else name
        settings = freeze(TextSettings, section, "backbone")
        return TextModel(name=name, settings=settings, mesh=self.mesh, batch_size=batch_size, packing=packing)

    @cached_property
    def texts(self) -> Texts:
        """All responses as the transformer reads them."""
        return open_vote_texts(self.text, self.tables)

    @cached_property
    def mesh(self) -> Any:
        """The devices."""
        return make_mesh(**self.config.mesh.to_dict())

    @property
    def pretrain_settings(self) -> dict[str, Any]:
        """All that a pretrained decoder depends on, as JSON values."""
        section = self.config.pretrain.to_dict()
        del section["folder"]
        return plain({"seed": self.seed, "marker_noise": self.config.source.marker_noise, **section})

    @property
    def pretrain_folders(self) -> tuple[Path, Path]:
        """Where the pretrained decoder lies, and where its training keeps checkpoints.

        In the run's own folder; or with `pretrain.folder`, which several runs can share, in folders there that are
        named by a digest of `pretrain_settings`, so that a decoder of other settings is never taken.
        """
        shared = self.config.pretrain.folder
        if not shared:
            return self.folder / "backbone", self.folder / "pretrain"
        digest = hashlib.sha256(json.dumps(self.pretrain_settings, sort_keys=True).encode()).hexdigest()[:12]
        return Path(shared) / f"decoder_{digest}", Path(shared) / f"pretrain_{digest}"

    @cached_property
    def features(self) -> np.ndarray:
        """float32 [N D], memory-mapped, of `experiments.embed`."""
        return _rows(require(self.folder / "features", "embed") / "features.npy")

    @cached_property
    def prompt_features(self) -> np.ndarray:
        """float32 [prompts D], memory-mapped, in the order of `prompt_ids`' numbers, of `experiments.embed`."""
        return _rows(require(self.folder / "prompt_features", "embed") / "features.npy")

    @cached_property
    def graph(self) -> GCFConfig:
        """How CoPL's graph is trained."""
        return freeze(GCFConfig, self.config.graph, "graph")

    @cached_property
    def reward(self) -> RewardSettings:
        """How reward models are trained, and CoPL's experts and gates."""
        section = self.config.reward
        experts = {**section.experts.to_dict(), "targets": tuple(section.experts.targets)}
        return RewardSettings(
            training=training(section, "reward", batch_size=section.batch_size),
            experts=freeze(ExpertsConfig, experts, "reward.experts"),
            gate=freeze(GateConfig, section.gate, "reward.gate"),
            remat=section.remat,
            head=freeze(LinearExperts, section.head, "reward.head") if section.get("head") else None,
        )

    @cached_property
    def shared(self) -> SharedConfig:
        """The shared reward's model, which baselines on the transformer adapt too: CoPL's adapters without experts."""
        own = {**self.config.reward.experts.to_dict(), "targets": tuple(self.config.reward.experts.targets)}
        del own["num_experts"]
        lora = freeze(LoRAConfig, own, "reward.experts")
        return SharedConfig(lm=self.text.config, lora=lora, remat=self.config.reward.remat)

    @cached_property
    def lore(self) -> LoReConfig:
        """How LoRe and the shared reward on features are fitted."""
        return freeze(LoReConfig, self.config.lore, "lore")

    @cached_property
    def baselines(self) -> BaselinesConfig:
        """Sizes and choices of the baselines."""
        return freeze(BaselinesConfig, self.config.get("baselines", {}), "baselines")

    def users(self, *, adapted: bool = True) -> np.ndarray:
        """Embeddings of all users [U D] of `experiments.copl`: of the seen by the graph, of the unseen by cold start.

        With `adapted` False unseen users get zeros, and their stage need not have run.
        """
        folders = {True: require(self.folder / "graph", "copl --stage=graph")}
        if adapted:
            folders[False] = require(self.folder / "adapted", "copl --stage=adapt")
        parts = {seen: np.load(folder / "users.npy", allow_pickle=False) for seen, folder in folders.items()}
        users = np.zeros((self.data.num_users, parts[True].shape[1]), parts[True].dtype)
        for seen, rows in parts.items():
            users[self.data.seen == seen] = rows
        return users

    @property
    def responses(self) -> np.ndarray:
        """The graph's embeddings of all responses [N D] of `experiments.copl`."""
        return np.load(require(self.folder / "graph", "copl --stage=graph") / "responses.npy", allow_pickle=False)

    @property
    def test_pairs(self) -> Comparisons:
        """The test pairs of all users, which methods score once, after all training and choosing.

        Nothing in them tells which response the user chose.
        """
        return self.data.pairs("test")

    @property
    def answers(self) -> Comparisons:
        """All votes but those of the test, of seen and unseen users."""
        return self.data.pairs(("train", "validation"))

    def graph_pairs(self, split: str = "train") -> Comparisons:
        """The votes that CoPL's graph is made of, or with "validation" is stopped by: of seen users only.

        What the reward models are chosen by is not among them (`held_out`): a graph that knew these answers would tell
        them to its users' embeddings. Given validation votes stop the graph too: it is not made of them. Ties are
        among them unless `graph.ties` is False.
        """
        pairs = self.data.pairs(split, seen=True, ties=self.graph.ties)
        if split == "validation" and validation_is_given(self.data):
            return pairs
        return pairs.take(~self.held_out(pairs, self.config.reward.holdout_fraction))

    def votes_by_prompt(self, fraction: float, *, ties: bool = False) -> tuple[Comparisons, Comparisons]:
        """The seen users' votes to learn from, and those to choose by: given ones, or on a `fraction` of the prompts.

        Methods of a run that hold out the same part hold out the same prompts. `ties` as of `Preferences.pairs`; what
        is chosen by is decided.
        """
        pairs = self.data.pairs(("train", "validation"), seen=True, ties=ties)
        held = self.held_out(pairs, fraction)
        return pairs.take(~held), pairs.take(held & ~pairs.tie)

    def held_out(self, pairs: Comparisons, fraction: float) -> np.ndarray:
        """bool [P]: which pairs are held out, to choose by; see `pref_jax.data.choosing`."""
        return self._held_out(fraction).pairs(pairs)

    def _held_out(self, fraction: float) -> HeldOut:
        return hold_out_as_tested(self.data, fraction, np.random.default_rng([self.seed, 5]))

    def held_out_ratings(self, ratings: Ratings, fraction: float) -> np.ndarray:
        """bool [R]: which ratings of seen users are held out, as `held_out`.

        Where nothing can be as new as the test, a `fraction` of them by chance.
        """
        held = self._held_out(fraction).ratings(ratings, self.data)
        return held if held.any() else np.random.default_rng([self.seed, 5]).random(len(ratings.user)) < fraction

    @cached_property
    def another_user(self) -> np.ndarray:
        """int [U]: whose parameters each user gets where users are shuffled."""
        return another_user(self.data.seen, self.seed)

    @property
    def context_pairs(self) -> float:
        """Mean number of pairs that an unseen user brings; 0 without unseen users."""
        unseen = int((~self.data.seen).sum())
        return len(self.data.pairs("train", seen=False).user) / unseen if unseen else 0.0

    def method_folder(self, method: str) -> Path:
        """The folder of a method's run: `group oracle` -> `group_oracle`."""
        return self.folder / re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")

    @property
    def done(self) -> list[str]:
        """Methods of the config that have scores, in its order."""
        return [name for name in self.config.methods if (self.method_folder(name) / "scores").is_dir()]

    def scored(self, method: str, score: Callable[[], Scored | tuple[np.ndarray, dict[str, Any]]]) -> None:
        """Runs a method unless its scores are there.

        Args:
          method: name of the row in tables.
          score: returns what `Scored` holds. Where stages of the
            method were run before, "stage_seconds" among the facts, by name, is counted into the method's time;
            "was_resumed" says that they lack what was done before a kill. "parameters_per_user" and "context_pairs"
            say what the method learns of a user and from what, "most_context_pairs" how many it reads at most.

        Raises:
          UserError: for margins that are not finite, which nobody could compare; nothing is kept of them.
        """
        folder = self.method_folder(method)
        if (folder / "scores").is_dir():
            return
        log(f"seed {self.seed}: {method}")
        start = time.perf_counter()
        found: Any = score()
        margins, facts, controls = Scored(*found)
        wrong = int((~np.isfinite(margins)).sum())
        if wrong:
            fix = f"delete {folder} and lower the learning rate, or leave the method out"
            raise UserError(f"{method}, seed {self.seed}: {wrong} of {len(margins)} margins are not finite; {fix}")
        seconds = time.perf_counter() - start + sum(facts.get("stage_seconds", {}).values())

        def write(part: Path) -> None:
            np.save(part / "margins.npy", np.asarray(margins, np.float32))
            for name, values in controls.items():
                np.save(part / f"{name}.npy", np.asarray(values, np.float32))
            write_json(part / "facts.json", {"method": method, "seconds": seconds, "answers": HIDDEN, **facts})

        stage(folder / "scores", write)

    def scores(self, method: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Margins and facts that `scored` kept; `test_labels.answered` turns the margins as users answered."""
        folder = require(self.method_folder(method) / "scores", "compare")
        return np.load(folder / "margins.npy", allow_pickle=False), read_json(folder / "facts.json")

    def controls(self, method: str) -> dict[str, np.ndarray]:
        """The further margins of a method that `scored` kept, by name; none for one that knows no users."""
        folder = self.method_folder(method) / "scores"
        paths = {name: folder / f"{name}.npy" for name in (SHUFFLED, REVERSED)}
        return {name: np.load(path, allow_pickle=False) for name, path in paths.items() if path.is_file()}


def training(section: Config, where: str, *, batch_size: int) -> TrainingConfig:
    """A config's section with an `optimizer` as settings of a training on pairs of texts."""
    names = ("accumulate", "eval_batch_size", "checkpoint_every", "log_every", "share_prefix")
    recipe = freeze(OptimizerConfig, section.optimizer, f"{where}.optimizer")
    own = {name: section[name] for name in names}
    own |= {name: section[name] for name in ("ties", "strengths") if name in section}
    return TrainingConfig(optimizer=recipe, batch_size=batch_size, **own)


def workspaces(config: Config, workdir: Path) -> Iterator[Workspace]:
    """One for each of `config.seeds`; the workdir becomes this config's.

    Raises:
      UserError: if the workdir is another config's or was made from other files, or there are no seeds.
    """
    seeds = tuple(config.seeds)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"config.seeds is {seeds}; give at least one, each from 0 and different")
    check_workdir(workdir, config)
    _check_files(workdir, config)
    for seed in seeds:
        yield Workspace(config, seed, workdir / f"seed_{seed}")


def _check_files(workdir: Path, config: Config) -> None:
    """Refuses a workdir if files that the config names are no longer those that its tables or features were made from.

    Files of the source are those behind any of its options; a transformer from the hub has a revision instead.
    """
    named = {"base": config.backbone.name, "chat_template": config.backbone.get("chat_template", "")}
    options = {f"source.{name}": value for name, value in config.source.items() if name != "name"}
    inputs = {name: Path(value) for name, value in (named | options).items() if isinstance(value, str) and value}
    if str(named["base"]).startswith("package:"):
        inputs["base"] = hub.locate(named["base"])
    tables = any(workdir.glob("seed_*/data"))
    read = any(path.is_dir() and path.name not in UNREAD for path in workdir.glob("seed_*/[!.]*"))
    check_inputs(workdir, inputs, made={name: tables if name in options else read for name in inputs})


@contextlib.contextmanager
def making(folder: Path, *, resume: bool = False) -> Iterator[Path | None]:
    """A folder to fill that becomes `folder` when the block ends well, or None if it is there already.

    So it is whole or absent, whenever the run is killed. With `resume`, what was done before a kill is still in it.
    """
    if folder.is_dir():
        yield None
        return
    with atomic_folder(folder, resume=resume) as part:
        yield part


def stage(folder: Path, make: Callable[[Path], Any], *, resume: bool = False) -> Path:
    """Fills `folder` by `make(part)` unless it is there, as `making`."""
    with making(folder, resume=resume) as part:
        if part is not None:
            make(part)
    return folder


def log(text: str) -> None:
    """Tells the person at the terminal what is going on."""
    print(text, flush=True)


def curve(folder: Path, field: str) -> tuple[list[int], list[float]]:
    """Steps and values of one field of a folder's `metrics.jsonl`; empty where there is none."""
    found = [(line["step"], line[field]) for line in read_metrics(folder) if field in line]
    return [step for step, _ in found], [value for _, value in found]


def require(folder: Path, command: str) -> Path:
    """The folder, which `command` of the experiments makes.

    Raises:
      UserError: if it is not there yet.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not there yet; run python -m experiments.{command} with the same flags first")
    return folder


def _rows(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); delete the folder and run experiments.embed again") from None
