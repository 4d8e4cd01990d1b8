"""Text to tokens: tokenizers in Hugging Face layout, dialogues rendered, every distinct response tokenized once."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pref_jax.errors import UserError

# A turn is closed by a token of its role: the state there has read the whole answer and is where rewards are read.
END = {"user": "<|end_of_user|>", "assistant": "<|end_of_assistant|>"}
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}<|end_of_{{ message.role }}|>{% endfor %}"
PAD = "<|pad|>"


class TokenTable(NamedTuple):
    """Token sequences of different lengths, end to end.

    Attributes:
      flat: int32 [T] all tokens.
      offsets: int64 [N+1]; sequence i is flat[offsets[i]:offsets[i+1]].
      truncated: how many of the N sequences were cut to the length limit.
    """

    flat: Int[np.ndarray, "T"]
    offsets: Int[np.ndarray, "N1"]
    truncated: int

    @property
    def lengths(self) -> Int[np.ndarray, "N"]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    def take(
        self, rows: Int[np.ndarray, "B"], length: int | None = None
    ) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
        """Sequences `rows` padded on the right with zeros to `length` (the table's longest if None), and their mask."""
        length = int(self.lengths.max(initial=1)) if length is None else length
        place = self.offsets[rows][:, None] + np.arange(length)[None]
        mask = np.arange(length)[None] < self.lengths[rows][:, None]
        if not len(self.flat):
            return np.zeros(mask.shape, np.int32), mask
        return np.where(mask, self.flat[np.minimum(place, len(self.flat) - 1)], 0), mask


def train_tokenizer(texts: Sequence[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with a chat template on `texts`; its `save_pretrained` writes it.

    Returns:
      A tokenizer in which id 0 is the padding and an answer ends with `<|end_of_assistant|>`, the end of sequence.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, *END.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END["assistant"], chat_template=CHAT_TEMPLATE
    )


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Opens the tokenizer files of a model folder; never runs code from it.

    Raises:
      UserError: if there are none or they are broken.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: no tokenizer.json; give the folder of a model with a fast tokenizer")
    try:
        with contextlib.redirect_stderr(None):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many kinds, bare Exception among them
        raise UserError(f"{folder}: the tokenizer does not open ({error}); restore its files") from None


def tokenize_responses(
    tokenizer: PreTrainedTokenizerBase, responses: pa.Table, *, max_length: int, chunk: int = 4096
) -> TokenTable:
    """Tokenizes every row of a table of responses under its prompt.

    With a chat template the dialogue is rendered by it; without one (encoders) prompt and response are a text pair.
    Dialogues longer than `max_length` tokens lose their beginning, so that the answer's end stays; text pairs lose
    words of their longer half.
    """
    parts: list[list[int]] = []
    for start in range(0, responses.num_rows, chunk):
        rows = responses.slice(start, chunk).to_pylist()
        if tokenizer.chat_template:
            parts += _render(
                tokenizer, [[*row["prompt"], {"role": "assistant", "content": row["text"]}] for row in rows]
            )
        else:
            parts += _join(tokenizer, rows, max_length + 1)  # one more token tells which pairs are cut
    return _cut(parts, max_length, keep_end=bool(tokenizer.chat_template))


def tokenize_dialogues(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Sequence[str]], *, max_length: int
) -> TokenTable:
    """Tokenizes dialogues given as turns that alternate between user and assistant, beginning with the user."""
    roles = ("user", "assistant")
    chats = [[{"role": roles[i % 2], "content": text} for i, text in enumerate(dialogue)] for dialogue in turns]
    return _cut(_render(tokenizer, chats), max_length, keep_end=True)


def _render(tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]]) -> list[list[int]]:
    texts = [str(text) for text in tokenizer.apply_chat_template(chats, tokenize=False)]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _join(tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_length: int) -> list[list[int]]:
    prompts = ["\n".join(message["content"] for message in row["prompt"]) for row in rows]
    answers = [row["text"] for row in rows]
    return tokenizer(prompts, answers, truncation="longest_first", max_length=max_length)["input_ids"]


def _cut(parts: list[list[int]], max_length: int, *, keep_end: bool) -> TokenTable:
    """Lays sequences end to end, each cut to `max_length`; where the beginning stays, so does the closing token."""
    truncated = sum(len(ids) > max_length for ids in parts)
    if truncated:
        parts = [
            ids if len(ids) <= max_length else ids[-max_length:] if keep_end else [*ids[: max_length - 1], ids[-1]]
            for ids in parts
        ]
    lengths = np.fromiter((len(ids) for ids in parts), np.int64, len(parts))
    flat = np.fromiter((token for ids in parts for token in ids), np.int32, int(lengths.sum()))
    return TokenTable(flat, np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]), truncated)
