"""Schedules and the optimizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grit_jax.training.state import OptimizerConfig, make_optimizer, make_schedule


def test_linear_schedule_warms_up_and_ends_at_zero():
    schedule = make_schedule(OptimizerConfig(lr=1.0, schedule="linear", warmup_fraction=0.1), 100)
    assert float(schedule(0)) == pytest.approx(0.1) and float(schedule(9)) == pytest.approx(1.0)
    assert float(schedule(55)) == pytest.approx(0.5) and float(schedule(100)) == pytest.approx(0.0)


def test_cosine_schedule_is_half_way_down_in_the_middle():
    schedule = make_schedule(OptimizerConfig(lr=2.0, schedule="cosine", warmup_fraction=0.0), 100)
    assert float(schedule(0)) == pytest.approx(2.0)
    assert float(schedule(50)) == pytest.approx(1.0, abs=1e-5) and float(
        schedule(100)
    ) == pytest.approx(0, abs=1e-5)


def test_the_schedule_rises_without_a_dip_and_then_only_falls():
    schedule = make_schedule(
        OptimizerConfig(lr=1.0, warmup_fraction=0.03, final_lr_fraction=0.1), 1253
    )
    values = np.array([float(schedule(i)) for i in range(0, 1253, 7)])
    peak = values.argmax()
    assert (np.diff(values[: peak + 1]) > 0).all() and (np.diff(values[peak:]) <= 1e-9).all()


def test_adamw_first_step_is_the_learning_rate_and_norms_are_not_decayed():
    config = OptimizerConfig(
        lr=0.1, weight_decay=0.5, clip_norm=None, warmup_fraction=0.0, schedule="constant"
    )
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = {"query": jnp.array([2.0]), "final_norm": jnp.array([2.0])}
    updates, _ = optimizer.update(
        {"query": jnp.array([3.0]), "final_norm": jnp.array([3.0])}, optimizer.init(params), params
    )
    # Adam's first step is sign(g) * lr; decay adds lr * 0.5 * weight for the matrix alone.
    assert float(updates["query"][0]) == pytest.approx(-0.1 - 0.1 * 0.5 * 2, rel=1e-4)
    assert float(updates["final_norm"][0]) == pytest.approx(-0.1, rel=1e-4)


def test_gradients_are_clipped_by_their_global_norm():
    config = OptimizerConfig(lr=1.0, clip_norm=1.0)
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = {"query": jnp.zeros(2)}
    one = optimizer.update({"query": jnp.array([3.0, 4.0])}, optimizer.init(params), params)[1]
    two = optimizer.update({"query": jnp.array([30.0, 40.0])}, optimizer.init(params), params)[1]
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
