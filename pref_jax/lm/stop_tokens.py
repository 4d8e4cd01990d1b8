"""Which tokens end a text: those that the files of a model name, and what its chat template closes an answer with."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pref_jax import json_fields
from pref_jax.data.text.tokenization import rendered
from pref_jax.errors import UserError
from pref_jax.files import read_json
from pref_jax.lm.config import LMConfig

# An answer that no template writes by itself.
_MARK = "zqxjkv"


def stop_tokens(config: LMConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[int, ...]:
    """In rising order, those below the model's vocabulary size.

    From `generation_config.json`, `config.json` and the tokenizer the end of sequence, and the special token that the
    chat template writes behind an answer: models are trained to end a turn with it, whatever their files say.

    Raises:
      UserError: if `generation_config.json` names something that is no token.
    """
    named = [_of_generation(folder), config.eos_token_id, tokenizer.eos_token_id, turn_end(tokenizer)]
    each: Any = (value if isinstance(value, list | tuple) else [value] for value in named)
    found = {int(token) for tokens in each for token in tokens if token is not None}
    return tuple(sorted(token for token in found if 0 <= token < config.vocab_size))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token behind an answer; None if the template writes none, or there is no template."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    try:
        text = rendered(tokenizer, [chat])[0]
    except Exception:  # a template is a program, which may fail in any way of its own
        return None
    behind: Any = tokenizer(text.rpartition(_MARK)[2].lstrip(), add_special_tokens=False)["input_ids"]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return behind[0] if behind and behind[0] in special else None


def _of_generation(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    found = json_fields.record(read_json(path), str(path)).get("eos_token_id")
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise UserError(f"{path}: eos_token_id is {found!r}; give a token's number, or a list of such")
    return tokens
