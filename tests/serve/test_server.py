"""The HTTP server with slow, silent and vanishing clients, and many at once on two threads of the model."""

import asyncio
import concurrent.futures
import json
import socket
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
import tiny
from serving import PROMPT, TEXTS, listening, lore, row, vote

from experiments.benchmarks import hostile
from experiments.benchmarks.hostile_target import Target
from experiments.benchmarks.hostile_texts import BROKEN, SLOW
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.store import Store

HEAD = "POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture(scope="module")
def served(base, tmp_path_factory):
    """Address and service, in a thread of this process."""
    limits = Limits(head_seconds=0.4, body_seconds=0.4, votes_a_minute=10**6)
    with listening(lore(base), Store.open(f"{tmp_path_factory.mktemp('store')}/v.db"), limits=limits) as found:
        yield found


def test_slow_heads_and_bodies_are_cut_off(served):
    address, _ = served
    for sent, answer in (
        (b"", b""),
        (f"{HEAD}X: ".encode(), b""),
        (f"{HEAD}Content-Length: 9\r\n\r\n{{".encode(), b"HTTP/1.1 408"),
    ):
        start = time.monotonic()
        with socket.create_connection(address, timeout=10) as client:
            client.sendall(sent)
            assert client.recv(12) == answer
        assert 0.2 < time.monotonic() - start < 5
    # A head that is slow only once in a while is none of them.
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        for _ in range(2):
            assert client.get("/healthz").status_code == 200
            time.sleep(0.3)


def test_what_turns_out_to_be_no_http_is_cut_off_and_no_fault_of_ours(served, caplog):
    address, service = served
    chunked, plain = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", HEAD.replace("application/json", "text/plain")
    for first, then, answer in (
        # While the body is read; and after a refusal that did not wait for it.
        (chunked, "zz\r\n", b"HTTP/1.1 400"),
        (f"{plain}Transfer-Encoding: chunked\r\n\r\n", "zz\r\n", b"HTTP/1.1 415"),
        ("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "nonsense\r\n\r\n", b"HTTP/1.1 200"),
        (chunked, "", b""),
    ):
        with socket.create_connection(address, timeout=10) as client:
            client.sendall(first.encode())
            time.sleep(0.1)
            client.sendall(then.encode())
            if answer:
                with client.makefile("rb") as told:
                    assert told.read().startswith(answer)
    end = time.monotonic() + 10
    while service.metrics.requests.labels("POST", "/v1/score", "499")._value.get() < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert service.metrics.requests.labels("POST", "/v1/score", "499")._value.get() == 2
    assert service.metrics.requests.labels("POST", "/v1/score", "500")._value.get() == 0
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_is_hardly_http_or_never_ends_is_refused_or_cut_off(served, caplog):
    address, _ = served
    target = Target(None, stop=True)
    asyncio.run(hostile.broken_http(target, address, 2 * len(BROKEN), 10))
    asyncio.run(hostile.slow(target, address, 2 * len(SLOW), 10))
    assert target.statuses.total() == 2 * len(BROKEN) + 2 * len(SLOW)
    assert {status for kind, status in target.statuses if kind == "slow"} <= {0, 408}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_texts_of_a_client_who_has_gone_are_not_read(served):
    address, service = served
    held, running = threading.Event(), threading.Event()

    def holds() -> None:
        running.set()
        held.wait(10)

    def told(name: str) -> float:
        return service.metrics.texts.labels(name)._value.get()

    # While the thread of users is busy a client comes and goes.
    service.reader.worker._thread.submit(holds)
    assert running.wait(10)
    before = told("read")
    body = json.dumps({"prompt": "gone", "responses": ["one", "two"]}).encode()
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.3)
    time.sleep(0.3)
    held.set()
    answer = httpx.post(f"http://127.0.0.1:{address[1]}/v1/score", json={"prompt": "here", "responses": ["three"]})
    assert answer.status_code == 200
    assert told("read") == before + 1


def test_many_clients_at_once_get_their_own_scores_to_the_bit(served, base):
    address, _ = served
    url = f"http://127.0.0.1:{address[1]}"

    def one(number: int) -> list[Any]:
        found, user = [], f"user {number}"
        with httpx.Client(base_url=url, timeout=60) as client:
            for place in range(3):
                assert client.post(f"/v1/users/{user}/votes", json=vote(10 * number + place)).status_code == 200
                body = {"user": user, "prompt": PROMPT, "responses": [*TEXTS, f"rain {number} {place}"]}
                found.append(client.post("/v1/score", json=body).json()["rewards"])
        return found

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        told = list(pool.map(one, range(8)))
    reference = lore(base)
    for number, found in enumerate(told):
        for place, rewards in enumerate(found):
            reference.add_votes(f"user {number}", [row(vote(10 * number + place))])
            want = reference.score(f"user {number}", PROMPT, [*TEXTS, f"rain {number} {place}"])
            assert np.array(rewards, np.float32).tobytes() == want.tobytes()
