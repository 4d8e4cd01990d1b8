"""Linear rewards on a transformer, in folders that other engines open without us and score raw.

Which kind of folder depends on how the transformer reads a text:

    a decoder's last token   `AutoModelForSequenceClassification` with one label per reward: transformers, TRL, verl,
                             RewardBench, vLLM /classify and /score
    an encoder's own head    the same: its dense layer stays, its last linear becomes the rewards
    all else (means)         the layout of sentence-transformers, Transformer + Pooling + Dense; its "embedding" are the
                             rewards: `SentenceTransformer(folder).encode`, vLLM /embed. No class of transformers has a
                             linear head right on the mean: ModernBERT's puts a dense layer and a norm before it.

Rewards are to come out as they are. Left alone, transformers' text-classification pipeline takes the sigmoid of a
single label and the softmax of several, and vLLM does too (older versions take the softmax of a single label: always
1). `hf_config.RAW_SCORES` says regression, by which both return the logits; TRL, verl, RewardBench read logits anyway.

Axes: D features, K rewards.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32
from transformers import PreTrainedTokenizerBase

from pref_jax.data.text import chat_templates
from pref_jax.data.text.tokenization import load_tokenizer
from pref_jax.errors import Faults, UserError
from pref_jax.files import atomic_folder, read_json, write_json, write_tensors
from pref_jax.lm import checkpoint, int8
from pref_jax.lm.config import LMConfig
from pref_jax.progress import log

POOLING, DENSE = "1_Pooling", "2_Dense"
# Added to tokenizers whose padding could stand in a text.
PAD = "<|reward_pad|>"
_MODULES = {"": "Transformer", POOLING: "Pooling", DENSE: "Dense"}


class Linear(NamedTuple):
    """Rewards as a linear function of the raw pooled state: `weight` @ state + `offset`.

    Attributes:
      weight: float32 [K D].
      offset: float32 [K].
    """

    weight: Float32[np.ndarray, "K D"]
    offset: Float32[np.ndarray, " K"]


def fold_standardiser(
    basis: Float[Array | np.ndarray, "D K"],
    mean: Float[Array | np.ndarray, " D"],
    scale: Float[Array | np.ndarray, " D"],
) -> Linear:
    """Rewards ((state - mean) / scale) @ basis as a function of the raw state, folded in float64.

    One user's reward is that of `basis @ w[:, None]` [D 1], with the user's weights w [K] (LoRe, arXiv 2504.14439). The
    offset moves all rewards of a label alike and changes no comparison.
    """
    folded = np.asarray(basis, np.float64) / np.asarray(scale, np.float64)[:, None]
    offset = -np.asarray(mean, np.float64) @ folded
    return Linear(folded.T.astype(np.float32), offset.astype(np.float32))


def save_classifier(
    folder: str | Path,
    config: LMConfig,
    params: Mapping[str, Any],
    weight: Float[Array | np.ndarray, "K D"],
    *,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    bias: Float[Array | np.ndarray, " _"] | None = None,
    layer: int | None = None,
    max_length: int | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes the folder, in place of what was there; if killed, it is whole or absent. See above for who opens it.

        weight, offset = fold_standardiser(basis, mean, scale)
        save_classifier("out", config, params, weight, bias=offset, labels=names, tokenizer=tokenizer)
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        pipeline("text-classification", "out")(text, top_k=None, add_special_tokens=False)   # K rewards - offset

    The tokenizer's files say that long texts lose their beginning, as they do here, and fix the date that some chat
    templates print. transformers reads the last token that is not padding: a tokenizer without padding, or with one
    that also stands in texts (often the end of a turn), gets a token of its own, `PAD`.

    `score` of a decoder has no bias: there `bias` goes into `config.json` and the headers of the weights as
    "reward_offset": reward = logit + offset. The head is written in float32; transformers rounds it to the
    transformer's dtype unless it is told `dtype=torch.float32`.

    Args:
      folder: replaced if it is there.
      config: the transformer; `pooling` says what is read.
      params: its parameters; adapters must have been merged (`lora.merge`).
      weight: rewards of the pooled state as it comes from the transformer; see `fold_standardiser`.
      labels: K names.
      tokenizer: the transformer's, with the chat template by which texts were rendered; left as it is.
      bias: [K], what is added to the rewards; 0 by default.
      layer: None, or k if the states after k blocks are read.
      max_length: the most tokens of a text; by default the transformer's positions.
      max_shard_bytes: as for `checkpoint.save`.

    Raises:
      UserError: for shapes that do not fit, values that are not finite, doubled labels, texts longer than the model's
        positions, a layer that no other engine stops at, a base held in bytes.
    """
    weight = np.array(weight, np.float32, order="C")
    offset = None if bias is None else np.array(bias, np.float32)
    length = config.max_positions if max_length is None else max_length
    _check(config, weight, offset, labels, layer, length)
    int8.need_floats(params, str(folder))
    classifier, dense = config.as_classifier, config.as_classifier and config.dense_head
    trunk = {name: leaf for name, leaf in params.items() if name not in ("lm_head", "score")}
    if not dense:
        trunk.pop("head", None)
    config, trunk = _cut(dataclasses.replace(config, lm_head=False, num_labels=0), trunk, layer)
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token_id is None or (classifier and not dense and padding_in_texts(tokenizer)):
        tokenizer.add_special_tokens({"pad_token": PAD})
    config, trunk = _pad(config, trunk, tokenizer)
    names = dict(enumerate(labels))
    extra: dict[str, Any] = {"id2label": names, "label2id": {name: label for label, name in names.items()}}
    told = {}
    if classifier:
        config = dataclasses.replace(config, num_labels=len(weight))
        score = {"kernel": weight.T}
        if dense:
            score["bias"] = np.zeros(len(weight), np.float32) if offset is None else offset
        elif offset is not None:
            told = {"reward_offset": offset.tolist()}
        trunk |= {"score": score}
    headers = {name: json.dumps(value) for name, value in told.items()}
    with atomic_folder(folder) as part:
        checkpoint.save(part, config, trunk, max_shard_bytes=max_shard_bytes, extra=extra | told, metadata=headers)
        save_tokenizer(part, tokenizer, config, max_length=length)
        if not classifier:
            _save_modules(part, config, weight, offset, length)


