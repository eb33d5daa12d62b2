"""What one run of a compiled program costs a chip: arithmetic, memory traffic, and bytes sent to
other chips.

The compiler's own analysis counts a loop's body once; this one multiplies it by the loop's trips.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from grit_jax.models.decode_kernel import NAME as DECODE
from grit_jax.models.splash import TILES
from grit_jax.plan.hlo import Computation, Instruction, Module, Shape, parse, trip_count

COLLECTIVES = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "collective_permute")
FLOATS = ("bf16", "f32", "f16")
SLICES = ("dynamic-slice", "gather", "slice")  # read only what they return
# Instructions that read all of their operands for any part of their result.
READS_ALL = ("dot", "convolution", "custom-call", "scatter", "sort", "broadcast", *COLLECTIVES)
# Instructions that cause no memory traffic themselves.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "iota",
}
# Instructions that may move arrays between a chip and its host.
HOST_COPIES = ("copy-start", "dynamic-slice-start", "dynamic-update-slice-start")
# Matrix products over each tile of the scores in splash attention's kernels (jax:
# experimental/pallas/ops/tpu/splash_attention/splash_attention_kernel.py). The program's text says
# how many tiles are computed, in the form of `TILES`.
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
# Kernels that multiply rows sorted by expert with each expert's weights, as a TPU's compiler and
# megablox name them (jax: experimental/pallas/ops/tpu/megablox/gmm.py; tgmm computes the weights'
# gradients).
GROUPED = ("ragged-dot-none", "tgmm")


@dataclasses.dataclass
class ProgramCosts:
    """Costs of one run on one chip.

    Attributes:
      flops: of matrix products, with recomputation and redundant work.
      memory_bytes: read from and written to the chip's main memory, without arrays that the
        compiler keeps on the chip.
      collective_bytes: by kind of collective: the result of an all-gather, the operands of the
        others.
      sent_bytes: what the chip itself sends for them in a ring: (n - 1) / n of that, twice for an
        all-reduce.
      network_bytes: what it sends to other slices, likewise.
      to_host_bytes, from_host_bytes: what it keeps in its host's memory, written and read back.
    """

    flops: float = 0.0
    memory_bytes: float = 0.0
    collective_bytes: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(KINDS, 0.0)
    )
    sent_bytes: float = 0.0
    network_bytes: float = 0.0
    to_host_bytes: float = 0.0
    from_host_bytes: float = 0.0

    def add(self, other: ProgramCosts, times: float = 1) -> None:
        self.flops += times * other.flops
        self.memory_bytes += times * other.memory_bytes
        self.sent_bytes += times * other.sent_bytes
        self.network_bytes += times * other.network_bytes
        self.to_host_bytes += times * other.to_host_bytes
        self.from_host_bytes += times * other.from_host_bytes
        for kind, size in other.collective_bytes.items():
            self.collective_bytes[kind] += times * size


def program_costs(text: str, experts: int = 0, trips: tuple[int, ...] = ()) -> ProgramCosts:
    """Reads the costs of a compiled program from its text. Of a condition's branches, the most
    expensive one counts.

    Args:
      experts: of the model, over all chips. A kernel for some of them receives all rows and
        computes those routed to its experts; rows count as spread evenly, since only the data
        decides.
      trips: of a loop that ends by the data, of one inside of it, ...; others count once.
    """
    module = parse(text)
    return _Counter(module, experts, trips).computation(module.entry)


class _Counter:
    """Adds up the costs of a module's computations, visiting each once."""

    def __init__(self, module: Module, experts: int, trips: tuple[int, ...] = ()):
        self.module, self.experts, self.trips = module, experts, trips
        self.known: dict[str, ProgramCosts] = {}

    def computation(self, name: str) -> ProgramCosts:
        """Costs of a computation that runs by itself: the program, a loop's body, a branch."""
        if name not in self.known:
            computation, total = self.module.computations[name], ProgramCosts()
            for instruction in computation.instructions:
                total.add(self._instruction(computation, instruction))
            self.known[name] = total
        return self.known[name]

    def _instruction(self, computation: Computation, instruction: Instruction) -> ProgramCosts:
        costs = ProgramCosts()
        if instruction.opcode == "while":
            times, trips = trip_count(self.module, instruction), self.trips
            if times is None:
                times, self.trips = (trips[0], trips[1:]) if trips else (1, ())
            for called in instruction.called:
                costs.add(self.computation(called), times)
            self.trips = trips
        elif instruction.opcode == "conditional":
            branches = [self.computation(name) for name in instruction.called]
            costs.add(max(branches, key=lambda c: (c.flops, c.memory_bytes)))
        elif instruction.opcode in ("call", "async-start"):
            for called in instruction.called:
                costs.add(self.computation(called))
        elif instruction.opcode == "fusion":
            fused = self.module.computations[instruction.called[0]]
            costs.add(self._fused(fused))
            costs.memory_bytes += _fusion_bytes(self.module, fused)
        elif instruction.opcode in ("send", "recv"):
            costs.add(_between_slices(instruction))
        elif not instruction.opcode.endswith(("-done", "-update")):
            costs.add(_product(computation, instruction))
            costs.add(_collective(computation, instruction))
            costs.add(_host_traffic(computation, instruction))
            if instruction.opcode == "all-reduce":
                gathered = sum(
                    computation.by_name[name].bytes
                    for name in instruction.operands
                    if self._is_gathered_part(computation, name)
                )
                costs.collective_bytes["all_reduce"] -= gathered
                costs.collective_bytes["all_gather"] += gathered
            costs.add(
                self._grouped_matmul(computation, instruction)
                or _decode_attention(computation, instruction)
                or ProgramCosts(memory_bytes=_memory_traffic(computation, instruction))
            )
        return costs

    def _grouped_matmul(
        self, computation: Computation, instruction: Instruction
    ) -> ProgramCosts | None:
        """Costs of a kernel that multiplies rows `[m, k]` by the weights `[E, k, n]` of their
        experts, or by rows `[m, n]` for those weights' gradient; None for anything else."""
        if instruction.opcode != "custom-call" or not any(
            kernel in instruction.name for kernel in GROUPED
        ):
            return None
        arrays = [
            shape
            for shape in computation.shapes_of(instruction) + instruction.shapes
            if shape.dtype in FLOATS
        ]
        lhs, rhs = arrays[:2]
        weights = next(shape for shape in arrays if len(shape.dims) == 3)
        share = weights.dims[0] / self.experts if self.experts else 1.0
        moved = sum(_in_memory([shape]) * (1.0 if shape is weights else share) for shape in arrays)
        return ProgramCosts(flops=2 * share * lhs.size * rhs.dims[-1], memory_bytes=moved)

    def _is_gathered_part(self, computation: Computation, name: str) -> bool:
        """Whether an array is one chip's part of a whole, padded with zeros: on a torus of three
        axes the compiler gathers by summing such arrays, which sends as much as any sum."""
        instruction = computation.by_name.get(name)
        if instruction is None:
            return False
        if instruction.opcode in ("bitcast", "copy", "copy-start", "copy-done"):
            return self._is_gathered_part(computation, instruction.operands[0])
        if instruction.opcode == "fusion":
            fused = self.module.computations[instruction.called[0]]
            return self._is_gathered_part(fused, fused.root.name)
        return instruction.opcode == "dynamic-update-slice"

    def _fused(self, fused: Computation) -> ProgramCosts:
        """Products and collectives inside a fusion.

        An asynchronous collective appears in the fusion that starts it, in those that overlap with
        it and in the one that ends it; only the first counts. One that reduces and keeps a part is
        a reduce-scatter.
        """
        costs = ProgramCosts()
        targets = {
            instruction.attribute("custom_call_target")
            for instruction in fused.instructions
            if instruction.opcode == "custom-call"
        }
        starts = '"AsyncCollectiveStart"' in targets
        overlaps = (
            fused.name.startswith("async_collective_fusion") or '"AsyncCollectiveDone"' in targets
        )
        scatters = any(instruction.opcode == "dynamic-slice" for instruction in fused.instructions)
        for instruction in fused.instructions:
            if instruction.opcode == "fusion":
                costs.add(self._fused(self.module.computations[instruction.called[0]]))
            costs.add(_product(fused, instruction))
            if starts or not overlaps:
                costs.add(_collective(fused, instruction, scatters))
        return costs


