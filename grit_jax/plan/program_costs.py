"""What one run of a compiled program costs a chip: arithmetic, memory traffic and what it sends to
other chips.

The compiler's own analysis counts a loop's body once; here it counts as often as the loop runs.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from grit_jax.models.kernels import TILES
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
SLICES = ("dynamic-slice", "gather", "slice")  # read no more than they give
# What takes all of its operands for any part of what it gives.
TAKES_ALL = ("dot", "convolution", "custom-call", "scatter", "sort", "broadcast", *COLLECTIVES)
# Instructions that move nothing in memory themselves.
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
# Matrix products over each tile of the scores in splash attention's kernels (jax:
# experimental/pallas/ops/tpu/splash_attention/splash_attention_kernel.py); `TILES` says how many
# have any.
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
# A product of rows sorted by expert with each expert's weights, as a TPU's compiler and as megablox
# name their kernels (jax: experimental/pallas/ops/tpu/megablox/gmm.py; tgmm gives the weights'
# gradients).
GROUPED = ("ragged-dot-none", "tgmm")


@dataclasses.dataclass
class ProgramCosts:
    """Of one chip.

    Attributes:
      flops: of matrix products, recomputation and redundant work included.
      memory_bytes: read from and written to the chip's memory; arrays that the compiler keeps on
        the chip are left out.
      collective_bytes: by kind of what is done: of what an all-gather gives, of what the others
        take.
      sent_bytes: what the chip itself sends for them, in rings: (n - 1) / n of that, twice for an
        all-reduce.
      network_bytes: what it sends so to other slices.
    """

    flops: float = 0.0
    memory_bytes: float = 0.0
    collective_bytes: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(KINDS, 0.0)
    )
    sent_bytes: float = 0.0
    network_bytes: float = 0.0

    def add(self, other: ProgramCosts, times: float = 1) -> None:
        self.flops += times * other.flops
        self.memory_bytes += times * other.memory_bytes
        self.sent_bytes += times * other.sent_bytes
        self.network_bytes += times * other.network_bytes
        for kind, size in other.collective_bytes.items():
            self.collective_bytes[kind] += times * size


def program_costs(text: str, experts: int = 0) -> ProgramCosts:
    """The costs of a compiled program from its text; of the branches of a condition, the dearest
    counts.

    Args:
      experts: of the model, over all chips. A kernel for some of them is given all rows and
        computes those that chose these; only the data says which, so they are counted as spread
        evenly.
    """
    module = parse(text)
    return _Walk(module, experts).computation(module.entry)


class _Walk:
    def __init__(self, module: Module, experts: int):
        self.module, self.experts = module, experts
        self.known: dict[str, ProgramCosts] = {}

    def computation(self, name: str) -> ProgramCosts:
        """Of a computation that runs by itself: the program, a loop's body, a branch."""
        if name not in self.known:
            here, total = self.module.computations[name], ProgramCosts()
            for instruction in here.instructions:
                total.add(self._instruction(here, instruction))
            self.known[name] = total
        return self.known[name]

    def _instruction(self, here: Computation, one: Instruction) -> ProgramCosts:
        costs = ProgramCosts()
        if one.opcode == "while":
            times = trip_count(self.module, one)
            for called in one.called:
                costs.add(self.computation(called), times)
        elif one.opcode == "conditional":
            branches = [self.computation(name) for name in one.called]
            costs.add(max(branches, key=lambda c: (c.flops, c.memory_bytes)))
        elif one.opcode in ("call", "async-start"):
            for called in one.called:
                costs.add(self.computation(called))
        elif one.opcode == "fusion":
            inside = self.module.computations[one.called[0]]
            costs.add(self._fused(inside))
            costs.memory_bytes += _fusion_bytes(self.module, inside)
        elif one.opcode in ("send", "recv"):
            costs.add(_between_slices(one))
        elif not one.opcode.endswith(("-done", "-update")):
            costs.add(_product(here, one))
            costs.add(_collective(here, one))
            if one.opcode == "all-reduce":
                gathered = sum(
                    here.by_name[name].bytes for name in one.operands if self._is_part(here, name)
                )
                costs.collective_bytes["all_reduce"] -= gathered
                costs.collective_bytes["all_gather"] += gathered
            costs.add(self._grouped(here, one) or ProgramCosts(memory_bytes=_moved(here, one)))
        return costs

    def _grouped(self, here: Computation, one: Instruction) -> ProgramCosts | None:
        """Of a kernel that multiplies rows `[M K]` by the weights `[E K N]` of their experts, or
        rows by rows `[M N]` for the gradient of such weights; None for anything else."""
        if one.opcode != "custom-call" or not any(kernel in one.name for kernel in GROUPED):
            return None
        arrays = [shape for shape in here.shapes_of(one) + one.shapes if shape.dtype in FLOATS]
        lhs, rhs = arrays[:2]
        weights = next(shape for shape in arrays if len(shape.dims) == 3)
        share = weights.dims[0] / self.experts if self.experts else 1.0
        moved = sum(_in_memory([shape]) * (1.0 if shape is weights else share) for shape in arrays)
        return ProgramCosts(flops=2 * share * lhs.size * rhs.dims[-1], memory_bytes=moved)

    def _is_part(self, here: Computation, name: str) -> bool:
        """Whether an array is one chip's part of a whole and zeros beside it: on a torus of three
        axes the compiler gathers by summing such (which sends what any sum sends)."""
        one = here.by_name.get(name)
        if one is None:
            return False
        if one.opcode in ("bitcast", "copy", "copy-start", "copy-done"):
            return self._is_part(here, one.operands[0])
        if one.opcode == "fusion":
            inside = self.module.computations[one.called[0]]
            return self._is_part(inside, inside.root.name)
        return one.opcode == "dynamic-update-slice"

    def _fused(self, inside: Computation) -> ProgramCosts:
        """Products and collectives inside a fusion.

        A TPU's collective that runs beside other work appears in the fusion that starts it, in
        those that it runs beside and in the one that ends it; the first counts. One that reduces
        and keeps a part is a reduce-scatter.
        """
        costs = ProgramCosts()
        targets = {
            one.attribute("custom_call_target")
            for one in inside.instructions
            if one.opcode == "custom-call"
        }
        starts = '"AsyncCollectiveStart"' in targets
        beside = (
            inside.name.startswith("async_collective_fusion") or '"AsyncCollectiveDone"' in targets
        )
        scatters = any(one.opcode == "dynamic-slice" for one in inside.instructions)
        for one in inside.instructions:
            if one.opcode == "fusion":
                costs.add(self._fused(self.module.computations[one.called[0]]))
            costs.add(_product(inside, one))
            if starts or not beside:
                costs.add(_collective(inside, one, scatters))
        return costs


