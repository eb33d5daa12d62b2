"""The joint step: parts, chunks, meshes, and descent."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from tensor_error import assert_near_updates

from grit_jax.sharding import MeshConfig, make_mesh, put_rows
from grit_jax.training.joint import StepConfig
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import OptimizerConfig, init_state, make_optimizer, make_schedule
from grit_jax.training.step import make_step
from grit_jax.types import Batch

STEPS = 3


def run(config, batch, mesh_config=MeshConfig(1, 1, 1), devices=None, steps=STEPS, **step):
    """Metrics of a few steps on a mesh, the weights before and after, and their shardings."""
    optimizer_config = OptimizerConfig(lr=1e-2, warmup_fraction=0.0, schedule="constant")
    schedule = make_schedule(optimizer_config, steps)
    optimizer = make_optimizer(optimizer_config, schedule)
    mesh = make_mesh(mesh_config, devices or jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = init_state(config, optimizer, jax.random.key(0), mesh)
        function = make_step(StepConfig(config, LossConfig(), **step), optimizer, schedule)
        shardings = {name: p.sharding.spec for name, p in state.params.items()}
        before = jax.tree.map(np.asarray, state.params)
        metrics = []
        for _ in range(steps):
            state, found = function(state, put_rows(batch, mesh))
            metrics.append(found)
    return metrics, before, jax.tree.map(np.asarray, state.params), shardings


@pytest.fixture(scope="module")
def single(config, batch):
    return run(config, batch)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(MeshConfig(8, 1, 1), marks=pytest.mark.slow),
        MeshConfig(1, 8, 1),
        MeshConfig(2, 2, 2),
        MeshConfig(1, 2, 2, context=2),
        *(
            pytest.param(mesh, marks=pytest.mark.slow)
            for mesh in (
                MeshConfig(1, 4, 2),
                MeshConfig(2, 2, 1, context=2),
                MeshConfig(1, 1, 1, context=8),
            )
        ),
    ],
    ids=[
        "data",
        "fsdp",
        "data-fsdp-tensor",
        "fsdp-context-tensor",
        "fsdp-tensor",
        "data-fsdp-context",
        "context",
    ],
)
def test_a_sharded_step_equals_the_single_device_step(config, batch, single, mesh):
    metrics, before, after, shardings = run(config, batch, mesh, jax.devices()[:8])
    for one, other in zip(single[0], metrics, strict=True):
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_equal(before, single[1])
    assert_near_updates(before, after, single[2])
    if mesh.fsdp > 1:
        assert "fsdp" in str(shardings["query"]) and "fsdp" in str(shardings["embed"])
    if mesh.tensor > 1:
        assert "tensor" in str(shardings["gate"])


@pytest.mark.slow
def test_experts_see_tokens_that_are_split_over_devices(config, batch):
    """Routers are balanced over all tokens, wherever they are."""
    config = dataclasses.replace(
        config, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    )
    one, other = (
        run(config, batch),
        run(config, batch, MeshConfig(1, 2, 2, context=2), jax.devices()[:8]),
    )
    for a, b in zip(one[0], other[0], strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("chunk", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_chunked_contrastive_equals_the_plain_step(config, batch, single, chunk):
    only = Batch(embedding=batch.embedding)
    plain, chunked = run(config, only), run(config, only, embedding_chunk=chunk)
    for one, other in zip(plain[0], chunked[0], strict=True):
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5)
        np.testing.assert_allclose(other["grad_norm"], one["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize(
    "remat",
    [
        "dots",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("full", "offload", "save_attention", "save_qkv")
        ),
    ],
)
def test_rematerialisation_and_scan_change_nothing(config, batch, single, remat):
    metrics, *_ = run(dataclasses.replace(config, remat=remat, scan_layers=False), batch)
    np.testing.assert_allclose(metrics[-1]["loss"], single[0][-1]["loss"], rtol=1e-5)


def test_training_lowers_every_loss(config, batch):
    metrics, *_ = run(config, batch, steps=25)
    for name in ("loss_emb", "loss_gen", "loss_cached"):
        assert metrics[-1][name] < 0.8 * metrics[0][name], name
