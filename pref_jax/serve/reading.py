"""Texts of many clients, read once: looked up among those that were read, else read in common batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pref_jax.data.text.token_table import bucket_length
from pref_jax.errors import UserError
from pref_jax.lm.text_model import TextModel
from pref_jax.personal import PersonalReward, Scores
from pref_jax.serve.batching import Worker
from pref_jax.serve.metrics import Metrics
from pref_jax.serve.rendered import TemplateReader, tokens_of
from pref_jax.serve.settings import Limits
from pref_jax.serve.texts import ReadCache, ReadText, Text, as_rows, table_texts, texts_of, token_text


class _Own(NamedTuple):
    """A text that is read together with its user."""

    text: Text
    user: str | None
    uncertainty: bool


class Reader:
    """Reads texts for a service; its coroutines run in one event loop.

    Attributes:
      apart: whether the method reads texts apart from their users, so that what was read can be kept.
      alone: whether texts are read in a thread beside that of users.
      worker: the model's threads.
      cache: what was read.
    """

    def __init__(self, model: PersonalReward, text: TextModel, limits: Limits, metrics: Metrics):
        """A reader of a model that reads texts by the base `text`."""
        self._model, self._text, self._metrics = model, text, metrics
        self.apart = not model.reads_with_user
        self.cache = ReadCache(limits.cache)
        # Then a batch asks neither tokenizer nor users; and programs of several devices take turns in one thread.
        self.alone = self.apart and model.reads_tokens and text.mesh.size == 1
        self.worker = Worker(self._read_batch, batch=limits.batch, most=limits.queue, alone=self.alone)
        self._template = TemplateReader(text.tokenizer)

    async def read(self, texts: Sequence[Text]) -> list[ReadText]:
        """What the method reads of texts, one after another; rows are None where it reads them with their users.

        Raises:
          UserError: for texts that the tokenizer or the template does not take.
          RefusedError: if too many wait.
        """
        found = {text.digest: self.cache.get(text.digest) for text in texts}
        missing = list({text.digest: text for text in texts if found[text.digest] is None}.values())
        self._metrics.texts.labels("kept").inc(len(texts) - len(missing))
        if missing:
            tokenized = await self.worker.run(self._tokenize, missing)
            rows: Sequence[Any] = [None] * len(missing)
            if self.apart:
                sent = tokenized if self._model.reads_tokens else missing
                buckets = [self._bucket(len(text.tokens)) for text in tokenized]
                rows = await self.worker.read(list(zip(buckets, sent, strict=True)))
            for text, row in zip(tokenized, rows, strict=True):
                one = ReadText(row, len(text.tokens), text.cut)
                found[text.digest] = one
                self.cache.put(text.digest, one)
        return [one for text in texts if (one := found[text.digest]) is not None]

    async def check(self, texts: Sequence[Text]) -> None:
        """Raises `UserError` for texts that cannot be read; reads none."""
        if missing := [text for text in texts if self.cache.get(text.digest) is None]:
            await self.worker.run(self._tokenize, missing)

    async def readable(self, texts: Sequence[Text]) -> list[bool]:
        """Which texts can be read."""

        def one(text: Text) -> bool:
            try:
                self._tokenize([text])
            except UserError:
                return False
            return True

        return await self.worker.run(lambda: [one(text) for text in texts])

    async def rewards(
        self, users: Sequence[str | None], texts: Sequence[Text], read: Sequence[ReadText], *, uncertainty: bool
    ) -> Scores:
        """Rewards of a method that reads every text with its user, in batches with those of others."""
        items = [_Own(text, user, uncertainty) for user, text in zip(users, texts, strict=True)]
        buckets = [
            (self._bucket(one.tokens), text.tokens is None, uncertainty) for one, text in zip(read, texts, strict=True)
        ]
        found = await self.worker.read(list(zip(buckets, items, strict=True)))
        return Scores(*(np.array(column, np.float32) for column in zip(*found, strict=True)))

    async def rendered(self, strings: Sequence[str], *, special: bool) -> list[Text]:
        """Dialogues that somebody rendered: read back where the model's template writes them so, else as they are."""
        return await self.worker.run(lambda: [self._rendered(string, special=special) for string in strings])

    def _rendered(self, string: str, *, special: bool) -> Text:
        back = self._template.read(string)
        if back is not None and back.prompt:
            return texts_of([back.prompt], [back.answer])[0]
        if not self._model.reads_tokens:
            raise UserError(
                "this method needs prompt and answer apart; send dialogues as the model's template has them"
            )
        tokens, cut = tokens_of(self._text, string, special=special)
        if not len(tokens):
            raise UserError("a text is empty; send at least one token")
        return token_text(tokens, cut=cut)

    def decode(self, tokens: Sequence[int]) -> Text:
        """A text by its tokens.

        Raises:
          UserError: for tokens that the model has not.
        """
        size, most = self._text.config.vocab_size, self._text.max_length
        if not tokens or not all(0 <= token < size for token in tokens):
            raise UserError(f"input: give token numbers from 0 to {size - 1}")
        return token_text(np.array(tokens[-most:], np.int32), cut=len(tokens) > most)

    # --- in the model's thread ---

    def read_votes(self, table: pa.Table) -> np.ndarray:
        """Rows of `PersonalReward.read` of votes' responses, most of which were read before."""
        texts = table_texts(table)
        kept = [self.cache.get(text.digest) for text in texts]
        rows: list[Any] = [None if one is None else one.row for one in kept]
        if missing := [place for place, row in enumerate(rows) if row is None]:
            for place, row in zip(missing, self._read([texts[place] for place in missing]), strict=True):
                rows[place] = row
        return np.stack(rows)

    def _tokenize(self, texts: Sequence[Text]) -> list[Any]:
        """The texts with their tokens."""
        plain = [text for text in texts if text.tokens is None]
        found = {text.digest: text for text in texts}
        if plain:
            table = self._text.tokenize(as_rows(plain))
            whole = table.lengths == self._text.max_length
            doubtful = 0 < table.truncated < int(whole.sum())
            for place, text in enumerate(plain):
                cut = bool(whole[place]) and table.truncated > 0
                if cut and doubtful:
                    cut = self._text.tokenize(as_rows([text])).truncated > 0
                tokens = table.flat[table.offsets[place] : table.offsets[place + 1]]
                found[text.digest] = text._replace(tokens=tokens, cut=cut)
        return [found[text.digest] for text in texts]

    def _bucket(self, length: int) -> int:
        """Texts of one bucket are read together."""
        return bucket_length(length, limit=self._text.config.max_positions)

    def _read(self, texts: Sequence[Text]) -> np.ndarray:
        self._metrics.texts.labels("read").inc(len(texts))
        with self._metrics.read_seconds.time():
            found = self._model.read(as_rows(texts))
        if found is None:
            raise RuntimeError(f"{self._model.kind}: reads no text apart from its user")
        return found

    def _read_batch(self, batch: list[Any]) -> Sequence[Any]:
        if self.apart:
            return list(self._read(batch))
        self._metrics.texts.labels("read").inc(len(batch))
        # Whoever was removed meanwhile is nobody in particular; the client is told by the service.
        users = [own.user if own.user is None or self._model.knows(own.user) else None for own in batch]
        with self._metrics.read_seconds.time():
            rows = as_rows([own.text for own in batch])
            found = self._model.rewards(users, rows, uncertainty=batch[0].uncertainty)
        return list(zip(*found, strict=True))
