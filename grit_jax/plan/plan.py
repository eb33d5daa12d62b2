"""`grit plan`: compiles the programs of a configuration for a slice, and reports what they take."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grit_jax.data.packing import round_up
from grit_jax.inference.placement import TOKENS_PER_CALL
from grit_jax.inference.sampling import GREEDY
from grit_jax.plan.chips import Slices, open_slices, parse_topology
from grit_jax.plan.flops import step_flops
from grit_jax.plan.program_costs import ProgramCosts, program_costs
from grit_jax.plan.programs import LoweredProgram, bytes_per_chip, lower_train
from grit_jax.plan.serving_programs import ServingModel, ServingPrograms, ServingSizes
from grit_jax.run_config import RunConfig
from grit_jax.runtime.chips import GIB, HOST_RATE, Chip
from grit_jax.runtime.progress import say
from grit_jax.sharding import make_mesh, num_row_shards

SLOTS = 8  # of the engine that is compiled beside a training step
SERVING = ("encode", "prefill", "decode")  # its programs
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass
class CompiledProgram:
    """What one program takes on one chip. Of a program that does not fit, the compiler reports the
    memory that it needs and nothing else.

    Attributes:
      argument_bytes: weights, optimizer state, batch; `temporary_bytes`: intermediate results.
      peak_bytes: the most at any time, with the program itself.
      compiler_flops: the compiler's own count, with the body of a loop once; `costs` multiplies it
        by the loop's trips.
      host_bytes: what the chip keeps in its host's memory.
      seconds: lower bounds of a run by what bounds it ("compute", "memory", "interconnect",
        "network", "host"); for "decode" of one token, for "prefill" of one chunk of a prompt.
    """

    fits: bool
    peak_bytes: int
    argument_bytes: int
    temporary_bytes: int
    compile_seconds: float
    costs: ProgramCosts | None = None
    compiler_flops: float | None = None
    host_bytes: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def roofline(self) -> float | None:
        """The seconds that a run takes at least."""
        return max(self.seconds.values()) if self.seconds else None

    @property
    def beside(self) -> int:
        """Bytes beside the arguments: results and intermediate results."""
        return self.peak_bytes - self.argument_bytes

    @property
    def bound(self) -> str | None:
        """What takes longest at the chip's peak rates: a key of `seconds`."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        costs = self.costs
        return {
            "fits": self.fits,
            "peak_bytes_per_chip": self.peak_bytes,
            "argument_bytes_per_chip": self.argument_bytes,
            "temporary_bytes_per_chip": self.temporary_bytes,
            "host_bytes_per_chip": self.host_bytes,
            "executed_flops_per_chip": costs and costs.flops,
            "compiler_flops_per_chip": self.compiler_flops,
            "memory_traffic_bytes_per_chip": costs and costs.memory_bytes,
            "collective_bytes": costs and costs.collective_bytes,
            "sent_bytes_per_chip": costs and costs.sent_bytes,
            "sent_between_slices_bytes_per_chip": costs and costs.network_bytes,
            "bounds_seconds": self.seconds,
            "roofline_step_seconds": self.roofline,
            "compile_seconds": round(self.compile_seconds, 1),
        }


