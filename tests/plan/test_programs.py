"""The programs of a run, lowered without its devices."""

from __future__ import annotations

import os
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grit_jax.errors import GritError
from grit_jax.models.parameters import num_parameters
from grit_jax.plan.chips import ENVIRONMENT
from grit_jax.plan.program_costs import program_costs
from grit_jax.plan.programs import (
    bytes_per_chip,
    lower_train,
    train_shapes,
)
from grit_jax.run_config import read_run_config
from grit_jax.sharding import MeshConfig, make_mesh
from grit_jax.training.state import HOST

# Heads of 128 and rows of 512 tokens: splash attention takes them, four ways.
SLICED_RUN = """
model:
  shape: {vocab_size: 512, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 128}
data: {embedding: [a.jsonl], embedding_batch: 16, query_max_length: 128, passage_max_length: 512,
       generative: [b.jsonl], generative_batch: 8, generative_max_length: 512}
train: {steps: 1000, embedding_chunk: 8, loss: {logits_block: 512}}
output: out
"""


@pytest.mark.tpu
@pytest.mark.usefixtures("full_optimization")
def test_two_slices_with_split_tokens_and_the_hosts_memory(tmp_path):
    from jax.experimental import topologies

    path = tmp_path / "run.yaml"
    path.write_text(SLICED_RUN)
    how = {"chips_per_host_bounds": (2, 2, 1), "num_slices": 2}
    with mock.patch.dict(os.environ, ENVIRONMENT):
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name="v5e:2x2", **how
        ).devices
        one = read_run_config(path, {"mesh.context": "2"})
        with pytest.raises(
            GritError, match="mesh.data: must be a multiple of the number of slices"
        ):
            make_mesh(one.mesh, devices)
        config = read_run_config(
            path,
            {
                "mesh.context": "2",
                "mesh.data": "2",
                "model.remat": "offload",
                "optimizer.offload": "true",
            },
        )
        mesh = make_mesh(config.mesh, devices)
        assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 2, "tensor": 1}
        assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
        jax.config.update("jax_enable_compilation_cache", False)
        program = lower_train(config, mesh)
        assert "tpu_custom_call" in program.lowered.as_text()  # splash attention
        compiled = program.lowered.compile()
        memory = compiled.memory_analysis()
        # A chip's part of the gradient, in bfloat16 at least, is summed with that of the other
        # slice.
        assert (
            program_costs(compiled.as_text()).network_bytes
            > bytes_per_chip(program.state.params) / 2
        )
        moments = sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(program.state.opt_state)
            if leaf.ndim
        )
        assert (
            memory.host_argument_size_in_bytes >= moments / 8 > 0
        )  # embedding norms and such are not split
        assert memory.host_argument_size_in_bytes == memory.host_alias_size_in_bytes
        assert memory.host_temp_size_in_bytes > 0  # inputs of layers


def test_bytes_of_a_chip_are_those_of_its_shard():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices()[:8])

    def array(shape, dtype, *axes, memory=None):
        sharding = NamedSharding(mesh, PartitionSpec(*axes), memory_kind=memory)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    tree = {"split": array((8, 6), jnp.float32, "fsdp"), "whole": array((3,), jnp.int32)}
    assert bytes_per_chip(tree) == 2 * 6 * 4 + 3 * 4
    twice = array((8, 6), jnp.bfloat16, ("data", "fsdp"), None)
    assert bytes_per_chip([tree, twice]) == 2 * 6 * 4 + 3 * 4 + 6 * 2
    assert bytes_per_chip([array((8, 6), jnp.float32, memory=HOST)]) == 0  # is not on the chip


def test_a_training_step_has_its_state_split_and_its_batch(config):
    """Weights, two moments of each and the row counts, over eight devices; a batch's rows too."""
    run = read_run_config(config)
    shapes = train_shapes(run, make_mesh(run.mesh, jax.devices()[:8]))
    weights = 4 * num_parameters(run.model.known_shape)
    split = bytes_per_chip(shapes.state.params)
    assert weights / 8 < split < 1.02 * weights / 8  # norms are whole on every device
    assert bytes_per_chip(shapes.state.opt_state) == pytest.approx(2 * split, abs=100)
    tokens = shapes.batch.embedding.rows.tokens
    assert tokens.shape == (40, 256) and bytes_per_chip(tokens) == 40 * 256 * 4 / 8
    assert shapes.batch.generative.rows.tokens.shape == (8, 256)
