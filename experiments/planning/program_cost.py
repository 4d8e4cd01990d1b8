"""The work of a compiled program: operations of matrix products, bytes of main memory, collectives, through loops.

`jax.stages.Compiled.cost_analysis` counts the body of a loop once; a transformer is a loop over its layers within a
loop over micro-batches. Here every instruction counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from experiments.planning.hlo_text import Computation, Instruction, Program
from experiments.planning.instruction_cost import moved, operations

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
# They move nothing: names, views, what is known when compiling.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "add-dependency", "domain", "opt-barrier",
}  # fmt: skip
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")


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
    return counter.work


class _Counter:
    """Walks through computations as they are called."""

    def __init__(self, program: Program):
        self._program = program
        self.work = Work([], [], {})

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
                    self.work.unknown_loops.append(one.name)
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
            counted.append(branch.work)
        most = max(counted, key=lambda work: (work.operations, work.bytes))
        self.work.pieces.extend(most.pieces)
        self.work.unknown_loops.extend(most.unknown_loops)
        for target, number in most.kernels.items():
            self._call(target, number)

    def _call(self, target: str, times: int) -> None:
        self.work.kernels[target] = self.work.kernels.get(target, 0) + times

    def _collective(
        self, own: Computation, one: Instruction, kind: str, times: int, hidden: bool, channels: set[str]
    ) -> None:
        """One that is begun, kept going and ended in three fusions has one channel in all three."""
        channel = _CHANNEL.search(one.attributes)
        if channel is not None and channel[1] in channels:
            return
        channels.update(() if channel is None else (channel[1],))
        given = [own.instructions[name] for name in one.operands]
        taken = sum(operand.whole for operand in given)
        whole = one.whole
        if one.opcode.endswith("-start") and len(one.shapes) > len(given):
            whole -= taken  # its tuple holds what was given too
        group = _group(one.attributes)
        sent = _sent(kind, taken, whole, group)
        if sent:
            self.work.pieces.append(Piece(one.name, kind, 0.0, sent, times, hidden))

    def _compute(self, own: Computation, one: Instruction, times: int, channels: set[str]) -> None:
        work, bytes_moved = operations(self._program, own, one), moved(self._program, own, one)
        if one.target:
            self._call(one.target, times)
        if work or bytes_moved:
            self.work.pieces.append(Piece(one.name, "compute", work, bytes_moved, times))
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
    step, last = _step(program, body, place), int(sides[1].literal)
    if start is None or step is None:
        return None
    source, more = step
    if source != place:  # a loop that begins its next turn early holds the next turn's counter too
        ahead, again = _constant(own, given.operands[source]), _step(program, body, source)
        if ahead is None or again != (source, ahead + more - start):
            return None
        more = ahead + more - start
    return max(0, -(-(last - start) // more)) if more else None


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


def _step(program: Program, body: Computation, place: int) -> tuple[int, int] | None:
    """Which part of its tuple a loop's body makes the next value of a part of, and by how much it raises it."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    found = _raised(program, body, root.operands[place])
    return None if found is None or found[0].opcode != "get-tuple-element" else (_index(found[0]), found[1])


def _raised(program: Program, own: Computation, name: str) -> tuple[Instruction, int] | None:
    """What a number is made of by adding constants, and their sum: unrolled loops add several times."""
    one, total = own.instructions[name], 0
    while one.opcode in ("add", "copy", "bitcast", "fusion"):
        place = 0
        if one.opcode == "add":
            constants = [_constant(own, operand) for operand in one.operands]
            known = [side for side, value in enumerate(constants) if value is not None]
            if len(known) != 1:
                return None
            place = 1 - known[0]
            total += constants[known[0]] or 0
        elif one.opcode == "fusion":
            inner = program.computations[one.called("calls")[0]]
            found = _raised(program, inner, inner.root)
            if found is None or found[0].opcode != "parameter":
                return None
            place = int(found[0].literal)
            total += found[1]
        one = own.instructions[one.operands[place]]
    return one, total


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
    return share * {"all-gather": whole, "all-reduce": 2 * whole}.get(kind, given)
