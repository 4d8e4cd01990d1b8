"""Chat templates made to give the same text on every day, here and in an export opened by transformers.

What a template lacks is put before it, so that whoever renders with it renders as we do:

    the day     `strftime_now` and `date_string` say `DATE`
    the parts   where content has to be a list of parts and a string would be passed over, strings become such lists
"""

import datetime
import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from pref_jax.data.messages import Chat

# Some templates write today's date into every dialogue; the same text has to give the same tokens tomorrow.
DAY = datetime.datetime(2024, 7, 26, 12)
DATE = DAY.strftime("%d %b %Y")
_FORMATS = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1""")
_MARK = "zqxjkv"
# A role, and the roles of a dialogue that has it.
_ROLES = {
    "system": ("system", "user", "assistant"),
    "user": ("user", "assistant"),
    "assistant": ("user", "assistant"),
    "tool": ("user", "assistant", "tool"),
}
# An expression at the end, as the newline behind a statement would go.
_END = '{{ "" }}'
_PARTS = """\
{%- set fixed = namespace(messages=[]) %}{%- for message in messages %}\
{%- if message.content is string and message.role in ROLES %}\
{%- set message = dict(message, content=[{"type": "text", "text": message.content}]) %}{%- endif %}\
{%- set fixed.messages = fixed.messages + [message] %}{%- endfor %}{%- set messages = fixed.messages %}"""


def fixed(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template by which a tokenizer's dialogues are rendered; what was made by this function stays as it is.

    Raises:
      ValueError: if there is none, or none of several is the usual one.
    """
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _fixed(tokenizer.get_chat_template(), tuple(sorted(names.items())))


@functools.lru_cache(maxsize=64)
def _fixed(template: str, names: tuple[tuple[str, str], ...]) -> str:
    before = ""
    if "date_string" in template:
        before += f'{{%- set date_string = "{DATE}" %}}'
    if formats := {text: DAY.strftime(text) for _, text in _FORMATS.findall(template)} or "strftime_now" in template:
        table = json.dumps(formats if isinstance(formats, dict) else {})
        before += f'{{%- macro strftime_now(format) -%}}{{{{ {table}.get(format, "{DATE}") }}}}{{%- endmacro %}}'
    if before and template.startswith(before):
        return template
    if roles := _in_parts_only(template, dict(names)):
        before += _PARTS.replace("ROLES", json.dumps(roles))
    return f"{before}{_END}{template}" if before else template


def _in_parts_only(template: str, names: dict[str, str]) -> list[str]:
    """Roles whose content shows when it is a list of parts, and not when it is a string."""
    found = []
    for role, roles in _ROLES.items():
        plain: Chat = [{"role": one, "content": _MARK if one == role else "a"} for one in roles]
        parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in plain]
        if not _shows(template, plain, names) and _shows(template, parts, names):
            found.append(role)
    return found


def _shows(template: str, chat: Chat, names: dict[str, Any]) -> bool:
    try:
        texts = render_jinja_template(conversations=[chat], chat_template=template, **names)[0]
    except Exception:  # a template is a program, which may fail in any way of its own
        return False
    return _MARK in texts[0] and "'text'" not in texts[0]


def left_out(chats: Sequence[Chat], texts: Sequence[str]) -> tuple[Counter[str], str]:
    """Roles of messages of whose content some words are nowhere in the rendered text, and one such text.

    Args:
      chats: dialogues.
      texts: what the template made of them.
    """
    found, example = Counter[str](), ""
    for chat, text in zip(chats, texts, strict=True):
        for message in chat:
            content = message["content"]
            if content.strip() in text or all(word in text for word in _words(content)):
                continue
            found[message["role"]] += 1
            example = example or content
    return found, example


def _words(text: str) -> Iterator[str]:
    return (match[0] for match in re.finditer(r"\w+", text))


def told(roles: Counter[str], example: str, count: int) -> str:
    """What `left_out` found, as a sentence; "" if nothing is left out."""
    if not roles:
        return ""
    each = ", ".join(f"{number} of role {role}" for role, number in sorted(roles.items()))
    return f"the chat template leaves out text of messages: {each}, in {count} dialogues, such as {example!r:.60}"


def settle(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer, in place, the templates by which its dialogues are rendered here."""
    own: Any = tokenizer.chat_template
    if isinstance(own, dict):
        names = tuple(sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()))
        tokenizer.chat_template = {name: _fixed(template, names) for name, template in own.items()}
    elif own:
        tokenizer.chat_template = fixed(tokenizer)
