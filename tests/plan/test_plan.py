"""A plan: what the compiler's answers mean, the figures and the table; and, with the TPU's compiler
installed, configurations on a slice."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from planned_run import KEYS, a_plan

from grit_jax.cli.main import main
from grit_jax.errors import GritError
from grit_jax.models.parameters import num_parameters
from grit_jax.plan.chips import open_slices
from grit_jax.plan.plan import (
    compile_program,
    make_plan,
    needed_bytes,
    plan_table,
)
from grit_jax.plan.programs import LoweredProgram, lower_train
from grit_jax.run_config import read_run_config
from grit_jax.runtime.chips import CHIPS, GIB
from grit_jax.sharding import MeshConfig, make_mesh


def test_what_the_compiler_says_of_too_little_memory():
    assert needed_bytes(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space"
        " hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.",
        5,
    ) == round(20.5 * GIB)
    assert (
        needed_bytes(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
            " temporaries (26.84G) exceeds available HBM (15.75G).",
            5 * GIB,
        )
        == round(26.84 * GIB) + 5 * GIB
    )


@pytest.mark.parametrize(
    "space, fits",
    [("hbm. Used 20.50G of 15.75G hbm", False), ("vmem. Used 22.12M of 16.00M vmem", None)],
)
def test_only_the_chips_memory_can_be_too_small(space, fits):
    """A kernel that asks too much of a core's memory works on no chip, however large."""

    class Refused:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                f"RESOURCE_EXHAUSTED: Ran out of memory in memory space {space}."
            )

    refused = LoweredProgram(Refused(), 5)
    if fits is None:
        with pytest.raises(jax.errors.JaxRuntimeError):
            compile_program(refused, CHIPS["v5e"])
    else:
        assert compile_program(refused, CHIPS["v5e"])[0].fits is fits


