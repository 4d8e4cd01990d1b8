"""Text to tokens: tokenizers in Hugging Face layout, dialogues rendered, every distinct response tokenized once."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pref_jax import json_fields
from pref_jax.data.messages import Chat, answer, as_chat, as_text
from pref_jax.data.text import chat_templates, control_tokens
from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import Faults, UserError
from pref_jax.files import read_json
from pref_jax.progress import log

# Types of values in a tokenizer's files.
_TOKEN: json_fields.Kind = (lambda value: isinstance(value, str | dict)), "give the token's text"
_TOKENIZER: dict[str, json_fields.Kind] = {
    "chat_template": ((lambda value: isinstance(value, str | list | dict)), "give a Jinja template as text"),
    "model_max_length": json_fields.NUMBER,
    "tokenizer_class": json_fields.WORD,
    "padding_side": ((lambda value: value in ("left", "right")), 'give "left" or "right"'),
    "truncation_side": ((lambda value: value in ("left", "right")), 'give "left" or "right"'),
    "model_input_names": json_fields.WORDS,
    "added_tokens_decoder": json_fields.RECORD,
}
# A turn is closed by a token of its role: the state there has read the whole answer and is where rewards are read.
END = {"user": "<|end_of_user|>", "assistant": "<|end_of_assistant|>"}
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}<|end_of_{{ message.role }}|>{% endfor %}"
PAD = "<|pad|>"
TEMPLATE_FIX = "or give a Jinja file with --config.backbone.chat_template=FILE"
# Rows after which a template that took none of them is not asked about the rest.
ENOUGH = 100
SHOWN = 5


class TextFaults(UserError):
    """Texts that a chat template or a tokenizer does not take.

    Attributes:
      head: what does not take them.
      reasons: row -> what was said of it.
      looked_at: how many rows were tried.
      fix: what to do.
    """

    def __init__(self, head: str, reasons: Mapping[int, str], looked_at: int, fix: str):
        self.head, self.reasons, self.looked_at, self.fix = head, reasons, looked_at, fix
        super().__init__(self.told(lambda row: f"row {row}"))

    def told(self, name: Callable[[int], str]) -> str:
        """The message, with the first few rows called by `name`."""
        lines = [f"  {name(row)}: {reason}" for row, reason in itertools.islice(self.reasons.items(), SHOWN)]
        if len(self.reasons) > SHOWN:
            lines.append(f"  ... and {len(self.reasons) - SHOWN} more")
        head = f"{self.head} does not take {len(self.reasons)} of {self.looked_at} texts:"
        return "\n".join([head, *lines, self.fix])


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


def load_tokenizer(folder: str | Path, *, chat_template: str | Path = "") -> PreTrainedTokenizerBase:
    """Opens the tokenizer files of a model folder; never runs code from it.

    Args:
      folder: holds `tokenizer.json`.
      chat_template: a Jinja file that takes the place of the tokenizer's own chat template; "" for its own.

    Raises:
      UserError: if there are none, they are broken, or the template is not readable.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: no tokenizer.json; give the folder of a model with a fast tokenizer")
    _check_files(folder)
    try:
        with contextlib.redirect_stderr(None):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many kinds, bare Exception among them
        raise UserError(f"{folder}: the tokenizer does not open ({error}); restore its files") from None
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{chat_template}: no readable chat template ({error}); give a Jinja file") from None
    return tokenizer


def _check_files(folder: Path) -> None:
    """Looks at the types of values in the files beside `tokenizer.json`.

    Raises:
      UserError: with file and field of each that is of another type than it should be.
    """
    faults = Faults()
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            raw = json_fields.record(read_json(folder / name), str(folder / name))
            if name != "added_tokens.json":
                tokens = {field: _TOKEN for field in raw if field.endswith("_token") and not field.startswith("add_")}
                json_fields.check(raw, _TOKENIZER | tokens, faults, str(folder / name))
    faults.raise_if_any("Tokenizer files")