def padding_in_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether padding also stands in texts, as end of turn or unknown word, where transformers then passes it over."""
    return tokenizer.pad_token_id in (tokenizer.unk_token_id, *_probe(tokenizer))


def check_padding(config: LMConfig, tokenizer: PreTrainedTokenizerBase, where: str | Path) -> None:
    """Whether transformers reads texts at their last token on the base as it stands: it looks for the last token that
    is not `config.json`'s `pad_token_id`.

    Raises:
      UserError: if texts may end with that token, or with the tokenizer's padding.
    """
    unknown: Any = tokenizer.unk_token_id
    padding: Any = tokenizer.pad_token_id
    may_end = {_probe(tokenizer, answer)[-1] for answer in ("It depends: 42%.", "Oui")}
    if len(may_end) > 1:  # no template closes the answer, so it may end with anything
        may_end.add(unknown)
    for pad in {config.pad_token_id, padding} - {None}:
        if pad in may_end:
            raise UserError(
                f"{where}: texts may end with {tokenizer.convert_ids_to_tokens(pad)!r}, which is padding too, and "
                "transformers would read the token before it; train on a transformer whose config.json and tokenizer "
                "have a padding of their own, or export merged weights (save_merged), which get one"
            )
    if config.pad_token_id != tokenizer.pad_token_id:
        own, theirs = config.pad_token_id, tokenizer.pad_token_id
        said = f"config.json has {own}, the tokenizer {theirs}"
        log(f"  {where}: set base.config.pad_token_id to the token that you pad with; {said}")


def save_tokenizer(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase, config: LMConfig, *, max_length: int | None = None
) -> None:
    """Writes the tokenizer's files so that other engines tokenize as we do: cut on the left, with one date.

    They are told to make token types for models that read them alone, as transformers' decoders refuse them; and for
    encoders, whose text pairs get their control tokens from the tokenizer, that control tokens in a text are text. A
    decoder's come from the chat template: there `apply_chat_template(chat, sanitize_control_tokens=True)` does that.
    Where the chat template writes the beginning of sequence, the tokenizer is told to put none before the text.

    Args:
      folder: with `config.json`, if the model is to stand there too.
      tokenizer: left as it is.
      config: the transformer that reads its tokens.
      max_length: the most tokens of a text; by default what the tokenizer says.

    Raises:
      UserError: if `AutoTokenizer` makes other tokens of it, because it takes another class for this kind of model.
    """
    folder, pairs = Path(folder), not config.traits.causal
    wanted = _probe(tokenizer, pairs=pairs)
    tokenizer = copy.deepcopy(tokenizer)
    chat_templates.settle(tokenizer)
    once = not pairs and _begins_twice(tokenizer)
    if once:
        getattr(tokenizer, "backend_tokenizer").post_processor = None  # noqa: B009 - of fast tokenizers
    tokenizer.save_pretrained(folder)
    about = read_json(folder / "tokenizer_config.json")
    types = [] if config.type_separator is None else ["token_type_ids"]
    about |= {"add_bos_token": False, "add_eos_token": False} if once else {}
    about |= {"truncation_side": "left", "model_input_names": ["input_ids", *types, "attention_mask"]}
    if pairs:
        about["split_special_tokens"] = True
    if max_length is not None:
        about["model_max_length"] = max_length
    # The name of transformers 5, which version 4 does not know; both know the older one.
    if about.get("tokenizer_class") == "TokenizersBackend":
        about["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", about)
    again = load_tokenizer(folder)
    if _probe(again, pairs=pairs) != wanted:
        raise UserError(
            f"{folder}: transformers opens this {type(tokenizer).__name__} as {type(again).__name__}, which makes "
            "other tokens; load the tokenizer from the model's own folder (load_tokenizer) and train with it"
        )


def _begins_twice(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether both the chat template and the tokenizer put a token before texts, such as the beginning of sequence."""
    if not tokenizer.chat_template:
        return False
    ids = _probe(tokenizer)
    text = str(tokenizer.decode(ids))
    whole: Any = tokenizer(text)["input_ids"]
    return tokenizer(text, add_special_tokens=False)["input_ids"] == ids != whole and whole[:2] == [ids[0]] * 2


