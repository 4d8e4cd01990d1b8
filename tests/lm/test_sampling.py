"""Sampling with a cache says what full passes over prompt and answer say, in every family that writes texts."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import pytest
import tiny

from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import UserError
from pref_jax.lm import backbone, hf_config, key_value_cache, lora, sampling, sharding_rules
from pref_jax.lm.next_token import SamplingConfig
from pref_jax.mesh import make_mesh, tree_shardings

BOTH_WAYS = ("gemma3_both_ways", "gemma4_both_ways")
# Nothing but their sizes or their rope sets them apart from another case.
ALIKE = ("llama_tied", "llama_linear", "qwen2_full", "smollm3", "phi3", "olmo2")
DECODERS = [case for case in make_goldens.CASES if case not in (*make_goldens.ENCODERS, *BOTH_WAYS, *ALIKE)]
NEW = 7
PROMPTS = ([3, 9, 4, 30, 11, 12, 5, 8, 21, 22, 2], [7, 1])


def table(prompts=PROMPTS):
    ends = np.cumsum([0, *map(len, prompts)]).astype(np.int64)
    return TokenTable(np.concatenate(prompts).astype(np.int32), ends, 0)


def config_of(case):
    config = hf_config.read(make_goldens.CASES[case])
    return dataclasses.replace(config, lm_head=True, num_labels=0)


def loud(config, seed=0):
    """Random parameters in which every mistake shows."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        centre = 1.0 if "scale" in name and not config.traits.norm_offset else 0.0
        return jnp.asarray(centre + 0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, backbone.shapes(config))


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(config, params, tokens, mask, adapters):
    hidden = backbone.hidden_states(config, params, tokens, mask, adapters)
    return jax.nn.log_softmax(backbone.next_token_logits(config, params, hidden))


def full_passes(config, params, prompts, answers, adapters=None, length=24):
    """float32 [P N T V]: log-probabilities of every token where the answers' tokens [P N T] stand."""
    rows = [(prompt, answer) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for row, (prompt, answer) in enumerate(rows):
        both = [*prompt, *answer]
        tokens[row, : len(both)], mask[row, : len(both)] = both, True
    found = np.asarray(_log_probs(config, params, tokens, mask, adapters))
    own = [found[row, len(prompt) - 1 :][: len(answer)] for row, (prompt, answer) in enumerate(rows)]
    return np.stack(own).reshape(*answers.shape, -1)


def of_tokens(log_probs, tokens):
    return np.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]


@pytest.mark.parametrize("case", DECODERS)
def test_a_cache_says_what_full_passes_say(case):
    config = config_of(case)
    params = loud(config)
    for temperature in (0.0, 1.5):
        settings = SamplingConfig(temperature=temperature, max_new_tokens=NEW)
        found = sampling.sample(config, params, table(), jax.random.key(1), samples=2, settings=settings)
        wanted = full_passes(config, params, PROMPTS, found.tokens)
        own = of_tokens(wanted, found.tokens)
        np.testing.assert_allclose(found.log_probs, own, rtol=0, atol=1e-5)
        same = (found.tokens[:, 0] == found.tokens[:, 1]).all(axis=1)
        if temperature:
            assert not same.any()
        else:
            # What is likeliest by a hair in one is so in the other.
            assert (own >= wanted.max(axis=-1) - 1e-5).all()
            assert same.all()


@pytest.mark.parametrize("case", ["mistral", "qwen3_5"])
def test_padding_on_any_side_changes_nothing(case):
    config = config_of(case)
    params = loud(config)
    tokens, mask = np.full((3, 14), 5, np.int32), np.zeros((3, 14), bool)
    for row, begin in enumerate((0, 2, 3)):  # padded right, on both sides, left
        tokens[row, begin : begin + 11], mask[row, begin : begin + 11] = PROMPTS[0], True

    @jax.jit
    def states(params, tokens, mask):
        hidden, cache = key_value_cache.start(config, params, tokens, mask, rows=2, room=16)
        found = [jnp.repeat(hidden, 2, axis=0)]
        for number in (1, 2):
            hidden, cache = key_value_cache.step(config, params, jnp.full(6, number, jnp.int32), cache)
            found.append(hidden)
        return jnp.stack(found, axis=1)

    found = np.asarray(states(params, tokens, mask))
    row = jnp.array([[*PROMPTS[0], 1, 2]], jnp.int32)
    wanted = np.asarray(backbone.hidden_states(config, params, row, jnp.ones((1, 13), bool)))[:, -3:]
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), rtol=0, atol=1e-5)


LLAMA = tiny.llama(max_positions=64)
WARM = SamplingConfig(temperature=1.0, max_new_tokens=NEW)


@pytest.fixture(scope="module")
def params():
    return loud(LLAMA)