def _decode_attention(computation: Computation, instruction: Instruction) -> ProgramCosts | None:
    """Costs of the kernel for one decoded token per row (`models.decode_kernel`), with every row as
    long as the capacity; None for anything else. Of the cache's stacks it reads one layer."""
    if instruction.opcode != "custom-call" or not instruction.name.startswith(DECODE):
        return None
    arrays = computation.shapes_of(instruction)
    stacks = [shape for shape in arrays if len(shape.dims) == 5]
    moved = _in_memory(arrays + instruction.shapes)
    moved -= sum(_in_memory([shape]) * (1 - 1 / shape.dims[0]) for shape in stacks)
    # Two products with the keys [L B K H S] of each query head.
    flops = 2 * 2 * instruction.shapes[0].size * stacks[0].dims[-1]
    return ProgramCosts(flops=flops, memory_bytes=moved)


def _product(computation: Computation, instruction: Instruction) -> ProgramCosts:
    """FLOPs of a matrix product."""
    if instruction.opcode not in ("dot", "convolution", "custom-call"):
        return ProgramCosts()
    shapes, result = computation.shapes_of(instruction), instruction.shapes[0]
    if instruction.opcode == "dot":
        contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        return ProgramCosts(
            flops=2 * result.size * math.prod(shapes[0].dims[d] for d in contracted)
        )
    if instruction.opcode == "convolution":
        return ProgramCosts(
            flops=_convolution_flops(shapes[0], shapes[1], result, instruction.rest)
        )
    names = instruction.name
    if "tpu_custom_call" in instruction.rest:
        # In a loop over rows, of which each has a mask, only the operation has the kernel's name.
        operation = re.search(r'op_name="([^"]*)"', instruction.rest)
        names += operation[1] if operation else ""
    products = next((n for kernel, n in SPLASH.items() if kernel in names), 0)
    if not products:
        return ProgramCosts()
    q, k = [shape for shape in shapes if shape.dtype in FLOATS][:2]
    seen = re.search(TILES.format(r"(\d+)", r"(\d+)"), instruction.rest)
    share = int(seen[1]) / int(seen[2]) if seen else 1.0
    return ProgramCosts(flops=2 * products * q.size * k.dims[-2] * share)


