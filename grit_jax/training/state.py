"""The state of a training run: step, weights and optimizer state, created in their shardings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grit_jax.errors import GritError
from grit_jax.models.config import ModelConfig
from grit_jax.models.lora import LoraConfig, attach, init_adapters
from grit_jax.models.projection import PROJECTION, PROJECTION_AXES, init_projection
from grit_jax.models.transformer import Params, init_params, parameter_shapes
from grit_jax.sharding import tree_shardings
from grit_jax.training.frozen_base import freeze, frozen_shardings
from grit_jax.training.optimizer import (
    TRAINED_AXES,
    OnHost,
    OptimizerConfig,
    make_optimizer,
    make_schedule,
)

__all__ = [
    "HOST",
    "TRAINED_AXES",
    "OptimizerConfig",
    "TrainState",
    "abstract_state",
    "init_state",
    "make_optimizer",
    "make_schedule",
    "state_shardings",
]
HOST = "pinned_host"  # JAX's name for host memory that devices can access directly
PROJECTION_KEY = 0xD3  # folded into the seed; above the numbers of the other weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Step counter, weights and optimizer state; every array carries its sharding.

    Attributes:
      params: the trained weights, or the adapters to `frozen` ones.
      frozen: weights that are not trained and have no optimizer state: the base of adapters, or
        the reference model of a preference loss (see `training.reference_model`); else empty.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    frozen: Params = dataclasses.field(default_factory=dict)

    def weights(self, lora: LoraConfig | None, key: jax.Array | None = None) -> Params:
        """The model's current weights; with the `key` of a step, its adapters have dropout."""
        return self.params if lora is None else attach(self.frozen, self.params, lora, key)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a TrainState (or its shapes): moments as their weights, scalars replicated.

    Adafactor's row and column statistics are sharded like the rows and columns of their matrix.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    like_params = lambda node: tree_shardings(node, TRAINED_AXES, mesh)
    is_params = lambda n: isinstance(n, dict) and n.keys() <= TRAINED_AXES.keys()
    is_factored = lambda n: isinstance(n, optax.FactoredState)

    def factored(node: optax.FactoredState) -> optax.FactoredState:
        def along(values: Params, dropped: int) -> Any:
            axes = {
                name: _axes_without(name, state.params[name].shape, x.shape, dropped)
                for name, x in values.items()
            }
            return tree_shardings(values, axes, mesh)

        return node._replace(
            count=whole,
            v_row=along(node.v_row, -1),
            v_col=along(node.v_col, -2),
            v=along(node.v, 0),
        )

    def place(node: Any) -> Any:
        return (
            factored(node) if is_factored(node) else like_params(node) if is_params(node) else whole
        )

    moments = jax.tree.map(place, state.opt_state, is_leaf=lambda n: is_factored(n) or is_params(n))
    if isinstance(state.opt_state, OnHost):
        to_host = lambda x, sharding: sharding.with_memory_kind(HOST) if x.ndim else sharding
        moments = jax.tree.map(to_host, state.opt_state, moments)
    return TrainState(
        whole, like_params(state.params), moments, frozen_shardings(state.frozen, mesh)
    )


def _axes_without(
    name: str, shape: tuple[int, ...], kept: tuple[int, ...], dropped: int
) -> tuple[str | None, ...]:
    """Logical axes of a factored optimizer's statistics of a weight.

    They have the weight's shape, or are a single number, or lack the weight's largest axis
    (`dropped` -1) or its second largest (-2), as in optax.
    """
    axes = TRAINED_AXES[name]
    if kept == shape:
        return axes
    if kept == (1,):
        return (None,)
    out = int(np.argsort(shape)[dropped])
    return axes[:out] + axes[out + 1 :]


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    params: Params | None = None,
    projection: int | None = None,
    lora: LoraConfig | None = None,
) -> TrainState:
    """A new state. Each array is created in its sharding, so that no device ever holds a whole one.

    Args:
      params: start from these weights instead of random ones.
      projection: adds a new projection head with this many dimensions to weights that have none.
      lora: train new adapters (and the projection); `params` are then the frozen base, already on
        the devices (see `training.frozen_base`).

    Raises:
      GritError: optimizer state is to lie in host memory, and the devices have none.
    """
    given, frozen = params, {}
    if lora is not None:
        assert params is not None
        given = {name: params[name] for name in PROJECTION_AXES if name in params}
        frozen = {name: weight for name, weight in params.items() if name not in given}
    create = _creation(config, optimizer, key, projection, lora)
    shapes = jax.eval_shape(create, given)
    if isinstance(shapes.opt_state, OnHost):
        _check_host_memory(mesh)
    state = jax.jit(create, out_shardings=state_shardings(shapes, mesh))(given)
    return dataclasses.replace(state, frozen=frozen)


def _check_host_memory(mesh: Mesh) -> None:
    device = mesh.local_devices[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise GritError(
            f"optimizer.offload: {device.device_kind} devices have no {HOST} memory"
            f" ({', '.join(kinds)}); leave it out"
        )


def abstract_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    projection: int | None = None,
    lora: LoraConfig | None = None,
) -> TrainState:
    """Shapes and dtypes of the state that `init_state` makes, the frozen base included. Computes
    nothing."""
    state = jax.eval_shape(_creation(config, optimizer, jax.random.key(0), projection, lora), None)
    if lora is None:
        return state
    random = lambda: init_params(config, jax.random.key(0))
    frozen = jax.eval_shape(
        lambda: {name: freeze(name, weight, config, lora) for name, weight in random().items()}
    )
    return dataclasses.replace(state, frozen=frozen)


def _creation(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    projection: int | None,
    lora: LoraConfig | None,
) -> Callable[[Params | None], TrainState]:
    """The function that makes the trained part of the state, from given weights or random ones."""

    def create(given: Params | None) -> TrainState:
        weights = {name: weight.astype(jnp.float32) for name, weight in (given or {}).items()}
        if lora is not None:
            weights |= init_adapters(lora, parameter_shapes(config), key)
        elif given is None:
            weights = init_params(config, key)
        if projection and PROJECTION not in weights:
            weights |= init_projection(
                config.hidden_size, projection, jax.random.fold_in(key, PROJECTION_KEY)
            )
        return TrainState(jnp.zeros((), jnp.int32), weights, optimizer.init(weights))

    return create
