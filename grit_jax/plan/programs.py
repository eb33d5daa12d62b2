"""Lowers the programs of a configuration for a mesh of devices that may be absent: from shapes,
without computing anything."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grit_jax.data.packing import round_up
from grit_jax.inference.decode import ROWS_PER_CALL, cache_fits
from grit_jax.inference.encoder import EncodeOptions, encode_step
from grit_jax.inference.engine_steps import (
    EngineShape,
    LastChunk,
    PromptChunk,
    SlotSettings,
    empty_state_step,
    generate_step,
    prefill_step,
)
from grit_jax.inference.placement import TOKENS_PER_CALL
from grit_jax.inference.row_packing import TOKENS_PER_SEGMENT, bucket
from grit_jax.inference.sampling import GREEDY
from grit_jax.inference.slot_runner import CHUNK
from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import PARAMETER_AXES, parameter_shapes
from grit_jax.models.quantise import storage_axes
from grit_jax.models.slot_cache import Span
from grit_jax.plan.abstract_step import AbstractStep, abstract_step
from grit_jax.run_config import RunConfig, fit_to_mesh
from grit_jax.sharding import (
    fitted_sharding,
    num_row_shards,
    row_shardings,
    tree_shardings,
)
from grit_jax.training.gradient_plan import GradientPlan, gradient_plan
from grit_jax.training.state import HOST, TrainState, state_shardings
from grit_jax.types import AttentionMode, Batch, Rows


@dataclasses.dataclass
class LoweredProgram:
    """A lowered program, and the bytes of its arguments on one chip."""

    lowered: jax.stages.Lowered
    argument_bytes: int


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
        name: _weight_shardings(name, weight, mesh)
        for name, weight in abstract.state.frozen.items()
    }
    state = _placed(abstract.state, dataclasses.replace(shardings, frozen=frozen))
    return TrainShapes(
        abstract, state, _placed(abstract.batch, row_shardings(abstract.batch, mesh))
    )


def lower_train(config: RunConfig, mesh: Mesh) -> LoweredTrainStep:
    """The training step on a mesh. Raises: see `train_shapes`."""
    shapes = train_shapes(config, mesh)
    program = _lower(shapes.abstract.step, mesh, shapes.state, shapes.batch)
    with jax.set_mesh(mesh):
        gradient = gradient_plan(shapes.batch, shapes.abstract.config)
    return LoweredTrainStep(
        program.lowered, program.argument_bytes, shapes.abstract.model, shapes.state, gradient
    )


def _weight_shardings(name: str, weight: Any, mesh: Mesh) -> Any:
    """The shardings of a frozen weight, quantised or not (see `training/frozen_base.py`)."""
    sharding = lambda part, axes: fitted_sharding(axes, part.shape, mesh)
    return jax.tree.map(sharding, weight, storage_axes(weight, PARAMETER_AXES[name]))


class ServingPrograms:
    """The programs that run a trained model: encode documents with their caches, and the engine's:
    read a chunk of a prompt, decode.

    Weights are in `model.dtype`. Sizes are those of `inference`: one call of documents at the
    passages' length limit, and slots for a document, a question at its limit and as many new tokens
    as `Sampling` has.
    """

    def __init__(self, config: RunConfig, model: ModelConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.model = dataclasses.replace(model, remat="none")
        shapes = {
            name: _shape(shape, model.dtype) for name, shape in parameter_shapes(model).items()
        }
        self.params = _placed(shapes, tree_shardings(shapes, PARAMETER_AXES, mesh))

    def encode(self) -> LoweredProgram:
        T, shards = bucket(self.config.data.passage_max_length), num_row_shards(self.mesh)
        rows = round_up(max(1, TOKENS_PER_CALL["tpu"] * shards // T), shards)
        ids, mode = _shape((rows, T)), self.config.model.modes.embedding
        batch = (
            Rows(ids, ids, ids, ids if mode is AttentionMode.PREFIX else None),
            _shape((rows, T), bool),
        )
        return _lower(
            encode_step,
            self.mesh,
            self.params,
            *_placed(batch, row_shardings(batch, self.mesh)),
            config=self.model,
            options=EncodeOptions(
                self.config.model.pooling, mode, T // TOKENS_PER_SEGMENT, return_kv=True
            ),
        )

    def shape(self) -> EngineShape:
        """Slots for the questions of the configuration over one document each."""
        data, shards = self.config.data, num_row_shards(self.mesh)
        longest = data.document_max_length + data.query_max_length + GREEDY.max_new_tokens
        slots = ROWS_PER_CALL
        while slots > 1 and not cache_fits(self.model, slots, longest):
            slots //= 2
        return EngineShape(round_up(slots, shards), bucket(longest))

    def state(self) -> Any:
        """The engine's state, as shapes."""
        empty = _lower(empty_state_step, self.mesh, config=self.model, shape=self.shape())
        return _result(empty)

    def prefill(self) -> LoweredProgram:
        """A chunk of a prompt in one slot of each share of the mesh."""
        P = num_row_shards(self.mesh)
        each, flags = _shape((P,)), _shape((P,), bool)
        chunk = PromptChunk(_shape((P, CHUNK)), Span(each, each, each))
        last = LastChunk(flags, self._settings(P), _shape((1,)))
        return _lower(
            prefill_step,
            self.mesh,
            self.params,
            self.state(),
            *self._whole((chunk, last)),
            config=self.model,
        )

    def decode(self) -> LoweredProgram:
        """Tokens for all slots."""
        return _lower(
            generate_step,
            self.mesh,
            self.params,
            self.state(),
            *self._whole((_shape(()), _shape((1,)), _shape((), bool))),
            config=self.model,
        )

    def _settings(self, rows: int) -> SlotSettings:
        numbers, ids = _shape((rows,), jnp.float32), _shape((rows,))
        return SlotSettings(
            numbers, numbers, ids, _shape((rows,), jnp.uint32), ids, _shape((rows,), bool)
        )

    def _whole(self, tree: Any) -> Any:
        """Arguments that generation passes as host arrays: replicated on every device."""
        return _placed(
            tree, jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree)
        )


def bytes_per_chip(tree: Any) -> int:
    """Bytes of arrays on one chip, from shapes with shardings; host memory does not count."""
    shard = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(shard(x) for x in jax.tree.leaves(tree) if x.sharding.memory_kind != HOST)


def _result(program: LoweredProgram, compiled: jax.stages.Compiled | None = None) -> Any:
    """The result of a program, as shapes with the shardings that the compiler chose."""
    return _placed(
        program.lowered.out_info, (compiled or program.lowered.compile()).output_shardings
    )


def _lower(function: Any, mesh: Mesh, *arguments: Any, **static: Any) -> LoweredProgram:
    with jax.set_mesh(mesh):
        return LoweredProgram(function.lower(*arguments, **static), bytes_per_chip(arguments))


def _shape(shape: tuple[int, ...], dtype: Any = jnp.int32) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _placed(tree: Any, shardings: Any) -> Any:
    """Shapes with the shardings of their arrays."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
