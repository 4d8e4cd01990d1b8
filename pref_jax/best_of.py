"""Best of n: of several answers the one with the highest reward for a user.

Axis letters: N answers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pref_jax.errors import UserError
from pref_jax.lm.next_token import SamplingConfig
from pref_jax.lm.policy import Policy, open_policy
from pref_jax.lm.text_model import Prompt, TextModel


class BestOf(NamedTuple):
    """The best of several answers.

    Attributes:
      text: of the highest reward; of several such the first.
      reward: its reward.
      candidates: all N answers.
      rewards: float32 [N], theirs.
    """

    text: str
    reward: float
    candidates: list[str]
    rewards: Float32[np.ndarray, " N"]


@runtime_checkable
class Scorer(Protocol):
    """What gives users' rewards: a `pref_jax.PersonalReward`."""

    text: TextModel | None

    def score(self, user: Any, prompt: Any, responses: Any) -> Any:
        """float32 [N]."""
        ...


def best_of(
    model: Scorer,
    user: str | None,
    prompt: Prompt,
    n: int,
    *,
    candidates: Sequence[str] | None,
    policy: str | TextModel | Policy | None,
    settings: SamplingConfig | None,
    seed: int,
) -> BestOf:
    """See `pref_jax.PersonalReward.best_of`."""
    if model.text is None:
        raise UserError("best_of: this model scores features, not texts; take the highest of model.score")
    if candidates is None:
        candidates = sampled(policy or model.text, [prompt], n, settings=settings, seed=seed)[0]
    elif policy is not None:
        raise UserError("best_of: candidates and policy; give one of them")
    return pick(candidates, model.score(user, prompt, list(candidates)))


def sampled(
    policy: str | TextModel | Policy | None,
    prompts: Sequence[Prompt],
    n: int,
    *,
    settings: SamplingConfig | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """n answers of a policy to each prompt, without those that are empty.

    Raises:
      UserError: without a policy; if nothing but empty answers came for a prompt.
    """
    if policy is None:
        raise UserError("best_of: nothing writes answers; name a causal language model as policy, or give candidates")
    found = open_policy(policy).sample(prompts, n, settings=settings, seed=seed)
    texts = [[answer.text for answer in answers if answer.text] for answers in found]
    if empty := [row for row, own in enumerate(texts) if not own]:
        raise UserError(
            f"prompt {empty[0]}: all {n} answers of the policy are empty; check that it is a chat model, or raise "
            "max_new_tokens"
        )
    return texts


def pick(candidates: Sequence[str], rewards: Float32[np.ndarray, " N"]) -> BestOf:
    """The best by given rewards.

    Raises:
      UserError: if there are no candidates.

    Example:
      >>> pick(["It depends.", "Seven minutes."], np.array([0.5, 2.0], np.float32)).text
      'Seven minutes.'
    """
    if not len(candidates):
        raise UserError("best_of: no candidates; give at least one text")
    best = int(np.argmax(rewards))
    return BestOf(candidates[best], float(rewards[best]), list(candidates), rewards)
