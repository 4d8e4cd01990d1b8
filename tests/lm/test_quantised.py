"""Checkpoints quantised by others, against the numbers that they stand for, computed here in float64."""

import json

import make_goldens
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from pref_jax.errors import UserError
from pref_jax.lm import checkpoint, weight_files
from pref_jax.lm.stored_tensors import read, read_whole

KINDS = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "int8": "I8", "uint8": "U8", "int32": "I32", "int64": "I64"}
E4M3 = ml_dtypes.float8_e4m3fn
LINEAR = ("_proj.weight",)
NF4 = np.array([-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0796, 0.1609, 0.2461], np.float32)
NF4 = np.concatenate([NF4, np.array([0, 0.3379, 0.4407, 0.5626, 0.723, 1], np.float32)])


def write(folder, tensors, config):
    """A checkpoint of the golden Qwen 3 with other tensors, 8-bit floats among them."""
    folder.mkdir(exist_ok=True)
    raw = json.loads((make_goldens.GOLDENS / "qwen3" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": config}))
    header, data = {}, b""
    for key, value in tensors.items():
        span = [len(data), len(data) + value.nbytes]
        header[key] = {"dtype": KINDS[str(value.dtype)], "shape": list(value.shape), "data_offsets": span}
        data += np.ascontiguousarray(value).tobytes()
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    return folder


def each_linear(make):
    """The golden's tensors with `make`'s in place of every linear's; {key: what those stand for}."""
    rng, stored, wanted = np.random.default_rng(0), {}, {}
    for key, value in load_file(make_goldens.GOLDENS / "qwen3" / "model.safetensors").items():
        if key.endswith(LINEAR):
            parts, wanted[key] = make(value.astype(np.float64), rng)
            stored |= {key.removesuffix("weight") + name: part for name, part in parts.items()}
        else:
            stored[key] = value
    return stored, wanted


def fp8(block):
    def make(value, rng):
        down, across = block or value.shape
        blocks = [-(-size // part) for size, part in zip(value.shape, (down, across), strict=True)]
        scale = rng.uniform(0.5, 2, blocks).astype(np.float32)
        spread = scale.repeat(down, 0).repeat(across, 1)[: value.shape[0], : value.shape[1]]
        small = (value / spread).astype(E4M3)
        scale = scale if block else scale.reshape(())
        return {"weight": small, "weight_scale_inv": scale, "activation_scale": scale}, small.astype(float) * spread

    return make


def channels(kind, *, zero=False):
    """compressed-tensors, a scale for each row."""

    def make(value, rng):
        scale = (np.abs(value).max(1, keepdims=True) / 100).astype(np.float32)
        offset = rng.integers(-9, 9, scale.shape).astype(np.int8) if zero else np.zeros_like(scale, np.int8)
        small = (value / scale + offset).round().astype(kind) if kind == np.int8 else (value / scale).astype(kind)
        parts = {"weight": small, "weight_scale": scale} | ({"weight_zero_point": offset} if zero else {})
        return parts, (small.astype(float) - offset) * scale

    return make


def words(codes, bits):
    """Codes [O I] in int32 words along the second axis, by whole numbers of any size."""
    each = 32 // bits
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each))).reshape(len(codes), -1, each).astype(object)
    whole = sum(codes[:, :, place] << bits * place for place in range(each))
    return np.array(whole, np.int64).astype(np.uint32).view(np.int32).reshape(len(codes), -1)


def packed(bits, *, zero=False):
    """compressed-tensors, packed, a scale for every 8 inputs."""

    def make(value, rng):
        groups = value.shape[1] // 8
        scale = rng.uniform(0.1, 1, (len(value), groups)).astype(np.float32)
        codes, half = rng.integers(0, 1 << bits, value.shape), 1 << bits - 1
        zeros = rng.integers(0, 1 << bits, scale.shape) if zero else np.full(scale.shape, half)
        parts = {"weight_packed": words(codes, bits), "weight_scale": scale}
        parts["weight_shape"] = np.array(value.shape, np.int64)
        if zero:
            parts["weight_zero_point"] = np.ascontiguousarray(words(zeros.T, bits).T)
        return parts, (codes.astype(float) - zeros.repeat(8, 1)) * scale.repeat(8, 1)

    return make


def eight_bits(value, rng):
    """bitsandbytes, int8."""
    scb = np.abs(value).max(1).astype(np.float32)
    small = (value / scb[:, None] * 127).round().astype(np.int8)
    parts = {"weight": small, "SCB": scb, "weight_format": np.zeros((), np.uint8)}
    return parts, small.astype(float) * scb[:, None] / 127


def four_bits(*, nested):
    """bitsandbytes, nf4, blocks of 64 over the flat weight."""

    def make(value, rng):
        codes = rng.integers(0, 16, value.size)
        count = -(-value.size // 64)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(value.shape)}
        parts = {"weight.quant_map": NF4, "weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None]}
        absmax = rng.uniform(0.5, 2, count)
        parts["weight.absmax"] = absmax.astype(np.float32)
        if nested:
            table = np.sort(rng.standard_normal(256)).astype(np.float32)
            number, largest = rng.integers(0, 256, count), rng.uniform(0.5, 1, -(-count // 4)).astype(np.float32)
            state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.25}
            parts |= {"weight.absmax": number.astype(np.uint8), "weight.nested_absmax": largest}
            parts["weight.nested_quant_map"] = table
            absmax = table[number].astype(float) * largest[np.arange(count) // 4] + 0.25
        text = json.dumps(state).encode()
        parts["weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(text, np.uint8)
        return parts, (NF4.astype(float)[codes] * absmax[np.arange(value.size) // 64]).reshape(value.shape)

    return make


def compressed(bits, **more):
    return {"quant_method": "compressed-tensors", "config_groups": {"0": {"weights": {"num_bits": bits}, **more}}}


FP8 = {"quant_method": "fp8"}
CASES = {
    "fp8 blocks": (fp8((8, 8)), FP8 | {"weight_block_size": [8, 8]}),
    "fp8 odd blocks": (fp8((7, 9)), FP8 | {"weight_block_size": [7, 9]}),
    "fp8 tensor": (fp8(None), FP8),
    "float-quantized": (channels(E4M3), compressed(8) | {"format": "float-quantized"}),
    "int-quantized": (channels(np.int8), compressed(8) | {"format": "int-quantized"}),
    "zero points": (channels(np.int8, zero=True), compressed(8) | {"format": "int-quantized"}),
    "packed 4 bits": (packed(4), compressed(4, format="pack-quantized")),
    "packed 8 bits": (packed(8), compressed(8, format="pack-quantized")),
    "packed 4 bits, zero points": (packed(4, zero=True), compressed(4, format="pack-quantized")),
    "int8": (eight_bits, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4": (four_bits(nested=False), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "nf4 nested": (four_bits(nested=True), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_quantised_checkpoint_is_what_it_stands_for(case, tmp_path):
    make, config = CASES[case]
    stored, wanted = each_linear(make)
    folder = write(tmp_path / "quantised", stored, config)
    found = weight_files.catalog(folder)
    for key, value in wanted.items():
        np.testing.assert_allclose(read_whole(found[key]), value, rtol=2e-6, atol=2e-6, err_msg=key)
        np.testing.assert_allclose(
            read(found[key], (slice(3, 6), slice(1, 12))), value[3:6, 1:12], rtol=2e-6, atol=2e-6
        )
    plain = {
        key: value
        for key, value in stored.items()
        if not key.split("_proj.")[-1].startswith(("weight", "SCB", "activation"))
    }
    wide = write(tmp_path / "wide", plain | {key: value.astype(np.float32) for key, value in wanted.items()}, None)
    (_, ours), (_, theirs) = checkpoint.load(folder), checkpoint.load(wide)
    for (path, leaf), other in zip(checkpoint.flat(ours).items(), checkpoint.flat(theirs).values(), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2e-6, atol=2e-6, err_msg=path)


def test_experts_of_mxfp4_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="the reference is transformers' own widening, in torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 6, 2, 16)).astype(np.uint8)
    scales = rng.integers(110, 140, (3, 6, 2)).astype(np.uint8)
    parts = {
        "model.layers.0.mlp.experts.down_proj_blocks": blocks,
        "model.layers.0.mlp.experts.down_proj_scales": scales,
    }
    folder = write(tmp_path / "a", parts, {"quant_method": "mxfp4"})
    (found,) = weight_files.catalog(folder).values()
    assert found.key == "model.layers.0.mlp.experts.down_proj"
    wanted = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32).numpy()
    assert found.shape == wanted.shape == (3, 64, 6)
    np.testing.assert_array_equal(read_whole(found), wanted)
    np.testing.assert_array_equal(read(found, (slice(1, 3), slice(5, 40), slice(2, 3))), wanted[1:3, 5:40, 2:3])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            r"quant_method 'gptq' is not read; use the unquantised checkpoint, or one",
        ),
        ({"quant_method": "awq"}, "quant_method 'awq' is not read"),
        ({"bits": 4}, "quant_method None is not read"),
        ([4], "quantization_config: is no object"),
        (compressed(4) | {"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized' of compressed-tensors"),
        (compressed(4, format="marlin-24"), "format 'marlin-24' of compressed-tensors"),
        (compressed(8) | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "weights that are sparse"),
    ],
)
def test_other_forms_are_refused_by_name(config, words, tmp_path):
    folder = write(tmp_path / "a", each_linear(fp8(None))[0], config)
    for opened in (checkpoint.load_config, checkpoint.load):
        with pytest.raises(UserError, match=words):
            opened(folder)


def test_parts_that_are_missing_or_do_not_fit_are_all_told(tmp_path):
    stored, _ = each_linear(fp8((8, 8)))
    key = "model.layers.{}.mlp.up_proj.weight"
    del stored[key.format(0)]
    stored[key.format(1) + "_scale_inv"] = np.ones((5, 2), np.float32)
    folder = write(tmp_path / "a", stored, FP8 | {"weight_block_size": [8, 8]})
    with pytest.raises(UserError, match="2 faults") as caught:
        checkpoint.load(folder)
    assert "layers.0.mlp.up_proj.weight_scale_inv: stands without" in str(caught.value)
    assert "layers.1.mlp.up_proj.weight_scale_inv: shape (5, 2) does not fit" in str(caught.value)
    del stored[key.format(1) + "_scale_inv"], stored[key.format(0) + "_scale_inv"]
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight: holds F8_E4M3, no plain floats"):
        checkpoint.load(write(tmp_path / "b", stored, FP8 | {"weight_block_size": [8, 8]}))
