"""A service whose database goes, hangs or is full, or whose clock is set back: clear refusals, then recovery."""

import concurrent.futures
import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
from serving import client_of, lore, row, scores, vote
from sqlalchemy import event

from experiments.benchmarks import voters
from pref_jax.serve.service import STORE_THREADS
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.store import Store

SECRET = "A text that no error tells."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")


def refused(answer: Any, reason: str) -> None:
    """503 in words, with the time to try again, and without what was sent."""
    assert answer.status_code == 503, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert f"the store cannot answer ({reason})" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "1"
    assert SECRET not in answer.text


def send(client: Any, name: str, user: str = "ada", **more: Any) -> Any:
    return client.post(f"/v1/users/{user}/votes", json={**vote(1), "id": name, **more})


def check_down(client: Any, reason: str) -> None:
    """What cannot be done without the store is refused; what can be is done."""
    before = client.post("/v1/score", json={"prompt": "How long?", "responses": ["Rain"]})
    assert before.status_code == 200
    refused(client.get("/readyz"), reason)
    refused(send(client, "lost", first=SECRET), reason)
    refused(client.post("/v1/score", json={"user": "ada", "prompt": SECRET, "responses": [SECRET]}), reason)
    refused(client.get("/v1/users/ada/votes"), reason)
    assert client.get("/healthz").status_code == 200


def check_back(client: Any, base: Path, names: list[str]) -> None:
    """Ready again; the votes are these, and scores are theirs."""
    assert client.get("/readyz").status_code == 200
    assert send(client, "back").json() == {"stored": ["back"], "repeated": []}
    assert [one["id"] for one in client.get("/v1/users/ada/votes").json()["votes"]] == [*names, "back"]
    fresh = lore(base)
    fresh.add_votes("ada", [row(vote(1))] * (len(names) + 1))
    assert scores(client, "ada") == fresh.score("ada", "How long?", ["Seven minutes.", "It depends.", "Rain"]).tobytes()


def test_a_server_that_goes_and_comes_back_needs_no_hands(base, postgres):
    with client_of(lore(base), Store.open(postgres.database("empty_store"))) as client:
        assert send(client, "1").status_code == 200
        scores(client, "ada")
        postgres.stop(signal.SIGQUIT)
        try:
            check_down(client, "gone")
        finally:
            postgres.start()
        check_back(client, base, ["1"])


@contextlib.contextmanager
def hanging(server: Any) -> Any:
    """A server that holds its connections open and says nothing."""
    root = server._process.pid
    numbers = [root, *map(int, Path(f"/proc/{root}/task/{root}/children").read_text().split())]
    for number in numbers:
        os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        for number in numbers:
            os.kill(number, signal.SIGCONT)


def test_a_server_that_hangs_is_told_and_used_again(base, postgres):
    limits = Limits(store_seconds=0.3)
    with client_of(lore(base), Store.open(postgres.database("empty_store")), limits=limits) as client:
        app: Any = client.app
        service = app.state.front.service
        assert send(client, "1").status_code == 200
        scores(client, "ada")
        with hanging(postgres):
            check_down(client, "silent")
            # More than there are threads for the store.
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                for answer in pool.map(lambda _: client.get("/readyz"), range(12)):
                    refused(answer, "silent")
        # What hung has now been done: nobody was told that this vote is stored, but it may be.
        barrier, threads = threading.Barrier(STORE_THREADS), service._threads
        for job in [threads.submit(barrier.wait, 20) for _ in range(STORE_THREADS)]:
            job.result()
        told = send(client, "lost", first=SECRET)
        assert told.status_code == 200
        assert client.delete("/v1/users/ada/votes/lost").status_code == 200
        check_back(client, base, ["1"])


def test_a_file_that_goes_and_comes_back_needs_no_hands(base, tmp_path):
    path = tmp_path / "votes.db"
    with client_of(lore(base), Store.open(str(path))) as client:
        assert send(client, "1").status_code == 200
        scores(client, "ada")
        path.rename(tmp_path / "away")
        check_down(client, "gone")
        (tmp_path / "away").rename(path)
        check_back(client, base, ["1"])


def test_a_full_disk_is_told_and_used_again_when_there_is_room(base, tmp_path):
    with Store.open(str(tmp_path / "votes.db")) as store:
        pages = [60]
        event.listen(
            store._database.engine, "checkout", lambda c, *_: c.execute(f"PRAGMA max_page_count={pages[0]}").fetchone()
        )
        with client_of(lore(base), store) as client:
            assert send(client, "1").status_code == 200
            answers = [send(client, f"bo {n}", "bo", first=SECRET + os.urandom(20_000).hex()) for n in range(20)]
            assert {answer.status_code for answer in answers} == {200, 503}
            refused(answers[-1], "full")
            # What is there can still be read and scored.
            before = scores(client, "ada")
            kept = [f"bo {n}" for n, answer in enumerate(answers) if answer.status_code == 200]
            assert [one["id"] for one in client.get("/v1/users/bo/votes").json()["votes"]] == kept
            pages[0] = 100_000
            assert scores(client, "ada") == before
            check_back(client, base, ["1"])


def test_a_clock_that_is_set_back_changes_neither_scores_nor_order(base, tmp_path, monkeypatch):
    with client_of(lore(base), Store.open(f"{tmp_path}/votes.db"), limits=Limits(votes_a_minute=3)) as client:
        found = []
        for name, now in (("1", 2e9), ("2", 1e9), ("3", 1.5e9)):
            monkeypatch.setattr("time.time", lambda now=now: now)
            assert send(client, name).status_code == 200
            found.append(scores(client, "ada"))
        assert len(set(found)) == 3
        # Nor does it give anybody more votes a minute.
        assert send(client, "4").status_code == 429
        assert [one["id"] for one in client.get("/v1/users/ada/votes").json()["votes"]] == ["1", "2", "3"]
    fresh = lore(base)
    fresh.add_votes("ada", [row(vote(1))] * 3)
    assert found[-1] == fresh.score("ada", "How long?", ["Seven minutes.", "It depends.", "Rain"]).tobytes()


def test_the_judge_of_kills_finds_what_is_wrong(store, url):
    one = voters.Voter("ada")
    one.calls = [[{**vote(number), "id": f"{number}{place}"} for place in range(2)] for number in range(3)]
    given = [[voters.Vote(**body) for body in call] for call in one.calls]
    store.add("ada", given[0])
    one.stored = {"00", "01"}
    right = {"lost": 0, "half": 0, "doubled": 0, "stray": 0}
    # The second call was not acknowledged: all of it may be there or nothing.
    assert voters.judge(url, [one]) == right
    store.add("ada", given[1])
    assert voters.judge(url, [one]) == right
    store.remove_vote("ada", "00")
    assert voters.judge(url, [one]) == right | {"lost": 1, "half": 1}
    one.undoing = {"00"}
    assert voters.judge(url, [one]) == right
    one.removed = {"00", "10"}
    one.undoing |= one.removed
    assert voters.judge(url, [one]) == right | {"lost": 1}
    store.add("somebody else", given[2])
    assert voters.judge(url, [one])["half"] == 2
