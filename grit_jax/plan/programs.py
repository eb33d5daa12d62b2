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
from grit_jax.inference.decode import (
    ROWS_PER_CALL,
    SHORTEST_PROMPT,
    SLOTS,
    cache_fits,
)
from grit_jax.inference.encoder import EncodeOptions, encode_step
from grit_jax.inference.placement import TOKENS_PER_CALL
from grit_jax.inference.records import SHORTEST_RECORDS, LayerRecords
from grit_jax.inference.row_packing import TOKENS_PER_SEGMENT, bucket
from grit_jax.inference.sampling import GREEDY, sampling_rows
from grit_jax.inference.steps import (
    DecodeSettings,
    DecodeSizes,
    PromptRows,
    StopConditions,
    decode_step,
    prefill_end_step,
    prefill_layer_step,
    prefill_start_step,
)
from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import PARAMETER_AXES, parameter_shapes, stack_indices
from grit_jax.models.quantise import storage_axes
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
    """The programs that run a trained model: encode documents with their caches, read a prompt
    after one, decode.

    Weights are in `model.dtype`. Sizes are those of `inference`: one call of documents at the
    passages' length limit, and questions at theirs over one document each, with as many new tokens
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

    def prefill_layer(self) -> LoweredProgram:
        """One layer of the prompts' pass over their documents' records; it runs once per layer."""
        data, c = self.config.data, self.model
        P, T = (
            bucket(data.document_max_length, SHORTEST_RECORDS),
            bucket(data.query_max_length, SHORTEST_PROMPT),
        )
        B = ROWS_PER_CALL
        while B > 1 and not cache_fits(c, B, P + T + GREEDY.max_new_tokens):
            B //= 2
        marks = _shape((B, P))
        prompts = self._whole((PromptRows(_shape((B, T)), _shape((B,))), marks, marks))
        dtype = jnp.dtype(c.dtype)
        start = _lower(prefill_start_step, self.mesh, self.params, *prompts, config=c, dtype=dtype)
        shape = (B, c.num_key_value_heads, P, c.head_dim)
        record = {"k": _shape((*shape[:2], c.head_dim, P), c.dtype), "v": _shape(shape, c.dtype)}
        indices = {name: _shape(()) for name in stack_indices(self.params, c.layer_kinds, 0)}
        return _lower(
            prefill_layer_step,
            self.mesh,
            self.params,
            _result(start),
            *self._whole((_shape(()), indices, (LayerRecords(record, None),))),
            config=c,
            kind=c.layer_kinds[0],
            prompt_mode=AttentionMode.CAUSAL,
        )

    def decode(self, layer: LoweredProgram, compiled: jax.stages.Compiled) -> LoweredProgram:
        """Decoding from the state that the last layer returns, once that layer is compiled."""
        state, c = _result(layer, compiled), self.model
        (B, T, _), new = state.x.shape, GREEDY.max_new_tokens
        end = _lower(
            prefill_end_step,
            self.mesh,
            self.params,
            state,
            *self._whole((_shape((B,)), self._settings(B))),
            config=c,
            sizes=DecodeSizes(round_up(T + new, SLOTS), new),
        )
        rest = self._whole((_shape(()), self._settings(B)))
        return _lower(
            decode_step, self.mesh, self.params, _result(end), state.records, *rest, config=c
        )

    def _settings(self, rows: int) -> DecodeSettings:
        sampling = jax.tree.map(lambda x: _shape(x.shape, x.dtype), sampling_rows([GREEDY] * rows))
        stop = StopConditions(_shape((rows,)), _shape((rows,), bool), _shape((1,)))
        return DecodeSettings(sampling, stop)

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