def _convolution_flops(lhs: Shape, rhs: Shape, result: Shape, text: str) -> float:
    """FLOPs of a convolution, as which a TPU's compiler writes matrix products.

    Batch dimensions become spatial ones with padding, so only the positions where the window meets
    the input count (xla: xla/service/hlo_cost_analysis.cc, HandleConvolution).
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    assert labels is not None, text
    of = lambda shape, names, letter: shape.dims[names.index(letter)]
    groups = {key: int(n) for key, n in re.findall(r"(feature|batch)_group_count=(\d+)", text)}
    total = 2.0 * of(lhs, labels[1], "b") / groups.get("batch", 1) * of(result, labels[3], "f")
    total *= of(lhs, labels[1], "f") / groups.get("feature", 1)
    window = re.search(r"window=\{([^}]*)\}", text)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(letter for letter in labels[1] if letter.isdigit())

    def setting(key: str, place: int, default: int) -> int:
        return int(settings[key].split("x")[place].split("_")[0]) if key in settings else default

    for place, letter in enumerate(spatial):
        size, kernel, out = (
            of(lhs, labels[1], letter),
            of(rhs, labels[2], letter),
            of(result, labels[3], letter),
        )
        dilation = setting("lhs_dilate", place, 1)
        at = np.arange(out)[:, None] * setting("stride", place, 1)
        at = (
            at
            + np.arange(kernel)[None] * setting("rhs_dilate", place, 1)
            - setting("pad", place, 0)
        )
        total *= int(((at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)).sum())
    return total


def _collective(
    computation: Computation, instruction: Instruction, scatters: bool = False
) -> ProgramCosts:
    """What a collective instruction moves between chips."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in COLLECTIVES:
        return ProgramCosts()
    kind = opcode.removeprefix("ragged-").replace("-", "_")
    taken = sum(shape.bytes for shape in computation.shapes_of(instruction))
    whole, sent = _ring(
        kind, taken, 1 if kind == "collective_permute" else group_size(instruction.rest)
    )
    if kind == "all_reduce" and scatters:
        kind, sent = "reduce_scatter", sent / 2
    costs = ProgramCosts(sent_bytes=sent)
    costs.collective_bytes[kind] = whole
    return costs