@dataclasses.dataclass
class Plan:
    """A configuration compiled for one or more slices.

    Attributes:
      steps: of the whole training run.
      parameter_bytes, optimizer_bytes: on one chip; parameters with those that are frozen.
      reference_bytes: those of them that are a copy for a preference loss.
      flops_per_step: model FLOPs of one optimizer step over all chips.
      programs: by name: "train" and, unless left out, "encode", "prefill" and "decode".
      gradient: the backward passes of a step, in words (`training/gradient_plan.py`).
    """

    topology: str
    chip: Chip
    mesh: dict[str, int]
    steps: int
    parameter_bytes: int
    optimizer_bytes: int
    flops_per_step: int
    programs: dict[str, CompiledProgram]
    slices: int = 1
    gradient: str = ""
    reference_bytes: int = 0

    @property
    def chips(self) -> int:
        return int(np.prod(list(self.mesh.values())))

    @property
    def accelerator_type(self) -> str | None:
        """The name by which a slice is rented; None if this shape is not."""
        return self.chip.accelerator_type(parse_topology(self.topology)[1])

    @property
    def mfu_bound(self) -> float | None:
        """The largest possible share of model FLOPs in what the chips could compute."""
        step = self.programs["train"].roofline
        return step and self.flops_per_step / (self.chips * self.chip.flops * step)

    @property
    def chip_hours(self) -> float | None:
        """Chip-hours of the whole run at the roofline."""
        step = self.programs["train"].roofline
        return step and self.chips * self.steps * step / 3600

    def to_dict(self) -> dict[str, Any]:
        """For JSON; figures without a program's name are those of the training step."""
        return {
            "topology": self.topology,
            "slices": self.slices,
            "accelerator_type": self.accelerator_type,
            "chips": self.chips,
            "mesh": self.mesh,
            "gradient": self.gradient,
            "hbm_bytes_per_chip": self.chip.memory,
            "parameter_bytes_per_chip": self.parameter_bytes,
            "reference_bytes_per_chip": self.reference_bytes,
            "optimizer_bytes_per_chip": self.optimizer_bytes,
            "flops_per_step": self.flops_per_step,
            "mfu_bound": self.mfu_bound,
            "steps": self.steps,
            "chip_hours": self.chip_hours,
            **self.programs["train"].to_dict(),
            "programs": {name: program.to_dict() for name, program in self.programs.items()},
        }


def make_plan(config: RunConfig, topology: str, *, slices: int = 1, serving: bool = True) -> Plan:
    """Compiles the training step of a configuration for one or more slices and, if `serving`, the
    programs that run the trained model.

    Raises:
      GritError: an unknown slice, no compiler, a mesh that does not fit the slice, or a
        configuration that cannot be compiled without its data or weights.
    """
    opened = open_slices(topology, slices)
    return plan_on_mesh(config, opened, make_mesh(config.mesh, opened.devices), serving=serving)


def plan_on_mesh(config: RunConfig, slices: Slices, mesh: Mesh, *, serving: bool) -> Plan:
    """`make_plan` for opened slices and a mesh of their devices."""
    programs: dict[str, CompiledProgram] = {}

    def add(name: str, program: LoweredProgram) -> jax.stages.Compiled | None:
        say(f"plan: compiling {name} for {slices.name}")
        programs[name], compiled = compile_program(program, slices.chip, train.model.num_experts)
        return compiled

    train = lower_train(config, mesh)
    data = config.data.fit_to_context(train.model.context_length)
    config = dataclasses.replace(config, data=data)
    add("train", train)
    if serving:
        modes, shards = config.model.modes, num_row_shards(mesh)
        longest = data.document_max_length + data.query_max_length + GREEDY.max_new_tokens
        model = ServingModel(train.model, config.model.dtype, config.model.pooling, modes.embedding)
        sizes = ServingSizes(
            slots=round_up(SLOTS, shards),
            capacity=longest,
            document_tokens=data.passage_max_length,
            question_tokens=data.query_max_length,
            encode_tokens=TOKENS_PER_CALL["tpu"],
        )
        lowered = ServingPrograms(model, mesh, sizes)
        for name in SERVING:
            add(name, lowered.lower(name))
    return Plan(
        topology=slices.name,
        chip=slices.chip,
        mesh=dict(mesh.shape),
        steps=config.train.steps,
        parameter_bytes=bytes_per_chip((train.state.params, train.state.frozen)),
        optimizer_bytes=bytes_per_chip(train.state.opt_state),
        flops_per_step=step_flops(config, train.model),
        programs=programs,
        slices=slices.count,
        gradient=str(train.gradient),
        reference_bytes=bytes_per_chip(train.state.frozen) if config.copies_reference else 0,
    )