def drawn(params, prompts=PROMPTS, seed=3, **options):
    return sampling.sample(LLAMA, params, table(prompts), jax.random.key(seed), **{"settings": WARM, **options})


def test_a_sample_depends_on_its_prompt_and_number_alone(params):
    whole = drawn(params, samples=3)
    for prompts, options in [(PROMPTS[::-1], {"samples": 3}), ([PROMPTS[1]], {"samples": 2, "batch_size": 2})]:
        other = drawn(params, prompts, **options)
        for row, prompt in enumerate(prompts):
            same = whole.tokens[PROMPTS.index(prompt), : other.tokens.shape[1]]
            np.testing.assert_array_equal(other.tokens[row], same)
    again = drawn(params, [*PROMPTS, PROMPTS[0]], samples=3, batch_size=3)  # one prompt at a time
    np.testing.assert_array_equal(again.tokens[:2], whole.tokens)
    assert (again.tokens[2] != whole.tokens[0]).any()  # the same prompt once more has samples of its own
    assert (drawn(params, samples=3, seed=4).tokens != whole.tokens).any()


def test_a_stop_token_ends_its_own_row_alone(params):
    free = drawn(params, samples=4)
    stop = int(free.tokens[0, 0, 2])
    found = drawn(params, samples=4, stop=(stop, 31))
    for row in np.ndindex(2, 4):
        ends = np.flatnonzero(np.isin(free.tokens[row], (stop, 31)))
        length = ends[0] + 1 if len(ends) else NEW
        assert (found.lengths[row], found.stopped[row]) == (length, len(ends) > 0)
        np.testing.assert_array_equal(found.tokens[row][:length], free.tokens[row][:length])
        np.testing.assert_array_equal(found.log_probs[row][:length], free.log_probs[row][:length])
        assert not found.tokens[row][length:].any()
        assert not found.log_probs[row][length:].any()
    assert found.stopped[0, 0]
    assert not found.stopped.all()


def test_adapters_are_sampled_with(params):
    adapters = lora.init(jax.random.key(2), backbone.linear_shapes(LLAMA), LLAMA.num_layers, 2)
    adapters = jax.tree.map(lambda leaf: leaf + 0.2, adapters)
    found = drawn(params, samples=1, adapters=adapters)
    own = of_tokens(full_passes(LLAMA, params, PROMPTS, found.tokens, adapters), found.tokens)
    np.testing.assert_allclose(found.log_probs, own, rtol=0, atol=1e-5)
    assert (
        np.abs(found.log_probs - of_tokens(full_passes(LLAMA, params, PROMPTS, found.tokens), found.tokens)).max() > 0.1
    )


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 1, "fsdp": 4, "tensor": 2}])
def test_eight_devices_sample_what_one_samples(params, sizes):
    mesh = make_mesh(**sizes)
    places = tree_shardings(mesh, sharding_rules.specs(params, mesh))
    options = {"samples": 4, "stop": (3,)}
    one, eight = drawn(params, **options), drawn(jax.device_put(params, places), mesh=mesh, **options)
    np.testing.assert_array_equal(eight.tokens, one.tokens)
    np.testing.assert_array_equal(eight.lengths, one.lengths)
    np.testing.assert_allclose(eight.log_probs, one.log_probs, rtol=0, atol=1e-5)


def test_a_bucket_may_be_longer_than_the_model_s_positions():
    config = tiny.llama(max_positions=16 + 1 + NEW)
    found = sampling.sample(config, loud(config), table([[5] * 17]), jax.random.key(0), settings=WARM)
    own = of_tokens(full_passes(config, loud(config), [[5] * 17], found.tokens), found.tokens)
    np.testing.assert_allclose(found.log_probs, own, rtol=0, atol=1e-5)


def test_longer_prompts_and_answers_of_one_bucket_need_no_new_program(params):
    drawn(params, [PROMPTS[0]])
    program: Any = sampling._generate
    size = program._cache_size()
    drawn(params, [PROMPTS[0] + PROMPTS[1]], settings=SamplingConfig(temperature=0.3, top_p=0.8, max_new_tokens=16))
    assert program._cache_size() == size
    assert [sampling.bucket(count) for count in (1, 16, 17, 1000)] == [16, 16, 32, 1024]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"lm_head": False}, {}, "has no next-token head"),
        ({"bidirectional": True}, {}, "reads texts both ways"),
        ({}, {"samples": 0}, "at least 1"),
        ({}, {"stop": (32,)}, r"tokens from 0 to 31"),
        ({}, {"settings": SamplingConfig(max_new_tokens=60)}, "11 tokens and 60 new ones: this model knows 64"),
    ],
)
def test_what_cannot_be_sampled_is_told(params, changes, options, message):
    config = dataclasses.replace(LLAMA, **changes)
    with pytest.raises(UserError, match=message):
        sampling.sample(config, params, table(), jax.random.key(0), **options)