def test_figures_of_a_plan():
    found = a_plan().to_dict()
    assert found.keys() >= KEYS and found["programs"]["train"]["executed_flops_per_chip"] == 1e15
    assert found["mfu_bound"] == pytest.approx(
        1e15 / (8 * 197e12 * 2)
    )  # half of a step of 2 s would be all of it
    assert found["chip_hours"] == 8 * 1800 * 2 / 3600
    said = plan_table(a_plan())
    assert (
        found["accelerator_type"] == "v5litepod-8"
        and "v5e:2x4, rented as v5litepod-8: 8 chips" in said
    )
    assert (
        "interconnect" in said
        and "8.0 chip-hours (MFU at most 32%)" in said
        and "all-gather 3.00 GiB" in said
    )
    too_large = a_plan(peak=40 * GIB, fits=False)
    assert (
        too_large.to_dict().keys() >= KEYS and too_large.to_dict()["roofline_step_seconds"] is None
    )
    assert "NO" in plan_table(too_large) and "40.00 GiB" in plan_table(too_large)
    odd = dataclasses.replace(a_plan(), topology="v5e:2x8")
    assert "v5e:2x8, not rented in this shape: 8 chips" in plan_table(odd)
    several = dataclasses.replace(a_plan(), slices=2, topology="v5e:2x2")
    assert several.to_dict()["slices"] == 2 and several.to_dict()["chips"] == 8
    assert "2 slices of v5e:2x2, rented as v5litepod-4: 8 chips" in plan_table(
        several
    ) and "to other slices" in plan_table(several)
    json.dumps(too_large.to_dict())
    copied = dataclasses.replace(a_plan(), reference_bytes=GIB // 2)
    assert copied.to_dict()["reference_bytes_per_chip"] == GIB // 2
    assert "(0.50 GiB of them the reference model of the preference loss)" in plan_table(copied)
    assert "reference model" not in said and found["reference_bytes_per_chip"] == 0


# ---- with the compiler ---------------------------------------------------------------------------


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
def test_a_configuration_on_a_slice(config, capsys):
    main(["plan", str(config), "--topology", "v5e:2x2", "--mesh.tensor", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= KEYS and set(found["programs"]) == {
        "train",
        "encode",
        "prefill",
        "decode",
    }
    assert all(one["fits"] and one["peak_bytes_per_chip"] > 0 for one in found["programs"].values())
    assert (found["chips"], found["hbm_bytes_per_chip"]) == (4, 16 * GIB)
    shape = read_run_config(config).model.known_shape
    quarter = (
        4 * num_parameters(shape) / 4
    )  # float32; only norms are whole everywhere, and the table is split in two
    assert quarter < found["parameter_bytes_per_chip"] < 1.2 * quarter
    assert found["optimizer_bytes_per_chip"] == pytest.approx(
        2 * found["parameter_bytes_per_chip"], abs=100
    )
    assert (
        found["parameter_bytes_per_chip"] + found["optimizer_bytes_per_chip"]
        < found["peak_bytes_per_chip"]
    )
    # Each chip has rows of half the batch, for which it gathers its half of the layers' weights,
    # forward and backward.
    layers = 2 * (256 * 512 * 2 + 2 * 256 * 256 + 3 * 256 * 512)
    assert found["collective_bytes"]["all_gather"] > 2 * layers / 2 * 2
    # All that the model asks for is computed, by some chip, and some of it again.
    assert 1 < 4 * found["executed_flops_per_chip"] / found["flops_per_step"] < 2.5
    assert (
        found["compiler_flops_per_chip"] < found["executed_flops_per_chip"]
    )  # bodies of loops once
    assert 0 < found["mfu_bound"] < 1
    hours = 4 * 1000 * found["roofline_step_seconds"] / 3600
    assert found["chip_hours"] == pytest.approx(hours)


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
def test_weights_are_gathered_for_a_chunk_and_not_for_a_loss(config):
    """Four chips that each hold a quarter of every weight, so wide that little else is gathered. A
    pass over a chunk gathers the layers once: without a gradient, with one, and backward. Both
    losses share the passes of a chunk; apart, the language loss has two of its own."""
    chunks, layers = 5, 2 * (256 * 512 * 2 + 2 * 256 * 256 + 3 * 256 * 8192)  # of 8 among 40 rows
    passes = {}
    for backward in ("joint", "separate"):
        run = read_run_config(
            config, {"model.shape.intermediate_size": "8192", "train.backward": backward}
        )
        found = make_plan(run, "v5e:2x2", serving=False)
        passes[backward] = found.programs["train"].costs.collective_bytes["all_gather"] / (
            2 * layers
        )
    assert passes == {
        "joint": pytest.approx(3 * chunks, rel=0.05),
        "separate": pytest.approx(3 * chunks + 2, rel=0.05),
    }


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
def test_adapters_and_cached_documents_on_one_chip(config):
    """A slice smaller than a host; splash attention is in the program."""
    cached = {"data.cached": "[c.jsonl]", "data.cached_batch": "4", "model.path": "somewhere"}
    run = read_run_config(config, {"lora": "{rank: 4, base: int8}", **cached})
    where = open_slices("v5e:1x1")
    mesh = make_mesh(run.mesh, where.devices)
    program = lower_train(run, mesh)
    assert "tpu_custom_call" in program.lowered.as_text()
    found = make_plan(run, "v5e:1x1", serving=False)
    weights = num_parameters(run.model.known_shape)
    adapters = sum(math.prod(x.shape) for x in program.state.params.values())
    assert (
        weights < found.parameter_bytes - 4 * adapters < 1.5 * weights
    )  # a byte each, but for the tables' two
    assert found.optimizer_bytes == 2 * 4 * adapters + 4 + 4
    train = found.programs["train"]
    assert train.fits and train.costs.sent_bytes == 0 and train.costs.memory_bytes > weights


@pytest.mark.tpu
def test_a_program_that_does_not_fit():
    where = open_slices("v5e:1x1")
    lie = NamedSharding(make_mesh(MeshConfig(), where.devices), PartitionSpec())
    x = jax.ShapeDtypeStruct((60000, 60000), jnp.float32, sharding=lie)
    program = LoweredProgram(jax.jit(lambda x: jnp.sin(x.T) @ x).lower(x), 60000 * 60000 * 4)
    found, compiled = compile_program(program, where.chip)
    assert not found.fits and compiled is None and found.roofline is None
    assert found.peak_bytes > 2 * 60000 * 60000 * 4 > CHIPS["v5e"].memory
    json.dumps(found.to_dict())


@pytest.mark.tpu
def test_a_mesh_that_does_not_fit_the_slice(config):
    with pytest.raises(GritError, match="1 x 3 x 1 x 1 needs 3 devices, got 4"):
        make_plan(read_run_config(config, {"mesh.fsdp": "3"}), "v5e:2x2")
