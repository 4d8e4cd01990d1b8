"""`pref serve` in a process of its own, on a small model and a store, for benchmarks and tests."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import lore_jax
from experiments.benchmarks.load_client import PROMPT, WORDS
from experiments.benchmarks.private_postgres import private_postgres
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.errors import UserError

ROOT = Path(__file__).parents[2]
SIZES = {"ranks": (4,), "components": (), "variances": (3.0,), "shared_variances": (1.0,), "steps": 20}
# Votes come as fast as they can.
ANY_PACE = ("--votes-per-minute", "1000000")
# Seconds to start, and to stop.
SECONDS = 300.0
STOP = 60.0


class Running:
    """A service in a process of its own.

    Attributes:
      process: that of the service.
      url: its address; empty until it listens.
    """

    def __init__(self, folder: Path, store: str, log: Path, *options: str):
        """Starts it on any free port; what it says goes to the file `log`."""
        command = [sys.executable, "-m", "pref_jax.cli", "serve", str(folder), "--store", store, "--port", "0"]
        # This tree's code, wherever the environment has installed the package from.
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with log.open("w") as out:
            self.process = subprocess.Popen([*command, *options], stdout=out, stderr=out, cwd=ROOT, env=environment)
        self.url, self._log = "", log

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parsed = httpx.URL(self.url)
        assert parsed.port is not None
        return parsed.host, parsed.port

    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    def wait_ready(self) -> None:
        """Returns once it can score and store.

        Raises:
          UserError: if it ends before, or takes too long.
        """
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"listening on (http://\S+)", self.log())
            self.url = found[1] if found else ""
            with contextlib.suppress(httpx.TransportError):
                if self.url and httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise UserError(f"the service does not start: {self.log()[-2000:]}")

    def stop(self) -> None:
        """Asks it to stop.

        Raises:
          RuntimeError: if it does not end in order.
        """
        self.process.terminate()
        if self.process.wait(STOP) != 0:
            raise RuntimeError(f"the service ended with {self.process.returncode}: {self.log()[-2000:]}")

    def kill(self) -> None:
        """Ends it with SIGKILL, if it has not ended."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(folder: Path, store: str, log: Path, *options: str) -> Iterator[Running]:
    """A service that is ready; it is killed in the end, if it was not stopped."""
    service = Running(folder, store, log, *options)
    try:
        service.wait_ready()
        yield service
    finally:
        service.kill()


def fit_model(folder: Path, base: str) -> Path:
    """A small LoRe of random votes on a base; the folder that it is saved in."""
    rng = np.random.default_rng(0)
    votes = []
    for user in range(20):
        for _ in range(12):
            pair = [" ".join(rng.choice(WORDS, 6)) for _ in range(2)]
            votes.append({"user": f"seen {user}", "prompt": PROMPT, "chosen": pair[0], "rejected": pair[1]})
    return lore_jax.fit(votes, base=base, config=LoReConfig.quick(**SIZES, min_gain_se=-1e9)).save(folder / "model")


@contextlib.contextmanager
def empty_store(folder: Path, kind: str) -> Iterator[str]:
    """The address of a store of one's own: "sqlite", a file in the folder, or "postgresql"."""
    if kind == "sqlite":
        yield str(folder / "votes.db")
        return
    with private_postgres(safe=True) as server:
        yield server.database()


def scores_differ(model: Any, user: str, rows: Sequence[Any], responses: Sequence[str], where: Sequence[str]) -> bool:
    """Whether services score a user otherwise, in a bit, than a model that is given the user's votes now.

    Args:
      model: as loaded, which does not know the user.
      user: who voted.
      rows: the votes, as `add_votes` takes them.
      responses: that are scored.
      where: addresses of services.
    """
    model.add_votes(user, rows)
    want = model.score(user, PROMPT, responses).tobytes()
    body = {"user": user, "prompt": PROMPT, "responses": responses}
    answers = [httpx.post(f"{each}/v1/score", json=body, timeout=60).raise_for_status() for each in where]
    return any(np.array(answer.json()["rewards"], np.float32).tobytes() != want for answer in answers)
