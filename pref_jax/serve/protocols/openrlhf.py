"""OpenRLHF's remote reward model: POST /get_reward, with the user in `labels`.

A label is a user's id, or an object with `user`; anything else is nobody in particular. A query is a dialogue as the
policy's template rendered it, its prompt of `prompts` with it: the model's own template reads it back where it can
(`pref_jax.serve.rendered`), an encoder is given prompt and the rest, and else the query is read as it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel
from scipy.special import expit

from pref_jax.json_fields import decimals
from pref_jax.serve.faults import RefusedError
from pref_jax.serve.http import Call, Reply, Route
from pref_jax.serve.protocols.common import Lenient, answers, need_few, score
from pref_jax.serve.texts import Text


class RewardBody(Lenient):
    """Queries, their prompts, and labels of any kind, one for each."""

    query: list[str]
    prompts: list[str] | None = None
    labels: list[Any] | None = None


class RewardAnswer(BaseModel):
    """Rewards; scores are what the logistic function makes of them, for filters that want numbers from 0 to 1."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def user_of(label: Any) -> str | None:
    """The user whom a label names.

    Example:
      >>> user_of("ada"), user_of({"user": "bo"}), user_of(3)
      ('ada', 'bo', None)
    """
    user = label.get("user") if isinstance(label, dict) else label
    return user if isinstance(user, str) and 0 < len(user) <= 256 and user.isprintable() else None


async def get_reward(call: Call) -> Reply:
    """A reward for each query."""
    body: RewardBody = call.body
    count = len(body.query)
    for name in ("prompts", "labels"):
        given = getattr(body, name)
        if given is not None and len(given) != count:
            raise RefusedError(400, f"{len(given)} {name} for {count} queries; send one for each", where=name)
    need_few(call, body.query)
    texts = await _texts(call, body.query, body.prompts)
    users = [user_of(label) for label in body.labels or [None] * count]
    found, headers = await score(call, users, texts)
    rewards = decimals(found.rewards)
    logs = {
        "unknown_user": [float(unknown) for unknown in found.unknown],
        "truncated": [float(read.truncated) for read in found.read],
    }
    scores = expit(np.array(rewards)).tolist()
    return Reply({"rewards": rewards, "scores": scores, "extra_logs": logs}, headers)


async def _texts(call: Call, queries: Sequence[str], prompts: Sequence[str] | None) -> list[Text]:
    service = call.front.service
    if service.text.config.traits.causal or prompts is None:
        return await service.reader.rendered(queries, special=False)
    found = []
    for query, prompt in zip(queries, prompts, strict=True):
        rest = query.removeprefix(prompt)
        if rest != query and rest.strip() and prompt.strip():
            found += answers(call, prompt, [rest])
        else:
            found += await service.reader.rendered([query], special=False)
    return found


ROUTES = (Route("POST", "/get_reward", get_reward, "OpenRLHF's rewards", RewardAnswer, "score", RewardBody, None, 400),)
