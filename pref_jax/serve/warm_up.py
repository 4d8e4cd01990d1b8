"""Programs that are compiled before anyone asks, so that the first request is not slow."""

import secrets
from typing import Any

import numpy as np

from pref_jax.lm.text_model import as_responses
from pref_jax.serve.service import Service

# Tokens of texts whose programs are compiled before the service is ready; those for longer ones follow.
FIRST = 128


def lengths(service: Service, *, most: int | None = None) -> list[int]:
    """The greatest length of each bucket of texts that the model reads, up to `most` tokens."""
    limit = min(service.text.max_length, service.text.config.max_positions)
    return [length for length in (32, 48, *range(64, limit + 32, 32)) if length - 32 < min(limit, most or limit)]


def warm_up(service: Service, length: int) -> None:
    """Reads and scores a text of a length for a user who has voted, and leaves nothing; in the model's thread."""
    model, user = service.model, f"warm-up-{secrets.token_hex(8)}"
    rows = as_responses(["?", "?"], [_words(service, length), "A " + _words(service, length)])
    table = rows.to_pylist()
    vote: dict[str, Any] = {"prompt": "?", "chosen": table[0]["text"], "rejected": table[1]["text"]}
    try:
        model.add_votes(user, [vote])
        model.rewards([user, None], rows, uncertainty=False)
        if not model.reads_with_user:
            read = model.read(rows)
            assert read is not None
            model.select_pairs(user, read[:1], read[1:], 1)
            model.rewards_of([user], np.asarray(read[:1]), uncertainty=False)
        model.describe_user(user)
    finally:
        model.restore_user(user, None)


def _words(service: Service, length: int) -> str:
    """A text that makes about so many tokens with its prompt, and not more."""
    count = lambda words: int(service.text.tokenize(as_responses(["?"], ["A" + " word" * words])).lengths[0])  # noqa: E731
    base = count(0)
    each = max(1, count(8) - base) / 8
    return "A" + " word" * max(0, int((length - base - 2) / each))


async def warm_all(service: Service) -> None:
    """Compiles for short texts, says that the service is ready, and goes on with longer ones between requests."""
    every = lengths(service)
    for length in every:
        if length > FIRST:
            service.ready = True
        await service.reader.worker.run(warm_up, service, length)
    service.ready = True
