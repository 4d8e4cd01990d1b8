"""A compiled program's text (XLA's HLO, after all passes and scheduling), read into instructions.

Only what counting needs is read: names, kinds, shapes, operands, and the text of the attributes.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pref_jax.errors import UserError

# Bits of an element; kinds that take no space, such as tokens, are not listed.
BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "f4e2m1fn": 4,
    "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e4m3fnuz": 8, "f8e5m2": 8, "f8e5m2fnuz": 8, "f8e3m4": 8,
    "f8e8m0fnu": 8,
}  # fmt: skip
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_COMMENT = re.compile(r"/\*.*?\*/")
_OPCODE = re.compile(r"([\w\-]+)\(")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_OPERAND = re.compile(r"%([\w.\-]+)")


class Shape(NamedTuple):
    """An array of a program.

    Attributes:
      kind: of its elements, as `BITS` names them.
      dims: lengths of its axes.
      space: where it lies: 0 is the device's main memory, others are on the chip (or the host's memory, 5).
    """

    kind: str
    dims: tuple[int, ...]
    space: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def whole(self) -> int:
        """Its bytes, wherever it lies."""
        return self.size * BITS.get(self.kind, 0) // 8

    @property
    def bytes(self) -> int:
        """Its bytes of main memory; 0 where it lies elsewhere."""
        return 0 if self.space else self.whole


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: unique within its computation.
      opcode: what it does, such as "fusion" or "dot".
      shapes: what it gives, one for each part of a tuple.
      operands: names, within the same computation.
      attributes: the rest of the line as it stands.
      literal: what stands between the brackets of a constant or a parameter.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str

    @property
    def bytes(self) -> int:
        """Of main memory that its results take."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def whole(self) -> int:
        """Bytes of its results, wherever they lie."""
        return sum(shape.whole for shape in self.shapes)

    @property
    def target(self) -> str:
        """Of a custom call, what it calls, such as "__cublas$gemm"; "" of others."""
        found = _TARGET.search(self.attributes)
        return found[1] if found else ""

    def called(self, attribute: str) -> list[str]:
        """Names of the computations that an attribute such as "calls" or "branch_computations" holds."""
        found = re.search(rf"\b{attribute}=(\{{[^{{}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [] if found is None else [name.strip(" %") for name in found[1].strip("{}").split(",")]


class Computation(NamedTuple):
    """A function of a program: its instructions by name, in the order of their schedule; the last one is its result."""

    instructions: dict[str, Instruction]
    root: str

    def parameters(self) -> list[Instruction]:
        """Its parameters in order."""
        found = [one for one in self.instructions.values() if one.opcode == "parameter"]
        return sorted(found, key=lambda one: int(one.literal))

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read another one."""
        return [one for one in self.instructions.values() if name in one.operands]


class Program(NamedTuple):
    """All computations by name, and the name of the first one."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str | None) -> Program:
    """Reads what `jax.stages.Compiled.as_text` gives.

    Raises:
      UserError: if there is no program in it.

    Example:
      >>> import jax
      >>> compiled = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()
      >>> program = parse(compiled.as_text())
      >>> program.computations[program.entry].parameters()[0].shapes[0].dims
      (8, 8)
    """
    computations, entry = {}, ""
    for name, first, lines in _blocks((text or "").splitlines()):
        found = [_instruction(line) for line in lines]
        roots = [one.name for line, one in zip(lines, found, strict=True) if line.lstrip().startswith("ROOT ")]
        computations[name] = Computation({one.name: one for one in found}, roots[0] if roots else found[-1].name)
        entry = name if first else entry
    if not entry:
        raise UserError("this text is no compiled program: it has no ENTRY; give what Compiled.as_text() returns")
    return Program(computations, entry)


def _blocks(lines: Sequence[str]) -> Iterator[tuple[str, bool, list[str]]]:
    """Name, whether it is the first to run, and lines of each computation."""
    name, first, own = "", False, []
    for line in lines:
        if not name:
            if head := _HEAD.match(line):
                name, first, own = head[2], head[1] is not None, []
        elif line.rstrip() == "}":
            yield name, first, own
            name = ""
        elif _NAME.match(line):
            own.append(line)
        elif own:  # what a kernel says of itself has several lines
            own[-1] += line


def _instruction(line: str) -> Instruction:
    line = _COMMENT.sub("", line)
    head = _NAME.match(line)
    assert head is not None, "`_blocks` gives such lines only"
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end + 1)
    assert opcode is not None, f"an instruction without a kind: {line[:200]}"
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close]
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        shapes=tuple(_shape(*found) for found in _SHAPE.findall(rest[:end])),
        operands=tuple(_OPERAND.findall(inside)),
        attributes=rest[close + 1 :],
        literal=inside,
    )


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"no closing bracket: {text[start : start + 100]}")


def _shape(kind: str, dims: str, layout: str) -> Shape:
    space = _SPACE.search(layout)
    lengths = tuple(int(length.lstrip("<=")) for length in dims.split(",") if length)
    return Shape(kind, lengths, int(space[1]) if space else 0)
