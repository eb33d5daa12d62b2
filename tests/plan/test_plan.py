"""`grit plan`: what is wrong is said in one line; and, with the TPU's compiler installed, a
configuration on a slice."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grit_jax.cli.main import main
from grit_jax.errors import GritError
from grit_jax.models.parameters import num_parameters
from grit_jax.plan.chips import Slices, open_slices, parse_topology
from grit_jax.plan.mesh_search import MAX_TRIES, candidate_table, search_meshes
from grit_jax.plan.plan import (
    CompiledProgram,
    Plan,
    compile_program,
    make_plan,
    needed_bytes,
    plan_table,
)
from grit_jax.plan.program_costs import KINDS, ProgramCosts
from grit_jax.plan.programs import LoweredProgram, ServingPrograms, lower_train
from grit_jax.run_config import fit_to_mesh, read_run_config
from grit_jax.runtime.chips import CHIPS, GIB
from grit_jax.sharding import MeshConfig, make_mesh

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra 'tpu'"
)

# Heads of 128 and rows of 256 tokens, so that splash attention takes them.
RUN = """
model:
  shape: {vocab_size: 512, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 128}
data: {embedding: [a.jsonl], embedding_batch: 16, query_max_length: 128, passage_max_length: 256, row_multiple: 2,
       generative: [b.jsonl], generative_batch: 8, generative_max_length: 256, document_max_length: 256}
