"""What the reward functions of all trainers share: users, prompts and answers in, numbers in the right unit out.

Axis letters: N answers, K basis rewards.
"""

import collections
import dataclasses
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from pref_jax.data.messages import content_of, joined
from pref_jax.errors import UserError
from pref_jax.integrations.alarm import ConstantAlarm
from pref_jax.integrations.backends import Backend, Found, Row, open_backend
from pref_jax.integrations.reference import Reference
from pref_jax.personal import Components
from pref_jax.progress import log

UNKNOWN = ("shared", "error")
# Stands for an answer without a word, which models and service refuse to read.
EMPTY = "?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How rewards are made; `reward_function` of every trainer takes these by name.

    Attributes:
      user_column: where a row names its user: a column of the data set, or a field of verl's `extra_info` or of
        OpenRLHF's label.
      unknown: what those get whom the model does not know: "shared", the reward of nobody in particular, or "error".
        Rows that name nobody get the shared reward and are counted either way.
      reference: responses over which a user's reward has its centre and spread, see `reference.Reference`; votes in any
        form, such as the file that the model was fitted to, or pairs of prompt and response.
      centre: take each user's mean over the reference off their rewards.
      scale: divide each user's rewards by their standard deviation over the reference.
      vector: see the trainer; in process alone, and for methods with basis rewards, such as LoRe.
      uncertainty: also tell the posterior standard deviation of each reward, in its unit.
      empty: what an answer without a word is worth, which no model has read in training.
      clean: from a completion to the text that is scored, such as one that drops what was thought before the answer.
      api_key, timeout, tries, concurrency: of the service, see `service.Service`.
    """

    user_column: str = "user"
    unknown: str = "shared"
    reference: Any = None
    centre: bool = False
    scale: bool = False
    vector: bool = False
    uncertainty: bool = False
    empty: float = -5.0
    clean: Callable[[str], str] | None = None
    api_key: str = dataclasses.field(default="", repr=False)
    timeout: float = 60.0
    tries: int = 5
    concurrency: int = 8

    def __post_init__(self):
        if self.unknown not in UNKNOWN:
            raise UserError(f"unknown is {self.unknown!r}; give one of {', '.join(UNKNOWN)}")
        if (self.centre or self.scale) and self.reference is None:
            raise UserError(
                "centre and scale need reference=, the responses over which they are taken, such as the votes that the "
                "model was fitted to; what is generated would not do, as it depends on the policy and on the order"
            )


class Scored(NamedTuple):
    """Rewards of N answers.

    Attributes:
      reward: float64 [N].
      deviation: float64 [N], posterior standard deviations; 0 for empty answers, and where they were not asked for.
      shared: bool [N], who got the reward of nobody in particular, as no user is named or the model does not know them.
      empty: bool [N], answers without a word.
      components: with `vector`; the basis rewards of an empty answer make up what it is worth.
    """

    reward: Float[np.ndarray, " N"]
    deviation: Float[np.ndarray, " N"]
    shared: Bool[np.ndarray, " N"]
    empty: Bool[np.ndarray, " N"]
    components: Components | None


class Scorer:
    """Rewards of answers for their users; many threads may call it.

    Args:
      source: a model, the folder of a saved one, or a service's URL.
      options: see `Options`.

    Attributes:
      counts: answers so far, and among them "missing_user", "unknown_user" and "empty".
      alarm: whether rewards turned out to be constant.

    Example:
      scorer = Scorer(model, Options(reference="votes.jsonl", centre=True))
      scorer(["ada"], ["How long?"], ["Seven minutes."]).reward
    """

    def __init__(self, source: Any, options: Options):
        service = ("api_key", "timeout", "tries", "concurrency")
        self.options, self._source = options, source
        self._backend: Backend = open_backend(source, {name: getattr(options, name) for name in service})
        self._reference = None if options.reference is None else Reference(options.reference)
        self.counts: collections.Counter[str] = collections.Counter()
        self.alarm = ConstantAlarm()
        self._lock, self._told = threading.Lock(), False

    def __reduce__(self):
        if not isinstance(self._source, str | Path):
            raise TypeError("a reward function of a model in memory stays in its process; give the model's folder")
        return Scorer, (self._source, self.options)

    def __call__(self, users: Sequence[Any], prompts: Sequence[Any], answers: Sequence[str]) -> Scored:
        """Rewards of answers, each to its prompt (text or chat messages), for its user.

        Raises:
          UserError: for unknown users where they are an error, or rows that cannot be scored; a `ServiceError` if the
            service fails.
        """
        clean = self.options.clean or (lambda text: text)
        rows = [
            Row(user_id(user), prompt, clean(text)) for user, prompt, text in zip(users, prompts, answers, strict=True)
        ]
        empty = np.array([not row.answer.strip() for row in rows], bool)
        # Another word stands for an empty answer, by which it is told whether its user is known.
        found = self._backend.score(
            [row._replace(answer=EMPTY) if none else row for row, none in zip(rows, empty, strict=True)],
            uncertainty=self.options.uncertainty,
            unknown=self.options.unknown,
            vector=self.options.vector,
        )
        if self.options.vector and rows and found.components is None:
            raise UserError("vector: this method has no basis rewards; leave vector out, or fit LoRe")
        missing = np.array([row.user is None for row in rows], bool)
        shared = missing | ~found.known
        self._note(missing, shared & ~missing, empty)
        centre, spread = self._unit([None if nobody else row.user for row, nobody in zip(rows, shared, strict=True)])
        reward = np.where(empty, self.options.empty, (found.reward - centre) / spread)
        self.alarm.watch([row.user for row in rows], answers, reward)
        deviation = np.where(empty, 0, found.deviation / spread)
        return Scored(reward, deviation, shared, empty, self._components(found, empty))

    def _unit(self, users: Sequence[str | None]) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """What is taken off each reward, and what it is then divided by."""
        centre, spread = np.zeros(len(users)), np.ones(len(users))
        if self._reference is None:
            return centre, spread
        units = {user: self._reference.of(user, self._backend) for user in set(users)}
        if self.options.centre:
            centre = np.array([units[user].centre for user in users])
        if self.options.scale:
            spread = np.array([units[user].spread for user in users])
        return centre, spread

    def _components(self, found: Found, empty: Bool[np.ndarray, " N"]) -> Components | None:
        if found.components is None:
            return None
        weights, basis = (leaf.astype(np.float64) for leaf in found.components)
        length = np.maximum((weights**2).sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return Components(weights, np.where(empty[:, None], self.options.empty * weights / length, basis))

    def _note(self, missing: np.ndarray, unknown: np.ndarray, empty: np.ndarray) -> None:
        names = {"answers": np.ones_like(missing), "missing_user": missing, "unknown_user": unknown, "empty": empty}
        with self._lock:
            self.counts.update({name: int(rows.sum()) for name, rows in names.items()})
            told, self._told = self._told, self._told or bool((missing | unknown).any())
        if self._told and not told:
            log(
                f"warning: {int(missing.sum())} answers without a user (column {self.options.user_column!r}) and "
                f"{int(unknown.sum())} of users that the model does not know get the reward of nobody in particular; "
                "the function's counts say how many in all"
            )


def user_id(value: Any) -> str | None:
    """A user's id of what a data set holds: a text, or a whole number; None where it holds nothing.

    Raises:
      UserError: for anything else.

    Example:
      >>> user_id("ada"), user_id(7), user_id(""), user_id(float("nan"))
      ('ada', '7', None, None)
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return str(value) if value.strip() else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"user: is of type {type(value).__name__}; give ids as strings")


