"""The work of one instruction: operations of its matrix products, bytes of main memory that it reads and writes."""

import math
import re

import numpy as np

from experiments.planning.hlo_text import Computation, Instruction, Program

_SLICES = {"dynamic-slice", "slice", "gather"}
_SEEN_THROUGH = {"bitcast", "reshape", "copy", "convert"}
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GEMM_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
# Products of queries' and keys' size in the kernels of splash attention: scores and values; scores, their gradients and
# those of the queries; and those of keys and values.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_COST = re.compile(r'"cost_estimate":\{"flops":"?(\d+)')


# --- operations ---


def operations(program: Program, own: Computation, one: Instruction) -> float:
    """Of matrix products in an instruction, with those fused into it."""
    if one.opcode == "fusion":
        inner = program.computations[one.called("calls")[0]]
        return sum(operations(program, inner, part) for part in inner.instructions.values())
    if one.opcode == "dot":
        return _product(own, one, _CONTRACTED)
    if one.opcode == "convolution":
        return _convolution(own, one)
    if one.opcode == "custom-call":
        if "gemm" in one.target or "matmul" in one.target:
            return _product(own, one, _GEMM_CONTRACTED)
        if kernel := re.match(r"splash_m[hq]a_(fwd|dq|dkv)", one.name):
            return _splash(own, one, _PRODUCTS[kernel[1]])
        if "fmha" in one.target:
            return _fmha(own, one)
        cost = _COST.search(one.attributes)
        return float(cost[1]) if cost else 0.0
    return 0.0


def _splash(own: Computation, one: Instruction, products: int) -> float:
    """Of splash attention, as if every query met every key: what may be left out is known when it runs."""
    given = [own.instructions[name].shapes[0] for name in one.operands]
    # Behind the numbers of blocks come queries and keys.
    q, k = [shape.dims for shape in given if "f" in shape.kind][:2]
    return 2.0 * products * math.prod(q) * k[-2]


def _fmha(own: Computation, one: Instruction) -> float:
    """Of cuDNN's attention with a mask, which all heads share: two products, and five in its backward pass."""
    given = [own.instructions[name].shapes[0].dims for name in one.operands]
    mask = next(dims for dims in given if len(dims) == 4 and dims[1] == 1)
    return 2.0 * (5 if "Backward" in one.target else 2) * math.prod(given[0]) * mask[-1]


def _product(own: Computation, one: Instruction, contracted: re.Pattern[str]) -> float:
    found = contracted.search(one.attributes)
    if found is None or not one.operands:
        return 0.0
    left = own.instructions[one.operands[0]].shapes[0].dims
    axes = [int(axis.strip('" ')) for axis in found[1].split(",") if axis.strip('" ')]
    return 2.0 * one.shapes[0].size * math.prod(left[axis] for axis in axes)


def _convolution(own: Computation, one: Instruction) -> float:
    """Products of a convolution; TPUs write every matrix product as one, with batch axes as spatial ones."""
    labels = _LABELS.search(one.attributes)
    assert labels is not None, "a convolution names its axes"
    given, weights = (own.instructions[name].shapes[0].dims for name in one.operands[:2])
    outputs, told = one.shapes[0].dims, re.search(r"window=\{([^}]*)\}", one.attributes)
    window = {name: values.split("x") for name, values in re.findall(r"(\w+)=(\S+)", told[1] if told else "")}
    valid = 1
    for axis, label in enumerate(sorted(set(labels[2]) - {"i", "o"})):
        sizes = given[labels[1].index(label)], weights[labels[2].index(label)], outputs[labels[3].index(label)]

        def of(name: str, usual: str, axis: int = axis) -> str:
            return window[name][axis] if name in window else usual

        low = int(of("pad", "0_0").split("_")[0])
        dilations = int(of("lhs_dilate", "1")), int(of("rhs_dilate", "1"))
        valid *= _taps(*sizes, int(of("stride", "1")), low, *dilations)
    features = weights[labels[2].index("i")]
    return 2.0 * outputs[labels[3].index("b")] * outputs[labels[3].index("f")] * features * valid


def _taps(given: int, kernel: int, outputs: int, stride: int, low: int, given_gaps: int, kernel_gaps: int) -> int:
    """Pairs of an output and a tap of the kernel which meet an element of the input and neither padding nor a gap."""
    place = np.arange(outputs)[:, None] * stride + np.arange(kernel) * kernel_gaps - low
    inside = (place >= 0) & (place < (given - 1) * given_gaps + 1) & (place % given_gaps == 0)
    return int(inside.sum())


# --- bytes ---


def moved(program: Program, own: Computation, one: Instruction) -> float:
    """Bytes of main memory that an instruction reads and writes."""
    given = [own.instructions[name] for name in one.operands]
    if one.opcode == "fusion":
        inner = program.computations[one.called("calls")[0]]
        parameters = inner.parameters()
        read = sum(
            min(operand.bytes, _read(program, inner, parameters[place].name))
            for place, operand in enumerate(given)
            if operand.bytes
        )
        return read + _written(inner, inner.instructions[inner.root], one)
    if one.opcode in _SLICES:
        return 2 * one.bytes
    if one.opcode == "dynamic-update-slice":
        return 2 * given[1].bytes
    if one.opcode == "copy-start":
        return sum(shape.bytes for shape in one.shapes[:2])
    return one.bytes + sum(operand.bytes for operand in given)


def _read(program: Program, inner: Computation, name: str) -> float:
    """Bytes that a fused computation reads of one of its parameters: of slices the slice alone."""
    total = 0.0
    for user in inner.users(name):
        if user.opcode in _SLICES and user.operands[0] == name:
            total += user.shapes[0].whole
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.opcode in _SEEN_THROUGH:
            total += _read(program, inner, user.name) if user.name != inner.root else math.inf
        elif user.opcode == "fusion":
            nested = program.computations[user.called("calls")[0]]
            places = [place for place, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(program, nested, nested.parameters()[place].name) for place in places)
        else:
            return math.inf
    return total


def _written(inner: Computation, root: Instruction, fusion: Instruction) -> float:
    """Bytes that a fusion writes: of an array that it changes in place what it changes."""
    if root.opcode == "tuple":
        parts = [inner.instructions[name] for name in root.operands]
        if len(parts) == len(fusion.shapes):
            return sum(
                min(shape.bytes, _changed(inner, part)) for part, shape in zip(parts, fusion.shapes, strict=True)
            )
    return min(fusion.bytes, _changed(inner, root))


def _changed(inner: Computation, one: Instruction) -> float:
    while one.opcode in _SEEN_THROUGH and one.operands:
        one = inner.instructions[one.operands[0]]
    if one.opcode != "dynamic-update-slice":
        return math.inf
    return 2 * inner.instructions[one.operands[1]].shapes[0].whole
