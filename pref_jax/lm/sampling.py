"""Texts by a decoder, token by token: many prompts, many samples of each, in one program.

A sample depends on the key, on its prompt's tokens and on its number among the samples of that prompt; neither on the
other prompts of a call nor on their order (up to the rounding of matrix products, which can tip a token by chance
where batches are of different sizes).

Axes: P prompts, N samples of a prompt, B = P N rows, S tokens of a prompt, T new tokens, E stop tokens, D features.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, Shaped, UInt32

from pref_jax import sharding
from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import UserError
from pref_jax.lm import backbone, key_value_cache, lora, next_token
from pref_jax.lm.config import LMConfig
from pref_jax.lm.forward import ApplyAdapter, Params
from pref_jax.lm.key_value_cache import Cache
from pref_jax.lm.next_token import Drawing, SamplingConfig

# The shortest bucket of prompts and of new tokens.
SHORTEST = 16


class Samples(NamedTuple):
    """What was drawn.

    Attributes:
      tokens: int32 [P N T], behind a sample's end 0.
      lengths: int32 [P N], the stop token counted.
      log_probs: float32 [P N T], of each token after those before it, by the model as it is: at temperature 1, with no
        token cut; behind the end 0.
      stopped: bool [P N], whether the last token is a stop token; else there was no room for more.
    """

    tokens: Int32[np.ndarray, "P N T"]
    lengths: Int32[np.ndarray, "P N"]
    log_probs: Float32[np.ndarray, "P N T"]
    stopped: Bool[np.ndarray, "P N"]


def bucket(count: int) -> int:
    """The power of two that is no less than `count` and `SHORTEST`: few lengths, so few programs."""
    return max(SHORTEST, 1 << (count - 1).bit_length())


def sample(
    config: LMConfig,
    params: Params,
    prompts: TokenTable,
    key: Key[Array, ""],
    *,
    samples: int = 1,
    settings: SamplingConfig | None = None,
    stop: Sequence[int] = (),
    adapters: Mapping[str, Any] | None = None,
    apply_adapter: ApplyAdapter = lora.apply,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> Samples:
    """Draws texts that go on from prompts.

    Args:
      config, params, adapters, apply_adapter: the model, as of `backbone.hidden_states`.
      prompts: their tokens, P texts.
      key: typed PRNG key.
      samples: N.
      settings: how tokens are drawn, and how many at most.
      stop: tokens that end a text.
      batch_size: B at most, unless N is more: prompts that are gone on from at a time, times N.
      mesh: the devices; batches are cut over `data` and `fsdp`, heads over `tensor`.

    Raises:
      UserError: for a model that writes no texts, a prompt that leaves no room for `max_new_tokens`, or stop tokens
        that the model does not have.

    Example:
      sample(config, params, prompts, jax.random.key(0), samples=16, stop=(tokenizer.eos_token_id,))
    """
    settings = settings or SamplingConfig()
    key_value_cache.check(config)
    _check(config, prompts, samples, settings.max_new_tokens, stop)
    streams, most = _streams(prompts), settings.max_new_tokens
    found = Samples(*(np.zeros(shape, dtype) for shape, dtype in _shapes(len(prompts.lengths), samples, most)))
    options = {"samples": samples, "room": bucket(most), "apply_adapter": apply_adapter}
    common = key, jnp.asarray(tuple(stop) or (-1,), jnp.int32), next_token.drawing(settings), jnp.int32(most)
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        for members, length in _batches(prompts, max(1, batch_size // samples)):
            padded = np.pad(members, (0, _rows(len(members), batch_size, samples) - len(members)), mode="edge")
            batch = [_put(leaf, mesh) for leaf in (*prompts.take(padded, length), streams[padded])]
            drawn = _generate(config, params, dict(adapters or {}), *batch, *common, **options)
            for whole, part in zip(found, drawn, strict=True):
                own = np.asarray(part)[: len(members)]
                whole[members] = own[:, :, :most] if own.ndim == 3 else own
    return found


def _shapes(prompts: int, samples: int, most: int) -> list[tuple[tuple[int, ...], Any]]:
    rows = (prompts, samples)
    return [((*rows, most), np.int32), (rows, np.int32), ((*rows, most), np.float32), (rows, bool)]


def _check(config: LMConfig, prompts: TokenTable, samples: int, most: int, stop: Sequence[int]) -> None:
    if samples < 1:
        raise UserError(f"samples is {samples}; give at least 1")
    lengths = prompts.lengths
    if len(lengths) and lengths.min() < 1:
        raise UserError(f"prompt {int(lengths.argmin())} has no token; give at least one, such as the first of a text")
    if beyond := [token for token in stop if not 0 <= token < config.vocab_size]:
        raise UserError(f"stop tokens {beyond}: the model has tokens from 0 to {config.vocab_size - 1}")
    longest = int(lengths.max(initial=0))
    if longest + most > config.max_positions:
        raise UserError(
            f"a prompt of {longest} tokens and {most} new ones: this model knows {config.max_positions} positions; "
            "shorten the prompt, or lower max_new_tokens"
        )


def _batches(prompts: TokenTable, most: int) -> Iterator[tuple[Int[np.ndarray, " P"], int]]:
    """Numbers of prompts of one bucket of lengths, at most so many, and the bucket."""
    lengths = np.array([bucket(int(length)) for length in prompts.lengths], np.int64)
    for length in np.unique(lengths):
        members = np.flatnonzero(lengths == length)
        for begin in range(0, len(members), most):
            yield members[begin : begin + most], int(length)


def _rows(count: int, batch_size: int, samples: int) -> int:
    """How many prompts a program has room for that is given `count`."""
    return min(max(1, batch_size // samples), 1 << (count - 1).bit_length())


def _put(leaf: Shaped[np.ndarray, "P ..."], mesh: Mesh | None) -> Array:
    """On the devices, cut over the batch axes where they divide it."""
    if mesh is None:
        return jnp.asarray(leaf)
    place = NamedSharding(mesh, sharding.fitting(sharding.ROWS, leaf.shape, mesh))
    return jax.make_array_from_callback(leaf.shape, place, lambda part: leaf[part])


def _streams(prompts: TokenTable) -> UInt32[np.ndarray, "P 3"]:
    """What each prompt's randomness begins with: a digest of its tokens, and which of equal prompts it is."""
    found, times = np.zeros((len(prompts.lengths), 3), np.uint32), dict[bytes, int]()
    for row, (begin, end) in enumerate(zip(prompts.offsets[:-1], prompts.offsets[1:], strict=True)):
        digest = hashlib.sha256(prompts.flat[begin:end].astype("<i4").tobytes()).digest()[:8]
        found[row] = *np.frombuffer(digest, "<u4"), times.get(digest, 0)
        times[digest] = times.get(digest, 0) + 1
    return found


