"""`grit plan --serve`: compiles the programs that run a model for a slice, and reports how many
requests it serves at once, how fast at the most, and what its store of records takes."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from grit_jax.data.packing import round_up
from grit_jax.errors import GritError
from grit_jax.inference.placement import USABLE, Devices, choose_mesh, working_bytes
from grit_jax.inference.placement import tokens_that_fit as encode_tokens_that_fit
from grit_jax.models.cache import check_records
from grit_jax.plan.answers import CallSeconds, Workload, codecs_for, record_bytes
from grit_jax.plan.chips import Slices, open_slices, parse_topology
from grit_jax.plan.plan import CompiledProgram, compile_program
from grit_jax.plan.programs import bytes_per_chip
from grit_jax.plan.serving_programs import (
    ServingModel,
    ServingPrograms,
    ServingSizes,
    slot_bytes,
)
from grit_jax.runtime.chips import GIB, Chip
from grit_jax.runtime.progress import progress, say
from grit_jax.sharding import make_mesh, num_row_shards

# The cache may be copied by a program over slots: where nobody says how many there are, so many
# caches have to fit.
CACHES = 3
MOST_SLOTS = 256  # of a share, where nobody says how many: more wait too long for each other


@dataclasses.dataclass(frozen=True)
class ServingRequest:
    """What to plan for.

    Attributes:
      name: of the model, for messages.
      slots: of the engine; None: as many as fit.
      context: tokens of a slot; None: document, question and answer.
      document_tokens, question_tokens, new_tokens: of a request, at most.
      mesh: sizes of some axes; the others are chosen as inference chooses them.
      chip_hour_price: in any currency; None: costs are chip-seconds only.
    """

    name: str
    model: ServingModel
    document_tokens: int = 512
    question_tokens: int = 64
    new_tokens: int = 128
    slots: int | None = None
    context: int | None = None
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    chip_hour_price: float | None = None

    @property
    def capacity(self) -> int:
        """Tokens that a slot has to hold."""
        return self.context or self.document_tokens + self.question_tokens + self.new_tokens


@dataclasses.dataclass
class ServingPlan:
    """Inference compiled for a slice. Bytes are of one chip unless they are said to be of all.

    Attributes:
      slots_that_fit: by memory, beside the weights and the largest program's intermediate results.
      cache_bytes_per_slot: over all chips.
      peak_bytes: weights, cache and the largest program's intermediate results.
      programs: by name, see `serving_programs.ServingPrograms`.
    """

    request: ServingRequest
    topology: str
    chip: Chip
    mesh: dict[str, int]
    sizes: ServingSizes
    workload: Workload
    weight_bytes: int
    cache_bytes: int
    cache_bytes_per_slot: int
    slots_that_fit: int
    peak_bytes: int
    programs: dict[str, CompiledProgram]

    @property
    def fits(self) -> bool:
        """Whether all programs fit beside the cache of all slots."""
        return self.peak_bytes <= self.chip.memory and all(p.fits for p in self.programs.values())

    @property
    def seconds(self) -> CallSeconds | None:
        """Of each call; None where a program does not fit."""
        found = {name: program.roofline for name, program in self.programs.items()}
        if any(value is None for value in found.values()):
            return None
        known = {name: value or 0.0 for name, value in found.items()}
        layer = known["insert_layer"] + known["prefill_layer"]
        return CallSeconds(known["prefill"], layer, known["decode"], known["encode"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        request, config, work = self.request, self.request.model.config, self.workload
        records = {
            kind: record_bytes(config, kind, request.document_tokens) for kind in codecs_for(config)
        }
        values: dict[str, Any] = {
            "topology": self.topology,
            "accelerator_type": self.chip.accelerator_type(parse_topology(self.topology)[1]),
            "chips": work.chips,
            "hbm_bytes_per_chip": self.chip.memory,
            "model": request.name,
            "dtype": request.model.dtype,
            "mesh": self.mesh,
            "fits": self.fits,
            "peak_bytes_per_chip": self.peak_bytes,
            "weight_bytes_per_chip": self.weight_bytes,
            "cache_bytes_per_chip": self.cache_bytes,
            "cache_bytes_per_slot": self.cache_bytes_per_slot,
            "cache_bytes": self.cache_bytes_per_slot * self.sizes.slots,
            "slots": self.sizes.slots,
            "slots_that_fit": self.slots_that_fit,
            "context": self.sizes.capacity,
            "document_tokens": request.document_tokens,
            "question_tokens": request.question_tokens,
            "new_tokens": request.new_tokens,
            "first_token_seconds": None,
            "tokens_per_second": None,
            "encode_tokens_per_second": None,
            "store_bytes_per_1000_documents": {k: 1000 * size for k, size in records.items()},
            "break_even_bytes_per_second_per_chip": None,
            "chip_seconds_per_1000_answers": None,
            "chip_seconds_per_1000_documents": None,
            "chip_hour_price": request.chip_hour_price,
            "cost_per_1000_answers": None,
        }
        seconds = self.seconds
        if seconds is not None:
            answers = {
                kind: 1000 * value for kind, value in work.chip_seconds_per_answer(seconds).items()
            }
            values |= {
                "first_token_seconds": work.first_token_seconds(seconds),
                "tokens_per_second": {
                    "slot": 1 / seconds.decode,
                    "all": self.sizes.slots / seconds.decode,
                },
                "encode_tokens_per_second": work.encode_tokens / seconds.encode,
                "break_even_bytes_per_second_per_chip": {
                    kind: work.break_even_rate(seconds, size) for kind, size in records.items()
                },
                "chip_seconds_per_1000_answers": answers,
                "chip_seconds_per_1000_documents": 1000 * work.chip_seconds_per_document(seconds),
            }
            if (price := request.chip_hour_price) is not None:
                cost = {kind: value * price / 3600 for kind, value in answers.items()}
                values["cost_per_1000_answers"] = cost
        programs = {name: program.to_dict() for name, program in self.programs.items()}
        return {**values, "programs": programs}


def make_serving_plan(request: ServingRequest, topology: str) -> ServingPlan:
    """Compiles the programs that run a model for a slice.

    Raises:
      GritError: an unknown slice, no compiler, a model whose documents cannot be cached or that
        does not fit (the message says what would), or slots that do not.
    """
    model = request.model
    if request.capacity > model.config.context_length:
        raise GritError(
            f"--context {request.capacity}: {request.name} reads"
            f" {model.config.context_length} tokens at most"
        )
    check_records(model.config)
    chip, shape = parse_topology(topology)
    opened = open_slices(topology)
    chips = len(opened.devices)
    devices = Devices("tpu", chip.device_kinds[0], chips, chip.memory)
    sizes = choose_mesh(model.config, model.dtype, devices, request.mesh, request.name)
    mesh = make_mesh(sizes, opened.devices)
    encode_tokens = encode_tokens_that_fit(model.config, model.dtype, devices, sizes)
    slot = slot_bytes(model.config, mesh, request.capacity)
    weights = bytes_per_chip(model.params(mesh))
    working = working_bytes(model.config, model.dtype, "tpu", sizes, encode_tokens)
    shares = num_row_shards(mesh)
    slots = request.slots or shares * min(
        _slots(chip, weights, working, slot), _slots(chip, weights, 0, CACHES * slot), MOST_SLOTS
    )
    if not slots:
        raise GritError(_no_slot(request, chip, weights + working, slot))
    compiled_for = ServingSizes(
        slots=round_up(slots, shares),
        capacity=request.capacity,
        document_tokens=request.document_tokens,
        question_tokens=request.question_tokens,
        encode_tokens=encode_tokens,
    )
    return _compile(request, opened, mesh, compiled_for)


def _compile(
    request: ServingRequest, opened: Slices, mesh: Mesh, sizes: ServingSizes
) -> ServingPlan:
    lowered = ServingPrograms(request.model, mesh, sizes)
    config, shares = request.model.config, num_row_shards(mesh)
    programs: dict[str, CompiledProgram] = {}
    with progress(len(lowered.table), "plan", "programs") as bar:
        for name in lowered.table:
            say(f"plan: compiling {name} for {opened.name}")
            program = lowered.lower(name)
            programs[name], _ = compile_program(program, opened.chip, config.num_experts)
            bar.update()
    weights, cache = bytes_per_chip(lowered.params), bytes_per_chip(lowered.state)
    per_share = sizes.slots // shares
    memory = _Memory(
        weights, cache // per_share, {name: p.beside for name, p in programs.items()}, per_share
    )
    rows, length = lowered.encoded_rows
    return ServingPlan(
        request=request,
        topology=opened.name,
        chip=opened.chip,
        mesh=dict(mesh.shape),
        sizes=sizes,
        workload=Workload(
            document_tokens=request.document_tokens,
            question_tokens=request.question_tokens,
            new_tokens=request.new_tokens,
            chunk=lowered.chunk,
            layers=config.num_hidden_layers,
            slots=sizes.slots,
            shares=shares,
            chips=mesh.size,
            encode_tokens=rows * length,
        ),
        weight_bytes=weights,
        cache_bytes=cache,
        cache_bytes_per_slot=memory.slot * (mesh.size // shares),
        slots_that_fit=shares * memory.slots_that_fit(opened.chip),
        peak_bytes=weights + cache + max(memory.beside.values()),
        programs=programs,
    )


@dataclasses.dataclass(frozen=True)
class _Memory:
    """What a chip holds: weights, slots, and beside them each program's intermediate results,
    measured with `slots` slots of its share."""

    weights: int
    slot: int
    beside: dict[str, int]
    slots: int

    def slots_that_fit(self, chip: Chip) -> int:
        """Of its share. Intermediate results of the programs over slots are taken to grow with the
        slots, those of the encoder not."""
        fitting = []
        for name, beside in self.beside.items():
            fixed, each = (beside, 0) if name == "encode" else (0, beside // self.slots)
            fitting.append(_slots(chip, self.weights, fixed, self.slot + each))
        return min(fitting)


def _slots(chip: Chip, weights: int, working: int, slot: int) -> int:
    """Slots of each share for which a chip has room beside weights and intermediate results."""
    return max(0, int(USABLE * chip.memory - weights - working) // slot)


def _no_slot(request: ServingRequest, chip: Chip, taken: int, slot: int) -> str:
    room = max(0, int(USABLE * chip.memory - taken))
    fitting = request.capacity * room // slot
    advice = f"--context {fitting} would fit, or" if fitting >= 128 else "use"
    return (
        f"{request.name}: a slot of {request.capacity} tokens takes {slot / GIB:.2f} GiB per chip,"
        f" and {room / GIB:.2f} GiB are left beside weights and intermediate results; {advice} more"
        " or larger chips, or --dtype int8"
    )


def serving_table(plan: ServingPlan) -> str:
    """A plan as text for the terminal."""
    values, gib = plan.to_dict(), lambda size: f"{size / GIB:.2f} GiB"
    request = plan.request
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    rented = values["accelerator_type"]
    lines = [
        f"{plan.topology}, {f'rented as {rented}' if rented else 'not rented in this shape'}:"
        f" {values['chips']} chips of {gib(plan.chip.memory)}",
        f"model: {request.name}, weights in {request.model.dtype}; mesh: {mesh}",
        "",
        f"{'fits' if plan.fits else 'DOES NOT FIT'}: {gib(plan.peak_bytes)} per chip,"
        f" {gib(plan.weight_bytes)} of it weights and {gib(plan.cache_bytes)} cache",
        f"slots: {plan.sizes.slots} of {plan.sizes.capacity} tokens,"
        f" {gib(plan.cache_bytes_per_slot)} each, {gib(values['cache_bytes'])} in all;"
        f" {plan.slots_that_fit} fit",
        "",
        "program         peak per chip   at least   bound by",
    ]
    for name, program in plan.programs.items():
        least = f"{program.roofline:.3g} s" if program.roofline is not None else "n/a"
        lines.append(
            f"{name:14} {gib(program.peak_bytes):>14} {least:>10}   {program.bound or 'n/a'}"
        )
    lines += ["", *_rates(plan, values)]
    return "\n".join(lines)


def _rates(plan: ServingPlan, values: dict[str, Any]) -> list[str]:
    """What a full engine does, with documents, questions and answers of the given lengths."""
    request, first = plan.request, values["first_token_seconds"]
    store = values["store_bytes_per_1000_documents"]
    lines = [
        f"Documents of {request.document_tokens} tokens, questions of {request.question_tokens},"
        f" answers of {request.new_tokens}:"
    ]
    if first is not None:
        speed, work = values["tokens_per_second"], values["chip_seconds_per_1000_answers"]
        cost = values["cost_per_1000_answers"]
        price = request.chip_hour_price
        priced = {kind: f" ({cost[kind]:.3g} at {price:g} an hour)" for kind in cost or {}}
        lines += [
            f"first token after at least {first['read']:.3g} s with the document read, and"
            f" {first['cached']:.3g} s from its record, once it is loaded",
            f"tokens per second: {speed['slot']:.3g} in a slot, {speed['all']:.3g} in all, at most",
            *(
                f"1,000 answers {how}: {work[kind]:.3g} chip-seconds at least{priced.get(kind, '')}"
                for kind, how in (("read", "with documents read"), ("cached", "from records"))
            ),
            f"encoding 1,000 documents: {values['chip_seconds_per_1000_documents']:.3g}"
            " chip-seconds at least",
        ]
    lines += ["", "records   1,000 documents   worth loading above"]
    rates = values["break_even_bytes_per_second_per_chip"] or {}
    for kind, size in store.items():
        rate = rates.get(kind)
        above = f"{rate / 1e9:.3g} GB/s per chip" if rate else "n/a"
        lines.append(f"{kind:9} {gib_text(size):>15}   {above}")
    return lines


def gib_text(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f} GiB"
