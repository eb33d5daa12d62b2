"""Lowers the programs of a configuration for a mesh of devices that may be absent: from shapes,
without computing anything."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import PARAMETER_AXES
from grit_jax.models.quantise import storage_axes
from grit_jax.plan.abstract_step import AbstractStep, abstract_step
from grit_jax.run_config import RunConfig, fit_to_mesh
from grit_jax.sharding import (
    fitted_sharding,
    row_shardings,
)
from grit_jax.training.gradient_plan import GradientPlan, gradient_plan
from grit_jax.training.state import HOST, TrainState, state_shardings
from grit_jax.types import Batch


@dataclasses.dataclass
class LoweredProgram:
    """A lowered program, and the bytes of its arguments on one chip.

    Attributes:
      trips: of loops that end by the data (see `program_costs`).
      steps: of a call; costs are those of one of them.
    """

    lowered: jax.stages.Lowered
    argument_bytes: int
    trips: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)
    steps: int = dataclasses.field(default=1, kw_only=True)


@dataclasses.dataclass
class LoweredTrainStep(LoweredProgram):
    """The step that `grit train` runs, the shapes and shardings of its state, and the backward
    passes that its gradient takes."""

    model: ModelConfig
    state: TrainState
    gradient: GradientPlan


@dataclasses.dataclass
class TrainShapes:
    """A training step before it is lowered, and the shapes and shardings of its state and batch."""

    abstract: AbstractStep
    state: TrainState
    batch: Batch


def train_shapes(config: RunConfig, mesh: Mesh) -> TrainShapes:
    """The arguments of the training step on a mesh, sharded as `train.py` shards its state and
    `training.loop` its batches.

    Raises:
      GritError: the model's shape is not known, or the mesh does not divide the rows' length.
    """
    abstract = abstract_step(fit_to_mesh(config, mesh))
    shardings = state_shardings(abstract.state, mesh)
    frozen = {
        name: weight_shardings(name, weight, mesh) for name, weight in abstract.state.frozen.items()
    }
    state = place(abstract.state, dataclasses.replace(shardings, frozen=frozen))
    return TrainShapes(abstract, state, place(abstract.batch, row_shardings(abstract.batch, mesh)))


def lower_train(config: RunConfig, mesh: Mesh) -> LoweredTrainStep:
    """The training step on a mesh. Raises: see `train_shapes`."""
    shapes = train_shapes(config, mesh)
    program = lower(shapes.abstract.step, mesh, shapes.state, shapes.batch)
    with jax.set_mesh(mesh):
        gradient = gradient_plan(shapes.batch, shapes.abstract.config)
    return LoweredTrainStep(
        program.lowered, program.argument_bytes, shapes.abstract.model, shapes.state, gradient
    )


def weight_shardings(name: str, weight: Any, mesh: Mesh) -> Any:
    """The shardings of a frozen weight, quantised or not (see `training/frozen_base.py`)."""
    sharding = lambda part, axes: fitted_sharding(axes, part.shape, mesh)
    return jax.tree.map(sharding, weight, storage_axes(weight, PARAMETER_AXES[name]))


def bytes_per_chip(tree: Any) -> int:
    """Bytes of arrays on one chip, from shapes with shardings; host memory does not count."""
    shard = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(shard(x) for x in jax.tree.leaves(tree) if x.sharding.memory_kind != HOST)


def result_shapes(program: LoweredProgram, compiled: jax.stages.Compiled | None = None) -> Any:
    """The result of a program, as shapes with the shardings that the compiler chose."""
    return place(program.lowered.out_info, (compiled or program.lowered.compile()).output_shardings)


def replicated(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arguments that are passed as host arrays: whole on every device."""
    return place(tree, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree))


def lower(function: Any, mesh: Mesh, *arguments: Any, **static: Any) -> LoweredProgram:
    """A jitted function lowered for a mesh."""
    with jax.set_mesh(mesh):
        return LoweredProgram(function.lower(*arguments, **static), bytes_per_chip(arguments))


def shape_of(shape: tuple[int, ...], dtype: Any = jnp.int32) -> Any:
    """An array's shape and dtype."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def place(tree: Any, shardings: Any) -> Any:
    """Shapes with the shardings of their arrays."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