def _host_traffic(computation: Computation, instruction: Instruction) -> ProgramCosts:
    """Bytes of a copy, or of an update or a slice of an array, between a chip and its host."""
    if instruction.opcode not in HOST_COPIES:
        return ProgramCosts()
    taken = computation.shapes_of(instruction)
    whole, part = {
        "copy-start": (taken[0], instruction.shapes[0]),
        "dynamic-slice-start": (
            taken[0],
            instruction.shapes[min(len(taken), len(instruction.shapes) - 1)],
        ),
        "dynamic-update-slice-start": (taken[0], taken[min(1, len(taken) - 1)]),
    }[instruction.opcode]
    if whole.on_host == part.on_host:
        return ProgramCosts()
    writes = part.on_host if instruction.opcode == "copy-start" else "update" in instruction.opcode
    return ProgramCosts(**{"to_host_bytes" if writes else "from_host_bytes": part.bytes})


def _between_slices(instruction: Instruction) -> ProgramCosts:
    """Costs of a transfer between a chip and its host. For a collective over several slices the
    hosts pass it on; anything else stays on the host."""
    moved = ProgramCosts(memory_bytes=_in_memory(instruction.shapes[:1]))
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    slices = re.search(r'_xla_megascale_target="\{([\d,:]*)\}', instruction.rest)
    if instruction.opcode == "send" and transfer and slices:
        kind = transfer[1].lower()
        kind = kind if kind in KINDS else "collective_permute"  # ONE_TO_ONE
        ends = [[int(n) for n in part.split(":")] for part in slices[1].split(",") if part]
        count = sum(part[-1] - part[0] + 1 for part in ends)
        moved.collective_bytes[kind], moved.network_bytes = _ring(
            kind, instruction.shapes[0].bytes, max(1, count)
        )
    return moved


def _ring(kind: str, taken: float, chips: int) -> tuple[float, float]:
    """The bytes of a collective over `chips`, each with operands of `taken` bytes, and the bytes
    that each chip sends for it in a ring."""
    whole = taken * chips if kind == "all_gather" else taken
    sent = whole if kind == "collective_permute" else whole * (chips - 1) / chips
    return whole, 2 * sent if kind == "all_reduce" else sent


