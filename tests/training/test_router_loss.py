"""The router's loss in the joint step: outside of the factors, on language passes only, the same on
any mesh."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from grit_jax.models.moe import router_aux_loss
from grit_jax.models.transformer import Transformer, init_params
from grit_jax.sharding import MeshConfig, make_mesh, put_rows
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer, make_schedule
from grit_jax.training.step import StepConfig, joint_loss, make_step
from grit_jax.types import AttentionMode, Batch


@pytest.fixture(scope="module")
def experts(config):
    return dataclasses.replace(
        config,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        router_aux_loss_coef=0.25,
    )


def test_the_router_s_loss_is_added_after_the_factors(experts, batch):
    params = init_params(experts, jax.random.key(0))
    loss = LossConfig(generative_factor=0.5, cached_factor=2.0)
    total, parts = joint_loss(params, batch, StepConfig(experts, loss))
    parts = {name: float(value) for name, value in parts.items()}
    assert float(total) == pytest.approx(
        parts["loss_emb"]
        + 0.5 * parts["loss_gen"]
        + 2 * parts["loss_cached"]
        + 0.25 * parts["loss_router"],
        rel=1e-6,
    )
    _, language = joint_loss(params, Batch(generative=batch.generative), StepConfig(experts, loss))
    _, cached = joint_loss(params, Batch(cached=batch.cached), StepConfig(experts, loss))
    assert parts["loss_router"] == pytest.approx(
        float(language["loss_router"] + cached["loss_router"]), rel=1e-6
    )
    rows = batch.generative.rows
    out = Transformer(experts, params)(
        rows.tokens, rows.positions, rows.segments, mode=AttentionMode.CAUSAL
    )
    assert float(language["loss_router"]) == pytest.approx(
        float(router_aux_loss(out.router, 4)), rel=1e-6
    )


def test_an_embedding_pass_and_a_dense_model_have_none(experts, config, batch):
    only = Batch(embedding=batch.embedding)
    total, parts = joint_loss(
        init_params(experts, jax.random.key(0)), only, StepConfig(experts, LossConfig())
    )
    assert set(parts) == {"loss_emb"} and float(total) == float(parts["loss_emb"])
    _, parts = joint_loss(
        init_params(config, jax.random.key(0)), batch, StepConfig(config, LossConfig())
    )
    assert "loss_router" not in parts


@pytest.mark.slow
def test_a_sharded_step_equals_the_single_device_step(experts, batch):
    only = Batch(generative=batch.generative)

    def run(mesh):
        with jax.set_mesh(mesh):
            schedule = make_schedule(OptimizerConfig(lr=1e-2, schedule="constant"), 1)
            optimizer = make_optimizer(OptimizerConfig(lr=1e-2, schedule="constant"), schedule)
            state = init_state(experts, optimizer, jax.random.key(0), mesh)
            spec = state.params["expert_up"].sharding.spec
            step = make_step(StepConfig(experts, LossConfig()), optimizer, schedule)
            state, metrics = step(state, put_rows(only, mesh))
            return jax.device_get(metrics), spec

    single, _ = run(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    split, spec = run(make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8]))
    assert tuple(spec) == (None, "tensor", "fsdp", None)
    assert "loss_router" in single
    for name in single:
        np.testing.assert_allclose(split[name], single[name], rtol=1e-5, atol=1e-5, err_msg=name)