def _product(here: Computation, one: Instruction) -> ProgramCosts:
    """FLOPs of a matrix product."""
    if one.opcode not in ("dot", "convolution", "custom-call"):
        return ProgramCosts()
    shapes, result = here.shapes_of(one), one.shapes[0]
    if one.opcode == "dot":
        contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
        return ProgramCosts(
            flops=2 * result.size * math.prod(shapes[0].dims[d] for d in contracted)
        )
    if one.opcode == "convolution":
        return ProgramCosts(flops=_convolution_flops(shapes[0], shapes[1], result, one.rest))
    products = next((n for kernel, n in SPLASH.items() if kernel in one.name), 0)
    if not products:
        return ProgramCosts()
    q, k = [shape for shape in shapes if shape.dtype in FLOATS][:2]
    seen = re.search(TILES.format(r"(\d+)", r"(\d+)"), one.rest)
    share = int(seen[1]) / int(seen[2]) if seen else 1.0
    return ProgramCosts(flops=2 * products * q.size * k.dims[-2] * share)


def _convolution_flops(lhs: Shape, rhs: Shape, result: Shape, text: str) -> float:
    """A TPU's compiler writes matrix products as convolutions, batch dimensions as spatial ones
    with padding: only the places where the window meets the input count (xla:
    xla/service/hlo_cost_analysis.cc, HandleConvolution)."""
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


def _collective(here: Computation, one: Instruction, scatters: bool = False) -> ProgramCosts:
    """What a collective instruction moves between chips."""
    opcode = one.opcode.removesuffix("-start")
    if opcode not in COLLECTIVES:
        return ProgramCosts()
    kind = opcode.removeprefix("ragged-").replace("-", "_")
    taken = sum(shape.bytes for shape in here.shapes_of(one))
    whole, sent = _ring(kind, taken, 1 if kind == "collective_permute" else group_size(one.rest))
    if kind == "all_reduce" and scatters:
        kind, sent = "reduce_scatter", sent / 2
    costs = ProgramCosts(sent_bytes=sent)
    costs.collective_bytes[kind] = whole
    return costs


def _between_slices(one: Instruction) -> ProgramCosts:
    """What a chip hands to its host, and takes from it, for a collective over several slices; the
    hosts' runtime does the rest. Anything else that is sent to a host stays there."""
    moved = ProgramCosts(memory_bytes=_in_memory(one.shapes[:1]))
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
    slices = re.search(r'_xla_megascale_target="\{([\d,:]*)\}', one.rest)
    if one.opcode == "send" and transfer and slices:
        kind = transfer[1].lower()
        kind = kind if kind in KINDS else "collective_permute"  # ONE_TO_ONE
        ends = [[int(n) for n in part.split(":")] for part in slices[1].split(",") if part]
        count = sum(part[-1] - part[0] + 1 for part in ends)
        moved.collective_bytes[kind], moved.network_bytes = _ring(
            kind, one.shapes[0].bytes, max(1, count)
        )
    return moved


