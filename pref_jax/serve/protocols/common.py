"""What the protocols of others share: nobody's reward for unknown users, who are counted and told in a header."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from pref_jax.serve.api import need_short
from pref_jax.serve.faults import RefusedError
from pref_jax.serve.http import Call
from pref_jax.serve.schemas import Id
from pref_jax.serve.service import Scored
from pref_jax.serve.texts import Text, texts_of

# How many texts were scored for nobody in particular, as their user was not known.
UNKNOWN = "x-pref-unknown-users"


class Lenient(BaseModel):
    """A request of somebody else's protocol, whose further fields are let pass as there."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Named(Lenient):
    """A request that names its model and its user."""

    model: str | None = None
    user: Id | None = None


def need_model(call: Call, name: str | None) -> None:
    """Raises `RefusedError` for a model that is not served."""
    if name is not None and name != call.front.name:
        raise RefusedError(404, f"no such model; this service has {call.front.name!r} alone", where="model")


async def score(call: Call, users: Sequence[str | None], texts: Sequence[Text]) -> tuple[Scored, dict[str, str]]:
    """Scores, and the headers that tell of unknown users. Whom the client may not touch is not known to it."""
    known = [user if user is None or call.client.may_touch(user) else None for user in users]
    found = await call.front.service.score(known, texts, shared=True)
    hidden = [mine is None and user is not None for mine, user in zip(known, users, strict=True)]
    unknown = [a or b for a, b in zip(found.unknown, hidden, strict=True)]
    call.front.service.metrics.unknown_users.inc(sum(hidden))
    return found._replace(unknown=unknown), {UNKNOWN: str(sum(unknown))}


def answers(call: Call, prompt: Any, responses: Sequence[str]) -> list[Text]:
    """Responses under one prompt."""
    need_short(call.front.service.limits, prompt, responses)
    return texts_of([prompt] * len(responses), responses)


def need_few(call: Call, strings: Sequence[str]) -> None:
    """Raises `RefusedError` for too many or too long strings."""
    if not strings:
        raise RefusedError(400, "there is no text; send at least one")
    need_short(call.front.service.limits, "", strings)
