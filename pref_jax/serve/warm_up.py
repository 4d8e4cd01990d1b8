"""Programs that are compiled before anyone asks, so that the first request is not slow."""

import asyncio
import contextlib
import secrets
from typing import Any

import numpy as np

from pref_jax.data.text.token_table import TokenTable, bucket_length
from pref_jax.errors import UserError
from pref_jax.lm.text_model import as_responses
from pref_jax.serve.service import Service

# Tokens of texts whose programs are compiled before the service is ready; those for longer ones follow.
FIRST = 128


def lengths(service: Service) -> list[int]:
    """The greatest length of each bucket of texts that the model reads."""
    limit = min(service.text.max_length, service.text.config.max_positions)
    return sorted({min(limit, bucket_length(length, limit=limit)) for length in range(1, limit + 1)})


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

    def count(words: int) -> int:
        return int(service.text.tokenize(as_responses(["?"], ["A" + " word" * words])).lengths[0])

    base = count(0)
    each = max(1, count(8) - base) / 8
    return "A" + " word" * max(0, int((length - base - 2) / each))


def read_tokens(service: Service, length: int) -> None:
    """Compiles what reads texts of a length; in any thread, as no tokenizer is asked."""
    tokens = TokenTable(np.ones(length, np.int32), np.array([0, length], np.int64), 0)
    if service.model.reads_with_user:
        service.model.rewards([None], tokens, uncertainty=False)
    else:
        service.model.read(tokens)


async def warm_all(service: Service) -> None:
    """Compiles for short texts, says that the service is ready, and goes on with longer ones beside requests."""
    every = lengths(service)
    for length in (length for length in every if length <= FIRST):
        await service.reader.worker.run(warm_up, service, length)
    service.ready = True
    # Heads that read the prompt too take no tokens; what reads long texts is then compiled when the first one comes.
    with contextlib.suppress(UserError):
        for length in (length for length in every if length > FIRST):
            if service.reader.alone:
                await asyncio.to_thread(read_tokens, service, length)
            else:
                await service.reader.worker.run(read_tokens, service, length)
