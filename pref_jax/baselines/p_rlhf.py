"""P-RLHF: a user stands before each text as a soft prompt (Li et al., arXiv 2402.05133, sections 4 and 5).

    e_u = e_0 + o_u,    r_u(y) = v . LM([e_u; x; y]) + b

e_0 is S embeddings that stand for nobody in particular, o_u what a user adds to them. The published loss is
alpha times that under e_u plus (1 - alpha) times that under e_0; here each pair of a batch is read under e_0 with
probability 1 - alpha (`generic_share`) and under e_u else, which has the same mean at half the cost. Unseen users get
e_0: their answers are not read. Transformer, adapters, batches and steps are the shared reward's.

Axis letters: B rows, L length, S soft tokens, D features, U users.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from pref_jax import fitting
from pref_jax.baselines import on_transformer
from pref_jax.baselines.head_training import seen_rows
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.baselines.shared import (
    FitConfig,
    SharedConfig,
    SharedReward,
    based,
    given,
    init_adapters,
    read_config,
    read_params,
    refuse,
    vote_counts,
)
from pref_jax.comparisons import Votes
from pref_jax.data.preferences import Preferences
from pref_jax.fitting import default_training
from pref_jax.lm import backbone, lora
from pref_jax.lm.pair_batches import Texts, pair_margins
from pref_jax.lm.pairs import apply_head, init_head, pair_states, pairwise_loss, text_states
from pref_jax.lm.text_model import TextModel
from pref_jax.personal import Added, PersonalReward, Read, Saved, Scores
from pref_jax.train.state import LossFn


def init(
    config: SharedConfig, base: Mapping[str, Any], key: Key[Array, ""], *, soft_tokens: int, num_users: int
) -> dict[str, Any]:
    """{"adapters", "generic": [S D], "table": [U S*D], "head": {"w": [D], "b": []}}, float32.

    e_0 begins as the embeddings of random tokens, o_u as zeros.
    """
    lm = config.lm
    tokens_key, head_key = jax.random.split(key)
    ids = jax.random.randint(tokens_key, (1, soft_tokens), 0, lm.vocab_size)
    generic = backbone.hidden_states(lm, base, ids, jnp.ones((1, soft_tokens), bool), layer=0)[0]
    return {
        "adapters": init_adapters(config, key),
        "generic": generic.astype(jnp.float32),
        "table": jnp.zeros((num_users, soft_tokens * lm.hidden_size)),
        "head": init_head(lm, None, head_key),
    }


def soft_prompts(params: Mapping[str, Any], rows: Int[Array, " B"], known: Bool[Array, " B"]) -> Float[Array, "B S D"]:
    """e_0 + o_u of the users in these rows of the table where `known`, e_0 elsewhere."""
    own = params["table"][rows].reshape(len(rows), *params["generic"].shape)
    return params["generic"][None] + jnp.where(known[:, None, None], own, 0)


def make_loss(config: SharedConfig, generic_share: float) -> LossFn:
    """Bradley-Terry loss, for `pref_jax.train`.

    `frozen` is {"base", "number": int [U], each seen user's row of the table}; `batch` has "user" and the texts.
    """

    def loss(params, frozen, batch, key):
        choice, dropout = jax.random.split(key)
        rows = frozen["number"][batch["user"]]
        soft = soft_prompts(params, rows, ~jax.random.bernoulli(choice, generic_share, rows.shape))
        adapters, apply = lora.with_keys(params["adapters"], dropout), lora.adapter_fn(config.lora)
        states = pair_states(config.lm, frozen["base"], batch, adapters, apply, remat=config.remat, soft=soft)
        return pairwise_loss(apply_head(params["head"], states))

    return loss


@functools.partial(jax.jit, static_argnums=0)
def rewards(
    config: SharedConfig,
    params: Mapping[str, Any],
    base: Mapping[str, Any],
    tokens: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    route: Int[Array, " B"],
) -> Float[Array, " B"]:
    """Rewards of texts for the users in rows `route` - 1 of the table; 0 stands for everyone else."""
    soft, apply = soft_prompts(params, route - 1, route > 0), lora.adapter_fn(config.lora)
    return apply_head(params["head"], text_states(config.lm, base, tokens, mask, params["adapters"], apply, soft=soft))


def score_pairs(
    config: SharedConfig, params: Any, texts: Texts, pairs: Votes, seen: np.ndarray, *, batch_size: int = 0
) -> np.ndarray:
    """Margins float32 [P]; unseen users get the generic prompt."""
    route = np.where(seen, seen_rows(seen) + 1, 0)[pairs.user]
    read = functools.partial(rewards, config, params, texts.model.params)
    room = len(params["generic"])
    return pair_margins(texts, pairs, read, route=route, batch_size=batch_size, room=room)


class PRLHFReward(SharedReward):
    """P-RLHF behind the protocol: it keeps the soft prompt of each user met in training.

    Users who come later get the generic prompt, as the method has it: `add_votes` makes them known and changes no
    score, of them or of users met in training.
    """

    kind: ClassVar[str] = "p_rlhf"
    reads_with_user: ClassVar[bool] = True

    def __init__(self, *, rows: Mapping[str, np.ndarray], **rest: Any):
        super().__init__(**rest)
        # float32 [S*D], what each user met in training adds to the generic prompt.
        self._rows = dict(rows)

    def read(self, rows: Any) -> None:
        """None: a soft prompt stands before the text."""

    def rewards_of(self, users: Sequence[str | None], read: Any, *, uncertainty: bool = False) -> Scores:
        """Raises `UserError`, for the same reason."""
        return PersonalReward.rewards_of(self, users, read, uncertainty=uncertainty)

    def rewards(self, users: Sequence[str | None], rows: Any, *, uncertainty: bool = False) -> Scores:
        """Rewards behind each user's soft prompt; for None and later users behind the generic one."""
        refuse(self.kind, uncertainty=uncertainty)
        place = {name: number for number, name in enumerate(self._rows, start=1)}
        route = np.array([place.get(user or "", 0) for user in users], np.int32)
        read = functools.partial(rewards, self.config, {**self.params, "table": self._table()}, self.base.params)
        room = len(self.params["generic"])
        found = self.base.read_rows(self.base.tokenize(rows), read, route=route, room=room)[:, 0]
        return Scores(found, np.zeros_like(found))

    def _table(self) -> np.ndarray:
        """The users' rows and one of zeros, so that there is one."""
        return np.stack([*self._rows.values(), np.zeros(self.params["generic"].size, np.float32)])

    def add_votes(self, user: str, votes: Any, *, read: Read | None = None) -> Added:
        """Makes the user known; a soft prompt is learned in training alone."""
        how = "the soft prompt of training" if user in self._rows else "the generic soft prompt"
        return super().add_votes(user, votes, read=read)._replace(how=f"{how}: votes after training change nothing")

    def remove_user(self, user: str) -> None:
        """Removes id and soft prompt; what adapters and head learned in training stays in them."""
        super().remove_user(user)
        self._rows.pop(user, None)

    def snapshot_user(self, user: str) -> Any | None:
        """The number of votes and the soft prompt."""
        votes = super().snapshot_user(user)
        return None if votes is None else (votes, self._rows.get(user))

    def restore_user(self, user: str, snapshot: Any | None) -> None:
        """Sets both back; a soft prompt keeps its place in the table."""
        votes, row = snapshot or (None, None)
        super().restore_user(user, votes)
        if row is None:
            self._rows.pop(user, None)
        else:
            self._rows[user] = row

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int]]:
        """Adapters, head, generic prompt, and the users' rows."""
        model, tensors, votes = super().state()
        trained = np.array([name in self._rows for name in self.users], np.uint8)
        table = np.stack([self._rows[name] for name in self.users if name in self._rows] or [self._table()[-1]])
        return model | {"soft_tokens": len(self.params["generic"])}, {**tensors, "table": table, "of": trained}, votes

    @classmethod
    def restore(cls, saved: Saved) -> "PRLHFReward":
        """From a saved folder."""
        text, tensors = based(saved), dict(saved.tensors)
        config, trained = read_config(saved.model, text.config), tensors.pop("of").astype(bool)
        sizes = {"soft_tokens": saved.model["soft_tokens"], "num_users": max(1, int(trained.sum()))}
        shapes = jax.eval_shape(functools.partial(init, config, text.params, **sizes), jax.random.key(0))
        params = read_params(tensors, shapes, text, str(saved.folder))
        table = np.asarray(params.pop("table"))
        rows = dict(zip(np.array(saved.users, object)[trained], table, strict=False))
        return cls(rows=rows, text=text, config=config, params=params, votes=vote_counts(saved))


