"""What is kept for the backward pass, and where: rematerialisation by name, activations and moments
on the host."""

from __future__ import annotations

import dataclasses
from typing import get_args

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig, Remat
from grit_jax.models.transformer import REMAT_POLICIES, init_params
from grit_jax.sharding import MeshConfig, make_mesh, put_rows
from grit_jax.training import state as states
from grit_jax.training.checkpoint import Checkpoints
from grit_jax.training.joint import StepConfig, joint_loss
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer, make_schedule
from grit_jax.training.step import make_step
from grit_jax.types import Batch


def test_every_name_has_a_policy():
    assert {"none", *REMAT_POLICIES} == set(get_args(Remat))


@pytest.mark.slow
@pytest.mark.usefixtures("full_optimization")
def test_policies_keep_what_they_say(batch):
    """Temporaries of the compiled gradient, by what a layer keeps of its rows: its input, what
    attention gave, q, k and v."""
    config = ModelConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        dtype="float32",
    )
    only = Batch(
        generative=jax.tree.map(
            lambda x: np.concatenate([x] * 64) if x.ndim == 2 else x, batch.generative
        )
    )
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def traced(remat):
        step = StepConfig(dataclasses.replace(config, remat=remat), LossConfig(logits_block=512))
        return jax.jit(jax.grad(lambda p: joint_loss(p, only, step)[0])).trace(shapes)

    need = {
        name: traced(name).lower().compile().memory_analysis().temp_size_in_bytes
        for name in ("none", "full", "save_attention", "save_qkv")
    }
    row = only.generative.targets.size * 64 * 4  # bytes of one array [R T D]
    assert need["save_attention"] - need["full"] == pytest.approx(16 * row, rel=0.15)
    assert need["save_qkv"] - need["save_attention"] == pytest.approx(3 * 16 * row, rel=0.15)
    assert need["none"] > need["save_qkv"] + 16 * row
    stays, goes = (str(traced(name).jaxpr).count("<host>[16") for name in ("full", "offload"))
    assert stays == 0 and goes >= 1  # the layers' inputs, stacked


def steps(config, batch, mesh: Mesh, how, count=2):
    """Losses and states of a few steps."""
    settings = OptimizerConfig(lr=1e-2, warmup_fraction=0.0, schedule="constant", **how)
    schedule = make_schedule(settings, count)
    optimizer = make_optimizer(settings, schedule)
    with jax.set_mesh(mesh):
        state = init_state(config, optimizer, jax.random.key(0), mesh)
        step, found = make_step(StepConfig(config, LossConfig()), optimizer, schedule), []
        for _ in range(count):
            state, metrics = step(state, put_rows(batch, mesh))
            found.append(float(metrics["loss"]))
    return found, state


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"name": "adafactor"}, {"moments": "bfloat16"}], ids=str)
def test_moments_on_the_host_change_nothing(config, batch, how, tmp_path):
    """They stay there from step to step and come back there from a checkpoint."""
    only = Batch(generative=batch.generative)
    mesh = make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8])
    plain, _ = steps(config, only, mesh, how)
    found, state = steps(config, only, mesh, how | {"offload": True})
    np.testing.assert_allclose(found, plain, rtol=1e-6)
    kinds = lambda tree: {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}
    assert kinds(state.opt_state) == {"pinned_host"} and kinds(state.params) == {"device"}
    assert max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state.opt_state)) == 8
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(1, state, {"place": 0})
    checkpoints.close()
    again = Checkpoints(tmp_path, every=1).restore(1, jax.tree.map(lambda x: x, state), None)
    assert kinds(again.opt_state) == {"pinned_host"}
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_devices_without_such_memory_are_told_so(config, monkeypatch):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    monkeypatch.setattr(states, "HOST", "a_memory")
    optimizer = make_optimizer(OptimizerConfig(offload=True), lambda step: 1e-3)
    with (
        jax.set_mesh(mesh),
        pytest.raises(
            GritError, match="optimizer.offload: cpu devices have no a_memory memory .device,"
        ),
    ):
        init_state(config, optimizer, jax.random.key(0), mesh)
