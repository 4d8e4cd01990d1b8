"""Sampling with a cache beside full passes over all that was written so far, and prompts that are read once.

Axes: B rows, L length of a row, T new tokens.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from experiments.benchmarks.measure import Result, in_turns, result
from experiments.benchmarks.training import LARGER
from pref_jax.data.text.token_table import TokenTable
from pref_jax.lm import backbone
from pref_jax.lm import sampling as cached
from pref_jax.lm.config import LMConfig
from pref_jax.lm.next_token import SamplingConfig


class Case(NamedTuple):
    """A decoder, tokens of a prompt, new tokens, and samples of each prompt."""

    lm: LMConfig
    prompt: int
    new: int
    samples: int


CASES = (Case(LARGER, 96, 32, 16), Case(LARGER, 224, 32, 16))
# Prompts that the cache is measured with.
ROWS = 2


def sampling(cases: tuple[Case, ...] = CASES, rounds: int = 2, each: int = 1) -> list[Result]:
    """Greedy tokens of one program each: with a cache against without, and a prompt read once against once a sample.

    Both sides draw all T tokens and take turns. `answers_apart` is the share of tokens in which they differ.
    """
    return [compare(_with_head(case), rounds, each) for case in cases for compare in (_cache, _shared_prompt)]


def _with_head(case: Case) -> Case:
    size = cached.bucket(case.prompt) + cached.bucket(case.new)
    return case._replace(lm=dataclasses.replace(case.lm, lm_head=True, max_positions=size))


def _parameters(lm: LMConfig) -> Any:
    # Ten times as large as initial ones, so that the likeliest token is so by more than rounding.
    fresh = jax.jit(backbone.init, static_argnums=0)(lm, jax.random.key(0))
    return jax.tree.map(lambda leaf: 10 * leaf if leaf.ndim > 2 else leaf, fresh)


def _prompts(case: Case, count: int, *, alike: bool = False) -> TokenTable:
    rows = np.random.default_rng(0).integers(1, case.lm.vocab_size, (count, case.prompt)).astype(np.int32)
    rows = np.tile(rows[:1], (count, 1)) if alike else rows
    return TokenTable(rows.reshape(-1), np.arange(count + 1, dtype=np.int64) * case.prompt, 0)


def _sample(case: Case, params: Any, prompts: TokenTable, samples: int) -> np.ndarray:
    options = {"settings": SamplingConfig(temperature=0.0, max_new_tokens=case.new), "batch_size": case.samples}
    return cached.sample(case.lm, params, prompts, jax.random.key(0), samples=samples, **options).tokens


@functools.partial(jax.jit, static_argnames=("lm", "begin", "new"))
def _without_cache(lm: LMConfig, params: Any, rows: Int32[Array, "B L"], *, begin: int, new: int) -> Array:
    """The rows with T greedy tokens behind their first `begin`, each by a pass over the whole row."""

    def write(number: Array, rows: Array) -> Array:
        mask = jnp.broadcast_to(jnp.arange(rows.shape[1])[None] < begin + number, rows.shape)
        hidden = backbone.hidden_states(lm, params, rows, mask)
        last = jax.lax.dynamic_index_in_dim(hidden, begin + number - 1, axis=1, keepdims=False)
        token = backbone.next_token_logits(lm, params, last).argmax(axis=-1).astype(jnp.int32)
        return jax.lax.dynamic_update_slice_in_dim(rows, token[:, None], begin + number, axis=1)

    return jax.lax.fori_loop(0, new, write, rows)


def _cache(case: Case, rounds: int, each: int) -> Result:
    """One sample of each of several prompts."""
    params, prompts = _parameters(case.lm), _prompts(case, ROWS)
    rows = jnp.asarray(prompts.take(np.arange(ROWS), case.prompt + case.new)[0])
    without = functools.partial(_without_cache, case.lm, params, rows, begin=case.prompt, new=case.new)
    seconds = in_turns([without, lambda: _sample(case, params, prompts, 1)], rounds=rounds, each=each)
    ours, theirs = _sample(case, params, prompts, 1)[:, 0], np.asarray(without())[:, case.prompt :]
    return _result("cache", case, ROWS, seconds, ours, theirs)


def _shared_prompt(case: Case, rounds: int, each: int) -> Result:
    """Several samples of one prompt."""
    params, copies = _parameters(case.lm), _prompts(case, case.samples, alike=True)
    one = copies.select(np.array([0]))

    def apart() -> np.ndarray:
        return _sample(case, params, copies, 1)

    def together() -> np.ndarray:
        return _sample(case, params, one, case.samples)

    seconds = in_turns([apart, together], rounds=rounds, each=each)
    return _result("shared prompt", case, case.samples, seconds, together()[0], apart()[:, 0])


def _result(what: str, case: Case, rows: int, seconds: list[float], ours: np.ndarray, theirs: np.ndarray) -> Result:
    facts = {"tokens_per_second": rows * case.new / seconds[1], "answers_apart": float((ours != theirs).mean())}
    label = f"{what}, d={case.lm.hidden_size}, {rows} rows of {case.prompt} + {case.new} tokens"
    return result("sampling", label, *seconds, **facts)
