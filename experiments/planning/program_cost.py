"""The work of a compiled program: operations of matrix products, bytes of main memory, collectives, through loops.

`jax.stages.Compiled.cost_analysis` counts the body of a loop once; a transformer is a loop over its layers within a
loop over micro-batches. Here every instruction counts as often as it runs.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments.planning.hlo_text import Computation, Instruction, Program

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
# They move nothing: names, views, what is known when compiling.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "add-dependency", "domain", "opt-barrier",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
_SEEN_THROUGH = {"bitcast", "reshape", "copy", "convert"}
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GEMM_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_COST = re.compile(r'"cost_estimate":\{"flops":"?(\d+)')


class Piece(NamedTuple):
    """Something that a device does at once.

    Attributes:
      name: the instruction.
      kind: "compute", or the collective's.
      operations: of matrix products, two for a multiplication and addition.
      bytes: of main memory, read and written; of a collective, what a device sends.
      times: how often it runs.
      hidden: a collective that runs beside other work.
    """

    name: str
    kind: str
    operations: float
    bytes: float
    times: int
    hidden: bool = False


class Work(NamedTuple):
    """What one device does in a call of a program.

    Attributes:
      pieces: in no order.
      unknown_loops: names of loops of which nobody knows how often they run; they count once.
      kernels: targets of the custom calls among it, such as "__cudnn$fmhaSoftmax", and how often they run.
    """

    pieces: list[Piece]
    unknown_loops: list[str]
    kernels: dict[str, int]

    @property
    def operations(self) -> float:
        """Of all matrix products."""
        return sum(piece.operations * piece.times for piece in self.pieces)

    @property
    def bytes(self) -> float:
        """Of main memory."""
        return sum(piece.bytes * piece.times for piece in self.pieces if piece.kind == "compute")

    def sent(self) -> dict[str, float]:
        """Bytes that a device sends, by collective."""
        found: dict[str, float] = {}
        for piece in self.pieces:
            if piece.kind != "compute":
                found[piece.kind] = found.get(piece.kind, 0.0) + piece.bytes * piece.times
        return found


def count(program: Program) -> Work:
    """Counts all that a call of a program does on one device.

    Example:
      >>> import jax
      >>> from experiments.planning.hlo_text import parse
      >>> product = jax.jit(lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=5)[0])
      >>> text = product.lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile().as_text()
      >>> count(parse(text)).operations == 5 * 2 * 8**3
      True
    """
    counter = _Counter(program)
    counter.run(program.entry, 1, hidden=False)
    return Work(counter.pieces, counter.unknown, counter.kernels)


class _Counter:
    """Walks through computations as they are called."""

    def __init__(self, program: Program):
        self._program = program
        self.pieces: list[Piece] = []
        self.unknown: list[str] = []
        self.kernels: dict[str, int] = {}

    def run(self, name: str, times: int, *, hidden: bool) -> None:
        """Counts a computation that runs so often."""
        own = self._program.computations[name]
        channels: set[str] = set()
        for one in own.instructions.values():
            if one.opcode in _FREE or one.opcode.endswith("-done"):
                continue
            kind = one.opcode.removesuffix("-start")
            if one.opcode == "while":
                trips = _trips(self._program, own, one)
                if trips is None:
                    self.unknown.append(one.name)
                for part in ("body", "condition"):
                    self.run(one.called(part)[0], times * (1 if trips is None else trips), hidden=hidden)
            elif one.opcode == "conditional":
                self._branches(one, times, hidden)
            elif one.opcode in ("call", "async-start"):
                for called in one.called("to_apply") + one.called("calls") + one.called("called_computation"):
                    self.run(called, times, hidden=hidden or one.opcode == "async-start")
            elif kind in COLLECTIVES:
                self._collective(own, one, kind, times, hidden or one.opcode.endswith("-start"), channels)
            else:
                self._compute(own, one, times, channels)

    def _branches(self, one: Instruction, times: int, hidden: bool) -> None:
        """Of several branches the one of most operations, then of most bytes."""
        names = one.called("branch_computations") + one.called("true_computation") + one.called("false_computation")
        counted = []
        for name in names:
            branch = _Counter(self._program)
            branch.run(name, times, hidden=hidden)
            counted.append(branch)
        most = max(counted, key=lambda found: (Work(found.pieces, [], {}).operations, Work(found.pieces, [], {}).bytes))
        self.pieces += most.pieces
        self.unknown += most.unknown
        for target, number in most.kernels.items():
            self.kernels[target] = self.kernels.get(target, 0) + number

    def _collective(
        self, own: Computation, one: Instruction, kind: str, times: int, hidden: bool, channels: set[str]
    ) -> None:
        """One that is begun, kept going and ended in three fusions has one channel in all three."""
        channel = _CHANNEL.search(one.attributes)
        if channel is not None and channel[1] in channels:
            return
        channels.update(() if channel is None else (channel[1],))
        given = [own.instructions[name] for name in one.operands]
        taken = sum(_whole(operand) for operand in given)
        whole = _whole(one)
        if one.opcode.endswith("-start") and len(one.shapes) > len(given):
            whole -= taken  # its tuple holds what was given too
        group = _group(one.attributes)
        sent = _sent(kind, taken, whole, group)
        if sent:
            self.pieces.append(Piece(one.name, kind, 0.0, sent, times, hidden))

    def _compute(self, own: Computation, one: Instruction, times: int, channels: set[str]) -> None:
        operations, moved = _operations(self._program, own, one), _moved(self._program, own, one)
        if target := _TARGET.search(one.attributes):
            self.kernels[target[1]] = self.kernels.get(target[1], 0) + times
        if operations or moved:
            self.pieces.append(Piece(one.name, "compute", operations, moved, times))
        for called in one.called("calls") if one.opcode == "fusion" else ():
            for inner in _within(self._program, called):
                for part in inner.instructions.values():
                    kind = part.opcode.removesuffix("-start")
                    if kind in COLLECTIVES:
                        self._collective(inner, part, kind, times, True, channels)


def _within(program: Program, name: str) -> Iterator[Computation]:
    """A fused computation and those fused into it."""
    own = program.computations[name]
    yield own
    for one in own.instructions.values():
        for called in one.called("calls") if one.opcode == "fusion" else ():
            yield from _within(program, called)


# --- loops ---


def _trips(program: Program, own: Computation, loop: Instruction) -> int | None:
    """How often a loop runs: as the compiler notes it, or by its counter from a constant up to another one."""
    if told := _TRIPS.search(loop.attributes):
        return int(told[1])
    condition = program.computations[loop.called("condition")[0]]
    compared = condition.instructions[condition.root]
    sides = [condition.instructions[name] for name in compared.operands]
    if compared.opcode == "fusion":  # the comparison alone, of the same two
        inner = program.computations[compared.called("calls")[0]]
        compared = inner.instructions[inner.root]
        if [inner.instructions[name].opcode for name in compared.operands] != ["parameter", "parameter"]:
            return None
        sides = [sides[int(inner.instructions[name].literal)] for name in compared.operands]
    if compared.opcode != "compare" or "direction=LT" not in compared.attributes or len(sides) != 2:
        return None
    if sides[0].opcode != "get-tuple-element" or sides[1].opcode != "constant":
        return None
    place = _index(sides[0])
    given = own.instructions[loop.operands[0]]
    if given.opcode != "tuple":
        return None
    start, body = _constant(own, given.operands[place]), program.computations[loop.called("body")[0]]
    step, last = _step(body, place), int(sides[1].literal)
    return None if start is None or not step else max(0, -(-(last - start) // step))


def _index(one: Instruction) -> int:
    """Which part of a tuple an instruction takes."""
    found = re.search(r"index=(\d+)", one.attributes)
    assert found is not None, "get-tuple-element says which"
    return int(found[1])


def _constant(own: Computation, name: str) -> int | None:
    one = own.instructions[name]
    while one.opcode in ("copy", "bitcast"):
        one = own.instructions[one.operands[0]]
    return int(one.literal) if one.opcode == "constant" else None


def _step(body: Computation, place: int) -> int | None:
    """By how much a loop's body raises a part of its tuple: unrolled loops do so several times."""
    root, total = body.instructions[body.root], 0
    if root.opcode != "tuple":
        return None
    one = body.instructions[root.operands[place]]
    while one.opcode != "get-tuple-element":
        if one.opcode == "add":
            constants = [_constant(body, name) for name in one.operands]
            known = [place for place, value in enumerate(constants) if value is not None]
            if len(known) != 1:
                return None
            total += constants[known[0]] or 0
            one = body.instructions[one.operands[1 - known[0]]]
        elif one.opcode in ("copy", "bitcast"):
            one = body.instructions[one.operands[0]]
        else:
            return None
    return total if _index(one) == place else None


