"""A compiled module's text (HLO) as a list of computations, each a list of instructions."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import cached_property

ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "s4": 0.5,
    "u4": 0.5,
}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's type, and whether it is in the chip's main memory (a TPU's compiler marks those
    that are not)."""

    dtype: str
    dims: tuple[int, ...]
    in_memory: bool = True
    on_host: bool = False  # in the memory of the chip's host

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        # Types that are not listed are 8-bit floats and tokens.
        return self.size * ITEM_BYTES.get(self.dtype, 1)


@dataclasses.dataclass
class Instruction:
    """One instruction.

    `shapes` are those of its result, or of the parts of a tuple; `rest` holds the attributes after
    the operands, and `value=` of a constant or a parameter's number.
    """

    name: str
    opcode: str
    shapes: list[Shape]
    operands: list[str]
    rest: str
    root: bool

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def size(self) -> int:
        return sum(shape.size for shape in self.shapes)

    def attribute(self, key: str) -> str | None:
        """The value of `key=value`, without what comes after a comma or blank."""
        match = re.search(rf"\b{key}=([^,\s]+)", self.rest)
        return match and match[1]

    @cached_property
    def called(self) -> list[str]:
        """The computations that it runs, a loop's body before its condition."""
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        names = re.findall(r"[\w.\-]+", branches[1]) if branches else _CALLED.findall(self.rest)
        return sorted(names, key=lambda name: f"condition=%{name}," in f"{self.rest},")


@dataclasses.dataclass
class Computation:
    name: str
    instructions: list[Instruction] = dataclasses.field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction's result."""
        users: dict[str, list[Instruction]] = {
            instruction.name: [] for instruction in self.instructions
        }
        for instruction in self.instructions:
            for operand in instruction.operands:
                users.get(operand, []).append(instruction)
        return users

    @property
    def root(self) -> Instruction:
        return next(instruction for instruction in reversed(self.instructions) if instruction.root)

    def parameter(self, position: int) -> Instruction:
        """The parameter for the operand at this position."""
        return next(
            p
            for p in self.instructions
            if p.opcode == "parameter" and p.attribute("value") == str(position)
        )

    def shapes_of(self, instruction: Instruction) -> list[Shape]:
        """The arrays that an instruction reads."""
        return [
            shape
            for name in instruction.operands
            if name in self.by_name
            for shape in self.by_name[name].shapes
        ]


@dataclasses.dataclass
class Module:
    entry: str
    computations: dict[str, Computation]


def parse(text: str) -> Module:
    """Reads the text of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            head = _HEAD.match(line)
            if head:
                current = computations[head[2]] = Computation(head[2])
                entry = head[2] if head[1] else entry
            elif current is not None and current.instructions and line != "}":
                current.instructions[-1].rest += line  # a kernel's notes span several lines
            continue
        match = _INSTRUCTION.match(line)
        if match:
            current.instructions.append(_instruction(match[2], match[3], bool(match[1])))
    return Module(entry, computations)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    kind, text = _closed(text) if text.startswith("(") else text.split(" ", 1)
    opcode, _, behind = text.strip().partition("(")
    inside, rest = _closed("(" + behind)
    shapes = [
        Shape(
            dtype,
            tuple(int(n) for n in dims.split(",") if n),
            "S(" not in (layout or ""),
            "S(5)" in (layout or ""),
        )
        for dtype, dims, layout in _SHAPE.findall(kind)
    ]
    if opcode in ("constant", "parameter"):  # the constant, or the parameter's number
        rest = f"value={inside[1:-1]} {rest}"
    return Instruction(name, opcode, shapes, _NAME.findall(inside), rest, root)


def _closed(text: str) -> tuple[str, str]:
    """Splits text that begins with a bracket after the bracket that closes it."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: position + 1], text[position + 1 :]
    return text, ""


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often a `while` runs: as the compiler notes it, or from a condition `counter < constant`
    (JAX's loop counters begin at 0); None where it depends on the data."""
    noted = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest)
    if noted:
        return int(noted[1])
    condition = module.computations[loop.called[-1]]
    root = condition.root
    compared = [condition.by_name[name] for name in root.operands if name in condition.by_name]
    bounds = [int(c.attribute("value") or 1) for c in compared if c.opcode == "constant"]
    return (
        bounds[0] if root.opcode == "compare" and "direction=LT" in root.rest and bounds else None
    )
