"""Personal heads (`head_training.HEADS`) as models that one can hold, on frozen features or the adapted transformer.

Of each user the model keeps a row of the head's table, or the states of at most `context` votes that the head reads,
or for users who came after training to a head with a table both. No text is kept.

Axis letters: N texts, D features of a state, R numbers that a user owns, n context pairs.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from pref_jax import fitting
from pref_jax.baselines import on_features, on_transformer
from pref_jax.baselines.head_training import HEADS, States
from pref_jax.baselines.heads import Head, Known, Params
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.baselines.shared import (
    FitConfig,
    SharedConfig,
    based,
    config_facts,
    given,
    init_adapters,
    read_config,
    read_params,
    refuse,
)
from pref_jax.data.loaders.contexts import contexts
from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import prompt_ids
from pref_jax.data.text.token_table import TokenTable
from pref_jax.data.votes import vote_rows
from pref_jax.errors import UserError
from pref_jax.lm import parameter_files
from pref_jax.lm.pair_batches import Texts
from pref_jax.lm.text_model import TextModel
from pref_jax.personal import Added, PersonalReward, Read, Saved, Scores
from pref_jax.standardiser import Standardiser, standardise

KINDS: dict[str, type[Head]] = {name: type(make(BaselinesConfig())[0]) for name, make in HEADS.items()}
# Rows of texts are padded to a multiple of this, so that few programs are compiled.
STEP = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a head is fitted.

    Attributes:
      method: one of `HEADS`.
      sizes: of heads, and of the training on frozen features.
      transformer: how the transformer is adapted; None: the head reads frozen features.
    """

    method: str
    sizes: BaselinesConfig = dataclasses.field(default_factory=BaselinesConfig)
    transformer: FitConfig | None = None

    def __post_init__(self):
        if self.method not in HEADS:
            raise UserError(f"HeadConfig.method is {self.method!r}; give one of {', '.join(HEADS)}")


class Member(NamedTuple):
    """What is kept of a user.

    Attributes:
      own: float32 [R], the row of the head's table; R is 0 without one.
      context: float32 [n 3 D], standardised states of the chosen text, the rejected one and the prompt of each vote.
      votes: how many the user gave.
      trained: the row is of training.
    """

    own: np.ndarray
    context: np.ndarray
    votes: int
    trained: bool


class Fitted(NamedTuple):
    """A head with all that its rewards are computed from.

    Attributes:
      head: the head.
      params: its parameters, without the table.
      scale: standardises states.
      context: the most votes that it reads of a user.
      adapters: (config, parameters) of the adapted transformer; None for frozen features.
    """

    head: Head
    params: Params
    scale: Standardiser
    context: int
    adapters: tuple[SharedConfig, Any] | None = None


