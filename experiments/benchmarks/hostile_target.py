"""A service that gets hostile requests, and a judge of what comes back."""

import time
from collections import Counter
from typing import Any

import httpx

SECRET = "a text that somebody else voted on"
VICTIM = "victim"
AS_JSON = {"content-type": "application/json"}


class Target:
    """A service; sends requests to it and judges what comes back.

    Attributes:
      statuses: of answers, by kind and status; status 0 is a connection that the service closed without an answer.
      faults: what must not happen, by what it is: "server_fault" (5xx), "stranger" (a text of somebody else),
        "traceback", "shape" (no error as the service writes them), "undocumented" (not as the OpenAPI document says),
        "reached" (what a key has no right to), "unanswered", "hung" (a slow client who is not cut off).
      slowest: seconds of the answer that took longest.
    """

    def __init__(self, client: Any, *, key: str | None = None, stop: bool = False):
        """A target.

        Args:
          client: of httpx, or of Starlette for its tests.
          key: that is sent where a request names none; it may see the victim's votes under the victim's own paths.
          stop: raise at the first fault.
        """
        self.client, self.stop = client, stop
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.faults: Counter[str] = Counter()
        self.slowest = 0.0

    def send(
        self, kind: str, method: str, path: str, body: bytes | None = None, **options: Any
    ) -> httpx.Response | None:
        """Sends a request and judges the answer; None if it could not be sent, or was not answered.

        Args:
          kind: of request.
          method, path: of the request; the path as it goes over the wire.
          body: of the request, of the type JSON.
          **options: `headers` in place of the key and the type; `params` of the address.
        """
        headers = options.pop("headers", self.headers | (AS_JSON if body is not None else {}))
        try:
            request = self.client.build_request(method, path, content=body, headers=headers, **options)
        except (httpx.InvalidURL, ValueError):
            return None
        start = time.perf_counter()
        try:
            answer = self.client.send(request)
        except httpx.LocalProtocolError:
            # The client itself does not send it.
            return None
        except httpx.TransportError as error:
            self.count(kind, 0)
            self.fault("unanswered", f"{method} {path}: {error!r}")
            return None
        self.slowest = max(self.slowest, time.perf_counter() - start)
        self.count(kind, answer.status_code)
        self._judge(path, answer)
        return answer

    def count(self, kind: str, status: int) -> None:
        """Counts an answer."""
        self.statuses[kind, status] += 1

    def fault(self, what: str, told: object) -> None:
        """Counts what must not happen."""
        self.faults[what] += 1
        if self.stop:
            raise AssertionError(f"{what}: {told}")

    def _judge(self, path: str, answer: httpx.Response) -> None:
        said = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:500]}"
        if answer.status_code >= 500:
            self.fault("server_fault", said)
        if "Traceback" in answer.text:
            self.fault("traceback", said)
        if SECRET in answer.text and VICTIM not in path:
            self.fault("stranger", said)
        if answer.status_code >= 400 and answer.request.method != "HEAD" and not _is_error(answer):
            self.fault("shape", said)


def _is_error(answer: httpx.Response) -> bool:
    try:
        return set(answer.json()["error"]) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return False
