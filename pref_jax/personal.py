"""The protocol that every personalised reward meets, and the folder in which one is saved.

    reward.json          format, kind, versions, what the base is and how it renders, the method's own facts, digests
    parameters.safetensors   the method's arrays by name
    users.parquet        user_id, votes: who the model knows, in the order of its rows
    chat_template.jinja  only where the model was trained with a template of its own

`load` reads `kind` and hands the folder to the class that a package registers under that name in the entry point
group `pref_jax.rewards`, so that this package knows none of them.

Axis letters: N texts, U users, K basis rewards.
"""

import abc
import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy
from jaxtyping import Float, Float32, Float64, Int64

from pref_jax import compile_cache
from pref_jax.best_of import BestOf, best_of
from pref_jax.errors import UserError
from pref_jax.files import atomic_folder, write_json, write_tensors
from pref_jax.lm.next_token import SamplingConfig
from pref_jax.lm.policy import Policy
from pref_jax.lm.text_model import (
    PROBE,
    PROBE_TEXT,
    Prompt,
    TextModel,
    TextSettings,
    as_responses,
    differences,
    open_text,
)
from pref_jax.saved import ABOUT, FORMAT, TEMPLATE, TENSORS, USERS, about, check_file, check_target, digest
from pref_jax.version import __version__

GROUP = "pref_jax.rewards"
# What reads texts in place of `PersonalReward.read`, such as a cache before it.
Read = Callable[[pa.Table], np.ndarray]


class Scores(NamedTuple):
    """Rewards and how sure the model is of them.

    Attributes:
      mean: float32 [N].
      deviation: float32 [N], the posterior standard deviation of each reward; only differences of rewards are
        comparable, and a vote of one text against another has the logit of their difference.
    """

    mean: Float32[np.ndarray, " N"]
    deviation: Float32[np.ndarray, " N"]


class Components(NamedTuple):
    """Rewards as weights of users on basis rewards.

    Attributes:
      weights: float [N K], of each row's user.
      basis: float [N K], the K basis rewards of each text, in the same unit as rewards.
    """

    weights: Float[np.ndarray, "N K"]
    basis: Float[np.ndarray, "N K"]


class Added(NamedTuple):
    """What `add_votes` did: the user's number of votes now, and how their reward was found, in words."""

    user: str
    votes: int
    how: str


class Question(NamedTuple):
    """One pair to show a user next: its number among those given, and what its answer is expected to tell, in nats."""

    pair: int
    information: float


class Saved(NamedTuple):
    """A saved folder, read and checked.

    Attributes:
      folder: where.
      model: the method's own facts.
      tensors: its arrays.
      users: user ids in the order of the model's rows.
      text: the base, or None for models of features.
      votes: how many each user gave, int64 [U].
    """

    folder: Path
    model: dict[str, Any]
    tensors: dict[str, np.ndarray]
    users: list[str]
    text: TextModel | None
    votes: Int64[np.ndarray, " U"]


