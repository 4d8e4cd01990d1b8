"""Prompts that a trainer has already rendered by the policy's chat template, as chat messages again.

A reward model renders by its own template; a prompt full of another one's marks would be text to it. Known are the
templates of Qwen and others (ChatML), Llama 3, and Gemma; a data set that keeps the messages is better.
"""

import re
from collections.abc import Sequence

from pref_jax.data.messages import Chat
from pref_jax.progress import log_once

# Each: what opens a message (its first group is the role), and what ends it.
_FORMS = (
    (re.compile(r"<\|im_start\|>(\w+)\n"), "<|im_end|>"),
    (re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"), "<|eot_id|>"),
    (re.compile(r"<start_of_turn>(\w+)\n"), "<end_of_turn>"),
)
_ROLES = {"model": "assistant"}
_MARK = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>|\[/?INST\]")
# What ends an answer that was decoded with its special tokens.
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "<pad>", "</s>")


def as_messages(prompt: str) -> str | Chat:
    """The messages of a rendered prompt; a prompt of no known template as it is.

    Example:
      >>> as_messages("<|im_start|>user\\nHow long?<|im_end|>\\n<|im_start|>assistant\\n")
      [{'role': 'user', 'content': 'How long?'}]
    """
    for begin, end in _FORMS:
        starts = list(begin.finditer(prompt))
        if not starts:
            continue
        ends = [*(found.start() for found in starts[1:]), len(prompt)]
        bodies = [prompt[found.end() : stop] for found, stop in zip(starts, ends, strict=True)]
        messages = [
            {"role": _ROLES.get(found[1], found[1]), "content": body.split(end)[0].strip()}
            for found, body in zip(starts, bodies, strict=True)
        ]
        # What asks for the answer is not part of the dialogue, and neither is what the template begins it with.
        if messages[-1]["role"] == "assistant" and end not in bodies[-1]:
            messages = messages[:-1]
        return [message for message in messages if message["content"]] or prompt
    if _MARK.search(prompt):
        log_once(
            "warning: prompts hold marks of a chat template that is not known here, and are scored with them; give the "
            "messages themselves in a column of the data set"
        )
    return prompt


def without_end(text: str, ends: Sequence[str] = ENDS) -> str:
    """An answer without the special tokens at its end.

    Example:
      >>> without_end("Seven minutes.<|im_end|>\\n<|endoftext|>")
      'Seven minutes.'
    """
    while True:
        text = text.rstrip()
        end = next((end for end in ends if text.endswith(end)), None)
        if end is None:
            return text
        text = text[: -len(end)]


def answer_of(query: str, prompt: str) -> str | None:
    """What follows the prompt in a query; None where the prompt is not there.

    A query that is too long has lost the beginning of its prompt; a tokenizer may have put a token before it.

    Example:
      >>> answer_of("long? Seven minutes.", "How long?")
      ' Seven minutes.'
    """
    if (place := query[: len(prompt) + 64].find(prompt)) >= 0:
        return query[place + len(prompt) :]
    # The longest end of the prompt that the query begins with.
    for start in range(1, len(prompt)):
        if query.startswith(prompt[start:]):
            return query[len(prompt) - start :]
    return None
