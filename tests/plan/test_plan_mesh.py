"""What only the TPU's compiler can try: tokens split over chips, two slices, activations and
moments on the host."""

from __future__ import annotations

import importlib.util
import os
from unittest import mock

import jax
import pytest

from grit_jax.errors import GritError
from grit_jax.plan.chips import ENVIRONMENT
from grit_jax.plan.program_costs import program_costs
from grit_jax.plan.programs import bytes_per_chip, lower_train
from grit_jax.run_config import read_run_config
from grit_jax.sharding import make_mesh

# Heads of 128 and rows of 512 tokens: splash attention takes them, four ways.
RUN = """
model:
  shape: {vocab_size: 512, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 128}
data: {embedding: [a.jsonl], embedding_batch: 16, query_max_length: 128, passage_max_length: 512,
       generative: [b.jsonl], generative_batch: 8, generative_max_length: 512}
train: {steps: 1000, embedding_chunk: 8, loss: {logits_block: 512}}
output: out
"""


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra 'tpu'")
@pytest.mark.usefixtures("full_optimization")
def test_two_slices_with_split_tokens_and_the_hosts_memory(tmp_path):
    from jax.experimental import topologies

    path = tmp_path / "run.yaml"
    path.write_text(RUN)
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
