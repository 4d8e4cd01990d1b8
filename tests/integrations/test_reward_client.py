"""Scores by HTTP: equal to those in process, tried again where that may help, told clearly where it does not."""

import collections
import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pref_jax.integrations import service as client
from pref_jax.integrations.backends import MOST_ANSWERS
from pref_jax.integrations.scoring import Options, Scorer
from pref_jax.integrations.service import Ask, Service, ServiceError

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Server:
    """A service that answers by a function, and what it saw.

    Attributes:
      url: where.
      bodies, headers: of each request.
      most: requests that were under way at a time.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]):
        self.bodies, self.headers, self.most, self._now = list[Any](), list[Any](), 0, 0
        lock, outer = threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with lock:
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append((self.path, body))
                outer.headers.append(dict(self.headers))
                status, found, *headers = answer(body)
                with lock:
                    outer._now -= 1
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                with contextlib.suppress(BrokenPipeError):
                    self.send_response(status)
                    for name, value in (headers[0] if headers else {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running = []

    def start(answer: Callable[[dict[str, Any]], Answer]) -> Server:
        running.append(Server(answer))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


def by_model(model: Any) -> Callable[[dict[str, Any]], Answer]:
    """The service's answer to `/v1/score`."""

    def answer(body: dict[str, Any]) -> Answer:
        known = body["user"] is None or model.knows(body["user"])
        if not known and body.get("unknown") != "shared":
            return 404, {"detail": f"user {body['user']!r} is not known"}
        user = body["user"] if known else None
        found = model.score(user, body["prompt"], body["responses"], uncertainty=True)
        sds = {"deviations": found.deviation.tolist()} if body["uncertainty"] else {}
        return 200, {"rewards": found.mean.tolist(), "shared": not known, **sds}

    return answer


def test_scores_are_those_in_process(model, serve):
    server = serve(by_model(model))
    chat = [{"role": "user", "content": "lunch"}]
    users, prompts = ["ada", "ada", None, "bo", "eve"], ["lunch", "lunch", "lunch", chat, chat]
    answers = ["tea", "coffee foam", "tea", " ", "cup"]
    options: dict[str, Any] = {"uncertainty": True, "centre": True, "scale": True}
    options["reference"] = [("lunch", text) for text in ("tea milk", "coffee", "cup bowl", "foam")]
    found = Scorer(server.url, Options(**options, api_key="k"))(users, prompts, answers)
    want = Scorer(model, Options(**options))(users, prompts, answers)
    for ours, theirs in zip(found[:4], want[:4], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert found.components is None
    paths, bodies = zip(*server.bodies, strict=True)
    assert set(paths) == {"/v1/score"}
    first = next(body for body in bodies if body["user"] == "ada")
    assert first == {
        "user": "ada",
        "prompt": "lunch",
        "responses": ["tea", "coffee foam"],
        "uncertainty": True,
        "unknown": "shared",
    }
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer k"}


def test_an_unknown_user_is_counted_or_an_error(model, serve):
    server = serve(by_model(model))
    scorer = Scorer(server.url, Options())
    assert scorer(["eve"], ["lunch"], ["tea"]).shared.tolist() == [True]
    assert scorer.counts["unknown_user"] == 1
    with pytest.raises(ServiceError, match=r"refused with status 404: .*user 'eve' is not known"):
        Scorer(server.url, Options(unknown="error"))(["eve"], ["lunch"], ["tea"])


def test_what_may_pass_is_tried_again(serve):
    left = collections.deque([(503, b"busy", {"Retry-After": "0.2"}), (429, b""), (500, b"")])
    server = serve(lambda body: left.popleft() if left else (200, {"rewards": [1.5]}))
    start = time.monotonic()
    (reply,) = Service(url=server.url + "/").score([Ask("ada", "lunch", ["tea"])])
    assert (reply.rewards, reply.known, len(server.bodies)) == ([1.5], True, 4)
    assert time.monotonic() - start > 0.2


def test_a_service_that_is_not_there_is_told(serve):
    server = serve(lambda body: (502, b""))
    with pytest.raises(ServiceError, match=r"/v1/score: no answer in 3 tries, the last time: status 502; check that"):
        Service(url=server.url, tries=3).score([Ask("ada", "lunch", ["tea"])])
    assert len(server.bodies) == 3
    with pytest.raises(ServiceError, match=r"no answer in one try, the last time: .*refused"):
        Service(url="http://127.0.0.1:9", tries=1).score([Ask("ada", "lunch", ["tea"])])


def test_a_slow_service_is_not_waited_for(serve):
    gate = threading.Event()
    server = serve(lambda body: (gate.wait(5), (200, {"rewards": [1.0]}))[1])
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer in 2 tries, the last time: .*timed out"):
        Service(url=server.url, tries=2, timeout=0.1).score([Ask("ada", "lunch", ["tea"])])
    gate.set()
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {"detail": "no key"}), "status 401: .*no key.*; check api_key"),
        ((422, b"x" * 9999), "status 422: x{300}; check the request"),
        ((200, b"<html>"), "the answer is no JSON"),
        ((200, b"\xff"), "the answer is no JSON"),
        ((200, {"rewards": [1.0, 2.0]}), "answered without 1 finite rewards"),
        ((200, b'{"rewards": [NaN]}'), "answered without 1 finite rewards"),
        ((200, [1.0]), "answered without 1 finite rewards"),
        ((200, {"rewards": [1.0]}), "answered without 1 finite deviations"),
    ],
)
def test_what_will_not_pass_is_told_at_once(serve, answer, message):
    server = serve(lambda body: answer)
    with pytest.raises(ServiceError, match=message) as caught:
        Service(url=server.url, api_key="secret").score([Ask("ada", "lunch", ["tea"])], uncertainty=True)
    assert len(server.bodies) == 1
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(Service(url=server.url, api_key="secret"))


def test_answers_to_one_prompt_are_one_request_of_no_more_than_the_service_takes(serve):
    server = serve(lambda body: (200, {"rewards": [float(text) for text in body["responses"]]}))
    count = MOST_ANSWERS + 3
    users = ["ada", "bo"] * count
    found = Scorer(server.url, Options())(users, ["lunch"] * 2 * count, [str(place) for place in range(2 * count)])
    assert found.reward.tolist() == list(range(2 * count))
    assert sorted(len(body["responses"]) for _, body in server.bodies) == [3, 3, MOST_ANSWERS, MOST_ANSWERS]


def test_few_requests_are_under_way_at_a_time(serve):
    server = serve(lambda body: (time.sleep(0.02), (200, {"rewards": [float(body["prompt"])]}))[1])
    service = Service(url=server.url, concurrency=3)
    found = service.score([Ask("ada", str(place), ["tea"]) for place in range(24)])
    assert [reply.rewards for reply in found] == [[float(place)] for place in range(24)]
    assert 1 < server.most <= 3
