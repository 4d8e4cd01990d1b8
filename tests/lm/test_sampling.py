"""Sampling with a cache says what full passes over prompt and answer say, in every family that writes texts."""

import dataclasses

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
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=NEW)
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


def log_probs_of_a_full_pass(config, params, prompt, answer, adapters=None):
    """float32 [T V]: of every next token where the answer's tokens stand."""
    row = np.zeros((1, 32), np.int32)
    both = [*prompt, *answer]
    row[0, : len(both)] = both
    mask = np.arange(32)[None] < len(both)
    hidden = _states(config, params, row, mask, adapters)[0, len(prompt) - 1 : len(both) - 1]
    return np.asarray(jax.nn.log_softmax(backbone.next_token_logits(config, params, hidden)))


_states = jax.jit(backbone.hidden_states, static_argnums=0)


@pytest.mark.parametrize("case", DECODERS)
def test_a_cache_says_what_full_passes_say(case):
    config = config_of(case)
    params = loud(config)
    drawn = {
        temperature: sampling.sample(
            config,
            params,
            table(),
            jax.random.key(1),
            samples=2,
            settings=SamplingConfig(temperature=temperature, max_new_tokens=NEW),
        )
        for temperature in (0.0, 1.5)
    }
    for row, prompt in enumerate(PROMPTS):
        for number in range(2):
            for temperature, found in drawn.items():
                tokens = found.tokens[row, number]
                wanted = log_probs_of_a_full_pass(config, params, prompt, tokens)
                own = np.take_along_axis(wanted, tokens[:, None], 1)[:, 0]
                np.testing.assert_allclose(found.log_probs[row, number], own, rtol=0, atol=1e-5)
                if not temperature:
                    assert (own >= wanted.max(axis=1) - 1e-6).all()
    assert (drawn[0.0].tokens[:, 0] == drawn[0.0].tokens[:, 1]).all()
    assert (drawn[1.5].tokens[:, 0] != drawn[1.5].tokens[:, 1]).any(axis=1).all()