def type_separator(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token behind which a text pair's tokens are of type 1; None if this tokenizer tells no types.

    Raises:
      UserError: if its types are none that begin behind one token.
    """
    if "token_type_ids" not in tokenizer.model_input_names:
        return None
    pair = tokenizer("a b", "c d e", return_token_type_ids=True, verbose=False)
    ids, types = np.array(pair["input_ids"]), np.array(pair["token_type_ids"])
    if not types.any():
        return None
    separator = int(ids[types.argmax() - 1])
    if not np.array_equal(types, np.cumsum(ids == separator) - (ids == separator) > 0):
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer gives a text pair the types {types.tolist()}, which are not 0 up "
            "to a separator and 1 behind it; use a tokenizer like BERT's"
        )
    return separator


def tokenize_responses(
    tokenizer: PreTrainedTokenizerBase,
    responses: pa.Table,
    *,
    max_length: int,
    pairs: bool = False,
    chunk: int = 4096,
) -> TokenTable:
    """Tokenizes every row of a table of responses under its prompt.

    Too long texts lose their beginning, so that the response's end stays. The table tells how many were cut.

    Args:
      tokenizer: as from `load_tokenizer`.
      responses: columns `prompt` and `text`, perhaps `extra`.
      max_length: the most tokens of a text, special ones included.
      pairs: encoders: prompt and response are a text pair, whose special tokens always stay. Otherwise the dialogue
        is rendered by the chat template.
      chunk: rows that are tokenized at a time.

    Raises:
      TextFaults: naming the rows that the chat template or the tokenizer does not take.
      UserError: if there is no chat template; if `max_length` holds no text.
    """
    tables, refused = [], {}
    for start in range(0, responses.num_rows, chunk):
        rows = responses.slice(start, chunk).to_pylist()
        try:
            if pairs:
                tables.append(_try(_join, tokenizer, rows, max_length))
            else:
                chats = [as_chat([*row["prompt"], answer(row)]) for row in rows]
                tables.append(_try(_render, tokenizer, chats, max_length))
        except TextFaults as faults:
            refused |= {start + row: reason for row, reason in faults.reasons.items()}
            head, fix = faults.head, faults.fix
            if len(faults.reasons) == faults.looked_at >= ENOUGH:  # the template is at fault, not the texts
                raise TextFaults(head, refused, start + faults.looked_at, fix) from None
    if refused:
        raise TextFaults(head, refused, responses.num_rows, fix)
    return _concatenate(tables)


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, responses: pa.Table, *, max_length: int, pairs: bool = False
) -> TokenTable:
    """`tokenize_responses` of the prompts alone: the dialogue before the answer, or a text pair without a second text.

    Raises:
      UserError: as there.
    """
    rows = responses.select(["prompt"]).to_pylist()
    if pairs:
        return _try(_join, tokenizer, [{**row, "text": ""} for row in rows], max_length)
    return _try(_render, tokenizer, [as_chat(row["prompt"]) for row in rows], max_length)


def tokenize_dialogues(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Sequence[str]], *, max_length: int
) -> TokenTable:
    """Tokenizes dialogues given as turns that alternate between user and assistant, beginning with the user.

    Raises:
      UserError: if there is no chat template or it does not take a dialogue.
    """
    roles = ("user", "assistant")
    chats = [[{"role": roles[i % 2], "content": text} for i, text in enumerate(dialogue)] for dialogue in turns]
    return _try(_render, tokenizer, chats, max_length)


def _try(
    read: Callable[..., TokenTable], tokenizer: PreTrainedTokenizerBase, rows: list, max_length: int
) -> TokenTable:
    """`read` of all rows; if that fails, of one after the other, to tell which do not go.

    Raises:
      TextFaults: naming them, by their number.
      UserError: for what is wrong whatever the rows are.
    """
    try:
        return read(tokenizer, rows, max_length)
    except UserError:
        raise
    except Exception as error:  # a template is a program, which may fail in any way of its own
        reasons = {}
        for number, row in enumerate(rows):
            try:
                read(tokenizer, [row], max_length)
            except Exception as own:
                reasons[number] = _reason(own)
            if len(reasons) == number + 1 == ENOUGH:
                break
        reasons = reasons or {0: _reason(error)}
    looked_at = min(len(rows), ENOUGH) if len(reasons) == ENOUGH else len(rows)
    if read is not _join:
        head = f"{tokenizer.name_or_path}: the chat template"
        raise TextFaults(head, reasons, looked_at, f"fix the roles in the data, {TEMPLATE_FIX}")
    raise TextFaults(f"{tokenizer.name_or_path}: the tokenizer", reasons, looked_at, "fix these texts in the data")


def _reason(error: Exception) -> str:
    said = str(error) or "no reason given"
    return said if isinstance(error, jinja2.TemplateError | ValueError) else f"{type(error).__name__}: {said}"


def tokenize_openings(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> TokenTable:
    """Tokenizes dialogues up to where the assistant's next turn begins, whole.

    Raises:
      UserError: as `tokenize_prompts`.
    """
    return _try(_open, tokenizer, list(chats), sys.maxsize)


def _open(tokenizer: PreTrainedTokenizerBase, chats: list[Chat], max_length: int) -> TokenTable:
    return _render(tokenizer, chats, max_length, add_generation_prompt=True)


def _render(tokenizer: PreTrainedTokenizerBase, chats: list[Chat], max_length: int, **options: Any) -> TokenTable:
    """Dialogues by the chat template; a long one keeps its last `max_length` tokens."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, so dialogues cannot be written as this "
            f"decoder reads them; take the model's instruction-tuned variant, {TEMPLATE_FIX}"
        )
    if max_length < 1:
        raise UserError(f"max_length is {max_length}; a text keeps one token at least")
    texts = rendered(tokenizer, chats, **options)
    if note := chat_templates.told(*chat_templates.left_out(chats, texts), len(chats)):
        log(f"  {note}")
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    options["chat_template"] = chat_templates.fixed(tokenizer)
    ids = control_tokens.render(tokenizer, chats, ids, **options)
    return _lay([one[-max_length:] for one in ids], truncated=sum(len(one) > max_length for one in ids))