class PersonalReward(abc.ABC):
    """A reward that depends on its user: score, rank, learn from votes, forget, save.

    Attributes:
      kind: under which the class is registered, and which saved folders carry.
      reads_with_user: the method reads every text together with its user, and so has no `read`.
      text: the base that reads texts; None for models of features, which take features in place of texts.
    """

    kind: ClassVar[str]
    reads_with_user: ClassVar[bool] = False
    text: TextModel | None

    @property
    @abc.abstractmethod
    def users(self) -> list[str]:
        """Ids of the users that the model knows."""

    def knows(self, user: str) -> bool:
        """Whether the model knows a user; methods of many users have a faster one."""
        return user in self.users

    def add_many(self, votes: Any) -> list[Added]:
        """`add_votes` of several users, each row (a dict) naming its own; some methods do it in one go."""
        own: dict[str, list[Any]] = {}
        for row in votes:
            own.setdefault(row["user"], []).append(row)
        return [self.add_votes(user, rows) for user, rows in own.items()]

    def rewards(self, users: Sequence[str | None], rows: Any, *, uncertainty: bool) -> Scores:
        """Rewards of texts, each for its user; None: nobody's.

        Methods that read every text together with its user, and so have no `read`, define this one.

        Args:
          users: N ids.
          rows: a table of N responses, their tokens (`TokenTable`), or features [N D].
          uncertainty: also the deviations, which without it may be anything.
        """
        return self.rewards_of(users, self._must_read(rows), uncertainty=uncertainty)

    @property
    def reads_tokens(self) -> bool:
        """Whether `read` and `rewards` take tokens in place of texts."""
        return self.text is not None

    def read(self, rows: Any) -> Float[np.ndarray, "N F"] | None:
        """What the rewards of texts are made of whoever the user is: a row a text, which a service may keep.

        Args:
          rows: as of `rewards`.

        Returns:
          float [N F]; None where the method reads every text together with its user.
        """
        del rows
        return None

    def rewards_of(self, users: Sequence[str | None], read: Float[np.ndarray, "N F"], *, uncertainty: bool) -> Scores:
        """`rewards` from rows of `read`, to the bit."""
        raise UserError(f"a model of kind {self.kind} reads each text together with its user; call rewards")

    def _must_read(self, rows: Any) -> Float[np.ndarray, "N F"]:
        found = self.read(rows)
        assert found is not None, f"{type(self).__name__} defines neither rewards nor read"
        return found

    @abc.abstractmethod
    def add_votes(self, user: str, votes: Any, *, read: Read | None = None) -> Added:
        """Learns from more votes of a user, new or known; nothing is trained.

        Args:
          user: whose votes.
          votes: see `read_votes`; their own `user` fields may be left out, and must name `user` if given.
          read: gives rows of `read` in its place, to the bit.

        Raises:
          UserError: for votes that cannot be read, or are of someone else.
        """

    @abc.abstractmethod
    def remove_user(self, user: str) -> None:
        """Removes what the model keeps of a user, from memory and so from what is saved next.

        Raises:
          UserError: if the user is not known.
        """

    def snapshot_user(self, user: str) -> Any | None:
        """What the model keeps of a user, for `restore_user`; None of a user it does not know.

        Raises:
          UserError: for methods that define neither, which can be saved and scored, but not be served.
        """
        raise UserError(f"a model of kind {self.kind!r} cannot take votes back; serve a model of another method")

    def restore_user(self, user: str, snapshot: Any | None) -> None:
        """Sets back what the model keeps of a user, to the bit; None: the model knows the user no longer.

        After it, votes teach as they did when the snapshot was taken. A snapshot is good until someone is removed.

        Raises:
          UserError: as `snapshot_user`.
        """
        raise UserError(f"a model of kind {self.kind!r} cannot take votes back; serve a model of another method")

    def describe_user(self, user: str) -> dict[str, Any]:
        """What the model believes of a user, as JSON values; which these are depends on the method.

        Raises:
          UserError: if the user is not known.
        """
        self._check_users([user])
        return {}

    def select_pairs(
        self,
        user: str | None,
        first: Float[np.ndarray, "P F"],
        second: Float[np.ndarray, "P F"],
        count: int,
    ) -> list[Question] | None:
        """The pairs whose answers are expected to say most about a user, best first.

        Args:
          user: an id, or None for someone of whom nothing is known.
          first: rows of `read` of each pair's first response.
          second: of its second.
          count: how many; fewer come back if there are fewer pairs.

        Returns:
          None if the method cannot tell, as it has no posterior.
        """
        del user, first, second, count
        return None

    def margin_deviations(
        self, user: str | None, first: Float[np.ndarray, "P F"], second: Float[np.ndarray, "P F"]
    ) -> Float64[np.ndarray, " P"] | None:
        """Posterior standard deviations of differences of rewards.

        Args:
          user: an id, or None for someone of whom nothing is known.
          first: rows of `read` of each pair's first response.
          second: of its second.

        Returns:
          float64 [P]; None if the method cannot tell, as it has no posterior.
        """
        del user, first, second
        return None

    @abc.abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int]]:
        """What a saved folder holds: facts as JSON values, arrays, and each user's number of votes."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, saved: Saved) -> "PersonalReward":
        """The model of a saved folder."""

    @overload
    def score(
        self, user: Any, prompt: Any, responses: Any, *, uncertainty: Literal[False] = False
    ) -> Float32[np.ndarray, " N"]: ...
    @overload
    def score(self, user: Any, prompt: Any, responses: Any, *, uncertainty: Literal[True]) -> Scores: ...
    def score(
        self, user: Any, prompt: Any, responses: Any, *, uncertainty: bool = False
    ) -> Float32[np.ndarray, " N"] | Scores:
        """Rewards of responses for a user.

        Args:
          user: an id, or None for someone of whom nothing is known; or a list, one for each response.
          prompt: a string, or a list of chat messages {role, content}; with a list of users a list of such.
          responses: N texts (for models of features: features [N D], and `prompt` is not read).
          uncertainty: also return posterior standard deviations, where the method has them.

        Returns:
          float32 [N]; `Scores` with `uncertainty`.

        Raises:
          UserError: for unknown users, empty texts, numbers that differ, or uncertainty where there is none.

        Example:
          model.score("ada", "How long?", ["Seven minutes.", "It depends."])
          model.score(["ada", "bo"], ["How long?", "Why?"], ["Seven minutes.", "Because."])
        """
        if isinstance(responses, str):
            raise UserError("responses: is one string; give a list of texts")
        several = isinstance(user, list | tuple)
        users = list(user) if several else [user] * len(responses)
        if len(users) != len(responses):
            raise UserError(f"{len(users)} users for {len(responses)} responses; give one user for each response")
        self._check_users(users)
        rows: Any = np.asarray(responses, np.float32)[: len(users)] if self.text is None else None
        if rows is None:
            rows = as_responses(list(prompt) if several else [prompt] * len(responses), list(responses))
        found = self.rewards(users, rows, uncertainty=uncertainty)
        return found if uncertainty else found.mean

    def rank(self, user: str | None, prompt: Prompt | None, responses: Any) -> list[int]:
        """Numbers of the responses, the user's best first; ties keep the order given.

        Example:
          model.rank("ada", "How long?", ["It depends.", "Seven minutes."])  # [1, 0]
        """
        return np.argsort(-np.asarray(self.score(user, prompt, responses)), kind="stable").tolist()

    def best_of(
        self,
        user: str | None,
        prompt: Prompt,
        n: int = 16,
        *,
        candidates: Sequence[str] | None = None,
        policy: str | TextModel | Policy | None = None,
        settings: SamplingConfig | None = None,
        seed: int = 0,
    ) -> BestOf:
        """The best of several answers for a user: of given ones, or of n that a policy writes.

        Args:
          user: an id, or None for nobody in particular.
          prompt: as for `score`.
          n: how many answers are sampled; not read with `candidates`.
          candidates: the answers.
          policy: what writes them: the name of a causal language model, or one that is open; None: the base.
          settings: a `pref_jax.SamplingConfig`.
          seed: of the samples; equal calls give equal ones.

        Raises:
          UserError: for models of features, a policy that writes no texts, no candidates, or both.

        Example:
          model.best_of("ada", "How long?", candidates=["It depends.", "Seven minutes."]).text
          model.best_of("ada", "How long?", 16, policy="Qwen/Qwen3-0.6B").rewards
        """
        options = {"candidates": candidates, "policy": policy, "settings": settings, "seed": seed}
        return best_of(self, user, prompt, n, **options)

    def _check_users(self, users: Sequence[str | None]) -> None:
        unknown = [user for user in dict.fromkeys(users) if user is not None and not self.knows(user)]
        if unknown:
            known = self.users
            some = ", ".join(map(repr, known[:3])) or "none"
            raise UserError(
                f"user {', '.join(map(repr, unknown[:3]))} is not known ({len(known)} users are, such as {some}); "
                "call add_votes first, or score with user=None for the reward of nobody in particular"
            )

    def save(self, folder: str | Path) -> Path:
        """Writes the folder, in place of an earlier model there; if killed, it is whole or absent.

        Before it takes its place it is loaded again and scores fixed dialogues: equal to the bit, or nothing is left.

        Raises:
          UserError: if `folder` holds something other than a saved model, or the check fails.
        """
        folder = Path(folder)
        check_target(folder)
        model, tensors, votes = self.state()
        with atomic_folder(folder) as part:
            _write(part, self.kind, self.text, model, tensors, self.users, votes)
            again = self.restore(read(part, text=self.text))
            some: list[str | None] = [None, *self.users[:2], *self.users[-1:]]
            for ours, theirs in zip(self._probe(some), again._probe(some), strict=True):
                if ours.tobytes() != theirs.tobytes():
                    raise UserError(f"{folder}: the saved model scores differently ({ours} and {theirs}); not saved")
        return folder

    def _probe(self, users: Sequence[str | None]) -> list[np.ndarray]:
        """Rewards of fixed texts for some users."""
        if self.text is None:
            width = self.state()[0]["features"]
            rows: Any = np.linspace(-1, 1, 2 * width, dtype=np.float32).reshape(2, width)
        else:
            rows = as_responses(list(PROBE), [PROBE_TEXT, PROBE_TEXT])
        return [self.rewards([user, user], rows, uncertainty=False).mean for user in users]

    def components(self, users: Sequence[str | None], rows: Any) -> Components | None:
        """What rewards are made of, where each is a user's weights times basis rewards that all users share.

        Args:
          users: N ids; None: nobody's weights.
          rows: N texts or features, as `rewards` takes them.

        Returns:
          `Components`, of which (weights * basis).sum(1) are the rewards; None where the method has none.
        """
        del users, rows
        return None


def _write(
    folder: Path,
    kind: str,
    text: TextModel | None,
    model: dict[str, Any],
    tensors: Mapping[str, np.ndarray],
    users: Sequence[str],
    votes: Sequence[int],
) -> None:
    whole = {name: np.asarray(leaf, order="C") for name, leaf in tensors.items()}
    write_tensors(folder / TENSORS, whole)
    table = pa.table({"user_id": pa.array(list(users), pa.string()), "votes": pa.array(list(votes), pa.int64())})
    pq.write_table(table, folder / USERS)
    if text is not None and text.settings.chat_template:
        (folder / TEMPLATE).write_text(str(text.tokenizer.chat_template), encoding="utf-8")
    about = {
        "format": FORMAT,
        "kind": kind,
        "versions": {"pref_jax": __version__, "python": platform.python_version(), **_versions()},
        "base": None if text is None else text.about(),
        "model": model,
        "sha256": {name: digest(folder / name) for name in (TENSORS, USERS)},
    }
    write_json(folder / ABOUT, about)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "transformers", "tokenizers")}


def read(folder: str | Path, *, base: str | None = None, text: TextModel | None = None, **options: Any) -> Saved:
    """Reads and checks a saved folder.

    Args:
      folder: where `save` wrote.
      base: where the base lies now, if it has moved; it must be the same to the bit.
      text: the base, already opened.
      **options: of `open_text`: `mesh` and `batch_size` change no score; those that would are refused.

    Raises:
      UserError: for files that are missing, truncated or changed, and for a base, a tokenizer or a template that would
        change a score.
    """
    compile_cache.enable()
    folder, found = Path(folder), about(folder)
    for name, saved in found["sha256"].items():
        check_file(folder, name, saved)
    if found["base"] is not None:
        text = text or _open_base(folder, found["base"], base, options)
        check_base(folder, found["base"], text)
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    users = pq.read_table(folder / USERS)
    votes = users["votes"].to_numpy()
    return Saved(folder, found["model"], tensors, users["user_id"].to_pylist(), text, votes)


def _open_base(folder: Path, saved: dict[str, Any], base: str | None, options: dict[str, Any]) -> TextModel:
    fields = {field.name: saved["settings"][field.name] for field in dataclasses.fields(TextSettings)}
    template = folder / TEMPLATE
    fields["chat_template"] = str(template) if template.is_file() else ""
    revision = None if base is not None else saved["revision"]
    return open_text(base or saved["name"], **{"revision": revision, **fields, **options})


def check_base(folder: Path, saved: dict[str, Any], text: TextModel) -> None:
    """Compares a saved model's base with the one at hand.

    Raises:
      UserError: naming everything that would change a score.
    """
    wrong = differences(saved, text.about())
    if wrong:
        lines = "\n".join(f"  {field}: saved {ours!r:.80}, here {theirs!r:.80}" for field, ours, theirs in wrong)
        raise UserError(
            f"{folder}: {text.name} is not the base that this model was made with, and would change its scores:\n"
            f"{lines}\nname the right base with base=, or train the model again"
        )


def load(folder: str | Path, *, base: str | None = None, **options: Any) -> PersonalReward:
    """Opens a saved personalised reward of any method.

    Args:
      folder: where `save` wrote.
      base: where the base lies now, if it has moved.
      **options: of `open_text`, such as `mesh` and `batch_size`, which change no score.

    Raises:
      UserError: as `read`; or if no installed package knows the kind.

    Example:
      model = pref_jax.load("mine")
    """
    kind = about(folder)["kind"]
    known = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if kind not in known:
        raise UserError(f"{folder}: a model of kind {kind!r}, and installed packages know {sorted(known)}; install it")
    return known[kind].load().restore(read(folder, base=base, **options))