class HeadReward(PersonalReward):
    """A personal head behind the protocol; see `fit`."""

    kind: ClassVar[str] = "head"

    def __init__(self, *, text: TextModel, fitted: Fitted, members: Mapping[str, Member]):
        self.text = self.base = text
        # On no particular device, as after loading: programs and so scores are the same.
        host = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), (fitted.params, fitted.scale))
        self.fitted, self._members = fitted._replace(params=host[0], scale=host[1]), dict(members)
        self._width = text.config.hidden_size

    @property
    def users(self) -> list[str]:
        """Ids of the users met in training, then of those who were added."""
        return list(self._members)

    def knows(self, user: str) -> bool:
        """Whether something is kept of the user."""
        return user in self._members

    def read(self, rows: Any) -> Float32[np.ndarray, "N F"]:
        """Standardised states of each text side by side: that which is rated; the frozen one, where votes are read by
        it and the transformer is adapted; that of the prompt, where the head reads it.

        Raises:
          UserError: for tokens, where the head reads the prompt too.
        """
        if isinstance(rows, TokenTable) and self.fitted.head.reads_prompt:
            raise UserError("this head reads the prompt apart from the dialogue; give prompt and response, not tokens")
        parts = [self._rated(rows)]
        if self._apart:
            parts.append(self._frozen(rows))
        if self.fitted.head.reads_prompt:
            parts.append(self._prompts(rows))
        return np.concatenate(parts, axis=1)

    @property
    def reads_tokens(self) -> bool:
        """Not where the head reads the prompt apart from the dialogue."""
        return not self.fitted.head.reads_prompt

    @property
    def _apart(self) -> bool:
        """Whether votes are read by other states than those that rewards are of."""
        return self.fitted.adapters is not None and not self.fitted.head.has_table

    def _parts(self, read: Float32[np.ndarray, "N F"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of rows of `read`: states that rewards are of, states that votes are read by, states of prompts."""
        parts = np.split(read, read.shape[1] // self._width, axis=1)
        prompts = parts[-1] if self.fitted.head.reads_prompt else np.zeros((len(read), self._width), np.float32)
        return parts[0], parts[int(self._apart)], prompts

    def rewards_of(
        self, users: Sequence[str | None], read: Float32[np.ndarray, "N F"], *, uncertainty: bool = False
    ) -> Scores:
        """Rewards for each user as the head knows them; None: someone without votes."""
        refuse(self.kind, uncertainty=uncertainty)
        nobody = self._member(self._nothing(), 0) if None in users else None
        members = [nobody if user is None else self._members[user] for user in users]
        states, _, prompts = self._parts(read)
        own = np.stack([member.own for member in members if member])
        known, mask = zip(*(self._padded(member.context) for member in members if member), strict=True)
        columns = (own, np.stack(known), np.stack(mask), states, prompts)
        room = -len(states) % STEP
        padded = (np.pad(column, ((0, room), *((0, 0),) * (column.ndim - 1))) for column in columns)
        found = np.array(_rewards(self.fitted.head, self.fitted.params, *padded))[: len(states)]
        return Scores(found, np.zeros_like(found))

    def add_votes(self, user: str, votes: Any, *, read: Read | None = None) -> Added:
        """Keeps the newest `context` votes of the user, and finds the user by them.

        VPL and GPO read them. For I2E and PAL a new user's row is fitted to them; that of a user met in training stays,
        for training read more of the user's votes than are kept.
        """
        given = vote_rows(votes, user)
        before = self._members.get(user, Member(np.zeros(0, np.float32), self._nothing(), 0, False))
        count = before.votes + len(given.users)
        if before.trained:
            self._members[user] = before._replace(votes=count)
            how = "the row of training stays; votes after it are counted and teach nothing"
            return Added(user, count, "; ".join(filter(None, [how, given.unused])))
        _, states, prompts = self._parts((read or self.read)(given.responses))
        (chosen, rejected), asked = np.split(states, 2), prompts[: len(states) // 2]
        context = np.concatenate([before.context, np.stack([chosen, rejected, asked], axis=1)])
        self._members[user] = self._member(context[-self.fitted.context :], count)
        how = "a row fitted to" if self.fitted.head.has_table else "the head reads"
        how = f"{how} {len(self._members[user].context)} votes"
        return Added(user, count, "; ".join(filter(None, [how, given.unused])))

    def remove_user(self, user: str) -> None:
        """Removes what is kept of the user; rows fitted with the help of theirs (I2E) are fitted again without it.

        What the networks learned from the user's votes in training stays in their parameters.
        """
        self._check_users([user])
        rest = {name: member for name, member in self._members.items() if name != user}
        if self._members[user].trained and not any(member.trained for member in rest.values()):
            raise UserError(f"remove_user: {user!r} is the last user met in training; delete the model instead")
        again, self._members = self._members[user].trained, rest
        for name, member in rest.items():
            if again and not member.trained:
                rest[name] = self._member(member.context, member.votes)

    def snapshot_user(self, user: str) -> Member | None:
        """What is kept of the user."""
        return self._members.get(user)

    def restore_user(self, user: str, snapshot: Member | None) -> None:
        """Keeps of the user what the snapshot says."""
        if snapshot is None:
            self._members.pop(user, None)
        else:
            self._members[user] = snapshot

    def describe_user(self, user: str) -> dict[str, Any]:
        """The row that the user owns, if the head has a table."""
        self._check_users([user])
        member = self._members[user]
        return {"row": member.own.tolist()} if self.fitted.head.has_table else {}

    def _member(self, context: np.ndarray, votes: int) -> Member:
        """A user who is known by these votes alone."""
        head = self.fitted.head
        if not head.has_table:
            return Member(np.zeros(0, np.float32), context, votes, False)
        table = np.stack([member.own for member in self._members.values() if member.trained])
        known, mask = self._padded(context)
        own = _adapt(head, {**self.fitted.params, "table": table}, known[None, :, :2], known[None, :, 2], mask[None])
        return Member(np.asarray(own)[0], context, votes, False)

    def _nothing(self) -> np.ndarray:
        return np.zeros((0, 3, self._width), np.float32)

    def _padded(self, context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        room = self.fitted.context - len(context)
        return np.pad(context, ((0, room), (0, 0), (0, 0))), np.arange(self.fitted.context) < len(context)

    def _frozen(self, rows: pa.Table | TokenTable) -> Float32[np.ndarray, "N D"]:
        return self._standardised(self.base.states(self.base.tokenize(rows)))

    def _rated(self, rows: pa.Table | TokenTable) -> Float32[np.ndarray, "N D"]:
        """States that rewards are of."""
        if self.fitted.adapters is None:
            return self._frozen(rows)
        texts = Texts(self.base, self.base.tokenize(rows))
        return self._standardised(on_transformer.tuned_states(*self.fitted.adapters, texts))

    def _prompts(self, rows: pa.Table) -> Float32[np.ndarray, "N D"]:
        number = np.unique(prompt_ids(rows["prompt"]), return_inverse=True)[1]
        return self._standardised(self.base.states(self.base.tokenize_prompts(rows)))[number]

    def _standardised(self, states: np.ndarray) -> np.ndarray:
        mean, scale = (np.asarray(part)[None] for part in self.fitted.scale)
        return (states - mean) / scale

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int]]:
        """Head, adapters and scale; rows and contexts of users."""
        head, adapters, members = self.fitted.head, self.fitted.adapters, list(self._members.values())
        model = {
            "method": next(name for name, kind in KINDS.items() if type(head) is kind),
            "head": dataclasses.asdict(head),
            "context": self.fitted.context,
            "adapters": None if adapters is None else config_facts(adapters[0]),
        }
        parts = {"head": self.fitted.params, "adapters": adapters[1] if adapters else {}}
        tensors = {f"params/{path}": leaf for path, leaf in parameter_files.as_tensors(parts).items()}
        tensors |= {name: np.asarray(leaf) for name, leaf in self.fitted.scale._asdict().items()}
        tensors |= {
            "own": np.array([member.own for member in members], np.float32),
            "contexts": np.concatenate([self._nothing(), *(member.context for member in members)]),
            "counts": np.array([len(member.context) for member in members], np.int32),
            "trained": np.array([member.trained for member in members], np.uint8),
        }
        return model, tensors, [member.votes for member in members]

    @classmethod
    def restore(cls, saved: Saved) -> "HeadReward":
        """From a saved folder."""
        text, about, tensors = based(saved), saved.model, saved.tensors
        head = KINDS[about["method"]](**about["head"])
        config = None if about["adapters"] is None else read_config(about["adapters"], text.config)
        found = {name.removeprefix("params/"): leaf for name, leaf in tensors.items() if name.startswith("params/")}
        shapes = jax.eval_shape(functools.partial(_fresh, head, config, text))
        params = read_params(found, shapes, text, str(saved.folder))
        scale = Standardiser(jnp.asarray(tensors["mean"]), jnp.asarray(tensors["scale"]))
        adapters = None if config is None else (config, params["adapters"])
        parts = np.split(tensors["contexts"], np.cumsum(tensors["counts"])[:-1])
        rows = zip(saved.users, tensors["own"], parts, saved.votes, tensors["trained"], strict=True)
        members = {name: Member(own, part, int(count), bool(met)) for name, own, part, count, met in rows}
        return cls(text=text, fitted=Fitted(head, params["head"], scale, about["context"], adapters), members=members)


def _fresh(head: Head, config: SharedConfig | None, text: TextModel) -> Any:
    own = head.init(jax.random.key(0), text.config.hidden_size, 1)
    own.pop("table", None)
    return {"head": own, "adapters": init_adapters(config, jax.random.key(0)) if config else {}}


@functools.partial(jax.jit, static_argnums=0)
def _rewards(head: Head, params, own, context, mask, states, prompts):
    """One row after the other, so that none depends on its company."""

    def one(row):
        own, context, mask, state, prompt = jax.tree.map(lambda leaf: leaf[None], row)
        users, _ = head.users(params, Known(own, context[:, :, 0], context[:, :, 1], mask))
        return head.reward(params, state[:, None], users, prompt)[0, 0]

    return jax.lax.map(one, (own, context, mask, states, prompts))


@functools.partial(jax.jit, static_argnums=0)
def _adapt(head: Head, params, states, prompts, mask):
    return head.adapt(params, states, prompts, mask)


def fit(
    votes: Any,
    *,
    config: HeadConfig,
    base: str | None = None,
    text: TextModel | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    **options: Any,
) -> HeadReward:
    """Fits a head to the seen users' votes; unseen users are added by theirs. The rest as for `pref_jax.fitting.fit`.

    Example:
      model = pref_jax.baselines.model.fit("votes.jsonl", config=HeadConfig(method="VPL"), base="Qwen/Qwen3-0.6B")
    """

    def make(tables: Preferences, texts: Texts, folder: Path) -> HeadReward:
        return _fit(tables, texts, config, seed, folder / "training")

    how: dict[str, Any] = {"base": base, "text": text, "seed": seed, "workdir": workdir, "options": options}
    return fitting.fit(HeadReward, make, votes, config=config, **how)


def _fit(votes: Preferences, texts: Texts, config: HeadConfig, seed: int, folder: Path) -> HeadReward:
    known, text, own = votes.pairs(("train", "validation"), seen=True), texts.model, config.sizes
    prompts = text.states(text.tokenize_prompts(votes.responses))
    states, scale = on_features.open_states(text.states(texts.tokens), prompts, votes.responses["prompt"], known)
    adapters = None
    if config.transformer is None:
        held = np.isin(known.row, votes.pairs("validation", seen=True).row)
        task = on_features.Task(states, known, held, votes.seen, seed)
        head, params, _ = on_features.choose_and_fit(config.method, own, task, folder=folder)
    else:
        head, model = HEADS[config.method](own)[0], config.transformer.model(text.config)
        training = config.transformer.training or fitting.default_training(len(known.user))
        start, frozen = on_transformer.begin_head(head, model, texts, states, scale, votes.seen, seed)
        loss, place = on_transformer.make_loss(model, head), {"folder": folder, "seed": seed}
        found = on_transformer.fit_users(start, frozen, loss, texts, known, training, own, **place).params
        params, adapters = found["personal"], (model, found["adapters"])
        rated = standardise(scale, jnp.asarray(on_transformer.tuned_states(*adapters, texts)))
        states = states._replace(rated=rated)
    return _with_users(text, Fitted(head, dict(params), scale, own.context, adapters), votes, states, seed)


def _with_users(text: TextModel, fitted: Fitted, votes: Preferences, states: States, seed: int) -> HeadReward:
    """The model with everyone who gave votes: rows of training where the head has them, else by the users' votes."""
    head, seen, counts, width = fitted.head, votes.seen, given(votes), text.config.hidden_size
    ids, nothing = votes.users["user_id"].to_pylist(), np.zeros((0, 3, width), np.float32)
    members: dict[str, Member] = {}
    if head.has_table:
        rows = zip(np.flatnonzero(seen), np.asarray(fitted.params.pop("table")), strict=True)
        members = {ids[u]: Member(row, nothing, counts[ids[u]], True) for u, row in rows if ids[u] in counts}
    model = HeadReward(text=text, fitted=fitted, members=members)
    answers = contexts(votes.pairs(("train", "validation")), votes.num_users, fitted.context, seed)
    rated, asked = np.asarray(states.rated if head.has_table else states.features), np.zeros_like(states.features)
    if head.reads_prompt:
        asked = np.asarray(states.prompts)[np.asarray(states.prompt)]
    for user in (u for u, name in enumerate(ids) if name in counts and name not in members):
        chosen, rejected = (side[user, answers.mask[user]] for side in (answers.chosen, answers.rejected))
        context = np.stack([rated[chosen], rated[rejected], asked[chosen]], axis=1)
        model._members[ids[user]] = model._member(context, counts[ids[user]])
    return model
