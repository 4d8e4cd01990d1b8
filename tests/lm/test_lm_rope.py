"""Rotary positions: which source of a setting counts, and the frequencies, beside transformers' own and float64."""

import json
import math

import numpy as np
import pytest

from pref_jax.errors import UserError
from pref_jax.lm import hf_config, layers

SIZES = {
    "vocab_size": 11,
    "hidden_size": 64,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
DEFAULT = {"rope_type": "default", "rope_theta": 300.0}
FLAT = {
    "none": {},
    "theta beside": {"rope_theta": 5e5},
    "old name": {"rope_scaling": {"type": "linear", "factor": 3}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "linear beside parameters": {"rope_parameters": DEFAULT, "rope_scaling": LINEAR},
    "linear beside parameters and theta": {"rope_parameters": DEFAULT, "rope_scaling": LINEAR, "rope_theta": 700.0},
    "theta in both": {"rope_parameters": DEFAULT, "rope_scaling": LINEAR | {"rope_theta": 20.0}, "rope_theta": 7.0},
    "empty beside parameters": {"rope_parameters": DEFAULT | LINEAR, "rope_scaling": {}},
    "null beside parameters": {"rope_parameters": DEFAULT | LINEAR, "rope_scaling": None},
    "llama3": {"rope_parameters": DEFAULT, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}},
    "llama3, length beside": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 128},
    "llama3, no length": {"rope_scaling": LLAMA3},
    "yarn": {"rope_parameters": DEFAULT, "rope_scaling": YARN},
    "yarn, all fields": {
        "rope_scaling": YARN
        | {"beta_fast": 16, "beta_slow": 2, "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False}
    },
    "yarn, factor null": {"rope_parameters": YARN | {"factor": None, "rope_theta": 2e4}},
    "yarn, attention": {"rope_parameters": YARN | {"attention_factor": 1.25}},
    "yarn, betas alike": {"rope_parameters": YARN | {"beta_fast": 1, "beta_slow": 1, "truncate": False}},
    "yarn, two lengths": {"rope_parameters": YARN, "original_max_position_embeddings": 128},
    "longrope": {"rope_scaling": LONG | {"original_max_position_embeddings": 128}},
    "longrope, factor": {"rope_scaling": LONG | {"original_max_position_embeddings": 128, "factor": 3.0}},
    "longrope, attention": {"rope_scaling": LONG | {"original_max_position_embeddings": 128, "attention_factor": 1.1}},
}
NEAR = {"rope_type": "default", "rope_theta": 30.0}
NESTED = {
    "none": {},
    "bases beside": {
        "rope_theta": 5e5,
        "rope_local_base_freq": 90.0,
        "global_rope_theta": 6e5,
        "local_rope_theta": 80.0,
    },
    "scaling alone": {"rope_scaling": LINEAR},
    "scaling beside": {"rope_scaling": YARN, "rope_parameters": {"full_attention": DEFAULT, "sliding_attention": NEAR}},
    "full alone": {"rope_parameters": {"full_attention": DEFAULT}, "rope_theta": 9.0},
    "near stretched": {"rope_parameters": {"full_attention": DEFAULT, "sliding_attention": NEAR | LINEAR}},
}
CASES = [(family, case, raw) for family in ("llama", "mistral", "qwen2", "gemma") for case, raw in FLAT.items()]
CASES += [(family, case, raw) for family in ("gemma3_text", "modernbert") for case, raw in NESTED.items()]


def raw_config(family, rope):
    """A small `config.json` in which some layers slide."""
    raw = json.loads(json.dumps(SIZES | rope | {"model_type": family}))
    if family in ("gemma3_text", "modernbert"):
        raw["layer_types"] = ["sliding_attention", "full_attention"]
    return raw


def patterns(config):
    """Frequencies and factor for full layers, and for sliding ones."""
    found = {pattern.window is None: pattern for pattern in config.patterns}
    for full in sorted(found, reverse=True):
        factor = 1.0 if found[full].scaling is None else found[full].scaling.attention_factor
        yield full, layers.rotary_frequencies(config.head_dim, found[full]), factor


@pytest.mark.parametrize(("family", "case", "rope"), CASES)
def test_frequencies_are_those_of_transformers(family, case, rope):
    pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    import importlib

    import transformers

    raw = raw_config(family, rope)
    ours = hf_config.read(raw)
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(raw)))
    stem = {"gemma3_text": "Gemma3", "modernbert": "ModernBert"}.get(family, family.capitalize())
    folder = family.removesuffix("_text")
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    rotary = getattr(module, f"{stem}RotaryEmbedding")(theirs)
    for full, frequencies, factor in patterns(ours):
        kind = (
            ""
            if case not in NESTED or family not in ("gemma3_text", "modernbert")
            else "full_attention_"
            if full
            else "sliding_attention_"
        )
        np.testing.assert_allclose(frequencies, getattr(rotary, f"{kind}inv_freq").numpy(), rtol=3e-6)
        assert factor == pytest.approx(getattr(rotary, f"{kind}attention_scaling"), rel=1e-7)
    # What we write means the same to both.
    written = json.loads(json.dumps(hf_config.write(ours)))
    assert hf_config.read(written) == ours
    again = getattr(module, f"{stem}RotaryEmbedding")(transformers.AutoConfig.for_model(**written))
    for name, value in rotary.named_buffers():
        np.testing.assert_allclose(dict(again.named_buffers())[name].numpy(), value.numpy(), rtol=3e-6)