def rendered(tokenizer: PreTrainedTokenizerBase, chats: list[Chat], **options: Any) -> list[str]:
    """Dialogues as the chat template writes them, on the day of `chat_templates.DATE`; `options` are the template's."""
    options["chat_template"] = chat_templates.fixed(tokenizer)
    texts: Any = tokenizer.apply_chat_template(chats, tokenize=False, **options)
    return [str(text) for text in texts]


def _join(tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_length: int) -> TokenTable:
    """Text pairs; a long one loses the prompt's beginning, then the response's, and no special token.

    Fields of a message beside role and content follow it as JSON.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if max_length <= special:
        raise UserError(
            f"max_length={max_length} leaves no room for text beside {special} special tokens; set it to at least "
            f"{special + 1}, with --config.backbone.max_length"
        )
    prompts, texts = (list(halves) for halves in zip(*map(pair_texts, rows), strict=True))
    pairs = tokenizer(prompts, texts, split_special_tokens=True, verbose=False)
    control_tokens.count_in_pairs(tokenizer, pairs, list(zip(prompts, texts, strict=True)))
    ids = pairs["input_ids"]
    long = [i for i, one in enumerate(ids) if len(one) > max_length]
    for i in long:
        # The library's own truncation cuts either half of a pair only, or the longer one.
        text = np.array([half is not None for half in pairs.sequence_ids(i)])
        ids[i] = np.array(ids[i])[~text | (text.cumsum() > len(text) - max_length)].tolist()
    return _lay(ids, truncated=len(long))


def pair_texts(row: Mapping[str, Any]) -> tuple[str, str]:
    """A row as an encoder's text pair: one question as it is, several messages with their roles; and the answer."""
    prompt = row["prompt"]
    lines = [f"{message['role']}: {as_text(message)}" for message in prompt]
    if [message["role"] for message in prompt] == ["user"]:
        lines = [as_text(prompt[0])]
    return "\n".join(lines), as_text(answer(row))


def _lay(ids: list[list[int]], *, truncated: int) -> TokenTable:
    """Lays sequences end to end."""
    if not all(ids):
        raise ValueError("nothing is left of the text, not one token")
    lengths = np.fromiter((len(one) for one in ids), np.int64, len(ids))
    flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(lengths.sum()))
    return TokenTable(flat, np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]), truncated)


def _concatenate(tables: list[TokenTable]) -> TokenTable:
    lengths = np.concatenate([np.zeros(1, np.int64), *(table.lengths for table in tables)])
    flat = np.concatenate([np.zeros(0, np.int32), *(table.flat for table in tables)])
    return TokenTable(flat, lengths.cumsum(), sum(table.truncated for table in tables))
