"""Rendered dialogues, as trainers and engines send them, read back into prompt and answer by the model's own template.

A template is asked to render marked messages; what stands around the marks cuts a text into messages. What was cut
counts only if the template renders it to the very text again, so that a dialogue is never read as another one: its
score is then that of `model.score` of prompt and answer. Where a text ends inside what the template puts behind an
answer (a missing end of turn, a cut newline) that is added, and a beginning of sequence that an engine would add too.
"""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from pref_jax.data.messages import Chat
from pref_jax.data.text.tokenization import rendered
from pref_jax.lm.text_model import TextModel

# Marks that no text holds; a template may strip what is around a message, so they hold no space.
_MARKS = ("@0SYS0@", "@1ASK1@", "@2SAY2@", "@3ASK3@", "@4SAY4@")


class Dialogue(NamedTuple):
    """A text that was read back: the messages before the answer, and the answer."""

    prompt: Chat
    answer: str


class _Shape(NamedTuple):
    """What a template writes before the first message, between two and behind the last one."""

    system: bool
    head: str
    after_system: str
    ask_to_say: str
    say_to_ask: str
    ask_to_last: str
    tail: str


class TemplateReader:
    """Reads rendered dialogues back.

    Example:
      reader = TemplateReader(model.text.tokenizer)
      reader.read("<|im_start|>user\\nHow long?<|im_end|>\\n<|im_start|>assistant\\nSeven minutes.<|im_end|>")
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._special = [token.content for token in added if token.special and token.content.strip()]

    @functools.cached_property
    def _shapes(self) -> list[_Shape]:
        """Of dialogues of one round and of several, with and without a system's message, as far as there are such."""
        if not self._tokenizer.chat_template:
            return []
        found = []
        for system, several in itertools.product((False, True), (False, True)):
            try:
                found.append(_shape(self._tokenizer, system=system, several=several))
            except Exception:  # a template is a program, which may refuse a dialogue in any way of its own
                continue
        return [shape for shape in found if shape is not None]

    def read(self, text: str) -> Dialogue | None:
        """Prompt and answer of a rendered dialogue; None if the template does not write it."""
        begin, found = str(self._tokenizer.bos_token or ""), []
        for shape in self._shapes:
            for lead in ("", begin) if begin and not text.startswith(begin) else ("",):
                chat = _cut(shape, lead + text)
                if chat is not None and self._writes(chat, lead + text, shape.tail):
                    found.append(chat)
        if not found:
            return None
        # Of several readings the one in which most is the template's.
        chat = min(found, key=lambda chat: sum(len(message["content"]) for message in chat))
        return Dialogue(chat[:-1], str(chat[-1]["content"]))

    def _writes(self, chat: Chat, text: str, tail: str) -> bool:
        # Control tokens in a message would become text, which they are not in what was sent.
        if any(token in message["content"] for message in chat for token in self._special):
            return False
        try:
            again = rendered(self._tokenizer, [chat])[0]
        except Exception:  # as above
            return False
        return again.startswith(text) and len(again) - len(text) <= len(tail)


def _shape(tokenizer: PreTrainedTokenizerBase, *, system: bool, several: bool) -> _Shape | None:
    marks = [_MARKS[0]] * system + list(_MARKS[1:3]) + list(_MARKS[3:]) * several
    roles = ["system"] * system + ["user", "assistant"] * (1 + several)
    chat = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    text, pieces = rendered(tokenizer, [chat])[0], []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(before)
    head, *between = pieces
    after_system = between.pop(0) if system else ""
    first, back, last = between if several else (between[0], "", between[0])
    return _Shape(system, head, after_system, first, back, last, text)


def _cut(shape: _Shape, text: str) -> Chat | None:
    """The messages that stand between what the template writes."""
    if not text.startswith(shape.head) or not shape.ask_to_last:
        return None
    body = _without_tail(text[len(shape.head) :], shape.tail)
    chat: Chat = []
    if shape.system:
        said, found, body = body.partition(shape.after_system)
        if not found:
            return None
        chat.append({"role": "system", "content": said})
    before, found, answer = body.rpartition(shape.ask_to_last)
    if not found or not answer.strip():
        return None
    rounds = before.split(shape.say_to_ask) if shape.say_to_ask else [before]
    for number, one in enumerate(rounds):
        asked, found, said = (one, "", "") if number == len(rounds) - 1 else one.partition(shape.ask_to_say)
        if number < len(rounds) - 1 and not found:
            return None
        chat.append({"role": "user", "content": asked})
        if found:
            chat.append({"role": "assistant", "content": said})
    return [*chat, {"role": "assistant", "content": answer}]


def _without_tail(text: str, tail: str) -> str:
    """The text without as much of the tail's beginning as it ends with."""
    ends = (tail[:size] for size in range(len(tail), 0, -1))
    return next((text[: -len(end)] for end in ends if text.endswith(end)), text)


def tokens_of(model: TextModel, text: str, *, special: bool) -> tuple[Int32[np.ndarray, " L"], bool]:
    """Tokens of a text as it is, and whether it lost its beginning: control tokens in it are such.

    Args:
      model: the base.
      text: rendered by somebody else.
      special: put the tokenizer's special tokens around it, but not a second beginning of sequence.
    """
    tokenizer, pairs = model.tokenizer, not model.config.traits.causal
    begin = str(tokenizer.bos_token or "")
    around = pairs or (special and not (begin and text.startswith(begin)))
    encoded: Any = tokenizer(text, add_special_tokens=around, verbose=False)
    ids = list(encoded["input_ids"])
    over = len(ids) - model.max_length
    if over > 0:
        # The first token of an encoder is what states are read at.
        ids = [ids[0], *ids[over + 1 :]] if pairs else ids[over:]
    return np.array(ids, np.int32), over > 0
