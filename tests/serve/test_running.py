"""`pref serve` in a process of its own: many clients at once, slow ones, a stop under load, mistakes on the way up."""

import concurrent.futures
import contextlib
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tiny
from serving import PROMPT, TEXTS, lines_of, lore, row, vote

import pref_jax
from experiments.benchmarks.served import running
from pref_jax import cli, cli_serve
from pref_jax.serve.store.store import Store


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    base = tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")
    return lore(base).save(tmp_path_factory.mktemp("saved") / "mine")


def test_many_clients_get_their_own_and_a_stop_loses_nothing(saved, tmp_path):
    store = f"{tmp_path}/votes.db"
    with running(saved, store, tmp_path / "log", "--votes-per-minute", "100000") as server:
        first = httpx.get(f"{server.url}/v1/model").json()
        assert first["name"] == "mine"
        _slow_heads_are_cut_off(server.url)
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            jobs = [pool.submit(_client, server.url, n) for n in range(12)]
            time.sleep(1.5)
            server.process.send_signal(signal.SIGTERM)
            told = [job.result() for job in jobs]
        assert server.process.wait(30) == 0, server.log()[-2000:]
        lines = lines_of(server.log())
    # Whatever was acknowledged is there, once; and what was scored is what these votes give.
    opened, reference = Store.open(store), pref_jax.load(saved, batch_size=8)
    assert sum(len(votes) for votes, _ in told) > 12, "the load was a load"
    for number, (votes, found) in enumerate(told):
        user = f"user {number}"
        stored = [one.id for one in opened.votes(user)]
        assert len(stored) == len(set(stored))
        sent = [one["id"] for one in votes]
        # One more may have been stored whose answer was lost on the way.
        assert stored[: len(sent)] == sent
        assert len(stored) <= len(sent) + 1
        if found is not None:
            count, rewards = found
            fresh = pref_jax.load(saved, batch_size=8) if number == 0 else reference
            fresh.add_votes(user, [row(one) for one in votes[:count]])
            assert (
                np.array(rewards, np.float32).tobytes()
                == fresh.score(user, PROMPT, [*TEXTS, f"Rain {number}"]).tobytes()
            )
    opened.close()
    assert {line["status"] for line in lines if line["route"] != "/readyz"} <= {200, 503}
    assert not any("user " in str(line) for line in lines)


def _client(url: str, number: int) -> tuple[list[dict[str, Any]], Any]:
    """Votes and scores until the service has gone: votes that were acknowledged, and the last score after them."""
    votes, found = [], None
    body = {"user": f"user {number}", "prompt": PROMPT, "responses": [*TEXTS, f"Rain {number}"]}
    with httpx.Client(base_url=url, timeout=30) as client, contextlib.suppress(httpx.TransportError):
        for place in range(1000):
            given = vote(100 * number + place, id=f"{number} {place}")
            answer = client.post(f"/v1/users/user {number}/votes", json=given)
            if answer.status_code != 200:
                break
            votes.append(given)
            answer = client.post("/v1/score", json=body)
            if answer.status_code != 200:
                break
            found = (len(votes), answer.json()["rewards"])
    return votes, found


def _slow_heads_are_cut_off(url: str) -> None:
    """A client that never ends its head does not stay; those beside it are answered."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        assert httpx.get(f"{url}/healthz").status_code == 200
        huge = b"a" * 70_000
        with contextlib.suppress(ConnectionError):
            client.sendall(huge)
            assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_mistakes_on_the_way_up_are_told(saved, tmp_path, capsys, monkeypatch):
    def told(*arguments: str) -> str:
        assert cli.main(["serve", *arguments]) == 2
        return capsys.readouterr().err

    assert "no saved model there" in told(str(tmp_path / "nothing"))
    assert "need a key, and there is none; make one: pref store keys add" in told(
        str(saved), "--store", f"{tmp_path}/v.db", "--host", "0.0.0.0"
    )
    assert "need a key" in told(str(saved), "--store", f"{tmp_path}/v.db", "--key-required")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = told(str(saved), "--store", f"{tmp_path}/w.db", "--port", str(port))
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in found
    assert "cannot listen on 192.0.2.1" in told(str(saved), "--host", "192.0.2.1", "--store", _keyed(tmp_path))
    monkeypatch.setattr(cli_serve, "NEEDED", (*cli_serve.NEEDED, "not_there_at_all"))
    assert "not_there_at_all, not installed here; install it with: pip install 'pref-jax[serve]'" in told(str(saved))


def _keyed(folder: Path) -> str:
    with Store.open(f"{folder}/keyed.db") as opened:
        opened.add_key("one", ["score"])
    return f"{folder}/keyed.db"