def fit(
    votes: Any,
    *,
    base: str | None = None,
    text: TextModel | None = None,
    config: FitConfig | None = None,
    sizes: BaselinesConfig | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    **options: Any,
) -> PRLHFReward:
    """Fits P-RLHF to the seen users' votes; `sizes` has `soft_tokens`, the rest is as for `pref_jax.fitting.fit`.

    Example:
      model = pref_jax.baselines.p_rlhf.fit("votes.jsonl", base="Qwen/Qwen3-0.6B")
    """
    chosen = (config or FitConfig(), sizes or BaselinesConfig())

    def make(tables: Preferences, texts: Texts, folder: Path) -> PRLHFReward:
        (own, sizes), learn, seen = chosen, tables.pairs(("train", "validation"), seen=True), tables.seen
        text = texts.model
        model = own.model(text.config)
        numbers = {"soft_tokens": sizes.soft_tokens, "num_users": int(seen.sum())}
        start = init(model, text.params, jax.random.key(seed), **numbers)
        frozen = {"base": text.params, "number": jnp.asarray(seen_rows(seen))}
        training, loss = own.training or default_training(len(learn.user)), make_loss(model, sizes.generic_share)
        place = {"folder": folder / "training", "seed": seed}
        params = dict(on_transformer.fit_users(start, frozen, loss, texts, learn, training, sizes, **place).params)
        ids = tables.users["user_id"].to_pylist()
        rows = {ids[u]: row for u, row in zip(np.flatnonzero(seen), np.asarray(params.pop("table")), strict=True)}
        return PRLHFReward(rows=rows, text=text, config=model, params=params, votes=given(tables))

    how: dict[str, Any] = {"base": base, "text": text, "seed": seed, "workdir": workdir, "options": options}
    return fitting.fit(PRLHFReward, make, votes, config=chosen, **how)