def _probe(tokenizer: PreTrainedTokenizerBase, answer: str = "It depends: 42%.", *, pairs: bool = False) -> list[int]:
    """Tokens of a fixed dialogue, or of the text pair that encoders read."""
    chat = [
        {"role": "user", "content": "Où est-il, à 7 o'clock?\n"},
        {"role": "assistant", "content": answer},
    ]
    ids: Any
    if tokenizer.chat_template and not pairs:
        template = chat_templates.fixed(tokenizer)
        text = str(tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(chat[0]["content"], chat[1]["content"])["input_ids"]
    return ids


def _check(
    config: LMConfig,
    weight: np.ndarray,
    offset: np.ndarray | None,
    labels: Sequence[str],
    layer: int | None,
    length: int,
) -> None:
    faults = Faults()
    if weight.shape[1] != config.hidden_size:
        faults.add(
            "weight", f"reads {weight.shape[1]} features", f"give [K, {config.hidden_size}] for this transformer"
        )
    for name, values in {"weight": weight, "bias": offset}.items():
        if values is not None and not np.isfinite(values).all():
            faults.add(name, "holds NaN or infinity", "train again, or with a lower learning rate")
    if not len(labels) == len(set(labels)) == len(weight) > 0:
        faults.add("labels", f"{len(set(labels))} different names for {len(weight)} rewards", "give one for each")
    if offset is not None and len(offset) != len(weight):
        faults.add("bias", f"{len(offset)} values for {len(weight)} rewards", "give one for each")
    if not 1 <= length <= config.max_positions:
        faults.add("max_length", f"is {length}", f"give 1 to the model's {config.max_positions} positions")
    depth = config.num_layers if layer is None else layer
    bare = config.traits.kind in ("bert", "deberta") and not config.dense_head
    if depth != config.num_layers and not (bare and 1 <= depth < config.num_layers):
        # Decoders and ModernBERT norm what comes out of their last block, and only that; so do heads read only that.
        why = f"no other engine reads a {config.family} model's layer {depth} without the final norm"
        faults.add("layer", why, "fit on the last layer (layer None) to export")
    faults.raise_if_any("Export as a classifier")


def _cut(config: LMConfig, params: dict[str, Any], layer: int | None) -> tuple[LMConfig, dict[str, Any]]:
    """The transformer up to the layer that is read."""
    if layer is None or layer == config.num_layers:
        return config, params
    blocks = {name: {key: leaf[:layer] for key, leaf in own.items()} for name, own in params["blocks"].items()}
    return dataclasses.replace(config, num_layers=layer), params | {"blocks": blocks}


def _pad(
    config: LMConfig, params: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[LMConfig, dict[str, Any]]:
    """The transformer with the tokenizer's padding, and a row of zeros for it if there is none."""
    pad: Any = tokenizer.pad_token_id
    table = params["embed"]["embedding"]
    if config.traits.padded_positions and pad != config.pad_token_id:
        had = f"the tokenizer's padding is token {pad}, the model's is {config.pad_token_id}"
        raise UserError(f"{had}, by which a {config.family} finds positions; give the model's own tokenizer")
    if pad >= len(table):
        if tokenizer.pad_token != PAD:
            raise UserError(f"the tokenizer's padding is token {pad}, but the model has {len(table)}; give its own one")
        tables = [name for name in ("embed", "per_layer_embed") if name in params]
        more = ((0, pad + 1 - len(table)), (0, 0))
        params |= {name: {"embedding": jnp.pad(params[name]["embedding"], more)} for name in tables}
        config = dataclasses.replace(config, vocab_size=pad + 1)
    return dataclasses.replace(config, pad_token_id=pad), params


def _save_modules(
    folder: Path, config: LMConfig, weight: np.ndarray, offset: np.ndarray | None, max_length: int
) -> None:
    """What makes a transformer's folder one of sentence-transformers: pooling, then a linear layer and nothing else."""
    kinds = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(_MODULES.items())
    ]
    write_json(folder / "modules.json", kinds)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    ways = {"cls_token": False, "mean_tokens": config.pooling == "mean", "max_tokens": False}
    ways |= {"mean_sqrt_len_tokens": False, "weightedmean_tokens": False, "lasttoken": config.pooling == "last"}
    pooling = {f"pooling_mode_{way}": used for way, used in ways.items()}
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": config.hidden_size, **pooling})
    shape = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": offset is not None}
    write_json(folder / DENSE / "config.json", {**shape, "activation_function": "torch.nn.modules.linear.Identity"})
    tensors = {"linear.weight": weight} | ({} if offset is None else {"linear.bias": offset})
    write_tensors(folder / DENSE / checkpoint.WEIGHTS_FILE, tensors, {"format": "pt"})