# --- operations ---


def _operations(program: Program, own: Computation, one: Instruction) -> float:
    """Of matrix products in an instruction, with those fused into it."""
    if one.opcode == "fusion":
        inner = program.computations[one.called("calls")[0]]
        return sum(_operations(program, inner, part) for part in inner.instructions.values())
    if one.opcode == "dot":
        return _product(own, one, _CONTRACTED)
    if one.opcode == "convolution":
        return _convolution(own, one)
    if one.opcode == "custom-call":
        if "gemm" in one.attributes or "matmul" in one.attributes:
            return _product(own, one, _GEMM_CONTRACTED)
        cost = _COST.search(one.attributes)
        return float(cost[1]) if cost else 0.0
    return 0.0


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


def _moved(program: Program, own: Computation, one: Instruction) -> float:
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


def _whole(one: Instruction) -> float:
    """Bytes of an instruction's results, wherever they lie."""
    return sum(shape.whole for shape in one.shapes)


# --- collectives ---


def _group(attributes: str) -> int:
    """Devices of a group of a collective; 0 where it names none, which stands for all."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']*)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+(?:,\d+)*)\]<=", attributes):
        return int(found[1].split(",")[-1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    return 0


def _sent(kind: str, given: float, whole: float, group: int) -> float:
    """Bytes that each device of a group sends, by the ring algorithms that move the least."""
    share = 0.0 if group == 1 else 1.0 if group == 0 else (group - 1) / group
    moves: Mapping[str, Callable[[], float]] = {
        "all-gather": lambda: whole * share,
        "all-reduce": lambda: 2 * whole * share,
        "reduce-scatter": lambda: given * share,
        "all-to-all": lambda: given * share,
        "ragged-all-to-all": lambda: given * share,
    }
    return moves[kind]() if kind in moves else given