def compile_program(
    program: LoweredProgram, chip: Chip, experts: int = 0
) -> tuple[CompiledProgram, jax.stages.Compiled | None]:
    """Compiles a program and measures it. The second result is None where the chip's memory is too
    small.

    `experts`: of its model, see `program_costs`.
    """
    started = time.perf_counter()
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "memory space vmem" in str(error):
            raise  # a kernel that overfills a core's own memory is a bug in the kernel
        given, needed = program.argument_bytes, needed_bytes(str(error), program.argument_bytes)
        return (
            CompiledProgram(False, needed, given, needed - given, time.perf_counter() - started),
            None,
        )
    seconds = time.perf_counter() - started
    memory, costs = compiled.memory_analysis(), ProgramCosts()
    costs.add(program_costs(compiled.as_text(), experts, program.trips), 1 / program.steps)
    bounds = {
        "compute": costs.flops / chip.flops,
        "memory": costs.memory_bytes / chip.memory_rate,
        "interconnect": costs.sent_bytes / chip.link_rate,
        "network": costs.network_bytes / chip.network_rate,
        "host": max(costs.to_host_bytes, costs.from_host_bytes) / HOST_RATE,
    }
    # Weights that a program does not read are not among its arguments, but the chip holds them.
    arguments = max(memory.argument_size_in_bytes, program.argument_bytes)
    peak = arguments + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    flops = compiled.cost_analysis().get("flops")
    return (
        CompiledProgram(
            peak <= chip.memory,
            peak,
            arguments,
            memory.temp_size_in_bytes,
            seconds,
            costs,
            flops,
            memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
            bounds,
        ),
        compiled,
    )


def needed_bytes(message: str, arguments: int) -> int:
    """The memory that a program would need on a chip, from the compiler's error message."""
    used = re.search(r"Used ([\d.]+)([KMG]?) of [\d.]+[KMG]? hbm", message)
    if used:
        return round(float(used[1]) * UNITS[used[2]])
    temporaries = re.search(r"HLO temporaries \(([\d.]+)([KMG]?)\)", message)
    return arguments + (round(float(temporaries[1]) * UNITS[temporaries[2]]) if temporaries else 0)


def plan_table(plan: Plan) -> str:
    """A plan as text for the terminal."""
    train, gib = plan.programs["train"], lambda size: f"{size / GIB:.2f} GiB"
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    several = f"{plan.slices} slices of " if plan.slices > 1 else ""
    rented = (
        f"rented as {plan.accelerator_type}"
        if plan.accelerator_type
        else "not rented in this shape"
    )
    reference = (
        f" ({gib(plan.reference_bytes)} of them the reference model of the preference loss)"
        if plan.reference_bytes
        else ""
    )
    lines = [
        f"{several}{plan.topology}, {rented}: {plan.chips} chips of {gib(plan.chip.memory)}",
        f"mesh: {mesh}",
        f"gradient: {plan.gradient}",
        "",
        (
            "program    fits peak per chip   arguments   temporaries   at least   bound by    "
            " compiled in"
        ),
    ]
    for name, program in plan.programs.items():
        least = f"{program.roofline:.3g} s" if program.seconds else "n/a"
        lines.append(
            f"{name:10} {'yes' if program.fits else 'NO':4} {gib(program.peak_bytes):>13}"
            f" {gib(program.argument_bytes):>11} {gib(program.temporary_bytes):>13} {least:>10}  "
            f" {program.bound or 'n/a':12} {program.compile_seconds:9.0f} s"
        )
    lines += [
        "",
        (
            f"A chip holds {gib(plan.parameter_bytes)} of parameters{reference} and"
            f" {gib(plan.optimizer_bytes)} of optimizer state."
        ),
        f"A step has {plan.flops_per_step:.3g} model FLOPs, over all chips.",
    ]
    if train.host_bytes:
        lines.append(f"Each chip keeps {gib(train.host_bytes)} in its host's memory.")
    if train.costs is not None:
        sent = ", ".join(
            f"{k.replace('_', '-')} {gib(v)}" for k, v in train.costs.collective_bytes.items() if v
        )
        lines += [
            f"Each chip computes {train.costs.flops:.3g} FLOPs, with recomputation; collectives:"
            f" {sent or 'none'}.",
            *(
                [f"Of that each sends {gib(train.costs.network_bytes)} to other slices."]
                if plan.slices > 1
                else []
            ),
            (
                f"{plan.steps} steps take at least {plan.chip_hours:.1f} chip-hours (MFU at most"
                f" {plan.mfu_bound:.0%})."
            ),
        ]
    return "\n".join(lines)
