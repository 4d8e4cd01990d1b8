"""One reward for all users: the transformer with plain LoRA adapters and a linear head (Bradley-Terry).

Axis letters: B rows, L length, P pairs, N texts.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Key

from pref_jax import fitting
from pref_jax.comparisons import Comparisons
from pref_jax.data.preferences import Preferences
from pref_jax.data.votes import vote_rows
from pref_jax.errors import UserError
from pref_jax.graded import GAPS
from pref_jax.lm import backbone, lora, parameter_files
from pref_jax.lm.config import LMConfig
from pref_jax.lm.lora import LoRAConfig
from pref_jax.lm.pair_batches import Texts, text_batches
from pref_jax.lm.pairs import apply_head, init_head, pair_states, pairwise_loss, text_states
from pref_jax.lm.text_model import TextModel
from pref_jax.mesh import replicated
from pref_jax.personal import Added, PersonalReward, Read, Saved, Scores
from pref_jax.train.method import Trained, TrainingConfig, open_votes, train
from pref_jax.train.state import LossFn

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """The model; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      lm: the transformer.
      lora: size and place of the adapters.
      remat: what the backward pass keeps of each block, one of `backbone.REMAT`.
    """

    lm: LMConfig
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    remat: str = "none"


def init_adapters(config: SharedConfig, key: Key[Array, ""]) -> lora.Adapters:
    """Fresh adapters, which change nothing yet."""
    shapes = config.lora.wanted(backbone.linear_shapes(config.lm))
    # The first half of the key, as CoPL draws its shared expert: both begin alike.
    return lora.init(jax.random.split(key)[0], shapes, config.lm.num_layers, config.lora.rank)


def init(config: SharedConfig, key: Key[Array, ""], base: Mapping[str, Any] | None = None) -> Params:
    """Fresh parameters, float32: {"adapters", "head": {"w": [D], "b": []}}; a reward model's own head begins it."""
    adapters_key, _, head_key = jax.random.split(key, 3)
    return {"adapters": init_adapters(config, adapters_key), "head": init_head(config.lm, base, head_key)}


@functools.partial(jax.jit, static_argnums=0)
def rewards(
    config: SharedConfig, params: Params, base: Any, tokens: Int32[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, " B"]:
    """Float32 reward of each text, without the dropout of training."""
    apply = lora.adapter_fn(config.lora)
    return apply_head(params["head"], text_states(config.lm, base, tokens, mask, params["adapters"], apply))


def make_loss(config: SharedConfig) -> LossFn:
    """Bradley-Terry loss of batches of text pairs; `frozen` is {"base"}."""

    def loss(params, frozen, batch, key):
        dropout = None if key is None else jax.random.split(key)[1]
        adapters, apply = lora.with_keys(params["adapters"], dropout), lora.adapter_fn(config.lora)
        states = pair_states(config.lm, frozen["base"], batch, adapters, apply, remat=config.remat)
        return pairwise_loss(apply_head(params["head"], states), batch, params.get(GAPS))

    return loss


def fit_shared(
    config: SharedConfig, texts: Texts, pairs: Comparisons, training: TrainingConfig, *, folder: Path, seed: int
) -> Trained:
    """Trains adapters and head on these votes of any kind; a killed training is resumed from `folder`."""
    votes, steps = open_votes(pairs, training), training.optimizer.num_steps
    sizes = {"batch_size": training.batch_size, "num_steps": steps, "seed": seed, "graded": votes.graded}
    shared = texts.shared_length(pairs, training.share_prefix)
    trained = train(
        params=init(config, jax.random.key(seed), texts.model.params) | votes.params,
        frozen={"base": texts.model.params},
        loss=make_loss(config),
        optimizer=votes.optimizer,
        batches=text_batches(pairs, texts.tokens, texts.length, shared=shared, **sizes),
        folder=folder,
        mesh=texts.model.mesh,
        seed=seed,
        **training.loop(),
    )
    return votes.finish(trained)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a baseline on the adapted transformer is fitted.

    Attributes:
      lora: size and place of the adapters.
      remat: see `SharedConfig`.
      training: None: a few passes over the votes, see `pref_jax.fitting.default_training`.
    """

    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    remat: str = "none"
    training: TrainingConfig | None = None

    def model(self, lm: LMConfig) -> SharedConfig:
        """The adapters on a transformer."""
        return SharedConfig(lm=lm, lora=self.lora, remat=self.remat)


def config_facts(config: SharedConfig) -> dict[str, Any]:
    """The config without its transformer, as JSON values."""
    return {"lora": dataclasses.asdict(config.lora), "remat": config.remat}


def read_config(facts: Mapping[str, Any], lm: LMConfig) -> SharedConfig:
    """The config that `config_facts` told, on its transformer."""
    own = LoRAConfig(**{**facts["lora"], "targets": tuple(facts["lora"]["targets"])})
    return SharedConfig(lm=lm, lora=own, remat=facts["remat"])


class SharedReward(PersonalReward):
    """The shared reward of all users behind the protocol; it keeps no votes, and `add_votes` changes nothing."""

    kind: ClassVar[str] = "shared"

    def __init__(self, *, text: TextModel, config: SharedConfig, params: Params, votes: Mapping[str, int]):
        self.text = self.base = text
        self.config, self.params, self._votes = config, params, dict(votes)

    @property
    def users(self) -> list[str]:
        """Users whose votes it was trained on, or who were added."""
        return list(self._votes)

    def knows(self, user: str) -> bool:
        """Whether the user is one of them."""
        return user in self._votes

    def read(self, rows: Any) -> Float32[np.ndarray, "N 1"] | None:
        """The rewards, one for all."""
        read = functools.partial(rewards, self.config, self.params, self.base.params)
        return self.base.read_rows(self.base.tokenize(rows), read)

    def rewards_of(
        self, users: Sequence[str | None], read: Float32[np.ndarray, "N 1"], *, uncertainty: bool = False
    ) -> Scores:
        """One reward for all."""
        del users
        refuse(self.kind, uncertainty=uncertainty)
        return Scores(read[:, 0], np.zeros_like(read[:, 0]))

    def add_votes(self, user: str, votes: Any, *, read: Read | None = None) -> Added:
        """Makes the user known; one reward for all learns nothing from one user's votes."""
        del read
        given = vote_rows(votes, user)
        self._votes[user] = self._votes.get(user, 0) + len(given.users)
        how = "one reward for all: nothing to solve"
        return Added(user, self._votes[user], "; ".join(filter(None, [how, given.unused])))

    def remove_user(self, user: str) -> None:
        """Forgets the id and the number of votes; it kept nothing else."""
        self._check_users([user])
        del self._votes[user]

    def snapshot_user(self, user: str) -> int | None:
        """The number of votes."""
        return self._votes.get(user)

    def restore_user(self, user: str, snapshot: int | None) -> None:
        """Sets the number of votes back."""
        if snapshot is None:
            self._votes.pop(user, None)
        else:
            self._votes[user] = snapshot

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int]]:
        """Adapters and head."""
        return config_facts(self.config), parameter_files.as_tensors(self.params), list(self._votes.values())

    @classmethod
    def restore(cls, saved: Saved) -> "SharedReward":
        """From a saved folder."""
        text = based(saved)
        config = read_config(saved.model, text.config)
        shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
        params = read_params(saved.tensors, shapes, text, str(saved.folder))
        return cls(text=text, config=config, params=params, votes=vote_counts(saved))


