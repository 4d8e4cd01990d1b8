"""Control tokens that stand in texts, such as "<|im_end|>" in an answer: they stay text.

Otherwise an answer could open turns of its own, and in training by rewards it would pay to do so.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from pref_jax.progress import log


def render(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Any], ids: list[list[int]], **options: Any
) -> list[list[int]]:
    """The tokens of dialogues in which every control token is the chat template's own.

    Rows whose texts hold none keep their `ids`. The others are tokenized by transformers' own
    `apply_chat_template(..., sanitize_control_tokens=True)`, which an export's user can call too. Where a tokenizer
    makes the control token of plain text as well, the rows stay as they are and are counted on the terminal.

    Args:
      tokenizer: with a chat template.
      chats: dialogues, lists of messages.
      ids: their tokens as the template and the tokenizer give them.
      **options: for the chat template.
    """
    literal, found, left = _pattern(tokenizer), list(ids), []
    for row, chat in enumerate(chats):
        if not any(literal.search(text) for text in _texts(chat)):
            continue
        try:
            own: Any = tokenizer.apply_chat_template(chat, sanitize_control_tokens=True, return_dict=False, **options)
        except ValueError as error:
            left.append(str(error))
            continue
        found[row] = own
    if left:
        log(f"  {len(left)} of {len(chats)} texts hold control tokens that stay control tokens ({left[0]})")
    return found


def count_in_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Any, texts: Sequence[Sequence[str]]) -> None:
    """Tells how many text pairs have control tokens inside a text, though texts were tokenized without them.

    Args:
      tokenizer: what made the pairs.
      pairs: its batch of encodings.
      texts: first and second text of each.
    """
    unknown: Any = tokenizer.unk_token_id
    literal, special = _pattern(tokenizer), set(tokenizer.all_special_ids) - {unknown}
    rows = [row for row, both in enumerate(texts) if any(literal.search(text) for text in both)]
    inside = [zip(pairs["input_ids"][row], pairs.sequence_ids(row), strict=True) for row in rows]
    left = sum(any(half is not None and token in special for token, half in both) for both in inside)
    if left:
        log(f"  {left} of {len(texts)} text pairs hold control tokens that this tokenizer makes of plain text too")


def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What matches any token that was added to a vocabulary, spaces apart, which texts may hold like any other."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
    return re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)")


def _texts(value: Any) -> Iterator[str]:
    """All strings in a dialogue, keys apart."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
