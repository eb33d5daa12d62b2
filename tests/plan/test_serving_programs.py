"""The programs that run a model: their arguments, against real arrays."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from grit_jax.inference.engine_state import EngineShape
from grit_jax.inference.engine_steps import empty_state_step
from grit_jax.inference.placement import weight_bytes
from grit_jax.models.config import ModelConfig
from grit_jax.models.presets import PRESETS
from grit_jax.plan.chips import open_slices
from grit_jax.plan.plan import compile_program
from grit_jax.plan.programs import bytes_per_chip
from grit_jax.plan.serving_programs import (
    ServingModel,
    ServingPrograms,
    ServingSizes,
    slot_bytes,
)
from grit_jax.sharding import MeshConfig, make_mesh

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    dtype="float32",
)
SIZES = ServingSizes(
    slots=8, capacity=300, document_tokens=200, question_tokens=20, encode_tokens=2048
)
AXES = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture
def mesh():
    return make_mesh(AXES, jax.devices()[:8])


def test_bytes_of_a_slot_are_those_of_a_real_cache(mesh):
    """Two layers, one of two heads, 300 tokens as whole blocks of 256: keys and values in float32."""
    with jax.set_mesh(mesh):
        state = empty_state_step(config=CONFIG, shape=EngineShape(8, 300))
    first = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for array in jax.tree.leaves((state.cache.k, state.cache.v))
        for shard in array.addressable_shards
        if shard.device == first
    )
    assert held == 2 * (2 * 2 * 1 * 512 * 64 * 4)  # two slots of its share
    numbers = slot_bytes(CONFIG, mesh, 300) - held // 2
    assert 0 < numbers < 1.1 * 512 * 4  # positions of the tokens, and a few numbers of the slot


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_bytes_of_the_weights_are_those_of_placement(mesh, dtype):
    model = ServingModel(CONFIG, dtype)
    assert bytes_per_chip(model.params(mesh)) == weight_bytes(CONFIG, dtype, "tpu", AXES)
    assert model.config.dtype == ("float32" if dtype == "float32" else "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_every_program_can_be_lowered(mesh, dtype):
    """For simulated devices: no compiler is needed."""
    programs = ServingPrograms(ServingModel(CONFIG, dtype), mesh, SIZES)
    assert list(programs.table) == ["encode", "prefill", "insert_layer", "prefill_layer", "decode"]
    state = jax.tree.map(lambda x: (x.shape, x.dtype), programs.state)
    for name in programs.table:
        result = programs.lower(name).lowered.out_info
        if name == "encode":
            B, M, width = result.vectors.shape
            assert (B, width) == (4 * (2048 // 256), 256) and M * 4 == 256
            continue
        after = result[0] if isinstance(result, tuple) else result
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == state, name


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
def test_a_token_reads_weights_and_caches_once():
    """However many layers their stacks have, and far more than a chip can keep beside its cores."""
    large = dataclasses.replace(PRESETS["mistral_7b"], num_hidden_layers=8, vocab_size=512)
    opened = open_slices("v5e:1x1")
    mesh = make_mesh(MeshConfig(), opened.devices)
    programs = ServingPrograms(ServingModel(large, "bfloat16"), mesh, SIZES)
    decode = programs.lower("decode")
    compiled, _ = compile_program(decode, opened.chip)
    assert compiled.costs.memory_bytes == pytest.approx(decode.argument_bytes, rel=0.1)


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("name", ["prefill", "prefill_layer", "insert_layer"])
def test_reading_a_prompt_copies_no_cache(name):
    """It reads weights, and at most a slot or two of many."""
    model = dataclasses.replace(PRESETS["mistral_7b"], num_hidden_layers=8, vocab_size=512)
    opened = open_slices("v5e:1x1")
    mesh = make_mesh(MeshConfig(), opened.devices)
    sizes = dataclasses.replace(SIZES, slots=128, capacity=1000)
    programs = ServingPrograms(ServingModel(model, "bfloat16"), mesh, sizes)
    weights = bytes_per_chip(programs.params)
    all_keys = programs.state.cache.k.size * 2
    assert all_keys > 1.5 * 2**30
    compiled, _ = compile_program(programs.lower(name), opened.chip)
    assert compiled.costs.memory_bytes < weights + all_keys / 4