def refuse(kind: str, *, uncertainty: bool) -> None:
    """Raises `UserError` where someone asks a baseline for `uncertainty`."""
    if uncertainty:
        raise UserError(f"a model of kind {kind} has no posterior, so no uncertainty; leave uncertainty out")


def based(saved: Saved) -> TextModel:
    """The base of a saved model.

    Raises:
      UserError: if it names none.
    """
    if saved.text is None:
        raise UserError(f"{saved.folder}: names no base; fit and save the model again")
    return saved.text


def vote_counts(saved: Saved) -> dict[str, int]:
    """Each user's number of votes."""
    return dict(zip(saved.users, saved.votes.tolist(), strict=True))


def read_params(tensors: Mapping[str, np.ndarray], shapes: Any, text: TextModel, where: str) -> Any:
    """Checked parameters in the tree of `shapes`, a copy on each device of the base's mesh."""
    parameter_files.check(tensors, parameter_files.kinds(shapes), where=where)
    return jax.device_put(parameter_files.as_tree(tensors, shapes), replicated(text.mesh))


def fit(
    votes: Any,
    *,
    base: str | None = None,
    text: TextModel | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    **options: Any,
) -> SharedReward:
    """Fits one reward to the votes of all seen users; arguments as for `pref_jax.fitting.fit`.

    Example:
      model = pref_jax.baselines.shared.fit("votes.jsonl", base="Qwen/Qwen3-0.6B")
    """
    chosen = config or FitConfig()

    def make(tables: Preferences, texts: Texts, folder: Path) -> SharedReward:
        text, ties = texts.model, chosen.training is None or chosen.training.ties
        learn, model = tables.pairs(("train", "validation"), seen=True, ties=ties), chosen.model(text.config)
        training = chosen.training or fitting.default_training(len(learn.user))
        params, _ = fit_shared(model, texts, learn, training, folder=folder / "training", seed=seed)
        return SharedReward(text=text, config=model, params=params, votes=given(tables, ties=ties))

    how: dict[str, Any] = {"base": base, "text": text, "seed": seed, "workdir": workdir, "options": options}
    return fitting.fit(SharedReward, make, votes, config=chosen, **how)


def given(tables: Preferences, *, ties: bool = False) -> dict[str, int]:
    """How many votes, with `ties` also ties, a fit may read of each user who gave any, by id."""
    counts = np.bincount(tables.pairs(("train", "validation"), ties=ties).user, minlength=tables.num_users)
    return {name: int(n) for name, n in zip(tables.users["user_id"].to_pylist(), counts, strict=True) if n}
