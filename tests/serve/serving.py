"""A small served model, and clients of it."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
from starlette.testclient import TestClient

from lore_jax.fitted import LoRe
from lore_jax.fitting.bradley_terry import Fit
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.fitting.reading import Reading
from pref_jax.likelihood import Scale
from pref_jax.lm.text_model import TextModel, open_text
from pref_jax.mesh import make_mesh
from pref_jax.serve.app import make_app
from pref_jax.serve.server import bind, make_server
from pref_jax.serve.service import Service
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.store import Store
from pref_jax.standardiser import Standardiser

WORDS = ("red", "green", "a long walk", "rain", "sun and rain", "no", "seven minutes", "it depends on the weather")
KNOWN = ("ada", "bo/ba", "cy")
PROMPT, TEXTS = "How long?", ["Seven minutes.", "It depends.", "Rain"]


def lore(base: Path, *, kind: str = "gaussian", ties: bool = False) -> LoRe:
    """A LoRe of random numbers on a base, with three users of a few votes each."""
    rank = 1 if kind == "shared" else 3
    # On one device texts are read in a thread beside that of users.
    text = open_text(str(base), max_length=48, batch_size=8, mesh=make_mesh(devices=jax.devices()[:1]))
    rng, width = np.random.default_rng(0), text.config.hidden_size

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    root = draw(rank, rank)
    chosen = {"kind": kind, "rank": rank, "log_loss": 0.5}
    on_simplex = kind in ("mixture", "simplex")
    weights = jnp.asarray(rng.dirichlet(np.ones(rank), len(KNOWN)), jnp.float32) if on_simplex else draw(3, rank)
    precision = root @ root.T + jnp.eye(rank)
    own = Clusters(jnp.log(jnp.asarray([0.7, 0.3])), draw(2, rank), jnp.stack([precision, jnp.eye(rank)]))
    reading = Reading(Scale(ties=True), {"gaps": jnp.asarray([0.2], jnp.float32)}) if ties else Reading()
    fit = Fit(
        kind,
        Standardiser(draw(width), jnp.exp(draw(width) / 4)),
        draw(width, rank),
        weights,
        jnp.full(rank, 1 / rank) if on_simplex else jnp.ones(rank),
        precision,
        jnp.zeros(0),
        chosen,
        (chosen,),
        own if kind == "clusters" else None,
        reading,
    )
    facts = {"chosen": chosen, "candidates": [chosen], "validation_votes": 4, "config": {}}
    z, columns = rng.normal(size=(6, rank)).astype(np.float32), reading.columns
    z = np.concatenate([z, np.ones((6, len(columns)), np.float32)], 1)
    return LoRe(fit=fit, users=KNOWN, z=z, counts=np.array([2, 2, 2]), text=text, facts=facts, columns=columns)


def texts_of(model: Any) -> TextModel:
    """The base of a model that reads texts."""
    assert model.text is not None
    return model.text


def vote(number: int = 0, choice: str = "first", **more: Any) -> dict[str, Any]:
    """A vote as a client sends it."""
    rng = np.random.default_rng(number)
    first, second = rng.choice(len(WORDS), 2, replace=False)
    return {
        "prompt": f"What of {number % 5}?",
        "first": WORDS[first],
        "second": WORDS[second],
        "choice": choice,
        **more,
    }


def row(given: dict[str, Any]) -> dict[str, Any]:
    """The same as `add_votes` of a model takes it."""
    sides = (given["first"], given["second"])
    chosen, rejected = sides[::-1] if given["choice"] == "second" else sides
    tie = {"outcome": "tie"} if given["choice"] == "tie" else {}
    return {"prompt": given["prompt"], "chosen": chosen, "rejected": rejected, **tie}


@contextlib.contextmanager
def client_of(model: Any, store: Store, **options: Any) -> Iterator[TestClient]:
    """A client of an application in this process, which closes the store."""
    app = make_app(model, store, **{"warm": False, **options})
    with TestClient(app, base_url="http://127.0.0.1", headers={"host": "127.0.0.1"}) as client:
        yield client


@contextlib.contextmanager
def listening(model: Any, store: Store, *, limits: Limits, **options: Any) -> Iterator[tuple[tuple[str, int], Service]]:
    """Address and service of a server in a thread of this process, ready."""
    app = make_app(model, store, limits=limits, **options)
    server, listener = make_server(app, limits=limits), bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = listener.getsockname()[:2]
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{address[1]}/readyz").status_code == 200:
                break
        time.sleep(0.05)
    try:
        yield address, app.state.front.service
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def scores(client: Any, user: str | None, prompt: Any = PROMPT, texts: Any = TEXTS, **more: Any) -> bytes:
    """Rewards by /v1/score, as the bytes of float32."""
    answer = client.post("/v1/score", json={"user": user, "prompt": prompt, "responses": texts, **more})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["rewards"], np.float32).tobytes()


def lines_of(log: str) -> list[dict[str, Any]]:
    """The log lines of requests."""
    return [json.loads(line) for line in log.splitlines() if line.startswith('{"time"')]
