"""The tokenizer files of Hugging Face from the fields of a GGUF file.

Byte-level vocabularies ("gpt2") name by `tokenizer.ggml.pre` how text is split before merging; those of sentencepiece
("llama") have scores in place of merges. Everything else is refused by name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pref_jax.errors import UserError
from pref_jax.files import write_json

_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = _TEKKEN.replace(rf"{_LOWER}+|", rf"{_LOWER}+{_ENDING}|").replace(rf"{_LOWER}*|", rf"{_LOWER}*{_ENDING}|")
_GPT4O = _GPT4O.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


class _Split(NamedTuple):
    """How a byte-level vocabulary splits text.

    Attributes:
      pattern: of the pieces; "" for GPT-2's own.
      digits: each digit is a piece.
      normalized: to NFC first.
      whole: a piece that is in the vocabulary is a token, whatever the merges say.
    """

    pattern: str = ""
    digits: bool = False
    normalized: bool = False
    whole: bool = False


_SPLITS = {
    "gpt-2": _Split(),
    "smollm": _Split(digits=True),
    "llama-bpe": _Split(_LLAMA3, whole=True),
    "qwen2": _Split(_LLAMA3.replace("{1,3}", ""), normalized=True),
    "tekken": _Split(_TEKKEN, whole=True),
    "gpt-4o": _Split(_GPT4O),
    "dbrx": _Split(_LLAMA3),
}
_SPLITS |= {"llama3": _SPLITS["llama-bpe"], "llama-v3": _SPLITS["llama-bpe"], "falcon3": _SPLITS["llama-bpe"]}
# Vocabularies whose files need not say that texts begin with a token for it.
_BOS = ("llama-bpe", "llama3", "llama-v3")
_SPLITS |= {"deepseek-r1-qwen": _SPLITS["qwen2"], "phi-2": _SPLITS["gpt-2"], "starcoder": _SPLITS["smollm"]}
_SPLITS |= {"olmo": _SPLITS["gpt-2"], "refact": _SPLITS["smollm"], "smaug-bpe": _SPLITS["llama-bpe"]}
# Phi 3's tokens that keep the spaces behind them; its other control tokens and the end of a text take them in.
_KEEPS = ("<unk>", "<s>", "<|endoftext|>")


def write(folder: Path, fields: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, with the chat template.

    Args:
      folder: where they go.
      fields: of the GGUF file.
      config: the dictionary of `config.json`.
      where: the file, for messages.

    Raises:
      UserError: for a tokenizer that is not read.
    """
    own = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()}
    kind, split = own.get("model"), str(own.get("pre"))
    fix = "take the model's own tokenizer.json with its safetensors"
    if "tokens" not in own or kind not in ("gpt2", "llama"):
        raise UserError(f"{where}: tokenizer.ggml.model: {kind!r} is not read; {fix}")
    if kind == "gpt2" and (split not in _SPLITS or "merges" not in own):
        raise UserError(f"{where}: tokenizer.ggml.pre: {split!r} is none of {', '.join(_SPLITS)}; {fix}")
    if broken := _broken(own):
        raise UserError(f"{where}: tokenizer.ggml: {broken}; fetch the file again")
    gemma = config["model_type"].startswith("gemma")
    tokens: list[str] = [_respelled(token) if gemma else token for token in own["tokens"]]
    tokenizer = _byte_level(tokens, own, _SPLITS[split]) if kind == "gpt2" else _pieces(tokens, own, gemma=gemma)
    kinds = own.get("token_type", [])
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [token for token, kind in zip(own["tokens"], kinds, strict=False) if kind == wanted]
        wide = config["model_type"] == "phi3" and kind == "llama"
        present = [
            AddedToken(token, special=special, normalized=False, rstrip=wide and special and token not in _KEEPS)
            for token in added
            if token in set(tokens)
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(present)
    names = {name: own.get(f"{long}_token_id") for name, long in _SPECIAL.items()}
    special = {name: tokens[number] for name, number in names.items() if number is not None}
    if own.get("add_bos_token", kind == "llama" or split in _BOS) and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False}
    template = {"chat_template": fields["tokenizer.chat_template"]} if "tokenizer.chat_template" in fields else {}
    length = config["max_position_embeddings"]
    write_json(folder / "tokenizer_config.json", {**about, **template, "model_max_length": length})


def _broken(own: Mapping[str, Any]) -> str:
    """What does not fit together; the library of tokenizers ends the process for some of it."""
    known, numbers = (
        set(own["tokens"]),
        [own[f"{name}_token_id"] for name in _SPECIAL.values() if f"{name}_token_id" in own],
    )
    for name in ("token_type", "scores"):
        if len(own.get(name, own["tokens"])) != len(own["tokens"]):
            return f"{len(own[name])} entries of {name} for {len(own['tokens'])} tokens"
    for merge in own.get("merges", ()):
        parts = merge.split(" ")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= known:
            return f"the merge {merge!r} is of what is no token"
    return next((f"no token has the number {number}" for number in numbers if number >= len(known)), "")


def _byte_level(tokens: Sequence[str], own: Mapping[str, Any], split: _Split) -> Tokenizer:
    """Byte-level BPE; a space within a token of merges is written as another letter, so pairs split at the space."""
    merges = [tuple(merge.split(" ")) for merge in own["merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=split.whole))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    pieces = [pre_tokenizers.Split(Regex(split.pattern), "isolated")] if split.pattern else []
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.pattern)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, *pieces, level])
    if split.normalized:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces(tokens: list[str], own: Mapping[str, Any], *, gemma: bool) -> Tokenizer:
    """BPE over whole texts with "▁" for spaces and bytes for what has no piece."""
    vocab = {token: number for number, token in enumerate(tokens)}
    # Gemma's scores do not follow the order of its merges; the order of its tokens does.
    by_score = not gemma and "scores" in own
    ranks = [-score for score in own["scores"]] if by_score else [float(rank) for rank in range(len(tokens))]
    unknown = tokens[own.get("unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(tokens, ranks), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = own.get("add_space_prefix", not gemma)
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    after = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*after, decoders.Strip(" ", 1, 0)] if prefix else after)
    return tokenizer


def _merges(tokens: list[str], ranks: Sequence[float]) -> list[tuple[str, str]]:
    """Every split of a token into two, those of the best token first, in the order of transformers' converters."""
    vocab = {token: number for number, token in enumerate(tokens)}
    found = []
    for token, number in vocab.items():
        for left, right in ((token[:at], token[at:]) for at in range(1, len(token))):
            if left in vocab and right in vocab:
                found.append((ranks[number], -len(left), -len(right), number, vocab[left], vocab[right]))
    return [(tokens[left], tokens[right]) for *_, left, right in sorted(found)]


def _respelled(token: str) -> str:
    """Runs of spaces, which files of Gemma hold as they are, in the spelling of all other tokens."""
    return "▁" * len(token) if token and not token.strip(" ") else token
