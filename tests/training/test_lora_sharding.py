"""Adapters over a 4-bit base on meshes of eight devices: the single device's numbers."""

from __future__ import annotations

import dataclasses

import jax
import lora_state
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from lora_state import CONFIG, LORA
from tensor_error import assert_near_updates

from grit_jax.sharding import MeshConfig
from grit_jax.types import Batch


@pytest.fixture(scope="module")
def single(batch):
    return lora_state.run(batch)


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(2, 2, 2), pytest.param(MeshConfig(1, 4, 2), marks=pytest.mark.slow)],
    ids=["all", "fsdp-tensor"],
)
def test_a_sharded_step_equals_the_single_device_step(batch, single, mesh):
    metrics, before, after, (adapters, base) = lora_state.run(
        batch, mesh_config=mesh, devices=jax.devices()[:8]
    )
    for one, other in zip(single[0], metrics, strict=True):
        for name in one:  # dropout included
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert_near_updates(before.params, after.params, single[2].params)
    # Split as the weight that they are added to, the rank whole.
    assert adapters["up_lora_a"] == P(None, "fsdp", None) and adapters["up_lora_b"] == P(
        None, None, "tensor"
    )
    assert adapters["attention_out_lora_a"] == P(None, "tensor", None)
    split = "fsdp" if mesh.fsdp == 2 else None  # two blocks of inputs do not go over four devices
    assert base["up"].codes == P(None, split, None, "tensor") and base["up"].scales == P(
        None, split, "tensor"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "base, experts",
    [("int4", 4), ("int4", 3), ("full", 3)],
    ids=["spread", "whole", "by width"],
)
def test_experts_adapters_on_a_mesh(batch, base, experts):
    """Four experts are spread over two devices; three are not, and each is split along its width if
    in one piece."""
    config = dataclasses.replace(
        CONFIG, num_experts=experts, num_experts_per_tok=2, architecture="mixtral"
    )
    lora, only = dataclasses.replace(LORA, base=base), Batch(generative=batch.generative)
    one, _, _, _ = lora_state.run(only, config, lora)
    other, before, after, (adapters, _) = lora_state.run(
        only, config, lora, mesh_config=MeshConfig(2, 2, 2), devices=jax.devices()[:8]
    )
    for a, b in zip(one, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5) and b["grad_norm"] == pytest.approx(
            a["grad_norm"], rel=1e-4
        )
    assert adapters["expert_gate_lora_a"] == P(
        None, "tensor" if experts == 4 else None, "fsdp", None
    )
    assert before.params["expert_up_lora_b"].shape == (2, experts, 4, 128)
    for name in ("expert_gate", "expert_up", "expert_down"):
        assert np.abs(after.params[name + "_lora_a"] - before.params[name + "_lora_a"]).max() > 1e-4
