"""Scores from the service by HTTP: time limits, new tries where one may help, a bounded number of requests at a time.

POST {url}/v1/score  {"user", "prompt", "responses", "uncertainty", "unknown": "shared"}
->  {"rewards": [...], "deviations": [...] with uncertainty, "known": false for a user unknown to the model}
"""

import concurrent.futures
import dataclasses
import functools
import http.client
import json
import math
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple

from pref_jax.data.messages import Chat
from pref_jax.errors import UserError

# Answers after which the same request may succeed.
PASSING = (408, 425, 429, 500, 502, 503, 504)
# Seconds to wait for the second try, and at most for any.
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
# Characters of a refusal that are told.
_TOLD = 300


class Ask(NamedTuple):
    """Answers to one prompt, to be scored for one user; None: nobody in particular."""

    user: str | None
    prompt: str | Chat
    answers: Sequence[str]


class Reply(NamedTuple):
    """Rewards of an `Ask`'s answers, their standard deviations (0 if not asked for), and whether the user is known."""

    rewards: list[float]
    deviations: list[float]
    known: bool


class ServiceError(UserError):
    """The service could not be reached, or did not answer as it should."""


class _PassingError(Exception):
    """A failure that may pass; `wait`: seconds that the service asks for."""

    def __init__(self, what: str, wait: float = 0.0):
        super().__init__(what)
        self.wait = wait


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """The scoring service at a URL; many threads may use it.

    Attributes:
      url: of the service, such as "http://localhost:8000".
      api_key: sent as a bearer token; empty: none.
      timeout: seconds that one try may take.
      tries: of a request, with growing pauses between them, before it has failed.
      concurrency: requests under way at a time.

    Example:
      Service(url="http://localhost:8000").score([Ask("ada", "How long?", ["Seven minutes."])])
    """

    url: str
    api_key: str = dataclasses.field(default="", repr=False)
    timeout: float = 60.0
    tries: int = 5
    concurrency: int = 8
    _places: threading.BoundedSemaphore = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.tries < 1 or self.concurrency < 1 or not self.timeout > 0:
            raise UserError("service: give a timeout above 0, at least 1 of tries, and a concurrency of at least 1")
        object.__setattr__(self, "_places", threading.BoundedSemaphore(self.concurrency))

    def score(self, asks: Sequence[Ask], *, uncertainty: bool = False, unknown: str = "shared") -> list[Reply]:
        """Replies in the order of the asks.

        Args:
          asks: each becomes one request.
          uncertainty: also ask for posterior standard deviations.
          unknown: "shared": a user unknown to the model gets the reward of nobody in particular; "error".

        Raises:
          ServiceError: if the service cannot be reached, refuses, or answers something else.
        """
        ask = functools.partial(self._ask, uncertainty=uncertainty, unknown=unknown)
        if len(asks) < 2:
            return [ask(one) for one in asks]
        with concurrent.futures.ThreadPoolExecutor(min(self.concurrency, len(asks))) as pool:
            return list(pool.map(ask, asks))

    def _ask(self, ask: Ask, *, uncertainty: bool, unknown: str) -> Reply:
        body = {"user": ask.user, "prompt": ask.prompt, "responses": list(ask.answers), "uncertainty": uncertainty}
        body |= {"unknown": unknown} if unknown == "shared" else {}
        return _reply(self.post("/v1/score", body), len(ask.answers), uncertainty)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON value that the service answers to a JSON body.

        Raises:
          ServiceError: see `score`.
        """
        for number in range(1, self.tries + 1):
            try:
                with self._places:
                    return self._try(path, body)
            except _PassingError as error:
                if number == self.tries:
                    many = f"in {self.tries} tries" if self.tries > 1 else "in one try"
                    raise ServiceError(
                        f"{self.url}{path}: no answer {many}, the last time: {error}; check that the service runs "
                        "(pref serve) and that its load is bearable, or give more tries or a longer timeout"
                    ) from None
                # At random, so that many clients do not come back in one moment.
                pause = FIRST_WAIT * 2 ** (number - 1) * random.uniform(0.75, 1.25)
                time.sleep(min(max(pause, error.wait), LONGEST_WAIT))
        raise AssertionError("the last try returns or raises")

    def _try(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        data = json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                if error.code in PASSING:
                    raise _PassingError(f"status {error.code}", _seconds(error.headers.get("Retry-After"))) from None
                told = error.read(1 << 16).decode("utf-8", "replace")[:_TOLD]
                fix = "check api_key" if error.code in (401, 403) else "check the request and the service's version"
                raise ServiceError(f"{self.url}{path}: refused with status {error.code}: {told}; {fix}") from None
        except ValueError:
            raise ServiceError(f"{self.url}{path}: the answer is no JSON; check that this is the service") from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _PassingError(str(reason) or type(reason).__name__) from None


def _seconds(header: str | None) -> float:
    """Of a Retry-After header; dates and nonsense are 0."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _reply(found: Any, count: int, uncertainty: bool) -> Reply:
    """A checked answer to `/v1/score`."""
    found = found if isinstance(found, dict) else {}
    rewards, deviations = found.get("rewards"), found.get("deviations") if uncertainty else [0.0] * count
    for name, values in (("rewards", rewards), ("deviations", deviations)):
        if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
            raise ServiceError(f"/v1/score: answered without {count} finite {name}; check the service's version")
    return Reply(rewards, deviations, found.get("shared") is not True)
