"""GGUF files: the goldens as llama.cpp's converter writes them, tokenizers from their fields, and what is refused."""

import dataclasses
import json
import re
import unicodedata

import jax
import make_goldens
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pref_jax.data.text.tokenization import load_tokenizer, train_tokenizer
from pref_jax.errors import UserError
from pref_jax.lm import backbone, checkpoint, gguf_file, hf_config, hub
from pref_jax.lm.stored_tensors import read

gguf = pytest.importorskip("gguf", reason="pip install 'pref-jax[gguf]'")

TEXTS = [
    "Where is it, at 7 o'clock? In 1984 there were 123456 of them; don't ask.",
    "  two  spaces,\n\n a tab\tand\r\nlines   ",
    "Ça va? Übergrößenträger, ΑΒΓ привет 你好 🙂 e\u0301",
    "x = [i**2 for i in range(10)]  # <s> is not </s>",
    "",
]
# Hugging Face's `model_type` -> llama.cpp's architecture, where it has another name.
NAMES = {"gemma3_text": "gemma3", "mistral": "llama", "ministral3": "mistral3", "qwen3_moe": "qwen3moe"}
NAMES |= {"olmo3": "olmo2", "gpt_oss": "gpt-oss"}
# Hugging Face's name of a part -> llama.cpp's; the norms of some blocks stand elsewhere.
PARTS = {
    **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
    **{"self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
    **{"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"},
    **{"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "self_attn.sinks": "attn_sinks"},
    **{"mlp.gate": "ffn_gate_inp", "mlp.router": "ffn_gate_inp"},
    **{f"mlp.experts.{name}_proj": f"ffn_{name}_exps" for name in ("gate", "up", "down")},
    **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
}
POST = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}
POST |= {"post_feedforward_layernorm": "post_ffw_norm"}
INTERLEAVED = ("llama", "mistral", "ministral3", "smollm3", "granite")
WINDOWS = ("gemma2", "gemma3_text", "olmo3", "phi3", "gpt_oss")
YARN = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow", "mscale_all_dim": "yarn_log_multiplier"}
YARN |= {"factor": "factor", "original_max_position_embeddings": "original_context_length"}
GRANITE = {"attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale"}
GRANITE |= {"residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def their_name(key, family):
    """llama.cpp's name of one of Hugging Face's keys."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    whole["lm_head.weight"] = "output.weight"
    if key in whole:
        return whole[key]
    _, _, layer, *part, kind = key.split(".")
    parts = PARTS | (POST if family in ("gemma2", "gemma3_text", "olmo3", "gpt_oss") else {})
    return f"blk.{layer}.{parts['.'.join(part)]}.{kind}"


def their_rows(key, value, raw):
    """A tensor as llama.cpp's converter changes it."""
    if raw["model_type"].startswith("gemma") and key.endswith("norm.weight"):
        return value + 1
    for name in ("q_proj", "k_proj"):
        if raw["model_type"] in INTERLEAVED and name in key:
            heads = raw["num_attention_heads" if name == "q_proj" else "num_key_value_heads"]
            return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    return value


def respelled(stored):
    """The keys as llama.cpp's converter spells them before it names them: experts stacked, gate and up apart."""
    found = {}
    for key, value in stored.items():
        if match := re.fullmatch(r"(.*experts)\.(\d+)(\..*)", key):
            name = match[1] + match[3]
            found[name] = np.concatenate([found.get(name, value[None][:0]), value[None]])
        elif match := re.fullmatch(r"(.*experts\.)(gate_up|down)_proj(_bias)?", key):
            turned = value.swapaxes(1, -1)  # of a bias, these are the same axis
            kind = "bias" if match[3] else "weight"
            pair = {"gate": turned[:, ::2], "up": turned[:, 1::2]} if match[2] == "gate_up" else {"down": turned}
            found |= {f"{match[1]}{name}_proj.{kind}": part for name, part in pair.items()}
        else:
            found[f"{key}.weight" if key.endswith("sinks") else key] = value
    return found


def fields_of(raw):
    """The fields that llama.cpp's converter writes for a config."""
    family, rope = raw["model_type"], raw.get("rope_parameters") or {}
    near, rope = rope.get("sliding_attention", {}), rope.get("full_attention", rope)
    width = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    fields = {
        "embedding_length": raw["hidden_size"],
        "feed_forward_length": raw["intermediate_size"],
        "block_count": raw["num_hidden_layers"],
        "attention.head_count": raw["num_attention_heads"],
        "attention.head_count_kv": raw["num_key_value_heads"],
        "attention.key_length": width if family != "phi3" else None,
        "context_length": raw["max_position_embeddings"],
        "attention.layer_norm_rms_epsilon": raw["rms_norm_eps"],
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
    }
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if kind == "yarn":
        own = {f"rope.scaling.{theirs}": rope[ours] for ours, theirs in YARN.items() if ours in rope}
        fields |= {"rope.scaling.type": "yarn", **own}
    if family == "ministral3":
        fields["attention.temperature_scale"] = rope["llama_4_scaling_beta"]
    if family in WINDOWS:
        fields["attention.sliding_window"] = raw["sliding_window"] or 0
    if family == "olmo3":
        fields["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in raw["layer_types"]]
        fields["rope.freq_base_swa"] = near["rope_theta"]
    if family == "gemma2":
        fields |= {name: raw[name] for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    if family == "granite":
        fields |= {theirs: raw[ours] for ours, theirs in GRANITE.items()}
    if "num_local_experts" in raw:
        fields |= {"expert_count": raw["num_local_experts"], "expert_used_count": raw["num_experts_per_tok"]}
        fields["expert_feed_forward_length"] = raw.get("moe_intermediate_size", raw["intermediate_size"])
    if family == "phi3":
        length, original = raw["max_position_embeddings"], raw["original_max_position_embeddings"]
        fields["rope.scaling.original_context_length"] = original
        fields["rope.dimension_count"] = int(rope["partial_rotary_factor"] * width)
        fields["rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(length / original) / np.log(original)))
    return fields


def small_vocabulary(size):
    tokens = ["a0", "a", "a0a", *(f"<{i}>" for i in range(3, size))]
    return {"ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": tokens, "ggml.merges": ["a0 a"]}


def write_gguf(path, architecture, fields, tensors):
    """A file with fields by their full names and tensors: arrays, or pairs of bytes and their type."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            kinds = {float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
            kinds.get(type(value), writer.add_uint32)(name, value)
    for name, value in tensors.items():
        if value is None:
            continue
        array, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_gguf(case, path, *, fields=(), tensors=()):
    """A golden checkpoint as a GGUF file, without its reward head."""
    folder = make_goldens.GOLDENS / case
    raw = json.loads((folder / "config.json").read_text())
    family = raw["model_type"]
    kind = NAMES.get(family, family)
    own = {f"{kind}.{name}": value for name, value in fields_of(raw).items()}
    vocabulary = {f"tokenizer.{name}": value for name, value in small_vocabulary(raw["vocab_size"]).items()}
    stored = {key: value for key, value in load_file(folder / "model.safetensors").items() if "score" not in key}
    whole = {their_name(key, family): their_rows(key, value, raw) for key, value in respelled(stored).items()}
    if family == "phi3":
        factors = {name: np.float32(raw["rope_parameters"][f"{name}_factor"]) for name in ("long", "short")}
        whole |= {f"rope_factors_{name}.weight": value for name, value in factors.items()}
    return write_gguf(path, kind, own | vocabulary | dict(fields), whole | dict(tensors))


CASES = ["llama_tied", "llama_untied", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral", "ministral3", "smollm3"]
CASES += ["olmo3", "phi4_mini", "granite", "qwen3_moe", "gpt_oss"]
# Of these a file of llama.cpp says nothing: the Gemmas' scale follows from their size, Qwen's windows are left out.
SILENT = {"query_scalar", "local_rope_theta", "sliding_layers", "num_labels", "lm_head", "tie_embeddings"}
SILENT |= {"bos_token_id", "eos_token_id", "pad_token_id"}
# Llama 3's factors are in a tensor, which is tested apart; a file of Mistral is one of a llama without windows; which
# layers of SmolLM3 are told no positions follows from their number.
ALONE = {"llama_untied": {"rope_scaling"}, "mistral": {"family", "window"}, "smollm3": {"still_layers"}}
TOLD = {"olmo3": {"sliding_layers", "local_rope_theta"}, "gpt_oss": {"sliding_layers"}}


@pytest.mark.parametrize("case", CASES)
def test_a_golden_checkpoint_comes_back_from_gguf(case, tmp_path):
    found, params = checkpoint.load(as_gguf(case, tmp_path / "a.gguf"))
    want, expected = checkpoint.load(make_goldens.GOLDENS / case)
    expected = checkpoint.flat({name: leaf for name, leaf in expected.items() if name != "score"})
    params = checkpoint.flat(params)
    assert params.keys() - {"lm_head/kernel"} == expected.keys() - {"lm_head/kernel"}
    for key, value in expected.items():
        np.testing.assert_allclose(params[key], value, rtol=0, atol=2e-7 if "gemma" in case else 0, err_msg=key)
    for field in dataclasses.fields(want):
        if field.name not in SILENT - TOLD.get(case, set()) | ALONE.get(case, set()):
            assert near(getattr(found, field.name), getattr(want, field.name)), field.name
    assert (found.family, found.window) == ("llama", None) or case != "mistral"


def near(found, want):
    """Whether two fields of a configuration are the same to single precision."""
    if dataclasses.is_dataclass(want):
        names = [field.name for field in dataclasses.fields(want)]
        return type(found) is type(want) and all(near(getattr(found, name), getattr(want, name)) for name in names)
    return found == pytest.approx(want, rel=2e-7) if isinstance(want, float) else found == want


def test_one_architecture_holds_several_families(tmp_path):
    def opened(case, **fields):
        kind = NAMES.get(case, case)
        named = {f"{kind}.{name.replace('__', '.')}": value for name, value in fields.items()}
        return checkpoint.load_config(as_gguf(case, tmp_path / f"{case}.gguf", fields=named))

    found = opened("smollm3", block_count=8)
    assert found.still_layers == (False, False, False, True) * 2
    found = opened("olmo3", attention__sliding_window=None, attention__sliding_window_pattern=None)
    assert (found.family, found.sliding_layers) == ("olmo2", ())
    found = opened("olmo3", attention__sliding_window_pattern=None, rope__freq_base_swa=None)
    assert (found.family, found.sliding_layers, found.local_rope_theta) == ("olmo3", (True,) * 3, 300.0)
    found = opened("ministral3", rope__scaling__type=None)
    assert (found.family, found.sliding_layers, found.rope_scaling) == ("mistral", (), None)
    none = {"rope_factors_long.weight": None, "rope_factors_short.weight": None}
    path = as_gguf("phi4_mini", tmp_path / "p.gguf", fields={"phi3.attention.sliding_window": 6}, tensors=none)
    found = checkpoint.load_config(path)
    assert (found.window, found.rope_scaling, found.rotary_dim, found.max_positions) == (6, None, 6, 32)


def test_experts_of_mxfp4_are_those_of_hugging_faces_form(tmp_path):
    """The converter moves their nibbles: there neighbours share a byte, in GGUF those 16 apart."""
    raw = json.loads((make_goldens.GOLDENS / "gpt_oss" / "config.json").read_text())
    raw |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "layer_types": None}
    config = hf_config.read(raw)
    whole, packed = tmp_path / "whole", tmp_path / "packed"
    checkpoint.save(whole, config, jax.jit(backbone.init, static_argnums=0)(config, jax.random.key(0)))
    stored, rng, theirs = load_file(whole / "model.safetensors"), np.random.default_rng(0), {}
    for key in [key for key in stored if re.search(r"experts\.\w+_proj$", key)]:
        experts, width, outputs = stored.pop(key).shape
        blocks = rng.integers(0, 256, (experts, outputs, width // 32, 16)).astype(np.uint8)
        scales = rng.integers(115, 130, blocks.shape[:3]).astype(np.uint8)
        codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:3], 32)
        moved = np.concatenate([scales[..., None], codes[..., :16] | codes[..., 16:] << 4], -1)
        rows = moved.reshape(experts, outputs, -1)
        parts = {"gate": rows[:, ::2], "up": rows[:, 1::2]} if "gate_up" in key else {"down": rows}
        kind = gguf.GGMLQuantizationType.MXFP4
        theirs |= {f"blk.0.ffn_{name}_exps.weight": (part, kind) for name, part in parts.items()}
        stored |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
    packed.mkdir()
    save_file(stored, packed / "model.safetensors")
    (packed / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "mxfp4"}}))
    rest = respelled({key: value for key, value in stored.items() if not key.endswith(("_blocks", "_scales"))})
    theirs |= {their_name(key, "gpt_oss"): value for key, value in rest.items()}
    fields = {f"gpt-oss.{name}": value for name, value in fields_of(raw).items()}
    fields |= {f"tokenizer.{name}": value for name, value in small_vocabulary(raw["vocab_size"]).items()}
    found = checkpoint.flat(checkpoint.load(write_gguf(tmp_path / "a.gguf", "gpt-oss", fields, theirs))[1])
    expected = checkpoint.flat(checkpoint.load(packed)[1])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_sliding_layers_and_bases_of_gemma_3(tmp_path):
    config = checkpoint.load_config(as_gguf("gemma3_text", tmp_path / "a.gguf"))
    assert config.sliding_layers == (True,) * 3
    assert config.local_rope_theta == 10000.0
    fields = {"gemma3.attention.sliding_window_pattern": [True, False, True], "gemma3.rope.freq_base_swa": 20.0}
    config = checkpoint.load_config(as_gguf("gemma3_text", tmp_path / "b.gguf", fields=fields))
    assert config.sliding_layers == (True, False, True)
    assert config.local_rope_theta == 20.0
    assert config.query_scalar == config.head_dim


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_is_known_by_its_factors(factor, tmp_path):
    length = 2 * np.pi * 5e8 ** (np.arange(0, 4, 2) / 4)
    smooth = np.clip((8192 / length - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    fields = {"llama.rope.freq_base": 5e8}
    path = as_gguf("llama_tied", tmp_path / "a.gguf", fields=fields, tensors={"rope_freqs.weight": factors})
    scaling = checkpoint.load_config(path).rope_scaling
    assert scaling is not None
    assert (scaling.factor, scaling.original_max_positions) == (factor, 8192)


def by_hand(stored, kind, rows):
    """What transformers does not read so: 5-bit numbers d (q - 16) or d q + m, and floats of 16 bits."""
    if kind == "F16":
        return stored.view(np.float16).astype(np.float32)
    if kind == "BF16":
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    blocks = stored.reshape(-1, 22 if kind == "Q5_0" else 24)
    head = blocks[:, : 2 if kind == "Q5_0" else 4].copy().view(np.float16).astype(np.float64)
    high, low = blocks[:, -20:-16], blocks[:, -16:]
    four = np.concatenate([low & 15, low >> 4], 1).astype(np.float64)
    five = four + 16.0 * np.unpackbits(high, axis=1, bitorder="little")
    whole = head[:, :1] * (five - 16) if kind == "Q5_0" else head[:, :1] * five + head[:, 1:]
    return whole.astype(np.float32).reshape(rows, -1)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(
    "kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"]
)
def test_every_kind_of_numbers_is_widened_as_transformers_does(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="the reference is transformers' own reading, in torch")
    from transformers.integrations.gguf import dequant

    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, width = 24, 512
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (rows, width // block * size), np.uint8)
    stored &= 0xBF  # no exponent of a scale is that of infinity
    if kind.name.endswith("F16"):
        stored = rng.standard_normal((rows, width)).astype(np.float16).view(np.uint8)
    tensor = {"blk.0.attn_q.weight": (stored, kind)}
    path = write_gguf(tmp_path / "a.gguf", "llama", {}, tensor)
    reader = gguf.GGUFReader(path)
    entry = {"type": kind.name, "shape": [rows, width], "offset": int(reader.tensors[0].data_offset)}
    (tmp_path / "model.gguf.json").write_text(json.dumps({"w": entry, "q": entry | {"heads": 3}}))
    (tmp_path / "model.gguf").symlink_to(path)
    tensors = gguf_file.catalog(tmp_path)
    if kind.name in ("Q5_0", "Q5_1", "BF16", "F16"):
        want = by_hand(stored, kind.name, rows)
    else:
        want = dequant.dequantize(torch.from_numpy(stored), int(kind)).numpy().reshape(rows, width)
    assert not np.array_equal(want, want[::-1])
    np.testing.assert_allclose(read(tensors["w"], (slice(0, rows), slice(0, width))), want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(read(tensors["w"], (slice(5, 9), slice(32, 77))), want[5:9, 32:77], rtol=1e-6, atol=1e-6)
    turned = want.reshape(3, rows // 6, 2, width).swapaxes(1, 2).reshape(rows, width)
    np.testing.assert_allclose(read(tensors["q"], (slice(3, 20), slice(0, 7))), turned[3:20, :7], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "tensors", "words"),
    [
        ({"general.architecture": "mamba"}, {}, "general.architecture: 'mamba' is not supported; use one of llama"),
        ({"llama.expert_count": 8}, {}, "expert_count: is 8: routed experts are not read here"),
        ({"llama.attention.scale": 0.5}, {}, r"llama.attention.scale: is 0.5, a field that is not known here"),
        ({"llama.rope.scaling.type": "longrope"}, {}, "rope.scaling.type: is 'longrope'"),
        ({"llama.attention.head_count_kv": [1, 2, 1]}, {}, "head_count_kv: differs between layers"),
        ({"tokenizer.ggml.pre": "klingon"}, {}, "tokenizer.ggml.pre: 'klingon' is none of gpt-2"),
        ({"tokenizer.ggml.model": "rwkv"}, {}, "tokenizer.ggml.model: 'rwkv' is not read"),
        ({"tokenizer.ggml.merges": ["a0 b"]}, {}, "the merge 'a0 b' is of what is no token"),
        ({"tokenizer.ggml.eos_token_id": 99}, {}, "no token has the number 99"),
        ({"tokenizer.ggml.scores": [0.0]}, {}, "1 entries of scores for 37 tokens"),
        ({}, {"rope_freqs.weight": np.arange(1, 4, dtype=np.float32)}, "rope_freqs.weight: holds other factors"),
        ({}, {"blk.0.extra.weight": np.ones(3, np.float32)}, "blk.0.extra.weight: surplus"),
        ({"split.count": 3}, {}, "is a part of a model"),
        ({"general.type": "adapter"}, {}, "an adapter"),
        ({}, {"x.weight": (np.zeros((4, 32), np.int32), None)}, "x.weight: holds I32; take a file of another"),
    ],
)
def test_what_is_not_read_is_refused_by_name(fields, tensors, words, tmp_path):
    if "general.architecture" in fields:
        path = write_gguf(tmp_path / "a.gguf", fields["general.architecture"], {}, {"w": np.ones(3, np.float32)})
    else:
        path = as_gguf("llama_tied", tmp_path / "a.gguf", fields=fields, tensors=tensors)
    with pytest.raises(UserError, match=words):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("case", "fields", "tensors", "words"),
    [
        ("granite", {"granite.attention.scale": None}, {}, "granite.attention.scale: missing"),
        ("granite", {"granite.rope.scaling.finetuned": False}, {}, "finetuned: is false: tokens are not told"),
        ("phi4_mini", {"phi3.attention.sliding_window": None}, {}, "phi3.attention.sliding_window: missing"),
        ("phi4_mini", {}, {"rope_factors_long.weight": None}, "rope_factors_long.weight: missing"),
        ("llama_tied", {}, {"rope_factors_long.weight": np.ones(2, np.float32)}, "or in a model that is no Phi 3"),
        ("qwen3", {"qwen3.rope.dimension_count": 4}, {}, "dimension_count: is 4, but a head has 6 features"),
        ("qwen3_moe", {"qwen3moe.expert_used_count": None}, {}, "qwen3moe.expert_used_count: missing"),
        ("qwen3_moe", {"qwen3moe.expert_count": 6}, {}, r"layers.0.mlp.experts.5.down_proj.weight: missing"),
        ("gpt_oss", {"gpt-oss.expert_feed_forward_length": 12}, {}, "length: is not feed_forward_length"),
        ("gpt_oss", {}, {"blk.1.ffn_up_exps.weight": None}, r"layers.1.mlp.experts.gate_up_proj: missing"),
        ("ministral3", {"mistral3.attention.temperature_length": 8}, {}, "temperature_length: is 8, a field"),
        ("olmo3", {"olmo2.rope.scaling.yarn_ext_factor": 0.5}, {}, "yarn_ext_factor: is 0.5, a field that"),
    ],
)
def test_what_one_family_lacks_or_has_too_much_is_told(case, fields, tensors, words, tmp_path):
    with pytest.raises(UserError, match=words):
        checkpoint.load(as_gguf(case, tmp_path / "a.gguf", fields=fields, tensors=tensors))


def test_damaged_and_missing_files_are_told(tmp_path):
    whole = as_gguf("llama_tied", tmp_path / "a.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.gguf").write_bytes(b"{}")
    for name in ("cut.gguf", "no.gguf"):
        with pytest.raises(UserError, match=f"{name}: no GGUF file, or cut short"):
            hub.locate(tmp_path / name)
    folder = hub.locate(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").unlink()
    with pytest.raises(UserError, match="the GGUF file has moved away"):
        checkpoint.load(folder)


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(tmp_path):
    path = as_gguf("llama_tied", tmp_path / "a.gguf")
    folder = hub.locate(path)
    before = (folder / "config.json").stat().st_mtime_ns
    assert hub.locate(path) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    as_gguf("qwen3", path)
    assert hub.locate(path) != folder
    assert checkpoint.load_config(path).family == "qwen3"


def fields_of_tokenizer(tokenizer, pre):
    """A byte-level tokenizer's fields."""
    own = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(own["vocab"], key=own["vocab"].get)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in own["merges"]]
    kinds = [3 if token.startswith("<|") else 1 for token in tokens]
    fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, "token_type": kinds, "eos_token_id": 2}
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


def opened_both_ways(path):
    """Our tokenizer of a file, and transformers' own."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return load_tokenizer(hub.locate(path)), theirs


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "dbrx"])
def test_byte_level_tokenizers_are_those_of_transformers(pre, tmp_path):
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
    fields = fields_of_tokenizer(train_tokenizer(TEXTS * 3, vocab_size=420), pre)
    fields["tokenizer.chat_template"] = "{% for m in messages %}{{ m.content }}<|end_of_{{ m.role }}|>{% endfor %}"
    ours, theirs = opened_both_ways(as_gguf("llama_tied", tmp_path / "a.gguf", fields=fields))
    for text in [*TEXTS, "a<|end_of_user|>b"]:
        text = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        wanted = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours(text, add_special_tokens=False)["input_ids"] == wanted, text
        assert ours.decode(wanted) == text
    assert ours.chat_template == fields["tokenizer.chat_template"]
    assert ours.eos_token == "<|end_of_assistant|>"
    composed = [ours("e\u0301")["input_ids"], ours("é")["input_ids"]]
    assert (composed[0] == composed[1]) == (pre == "qwen2")


@pytest.mark.parametrize("case", ["llama_tied", "gemma2", "phi4_mini"])
def test_pieces_with_scores_are_merged_as_transformers_does(case, tmp_path):
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted(
        {letter for text in TEXTS[:3] for letter in text.replace(" ", "▁") if letter.isascii() or letter == "▁"}
    )
    whole = ["▁▁", "in", "th", "er", "he", "▁th", "the", "▁the", "es", "ere", "▁ther", "▁there", "▁a", "an", "▁an"]
    pieces += [*whole, *letters]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(whole) + len(letters))]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(whole) + len(letters))]
    fields = {"model": "llama", "pre": "default", "tokens": pieces, "scores": scores, "token_type": kinds}
    fields |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": True}
    fields |= {"add_space_prefix": case != "gemma2", "merges": None}
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    ours, theirs = opened_both_ways(as_gguf(case, tmp_path / "a.gguf", fields=fields))
    for text in TEXTS:
        # Their Llama puts no space before a text that has one, nor behind a control token; llama.cpp and Llama 2 do.
        text = text if case == "gemma2" else text.lstrip().replace("<s>", "s")
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
    assert ours("there")["input_ids"][0] == 1
    # Phi 3's end of a text takes in the spaces behind it, as in its own tokenizer.json.
    takes = ours("a</s> a")["input_ids"] == ours("a</s>a")["input_ids"]
    assert takes == (case == "phi4_mini")