def group_size(text: str) -> int:
    """Chips in each group of a collective, from `replica_groups`: `{{0,1},{2,3}}`, `[2,4]<=[8]`, or
    the axes of a mesh, as newer compilers write them."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
    if tiled:
        return int(tiled[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if not listed:  # a guess of one chip would make the collective free
        raise ValueError(f"unknown form of replica_groups: {text[:300]}")
    return len(listed[1].split(","))


def _memory_traffic(computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction outside of fusions reads from and writes to memory."""
    if instruction.opcode in FREE or (
        instruction.opcode == "custom-call" and "tpu_custom_call" not in instruction.rest
    ):
        return 0.0
    taken = computation.shapes_of(instruction)
    if instruction.opcode in ("slice-start", "dynamic-slice-start"):
        # The results are the operands, the part and the context.
        part = instruction.shapes[len(taken)]
        return (part.bytes if taken[0].in_memory else 0.0) + _in_memory([part])
    if instruction.opcode in SLICES:
        taken = instruction.shapes
    elif instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _in_memory(
            taken[1:2] if instruction.opcode == "dynamic-update-slice" else taken[-1:]
        )
    given = instruction.shapes[:1] if instruction.opcode.endswith("-start") else instruction.shapes
    return _in_memory(taken) + _in_memory(given)


def _fusion_bytes(module: Module, fused: Computation) -> float:
    """Bytes that a fusion reads and writes: of each parameter the share that it reads, of one that
    it updates in place the update."""
    shares: dict[tuple[str, str], float] = {}
    total = 0.0
    for instruction in fused.instructions:
        if instruction.opcode == "parameter":
            total += _in_memory(instruction.shapes) * _read_share(
                module, fused, instruction, shares
            )
    root = fused.root
    given = [fused.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for instruction in given:
        written = _in_memory(instruction.shapes)  # views inside the fusion are not marked
        while (
            instruction.opcode in ("bitcast", "copy") and instruction.operands[0] in fused.by_name
        ):
            instruction = fused.by_name[instruction.operands[0]]
        if instruction.opcode == "dynamic-update-slice":
            total += _in_memory(fused.by_name[instruction.operands[1]].shapes) if written else 0.0
        elif instruction.opcode not in ("parameter", "custom-call"):
            total += written
    return total


def _read_share(
    module: Module,
    fused: Computation,
    instruction: Instruction,
    shares: dict[tuple[str, str], float],
) -> float:
    """The share of an array's elements that a fusion, or one nested in it, reads for its result."""
    key = (fused.name, instruction.name)
    if key not in shares:
        total = 1.0 if instruction.root else 0.0
        for user in fused.users[instruction.name]:
            if user.opcode in SLICES and user.operands[0] == instruction.name:
                total += _read_share(module, fused, user, shares) * min(
                    1.0, user.size / max(instruction.size, 1)
                )
            elif user.opcode == "fusion":
                nested = module.computations[user.called[0]]
                share = _read_share(module, fused, user, shares)
                for position, name in enumerate(user.operands):
                    if name == instruction.name:
                        parameter = nested.parameter(position)
                        total += share * _read_share(module, nested, parameter, shares)
            elif (user.opcode == "tuple" or _is_updated(instruction, user)) and _is_parameter(
                fused, instruction
            ):
                continue  # updated in place, not read
            elif user.opcode in READS_ALL or user.opcode in SLICES:  # a slice's index is read whole
                total = 1.0
            else:  # elementwise, or a rearrangement
                total += _read_share(module, fused, user, shares)
        shares[key] = min(total, 1.0)
    return shares[key]


def _is_parameter(fused: Computation, instruction: Instruction) -> bool:
    """Whether an array is a parameter or a view of one, not a computed value."""
    while instruction.opcode == "bitcast":
        instruction = fused.by_name[instruction.operands[0]]
    return instruction.opcode == "parameter"


def _is_updated(instruction: Instruction, user: Instruction) -> bool:
    return user.opcode == "dynamic-update-slice" and user.operands[0] == instruction.name


def _in_memory(shapes: list[Shape]) -> float:
    return sum(shape.bytes for shape in shapes if shape.in_memory)


def _numbers(pattern: str, text: str) -> list[int]:
    match = re.search(pattern, text)
    return [int(n) for n in match[1].split(",") if n] if match else []