class _Drawn(NamedTuple):
    """The loop's state: the next token's number, what was drawn until then, who has ended, and the last states."""

    number: Int32[Array, ""]
    tokens: Int32[Array, "B T"]
    log_probs: Float32[Array, "B T"]
    lengths: Int32[Array, " B"]
    ended: Bool[Array, " B"]
    hidden: Float[Array, "B D"]
    cache: Cache


@functools.partial(jax.jit, static_argnames=("config", "apply_adapter", "samples", "room"))
def _generate(
    config: LMConfig,
    params: Params,
    adapters: Mapping[str, Any],
    tokens: Int32[Array, "P S"],
    mask: Bool[Array, "P S"],
    streams: UInt32[Array, "P 3"],
    key: Key[Array, ""],
    stop: Int32[Array, " E"],
    how: Drawing,
    most: Int32[Array, ""],
    *,
    apply_adapter: ApplyAdapter,
    samples: int,
    room: int,
) -> tuple[Array, ...]:
    """The fields of `Samples` for a batch: prompts read once, then a loop that ends when every text has."""
    rows, fold = len(tokens) * samples, jax.vmap(jax.random.fold_in)
    keys = jnp.broadcast_to(key, (len(tokens),))
    for column in range(streams.shape[1]):
        keys = fold(keys, streams[:, column])
    keys = fold(jnp.repeat(keys, samples), jnp.tile(jnp.arange(samples), len(tokens)))
    hidden, cache = key_value_cache.start(
        config, params, tokens, mask, adapters, apply_adapter, rows=samples, room=room
    )

    def body(drawn: _Drawn) -> _Drawn:
        logits = backbone.next_token_logits(config, params, drawn.hidden)
        token = next_token.draw(logits, fold(keys, jnp.broadcast_to(drawn.number, (rows,))), how)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=1)
        going = ~drawn.ended
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=drawn.number, axis=1)
        # Behind the last token nothing is needed of it, but a loop of one program is compiled in half the time.
        hidden, cache = key_value_cache.step(config, params, token, drawn.cache, adapters, apply_adapter)
        return _Drawn(
            number=drawn.number + 1,
            tokens=put(drawn.tokens, jnp.where(going, token, 0)[:, None]),
            log_probs=put(drawn.log_probs, jnp.where(going, chosen, 0.0)[:, None]),
            lengths=drawn.lengths + going,
            ended=drawn.ended | (token[:, None] == stop[None]).any(axis=1),
            hidden=hidden,
            cache=cache,
        )

    first = _Drawn(
        number=jnp.int32(0),
        tokens=jnp.zeros((rows, room), jnp.int32),
        log_probs=jnp.zeros((rows, room), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, bool),
        hidden=sharding.constrain(jnp.repeat(hidden, samples, axis=0)),
        cache=cache,
    )
    done = jax.lax.while_loop(lambda drawn: (drawn.number < most) & ~drawn.ended.all(), body, first)
    # Whole on every process.
    whole = (done.tokens, done.lengths, done.log_probs, done.ended)
    return tuple(sharding.constrain(leaf.reshape(-1, samples, *leaf.shape[1:]), PartitionSpec()) for leaf in whole)
