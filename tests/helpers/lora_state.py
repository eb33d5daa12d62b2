"""A small model with adapters in training, for the tests of this folder."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax

from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import LoraConfig
from grit_jax.models.transformer import init_params
from grit_jax.sharding import MeshConfig, make_mesh, put_rows
from grit_jax.training.frozen_base import freeze, frozen_shardings
from grit_jax.training.joint import StepConfig
from grit_jax.training.losses import LossConfig
from grit_jax.training.state import (
    OptimizerConfig,
    TrainState,
    init_state,
    make_optimizer,
    make_schedule,
)
from grit_jax.training.step import make_step

# Two blocks of 64 inputs, so that what is quantised can be split as well.
CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=128,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    dtype="float32",
    remat="none",
    initializer_range=0.1,
)
LORA = LoraConfig(rank=4, alpha=16.0, dropout=0.1, base="int4")


@functools.cache
def frozen_base(config: ModelConfig, lora: LoraConfig) -> dict:
    """Random weights as they lie frozen in memory, on the host."""
    params = lambda: init_params(config, jax.random.key(7))
    make = jax.jit(
        lambda: {name: freeze(name, weight, config, lora) for name, weight in params().items()}
    )
    return jax.device_get(make())


def start(
    config: ModelConfig,
    lora: LoraConfig,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    projection: int | None = None,
) -> TrainState:
    """A new state, the base in place."""
    frozen = frozen_base(config, lora)
    frozen = jax.device_put(frozen, frozen_shardings(frozen, mesh))
    return init_state(config, optimizer, jax.random.key(0), mesh, frozen, projection, lora)


def run(
    batch,
    config=CONFIG,
    lora=LORA,
    mesh_config=MeshConfig(1, 1, 1),
    devices=None,
    steps=3,
    lr=3e-3,
    projection=None,
    loss=LossConfig(),
    **step,
):
    """Metrics of each step, and the state before and after."""
    settings = OptimizerConfig(lr=lr, warmup_fraction=0.0, schedule="constant")
    schedule = make_schedule(settings, steps)
    optimizer = make_optimizer(settings, schedule)
    mesh = make_mesh(mesh_config, devices or jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = start(config, lora, optimizer, mesh, projection)
        before = jax.tree.map(np.asarray, state)
        shardings = jax.tree.map(lambda part: part.sharding.spec, (state.params, state.frozen))
        function = make_step(StepConfig(config, loss, lora=lora, **step), optimizer, schedule)
        metrics = []
        for _ in range(steps):
            state, found = function(state, put_rows(batch, mesh))
            metrics.append({name: float(value) for name, value in found.items()})
    return metrics, before, jax.tree.map(np.asarray, state), shardings