def _ring(kind: str, taken: float, chips: int) -> tuple[float, float]:
    """What a collective of `chips` that each give `taken` bytes is counted as, and what each sends
    for it in a ring."""
    whole = taken * chips if kind == "all_gather" else taken
    sent = whole if kind == "collective_permute" else whole * (chips - 1) / chips
    return whole, 2 * sent if kind == "all_reduce" else sent


def group_size(text: str) -> int:
    """Chips that take part together: `{{0,1},{2,3}}`, `[2,4]<=[8]`, or axes of a mesh (whose
    devices may be listed) as newer compilers write."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
    if tiled:
        return int(tiled[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if not listed:  # to take it for one chip would make it free
        raise ValueError(
            f"this compiler writes who takes part in a collective in an unknown way: {text[:300]}"
        )
    return len(listed[1].split(","))


def _moved(here: Computation, one: Instruction) -> float:
    """Bytes that an instruction outside of fusions reads from and writes to memory."""
    if one.opcode in FREE or (one.opcode == "custom-call" and "tpu_custom_call" not in one.rest):
        return 0.0
    taken = here.shapes_of(one)
    if one.opcode in ("slice-start", "dynamic-slice-start"):  # gives (operands, part, context)
        part = one.shapes[len(taken)]
        return (part.bytes if taken[0].in_memory else 0.0) + _in_memory([part])
    if one.opcode in SLICES:
        taken = one.shapes
    elif one.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _in_memory(taken[1:2] if one.opcode == "dynamic-update-slice" else taken[-1:])
    given = one.shapes[:1] if one.opcode.endswith("-start") else one.shapes
    return _in_memory(taken) + _in_memory(given)


def _fusion_bytes(module: Module, inside: Computation) -> float:
    """Bytes that a fusion reads and writes: of each parameter the share that it needs; of one that
    it updates in place, the update."""
    shares: dict[tuple[str, str], float] = {}
    total = 0.0
    for one in inside.instructions:
        if one.opcode == "parameter":
            total += _in_memory(one.shapes) * _needed(module, inside, one, shares)
    root = inside.root
    given = [inside.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for one in given:
        written = _in_memory(one.shapes)  # what lies behind a view in the fusion is not marked
        while one.opcode in ("bitcast", "copy") and one.operands[0] in inside.by_name:
            one = inside.by_name[one.operands[0]]
        if one.opcode == "dynamic-update-slice":
            total += _in_memory(inside.by_name[one.operands[1]].shapes) if written else 0.0
        elif one.opcode not in ("parameter", "custom-call"):
            total += written
    return total


def _needed(
    module: Module, inside: Computation, one: Instruction, shares: dict[tuple[str, str], float]
) -> float:
    """Share of an array's elements that a fusion, or one within it, computes or reads for what it
    gives."""
    key = (inside.name, one.name)
    if key not in shares:
        total = 1.0 if one.root else 0.0
        for user in inside.users[one.name]:
            if user.opcode in SLICES and user.operands[0] == one.name:
                total += _needed(module, inside, user, shares) * min(
                    1.0, user.size / max(one.size, 1)
                )
            elif user.opcode == "fusion":
                within, share = (
                    module.computations[user.called[0]],
                    _needed(module, inside, user, shares),
                )
                for place in (
                    place for place, name in enumerate(user.operands) if name == one.name
                ):
                    total += share * _needed(module, within, within.parameter(place), shares)
            elif (user.opcode == "tuple" or _is_updated(one, user)) and _is_given(inside, one):
                continue  # it stays where it is
            elif user.opcode in TAKES_ALL or user.opcode in SLICES:  # or where a slice begins
                total = 1.0
            else:  # element by element, or a rearrangement
                total += _needed(module, inside, user, shares)
        shares[key] = min(total, 1.0)
    return shares[key]


def _is_given(inside: Computation, one: Instruction) -> bool:
    """Whether an array is a parameter, or a view of one, and nothing that was computed."""
    while one.opcode == "bitcast":
        one = inside.by_name[one.operands[0]]
    return one.opcode == "parameter"


def _is_updated(one: Instruction, user: Instruction) -> bool:
    return user.opcode == "dynamic-update-slice" and user.operands[0] == one.name


def _in_memory(shapes: list[Shape]) -> float:
    return sum(shape.bytes for shape in shapes if shape.in_memory)


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    return [int(n) for n in found[1].split(",") if n] if found else []