def as_prompt(value: Any) -> Any:
    """A prompt as trainers hold it, as text or plain chat messages: tables make arrays of lists."""
    if isinstance(value, np.ndarray | tuple):
        value = list(value)
    return (
        [dict(message) if isinstance(message, Mapping) else message for message in value]
        if isinstance(value, list)
        else value
    )


def dialogue(prompt: Any, completion: Any) -> tuple[Any, str]:
    """The prompt and the answer of a completion that is a text or chat messages.

    Of several messages (tools were called) the last is the answer, and those before it belong to the prompt; where the
    last one is not the assistant's, there is no answer.

    Example:
      >>> dialogue("How long?", [{"role": "assistant", "content": "Seven minutes."}])
      ('How long?', 'Seven minutes.')
    """
    prompt = as_prompt(prompt)
    if isinstance(completion, str):
        return prompt, completion
    messages = list(completion)
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        return prompt, ""
    content = content_of(last)
    text = joined(content) if isinstance(content, list) else content
    if len(messages) > 1:
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        prompt = [*before, *messages[:-1]]
    return prompt, text or ""


def new_scorer(source: Any, options: Mapping[str, Any]) -> Scorer:
    """A scorer of options by name.

    Raises:
      UserError: for an unknown option.
    """
    known = [field.name for field in dataclasses.fields(Options)]
    if unknown := sorted(options.keys() - set(known)):
        raise UserError(f"reward_function: no option {', '.join(unknown)}; there are {', '.join(known)}")
    return Scorer(source, Options(**options))


def named(function: Any, name: str, scorer: Scorer) -> Any:
    """A reward function as if it stood in the module that made it, with `scorer`, and `counts` of what it saw.

    Trainers log it by its name; tunix takes the functions of a file by the module that they say they are of.
    """
    frame, package = inspect.currentframe(), __name__.partition(".")[0]
    # jaxtyping stands between where a test checks shapes.
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (package, "jaxtyping"):
        frame = frame.f_back
    module = "__main__" if frame is None else frame.f_globals.get("__name__", "__main__")
    function.__name__ = function.__qualname__ = name
    function.__module__ = module
    function.__dict__.update(scorer=scorer, counts=scorer.counts)
    return function
