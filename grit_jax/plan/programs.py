"""The programs of a configuration, lowered for a mesh of devices that need not be here: shapes in, nothing computed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grit_jax.abstract import abstract_step
from grit_jax.data.packing import round_up
from grit_jax.inference.decode import ROWS_PER_CALL, SHORTEST_PIECES, SHORTEST_PROMPT, cache_fits, cache_slots
from grit_jax.inference.encoder import TOKENS_PER_CALL, encode_step
from grit_jax.inference.pieces import Loaded
from grit_jax.inference.plan import TOKENS_PER_SEGMENT, bucket
from grit_jax.inference.sampling import GREEDY, sampling_rows
from grit_jax.inference.steps import Limits, decode_step, prefill_step
from grit_jax.models.config import ModelConfig
from grit_jax.models.parameters import PARAMETER_AXES, parameter_shapes
from grit_jax.models.quantise import storage_axes
from grit_jax.run_config import RunConfig, data_config, step_config
from grit_jax.sharding import ShardingRules, fit, row_shardings, row_ways, tree_shardings
from grit_jax.training.joint import check_chunks
from grit_jax.training.state import HOST, TrainState, state_shardings
from grit_jax.types import KV, AttentionMode, Rows

RULES = ShardingRules()


@dataclasses.dataclass
class Program:
    """A program, lowered, and the bytes of its arguments on one chip."""

    lowered: jax.stages.Lowered
    argument_bytes: int


@dataclasses.dataclass
class TrainProgram(Program):
    """The step that `grit train` runs, and its state: shapes, each with its sharding."""

    model: ModelConfig
    state: TrainState


def lower_train(config: RunConfig, mesh: Mesh) -> TrainProgram:
    """The training step over a mesh, as `train.py` places its state and `training.loop` its batches.

    Raises:
      GritError: a shape that is not known, or chunks that the mesh does not divide.
    """
    config = dataclasses.replace(config, data=data_config(config, mesh, RULES))
    abstract = abstract_step(config)
    check_chunks(step_config(config, abstract.model), mesh, RULES)
    shardings = state_shardings(abstract.state, mesh, RULES)
    frozen = {name: _weight_shardings(name, weight, mesh) for name, weight in abstract.state.frozen.items()}
    state = _placed(abstract.state, dataclasses.replace(shardings, frozen=frozen))
    batch = _placed(abstract.batch, row_shardings(abstract.batch, mesh, RULES))
    program = _lower(abstract.step, mesh, state, batch)
    return TrainProgram(program.lowered, program.argument_bytes, abstract.model, state)


def _weight_shardings(name: str, weight: Any, mesh: Mesh) -> Any:
    """Of a frozen weight, quantised or not (see `training.base`)."""
    sharding = lambda part, axes: NamedSharding(mesh, fit(RULES.spec(axes), part.shape, mesh))
    return jax.tree.map(sharding, weight, storage_axes(weight, PARAMETER_AXES[name]))


class ServingPrograms:
    """What a trained model does: encode documents with their caches, read a prompt after such, decode.

    Weights are in `model.dtype`; sizes are those of `inference`: a call of documents as long as passages may be, and
    questions at their limit over one document each, with as many new tokens as `Sampling` has.
    """

    def __init__(self, config: RunConfig, model: ModelConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.model = dataclasses.replace(model, remat="none")
        shapes = {name: _shape(shape, model.dtype) for name, shape in parameter_shapes(model).items()}
        self.params = _placed(shapes, tree_shardings(shapes, PARAMETER_AXES, mesh, RULES))

    def encode(self) -> Program:
        T, ways = bucket(self.config.data.passage_max_length), row_ways(self.mesh, RULES)
        rows = round_up(max(1, TOKENS_PER_CALL["tpu"] * ways // T), ways)
        ids, mode = _shape((rows, T)), self.config.model.modes.embedding
        batch = (Rows(ids, ids, ids, ids if mode is AttentionMode.PREFIX else None), _shape((rows, T), bool))
        return _lower(
            encode_step, self.mesh, self.params, *_placed(batch, row_shardings(batch, self.mesh, RULES)),
            config=self.model, pooling=self.config.model.pooling, mode=mode,
            segments_per_row=T // TOKENS_PER_SEGMENT, return_kv=True,
        )  # fmt: skip

    def prefill(self) -> Program:
        data, c = self.config.data, self.model
        P, T = bucket(data.document_max_length, SHORTEST_PIECES), bucket(data.query_max_length, SHORTEST_PROMPT)
        new = GREEDY.max_new_tokens
        B = ROWS_PER_CALL
        while B > 1 and not cache_fits(c, B, P + T + new):
            B //= 2
        kv = _shape((c.num_hidden_layers, B, P, c.num_key_value_heads, c.head_dim), c.dtype)
        loaded = Loaded((KV(kv, kv),), _shape((B, P)), _shape((B, P)))
        prompts = (_shape((B, T)), _shape((B,)), loaded, *self._settings(B))
        return _lower(
            prefill_step, self.mesh, self.params, *self._whole(prompts), config=c, slots=cache_slots(P, T, new),
            new_tokens=new, return_logits=False,
        )  # fmt: skip

    def decode(self, prefill: Program, compiled: jax.stages.Compiled) -> Program:
        """Goes on from where a prefill leaves its state, once that is compiled."""
        state = _placed(prefill.lowered.out_info, compiled.output_shardings)
        rest = self._whole((_shape(()), *self._settings(state.token.shape[0])))
        return _lower(decode_step, self.mesh, self.params, state, *rest, config=self.model)

    def _settings(self, rows: int) -> tuple[Any, Limits]:
        sampling = jax.tree.map(lambda x: _shape(x.shape, x.dtype), sampling_rows([GREEDY] * rows))
        return sampling, Limits(_shape((rows,)), _shape((rows,), bool), _shape((1,)))

    def _whole(self, tree: Any) -> Any:
        """What generation hands over as host arrays: it lies whole on every device."""
        return _placed(tree, jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree))


def bytes_per_chip(tree: Any) -> int:
    """Bytes on one chip of arrays, given as shapes with shardings; what lies in host memory is none of them."""
    shard = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(shard(x) for x in jax.tree.leaves(tree) if x.sharding.memory_kind != HOST)


def _lower(function: Any, mesh: Mesh, *arguments: Any, **static: Any) -> Program:
    with jax.set_mesh(mesh):
        return Program(function.lower(*arguments, **static), bytes_per_chip(arguments))


def _shape(shape: tuple[int, ...], dtype: Any = jnp.int32) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _placed(tree: Any, shardings: Any) -> Any:
    """Shapes with the shardings of their arrays."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