train: {steps: 1000, embedding_chunk: 8, loss: {logits_block: 512}}
output: out
"""
KEYS = {
    "topology",
    "chips",
    "hbm_bytes_per_chip",
    "peak_bytes_per_chip",
    "fits",
    "parameter_bytes_per_chip",
    "optimizer_bytes_per_chip",
    "temporary_bytes_per_chip",
    "flops_per_step",
    "collective_bytes",
    "roofline_step_seconds",
    "mfu_bound",
    "compile_seconds",
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize(
    "name, words",
    [
        ("v5p", "not a topology"),
        ("v5p:4x", "not a topology"),
        ("v9:4x4", "unknown chip 'v9'.* v4, v5e, v5p, v6e"),
        ("v5p:4x4", "v5p slices have 3 sides, such as v5p:4x4x4"),
        ("v5e:2x2x1", "have 2 sides"),
        ("v5e:32x32", "no such slice.* the largest slice has 256 chips"),
        ("v5e:3x3", "every side is 1 or even"),
        ("v5e:0x4", "no such"),
    ],
)
def test_slices_that_there_are_not(name, words):
    with pytest.raises(GritError, match=f"--topology {name}: .*{words}"):
        parse_topology(name)


def test_slices_as_they_are_rented():
    """cloud.google.com/tpu/docs: v4 and v5p are counted in cores, two of a chip; v5e and v6e in
    chips."""
    rented = {
        name: chip.accelerator_type((8, 8) if chip.axes == 2 else (4, 4, 4))
        for name, chip in CHIPS.items()
    }
    assert rented == {"v4": "v4-128", "v5e": "v5litepod-64", "v5p": "v5p-128", "v6e": "v6e-64"}
    odd = [
        ("v5e", (2, 8)),
        ("v5e", (6, 10)),
        ("v6e", (2, 1)),
        ("v5p", (1, 1, 1)),
        ("v5p", (2, 2, 6)),
        ("v4", (4, 4, 2)),
    ]
    assert [CHIPS[name].accelerator_type(shape) for name, shape in odd] == [None] * len(odd)
    assert [CHIPS["v5p"].accelerator_type(s) for s in ((2, 2, 1), (4, 8, 12))] == [
        "v5p-8",
        "v5p-768",
    ]
    assert "v5e:2x8, not rented in this shape: 8 chips" in plan_table(
        dataclasses.replace(a_plan(), topology="v5e:2x8")
    )


def test_slices_that_there_are():
    assert parse_topology("v5p:4x4x4") == (CHIPS["v5p"], (4, 4, 4))
    assert [parse_topology(f"{c}:1x1")[1] for c in ("v5e", "v6e")] == [(1, 1)] * 2


def test_without_the_compiler(config, capsys, monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stopped:
        main(["plan", str(config), "--topology", "v5e:2x2", "--json"])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    assert (
        said.err
        == "grit plan: planning needs the TPU compiler (libtpu): pip install 'grit_jax[tpu]'\n"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology", "v5x:1"], "--topology v5x:1: not a topology"),
        (["--topology", "v5e:2x2", "--train.stepz", "3"], "train.steps"),
        (["--topology", "v5e:2x2", "--tries", "3"], "add --search"),
        (["--topology", "v5e:2x2", "--slices", "0"], "--slices"),
        ([], "--topology"),
        (["--topology", "v5e:2x2", "--serch"], "did you mean --search"),
    ],
)
def test_what_is_typed_wrong_is_one_line(config, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", str(config), *arguments])
    said = capsys.readouterr()
    assert (
        stopped.value.code == 2
        and said.out == ""
        and words in said.err
        and len(said.err.splitlines()) == 1
    )


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


def test_rows_and_chunks_of_a_run_divide_among_its_devices(config, capsys):
    """Those that do not would be computed whole on every device."""

    def fitted(mesh, **keys):
        overrides = {key.replace("__", "."): str(value) for key, value in keys.items()}
        return fit_to_mesh(read_run_config(config, overrides), make_mesh(mesh, jax.devices()[:8]))

    multiples = [(2, MeshConfig()), (12, MeshConfig()), (3, MeshConfig(2, 2, 2))]
    assert [fitted(mesh, data__row_multiple=n).data.row_multiple for n, mesh in multiples] == [
        8,
        24,
        12,
    ]
    assert fitted(MeshConfig()).train.embedding_chunk == 8 and capsys.readouterr().err == ""
    odd = {"train__embedding_chunk": 12, "train__generative_chunk": 2, "train__cached_chunk": 3}
    train = fitted(MeshConfig(2, 2, 2), **odd).train
    assert (train.embedding_chunk, train.generative_chunk, train.cached_chunk) == (12, 4, 4)
    said = capsys.readouterr().err.splitlines()
    assert (
        said[0] == "train.generative_chunk: 4 instead of 2, because rows are split over 4 devices"
        and len(said) == 2
    )


def a_plan(seconds: float = 2.0, peak: int = 9 * GIB, fits: bool = True, chips: int = 8) -> Plan:
    """Of a step bound by what it sends; one that does not fit has no costs."""
    costs = ProgramCosts(1e15, 1e12, dict.fromkeys(KINDS, 3.0 * GIB), 4e11)
    bounds = {"compute": seconds / 2, "memory": seconds / 4, "interconnect": seconds}
    step = CompiledProgram(
        fits, peak, 2 * GIB, peak - 2 * GIB, 70.0, *((costs, 1e14, bounds) if fits else ())
    )
    mesh = {"data": 1, "fsdp": chips, "tensor": 1}
    return Plan("v5e:2x4", CHIPS["v5e"], mesh, 1800, GIB, 2 * GIB, 10**15, {"train": step})


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
    several = dataclasses.replace(a_plan(), slices=2, topology="v5e:2x2")
    assert several.to_dict()["slices"] == 2 and several.to_dict()["chips"] == 8
    assert "2 slices of v5e:2x2, rented as v5litepod-4: 8 chips" in plan_table(
        several
    ) and "to other slices" in plan_table(several)
    json.dumps(too_large.to_dict())


EIGHT_HEADS = {"model.shape.num_attention_heads": "8", "model.shape.num_key_value_heads": "8"}


@pytest.fixture
def search_of(config, monkeypatch):
    """A search on eight chips that need not be compiled for, and the (tensor, chunk) it asked a
    plan for."""
    asked = []

    def search_of(plan_of, overrides=EIGHT_HEADS, tries=MAX_TRIES, chip=CHIPS["v5e"], slices=1):
        def fake_plan(run, where, mesh, serving):
            asked.append((mesh.shape["tensor"], run.train.embedding_chunk))
            return plan_of(*asked[-1])

        monkeypatch.setattr(
            "grit_jax.plan.mesh_search.open_slices",
            lambda name, count: Slices(name, chip, jax.devices()[:8], count),
        )
        monkeypatch.setattr("grit_jax.plan.mesh_search.plan_on_mesh", fake_plan)
        return search_meshes(read_run_config(config, overrides), "v5e:2x4", tries, slices=slices)

    return search_of, asked


def test_a_search_ranks_what_fits(config, search_of, capsys):
    """Eight chips, of which two and more along `tensor` hold a quarter of the rows, and eight none;
    two are fastest."""
    run, asked = search_of
    found = run(
        lambda tensor, chunk: a_plan(abs(tensor - 2) + 1, fits=tensor < 8 and chunk is not None)
    )
    assert [one.mesh.tensor for one in found] == [2, 1, 4]
    assert asked[:4] == [(1, None), (2, None), (4, None), (8, None)] and len(asked) <= MAX_TRIES
    rows = 40  # 32 passages, and 16 queries two in a row
    assert [one.chunk for one in found] == [rows // 4 // ways * ways for ways in (4, 8, 2)]
    best = candidate_table(found).splitlines()[1]
    typed = "--mesh.data 1 --mesh.fsdp 4 --mesh.context 1 --mesh.tensor 2 --train.embedding_chunk 8"
    assert typed in best and " 4.0 " in best  # chip-hours
    said = capsys.readouterr().err
    assert (
        "--mesh.fsdp 8 --mesh.context 1 --mesh.tensor 1 --train.embedding_chunk null: number 1 of"
        " 12 at most" in said
    )
    assert "--train.embedding_chunk null: 9.00 GiB, too large" in said and "9.00 GiB, fits" in said
    main(["plan", str(config), "--topology", "v5e:2x4", "--search", "--json"])
    candidates = json.loads(capsys.readouterr().out)["candidates"]
    assert [one["train.embedding_chunk"] for one in candidates] == [
        8,
        8,
    ]  # for 1 and 2: four do not divide two heads
    with pytest.raises(GritError, match="no mesh and chunk that was tried fits"):
        run(lambda *_: a_plan(fits=False))


def test_a_search_over_slices_keeps_all_weights_in_each(config, search_of, capsys):
    """The network between them is slow: along mesh.data there are copies. Tokens stay split."""
    run, _ = search_of
    found = run(lambda *_: a_plan(), EIGHT_HEADS | {"mesh.context": "2"}, slices=2)
    assert {
        (one.mesh.data, one.mesh.context, one.mesh.fsdp * one.mesh.tensor) for one in found
    } == {(2, 2, 2)}
    assert (
        "--mesh.data 2 --mesh.fsdp 2 --mesh.context 2 --mesh.tensor 1 --train.embedding_chunk null"
        in candidate_table(found)
    )


def test_a_search_compiles_nothing_in_vain(search_of, capsys):
    """Not what cannot work, nor more than it may."""
    run, asked = search_of
    assert [one.mesh.tensor for one in run(lambda *_: a_plan(), {})] == [1, 2]
    assert asked == [(1, None), (2, None)]
    said = capsys.readouterr().err
    assert "--mesh.tensor 4: skipped, 4 heads with 2 of keys do not divide among 4 chips" in said
    asked.clear()
    # Of 40 rows of 256 tokens five are a chip's: two layers take 1.25 MiB of them, weights and
    # their optimizer's 1.9.
    small = dataclasses.replace(CHIPS["v5e"], memory=3 * 2**20)
    assert [one.chunk for one in run(lambda *_: a_plan(), {}, chip=small)] == [8] and asked == [
        (1, 8)
    ]
    assert (
        "embedding_chunk null: skipped, it needs at least 0.00 GiB per chip"
        in capsys.readouterr().err
    )
    assert (
        run(lambda *_: a_plan(), {"model.remat": "offload"}, chip=small)[0].chunk is None
    )  # on the host
    asked.clear()
    assert [
        one.mesh.tensor for one in run(lambda tensor, _: a_plan(fits=tensor == 2), tries=3)
    ] == [2]
    assert len(asked) == 3 and "3 programs were compiled; " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "run.yaml", "--topology", "v5e:2x4", "--tries", "0"])


def test_documents_are_encoded_with_their_caches(config):
    """Shapes of the program, lowered for simulated devices: no compiler is needed."""
    run = read_run_config(config)
    programs = ServingPrograms(run, run.model.known_shape, make_mesh(run.mesh, jax.devices()))
    result = programs.encode().lowered.out_info
    B, M, d = result.vectors.shape
    assert B * 256 >= 32768 and (M * 4, d) == (256, 256)  # a text has 4 tokens at least
    assert all(part.shape[:1] == (2,) for part in jax.tree.leaves(result.kv))  # layers


# ---- with the compiler ---------------------------------------------------------------------------


@pytest.mark.tpu
@needs_compiler
@pytest.mark.usefixtures("full_optimization")
def test_a_configuration_on_a_slice(config, capsys):
    main(["plan", str(config), "--topology", "v5e:2x2", "--mesh.tensor", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= KEYS and set(found["programs"]) == {
        "train",
        "encode",
        "prefill_layer",
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
@needs_compiler
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
@needs_compiler
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
@needs_compiler
@pytest.mark.usefixtures("full_optimization")
def test_a_token_reads_weights_and_caches_once(config):
    """However many layers their stacks have."""
    deep = {
        "model.shape.num_hidden_layers": "12",
        "model.shape.hidden_size": "1024",
        "model.shape.intermediate_size": "2048",
    }
    run, where = read_run_config(config, deep), open_slices("v5e:1x1")
    programs = ServingPrograms(run, run.model.known_shape, make_mesh(run.mesh, where.devices))
    layer = programs.prefill_layer()
    decode = programs.decode(layer, layer.lowered.compile())
    found, _ = compile_program(decode, where.chip)
    assert found.costs.memory_bytes == pytest.approx(decode.argument_bytes, rel=0.1)


@pytest.mark.tpu
@needs_compiler
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
@needs_compiler
@pytest.mark.parametrize(
    "name, chips",
    [("v4:2x2x1", 4), ("v5p:2x2x1", 4), ("v6e:1x1", 1), ("v5e:2x1", 2), ("v5p:4x4x4", 64)],
)
def test_a_chip_is_one_device(name, chips):
    assert len(open_slices(name).devices) == math.prod(parse_topology(name)[1]) == chips


@pytest.mark.tpu
@needs_compiler
def test_a_mesh_that_does_not_fit_the_slice(config):
    with pytest.raises(GritError, match="1 x 3 x 1 x 1 needs 3 devices, got 4"):
        make_plan(read_run_config(config, {"mesh.fsdp": "3"}), "v5e:2x2")
