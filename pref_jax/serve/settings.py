"""What a service allows."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one client may ask for, and on what is kept.

    Attributes:
      body: bytes of a request.
      body_seconds: from a request's first byte to its last.
      head_seconds: from connecting to the end of a request's head.
      characters: of a text, and of all messages of a prompt together.
      texts: responses, documents or candidates of one request.
      votes: of one request.
      votes_a_minute: of one user.
      pairs: of a pool, or of the candidates of one question.
      queue: texts that may wait to be read; beyond, clients are told to come back.
      batch: texts that the transformer reads at a time.
      cache: bytes of read texts that are kept.
      store_seconds: until a store that says nothing is given up.
      page: votes or users of one answer.
    """

    body: int = 4 << 20
    body_seconds: float = 20.0
    head_seconds: float = 10.0
    characters: int = 100_000
    texts: int = 256
    votes: int = 100
    votes_a_minute: int = 120
    pairs: int = 10_000
    queue: int = 4096
    batch: int = 32
    cache: int = 256 << 20
    store_seconds: float = 20.0
    page: int = 1000