def yarn(theta, dim, factor, original, fast, slow, truncate):
    """YaRN's frequencies one at a time (arXiv 2309.00071, equations 16 to 23), with its authors' rounding."""
    first, last = (dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow))
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    found = []
    for i in range(dim // 2):
        own = theta ** (-2 * i / dim)
        ramp = min(max((i - first) / ((last - first) or 0.001), 0), 1)
        found.append(own / factor * ramp + own * (1 - ramp))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_frequencies_are_those_of_float64_formulas(seed):
    rng = np.random.default_rng(seed)
    theta, factor, original = 10 ** rng.uniform(1, 6), rng.uniform(1, 40), int(rng.integers(8, 4000))
    fast, truncate = rng.uniform(2, 64), bool(rng.integers(2))
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    rope |= {"rope_theta": theta, "beta_fast": fast, "beta_slow": 1.0, "truncate": truncate}
    ((_, frequencies, attention),) = patterns(hf_config.read(raw_config("llama", {"rope_parameters": rope})))
    np.testing.assert_allclose(frequencies, yarn(theta, 16, factor, original, fast, 1.0, truncate), rtol=1e-5)
    assert attention == pytest.approx(0.1 * math.log(factor) + 1)
    own = theta ** (-np.arange(0, 16, 2) / 16)
    long = LONG | {"original_max_position_embeddings": original, "rope_theta": theta, "factor": factor}
    config = hf_config.read(raw_config("llama", {"rope_parameters": long}))
    ((_, frequencies, attention),) = patterns(config)
    np.testing.assert_allclose(frequencies, own / np.array(LONG["short_factor"]), rtol=1e-5)
    assert attention == pytest.approx(math.sqrt(1 + math.log(factor) / math.log(original)))
    assert config.max_positions == min(original, 512)


@pytest.mark.parametrize(
    ("family", "rope", "words"),
    [
        ("llama", {"rope_scaling": ["linear"]}, r"rope_scaling: is \['linear'\]; give an object"),
        ("llama", {"rope_parameters": DEFAULT, "rope_scaling": {"rope_type": "su"}}, r"rope_scaling.rope_type: 'su'"),
        ("llama", {"rope_scaling": {"rope_type": 3}}, r"rope_type: 3 is unknown"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling.factor: missing; give what linear needs"),
        ("llama", {"rope_scaling": LINEAR | {"factor": "2"}}, r"rope_scaling.factor: is '2'; give a number"),
        ("llama", {"rope_scaling": LINEAR | {"mrope_section": [2]}}, r"rope_scaling.mrope_section"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2}}, r"(?s)low_freq_factor: missing.*high_freq"),
        ("llama", {"rope_scaling": LONG | {"short_factor": [1.0]}}, r"1 factors for 8 frequencies"),
        ("llama", {"rope_scaling": LONG | {"long_factor": "x"}}, r"long_factor: is 'x'"),
        ("llama", {"rope_scaling": YARN | {"truncate": 1}}, r"truncate: is 1; give true or false"),
        (
            "llama",
            {"rope_scaling": YARN | {"original_max_position_embeddings": 0}},
            r"original_max_position_embeddings",
        ),
        ("llama", {"rope_theta": "1e6"}, r"rope_theta: is '1e6'; give a number above 0"),
        ("llama", {"rope_parameters": {"rope_theta": -1.0}}, r"rope_parameters.rope_theta: is -1.0"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor: only part of a head"),
        ("llama", {"rope_parameters": {"full_attention": DEFAULT}}, r"rope_parameters.full_attention: no rotary"),
        (
            "gemma3_text",
            {"rope_parameters": DEFAULT},
            r"rope_parameters.rope_theta: stands where transformers does not",
        ),
        ("gemma3_text", {"rope_parameters": {"full_attention": [1]}}, r"full_attention: is \[1\]"),
    ],
)
def test_what_cannot_be_honoured_is_named(family, rope, words):
    with pytest.raises(UserError, match=words):
        hf_config.read(raw_config(family, rope), where="folder/config.json")
