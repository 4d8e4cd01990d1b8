"""Clients of a service, cheap enough that two cores serve and ask at once: HTTP/1.1 on sockets that stay open."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

WORDS = ("red", "green", "rain", "sun", "walk", "long", "short", "seven", "minutes", "depends", "weather", "yes", "no")
PROMPT = "What shall we do today?"


class Record(NamedTuple):
    """One request: its kind, seconds, and status."""

    kind: str
    seconds: float
    status: int


class Told(NamedTuple):
    """What one client did.

    Attributes:
      user: whose votes.
      records: of all requests.
      votes: bodies of those that were acknowledged, in order.
    """

    user: str
    records: list[Record]
    votes: list[dict[str, Any]]


class Connection:
    """One client's connection."""

    def __init__(self, host: str, port: int):
        self._where = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._where)
        reader, writer = self._streams
        sent = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        await writer.drain()
        told = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        length = next(int(line.split(":")[1]) for line in told if line.lower().startswith("content-length:"))
        return int(told[0].split()[1]), json.loads(await reader.readexactly(length))

    def close(self) -> None:
        """Hangs up."""
        if self._streams is not None:
            self._streams[1].close()


def known_texts(count: int) -> list[str]:
    """Responses to be scored again and again, each another one."""
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=4 + place % 9)) + f" {place}" for place in range(count)]


def text(rng: random.Random) -> str:
    """A new response of a few words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 12)))


def vote(rng: random.Random, known: Sequence[str]) -> dict[str, Any]:
    """A vote on two responses that were scored before."""
    first, second = rng.sample(known, 2)
    choice = rng.choice(("first", "second", "first", "second", "tie"))
    return {"id": f"{rng.getrandbits(128):032x}", "prompt": PROMPT, "first": first, "second": second, "choice": choice}


async def _client(where: Sequence[tuple[str, int]], number: int, end: float, known: Sequence[str]) -> Told:
    """Votes and scores, on replicas in turn, until the time is over."""
    rng, told = random.Random(number), Told(f"user {number}", [], [])
    own = [Connection(*one) for one in where]
    first = True
    while first or time.perf_counter() < end:
        connection, dice = rng.choice(own), rng.random()
        kind = "vote" if first or dice < 0.3 else "cached score" if dice < 0.8 else "new score"
        first, start = False, time.perf_counter()
        if kind == "vote":
            body = vote(rng, known)
            status, answer = await connection.ask("POST", f"/v1/users/user%20{number}/votes", body)
            if status == 200 and answer["stored"] == [body["id"]]:
                told.votes.append(body)
        else:
            texts = rng.sample(known, 2) if kind == "cached score" else [text(rng), text(rng)]
            body = {"user": told.user, "prompt": PROMPT, "responses": texts}
            status, answer = await connection.ask("POST", "/v1/score", body)
        told.records.append(Record(kind, time.perf_counter() - start, status))
    for connection in own:
        connection.close()
    return told


async def load(where: Sequence[tuple[str, int]], clients: int, seconds: float, known: Sequence[str]) -> list[Told]:
    """So many clients at once, for so many seconds."""
    end = time.perf_counter() + seconds
    return await asyncio.gather(*(_client(where, number, end, known) for number in range(clients)))


async def score_cached(where: tuple[str, int], times: int, known: Sequence[str]) -> list[float]:
    """Seconds of scores of one pair for one user, one after the other, of texts that were read before."""
    connection, spans = Connection(*where), []
    for number in range(times):
        pair = [known[number % len(known)], known[(number + 1) % len(known)]]
        start = time.perf_counter()
        status, _ = await connection.ask("POST", "/v1/score", {"user": "user 0", "prompt": PROMPT, "responses": pair})
        spans.append(time.perf_counter() - start)
        assert status == 200
    connection.close()
    return spans
