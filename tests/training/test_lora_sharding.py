"""Adapters over a 4-bit base on meshes of eight devices: the single device's numbers."""

from __future__ import annotations

import jax
import lora_state
import numpy as np
import pytest

from grit_jax.sharding import MeshConfig


@pytest.fixture(scope="module")
def single(batch):
    return lora_state.run(batch)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(8, 1, 1), MeshConfig(2, 2, 2), MeshConfig(1, 4, 2)], ids=["data", "all", "fsdp-tensor"]
)
def test_a_sharded_step_equals_the_single_device_step(batch, single, mesh):
    metrics, _, after, (adapters, base) = lora_state.run(batch, mesh_config=mesh, devices=jax.devices()[:8])
    for one, other in zip(single[0], metrics, strict=True):
        for name in one:  # dropout included
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for name, value in single[2].params.items():
        np.testing.assert_allclose(after.params[name], value, atol=1e-4, err_msg=name)
    if mesh.fsdp > 1:  # as the weight that they are added to, the rank whole
        assert adapters["up_lora_a"] == "PartitionSpec(None, 'fsdp', None)"
        assert adapters["up_lora_b"] == "PartitionSpec(None, None, 'tensor')"
        assert adapters["attention_out_lora_a"] == "PartitionSpec(None, 'tensor', None)"
        assert "tensor" in base["up"].codes and "tensor" in base["up"].scales
    if mesh.fsdp == 2:  # two blocks of inputs
        assert base["up"].codes == "PartitionSpec(None, 'fsdp', None, 'tensor')"
